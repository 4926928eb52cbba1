# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter of the canary's judge; the logic is in module_utils/canary.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.pst.platform.plugins.module_utils import canary


def canary_verdict(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    backend: str,
    stable: str,
    limits: Mapping[str, Any] | None = None,
    samples: Mapping[str, Sequence[float]] | None = None,
    servers: Sequence[str] = (),
) -> dict[str, Any]:
    try:
        return canary.verdict(before, after, backend, stable, limits, samples, servers)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"canary_verdict": canary_verdict}
