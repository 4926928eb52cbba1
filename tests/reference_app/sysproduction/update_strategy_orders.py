"""Orders of the strategies, now, past process control: what a person does by hand, and a drill for its flow."""

from __future__ import annotations

from sysdata.config.production_config import get_production_config
from sysproduction.jobs import put_instrument_orders


def update_strategy_orders() -> None:
    """Put an order on the stack for each strategy and instrument that has none there."""
    put_instrument_orders(get_production_config().strategy_list)
