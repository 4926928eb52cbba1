"""The application serves by mutual TLS, tells when it may not, and loses neither a note nor a request."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

testinfra_hosts = ["ansible://app_nodes"]
PKI = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "state/pki")
UNIT = "pst-app@blue.service"
WAIT_S = 90


INVENTORY = AnsibleRunner(os.environ["ANSIBLE_INVENTORY"])


def name_of(host: Host) -> str:
    return str(host.backend.get_hostname())


def tls(with_certificate: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(PKI / "ca.crt"))
    if with_certificate:
        context.load_cert_chain(PKI / "app-stores/node.pem")
    return context


def url(name: str, scheme: str = "https") -> str:
    return f"{scheme}://{INVENTORY.get_variables(name)['ansible_host']}:8080"


def client(name: str, *, with_certificate: bool = True) -> httpx.Client:
    return httpx.Client(base_url=url(name), verify=tls(with_certificate), timeout=35)


@pytest.fixture
def app(host: Host) -> Iterator[httpx.Client]:
    with client(name_of(host)) as session:
        wait_for(lambda: session.get("/ready").status_code == 200, "ready")
        yield session


@pytest.fixture
def stores() -> Host:
    return INVENTORY.get_host("app-stores", ssh_config=f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/state/ssh/config")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not {what} within {WAIT_S} s"
        time.sleep(0.2)


def started_at(host: Host) -> str:
    return host.check_output(f"systemctl show --property=ExecMainStartTimestampMonotonic --value {UNIT}")


def test_it_runs_the_release_that_the_slot_holds(host: Host, app: httpx.Client) -> None:
    manifest = json.loads(host.check_output("cat /srv/pst/blue/manifest.json"))
    version = app.get("/version").json()
    assert version["release"] == manifest["version"]
    assert version["host"] == name_of(host)
    assert version["colour"] == "blue"
    with host.sudo():
        assert version["config_sha256"] == host.file("/etc/pst/blue/app.json").sha256sum


def test_a_client_without_a_certificate_is_refused(host: Host, app: httpx.Client) -> None:
    with client(name_of(host), with_certificate=False) as stranger, pytest.raises(httpx.TransportError):
        stranger.get("/health")


def test_plain_http_is_refused(host: Host, app: httpx.Client) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url(name_of(host), 'http')}/health")


def test_a_note_is_the_same_on_every_host_and_written_once(app: httpx.Client) -> None:
    note = {"key": uuid.uuid4().hex, "text": "buy nothing"}
    assert app.post("/api/v1/notes", json=note).status_code == 201
    assert app.post("/api/v1/notes", json=note).status_code == 200
    assert app.post("/api/v1/notes", json=note | {"text": "sell"}).status_code == 409
    for name in ("app-1", "app-2"):
        with client(name) as other:
            assert other.get(f"/api/v1/notes/{note['key']}").json() == note
    assert app.get("/api/v1/notes/unknown").status_code == 404
    assert app.post("/api/v1/notes", content=b"{").status_code == 422
    assert app.post("/api/v1/notes", content=b"x" * 100_000).status_code == 413


def test_the_killed_instance_came_back_and_the_changed_limit_holds(host: Host) -> None:
    shown = host.check_output(f"systemctl show --property=NRestarts,TasksMax {UNIT}").split()
    assert "TasksMax=256" in shown
    if name_of(host) == "app-1":
        assert "NRestarts=0" not in shown


def test_a_drained_instance_says_so_and_still_serves(host: Host, app: httpx.Client) -> None:
    with host.sudo():
        host.check_output("touch /run/pst/blue/drain")
        try:
            answer = app.get("/ready")
            assert answer.status_code == 404
            assert answer.json()["reasons"] == ["draining"]
            assert app.get("/api/v1/echo", params={"message": "hello"}).json()["message"] == "hello"
            wait_for(lambda: quiet_seconds(app) >= 2, "quiet")
        finally:
            host.check_output("rm /run/pst/blue/drain")
    assert app.get("/ready").status_code == 200
    assert quiet_seconds(app) == 0


def quiet_seconds(app: httpx.Client) -> float:
    lines = app.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("pst_quiet_seconds ")))


def test_stopping_drops_no_request(host: Host, app: httpx.Client) -> None:
    """A balancer that goes on sending for a second after the first 404 on /ready sees no failed request."""
    failures: list[str] = []
    served = 0
    before = started_at(host)
    stop = threading.Thread(target=host.check_output, args=("sudo systemctl restart " + UNIT,))
    stop.start()
    notice, deadline = None, time.monotonic() + WAIT_S
    while time.monotonic() < (deadline if notice is None else notice + 1.0):
        try:
            with client(name_of(host)) as fresh:
                assert fresh.get("/api/v1/echo").status_code == 200
                assert app.get("/api/v1/echo").status_code == 200
                served += 2
                if app.get("/ready").status_code == 404 and notice is None:
                    notice = time.monotonic()
        except (httpx.TransportError, AssertionError) as error:
            failures.append(f"{error!r} after {served}")
            break
    stop.join(WAIT_S)
    assert failures == []
    assert notice is not None
    assert served > 0
    wait_for(lambda: started_at(host) != before, "restarted")


def test_no_redis_is_a_reason_after_the_grace_and_loses_no_note(host: Host, app: httpx.Client, stores: Host) -> None:
    note = {"key": uuid.uuid4().hex, "text": "kept without a cache"}
    before = started_at(host)
    with stores.sudo():
        stores.check_output("systemctl stop redis-server")
        try:
            wait_for(lambda: app.get("/ready").status_code == 503, "out of traffic")
            answer = app.get("/ready").json()
            assert [reason.split(":")[0] for reason in answer["reasons"]] == ["redis"]
            assert answer["dependencies"] == {"mongodb": True, "redis": False}
            assert app.post("/api/v1/notes", json=note).status_code == 201
            assert app.get(f"/api/v1/notes/{note['key']}").json() == note
        finally:
            stores.check_output("systemctl start redis-server")
    wait_for(lambda: app.get("/ready").status_code == 200, "back")
    assert app.get(f"/api/v1/notes/{note['key']}").json() == note
    wait_for(lambda: app.get(f"/api/v1/notes/{note['key']}").headers["X-Cache"] == "hit", "cached again")
    assert started_at(host) == before


def test_the_unit_is_confined(host: Host) -> None:
    summary = host.check_output(f"systemd-analyze security --no-pager {UNIT}").splitlines()[-1]
    assert float(summary.split(":")[1].split()[0]) <= 1.5


def test_secrets_are_only_where_systemd_puts_them(host: Host) -> None:
    with host.sudo():
        secret = host.check_output("cat /etc/pst/credentials/mongodb_password")
        pid = host.check_output(f"systemctl show --property=MainPID --value {UNIT}")
        assert len(secret) >= 16
        for place in (f"/proc/{pid}/environ", f"/proc/{pid}/cmdline", "/etc/pst/blue/app.json"):
            assert secret not in host.check_output(f"tr '\\0' '\\n' < {place}")
        assert secret not in host.check_output(f"journalctl --no-pager -u {UNIT}")
    with host.sudo("pst"):
        assert host.run("cat /etc/pst/credentials/mongodb_password").rc != 0


def test_a_reload_keeps_the_process(host: Host, app: httpx.Client) -> None:
    before = started_at(host)
    with host.sudo():
        host.check_output(f"systemctl reload {UNIT}")
        journal = f"journalctl --no-pager -u {UNIT} -n 20 -o cat"
        wait_for(lambda: "certificate reloaded" in host.check_output(journal), "reloaded")
    assert app.get("/health").status_code == 200
    assert started_at(host) == before
