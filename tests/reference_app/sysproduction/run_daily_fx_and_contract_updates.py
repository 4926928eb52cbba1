"""Exchange rates, daily."""

from __future__ import annotations

from syscontrol.run_process import processToRun
from sysproduction import jobs


def run_daily_fx_and_contract_updates() -> None:
    """Run the process."""
    processToRun("run_daily_fx_and_contract_updates", jobs.fx_and_contract_updates).run_process()
