"""The filters of module_utils/backup.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils import backup


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "backup_jobs": backup.jobs,
            "backup_problems": backup.problems,
            "backup_sets_of": backup.of_host,
            "backup_told": backup.told,
            "htpasswd": backup.htpasswd,
        }
