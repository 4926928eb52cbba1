"""The settings of a host, read strictly: whatever is wrong with the file is told at once.

The dataclasses are the schema. Annotated narrows what a type allows.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

PATH = Path("/etc/pst/trading/trading.json")
BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h: systemd does not try again

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
NAME = r"[a-z][a-z0-9_-]{0,62}"

T = TypeVar("T")


class SettingsError(Exception):
    """Everything that is wrong with a file of settings."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Text:
    """A string that matches the pattern as a whole."""

    pattern: str
    wanted: str


@dataclass(frozen=True)
class Limits:
    """A number between two limits, both allowed."""

    low: float
    high: float

    @property
    def wanted(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


Name = Annotated[str, Text(NAME, "a name of small letters, digits, _ and -")]
OptionalName = Annotated[str, Text(rf"|{NAME}", "a name, or nothing")]
Words = Annotated[str, Text(r"\S.*", "a text that is not empty")]
AbsolutePath = Annotated[str, Text(r"/\S+", "an absolute path")]
OptionalPath = Annotated[str, Text(r"|/\S+", "an absolute path, or nothing")]
HostPort = Annotated[str, Text(r"[A-Za-z0-9._-]+:[1-9]\d{0,4}", "host:port")]
ClockTime = Annotated[str, Text(r"([01]\d|2[0-3]):[0-5]\d", "HH:MM")]
Day = Annotated[str, Text("|".join(DAYS), f"one of {', '.join(DAYS)}")]


@dataclass(frozen=True)
class MongoAccount:
    """Where the leases are, and who asks for them."""

    hosts: tuple[HostPort, ...]
    replica_set: Words
    username: Words
    password_file: AbsolutePath
    database: Name

    def password(self) -> str:
        """Read the password; it is never part of the settings, so that it is in no log of them."""
        try:
            return Path(self.password_file).read_text().strip()
        except (OSError, ValueError) as error:
            raise SettingsError([f"mongodb.password_file: {error}"]) from error


@dataclass(frozen=True)
class MongoSettings(MongoAccount):
    trading_database: Annotated[str, Text(r"[A-Za-z0-9_-]{1,63}", "a database's name")]
    tls_ca: AbsolutePath


def in_window(days: Sequence[str], start: str, stop: str, moment: datetime) -> bool:
    """Whether a local time is on one of the days and from `start` to before `stop` ('HH:MM')."""
    return DAYS[moment.weekday()] in days and start <= moment.strftime("%H:%M") < stop


@dataclass(frozen=True)
class LeaseSettings:
    ttl_s: Annotated[float, Limits(5, 300)]
    renew_s: Annotated[float, Limits(0.5, 60)]
    margin_s: Annotated[float, Limits(1, 60)]
    drain_after_s: Annotated[float, Limits(1, 200)]
    rank_delay_s: Annotated[float, Limits(0, 30)]


@dataclass(frozen=True)
class Placement:
    hosts: tuple[Words, ...]


@dataclass(frozen=True)
class Process:
    name: Name
    process_control_name: Name
    placement: Name
    kind: Annotated[str, Text("service|daily", "service or daily")]
    start: ClockTime
    stop: ClockTime
    days: tuple[Day, ...]
    previous: OptionalName = ""
    rerun: bool = True

    @property
    def unit(self) -> str:
        return f"pst-run@{self.name}.service"


@dataclass(frozen=True)
class GatewaySettings:
    host: Words
    port: Annotated[int, Limits(1, 65535)]
    client_id_offset: Annotated[int, Limits(1, 1_000_000)]
    client_id_count: Annotated[int, Limits(1, 100_000)]
    recover_client_id: Annotated[int, Limits(0, 2_000_000)]
    account: Annotated[str, Text(r"[A-Z]{1,3}\d+", "an account of Interactive Brokers, such as DU1234567")]
    # The other site's, whose orders a takeover takes back too; none where there is one site.
    peer_client_id_offset: Annotated[int, Limits(0, 1_000_000)] = 0
    peer_client_id_count: Annotated[int, Limits(0, 100_000)] = 0

    @property
    def client_ids(self) -> range:
        """The ids that the processes of this site take."""
        return range(self.client_id_offset, self.client_id_offset + self.client_id_count)

    @property
    def peer_client_ids(self) -> range:
        """The ids that the processes of the other site take."""
        return range(self.peer_client_id_offset, self.peer_client_id_offset + self.peer_client_id_count)


@dataclass(frozen=True)
class DrainSettings:
    timeout_s: Annotated[float, Limits(1, 3600)]


@dataclass(frozen=True)
class LinkSettings:
    listen: HostPort
    gateways: tuple[HostPort, ...]


@dataclass(frozen=True)
class Settings:
    site: Name
    host: Words
    address: Words
    colour: Annotated[str, Text("blue|green", "blue or green")]
    user: Name
    mongodb: MongoSettings
    lease: LeaseSettings
    placements: dict[Name, Placement]
    processes: tuple[Process, ...]
    gateway: GatewaySettings
    drain: DrainSettings
    link: LinkSettings
    # The other site, where there are two, and whether this one stands by for it.
    peer: OptionalName = ""
    standby: bool = False

    def placements_here(self) -> dict[str, int]:
        """Return the placements that may run on this host, with its rank in each."""
        return {name: p.hosts.index(self.host) for name, p in self.placements.items() if self.host in p.hosts}

    def processes_of(self, placement: str) -> list[Process]:
        return [process for process in self.processes if process.placement == placement]

    def process(self, name: str) -> Process:
        """Return the process of that name; KeyError with what there is."""
        for process in self.processes:
            if process.name == name:
                return process
        known = ", ".join(process.name for process in self.processes)
        raise KeyError(f"process {name!r} is not known, wanted one of: {known}")


def load(path: Path = PATH) -> Settings:
    """Read the file, or say all that is wrong with it."""
    settings = read(Settings, path)
    if problems := list(contradictions(settings)):
        raise SettingsError([f"{path}: {problem}" for problem in problems])
    return settings


def read(schema: type[T], path: Path) -> T:
    """Read a JSON file into a dataclass."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError([f"{path}: {error}"]) from error
    problems: list[str] = []
    result = _convert(schema, document, "", problems)
    if problems:
        raise SettingsError([f"{path}: {problem}" for problem in problems])
    return typing.cast(T, result)


def contradictions(settings: Settings) -> typing.Iterator[str]:
    """Yield what is wrong although each value alone is right."""
    lease = settings.lease
    if lease.renew_s * 3 > lease.ttl_s - lease.margin_s:
        yield (
            f"lease.renew_s: seen {lease.renew_s:g}, wanted at most a third of ttl_s - margin_s, "
            f"which is {(lease.ttl_s - lease.margin_s) / 3:g}"
        )
    if lease.drain_after_s + lease.renew_s >= lease.ttl_s - lease.margin_s:
        yield (
            f"lease.drain_after_s: seen {lease.drain_after_s:g}, wanted less than ttl_s - margin_s - renew_s, "
            f"which is {lease.ttl_s - lease.margin_s - lease.renew_s:g}"
        )
    yield from _sites(settings)
    names = [process.name for process in settings.processes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"processes: {name} is there {names.count(name)} times, wanted once"
    for process in settings.processes:
        where = f"processes.{process.name}"
        if process.placement not in settings.placements:
            yield f"{where}.placement: seen {process.placement!r}, wanted one of {', '.join(settings.placements)}"
        if process.start >= process.stop:
            yield f"{where}.stop: seen {process.stop}, wanted a time after start, which is {process.start}"
        if process.previous and process.previous not in names:
            yield f"{where}.previous: seen {process.previous!r}, wanted one of {', '.join(names)}"
    yield from _cycles({process.name: process.previous for process in settings.processes})
    if settings.gateway.recover_client_id in settings.gateway.client_ids:
        ids = settings.gateway.client_ids
        yield (
            f"gateway.recover_client_id: seen {settings.gateway.recover_client_id}, "
            f"wanted one outside of {ids.start} to {ids.stop - 1}, which the processes take"
        )


def _sites(settings: Settings) -> typing.Iterator[str]:
    if settings.peer == settings.site:
        yield f"peer: seen {settings.peer!r}, which is this site, wanted the other one"
    if settings.standby and not settings.peer:
        yield "standby: seen true without peer, wanted the site that this one stands by for"


def _cycles(previous: Mapping[str, str]) -> typing.Iterator[str]:
    for name in previous:
        seen = [name]
        while (after := previous.get(seen[-1], "")) and after not in seen:
            seen.append(after)
        if after == name:
            yield f"processes.{name}.previous: waits for itself: {' -> '.join([*seen, name])}"


# --- from JSON to a dataclass -----------------------------------------------------------------------------------------


def _convert(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(kind):
        return _section(typing.cast("type[Any]", kind), value, where, problems)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _items(typing.get_args(kind)[0], value, where, problems)
    if origin is dict:
        return _entries(typing.get_args(kind), value, where, problems)
    if origin is Annotated:
        plain, rule = typing.get_args(kind)
        return _scalar(plain, rule, value, where, problems)
    return _scalar(kind, None, value, where, problems)


def _section(schema: type[Any], value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{where or 'the file'}: seen {_seen(value)}, wanted an object")
        return None
    hints = typing.get_type_hints(schema, include_extras=True)
    known = ", ".join(hints)
    before = len(problems)
    problems += [f"{_join(where, key)}: is not a setting, wanted one of {known}" for key in value if key not in hints]
    given = {}
    for item in dataclasses.fields(schema):
        if item.name in value:
            given[item.name] = _convert(hints[item.name], value[item.name], _join(where, item.name), problems)
        elif item.default is dataclasses.MISSING:
            problems.append(f"{_join(where, item.name)}: is missing")
    return schema(**given) if len(problems) == before else None


def _items(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, list) or not value:
        problems.append(f"{where}: seen {_seen(value)}, wanted a list that is not empty")
        return ()
    labels = [item["name"] if isinstance(item, dict) and "name" in item else n for n, item in enumerate(value)]
    return tuple(_convert(kind, item, _join(where, label), problems) for label, item in zip(labels, value, strict=True))


def _entries(kinds: tuple[Any, ...], value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict) or not value:
        problems.append(f"{where}: seen {_seen(value)}, wanted an object that is not empty")
        return {}
    return {
        _convert(kinds[0], key, where, problems): _convert(kinds[1], item, _join(where, key), problems)
        for key, item in value.items()
    }


def _scalar(kind: type[Any], rule: Text | Limits | None, value: Any, where: str, problems: list[str]) -> Any:
    allowed: Any = (int, float) if kind is float else kind
    right = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    if right and isinstance(rule, Text):
        right = re.fullmatch(rule.pattern, value) is not None
    if right and isinstance(rule, Limits):
        right = rule.low <= value <= rule.high
    if not right:
        problems.append(f"{where}: seen {_seen(value)}, wanted {rule.wanted if rule else kind.__name__}")
    return value


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _seen(value: object) -> str:
    """Show a value, but not a long one: a mistake may have put a secret or a whole file here."""
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
