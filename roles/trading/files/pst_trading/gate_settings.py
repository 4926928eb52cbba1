"""The settings of a gateway host, /etc/pst/trading/gate.json; read as strictly as those of an app node."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from . import ibapi
from .settings import (
    BAD_CONFIGURATION,
    AbsolutePath,
    ClockTime,
    Day,
    HostPort,
    Limits,
    MongoAccount,
    Name,
    OptionalPath,
    SettingsError,
    Text,
    Words,
    in_window,
    read,
)

PATH = Path("/etc/pst/trading/gate.json")


@dataclass(frozen=True)
class MongoSettings(MongoAccount):
    """Where the lease is, and a user that may read it."""

    tls_ca: OptionalPath


@dataclass(frozen=True)
class TradingWindow:
    """When the gateway is left alone, by the host's local time."""

    start: ClockTime
    stop: ClockTime
    days: tuple[Day, ...]

    def covers(self, moment: datetime) -> bool:
        """Whether trading goes on then."""
        return in_window(self.days, self.start, self.stop, moment)


@dataclass(frozen=True)
class WatchSettings:
    """How the gateway itself is watched."""

    trading_window: TradingWindow
    api: HostPort
    client_id: Annotated[int, Limits(0, 2_000_000)]
    trading_mode: Annotated[str, Text("paper|live", "paper or live")]
    events: AbsolutePath
    state_file: AbsolutePath
    interval_s: Annotated[float, Limits(1, 600)]
    timeout_s: Annotated[float, Limits(0.5, 60)]
    start_timeout_s: Annotated[float, Limits(1, 3600)]
    restart_frozen_after_s: Annotated[float, Limits(0, 86400)]
    accounts: tuple[Words, ...] = ()


@dataclass(frozen=True)
class GateSettings:
    """What gate.json says."""

    app_nodes: dict[str, str]  # host -> address
    mongodb: MongoSettings
    watch: WatchSettings
    listen: HostPort
    upstream: HostPort
    placement: Name
    readers: tuple[Words, ...]  # may connect, never order
    poll_s: Annotated[float, Limits(0.1, 10)]
    max_version: Annotated[int, Limits(ibapi.OLDEST, ibapi.NEWEST)]
    order_log: AbsolutePath


def load(path: Path = PATH) -> GateSettings:
    """Read the file, or say all that is wrong with it."""
    settings = read(GateSettings, path)
    addresses = list(settings.app_nodes.values())
    twice = sorted({address for address in addresses if addresses.count(address) > 1})
    problems = [f"{path}: app_nodes: {address} is there more than once, wanted one host for it" for address in twice]
    problems += [
        f"{path}: readers: {address} is in app_nodes as well, wanted an address of another host"
        for address in sorted(set(addresses) & set(settings.readers))
    ]
    if problems:
        raise SettingsError(problems)
    return settings


def main(arguments: list[str]) -> int:
    """Check a file; returns the exit status."""
    try:
        load(Path(arguments[0]) if arguments else PATH)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_CONFIGURATION
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
