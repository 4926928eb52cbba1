"""The settings of a host: what it backs up, and what it keeps for others. Secrets are in files of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pst_backup.mongo import Account
from pst_backup.restic import Repository

PATH = Path("/etc/pst/backup/backup.json")
SECRETS = Path("/etc/pst/backup/secrets")
CA = "/etc/pst/pki/ca.crt"
CERTIFICATE = Path("/etc/pst/pki/node/node.pem")
STATE = Path("/var/lib/pst-backup")
CACHE = Path("/var/cache/pst-backup")
METRICS = Path("/var/lib/prometheus/node-exporter")


class SettingsError(Exception):
    """What is wrong with the settings."""


def secret_file(name: str) -> Path:
    """Where a secret is: what systemd gave to this process, or the file itself (for root)."""
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    # systemd puts the name of the folder before those of its files.
    places = [Path(given, f"pst_{name}"), Path(given, name)] if given else []
    return next((path for path in places if path.exists()), SECRETS / name)


def secret(name: str) -> str:
    path = secret_file(name)
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error


@dataclass(frozen=True)
class Settings:
    """`sets` by name: what this host backs up. `server`: what it keeps, where it is the repositories' host."""

    site: str
    host: str
    sets: Mapping[str, Mapping[str, Any]]
    server: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path = PATH) -> Settings:
        try:
            told = json.loads(path.read_text())
            return cls(told["site"], told["host"], told["sets"], told["server"])
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(f"{path}: {error!r}") from error

    def set(self, name: str) -> Mapping[str, Any]:
        if name not in self.sets:
            raise SettingsError(f"{name}: seen no such set; wanted one of {', '.join(sorted(self.sets)) or 'none'}")
        return self.sets[name]

    def repository(self, name: str) -> Repository:
        """The repository of a set, at the server."""
        found = self.set(name)
        certificate = secret_file("node.pem")
        return Repository(
            name=found["repository"], place=found["url"], key_file=secret_file(f"{found['repository']}.key"),
            cache=CACHE, user=found["repository"], password=secret(f"{found['repository']}.password"), ca=CA,
            certificate=str(certificate if certificate.exists() else CERTIFICATE),
        )  # fmt: skip

    def kept(self, name: str) -> Repository:
        """A repository that this host keeps, in its folder."""
        if name not in self.server.get("repositories", ()):
            raise SettingsError(f"{name}: this host keeps no such repository")
        return Repository(name, f"{self.server['folder']}/{name}", secret_file(f"{name}.key"), cache=CACHE)

    def account(self, name: str, user: str = "", password: str = "") -> Account:
        """MongoDB, as the backup's user or as another one."""
        found = self.set(name)["mongodb"]
        return Account(
            hosts=tuple(found["hosts"]), replica_set=found["replica_set"], user=user or found["user"],
            password=password or secret(f"{name}.login"), ca=CA,
        )  # fmt: skip
