"""Strict reader of /etc/pst/parquet/parquet.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pst_trading.settings import AbsolutePath, Limits, MongoSettings, Name, Text, Words, read

PATH = Path("/etc/pst/parquet/parquet.json")

Address = Annotated[str, Text(r"\d{1,3}(\.\d{1,3}){3}", "an IPv4 address")]


@dataclass(frozen=True)
class FenceSettings:
    """How long a host may reach the others' bricks after it was seen to be clean."""

    lease_ttl_s: Annotated[float, Limits(5, 300)]
    renew_s: Annotated[float, Limits(0.5, 60)]
    low_port: Annotated[int, Limits(1024, 65535)]
    high_port: Annotated[int, Limits(1024, 65535)]


@dataclass(frozen=True)
class Settings:
    host: Words
    address: Address
    members: tuple[Address, ...]  # every host with a brick, this one too
    volume: Name
    brick: AbsolutePath
    store: AbsolutePath  # where the volume is mounted, for writers alone
    public: AbsolutePath  # where everybody finds it, read-only
    mongodb: MongoSettings
    fence: FenceSettings


def load(path: Path = PATH) -> Settings:
    """Read the file, or say all that is wrong with it."""
    return read(Settings, path)
