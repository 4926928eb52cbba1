# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of the role console; the logic is in module_utils/console.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils import console


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "console_hosts": console.hosts,
            "console_settings": console.settings,
            "console_run": console.run,
        }
