# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask Prometheus which of the expected targets it does not see up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


class PrometheusError(Exception):
    """Prometheus does not answer, or does not see all targets up; the message names those."""


@dataclass(frozen=True)
class Target:
    """A scraped address."""

    job: str
    instance: str

    def __str__(self) -> str:
        return f"{self.job} {self.instance}"


Fetch = Callable[[], bytes]


def problems_of(expected: Iterable[Target], answer: bytes) -> list[str]:
    """Return a line for every expected target that is not up in the answer of /api/v1/targets."""
    active: list[dict[str, Any]] = json.loads(answer)["data"]["activeTargets"]
    seen = {Target(found["labels"]["job"], found["labels"]["instance"]): found for found in active}
    problems = []
    for target in expected:
        found = seen.get(target)
        if found is None:
            problems.append(f"{target}: not a target")
        elif found["health"] != "up":
            problems.append(f"{target}: {found['health']} {found['lastError']}".rstrip())
    return problems


def wait_up(expected: Iterable[Target], fetch: Fetch, wait: float, pause: float = 1.0) -> int:
    """Ask until every expected target is up, for ``wait`` seconds at most; return how many there are."""
    expected = list(expected)
    end = time.monotonic() + wait
    while True:
        try:
            problems = problems_of(expected, fetch())
        except (OSError, ValueError, KeyError) as error:
            problems = [f"Prometheus does not answer: {error}"]
        if not problems:
            return len(expected)
        if time.monotonic() + pause >= end:
            raise PrometheusError("\n".join(problems))
        time.sleep(pause)
