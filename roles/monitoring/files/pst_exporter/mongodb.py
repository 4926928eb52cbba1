"""One member of MongoDB: what it says of itself and of its set. Names and meanings: docs/alerts.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .settings import MongoSettings
from .text import Family, Page

Document = dict[str, Any]

SELECT_MS = 2000
SOCKET_MS = 4000
SERVER_MS = 3000  # the server gives up first
PRIMARY = 1


@dataclass(frozen=True)
class Part:
    """A metric, where its values are in the answer of serverStatus, and what each key there is called."""

    metric: str
    kind: str
    text: str
    path: tuple[str, ...]
    label: str
    keys: Mapping[str, str]
    unit: int = 1

    def render(self, page: Page, status: Document) -> None:
        found = status
        for key in self.path:
            found = found.get(key, {})
        family = Family(self.metric, self.kind, self.text)
        for key, name in self.keys.items():
            if key in found:
                family.add(found[key] * self.unit, **{self.label: name})
        page.put(family)


CACHE = {
    "bytes currently in the cache": "used",
    "tracked dirty bytes in the cache": "dirty",
    "maximum bytes configured": "max",
}
CLIENTS = {key: key for key in ("current", "available", "active")}
MEMORY = {key: key for key in ("resident", "virtual")}
TRAFFIC = {"bytesIn": "in", "bytesOut": "out"}
PARTS = (
    Part("mongodb_connections", "gauge", "Connections of clients", ("connections",), "state", CLIENTS),
    Part("mongodb_memory_bytes", "gauge", "Memory of the server", ("mem",), "type", MEMORY, 1 << 20),
    Part("mongodb_network_bytes_total", "counter", "Bytes of clients", ("network",), "direction", TRAFFIC),
    Part("mongodb_wiredtiger_cache_bytes", "gauge", "Cache of the engine", ("wiredTiger", "cache"), "type", CACHE),
)


@dataclass(frozen=True)
class Answers:
    """What the member answered. Where it is in no set yet, or cannot tell, that part is empty."""

    status: Document
    replica_set: Document
    oplog: tuple[datetime, datetime] | None = None


Ask = Callable[[str], Answers]


def render(target: str, ask: Ask) -> str:
    """Return the figures of a member; one that does not answer is told as `mongodb_up 0`."""
    page = Page()
    up = page.gauge("mongodb_up", "1 when the member let the exporter log in and answered")
    try:
        answers = ask(target)
    except Exception as error:  # noqa: BLE001 - whatever the driver raises, the member is of no use
        up.add(0)
        page.gauge("mongodb_last_error_info", "Always 1; why the member is not up").add(1, error=type(error).__name__)
        return page.render()
    up.add(1)
    server_figures(page, answers.status)
    if answers.replica_set:
        set_figures(page, answers.replica_set)
    if answers.oplog:
        first, last = answers.oplog
        page.gauge("mongodb_oplog_window_seconds", "Time between the oldest and the newest entry of the oplog").add(
            (last - first).total_seconds()
        )
    return page.render()


def server_figures(page: Page, status: Document) -> None:
    page.gauge("mongodb_version_info", "Always 1").add(1, version=status.get("version", "unknown"))
    page.gauge("mongodb_uptime_seconds", "Time since the server started").add(status.get("uptime", 0))
    operations = page.counter("mongodb_op_counters_total", "Operations since the server started")
    replicated = page.counter("mongodb_op_counters_repl_total", "Operations that were replicated to this member")
    for family, key in ((operations, "opcounters"), (replicated, "opcountersRepl")):
        for kind, count in status.get(key, {}).items():
            if isinstance(count, int | float):
                family.add(count, type=kind)
    for part in PARTS:
        part.render(page, status)


def set_figures(page: Page, status: Document) -> None:
    """What this member sees of its set: of two that are cut off from each other, each sees the other as down."""
    members = status.get("members", [])
    newest = max((m["optimeDate"] for m in members if m.get("state") == PRIMARY and "optimeDate" in m), default=None)
    page.gauge("mongodb_replset_my_state", "State of this member: 1 primary, 2 secondary, see MongoDB's manual").add(
        status["myState"]
    )
    state = page.gauge("mongodb_replset_member_state", "State of a member as this one sees it")
    health = page.gauge("mongodb_replset_member_health", "1 when this member reaches the other one")
    lag = page.gauge("mongodb_replset_member_lag_seconds", "How far a secondary is behind the primary")
    for member in members:
        name = str(member["name"]).partition(":")[0].partition(".")[0]
        state.add(member["state"], member=name)
        health.add(member["health"], member=name)
        if newest and member.get("state") == 2 and "optimeDate" in member:
            lag.add(max(0.0, (newest - member["optimeDate"]).total_seconds()), member=name)
    page.gauge("mongodb_replset_primaries", "Primaries that this member sees; 1 in a healthy set").add(
        sum(1 for member in members if member.get("state") == PRIMARY)
    )


class Members:
    """Connections to the members, one client each, each asked directly and not as part of its set."""

    def __init__(self, settings: MongoSettings) -> None:
        self._settings = settings
        self._clients: dict[str, Any] = {}

    def ask(self, target: str) -> Answers:
        from pymongo import errors  # noqa: PLC0415 - Debian's package, on the host only

        client = self._client(target)
        status = client.admin.command("serverStatus", maxTimeMS=SERVER_MS)
        try:
            replica_set = client.admin.command("replSetGetStatus", maxTimeMS=SERVER_MS)
            oplog = self._oplog(client)
        except errors.OperationFailure:  # not yet in a set, or it starts
            replica_set, oplog = {}, None
        return Answers(status, replica_set, oplog)

    def _oplog(self, client: Any) -> tuple[datetime, datetime] | None:
        entries = client.local["oplog.rs"]
        ends: list[Any] = [
            next(iter(entries.find({}, {"ts": 1}).sort("$natural", order).limit(1).max_time_ms(SERVER_MS)), None)
            for order in (1, -1)
        ]
        if not all(ends):
            return None
        return ends[0]["ts"].as_datetime(), ends[1]["ts"].as_datetime()

    def _client(self, target: str) -> Any:
        if target not in self._clients:
            self._clients[target] = connect(self._settings, [target], directConnection=True)
        return self._clients[target]


def connect(settings: MongoSettings, hosts: list[str], **more: Any) -> Any:
    """Return a client whose calls are short. It connects at its first use."""
    import pymongo  # noqa: PLC0415

    return pymongo.MongoClient(
        hosts,
        username=settings.username,
        password=settings.password(),
        authSource="admin",
        authMechanism="SCRAM-SHA-256",
        tls=True,
        tlsCAFile=settings.ca,
        appname="pst-exporter",
        serverSelectionTimeoutMS=SELECT_MS,
        connectTimeoutMS=SELECT_MS,
        socketTimeoutMS=SOCKET_MS,
        waitQueueTimeoutMS=SOCKET_MS,
        heartbeatFrequencyMS=10000,
        retryReads=False,
        maxPoolSize=2,
        **more,
    )
