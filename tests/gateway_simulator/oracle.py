"""The verdict on a run of traders, from the broker's order log alone: was anything traded twice, or by an old holder?

A trader marks each order `pst:<epoch>:<its order>[:<what it was made from>]`.
``python3 -m gateway_simulator.oracle FILE…`` prints the verdict as JSON, and fails where an order was sent wrongly.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .state import Event, Order, Record, read_log


@dataclass(frozen=True)
class Verdict:
    """Numbers of orders, and the references of those that are wrong."""

    orders_sent: int
    epochs: int
    duplicate_orders: list[str]
    orders_without_lease: list[str]  # no epoch, or one that is older than that of an order before it
    unmatched_orders: list[str]  # what the broker did and what the trader's books say differ

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.duplicate_orders or self.orders_without_lease or self.unmatched_orders)


def read(paths: Iterable[Path]) -> list[Record]:
    """Read logs in the order of their times (gateways without a common broker have one each)."""
    return sorted((record for path in paths for record in read_log(path)), key=lambda record: str(record["at"]))


def judge(records: Sequence[Record], books: Mapping[str, float] | None = None) -> Verdict:
    """Judge. `books`: the trader's own order numbers with the signed quantity that it believes filled."""
    orders = [Order.from_record(record) for record in records if record["event"] == Event.PLACED]
    newest, stale = -1, []
    for order in orders:
        if order.epoch is None or order.epoch < newest:
            stale.append(order.reference)
        else:
            newest = order.epoch
    return Verdict(
        orders_sent=len(orders),
        epochs=len({order.epoch for order in orders} - {None}),
        duplicate_orders=_duplicates(orders),
        orders_without_lease=stale,
        unmatched_orders=[] if books is None else _unmatched(records, orders, books),
    )


def _parts(order: Order) -> tuple[str, str]:
    """Return a trader's number of an order, and what the order was made from."""
    number, _, origin = order.reference.split(":", 2)[-1].partition(":")
    return number, origin


def _duplicates(orders: Sequence[Order]) -> list[str]:
    marked = [order for order in orders if order.epoch is not None]
    numbers = Counter(_parts(order)[0] for order in marked)
    origins = Counter(origin for order in marked if (origin := _parts(order)[1]))
    return [order.reference for order in marked if numbers[_parts(order)[0]] > 1 or origins[_parts(order)[1]] > 1]


def _unmatched(records: Sequence[Record], orders: Sequence[Order], books: Mapping[str, float]) -> list[str]:
    filled: defaultdict[str, float] = defaultdict(float)
    for record in records:
        order = Order.from_record(record)
        if record["event"] == Event.FILLED and order.epoch is not None:
            filled[_parts(order)[0]] += order.sign * record["shares"]
    sent = {_parts(order)[0]: order.reference for order in orders if order.epoch is not None}
    strangers = [reference for number, reference in sent.items() if number not in books]
    differ = [
        f"{sent.get(number, number)}: filled {filled[number]:g}, in the books {believed:g}"
        for number, believed in books.items()
        if believed != filled[number]
    ]
    return strangers + differ


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge the logs that are named."""
    verdict = judge(read(map(Path, arguments if arguments is not None else sys.argv[1:])))
    print(json.dumps(asdict(verdict), indent=1))
    if not verdict.ok:
        sys.exit(1)


if __name__ == "__main__":
    main()
