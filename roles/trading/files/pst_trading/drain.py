"""A drained stop: STOP in process control, then wait until the process has left and no order of it is active.

SIGTERM is no drain: pysystemtrade dies of it at once and leaves its orders at the broker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from .processes import ORDER_SENDER, STACKS, Order, ProcessControl
from .settings import Process
from .store import DrainStore, RunStore

LOG = logging.getLogger("pst.drain")

POLL_S = 0.5
BROKER_STACK = STACKS[-1]


@dataclass(frozen=True)
class Drained:
    """How a drain ended."""

    problem: str = ""  # empty: nothing of it runs, and nothing of it is at the broker
    orders: list[Order] = field(default_factory=list)
    lost: bool = False  # the lease went; whoever has it next puts the status back

    @property
    def clean(self) -> bool:
        return not self.problem and not self.orders

    def __str__(self) -> str:
        orders = "".join(f"\n  {order}" for order in self.orders)
        if self.problem:
            return f"{self.problem}; {len(self.orders)} active orders{':' if orders else ''}{orders}"
        return (
            f"nothing runs; {len(self.orders)} active orders that nobody looks after:{orders}" if orders else "drained"
        )


@dataclass
class Drain:
    """What a drain works with."""

    control: ProcessControl
    drains: DrainStore
    runs: RunStore
    alive: Callable[[Process], bool]
    host: str
    clock: Callable[[], float]
    wait: Callable[[float], object]
    today: Callable[[], date]

    def __call__(
        self,
        processes: Sequence[Process],
        timeout_s: float,
        *,
        give_up: Callable[[], bool] = lambda: False,
        stay_stopped: bool = False,
    ) -> Drained:
        """Drain the processes together. When the time is up everything is put back as it was.

        With `stay_stopped` the status stays STOP afterwards, so that nothing starts them again.
        """
        names = [process.process_control_name for process in processes]
        states = self.control.states(names)
        before = {name: state.status for name, state in states.items()}
        going = [process for process in processes if self.alive(process)]
        for process in going if not stay_stopped else processes:
            name = process.process_control_name
            before[name] = self.drains.begin(name, before[name], self.host)
            self._mark_run(process, "interrupted", "running")
            self.control.set_status(name, "STOP")
        result = self._wait(going, self.clock() + timeout_s, give_up)
        if not result.lost:
            self._put_back(going if not stay_stopped else processes, before, result, stay_stopped)
        if not result.problem and ORDER_SENDER in set(names) - {process.process_control_name for process in going}:
            result = Drained(orders=[order for order in self.control.active_orders() if order.stack == BROKER_STACK])
        LOG.info("drain of %s: %s", ", ".join(names), result)
        return result

    def _put_back(
        self, processes: Sequence[Process], before: Mapping[str, str], result: Drained, stay_stopped: bool
    ) -> None:
        for process in processes:
            name = process.process_control_name
            if result.problem or not stay_stopped:
                self.control.set_status(name, before[name])
            if result.problem and self.alive(process):
                self._mark_run(process, "running", "interrupted")
            self.drains.end(name)

    def _mark_run(self, process: Process, state: str, only_from: str) -> None:
        """Have nobody take a run that was cut short for one that has succeeded."""
        if process.kind == "daily":
            self.runs.finish(process.name, self.today().isoformat(), state, [only_from])

    def _wait(self, going: Sequence[Process], until: float, give_up: Callable[[], bool]) -> Drained:
        was_sending = any(process.process_control_name == ORDER_SENDER for process in going)
        while True:
            alive = [process for process in going if self.alive(process)]
            states = self.control.states([process.process_control_name for process in going])
            # New instrument orders keep coming, and wait for the next sender: what has begun has to come to its end.
            orders = [order for order in self.control.active_orders() if order.begun] if was_sending else []
            if give_up():
                return Drained("the lease was lost during the drain", orders, lost=True)
            crashed = [p.name for p in going if p not in alive and states[p.process_control_name].running]
            if crashed and not alive:
                return Drained(f"{', '.join(crashed)} died without closing its entry in process control", orders)
            if not alive and not orders:
                return Drained()
            if self.clock() >= until:
                names = ", ".join(process.name for process in alive)
                seen_last = f"{names} still runs" if names else "nothing runs, but orders are active"
                return Drained(f"time is up: {seen_last}", orders)
            for process in alive:  # a process that was just writing its own entry has put the old status back
                if states[process.process_control_name].status != "STOP":
                    self.control.set_status(process.process_control_name, "STOP")
            self.wait(POLL_S)
