"""The hosts authenticate each other with the certificates, and nobody else gets in."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://pki-lb"]
BOTH = pytest.mark.parametrize("name", ["pki-app", "pki-lb"])
SERVER = "pki-app.pki.pst.test"
SERVE = (
    "systemd-run --quiet --unit=tls-server openssl s_server -accept 4433 -www -Verify 2 -verify_return_error"
    " -CAfile /etc/pst/pki/ca.crt -cert /etc/pst/pki/app/app.crt -key /etc/pst/pki/app/app.key"
)
CLIENT = """
import socket, ssl, sys
name, *pem = sys.argv[1:]
context = ssl.create_default_context(cafile="/etc/pst/pki/ca.crt")
context.verify_flags |= ssl.VERIFY_X509_STRICT
if pem:
    context.load_cert_chain(pem[0])
with socket.create_connection((name, 4433), 10) as raw, context.wrap_socket(raw, server_hostname=name) as tls:
    tls.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(tls.recv(15).decode(), tls.version())
"""


@pytest.fixture(scope="module")
def client(host: Host) -> Iterator[Host]:
    """The balancer, with a TLS server running on the application host."""
    server = _other(host, "pki-app")
    with server.sudo():
        server.run("systemctl stop tls-server; systemctl reset-failed tls-server")
        server.check_output(SERVE)
        server.check_output("timeout 10 sh -c 'until ss -Hltn sport = :4433 | grep -q .; do sleep 0.1; done'")
    yield host
    with server.sudo():
        server.run("systemctl stop tls-server")


@cache
def _other(host: Host, name: str) -> Host:
    own = host.backend
    return Host.get_host(f"ansible://{name}", ansible_inventory=own.ansible_inventory, ssh_config=own.ssh_config)


def _connect(client: Host, name: str, *pem: str) -> Any:
    with client.sudo():
        return client.run("python3 -c %s " + " ".join(["%s"] * (1 + len(pem))), CLIENT, name, *pem)


@pytest.mark.parametrize("name", [SERVER, "pki-app", "10.78.12.11"])
def test_balancer_and_application_authenticate_each_other(client: Host, name: str) -> None:
    result = _connect(client, name, "/etc/pst/pki/load_balancer/load_balancer.pem")
    assert result.stdout.strip() == "HTTP/1.0 200 ok TLSv1.3", result


def test_client_without_certificate_is_refused(client: Host) -> None:
    result = _connect(client, SERVER)
    assert "certificate required" in result.stderr.lower(), result


def test_client_of_another_authority_is_refused(client: Host) -> None:
    with client.sudo():
        client.check_output(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=stranger"
            " -keyout /tmp/stranger.pem -out /tmp/stranger.crt && cat /tmp/stranger.crt >> /tmp/stranger.pem"
        )
    result = _connect(client, SERVER, "/tmp/stranger.pem")
    assert result.rc != 0
    assert "unknown ca" in result.stderr.lower(), result


def test_server_under_another_name_is_refused(client: Host) -> None:
    with client.sudo():
        client.check_output("grep -q impostor /etc/hosts || echo 10.78.12.11 impostor.pki.pst.test >> /etc/hosts")
    result = _connect(client, "impostor.pki.pst.test", "/etc/pst/pki/load_balancer/load_balancer.pem")
    assert "hostname mismatch" in result.stderr.lower(), result


@BOTH
def test_private_keys_are_unreadable_for_other_users(host: Host, name: str) -> None:
    host = _other(host, name)
    with host.sudo():
        keys = host.check_output("find /etc/pst/pki -name '*.key' -o -name '*.pem'").split()
    assert "/etc/pst/pki/node/node.key" in keys
    for key in keys:
        assert host.run("cat %s", key).rc != 0, f"{key} can be read by {host.user().name}"


@BOTH
def test_installed_certificates_have_months_left(host: Host, name: str) -> None:
    host = _other(host, name)
    with host.sudo():
        paths = host.check_output("find /etc/pst/pki -mindepth 2 -name '*.crt'").split()
        assert len(paths) == {"pki-app": 2, "pki-lb": 3}[name]
        for path in paths:
            assert host.run("openssl x509 -noout -checkend %s -in %s", str(60 * 86400), path).rc == 0, path


def test_public_certificate_has_the_public_names(host: Host) -> None:
    with host.sudo():
        text = host.check_output("openssl x509 -noout -ext subjectAltName -in /etc/pst/pki/public/public.crt")
    for name in ("DNS:trading.pki.pst.test", "DNS:api.trading.pki.pst.test", "IP Address:10.78.12.10"):
        assert name in text
