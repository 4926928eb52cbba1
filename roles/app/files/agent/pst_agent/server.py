"""The process: TLS, signals, systemd, and a stop that drops nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
from collections.abc import Generator
from functools import partial
from pathlib import Path

import uvicorn

from pst_agent.account import LIMIT_S, READER, Account
from pst_agent.config import Config, Secrets, Tls
from pst_agent.ledger import Ledger
from pst_agent.mongo import Login, Mongo
from pst_agent.proxy import Dashboard, Limits
from pst_agent.readiness import Probe, Readiness
from pst_agent.state import State, ask_python
from pst_agent.stores import GatewayProbe, MongoProbe, RedisProbe
from pst_agent.tracing import Tracer
from pst_agent.traffic import Traffic
from pst_agent.web import Agent, Release

log = logging.getLogger(__name__)

# Longer than the balancers keep an idle connection, so that it is never this side that closes one in use.
KEEP_ALIVE_S = 75
IN_FLIGHT_S = 30
TICK_S = 1.0


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Mutual TLS 1.3: a client without a certificate of the site is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    context.num_tickets = 1  # the balancers' checks come back with it; a second one is work for nothing
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

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        self.should_exit = True
        self._leaving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        notify_systemd("READY=1")

    async def main_loop(self) -> None:
        """Look round once a second, not ten times: most of what an idle agent costs is waking up."""
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), TICK_S)


def dashboard_probe(dashboard: Dashboard, release: Release) -> Probe:
    """The dashboard answers, and runs the release that the agent speaks for: a slot is never half of each."""

    async def probe() -> None:
        runs = json.loads(await dashboard.health())["release"]
        if runs != release.version:
            raise RuntimeError(f"runs release {runs}, wanted: {release.version}")

    return probe


async def run(config: Config, config_sha256: str, settings_hash: str, secrets: Secrets) -> None:
    instance = f"{config.instance.host}/{config.instance.colour}"
    stores_tls = ssl.create_default_context(cafile=config.tls.ca)
    login = Login(config.mongodb.username, secrets.mongodb_password)
    mongo, ledger_mongo = (
        Mongo(config.mongodb.hosts, config.mongodb.replica_set, login, stores_tls, f"pst-{name}/{instance}")
        for name in ("agent", "probe")
    )
    redis = RedisProbe(config, secrets, stores_tls)
    release = Release.find(Path(config.release.path, "manifest.json"))
    dashboard = None
    probes: dict[str, Probe] = {
        "mongodb": MongoProbe(mongo, config.mongodb.database, instance),
        "redis": redis,
    }
    if config.gateway.needed:
        probes["gateway"] = GatewayProbe(config.gateway.address)
    if config.dashboard.enabled:
        limits = Limits(config.dashboard.body_limit_kb * 1024, config.dashboard.timeout_s)
        dashboard = Dashboard(config.dashboard.port, limits)
        probes["dashboard"] = dashboard_probe(dashboard, release)
    python = Path(config.release.path, "venv/bin/python")
    source = Path(config.release.path, "source")
    read_account = partial(ask_python, "account", LIMIT_S, python, READER, Path(config.trading.private), source)
    traffic = Traffic(Path(config.drain.flag), config.drain.quiet_s)
    readiness = Readiness(
        probes,
        interval_s=config.readiness.interval_s,
        timeout_s=config.readiness.timeout_s,
        grace_s=config.readiness.grace_s,
    )
    agent = Agent(
        instance=config.instance,
        release=release,
        agent=Release.find(Path(__file__).parents[2] / "manifest.json"),
        config_sha256=config_sha256,
        settings_hash=settings_hash,
        token=secrets.agent_token,
        traffic=traffic,
        tracer=Tracer(config.tracing.share),
        readiness=readiness,
        state=State(mongo, config.mongodb.database, config.trading, python),
        ledger=Ledger(ledger_mongo, config.mongodb.database, config.instance),
        account=Account(Path(config.trading.settings), read_account),
        dashboard=dashboard,
    )
    context = tls_context(config.tls)
    server = Server(
        uvicorn.Config(
            agent,
            host=config.listen.address,
            port=config.listen.port,
            ssl_certfile=config.tls.certificate,
            ssl_context_factory=lambda *_: context,
            loop="asyncio",
            http="h11",
            ws="none",
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
        quiet = await traffic.quiet(config.drain.limit_s)
        if not quiet:
            log.warning("stopping under traffic", extra={"in_flight": traffic.in_flight})
        if quiet:  # what is left are idle connections, not worth a longer wait for their farewell
            server.config.timeout_graceful_shutdown = 1
        server.leave()

    tasks: set[asyncio.Task[None]] = set()

    def on_stop() -> None:
        if tasks:
            server.leave()  # asked twice: now
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
        mongo.close()
        ledger_mongo.close()
        redis.close()
