"""Adjusted prices, daily."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysproduction import jobs


def run_daily_update_multiple_adjusted_prices() -> None:
    """Run the process."""
    processToRun("run_daily_update_multiple_adjusted_prices", jobs.multiple_adjusted_prices).run_process()
