"""Which packages a host still lacks, from what dpkg-query listed once for the whole run.

Asking apt costs a second of CPU per host and task, even where there is nothing to do; this costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def missing_packages(names: str | Iterable[str], listing: Mapping[str, Any]) -> list[str]:
    """Return the names that are not installed.

    `listing` is the registered result of `dpkg-query --show --showformat='${db:Status-Status} ${Package}\\n'`; without
    one (a role that is run by itself), nothing is known to be installed and all the names are returned.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    # Not stdout_lines: Ansible wraps every item of a list that a template touches.
    lines = set(str(listing.get("stdout", "")).splitlines())
    return [name for name in wanted if f"installed {name}" not in lines]
