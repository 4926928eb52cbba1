"""What the instance is doing for its clients, and when it may stop.

Probes (/health, /ready, /metrics, /version) are not traffic. An instance that drains answers 404 on /ready
and still serves; it is quiet when the balancers have stopped sending for `quiet_s` and nothing is in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Traffic:
    def __init__(self, flag: Path, quiet_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._flag = flag
        self._quiet_s = quiet_s
        self._clock = clock
        self._stopping = False
        self._drain_since: float | None = None
        self._last_request = clock()
        self.in_flight = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._last_request = self._clock()

    def stop(self) -> None:
        self._stopping = True

    @property
    def draining(self) -> bool:
        wanted = self._stopping or self._flag.exists()
        if not wanted:
            self._drain_since = None
        elif self._drain_since is None:
            self._drain_since = self._clock()
        return wanted

    @property
    def quiet_for(self) -> float:
        """Seconds without work since the drain was seen; 0 while there is work or no drain.

        It counts from the drain, not from the last request: a balancer that has not seen it yet may still send.
        """
        if not self.draining or self._drain_since is None or self.in_flight:
            return 0.0
        return self._clock() - max(self._last_request, self._drain_since)

    async def quiet(self, limit_s: float) -> bool:
        """Wait until the instance is quiet, at most `limit_s`; True when it is."""
        deadline = self._clock() + limit_s
        while (missing := self._quiet_s - self.quiet_for) > 0:
            left = deadline - self._clock()
            if left <= 0:
                return False
            await asyncio.sleep(min(missing, left))
        return True
