"""The effective configuration: defaults, overridden by the private file where there is one."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PRIVATE_DIRECTORY_VARIABLE = "PYSYS_PRIVATE_CONFIG_DIR"
TREE = Path(__file__).resolve().parents[2]


def resolve_path(configured: str) -> Path:
    """Take dots and slashes alike for separators, as upstream does: /srv/x.d is /srv/x/d."""
    parts = [part for part in re.split(r"[./\\]", configured) if part]
    return Path("/" if configured[:1] in {"/", "\\"} else TREE).joinpath(*parts)


def read_private(name: str) -> dict[str, Any]:
    """Read a file of the private directory. Where there is none the defaults hold, and nothing fails: as upstream."""
    path = resolve_path(os.environ.get(PRIVATE_DIRECTORY_VARIABLE, "private")) / name
    if not path.is_file():
        print(f"Private configuration {path} is missing: using the defaults")
        return {}
    return yaml.safe_load(path.read_text()) or {}


class Config:
    """One attribute per key."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(f"the configuration has no {name!r}") from None

    def get_element(self, name: str) -> Any:
        """Return a value; AttributeError where it is not set."""
        return getattr(self, name)

    def get_element_or_default(self, name: str, default: Any) -> Any:
        """Return a value, or the default."""
        return self._values.get(name, default)

    def as_dict(self) -> dict[str, Any]:
        """Return all values."""
        return dict(self._values)


@cache
def get_production_config() -> Config:
    """Return what this process runs with."""
    defaults = yaml.safe_load((Path(__file__).parent / "defaults.yaml").read_text())
    return Config({**defaults, **read_private("private_config.yaml")})
