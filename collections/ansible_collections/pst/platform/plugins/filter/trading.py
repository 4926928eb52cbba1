# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of the role trading; the logic is in module_utils/trading.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils import trading


def problems(
    settings: Mapping[str, Any], production: bool, nodes: Sequence[str], reserved: Mapping[str, int]
) -> list[str]:
    found = trading.findings(settings, production=production, nodes=nodes, reserved_ids=reserved.items())
    return [str(finding) for finding in found]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "trading_table": trading.process_table,
            "trading_guard": trading.guard_tables,
            "trading_strategy_list": trading.strategy_list,
            "trading_methods": trading.strategy_methods,
            "trading_problems": problems,
            "trading_status_problems": trading.status_problems,
        }
