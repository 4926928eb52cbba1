# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of the DR playbooks; the logic is in module_utils/dr.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.pst.platform.plugins.module_utils import dr


def dr_readiness(
    seen: Mapping[str, Mapping[str, Any]], limits: Mapping[str, float], to: str = ""
) -> list[dict[str, Any]]:
    """The lines of dr-status.yml."""
    return dr.readiness(seen, dr.Limits(**{f"{key}_s": float(value) for key, value in limits.items()}), to)


def dr_sites(seen: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Which site leads and which stands by."""
    try:
        found = dr.sites_of([dr.Host.of(name, host) for name, host in seen.items()])
    except dr.DrError as error:
        raise AnsibleFilterError(str(error)) from None
    return {"leading": found.leading, "standby": found.standby}


def dr_rehearsal(steps: Sequence[Mapping[str, Any]], reports: str) -> dict[str, Any]:
    """The report of dr-drill.yml; `reports` has those of the promotions."""
    return dr.rehearsal(steps, [json.loads(path.read_text()) for path in Path(reports).glob("dr-promote-*.json")])


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "dr_answers": dr.answers,
            "dr_leases": dr.leases_at,
            "dr_loss": dr.loss,
            "dr_readiness": dr_readiness,
            "dr_rehearsal": dr_rehearsal,
            "dr_sites": dr_sites,
        }
