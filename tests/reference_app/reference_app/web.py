"""The HTTP surface."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pymongo.errors import PyMongoError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reference_app.config import Instance
from reference_app.readiness import Readiness
from reference_app.store import Note
from reference_app.traffic import Traffic

log = logging.getLogger(__name__)
PROBES = frozenset({"/health", "/ready", "/metrics", "/version"})
MAX_BODY = 64 * 1024
MAX_KEY, MAX_TEXT = 200, 10_000


class Store(Protocol):
    async def put(self, note: Note) -> tuple[Note, bool]: ...

    async def get(self, key: str) -> tuple[Note | None, bool]: ...


class Release(msgspec.Struct, frozen=True):
    """What the release's manifest says about itself (its other keys are of no interest here)."""

    version: str = "unreleased"
    revision: str = ""

    @classmethod
    def find(cls, manifest: Path) -> Release:
        return msgspec.json.decode(manifest.read_bytes(), type=cls) if manifest.exists() else cls()


class Metrics:
    def __init__(self, instance: Instance, release: Release, traffic: Traffic, readiness: Readiness) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pst_http_requests", "Requests served, probes left out", ["method", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "pst_http_request_seconds", "Time to the end of the answer, probes left out", registry=self.registry
        )

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=self.registry)

        gauge("pst_http_requests_in_flight", "Requests being served").set_function(lambda: traffic.in_flight)
        gauge("pst_draining", "1 while the instance drains").set_function(lambda: traffic.draining)
        gauge("pst_quiet_seconds", "Time without requests since the drain began").set_function(
            lambda: traffic.quiet_for
        )
        gauge("pst_ready", "1 when the instance may take traffic").set_function(
            lambda: not traffic.draining and not readiness.reasons()
        )
        up = Gauge("pst_dependency_up", "1 when the last check passed", ["dependency"], registry=self.registry)
        for name, dependency in readiness.dependencies.items():
            up.labels(name).set_function(partial(getattr, dependency, "up"))
        info = Gauge("pst_build_info", "Always 1", ["version", "revision", "colour"], registry=self.registry)
        info.labels(release.version, release.revision, instance.colour).set(1)


class CountTraffic:
    """ASGI middleware: counts, times and logs what is not a probe, and names the instance in every answer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._metrics = app, service, service.metrics
        self._header = (b"x-pst-instance", f"{service.instance.host}/{service.instance.colour}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        code = 500

        async def send_named(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message["headers"], self._header]
            await send(message)

        if scope["path"] in PROBES:
            await self._app(scope, receive, send_named)
            return
        started = time.perf_counter()
        with self._service.traffic.request():
            try:
                await self._app(scope, receive, send_named)
            finally:
                seconds = time.perf_counter() - started
                self._metrics.requests.labels(scope["method"], code).inc()
                self._metrics.seconds.observe(seconds)
                request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
                log.info(
                    "request",
                    extra={
                        "method": scope["method"],
                        "path": scope["path"],
                        "code": code,
                        "seconds": round(seconds, 4),
                        "request_id": request_id,
                    },
                )


@dataclass
class Service:
    instance: Instance
    release: Release
    config_sha256: str
    traffic: Traffic
    readiness: Readiness
    store: Store

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.instance, self.release, self.traffic, self.readiness)

    def app(self) -> ASGIApp:
        routes = [
            Route("/", self.version),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/version", self.version),
            Route("/metrics", self.prometheus),
            Route("/api/v1/echo", self.echo),
            Route("/api/v1/notes", self.put_note, methods=["POST"]),
            Route("/api/v1/notes/{key}", self.get_note),
        ]
        return CountTraffic(Starlette(routes=routes, exception_handlers={PyMongoError: database_failed}), self)

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """200: send. 404: drain, send nothing new (HAProxy: disable-on-404) but keep what runs. 503: unusable."""
        failed = self.readiness.reasons()
        reasons = [*(["draining"] if self.traffic.draining else []), *failed]
        dependencies = {name: dependency.up for name, dependency in self.readiness.dependencies.items()}
        return JSONResponse(
            {"ready": not reasons, "reasons": reasons, "dependencies": dependencies},
            status_code=503 if failed else 404 if reasons else 200,
        )

    async def version(self, _: Request) -> Response:
        return JSONResponse(
            {
                "release": self.release.version,
                "revision": self.release.revision,
                "config_sha256": self.config_sha256,
                "site": self.instance.site,
                "host": self.instance.host,
                "colour": self.instance.colour,
            }
        )

    async def prometheus(self, _: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def echo(self, request: Request) -> Response:
        return JSONResponse(
            {
                "message": request.query_params.get("message", ""),
                "host": self.instance.host,
                "colour": self.instance.colour,
                "release": self.release.version,
            }
        )

    async def put_note(self, request: Request) -> Response:
        body = await read_body(request)
        if body is None:
            return refused(413, f"the body is larger than {MAX_BODY} bytes")
        try:
            note = msgspec.json.decode(body, type=Note)
        except msgspec.MsgspecError as error:
            return refused(422, str(error))
        if not 0 < len(note.key) <= MAX_KEY or len(note.text) > MAX_TEXT:
            return refused(422, f"key: 1 to {MAX_KEY} characters, text: at most {MAX_TEXT}")
        kept, created = await self.store.put(note)
        if kept != note:
            return refused(409, f"key {note.key!r} holds another text")
        return JSONResponse(msgspec.to_builtins(kept), status_code=201 if created else 200)

    async def get_note(self, request: Request) -> Response:
        key = request.path_params["key"]
        note, cached = await self.store.get(key)
        if note is None:
            return refused(404, f"no note {key!r}")
        return JSONResponse(msgspec.to_builtins(note), headers={"X-Cache": "hit" if cached else "miss"})


async def read_body(request: Request) -> bytes | None:
    """The body, or None as soon as it is larger than allowed."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return body


def refused(code: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status_code=code)


def database_failed(_: Request, error: Exception) -> Response:
    log.error("database failed", extra={"error": f"{type(error).__name__}: {error}"[:300]})
    return JSONResponse({"error": "the database does not answer; try again"}, 503, headers={"Retry-After": "1"})
