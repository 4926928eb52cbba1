"""The file of settings, read strictly: what is misspelt is an error, not a default."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

PATH = Path("/etc/pst/monitoring/exporter.json")


class SettingsError(Exception):
    """What is wrong with the file of settings."""


@dataclass(frozen=True)
class Tls:
    certificate: str
    key: str
    ca: str
    clients: tuple[str, ...]  # units of the organisation (OU) that may ask: names of the platform's certificates


@dataclass(frozen=True)
class MongoSettings:
    hosts: tuple[str, ...]
    replica_set: str
    username: str
    password_file: str
    ca: str
    platform_database: str
    trading_database: str

    def password(self) -> str:
        return Path(self.password_file).read_text().strip()


@dataclass(frozen=True)
class Process:
    """A process of pysystemtrade and the window in which it has to run, by the site's local time."""

    name: str  # in process control
    kind: str  # service: all the time; daily: started once
    start: str
    stop: str
    days: tuple[str, ...]


@dataclass(frozen=True)
class Endpoint:
    """A service whose certificate is looked at."""

    host: str
    service: str
    address: str
    port: int
    name: str


@dataclass(frozen=True)
class Settings:
    listen: str
    tls: Tls
    mongodb: MongoSettings
    processes: tuple[Process, ...]
    endpoints: tuple[Endpoint, ...]
    certificates_every_s: int
    state: str  # the file that outlives a restart


def of(kind: Any, value: Any, where: str) -> Any:
    """Make an object of a dictionary that has exactly its fields."""
    if not isinstance(value, dict):
        raise SettingsError(f"{where} is {value!r}, wanted: an object")
    wanted = {field.name for field in fields(kind)}
    if wrong := sorted(wanted ^ value.keys()):
        raise SettingsError(f"{where}: {', '.join(wrong)}: wanted exactly {', '.join(sorted(wanted))}")
    return kind(**{key: tuple(item) if isinstance(item, list) else item for key, item in value.items()})


def load(path: Path = PATH) -> Settings:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: wanted an object")
    one: tuple[tuple[str, Any], ...] = (("tls", Tls), ("mongodb", MongoSettings))
    many: tuple[tuple[str, Any], ...] = (("processes", Process), ("endpoints", Endpoint))
    for key, kind in one:
        content[key] = of(kind, content.get(key), f"{path}: {key}")
    for key, kind in many:
        items = content.get(key)
        if not isinstance(items, list):
            raise SettingsError(f"{path}: {key} is {items!r}, wanted: a list")
        content[key] = [of(kind, item, f"{path}: {key}[{n}]") for n, item in enumerate(items)]
    settings: Settings = of(Settings, content, str(path))
    host, _, port = settings.listen.rpartition(":")
    if not host or not port.isdigit():
        raise SettingsError(f"{path}: listen is {settings.listen!r}, wanted: <address>:<port>")
    return settings
