"""What the processes beside the stack handler do: little, but with the same stores and the same gateway."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial

from ib_async import IB, Forex

from sysbrokers.IB.ib_connection import connect, nearest_contract
from sysdata.config.production_config import get_production_config, resolve_path
from sysdata.parquet.parquet_access import ParquetAccess
from sysexecution.order_stack import instrument_stack
from syslogging.logger import get_logger
from syslogging.tracing import span

LOG = get_logger("jobs")
ECHO_DAYS = 30
MAX_TRADE = 3

Methods = Mapping[str, Callable[[], None]]


def _net_liquidation(ib: IB) -> float:
    return float(next(value.value for value in ib.accountSummary() if value.tag == "NetLiquidation"))


def capital_update() -> Methods:
    """Capital of the account, and each strategy's share of it."""
    ib, store, config = connect(), ParquetAccess(), get_production_config()

    def update_total_capital() -> None:
        value = _net_liquidation(ib)
        row = {"Actual": value, "Max": value, "Accumulated": 0.0, "Broker": value}
        store.append("capital", "__global_capital", row)

    def strategy_allocation() -> None:
        total = store.read("capital", "__global_capital")[-1]["Actual"]
        for strategy, weight in config.strategy_capital_allocation["strategy_weights"].items():
            store.append("capital", strategy, {"capital": total * float(weight)})

    return {"update_total_capital": update_total_capital, "strategy_allocation": strategy_allocation}


def price_updates() -> Methods:
    """The newest daily bar of each instrument."""
    ib, store = connect(), ParquetAccess()

    def update_historical_prices() -> None:
        for name in get_production_config().reference_instruments:
            nearest = nearest_contract(ib, name)
            bars = ib.reqHistoricalData(nearest, "", "5 D", "1 day", "TRADES", useRTH=True)
            identifier = f"{name}#{nearest.lastTradeDateOrContractMonth}"
            store.append("futures_contract_prices", identifier, {"FINAL": bars[-1].close})

    return {"update_historical_prices": update_historical_prices}


def fx_and_contract_updates() -> Methods:
    """The newest rate of the base currency."""
    ib, store = connect(), ParquetAccess()

    def update_fx_prices() -> None:
        bars = ib.reqHistoricalData(Forex("EURUSD"), "", "5 D", "1 day", "MIDPOINT", useRTH=True)
        store.append("spotfx_prices", "EURUSD", {"price": bars[-1].close})

    return {"update_fx_prices": update_fx_prices}


def multiple_adjusted_prices() -> Methods:
    """The adjusted price: here, that of the contract."""
    store = ParquetAccess()

    def update_multiple_adjusted_prices() -> None:
        for identifier in store.identifiers("futures_contract_prices"):
            row = {"price": store.read("futures_contract_prices", identifier)[-1]["FINAL"]}
            store.append("futures_adjusted_prices", identifier.split("#")[0], row)

    return {"update_multiple_adjusted_prices": update_multiple_adjusted_prices}


def _run_system(strategy: str) -> None:
    for instrument in get_production_config().reference_instruments:
        position = float(random.randint(-MAX_TRADE, MAX_TRADE))
        ParquetAccess().append("optimal_positions", f"{strategy} {instrument}", {"position": position})


def systems() -> Methods:
    """An optimal position per strategy and instrument: drawn by lot."""
    return {strategy: partial(_run_system, strategy) for strategy in get_production_config().strategy_list}


def put_instrument_orders(strategies: Iterable[str], at_most: int | None = None) -> None:
    """Put an order on the stack for each strategy and instrument that has none there."""
    stack = instrument_stack()
    waiting = {order["key"] for order in stack.active()}
    keys = [f"{strategy} {name}" for strategy in strategies for name in get_production_config().reference_instruments]
    new = [key for key in keys if key not in waiting]
    random.shuffle(new)
    for key in new[:at_most]:
        start = datetime.now()
        number, trade = stack.next_id(), float(random.choice([-1, 1]) * random.randint(1, MAX_TRADE))
        stack.put(number, key, trade, reference_price=None)
        LOG.info("instrument order %d: %+g %s", number, trade, key)
        span(number, "generate", start, key=key, trade=trade)


def strategy_order_generator() -> Methods:
    """A round of orders per strategy, or a steady flow of them where a rate is configured."""
    config = get_production_config()

    def steady_flow() -> None:
        put_instrument_orders(config.strategy_list, at_most=1)
        time.sleep(60 / config.reference_orders_per_minute)

    if config.reference_orders_per_minute:
        return {"steady_flow": steady_flow}
    return {strategy: partial(put_instrument_orders, [strategy]) for strategy in config.strategy_list}


def backups() -> Methods:
    """A copy of the Parquet files, in a folder of this machine."""
    config = get_production_config()

    def backup_parquet() -> None:
        target = config.get_element_or_default("offsystem_backup_directory", "")
        if not target or "@" in target:
            LOG.warning("offsystem_backup_directory is %r: nothing is backed up", target)
            return
        shutil.copytree(ParquetAccess().store, resolve_path(target) / "parquet", dirs_exist_ok=True)

    return {"backup_parquet": backup_parquet}


def cleaners() -> Methods:
    """Removal of old echo files."""
    oldest = (datetime.now() - timedelta(days=ECHO_DAYS)).timestamp()

    def clean_echo_files() -> None:
        for path in resolve_path(get_production_config().echo_directory).glob("*.txt*"):
            if path.stat().st_mtime < oldest:
                path.unlink()

    return {"clean_echo_files": clean_echo_files}


def reports() -> Methods:
    """A report of positions, into the log, or into a folder where one is configured."""
    config = get_production_config()

    def status_report() -> None:
        store = ParquetAccess()
        names = store.identifiers("strategy_positions")
        text = "".join(f"{name} {store.read('strategy_positions', name)[-1]['position']:g}\n" for name in names)
        folder = config.get_element_or_default("reporting_directory", "")
        if folder:
            resolve_path(folder).mkdir(parents=True, exist_ok=True)
            (resolve_path(folder) / "status_report").write_text(text)
        LOG.info("positions: %s", text.replace("\n", "; ") or "none")

    return {"status_report": status_report}
