"""Prices, daily. The name in process control differs from the function's: as upstream."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysproduction import jobs


def run_daily_price_updates() -> None:
    """Run the process."""
    processToRun("run_daily_prices_updates", jobs.price_updates).run_process()
