"""Capital, all day."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysproduction import jobs


def run_capital_update() -> None:
    """Run the process."""
    processToRun("run_capital_update", jobs.capital_update).run_process()
