"""The reference application's logic, without servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import ssl
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pymongo.errors import AutoReconnect
from redis.exceptions import ConnectionError as RedisConnectionError

sys.path.insert(0, str(Path(__file__).parents[1] / "reference_app"))

from reference_app import config as app_config
from reference_app.logs import JsonFormatter
from reference_app.readiness import Readiness
from reference_app.server import reload_certificate, tls_context
from reference_app.store import Note, Notes
from reference_app.traffic import Traffic
from reference_app.web import MAX_BODY, Release, Service

SETTINGS: dict[str, Any] = {
    "instance": {"site": "lab", "host": "app1", "colour": "blue"},
    "listen": {"address": "0.0.0.0", "port": 8080},
    "tls": {"ca": "/ca.crt", "certificate": "/app.crt", "key": "/app.key"},
    "mongodb": {"hosts": ["m1.lab:27017"], "replica_set": "rs", "database": "production", "username": "app"},
    "redis": {"sentinels": ["r1.lab:26379"], "master": "pst", "username": "app"},
    "readiness": {"interval_s": 0.5, "timeout_s": 1, "grace_s": 10},
    "drain": {"flag": "/run/pst/blue/drain", "quiet_s": 2, "limit_s": 30},
}


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
    config, sha256 = app_config.load(written(tmp_path, SETTINGS))
    assert json.loads(app_config.effective(config)) == SETTINGS
    assert re.fullmatch("[0-9a-f]{64}", sha256)


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("instance", {"colour": "red"}, "$.instance.colour"),
        ("listen", {"port": 0}, "$.listen.port"),
        ("listen", {"prot": 8080}, "prot"),
        ("tls", {"key": "relative"}, "$.tls.key"),
        ("mongodb", {"hosts": []}, "$.mongodb.hosts"),
        ("mongodb", {"hosts": ["no-port"]}, "$.mongodb.hosts"),
        ("readiness", {"timeout_s": "1"}, "$.readiness.timeout_s"),
    ],
)
def test_a_wrong_configuration_names_the_key(tmp_path: Path, section: str, change: dict[str, Any], named: str) -> None:
    path = written(tmp_path, SETTINGS | {section: SETTINGS[section] | change})
    with pytest.raises(app_config.ConfigError, match=re.escape(named)):
        app_config.load(path)


def test_secrets_are_read_from_credentials_and_never_shown(tmp_path: Path) -> None:
    for name in ("mongodb_password", "redis_password"):
        (tmp_path / name).write_text(f"{name}-value\n")
    secrets = app_config.load_secrets(str(tmp_path))
    assert secrets.redis_password == "redis_password-value"
    assert "value" not in f"{secrets!r} {secrets}"
    (tmp_path / "redis_password").unlink()
    with pytest.raises(app_config.ConfigError, match="redis_password"):
        app_config.load_secrets(str(tmp_path))


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
            raise RedisConnectionError(outcome["error"])

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


# --- notes


class Collection:
    """What the notes use of a MongoDB collection."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Any]] = {}

    async def find_one_and_update(self, query: dict[str, Any], update: dict[str, Any], **_: Any) -> dict[str, Any]:
        return self.documents.setdefault(query["_id"], query | update["$setOnInsert"])

    async def find_one(self, query: dict[str, Any]) -> dict[str, Any] | None:
        return self.documents.get(query["_id"])


class Cache(dict[str, bytes]):
    broken = False

    async def set(self, name: str, value: bytes, *, ex: int) -> None:
        if self.broken:
            raise RedisConnectionError
        self[name] = value

    async def get(self, name: str) -> bytes | None:  # type: ignore[override]
        if self.broken:
            raise RedisConnectionError
        return dict.get(self, name)


def notes(cache: Cache, up: bool = True) -> Notes:
    return Notes({"notes": Collection()}, cache, lambda: up)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [False, True])
def test_a_note_is_written_once_with_and_without_a_cache(broken: bool) -> None:
    async def scenario() -> None:
        cache = Cache()
        cache.broken = broken
        store = notes(cache)
        assert await store.put(Note("k", "first")) == (Note("k", "first"), True)
        assert await store.put(Note("k", "second")) == (Note("k", "first"), False)
        assert await store.get("k") == (Note("k", "first"), not broken)
        assert await store.get("other") == (None, False)

    asyncio.run(scenario())


def test_a_cache_that_is_down_is_not_asked() -> None:
    async def scenario() -> None:
        cache = Cache()
        store = notes(cache, up=False)
        await store.put(Note("k", "text"))
        assert cache == {}
        assert await store.get("k") == (Note("k", "text"), False)

    asyncio.run(scenario())


def test_what_is_no_note_in_the_cache_is_read_from_the_database() -> None:
    async def scenario() -> None:
        cache = Cache({"app:note:k": b"{"})
        store = notes(cache)
        await store.put(Note("k", "text"))
        cache["app:note:k"] = b"{"
        assert await store.get("k") == (Note("k", "text"), False)

    asyncio.run(scenario())


# --- the HTTP surface


class BrokenStore:
    async def put(self, note: Note) -> tuple[Note, bool]:
        raise AutoReconnect("no primary")

    async def get(self, key: str) -> tuple[Note | None, bool]:
        raise AutoReconnect("no primary")


def service(flag: Path, store: Any = None) -> Service:
    async def probe() -> None: ...

    judged = Readiness({"mongodb": probe, "redis": probe}, interval_s=0.5, timeout_s=1, grace_s=10)
    asyncio.run(judged.check())
    instance = app_config.Instance(site="lab", host="app1", colour="blue")
    return Service(instance, Release("1.2.3", "abc"), "f" * 64, Traffic(flag, 2), judged, store or notes(Cache()))


def exchange(made: Service, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
    async def scenario() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=made.app())
        async with httpx.AsyncClient(transport=transport, base_url="https://app") as client:
            return [await client.request(method, path, **body) for method, path, body in requests]

    return asyncio.run(scenario())


def test_ready_says_why_not(flag: Path) -> None:
    made = service(flag)
    [ready] = exchange(made, ("GET", "/ready", {}))
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "reasons": [], "dependencies": {"mongodb": True, "redis": True}}
    flag.touch()
    health, ready = exchange(made, ("GET", "/health", {}), ("GET", "/ready", {}))
    assert health.status_code == 200
    assert ready.status_code == 404
    assert ready.json()["reasons"] == ["draining"]


def test_a_draining_instance_without_its_stores_is_unusable(flag: Path) -> None:
    made = service(flag)
    made.readiness.dependencies["redis"].reached = False
    flag.touch()
    [ready] = exchange(made, ("GET", "/ready", {}))
    assert ready.status_code == 503
    assert [reason.split(":")[0] for reason in ready.json()["reasons"]] == ["draining", "redis"]


def test_every_answer_names_the_instance_and_the_version_the_release(flag: Path) -> None:
    [version] = exchange(service(flag), ("GET", "/version", {}))
    assert version.headers["X-PST-Instance"] == "app1/blue"
    assert version.json() == {
        "release": "1.2.3",
        "revision": "abc",
        "config_sha256": "f" * 64,
        "site": "lab",
        "host": "app1",
        "colour": "blue",
    }


def test_notes_over_http(flag: Path) -> None:
    note = {"key": "k", "text": "t"}
    answers = exchange(
        service(flag),
        ("POST", "/api/v1/notes", {"json": note}),
        ("POST", "/api/v1/notes", {"json": note}),
        ("POST", "/api/v1/notes", {"json": note | {"text": "u"}}),
        ("GET", "/api/v1/notes/k", {}),
        ("GET", "/api/v1/notes/x", {}),
        ("POST", "/api/v1/notes", {"json": note | {"more": 1}}),
        ("POST", "/api/v1/notes", {"json": note | {"key": ""}}),
        ("POST", "/api/v1/notes", {"content": b"x" * (MAX_BODY + 1)}),
        ("DELETE", "/api/v1/notes/k", {}),
    )
    assert [answer.status_code for answer in answers] == [201, 200, 409, 200, 404, 422, 422, 413, 405]
    assert answers[3].json() == note
    assert answers[3].headers["X-Cache"] == "hit"


def test_a_database_that_does_not_answer_is_a_503_to_be_tried_again(flag: Path) -> None:
    [answer] = exchange(service(flag, BrokenStore()), ("POST", "/api/v1/notes", {"json": {"key": "k", "text": "t"}}))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"


def test_metrics_count_requests_and_leave_probes_out(flag: Path) -> None:
    made = service(flag)
    *_, metrics = exchange(made, ("GET", "/ready", {}), ("GET", "/api/v1/echo", {}), ("GET", "/metrics", {}))
    samples = dict(line.rsplit(" ", 1) for line in metrics.text.splitlines() if not line.startswith("#"))
    assert samples['pst_http_requests_total{code="200",method="GET"}'] == "1.0"
    assert samples["pst_http_requests_in_flight"] == "0.0"
    assert samples["pst_ready"] == "1.0"
    assert samples['pst_dependency_up{dependency="redis"}'] == "1.0"
    assert samples['pst_build_info{colour="blue",revision="abc",version="1.2.3"}'] == "1.0"


def test_a_log_line_is_one_json_object() -> None:
    record = logging.makeLogRecord({"msg": "request %s", "args": ("a\nb",), "levelname": "INFO", "code": 200})
    entry = json.loads(JsonFormatter().format(record))
    assert entry["message"] == "request a\nb"
    assert entry["code"] == 200


# --- certificates


def certificate(folder: Path, name: str) -> app_config.Tls:
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
    return app_config.Tls(*(str(folder / file) for file in ("app.crt", "app.crt", "app.key")))


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
