"""Removal of old files, daily."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysproduction import jobs


def run_cleaners() -> None:
    """Run the process."""
    processToRun("run_cleaners", jobs.cleaners).run_process()
