"""Run a gateway as a service, with the broker inside it or elsewhere (--broker)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .broker import LINE_LIMIT, Action, Broker, Filling, add_broker_arguments, address
from .server import Connect, Gateway, Identity, Mode, dial


def read_settings(settings: Path) -> dict[str, str]:
    """Read IBC's config.ini."""
    return dict(line.partition("=")[::2] for line in settings.read_text().splitlines() if not line.startswith("#"))


def initial_mode(settings: dict[str, str]) -> Mode:
    """Without a user and a password the real gateway stays at its login dialog."""
    if not (settings.get("IbLoginId") and settings.get("IbPassword")):
        return Mode.NOT_LOGGED_IN
    return Mode.READ_ONLY if settings.get("ReadOnlyApi") == "yes" else Mode.NORMAL


def inside(broker: Broker) -> Connect:
    """Return a way to a broker in this process: the two ends of a pair of sockets."""
    tasks: set[asyncio.Task[None]] = set()

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, brokers = socket.socketpair()
        tasks.add(asyncio.create_task(broker.serve(*await asyncio.open_connection(sock=brokers, limit=LINE_LIMIT))))
        return await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)

    return connect


async def run(options: argparse.Namespace) -> str:
    """Serve until told to stop; return why another gateway's login ended it, if one did."""
    settings = read_settings(options.settings)
    broker = None
    if options.broker is None:
        broker = Broker(options.account, options.order_log, Filling(options.fill_delay, options.fill_parts))
        broker.start()
    action = Action(settings.get("ExistingSessionDetectedAction") or Action.MANUAL)
    gateway = Gateway(
        inside(broker) if broker else partial(dial, *options.broker),
        Identity(settings.get("IbLoginId", ""), options.name, action),
        initial_mode(settings),
        Path(settings["EventLogFile"]) if settings.get("EventLogFile") else None,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, gateway.stopped.set)
    login = asyncio.create_task(gateway.stay_connected())
    command = await asyncio.start_server(gateway.command, "127.0.0.1", options.command_port)
    await gateway.listen("127.0.0.1", options.port)
    logging.info("API on port %d, commands on %d, %s", options.port, options.command_port, gateway.mode.value)
    await gateway.stopped.wait()
    command.close()
    gateway.close()
    login.cancel()
    if broker:
        broker.close()
    return gateway.refused


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="gateway_simulator", description=__doc__)
    add_broker_arguments(parser)
    parser.add_argument("--broker", type=address, metavar="HOST:PORT", help="a broker that gateways share")
    parser.add_argument("--name", default=socket.gethostname(), help="this gateway in the order log")
    parser.add_argument("--port", type=int, default=4101, help="API port on loopback")
    parser.add_argument("--command-port", type=int, default=7462, help="command port on loopback")
    parser.add_argument("--settings", type=Path, required=True, help="IBC's config.ini, with the login")
    options = parser.parse_args(arguments)
    if (options.order_log is None) == (options.broker is None):
        parser.error("wanted either --order-log (the broker is inside) or --broker")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if refused := asyncio.run(run(options)):
        sys.exit(f"existing session: {refused}")


if __name__ == "__main__":
    main()
