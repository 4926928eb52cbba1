"""The process: TLS, signals, systemd, and a stop that drops nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import Generator
from pathlib import Path

import uvicorn

from reference_app.config import Config, Secrets, Tls
from reference_app.readiness import Readiness
from reference_app.store import Notes, Probes, connect_mongodb, connect_redis, majority_database
from reference_app.traffic import Traffic
from reference_app.web import Release, Service

log = logging.getLogger(__name__)

# Longer than the balancers keep an idle connection, so that it is never this side that closes one in use.
KEEP_ALIVE_S = 75
IN_FLIGHT_S = 30


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Mutual TLS 1.3: a client without a certificate of the site is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def reload_certificate(context: ssl.SSLContext, tls: Tls) -> None:
    """Use the files' certificate for new connections; a pair that does not fit leaves the old one in use."""
    try:
        tls_context(tls)
    except (OSError, ssl.SSLError) as error:
        log.warning("certificate not reloaded", extra={"error": str(error)})
        return
    context.load_verify_locations(tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    log.info("certificate reloaded", extra={"certificate": tls.certificate})


def notify_systemd(state: str) -> None:
    """Send one sd_notify message; nothing listens when the program was started by hand."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


async def alive() -> None:
    """uvicorn's main loop calls it three times in systemd's watchdog time."""
    notify_systemd("WATCHDOG=1")


class Server(uvicorn.Server):
    """uvicorn that tells systemd when it listens, and leaves the signals to `run`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        notify_systemd("READY=1")


async def run(config: Config, config_sha256: str, secrets: Secrets) -> None:
    mongodb, redis = connect_mongodb(config, secrets), connect_redis(config, secrets)
    database = majority_database(mongodb, config.mongodb.database)
    probes = Probes(database, redis, f"{config.instance.host}/{config.instance.colour}")
    traffic = Traffic(Path(config.drain.flag), config.drain.quiet_s)
    readiness = Readiness(
        {"mongodb": probes.mongodb, "redis": probes.redis},
        interval_s=config.readiness.interval_s,
        timeout_s=config.readiness.timeout_s,
        grace_s=config.readiness.grace_s,
    )
    notes = Notes(database, redis, lambda: readiness.dependencies["redis"].up)
    release = Release.find(Path(__file__).parents[2] / "manifest.json")
    service = Service(config.instance, release, config_sha256, traffic, readiness, notes)
    context = tls_context(config.tls)
    server = Server(
        uvicorn.Config(
            service.app(),
            host=config.listen.address,
            port=config.listen.port,
            ssl_certfile=config.tls.certificate,
            ssl_context_factory=lambda *_: context,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=IN_FLIGHT_S,
            callback_notify=alive,
            timeout_notify=max(1, int(os.environ.get("WATCHDOG_USEC", "30000000")) // 3_000_000),
        )
    )

    async def stop() -> None:
        """Not ready at once; closed when the balancers have noticed and the last request is answered."""
        traffic.stop()
        notify_systemd("STOPPING=1")
        if not await traffic.quiet(config.drain.limit_s):
            log.warning("stopping under traffic", extra={"in_flight": traffic.in_flight})
        server.should_exit = True

    tasks: set[asyncio.Task[None]] = set()

    def on_stop() -> None:
        if tasks:
            server.should_exit = True  # asked twice: now
        tasks.add(asyncio.create_task(stop()))

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_stop)
    loop.add_signal_handler(signal.SIGINT, on_stop)
    loop.add_signal_handler(signal.SIGHUP, reload_certificate, context, config.tls)
    checks = asyncio.create_task(readiness.run())
    try:
        await server.serve()
    finally:
        checks.cancel()
        await mongodb.close()
        await redis.aclose()
