"""The effective configuration: read once, strictly, before anything is opened."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1)]
AbsolutePath = Annotated[str, Meta(pattern="^/")]
HostPort = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.-]+:[0-9]{1,5}$")]
Seconds = Annotated[float, Meta(gt=0, le=600)]


class Instance(Struct, frozen=True, forbid_unknown_fields=True):
    site: Name
    host: Name
    colour: Literal["blue", "green"]


class Listen(Struct, frozen=True, forbid_unknown_fields=True):
    address: Name
    port: Annotated[int, Meta(ge=1, le=65535)]


class Tls(Struct, frozen=True, forbid_unknown_fields=True):
    ca: AbsolutePath
    certificate: AbsolutePath
    key: AbsolutePath


class Mongodb(Struct, frozen=True, forbid_unknown_fields=True):
    hosts: Annotated[list[HostPort], Meta(min_length=1)]
    replica_set: Name
    database: Name
    username: Name


class Redis(Struct, frozen=True, forbid_unknown_fields=True):
    sentinels: Annotated[list[HostPort], Meta(min_length=1)]
    master: Name
    username: Name


class Readiness(Struct, frozen=True, forbid_unknown_fields=True):
    interval_s: Seconds
    timeout_s: Seconds
    grace_s: Annotated[float, Meta(ge=0, le=600)]


class Drain(Struct, frozen=True, forbid_unknown_fields=True):
    flag: AbsolutePath
    quiet_s: Seconds
    limit_s: Seconds


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    instance: Instance
    listen: Listen
    tls: Tls
    mongodb: Mongodb
    redis: Redis
    readiness: Readiness
    drain: Drain


class Secrets(Struct, frozen=True):
    """Passwords come as systemd credentials: never in the configuration, the environment or an argument."""

    mongodb_password: str
    redis_password: str

    def __repr__(self) -> str:
        return "Secrets(…)"


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and why."""


def load(path: Path) -> tuple[Config, str]:
    """Return the configuration and the sha256 of the file it came from."""
    try:
        raw = path.read_bytes()
        return msgspec.json.decode(raw, type=Config), hashlib.sha256(raw).hexdigest()
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path}: {error}") from error


def effective(config: Config) -> str:
    """Render what the program will use, for people and for the deployment's assertion."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2).decode()


def load_secrets(directory: str | None = None) -> Secrets:
    folder = directory or os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigError("CREDENTIALS_DIRECTORY is not set: start the program from its unit (LoadCredential=)")
    try:
        return Secrets(**{name: Path(folder, name).read_text().strip() for name in Secrets.__struct_fields__})
    except OSError as error:
        raise ConfigError(f"credential: {error}") from error
