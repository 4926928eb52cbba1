"""The slot serves by mutual TLS, tells when it may not, harms no trader, and loses neither a note nor a request."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

testinfra_hosts = ["ansible://app_nodes"]
STATE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "state")
PKI = STATE / "pki"
AGENT, DASHBOARD = "pst-app@blue.service", "pst-dashboard@blue.service"
PYTHON = "/srv/pst/blue/venv/bin/python"
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


def token() -> dict[str, str]:
    return {"Authorization": f"Bearer {(STATE / 'secrets/app_agent_token').read_text().strip()}"}


@pytest.fixture
def app(host: Host) -> Iterator[httpx.Client]:
    with client(name_of(host)) as session:
        wait_for(lambda: session.get("/ready").status_code == 200, "ready")
        yield session


@pytest.fixture
def stores() -> Host:
    return INVENTORY.get_host("app-stores", ssh_config=f"{STATE}/ssh/config")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not {what} within {WAIT_S} s"
        time.sleep(0.2)


def started_at(host: Host, unit: str = AGENT) -> str:
    return host.check_output(f"systemctl show --property=ExecMainStartTimestampMonotonic --value {unit}")


def in_slot(host: Host, code: str) -> Any:
    """Run Python as the slot's program does, with its settings; return what it prints as JSON."""
    command = f"cd /srv/pst/blue/source && PYSYS_PRIVATE_CONFIG_DIR=/etc/pst/blue PYTHONDONTWRITEBYTECODE=1 {PYTHON} -c"
    with host.sudo("pst"):
        return json.loads(host.check_output(f"{command} %s", code) or "null")


DATABASE = "import json; from sysdata.mongodb.mongo_connection import get_database; db = get_database();"


def test_it_runs_the_release_that_the_slot_holds(host: Host, app: httpx.Client) -> None:
    manifest = json.loads(host.check_output("cat /srv/pst/blue/manifest.json"))
    version = app.get("/version").json()
    assert version["release"] == manifest["version"]
    assert version["agent"] == json.loads(host.check_output("cat /srv/pst/agent/blue/manifest.json"))["version"]
    assert version["host"] == name_of(host)
    assert version["colour"] == "blue"
    with host.sudo():
        assert version["config_sha256"] == host.file("/etc/pst/blue/app.json").sha256sum
    assert app.get("/echo", params={"message": "hello"}).json() == {
        "message": "hello",
        "host": name_of(host),
        "colour": "blue",
        "release": manifest["version"],
    }


def test_a_client_without_a_certificate_is_refused(host: Host, app: httpx.Client) -> None:
    with client(name_of(host), with_certificate=False) as stranger, pytest.raises(httpx.TransportError):
        stranger.get("/health")


def test_plain_http_is_refused(host: Host, app: httpx.Client) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url(name_of(host), 'http')}/health")


def test_the_dashboard_is_on_loopback_only(host: Host, app: httpx.Client) -> None:
    assert host.socket("tcp://127.0.0.1:5000").is_listening
    address = INVENTORY.get_variables(name_of(host))["ansible_host"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{address}:5000/")


def test_a_note_is_the_same_on_every_host_and_written_once(app: httpx.Client) -> None:
    note = {"key": uuid.uuid4().hex, "text": "buy nothing"}
    assert app.post("/notes", json=note).status_code == 201
    assert app.post("/notes", json=note).status_code == 200
    assert app.post("/notes", json=note | {"text": "sell"}).status_code == 409
    for name in ("app-1", "app-2"):
        with client(name) as other:
            assert other.get(f"/notes/{note['key']}").json() == note
    assert app.get("/notes/unknown").status_code == 404
    assert app.post("/notes", content=b"{").status_code == 422
    assert app.post("/notes", content=b"x" * (2 << 20)).status_code == 413


# --- what the agent tells of trading


def test_the_page_of_processes_is_safe_on_every_host_and_on_loopback(host: Host, app: httpx.Client) -> None:
    """A trader that lives elsewhere: its process id exists on no host of the scenario."""
    live = {"process_name": "run_stack_handler", "status": "GO", "currently_running": 1.0, "process_id": 4194000.0}
    in_slot(host, f"{DATABASE} db.process_control.replace_one({{'process_name': 'run_stack_handler'}}, {live}, True)")
    page = app.get("/processes")
    ask = "from urllib.request import urlopen as get; print(get('http://127.0.0.1:5000/processes').read().decode())"
    on_loopback = host.check_output("python3 -c %s", ask)
    for text in (page.text, on_loopback):
        assert json.loads(text)["running_modes"]["run_stack_handler"] == "running"
        assert "mongodb://" not in text
    assert app.post("/processes").status_code == 405
    assert app.head("/processes").status_code == 200
    stored = in_slot(host, f"{DATABASE} print(json.dumps(list(db.process_control.find({{}}, {{'_id': 0}}))))")
    assert stored == [live]


def test_the_api_needs_the_token_and_tells_the_state(host: Host, app: httpx.Client) -> None:
    order = {"order_id": 7, "key": "momentum SP500", "active": True}
    in_slot(host, f"{DATABASE} db.INSTRUMENT_ORDER_STACK.replace_one({{'order_id': 7}}, {order}, True)")
    for name in ("status", "processes", "orders", "positions", "lease", "version"):
        refused = app.get(f"/api/v1/{name}")
        assert refused.status_code == 401, name
        assert refused.json() == {"error": "wanted: Authorization: Bearer <token>"}
        told = app.get(f"/api/v1/{name}", headers=token())
        assert told.status_code == 200, told.text
    assert app.get("/api/v1/orders", headers=token()).json()["instrument"] == [order]
    assert app.get("/api/v1/status", headers=token()).json()["active_orders"]["instrument"] == 1
    assert 'pst_orders_active{stack="instrument"} 1.0' in app.get("/metrics").text


def test_positions_are_read_from_the_parquet_store_and_a_broken_file_is_told(host: Host, app: httpx.Client) -> None:
    in_slot(
        host,
        "import pathlib, datetime, pyarrow as pa, pyarrow.parquet as pq\n"
        "store = pathlib.Path('/var/lib/pst/parquet/strategy_positions'); store.mkdir(exist_ok=True)\n"
        "at = [datetime.datetime(2026, 11, day) for day in (19, 20)]\n"
        "table = pa.table({'position': [1.0, 3.0], 'index': at})\n"
        'described = {b\'pandas\': b\'{"index_columns": ["index"], "columns": []}\'}\n'
        "pq.write_table(table.replace_schema_metadata(described), store / 'momentum SP500.parquet')\n"
        "(store / 'torn.parquet').write_bytes(b'PAR1')\n",
    )

    def told() -> Any:
        return app.get("/api/v1/positions", headers=token()).json()["strategy_positions"]

    wait_for(lambda: len(told()) == 2, "read again")
    whole, torn = told()
    assert whole == {"name": "momentum SP500", "position": 3.0, "at": "2026-11-20T00:00:00"}
    assert torn["name"] == "torn"
    assert "Arrow" in torn["error"]


# --- drain, restart, faults


def test_the_killed_programs_came_back_and_the_changed_limit_holds(host: Host) -> None:
    killed = {"app-1": AGENT, "app-2": DASHBOARD}[name_of(host)]
    for unit in (AGENT, DASHBOARD):
        shown = host.check_output(f"systemctl show --property=NRestarts,TasksMax {unit}").split()
        assert "TasksMax=256" in shown
        assert ("NRestarts=0" in shown) is (unit != killed)


def test_a_drained_instance_says_so_and_still_serves(host: Host, app: httpx.Client) -> None:
    with host.sudo():
        host.check_output("touch /run/pst/blue/drain")
        try:
            answer = app.get("/ready")
            assert answer.status_code == 404
            assert answer.json()["reasons"] == ["draining"]
            assert app.get("/echo", params={"message": "hello"}).json()["message"] == "hello"
            wait_for(lambda: quiet_seconds(app) >= 2, "quiet")
        finally:
            host.check_output("rm /run/pst/blue/drain")
    wait_for(lambda: app.get("/ready").status_code == 200, "ready again")
    assert quiet_seconds(app) == 0


def quiet_seconds(app: httpx.Client) -> float:
    lines = app.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("pst_quiet_seconds ")))


def test_restarting_the_slot_drops_no_request(host: Host, app: httpx.Client) -> None:
    """A balancer that goes on sending for a second after the first 404 on /ready sees no failed request."""
    failures: list[str] = []
    served = 0
    before = [started_at(host, unit) for unit in (AGENT, DASHBOARD)]
    stop = threading.Thread(target=host.check_output, args=(f"sudo systemctl restart {AGENT} {DASHBOARD}",))
    stop.start()
    notice, deadline = None, time.monotonic() + WAIT_S
    while time.monotonic() < (deadline if notice is None else notice + 1.0):
        try:
            with client(name_of(host)) as fresh:
                assert fresh.get("/echo").status_code == 200
                assert app.get("/echo").status_code == 200
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
    after = [started_at(host, unit) for unit in (AGENT, DASHBOARD)]
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_a_slot_without_its_dashboard_says_so_and_sends_nothing_twice(host: Host, app: httpx.Client) -> None:
    with host.sudo():
        host.check_output(f"systemctl stop {DASHBOARD}")
        try:
            answer = app.post("/notes", json={"key": uuid.uuid4().hex, "text": "x"})
            assert answer.status_code == 503
            assert answer.json() == {"error": "the dashboard does not answer: ConnectionRefusedError"}
            wait_for(lambda: app.get("/ready").status_code == 503, "out of traffic")
            assert [reason.split(":")[0] for reason in app.get("/ready").json()["reasons"]] == ["dashboard"]
            assert app.get("/api/v1/orders", headers=token()).status_code == 200
        finally:
            host.check_output(f"systemctl start {DASHBOARD}")
    wait_for(lambda: app.get("/ready").status_code == 200, "back")


def test_no_redis_is_a_reason_after_the_grace_and_loses_no_note(host: Host, app: httpx.Client, stores: Host) -> None:
    note = {"key": uuid.uuid4().hex, "text": "kept without a cache"}
    before = started_at(host)
    with stores.sudo():
        stores.check_output("systemctl stop redis-server")
        try:
            wait_for(lambda: app.get("/ready").status_code == 503, "out of traffic")
            answer = app.get("/ready").json()
            assert [reason.split(":")[0] for reason in answer["reasons"]] == ["redis"]
            assert answer["dependencies"] == {"mongodb": True, "redis": False, "dashboard": True}
            assert app.post("/notes", json=note).status_code == 201
            assert app.get(f"/notes/{note['key']}").json() == note
        finally:
            stores.check_output("systemctl start redis-server")
    wait_for(lambda: app.get("/ready").status_code == 200, "back")
    assert app.get(f"/notes/{note['key']}").json() == note
    wait_for(lambda: app.get(f"/notes/{note['key']}").headers["X-Cache"] == "hit", "cached again")
    assert started_at(host) == before


@pytest.mark.parametrize("unit", [AGENT, DASHBOARD])
def test_the_units_are_confined(host: Host, unit: str) -> None:
    summary = host.check_output(f"systemd-analyze security --no-pager {unit}").splitlines()[-1]
    assert float(summary.split(":")[1].split()[0]) <= 1.5


@pytest.mark.parametrize("unit", [AGENT, DASHBOARD])
def test_secrets_are_only_where_systemd_puts_them(host: Host, unit: str) -> None:
    with host.sudo():
        pid = host.check_output(f"systemctl show --property=MainPID --value {unit}")
        for name in ("agent_token", "mongodb_password", "redis_password"):
            secret = host.check_output(f"cat /etc/pst/credentials/{name}")
            assert len(secret) >= 16
            for place in (f"/proc/{pid}/environ", f"/proc/{pid}/cmdline", "/etc/pst/blue/app.json"):
                assert secret not in host.check_output(f"tr '\\0' '\\n' < {place}")
            assert secret not in host.check_output(f"journalctl --no-pager -u {unit}")
    with host.sudo("pst"):
        assert host.run("cat /etc/pst/credentials/mongodb_password").rc != 0


def test_a_reload_keeps_the_process(host: Host, app: httpx.Client) -> None:
    before = started_at(host)
    with host.sudo():
        host.check_output(f"systemctl reload {AGENT}")
        journal = f"journalctl --no-pager -u {AGENT} -n 20 -o cat"
        wait_for(lambda: "certificate reloaded" in host.check_output(journal), "reloaded")
    assert app.get("/health").status_code == 200
    assert started_at(host) == before
