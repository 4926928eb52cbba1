"""The agent's logic, without servers: configuration, traffic, readiness, certificates, and what it answers itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pst_agent import config as agent_config
from pst_agent.logs import JsonFormatter
from pst_agent.mongo import MongoError
from pst_agent.readiness import Readiness
from pst_agent.server import reload_certificate, tls_context
from pst_agent.state import StateError
from pst_agent.tracing import Tracer
from pst_agent.traffic import Traffic
from pst_agent.web import Agent, Release

SETTINGS: dict[str, Any] = {
    "instance": {"site": "lab", "host": "app1", "colour": "blue"},
    "listen": {"address": "0.0.0.0", "port": 8080},
    "tls": {"ca": "/ca.crt", "certificate": "/app.crt", "key": "/app.key"},
    "release": {"path": "/srv/pst/releases/1-2-3"},
    "mongodb": {"hosts": ["m1.lab:27017"], "replica_set": "rs", "database": "production", "username": "app"},
    "redis": {"sentinels": ["r1.lab:26379"], "master": "pst", "username": "app"},
    "gateway": {"address": "127.0.0.1:4001", "needed": False},
    "dashboard": {"enabled": True, "port": 5000, "timeout_s": 60.0, "body_limit_kb": 1024},
    "trading": {"settings": "/etc/pst/trading/trading.json", "state": "/run/pst/trading", "private": "/etc/pst/blue"},
    "readiness": {"interval_s": 0.5, "timeout_s": 1, "grace_s": 10},
    "drain": {"flag": "/run/pst/blue/drain", "quiet_s": 2, "limit_s": 30},
    "tracing": {"share": 0.1},
}
TOKEN = "0123456789abcdef"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- configuration


def written(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "app.json"
    path.write_text(json.dumps(settings))
    return path


def test_the_effective_configuration_is_the_file(tmp_path: Path) -> None:
    config, sha256 = agent_config.load(written(tmp_path, SETTINGS))
    assert json.loads(agent_config.effective(config)) == SETTINGS
    assert re.fullmatch("[0-9a-f]{64}", sha256)


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("instance", {"colour": "red"}, "instance.colour is 'red', wanted: blue|green"),
        ("listen", {"port": 0}, "listen.port is 0, wanted: 1 to 65535"),
        ("listen", {"port": True}, "listen.port is True, wanted: int"),
        ("listen", {"prot": 8080}, "listen.prot is not known, wanted: address, port"),
        ("tls", {"key": "relative"}, "tls.key is 'relative', wanted: /.*"),
        ("mongodb", {"hosts": []}, "mongodb.hosts is [], wanted: a list that is not empty"),
        ("mongodb", {"hosts": ["m1:1", "no-port"]}, "mongodb.hosts[1] is 'no-port', wanted: "),
        ("gateway", {"needed": "yes"}, "gateway.needed is 'yes', wanted: bool"),
        ("readiness", {"timeout_s": "1"}, "readiness.timeout_s is '1', wanted: float"),
        ("readiness", {"grace_s": -1}, "readiness.grace_s is -1, wanted: 0 to 600"),
    ],
)
def test_a_wrong_configuration_names_key_value_and_want(
    tmp_path: Path, section: str, change: dict[str, Any], said: str
) -> None:
    path = written(tmp_path, SETTINGS | {section: SETTINGS[section] | change})
    with pytest.raises(agent_config.ConfigError) as caught:
        agent_config.load(path)
    assert f"{path}: {said}" in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    wrong = {key: value for key, value in SETTINGS.items() if key != "tls"} | {"drain": 1, "listen": {"port": 1}}
    with pytest.raises(agent_config.ConfigError) as caught:
        agent_config.load(written(tmp_path, wrong))
    said = [line.partition(".json: ")[2] for line in str(caught.value).splitlines()]
    assert said == ["drain is 1, wanted: an object", "listen.address is missing", "tls is missing"]


def test_secrets_are_read_from_credentials_and_never_shown(tmp_path: Path) -> None:
    for name in ("agent_token", "mongodb_password", "redis_password"):
        (tmp_path / name).write_text(f"{name}-value\n")
    secrets = agent_config.load_secrets(str(tmp_path))
    assert secrets.redis_password == "redis_password-value"
    assert "value" not in f"{secrets!r} {secrets}"
    (tmp_path / "agent_token").write_text("\n")
    with pytest.raises(agent_config.ConfigError, match="credential agent_token: empty"):
        agent_config.load_secrets(str(tmp_path))
    (tmp_path / "redis_password").unlink()
    with pytest.raises(agent_config.ConfigError, match="redis_password"):
        agent_config.load_secrets(str(tmp_path))


# --- traffic


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    return tmp_path / "drain"


def test_quiet_counts_from_the_drain_or_the_last_request(flag: Path) -> None:
    clock = Clock()
    traffic = Traffic(flag, 2, clock)
    clock.now += 100
    assert traffic.quiet_for == 0
    flag.touch()
    assert traffic.draining
    clock.now += 1
    assert traffic.quiet_for == 1
    with traffic.request():
        clock.now += 5
        assert traffic.quiet_for == 0
    assert traffic.quiet_for == 0
    clock.now += 3
    assert traffic.quiet_for == 3
    flag.unlink()
    assert traffic.quiet_for == 0
    flag.touch()
    assert traffic.quiet_for == 0


def test_a_failed_request_is_no_longer_in_flight(flag: Path) -> None:
    traffic = Traffic(flag, 2)
    with pytest.raises(ValueError, match="x"), traffic.request():
        raise ValueError("x")
    assert traffic.in_flight == 0


def test_stopping_waits_until_it_is_quiet_and_not_longer_than_the_limit(flag: Path) -> None:
    async def scenario() -> tuple[bool, bool]:
        traffic = Traffic(flag, quiet_s=0.05)
        traffic.stop()
        with traffic.request():
            busy = await traffic.quiet(limit_s=0.1)
        return busy, await traffic.quiet(limit_s=5)

    assert asyncio.run(scenario()) == (False, True)


# --- readiness


def readiness(probe: Callable[[], Any], clock: Clock, timeout_s: float = 1) -> Readiness:
    return Readiness({"redis": probe}, interval_s=0.5, timeout_s=timeout_s, grace_s=10, clock=clock)


def test_an_outage_counts_after_the_grace_and_ends_with_the_first_success() -> None:
    clock, outcome = Clock(), {"error": ""}

    async def probe() -> None:
        if outcome["error"]:
            raise ConnectionError(outcome["error"])

    judged = readiness(probe, clock)

    def after(seconds: float, error: str) -> list[str]:
        clock.now += seconds
        outcome["error"] = error
        asyncio.run(judged.check())
        return judged.reasons()

    assert judged.reasons() == ["redis: not reached yet"]
    assert after(0, "refused") == ["redis: ConnectionError: refused"]
    assert after(1, "") == []
    assert after(1, "refused") == []
    assert not judged.dependencies["redis"].up
    assert after(9, "refused") == []
    assert after(1, "refused") == ["redis: ConnectionError: refused (for 10 s)"]
    assert after(1, "") == []
    assert after(1, "refused") == []


def test_a_probe_that_hangs_is_a_reason() -> None:
    judged = readiness(lambda: asyncio.Event().wait(), Clock(), timeout_s=0.01)
    asyncio.run(judged.check())
    assert judged.reasons() == ["redis: no answer within 0.01 s"]


def test_checks_that_stopped_are_a_reason() -> None:
    clock = Clock()

    async def probe() -> None: ...

    judged = readiness(probe, clock)
    asyncio.run(judged.check())
    clock.now += 10
    assert judged.reasons() == ["checks: last one 10 s ago"]


# --- the HTTP surface


class State:
    """What is known about trading; `error` is raised instead."""

    LEASES: ClassVar[list[dict[str, Any]]] = [
        {"placement": "operations", "held": True, "epoch": 3, "holder": {"host": "app2", "colour": "blue"}},
        {"placement": "strategies", "held": False, "epoch": 9, "holder": {"host": "app1", "colour": "blue"}},
        {"placement": "trading", "held": True, "epoch": 7, "holder": {"host": "app1", "colour": "blue"}},
    ]

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def _answer(self, content: Any) -> Any:
        if self.error:
            raise self.error
        return content

    async def leases(self) -> Any:
        return self._answer(self.LEASES)

    def local_grants(self) -> Any:
        return [{"placement": "trading", "epoch": 7}]

    async def processes(self) -> Any:
        started = datetime(2026, 11, 20, 0, 1)  # noqa: DTZ001 - as pysystemtrade stores it
        return self._answer(
            {
                "processes": [
                    {"process": "run_reports", "running": False, "last_start": None},
                    {"process": "run_stack_handler", "running": True, "last_start": started},
                ]
            }
        )

    async def orders(self) -> Any:
        return self._answer({"instrument": [{"order_id": 1}], "contract": [], "broker": []})

    async def active_orders(self) -> Any:
        return self._answer({"instrument": 1, "contract": 0, "broker": 0})

    async def positions(self) -> Any:
        return self._answer({"strategy_positions": [], "contract_positions": []})


class Posts:
    """The probe's ledger; `error` is raised instead."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.keys = error, list[str]()

    async def add(self, key: str) -> None:
        if self.error:
            raise self.error
        self.keys.append(key)

    async def count(self, run: str) -> Any:
        return {"posts": len(self.keys), "distinct": len(set(self.keys)), "duplicates": [], "asked": run}


class Account:
    """Says whose figures it was asked for."""

    def tell(self, *, mine: bool) -> str:
        return f"pst_account_asked {float(mine)}\n"


def agent(flag: Path, state: State | None = None, ledger: Posts | None = None, share: float = 0) -> Agent:
    async def probe() -> None: ...

    judged = Readiness({"mongodb": probe, "redis": probe}, interval_s=0.5, timeout_s=1, grace_s=10)
    asyncio.run(judged.check())
    return Agent(
        instance=agent_config.Instance(site="lab", host="app1", colour="blue"),
        release=Release("1.2.3", "abc", "c0ffee"),
        agent=Release("0.0.0+1", "def"),
        config_sha256="f" * 64,
        settings_hash="5" * 32,
        token=TOKEN,
        traffic=Traffic(flag, 2),
        tracer=Tracer(share),
        readiness=judged,
        state=state or State(),  # type: ignore[arg-type]
        ledger=ledger or Posts(),  # type: ignore[arg-type]
        account=Account(),  # type: ignore[arg-type]
        dashboard=None,
    )


def exchange(made: Agent, *requests: tuple[str, str], token: str | None = TOKEN) -> list[httpx.Response]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def scenario() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=made)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="https://app", headers=headers) as client:
            return [await client.request(method, path) for method, path in requests]

    return asyncio.run(scenario())


def test_hosts_with_the_same_settings_have_the_same_hash_and_others_not(tmp_path: Path) -> None:
    def hash_of(name: str, host: str, limit: str, token: str = TOKEN) -> str:
        private = tmp_path / name
        private.mkdir()
        (private / "private_config.yaml").write_text(f"max_price_spike: {limit}\n")
        trading = {**SETTINGS["trading"], "private": str(private)}
        path = written(private, {**SETTINGS, "instance": {**SETTINGS["instance"], "host": host}, "trading": trading})
        config, _ = agent_config.load(path)
        document = json.loads(path.read_text())
        document["trading"]["private"] = "/etc/pst/blue"  # the same on every host; here each has a folder of its own
        path.write_text(json.dumps(document))
        return agent_config.settings_hash(path, config, token)

    first = hash_of("a", "app1", "8.0")
    assert hash_of("b", "app2", "8.0") == first
    assert hash_of("c", "app2", "9.0") != first
    assert hash_of("d", "app1", "8.0", "another token") != first


def test_ready_says_why_not(flag: Path) -> None:
    made = agent(flag)
    [ready] = exchange(made, ("GET", "/ready"), token=None)
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "reasons": [], "dependencies": {"mongodb": True, "redis": True}}
    flag.touch()
    health, ready = exchange(made, ("GET", "/health"), ("GET", "/ready"), token=None)
    assert health.status_code == 200
    assert ready.status_code == 404
    assert ready.json()["reasons"] == ["draining"]


def test_a_draining_instance_without_its_stores_is_unusable(flag: Path) -> None:
    made = agent(flag)
    made.readiness.dependencies["redis"].reached = False
    flag.touch()
    [ready] = exchange(made, ("GET", "/ready"))
    assert ready.status_code == 503
    assert [reason.split(":")[0] for reason in ready.json()["reasons"]] == ["draining", "redis"]


def test_the_version_is_the_releases_and_the_agents(flag: Path) -> None:
    opened, behind_token = exchange(agent(flag), ("GET", "/version"), ("GET", "/api/v1/version"))
    assert opened.json() == behind_token.json()
    assert opened.json() == {
        "release": "1.2.3",
        "revision": "abc",
        "agent": "0.0.0+1",
        "content": "c0ffee",
        "config_sha256": "f" * 64,
        "settings_hash": "5" * 32,
        "site": "lab",
        "host": "app1",
        "colour": "blue",
    }
    assert behind_token.headers["X-PST-Instance"] == "app1/blue"


API = ("status", "processes", "orders", "positions", "lease", "version", "probe", f"probe/{12 * 'a'}", "unknown", "")


@pytest.mark.parametrize("name", API)
@pytest.mark.parametrize("token", [None, "", TOKEN[:-1], TOKEN + "0", f" {TOKEN}", "ä"])
def test_nothing_of_the_api_is_told_without_the_token(flag: Path, name: str, token: str | None) -> None:
    made = agent(flag, State(AssertionError("was asked")))
    header = {} if token is None else {"Authorization": f"Bearer {token}".encode()}

    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=made), base_url="https://app") as client:
            return await client.get(f"/api/v1/{name}", headers=header)

    got = asyncio.run(scenario())
    assert got.status_code == 401
    assert got.headers["WWW-Authenticate"] == "Bearer"
    assert set(got.json()) == {"error"}


def test_the_api_tells_the_state(flag: Path) -> None:
    status, processes, orders, positions, lease = (
        got.json() for got in exchange(agent(flag), *(("GET", f"/api/v1/{name}") for name in API[:5]))
    )
    assert status["running"] == ["run_stack_handler"]
    assert status["active_orders"] == {"instrument": 1, "contract": 0, "broker": 0}
    assert {name: lease["mine"] for name, lease in status["leases"].items()} == {
        "operations": False,
        "strategies": False,  # it expired
        "trading": True,
    }
    assert processes["processes"][1]["last_start"] == "2026-11-20T00:01:00"
    assert orders["instrument"] == [{"order_id": 1}]
    assert positions == {"strategy_positions": [], "contract_positions": []}
    assert lease["here"] == [{"placement": "trading", "epoch": 7}]
    assert [entry["placement"] for entry in lease["leases"]] == ["operations", "strategies", "trading"]


def test_the_api_is_read_only_and_knows_its_names(flag: Path) -> None:
    posted, unknown = exchange(agent(flag), ("POST", "/api/v1/lease"), ("GET", "/api/v1/secrets"))
    assert (posted.status_code, posted.headers["Allow"]) == (405, "GET, HEAD")
    assert unknown.status_code == 404
    assert "lease" in unknown.json()["error"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MongoError("mongodb://app:hidden@m1 is away"), "the database does not answer: MongoError"),
        (TimeoutError(), "the database does not answer: TimeoutError"),
        (StateError("positions: no such file"), "positions: no such file"),
    ],
)
def test_a_source_that_does_not_answer_is_a_503(flag: Path, error: Exception, said: str) -> None:
    [got] = exchange(agent(flag, State(error)), ("GET", "/api/v1/positions"))
    assert got.status_code == 503
    assert got.json() == {"error": said}


def post(made: Agent, content: bytes, **headers: str) -> httpx.Response:
    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=made), base_url="https://app") as client:
            return await client.post(
                "/api/v1/probe", content=content, headers={"Authorization": f"Bearer {TOKEN}"} | headers
            )

    return asyncio.run(scenario())


RUN_ID = "0123456789ab"


def test_a_post_is_taken_while_draining_and_counted_by_run(flag: Path) -> None:
    ledger = Posts()
    made = agent(flag, ledger=ledger)
    flag.touch()
    got = post(made, b'{"key": "%s-17"}' % RUN_ID.encode())
    assert (got.status_code, got.json()) == (201, {"key": f"{RUN_ID}-17"})
    assert ledger.keys == [f"{RUN_ID}-17"]
    [counted] = exchange(made, ("GET", f"/api/v1/probe/{RUN_ID}"))
    assert counted.json() == {"posts": 1, "distinct": 1, "duplicates": [], "asked": RUN_ID}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b"[]", 400, 'wanted: {"key": "<run>-<number>"}'),
        (b'{"key": "0123456789ab-1", "more": 1}', 400, 'wanted: {"key": "<run>-<number>"}'),
        (b'{"key": 1}', 400, "key is 1, wanted: ([0-9a-f]{12})-[0-9]{1,9}"),
        (b'{"key": "0123456789ab-1234567890"}', 400, "key is '0123456789ab-1234567890', wanted: "),
        (b'{"key": "0123456789ab-1\\n"}', 400, "wanted: ([0-9a-f]{12})"),
        (b'{"key": "0123456789AB-1"}', 400, "wanted: ([0-9a-f]{12})"),
        (b'{"key": "0123456789ab-1"}' + 1000 * b" ", 413, "the body is too large, wanted: 1024 bytes"),
    ],
)
def test_a_post_that_is_none_is_refused(flag: Path, body: bytes, status: int, said: str) -> None:
    ledger = Posts()
    got = post(agent(flag, ledger=ledger), body)
    assert got.status_code == status
    assert said in got.json()["error"]
    assert ledger.keys == []


def test_a_post_that_the_majority_did_not_take_is_a_503(flag: Path) -> None:
    got = post(agent(flag, ledger=Posts(MongoError("away"))), b'{"key": "0123456789ab-1"}')
    assert got.status_code == 503


def test_posts_have_their_method_and_their_runs(flag: Path) -> None:
    made = agent(flag)
    got, put, unknown = exchange(
        made, ("GET", "/api/v1/probe"), ("POST", f"/api/v1/probe/{RUN_ID}"), ("GET", "/api/v1/probe/x")
    )
    assert (got.status_code, got.headers["Allow"]) == (405, "POST")
    assert (put.status_code, put.headers["Allow"]) == (405, "GET, HEAD")
    assert (unknown.status_code, unknown.json()) == (400, {"error": "the run is 'x', wanted: [0-9a-f]{12}"})


def test_a_slot_without_a_dashboard_says_so(flag: Path) -> None:
    [got] = exchange(agent(flag), ("GET", "/"))
    assert got.status_code == 404
    assert got.json() == {"error": "this slot has no dashboard"}


def samples(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(?m)^([^#\s]+(?:\{.*\})?) (\S+)$", text)}


def test_metrics_count_requests_and_leave_probes_out(flag: Path) -> None:
    made = agent(flag)
    *_, got = exchange(made, ("GET", "/ready"), ("GET", "/api/v1/lease"), ("BREW", "/x"), ("GET", "/metrics"))
    found = samples(got.text)
    assert found['pst_http_requests_total{method="GET",code="200"}'] == 1
    assert found['pst_http_requests_total{method="other",code="404"}'] == 1
    assert found["pst_http_request_seconds_count"] == 2
    assert found['pst_http_request_seconds_bucket{le="+Inf"}'] == 2
    assert found["pst_http_requests_in_flight"] == 0
    assert found["pst_ready"] == 1
    assert found['pst_dependency_up{dependency="redis"}'] == 1
    assert found['pst_build_info{version="1.2.3",revision="abc",colour="blue"}'] == 1


def test_metrics_tell_the_state_of_trading(flag: Path) -> None:
    [got] = exchange(agent(flag), ("GET", "/metrics"), token=None)
    found = samples(got.text)
    assert got.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert found["pst_state_up"] == 1
    holder = {placement: found[f'pst_lease_holder{{placement="{placement}"}}'] for placement in
              ("operations", "strategies", "trading")}  # fmt: skip
    assert holder == {"operations": 0, "strategies": 0, "trading": 1}
    assert found['pst_lease_epoch{placement="trading"}'] == 7
    assert found['pst_process_running{process="run_stack_handler"}'] == 1
    assert found['pst_process_running{process="run_reports"}'] == 0
    assert found['pst_orders_active{stack="instrument"}'] == 1


@pytest.mark.parametrize(
    ("holder", "held", "mine"),
    [
        ({"host": "app1", "colour": "blue"}, True, True),
        ({"host": "app1", "colour": "green"}, True, False),
        ({"host": "app2", "colour": "blue"}, True, False),
        ({"host": "app2", "colour": "blue"}, False, True),  # it expired
        (None, False, True),
    ],
)
def test_the_account_is_told_by_the_holder_or_by_all_while_there_is_none(
    flag: Path, monkeypatch: pytest.MonkeyPatch, holder: dict[str, str] | None, held: bool, mine: bool
) -> None:
    lease = {"placement": "trading", "held": held, "epoch": 7, "holder": holder}
    monkeypatch.setattr(State, "LEASES", [State.LEASES[0], lease])
    [got] = exchange(agent(flag), ("GET", "/metrics"))
    assert samples(got.text)["pst_account_asked"] == mine


def test_metrics_are_told_without_the_database(flag: Path) -> None:
    [got] = exchange(agent(flag, State(MongoError("away"))), ("GET", "/metrics"))
    found = samples(got.text)
    assert got.status_code == 200
    assert found["pst_state_up"] == 0
    assert found["pst_quiet_seconds"] == 0
    assert not any(name.startswith(("pst_lease", "pst_account")) for name in found)


def test_a_log_line_is_one_json_object() -> None:
    record = logging.makeLogRecord({"msg": "request %s", "args": ("a\nb",), "levelname": "INFO", "code": 200})
    entry = json.loads(JsonFormatter().format(record))
    assert entry["message"] == "request a\nb"
    assert entry["code"] == 200


# --- certificates


def certificate(folder: Path, name: str) -> agent_config.Tls:
    """Write a self-signed pair, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "app.crt").write_bytes(made.public_bytes(pem))
    (folder / "app.key").write_bytes(key.private_bytes(pem, *plain))
    return agent_config.Tls(*(str(folder / file) for file in ("app.crt", "app.crt", "app.key")))


def served_subject(context: ssl.SSLContext, trusted: str) -> str:
    """Shake hands in memory, and return the common name that the server shows."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(trusted)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = client.wrap_bio(to_client, to_server)
    right = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (left, right, left):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    der = left.getpeercert(binary_form=True)
    assert der is not None
    return str(x509.load_der_x509_certificate(der).subject.rfc4514_string())


def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not(tmp_path: Path) -> None:
    tls = certificate(tmp_path, "old")
    context = tls_context(tls)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert served_subject(context, tls.ca) == "CN=old"
    certificate(tmp_path, "new")
    reload_certificate(context, tls)
    assert served_subject(context, tls.ca) == "CN=new"
    trusted = tmp_path / "trusted"
    trusted.write_bytes((tmp_path / "app.crt").read_bytes())
    (tmp_path / "app.key").write_text("cut off")
    reload_certificate(context, tls)
    assert served_subject(context, str(trusted)) == "CN=new"


# --- the program


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(agent_config.__file__).parents[1] / "agent.py"
    environment = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_program_checks_a_configuration_and_refuses_to_start_without_its_secrets(tmp_path: Path) -> None:
    path = str(written(tmp_path, SETTINGS))
    checked = program("--config", path, "--check-config")
    assert (checked.returncode, json.loads(checked.stdout)) == (0, SETTINGS)
    started = program("--config", path)
    assert (started.returncode, "CREDENTIALS_DIRECTORY" in started.stderr) == (78, True)
    written(tmp_path, SETTINGS | {"listen": 8080})
    refused = program("--config", path, "--check-config")
    assert (refused.returncode, refused.stderr.strip()) == (78, f"{path}: listen is 8080, wanted: an object")
