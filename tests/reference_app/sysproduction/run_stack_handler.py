"""The stack handler, all day: the one process that sends orders."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysexecution.stack_handler import StackHandler


def run_stack_handler() -> None:
    """Run the process."""
    processToRun("run_stack_handler", lambda: StackHandler().methods()).run_process()
