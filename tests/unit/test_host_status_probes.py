"""The probes of the status table against servers on loopback that want a client certificate, as the real ones do."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ansible_collections.pst.platform.plugins.module_utils import host_status as status

Answers = dict[str, tuple[int, object]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that is its own authority, where the host keeps the node's."""
    folder = tmp_path_factory.mktemp("pki")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "node.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "node.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


@pytest.fixture(autouse=True)
def files(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "CA", node / "node.crt")
    monkeypatch.setattr(status, "NODE_CERTIFICATE", node / "node.crt")
    monkeypatch.setattr(status, "NODE_KEY", node / "node.key")


@contextmanager
def serving(node: Path, answers: Answers) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = answers[self.path]
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(node / "node.crt"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(node / "node.crt", node / "node.key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def context(**ports: int) -> status.Context:
    return status.Context("127.0.0.1", ports=ports, timeout=5)


def test_a_ready_application_tells_its_release(node: Path) -> None:
    with serving(node, {"/version": (200, {"release": "1.2.3"}), "/ready": (200, {})}) as port:
        assert status.probe_app("blue")(context(blue=port)) == status.Answer("ready", "1.2.3")


def test_an_application_that_is_not_ready_says_why(node: Path) -> None:
    answers: Answers = {"/version": (200, {"release": "1.2.3"}), "/ready": (503, {"reasons": ["mongodb: down"]})}
    with serving(node, answers) as port, pytest.raises(status.ProbeError, match=r"/ready answers 503: .*mongodb: down"):
        status.probe_app("green")(context(green=port))


def test_prometheus_names_the_targets_that_are_down(node: Path) -> None:
    def target(instance: str, health: str, **labels: str) -> dict[str, object]:
        return {"labels": {"instance": instance, "job": "a", **labels}, "health": health}

    targets = [target("lb1", "up"), target("app1", "down")]
    answers: Answers = {
        "/-/ready": (200, ""),
        "/api/v1/targets?state=active": (200, {"data": {"activeTargets": targets}}),
    }
    with serving(node, answers) as port:
        with pytest.raises(status.ProbeError, match="1 of 2 targets down: app1"):
            status.probe_prometheus(context(prometheus=port))
        targets[1]["health"] = "up"
        assert status.probe_prometheus(context(prometheus=port)).text == "2 targets up"

        targets += [target("app2:8080", "up", colour="blue"), target("app2:8081", "down", colour="green")]
        assert status.probe_prometheus(context(prometheus=port)).text == "3 targets up", "an empty slot is no failure"
        targets[2]["health"] = "down"
        with pytest.raises(status.ProbeError, match="2 of 4 targets down: app2:8080, app2:8081"):
            status.probe_prometheus(context(prometheus=port))


def test_a_service_that_does_not_listen_is_a_row_and_no_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    unit = status.Unit("loaded", "active", "running", "enabled", "")
    service = status.Service("load_balancers", "haproxy", "haproxy.service", probe=status.probe_haproxy)
    row = status.row_of("lb1", service, unit, {}, context(load_balancer=closed))
    assert not row.ok
    assert row.state.startswith("active, but")
    assert "Connection refused" in row.state


def test_a_host_without_certificates_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "CA", tmp_path / "absent.crt")
    unit = status.Unit("loaded", "active", "running", "enabled", "")
    service = status.Service("load_balancers", "haproxy", "haproxy.service", probe=status.probe_haproxy)
    assert not status.row_of("lb1", service, unit, {}, context(load_balancer=1)).ok


@pytest.mark.parametrize("word", ["s3cret", '"s3cret"'])
def test_the_login_of_the_sentinel_is_read_from_its_file(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sentinel.conf"
    path.write_text(f"sentinel monitor pst r1 6379 2\nsentinel auth-pass pst {word}\nsentinel auth-user pst sentinel\n")
    monkeypatch.setattr(status, "SENTINEL_CONFIG", path)
    access = status.sentinel_login(context())
    assert (access.user, access.passwords) == ("sentinel", ("s3cret",))
