"""Run a process: wait for its window, run its methods in rounds, and do what process control says meanwhile.

SIGTERM is not handled: the process dies at once, and what it had at the broker stays there, as with upstream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sysdata.config.production_config import get_production_config
from syslogging.logger import get_logger
from sysproduction.data.control_process import (
    NOT_TO_RUN,
    PAUSE,
    RUNNING,
    STOP,
    STOPPED,
    dataControlProcess,
    diagControlProcess,
)

Methods = Mapping[str, Callable[[], None]]


class Timer:
    """When a method is due."""

    def __init__(self, frequency: float = 60.0, max_executions: int = 1, run_on_completion_only: bool = False) -> None:
        self._every = timedelta(minutes=frequency)
        self._left = max_executions
        self._last: datetime | None = None
        self.on_completion = run_on_completion_only

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Timer:
        """Take what is about time; the other keys are the method's own."""
        names = ("frequency", "max_executions", "run_on_completion_only")
        return cls(**{name: settings[name] for name in names if name in settings})

    @property
    def done(self) -> bool:
        """Whether it has run as often as it may."""
        return self._left == 0

    def due(self, now: datetime) -> bool:
        """Whether it has to run."""
        return not self.on_completion and not self.done and (self._last is None or now - self._last >= self._every)

    def ran(self, now: datetime) -> None:
        """Count a run."""
        self._last, self._left = now, self._left - 1


class processToRun:  # noqa: N801 - upstream's name
    """One run of a process. `connect` makes its methods once it may start, so that a waiting process holds nothing."""

    def __init__(self, name: str, connect: Callable[[], Methods]) -> None:
        self._name, self._connect = name, connect
        self._control, self._diag, self._log = dataControlProcess(), diagControlProcess(), get_logger(name)
        self._config = get_production_config()

    def run_process(self) -> None:
        """Run to the end of the window, to STOP, or until nothing is left to do. A failure leaves it "running"."""
        if not self._may_start():
            return
        self._control.start_process(self._name)
        self._log.info("started")
        methods = self._connect()
        configured = self._diag.get_method_configuration(self._name)
        timers = {method: Timer.of(configured.get(method) or {}) for method in methods}
        self._run_rounds(methods, timers)
        for method, timer in timers.items():
            if timer.on_completion:
                self._run(method, methods[method])
        self._control.finish_process(self._name)
        self._log.info("finished")

    def _may_start(self) -> bool:
        while True:
            answer = self._control.check_if_okay_to_start_process(self._name)
            if answer == RUNNING:
                self._log.warning("Can't start process %s since already running", self._name)
                return False
            if answer == STOPPED or self._diag.is_it_time_to_stop(self._name):
                self._log.info("not starting: %s", answer if answer == STOPPED else "its window is over")
                return False
            ready = self._diag.is_it_time_to_run(self._name) and self._diag.has_previous_process_finished(self._name)
            if ready and answer != NOT_TO_RUN:
                return True
            time.sleep(self._config.reference_poll_seconds)

    def _run_rounds(self, methods: Methods, timers: Mapping[str, Timer]) -> None:
        while not self._ended(timers):
            for method, timer in timers.items():
                status = self._status()
                if status == STOP:
                    break
                if status != PAUSE and timer.due(datetime.now()):
                    self._run(method, methods[method])
                    timer.ran(datetime.now())
            time.sleep(self._config.reference_loop_seconds)

    def _ended(self, timers: Mapping[str, Timer]) -> bool:
        nothing_left = all(timer.done for timer in timers.values() if not timer.on_completion)
        return nothing_left or self._status() == STOP or self._diag.is_it_time_to_stop(self._name)

    def _status(self) -> str:
        return str(self._control.get(self._name)["status"])

    def _run(self, method: str, function: Callable[[], None]) -> None:
        self._control.log_start_run_method(self._name, method)
        function()
        self._control.log_end_run_method(self._name, method)
