"""From orders of strategies to orders at the broker, and back to positions.

An intent is on the broker stack, written by a majority, before anything is sent, and an order without an answer is
never sent again: what became of it is looked up at the broker by its reference. Each step looks for what it made
before, so it can be killed anywhere. Two handlers at once are not guarded against (looking and making is not one step,
as with upstream): that is the lease's and the gate's work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache

from ib_async import IB, Contract, Fill, MarketOrder, OrderStatus, Trade

from sysbrokers.IB.ib_connection import connect, nearest_contract, take_over
from sysdata.config.production_config import get_production_config
from sysdata.mongodb.mongo_connection import Document, keyed_collection
from sysdata.parquet.parquet_access import ParquetAccess
from sysexecution.order_stack import broker_stack, contract_stack, instrument_stack
from syslogging.logger import get_logger
from syslogging.tracing import span

EPOCH_VARIABLE = "PST_LEASE_EPOCH"
BREAK_TOLERANCE = 1e-6
UPDATE_SECONDS = 0.2  # an update that comes between two waits is not waited for twice
EVENT_SECONDS = 0.02  # for what the gateway has sent meanwhile


class OrdersLeftError(Exception):
    """Orders at the broker could not be brought to an end; nothing new may be sent."""


def net(fills: Iterable[Fill]) -> tuple[float, float | None]:
    """Return the signed quantity of fills, and their average price."""
    executions = [fill.execution for fill in fills]
    total = sum(execution.shares for execution in executions)
    if not total:
        return 0.0, None
    sign = 1 if executions[0].side == "BOT" else -1
    return sign * total, sum(execution.shares * execution.price for execution in executions) / total


class StackHandler:
    """The handler, connected to the gateway."""

    def __init__(self) -> None:
        self._config, self._log, self._parquet = get_production_config(), get_logger("stack_handler"), ParquetAccess()
        self._epoch = os.environ.get(EPOCH_VARIABLE, "0")
        self._instruments, self._contracts, self._brokers = instrument_stack(), contract_stack(), broker_stack()
        self._locks = keyed_collection("locks", "instrument_code")
        self._trades: dict[int, Trade] = {}
        self._positions: dict[tuple[str, str], list[dict[str, float]]] = {}
        self._ib = connect()
        self._find_contract = cache(self._ask_for_contract)
        self.reconcile()

    def methods(self) -> dict[str, Callable[[], None]]:
        """Return what a process has to run, in this order."""
        return {
            "check_external_position_break": self.check_external_position_break,
            "spawn_children_from_new_instrument_orders": self.spawn_children_from_new_instrument_orders,
            "create_broker_orders_from_contract_orders": self.create_broker_orders_from_contract_orders,
            "process_fills_stack": self.process_fills_stack,
            "handle_completed_orders": self.handle_completed_orders,
            "safe_stack_removal": self.safe_stack_removal,
        }

    # What an earlier handler left

    def reconcile(self) -> None:
        """Bring every order of an earlier handler to an end, and learn from the broker what it filled."""
        leftovers = self._brokers.active()
        for client_id in {int(order["broker_clientid"]) for order in leftovers}:
            self._end_orders_of(client_id, {self._reference(order) for order in leftovers})
        self._ib.reqExecutions()
        for order in leftovers:
            self._take_fills(order)
            self._brokers.update(order["order_id"], active=False, algo_comment="ended by a later handler")
            self._log.warning("order %s of an earlier handler has ended", self._reference(order))
        self.handle_completed_orders()
        self._write_positions()

    def _end_orders_of(self, client_id: int, references: set[str]) -> None:
        """Cancel what is open of a client. Under its own id: the gateway cancels for nobody else."""
        own = client_id == self._ib.client.clientId
        ib = self._ib if own else take_over(client_id)
        try:
            ib.reqOpenOrders()
            trades = [trade for trade in ib.openTrades() if trade.order.orderRef in references]
            if left := self._cancel_and_confirm(ib, trades):
                raise OrdersLeftError(f"open at the broker, wanted none: {', '.join(left)}")
        finally:
            if not own:
                ib.disconnect()

    def _cancel_and_confirm(self, ib: IB, trades: list[Trade]) -> list[str]:
        """Cancel orders, and return the references of those that are not confirmed in time."""
        for trade in trades:
            ib.cancelOrder(trade.order)
        deadline = time.monotonic() + self._config.reference_cancel_seconds
        while any(not trade.isDone() for trade in trades) and (left := deadline - time.monotonic()) > 0:
            ib.waitOnUpdate(timeout=min(left, UPDATE_SECONDS))
            self._check_connection()
        return [trade.order.orderRef for trade in trades if not trade.isDone()]

    def _check_connection(self) -> None:
        if not self._ib.isConnected():
            raise ConnectionError("Socket disconnect")

    # One round

    def spawn_children_from_new_instrument_orders(self) -> None:
        """Make a contract order of each new instrument order."""
        for order in self._instruments.active():
            if self._contracts.child_of(order["order_id"]):
                continue
            start = datetime.now()
            strategy, instrument = order["key"].split(" ")
            expiry = self._find_contract(instrument).lastTradeDateOrContractMonth
            number, key = self._contracts.next_id(), f"{strategy}/{instrument}/{expiry}"
            algorithm = {"algo_to_use": "market", "reference_of_controlling_algo": None}
            self._contracts.put(number, key, order["trade"][0], parent=order["order_id"], **algorithm)
            self._instruments.update(order["order_id"], children=[number])
            span(order["order_id"], "choose a contract", start, contract=key)

    def create_broker_orders_from_contract_orders(self) -> None:
        """Send what has not been sent. The intent is written first."""
        locked = {document["instrument_code"] for document in self._locks.find({"lock": "ON"})}
        for order in self._contracts.active():
            self._check_connection()
            if order["key"].split("/")[1] not in locked and not self._brokers.child_of(order["order_id"]):
                self._send(order)

    def _send(self, contract_order: Document) -> None:
        start = datetime.now()
        instrument = contract_order["key"].split("/")[1]
        contract, trade = self._find_contract(instrument), contract_order["trade"][0]
        number, api_id = self._brokers.next_id(), self._ib.client.getReqId()
        intent = {
            "broker": "IB",
            "broker_account": self._config.get_element_or_default("broker_account", ""),
            "broker_clientid": float(self._ib.client.clientId),
            "broker_tempid": float(api_id),
            "broker_permid": None,
            "algo_used": "market",
            "algo_comment": "",
            "submit_datetime": datetime.now(),
            "lease_epoch": self._epoch,
            "instrument_order_id": contract_order["parent"],
        }
        self._brokers.put(number, contract_order["key"], trade, parent=contract_order["order_id"], **intent)
        controlled = {"children": [number], "reference_of_controlling_algo": f"stack_handler/{number}"}
        self._contracts.update(contract_order["order_id"], **controlled)
        reference = self._reference({"order_id": number, **intent})
        order = MarketOrder("BUY" if trade > 0 else "SELL", abs(trade), orderId=api_id, orderRef=reference)
        order.account = intent["broker_account"]
        self._trades[number] = self._ib.placeOrder(contract, order)
        self._log.info("sent %s %+g %s", reference, trade, contract_order["key"])
        span(contract_order["parent"], "send", start, reference=reference)

    @staticmethod
    def _reference(order: Document) -> str:
        """What the broker knows an order by: epoch of the lease, our number, number of the instrument order."""
        return f"pst:{order['lease_epoch']}:{order['order_id']}:{order['instrument_order_id']}"

    def process_fills_stack(self) -> None:
        """Take what the broker has filled, and see which orders are done."""
        self._ib.sleep(EVENT_SECONDS)
        self._check_connection()
        for order in self._brokers.active():
            self._take_fills(order)
            trade = self._trades.get(order["order_id"])
            if trade and self._has_ended(trade):
                self._brokers.update(order["order_id"], active=False, broker_permid=float(trade.order.permId))
                del self._trades[order["order_id"]]

    def _has_ended(self, trade: Trade) -> bool:
        """Whether an order is done. After a refusal by validation (321) only the broker's list of open orders tells."""
        if trade.orderStatus.status == OrderStatus.ValidationError:
            return trade.order.orderRef not in {other.order.orderRef for other in self._ib.reqAllOpenOrders()}
        return trade.isDone()

    def _take_fills(self, order: Document) -> None:
        """Write what an order has filled, counted anew from the broker's executions, and the positions."""
        reference = self._reference(order)
        filled, price = net(fill for fill in self._ib.fills() if fill.execution.orderRef == reference)
        if filled == order["fill"][0]:
            return
        fields = {"fill": [filled], "filled_price": price, "fill_datetime": datetime.now()}
        self._brokers.update(order["order_id"], **fields)
        self._contracts.update(order["parent"], **fields)
        self._instruments.update(order["instrument_order_id"], **fields)
        span(order["instrument_order_id"], "fill", order["submit_datetime"], filled=filled, price=price)
        self._write_positions()

    def _write_positions(self) -> None:
        """Write the positions that have changed, counted anew from all fills: to be repeated at will."""
        positions: dict[tuple[str, str], float] = {}
        for key, filled in self._brokers.filled().items():
            strategy, instrument, expiry = key.split("/")
            for series in (
                ("strategy_positions", f"{strategy} {instrument}"),
                ("contract_positions", f"{instrument}#{expiry}"),
            ):
                positions[series] = positions.get(series, 0.0) + filled
        for series, position in positions.items():
            known = self._positions.get(series) or self._parquet.read(*series)[-1:]
            if not known or known[-1]["position"] != position:
                self._parquet.append(*series, {"position": position})
            self._positions[series] = [{"position": position}]

    def handle_completed_orders(self) -> None:
        """Close orders whose child is done, whatever it filled, and move them to the history."""
        for parents, children in ((self._contracts, self._brokers), (self._instruments, self._contracts)):
            for order in parents.active():
                child = children.child_of(order["order_id"])
                if child and not child["active"]:
                    fields = {key: child[key] for key in ("fill", "filled_price", "fill_datetime")}
                    parents.update(order["order_id"], active=False, reference_of_controlling_algo=None, **fields)
        # Parents first: whoever looks for the child of an order that waits finds it on its stack or in its history.
        waiting: set[int] = set()
        for stack in (self._instruments, self._contracts, self._brokers):
            for order in stack.find(active=False):
                if order["parent"] not in waiting:
                    stack.archive(order)
                    if stack is self._instruments:
                        self._say_whole(order)
            waiting = {order["order_id"] for order in stack.active()}

    @staticmethod
    def _say_whole(order: Document) -> None:
        """The span of an order's life, which is over."""
        number, (wanted,), (filled,) = order["order_id"], order["trade"], order["fill"]
        made = order["generated_datetime"]
        span(number, f"order {number}", made, whole=True, key=order["key"], wanted=wanted, filled=filled)

    def check_external_position_break(self) -> None:
        """Lock an instrument whose position differs between the broker and our fills, unless an order is under way.

        The broker is asked last: what fills meanwhile belongs to an order that was under way when it was looked for.
        """
        self.process_fills_stack()
        busy = {order["key"].split("/")[1] for order in self._brokers.active()}
        ours: dict[tuple[str, str], float] = {}
        for key, filled in self._brokers.filled().items():
            _, instrument, expiry = key.split("/")
            ours[instrument, expiry] = ours.get((instrument, expiry), 0.0) + filled
        symbols = {value["symbol"]: name for name, value in self._config.reference_instruments.items()}
        theirs = {
            (symbols[held.contract.symbol], held.contract.lastTradeDateOrContractMonth): held.position
            for held in self._ib.reqPositions()
            if held.contract.symbol in symbols
        }
        for instrument, expiry in sorted(ours.keys() | theirs.keys()):
            here, there = ours.get((instrument, expiry), 0.0), theirs.get((instrument, expiry), 0.0)
            if instrument not in busy and abs(here - there) > BREAK_TOLERANCE:
                self._log.critical("Break for %s/%s: ours %g, broker's %g: locking", instrument, expiry, here, there)
                self._locks.update_one({"instrument_code": instrument}, {"$set": {"lock": "ON"}}, upsert=True)

    def safe_stack_removal(self) -> None:
        """Leave nothing behind: cancel and confirm at the broker, take the fills, close every order."""
        if left := self._cancel_and_confirm(self._ib, list(self._trades.values())):
            self._log.critical("not confirmed as cancelled: %s", ", ".join(left))
        self.process_fills_stack()
        for stack, children in ((self._contracts, self._brokers), (self._instruments, self._contracts)):
            for order in stack.active():
                if not children.child_of(order["order_id"]):
                    stack.update(order["order_id"], active=False)
        self.handle_completed_orders()
        self._ib.disconnect()

    def _ask_for_contract(self, instrument: str) -> Contract:
        return nearest_contract(self._ib, instrument)
