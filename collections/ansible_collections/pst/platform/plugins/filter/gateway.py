# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter of the role ib_gateway; the logic is in module_utils/gateway.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils import gateway


def problems(settings: Mapping[str, Any], production: bool, time_zone: str) -> list[str]:
    return [str(finding) for finding in gateway.findings(settings, production=production, time_zone=time_zone)]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"gateway_problems": problems}
