# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of playbooks/kill-switch.yml; the logic is in module_utils/kill_switch.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils import kill_switch


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"kill_switch_rows": kill_switch.rows, "kill_switch_proof": kill_switch.proof}
