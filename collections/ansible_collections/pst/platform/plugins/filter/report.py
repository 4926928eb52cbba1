# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes the rows of a report from what a module returned on each host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils import host_check, host_status


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"status_rows": host_status.report, "problem_rows": host_check.report, "host_peers": host_check.peers_of}
