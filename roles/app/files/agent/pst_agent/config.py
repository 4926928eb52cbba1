"""The effective configuration: read once, strictly, before anything is opened.

Standard library only: a validation library costs the agent 8 MiB of the 32 that it may take.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


class ConfigError(Exception):
    """The configuration cannot be used; the message says all that is wrong with it."""


class Range(NamedTuple):
    least: float
    most: float


Name = Annotated[str, ".+"]
AbsolutePath = Annotated[str, "/.*"]
HostPort = Annotated[str, "[A-Za-z0-9.-]+:[0-9]{1,5}"]
Port = Annotated[int, Range(1, 65535)]
Seconds = Annotated[float, Range(0.01, 3600)]


@dataclass(frozen=True)
class Instance:
    site: Name
    host: Name
    colour: Annotated[str, "blue|green"]


@dataclass(frozen=True)
class Listen:
    address: Name
    port: Port


@dataclass(frozen=True)
class Tls:
    ca: AbsolutePath
    certificate: AbsolutePath
    key: AbsolutePath


@dataclass(frozen=True)
class Release:
    """The release in the slot, by its own path: the slot's link may move while the agent runs."""

    path: AbsolutePath


@dataclass(frozen=True)
class Mongodb:
    hosts: list[HostPort]
    replica_set: Name
    database: Name
    username: Name


@dataclass(frozen=True)
class Redis:
    sentinels: list[HostPort]
    master: Name
    username: Name


@dataclass(frozen=True)
class Gateway:
    """The link to the gateway on this host. `needed`: without it the slot takes no traffic."""

    address: HostPort
    needed: bool


@dataclass(frozen=True)
class Dashboard:
    enabled: bool
    port: Port
    timeout_s: Annotated[float, Range(0.1, 3600)]
    body_limit_kb: Annotated[int, Range(1, 1024 * 1024)]


@dataclass(frozen=True)
class Trading:
    """What this host's guard is told (`settings`), what it says (`state`), and the folder of the slot's settings."""

    settings: AbsolutePath
    state: AbsolutePath
    private: AbsolutePath


@dataclass(frozen=True)
class Readiness:
    interval_s: Annotated[float, Range(0.1, 600)]
    timeout_s: Annotated[float, Range(0.1, 600)]
    grace_s: Annotated[float, Range(0, 600)]


@dataclass(frozen=True)
class Drain:
    flag: AbsolutePath
    quiet_s: Seconds
    limit_s: Seconds


@dataclass(frozen=True)
class Tracing:
    """`share`: of the requests whose sender does not say whether they are traced."""

    share: Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Config:
    instance: Instance
    listen: Listen
    tls: Tls
    release: Release
    mongodb: Mongodb
    redis: Redis
    gateway: Gateway
    dashboard: Dashboard
    trading: Trading
    readiness: Readiness
    drain: Drain
    tracing: Tracing


@dataclass(frozen=True, repr=False)
class Secrets:
    """Secrets come as systemd credentials: never in the configuration, the environment or an argument."""

    agent_token: str
    mongodb_password: str
    redis_password: str


def load(path: Path) -> tuple[Config, str]:
    """Return the configuration and the sha256 of the file it came from."""
    try:
        raw = path.read_bytes()
        document = json.loads(raw)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    problems = sorted(wrong(Config, document, ""))
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    made: Config = build(Config, document)
    return made, hashlib.sha256(raw).hexdigest()


def wrong(kind: Any, value: Any, key: str) -> Iterator[str]:
    """Yield what is wrong with a value: its key, what was seen, what is wanted."""
    rule: Any = None
    if get_origin(kind) is Annotated:
        kind, rule = get_args(kind)
    if is_dataclass(kind):
        yield from wrong_section(kind, value, key)
    elif get_origin(kind) is list:
        if not isinstance(value, list) or not value:
            yield f"{key} is {value!r}, wanted: a list that is not empty"
        else:
            for index, item in enumerate(value):
                yield from wrong(get_args(kind)[0], item, f"{key}[{index}]")
    elif type(value) is not kind and not (kind is float and type(value) is int):
        yield f"{key} is {value!r}, wanted: {kind.__name__}"
    elif isinstance(rule, str) and not re.fullmatch(rule, value):
        yield f"{key} is {value!r}, wanted: {rule}"
    elif isinstance(rule, Range) and not rule.least <= value <= rule.most:
        yield f"{key} is {value}, wanted: {rule.least} to {rule.most}"


def wrong_section(kind: Any, value: Any, key: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{key or 'the document'} is {value!r}, wanted: an object"
        return
    hints = get_type_hints(kind, include_extras=True)
    prefix = f"{key}." if key else ""
    yield from (f"{prefix}{name} is not known, wanted: {', '.join(hints)}" for name in value.keys() - hints.keys())
    yield from (f"{prefix}{name} is missing" for name in hints.keys() - value.keys())
    for name in hints.keys() & value.keys():
        yield from wrong(hints[name], value[name], f"{prefix}{name}")


def build(kind: Any, value: Any) -> Any:
    """Make the dataclasses of a document in which nothing is wrong."""
    if not is_dataclass(kind):
        return value
    hints = get_type_hints(kind)
    return kind(**{name: build(hints[name], item) for name, item in value.items()})  # type: ignore[operator]


def effective(config: Config) -> str:
    """Render what the program will use, for people and for the deployment's assertion."""
    return json.dumps(asdict(config), indent=2)


def load_secrets(directory: str | None = None) -> Secrets:
    folder = directory or os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigError("CREDENTIALS_DIRECTORY is not set: start the program from its unit (LoadCredential=)")
    try:
        found = {item.name: Path(folder, item.name).read_text().strip() for item in fields(Secrets)}
    except OSError as error:
        raise ConfigError(f"credential: {error}") from error
    if empty := [name for name, value in found.items() if not value]:
        raise ConfigError(f"credential {', '.join(empty)}: empty, wanted: a secret")
    return Secrets(**found)


def settings_hash(path: Path, config: Config, token: str) -> str:
    """Return a hash of the settings that have to be the same on all hosts of a slot; one with two gets no traffic.

    Keyed, because anybody may ask for it and the settings of pysystemtrade hold a password.
    """
    document = json.loads(path.read_bytes())
    del document["instance"]["host"]
    digest = hmac.new(token.encode(), json.dumps(document, sort_keys=True).encode(), hashlib.sha256)
    for file in sorted(Path(config.trading.private).glob("*.yaml")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:32]
