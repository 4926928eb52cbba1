"""The filter of module_utils/packages.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils.packages import missing_packages


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"missing_packages": missing_packages}
