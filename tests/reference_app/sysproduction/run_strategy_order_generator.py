"""Orders of the strategies, daily."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysproduction import jobs


def run_strategy_order_generator() -> None:
    """Run the process."""
    processToRun("run_strategy_order_generator", jobs.strategy_order_generator).run_process()
