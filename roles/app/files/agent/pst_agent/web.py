"""The HTTP surface: what the agent answers itself; everything else goes to the dashboard."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from pst_agent import metrics
from pst_agent.account import PLACEMENT, Account
from pst_agent.config import Instance
from pst_agent.ledger import KEY, RUN, Ledger
from pst_agent.mongo import MongoError
from pst_agent.proxy import Dashboard, Message, ProxyError, Receive, Send, TooLargeError
from pst_agent.readiness import Readiness
from pst_agent.state import State, StateError
from pst_agent.tracing import Tracer
from pst_agent.traffic import Traffic

log = logging.getLogger(__name__)
PROBES = frozenset({"/health", "/ready", "/metrics", "/version"})
API = "/api/v1/"
READ = ("GET", "HEAD")
POST_LIMIT = 1024
METRICS_TIMEOUT_S = 3
DATABASE_ERRORS = (MongoError, OSError)  # a time-out is an OSError
JSON = (b"content-type", b"application/json")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Sequence[tuple[bytes, bytes]] = (JSON,)


Route = Callable[[], Awaitable[Answer]]


def to_json(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def answer(content: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(status, json.dumps(content, default=to_json).encode(), (JSON, *headers))


def refused(status: int, reason: str, *headers: tuple[bytes, bytes]) -> Answer:
    return answer({"error": reason}, status, *headers)


@dataclass(frozen=True)
class Release:
    """What a release's manifest says about itself."""

    version: str = "unreleased"
    revision: str = ""
    content: str = ""

    @classmethod
    def find(cls, manifest: Path) -> Release:
        if not manifest.exists():
            return cls()
        document = json.loads(manifest.read_bytes())
        return cls(document["version"], document["revision"], document["content"])


@dataclass
class Agent:
    """The ASGI application."""

    instance: Instance
    release: Release
    agent: Release
    config_sha256: str
    settings_hash: str
    token: str
    traffic: Traffic
    tracer: Tracer
    readiness: Readiness
    state: State
    ledger: Ledger
    account: Account
    dashboard: Dashboard | None

    def __post_init__(self) -> None:
        self._requests = metrics.Requests()
        self._name = (b"x-pst-instance", f"{self.instance.host}/{self.instance.colour}".encode())
        self._open: dict[str, Route] = {
            "/health": self.health,
            "/ready": self.ready,
            "/version": self.version,
            "/metrics": self.metrics,
        }
        self._api: dict[str, Route] = {
            "status": self.status,
            "processes": self.processes,
            "orders": self.orders,
            "positions": self.positions,
            "lease": self.lease,
            "version": self.version,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        if scope["path"] in PROBES:
            await self._own(self._open[scope["path"]], scope, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given or uuid.uuid4().hex.encode()
        span = self.tracer.begin(scope["headers"])
        if span:
            scope["headers"] = span.onward(scope["headers"])
        code, started = 0, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message["headers"], self._name]
            await send(message)

        with self.traffic.request():
            try:
                await self._route(scope, receive, noted, request_id)
            finally:
                seconds = time.perf_counter() - started
                self._requests.observe(scope["method"], code, seconds)
                entry = {"method": scope["method"], "path": scope["path"], "code": code}
                entry |= {"seconds": round(seconds, 4), "request_id": request_id.decode("latin-1")}
                entry |= span.fields(f"{scope['method']} {scope['path']}", code) if span else {}
                log.info("request", extra=entry)

    async def _route(self, scope: Message, receive: Receive, send: Send, request_id: bytes) -> None:
        path: str = scope["path"]
        if path.startswith(API):
            if not self._authorised(scope):
                wanted = refused(401, "wanted: Authorization: Bearer <token>", (b"www-authenticate", b"Bearer"))
                await deliver(wanted, send)
            elif path == f"{API}probe":
                await self._own(partial(self.add_post, receive), scope, send, ("POST",))
            elif path.startswith(f"{API}probe/"):
                await self._own(partial(self.posts, path.removeprefix(f"{API}probe/")), scope, send)
            elif route := self._api.get(path.removeprefix(API)):
                await self._own(route, scope, send)
            else:
                await deliver(refused(404, f"{path}: wanted: {API}{{{','.join(self._api)}}}"), send)
        elif self.dashboard is None:
            await deliver(refused(404, "this slot has no dashboard"), send)
        else:
            try:
                await self.dashboard.handle(scope, receive, send, request_id)
            except TooLargeError:
                await deliver(refused(413, "the body is too large", (b"connection", b"close")), send)
            except ProxyError as error:
                log.warning("dashboard failed", extra={"error": str(error), "path": path})
                await deliver(refused(error.code, str(error), (b"retry-after", b"1")), send)

    def _authorised(self, scope: Message) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, b"Bearer " + self.token.encode())

    async def _own(self, route: Route, scope: Message, send: Send, methods: Sequence[str] = READ) -> None:
        if scope["method"] not in methods:
            made = refused(405, f"{scope['method']}: wanted: {methods[0]}", (b"allow", ", ".join(methods).encode()))
        else:
            try:
                made = await route()
            except DATABASE_ERRORS as error:
                log.warning("database failed", extra={"error": f"{type(error).__name__}: {error}"[:300]})
                made = refused(503, f"the database does not answer: {type(error).__name__}", (b"retry-after", b"1"))
            except StateError as error:
                made = refused(503, str(error))
        await deliver(made, send)

    # What anybody with a certificate of the site may ask --------------------------------------------------------------

    async def health(self) -> Answer:
        return answer({"status": "alive"})

    async def ready(self) -> Answer:
        """200: send. 404: drain, send nothing new (HAProxy: disable-on-404) but keep what runs. 503: unusable."""
        failed = self.readiness.reasons()
        reasons = [*(["draining"] if self.traffic.draining else []), *failed]
        dependencies = {name: dependency.up for name, dependency in self.readiness.dependencies.items()}
        content = {"ready": not reasons, "reasons": reasons, "dependencies": dependencies}
        return answer(content, 503 if failed else 404 if reasons else 200)

    async def version(self) -> Answer:
        return answer(self._version())

    def _version(self) -> dict[str, str]:
        return {
            "release": self.release.version,
            "revision": self.release.revision,
            "agent": self.agent.version,
            "content": self.release.content,
            "config_sha256": self.config_sha256,
            "settings_hash": self.settings_hash,
            "site": self.instance.site,
            "host": self.instance.host,
            "colour": self.instance.colour,
        }

    async def metrics(self) -> Answer:
        content = self._own_metrics() + await self._trading_metrics()
        return Answer(200, content.encode(), ((b"content-type", metrics.CONTENT_TYPE.encode()),))

    def _own_metrics(self) -> str:
        gauge, family = metrics.gauge, metrics.family
        info = {"version": self.release.version, "revision": self.release.revision, "colour": self.instance.colour}
        ready = not self.traffic.draining and not self.readiness.reasons()
        up = [({"dependency": name}, item.up) for name, item in self.readiness.dependencies.items()]
        return "".join(
            (
                self._requests.render(),
                gauge("pst_http_requests_in_flight", "Requests being served", self.traffic.in_flight),
                gauge("pst_draining", "1 while the instance drains", self.traffic.draining),
                gauge("pst_quiet_seconds", "Time without requests since the drain began", self.traffic.quiet_for),
                gauge("pst_ready", "1 when the slot may take traffic", ready),
                family("pst_dependency_up", "gauge", "1 when the last check passed", up),
                family("pst_build_info", "gauge", "Always 1", [(info, 1)]),
            )
        )

    async def _trading_metrics(self) -> str:
        """Read when they are asked for. Where the database does not answer they are absent, and the rest is told."""
        try:
            async with asyncio.timeout(METRICS_TIMEOUT_S):
                leases = await self.state.leases()
                processes = (await self.state.processes())["processes"]
                orders = await self.state.active_orders()
        except DATABASE_ERRORS as error:
            log.warning("no trading metrics", extra={"error": f"{type(error).__name__}: {error}"[:300]})
            return metrics.gauge("pst_state_up", "1 when the state of trading could be read", 0)
        held = [({"placement": lease["placement"]}, self._holds(lease)) for lease in leases]
        epochs = [({"placement": lease["placement"]}, lease.get("epoch", 0)) for lease in leases]
        running = [({"process": item["process"]}, item["running"]) for item in processes]
        active = [({"stack": stack}, count) for stack, count in orders.items()]
        elsewhere = any(
            lease["placement"] == PLACEMENT and lease["held"] and not self._holds(lease) for lease in leases
        )
        family = metrics.family
        return "".join(
            (
                metrics.gauge("pst_state_up", "1 when the state of trading could be read", 1),
                family("pst_lease_holder", "gauge", "1 when this slot holds the lease of the placement", held),
                family("pst_lease_epoch", "gauge", "How often the lease of the placement was granted", epochs),
                family("pst_process_running", "gauge", "1 when process control says that it runs", running),
                family("pst_orders_active", "gauge", "Active orders on a stack", active),
                self.account.tell(mine=not elsewhere),
            )
        )

    def _holds(self, lease: dict[str, Any]) -> bool:
        holder = lease.get("holder") or {}
        mine = (self.instance.host, self.instance.colour)
        return bool(lease["held"]) and (holder.get("host"), holder.get("colour")) == mine

    # What needs the token ---------------------------------------------------------------------------------------------

    async def status(self) -> Answer:
        reasons = self.readiness.reasons()
        leases = await self.state.leases()
        processes = (await self.state.processes())["processes"]
        return answer(
            self._version()
            | {
                "ready": not reasons and not self.traffic.draining,
                "draining": self.traffic.draining,
                "reasons": reasons,
                "leases": {
                    lease["placement"]: {"held": lease["held"], "epoch": lease.get("epoch"), "mine": self._holds(lease)}
                    for lease in leases
                },
                "running": [item["process"] for item in processes if item["running"]],
                "active_orders": await self.state.active_orders(),
            }
        )

    async def processes(self) -> Answer:
        return answer(await self.state.processes())

    async def orders(self) -> Answer:
        return answer(await self.state.orders())

    async def positions(self) -> Answer:
        return answer(await self.state.positions())

    async def lease(self) -> Answer:
        return answer({"leases": await self.state.leases(), "here": self.state.local_grants()})

    # The probe of a planned operation (roles/evidence) --------------------------------------------------------------

    async def add_post(self, receive: Receive) -> Answer:
        """201 when the majority of MongoDB has it, not before. A drain does not refuse it: what was sent is served."""
        body = await read_body(receive, POST_LIMIT)
        if body is None:
            return refused(413, f"the body is too large, wanted: {POST_LIMIT} bytes", (b"connection", b"close"))
        try:
            content = json.loads(body)
        except ValueError:
            return refused(400, "the body is not JSON")
        if not isinstance(content, dict) or content.keys() != {"key"}:
            return refused(400, 'wanted: {"key": "<run>-<number>"}')
        key = content["key"]
        if not isinstance(key, str) or not KEY.fullmatch(key):
            return refused(400, f"key is {key!r}, wanted: {KEY.pattern}")
        await self.ledger.add(key)
        return answer({"key": key}, 201)

    async def posts(self, run: str) -> Answer:
        if not RUN.fullmatch(run):
            return refused(400, f"the run is {run[:100]!r}, wanted: {RUN.pattern}")
        return answer(await self.ledger.count(run))


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """Return a request's body; None where it is larger than `limit` bytes."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        more = message.get("more_body", False)
    return body


async def deliver(made: Answer, send: Send) -> None:
    headers = [*made.headers, (b"content-length", str(len(made.body)).encode())]
    await send({"type": "http.response.start", "status": made.status, "headers": headers})
    await send({"type": "http.response.body", "body": made.body})
