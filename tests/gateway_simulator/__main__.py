"""Run the simulator as a service."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from .server import Gateway, Mode
from .state import Book, OrderLog


def has_login(settings: Path) -> bool:
    """Tell whether IBC's config.ini names a user and a password, without which the real gateway stays at its dialog."""
    entries = dict(line.partition("=")[::2] for line in settings.read_text().splitlines() if not line.startswith("#"))
    return bool(entries.get("IbLoginId") and entries.get("IbPassword"))


async def run(options: argparse.Namespace) -> None:
    """Serve until told to stop."""
    with Book(options.account, OrderLog(options.order_log)) as book:
        gateway = Gateway(book, Mode.NORMAL if has_login(options.settings) else Mode.NOT_LOGGED_IN)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, gateway.stopped.set)
        api = await asyncio.start_server(gateway.serve, "127.0.0.1", options.port)
        command = await asyncio.start_server(gateway.command, "127.0.0.1", options.command_port)
        logging.info("API on port %d, commands on %d, %s", options.port, options.command_port, gateway.mode.value)
        await gateway.stopped.wait()
        api.close()
        command.close()
        gateway.drop_sessions()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="gateway_simulator", description=__doc__)
    parser.add_argument("--account", default="DU1000001", help="managed account; paper accounts start with D")
    parser.add_argument("--port", type=int, default=4101, help="API port on loopback")
    parser.add_argument("--command-port", type=int, default=7462, help="command port on loopback")
    parser.add_argument("--settings", type=Path, required=True, help="IBC's config.ini, with the login")
    parser.add_argument("--order-log", type=Path, required=True, help="JSON lines, appended to; replayed at start")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
