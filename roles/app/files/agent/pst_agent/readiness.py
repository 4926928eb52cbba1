"""Whether the instance may take traffic: judged in the background, answered from memory.

A dependency that fails for less than `grace_s` does not take the instance out. All instances share MongoDB and
Redis: if each left the balancers during an election of a second, every request would be refused that would
otherwise just wait for the new primary. Before the first success there is no grace.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)
Probe = Callable[[], Awaitable[None]]


@dataclass
class Dependency:
    name: str
    probe: Probe
    reached: bool = False
    error: str = "not reached yet"
    failing_since: float | None = None

    @property
    def up(self) -> bool:
        return self.reached and self.failing_since is None

    def succeeded(self) -> None:
        if not self.up:
            log.info("dependency is up", extra={"dependency": self.name})
        self.reached, self.error, self.failing_since = True, "", None

    def failed(self, error: str, now: float) -> None:
        if error != self.error:
            log.warning("dependency fails", extra={"dependency": self.name, "error": error})
        self.error = error
        self.failing_since = now if self.failing_since is None else self.failing_since


class Readiness:
    def __init__(
        self,
        probes: Mapping[str, Probe],
        *,
        interval_s: float,
        timeout_s: float,
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dependencies = {name: Dependency(name, probe) for name, probe in probes.items()}
        self._interval_s, self._timeout_s, self._grace_s, self._clock = interval_s, timeout_s, grace_s, clock
        self._checked_at = clock()

    async def _check(self, dependency: Dependency) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await dependency.probe()
        except TimeoutError:
            dependency.failed(f"no answer within {self._timeout_s:g} s", self._clock())
        except Exception as error:  # noqa: BLE001 - whatever a probe raises is a reason
            dependency.failed(f"{type(error).__name__}: {error}"[:300], self._clock())
        else:
            dependency.succeeded()

    async def check(self) -> None:
        await asyncio.gather(*map(self._check, self.dependencies.values()))
        self._checked_at = self._clock()

    async def run(self) -> None:
        while True:
            await self.check()
            await asyncio.sleep(self._interval_s)

    def reasons(self) -> list[str]:
        """Why the instance must not take traffic; empty when it may."""
        now = self._clock()
        found = []
        for name, dependency in self.dependencies.items():
            if not dependency.reached:
                found.append(f"{name}: {dependency.error}")
            elif dependency.failing_since is not None and now - dependency.failing_since >= self._grace_s:
                found.append(f"{name}: {dependency.error} (for {now - dependency.failing_since:.0f} s)")
        if (age := now - self._checked_at) > self._interval_s + 2 * self._timeout_s + 1:
            found.append(f"checks: last one {age:.0f} s ago")
        return found
