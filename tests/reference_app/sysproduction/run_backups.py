"""Backups, daily."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysproduction import jobs


def run_backups() -> None:
    """Run the process."""
    processToRun("run_backups", jobs.backups).run_process()
