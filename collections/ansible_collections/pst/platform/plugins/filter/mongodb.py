"""Filters for the mongodb role; the logic is in module_utils/mongodb.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils.mongodb import members_from_inventory


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"mongodb_members": members_from_inventory}
