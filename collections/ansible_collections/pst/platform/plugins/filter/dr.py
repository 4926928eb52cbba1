# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of the DR playbooks; the logic is in module_utils/dr.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"dr_readiness": dr_readiness, "dr_sites": dr_sites, "dr_loss": dr.loss, "dr_leases": dr.leases_at}
