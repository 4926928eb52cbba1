"""How long this machine stood still while something was measured: a bound that allows for it proves no less."""

from __future__ import annotations

import math
import threading
import time

TICK_S = 0.1


class Stalls(threading.Thread):
    """`with Stalls() as stalled:` around what is measured; `stalled.seconds` is how much too long it slept so far."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._so_far = (0.0, time.monotonic())
        self._ended = threading.Event()

    @property
    def seconds(self) -> float:
        late, began = self._so_far
        return late + max(0.0, time.monotonic() - began - TICK_S)

    def run(self) -> None:
        while not self._ended.is_set():
            time.sleep(TICK_S)
            self._so_far = (self.seconds, time.monotonic())

    def __enter__(self) -> Stalls:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        self._so_far = (self.seconds, math.inf)
