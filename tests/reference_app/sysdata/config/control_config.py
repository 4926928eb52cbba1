"""When processes run and how often their methods do: the shipped file, overridden key by key."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sysdata.config.production_config import TREE, read_private


def merge(shipped: dict[str, Any], private: dict[str, Any]) -> dict[str, Any]:
    """Override key by key, at every level: a private `default` does not reach a process that the shipped file names."""
    merged = dict(shipped)
    for key, value in private.items():
        known = shipped.get(key)
        merged[key] = merge(known, value) if isinstance(value, dict) and isinstance(known, dict) else value
    return merged


@cache
def get_control_config() -> dict[str, Any]:
    """Return what this process runs with."""
    shipped = yaml.safe_load(Path(TREE, "syscontrol", "control_config.yaml").read_text())
    return merge(shipped, read_private("private_control_config.yaml"))
