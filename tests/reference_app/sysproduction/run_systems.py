"""Optimal positions, daily."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysproduction import jobs


def run_systems() -> None:
    """Run the process."""
    processToRun("run_systems", jobs.systems).run_process()
