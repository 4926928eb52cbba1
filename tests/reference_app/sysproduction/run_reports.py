"""Reports, daily."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysproduction import jobs


def run_reports() -> None:
    """Run the process."""
    processToRun("run_reports", jobs.reports).run_process()
