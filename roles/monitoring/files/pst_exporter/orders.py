"""The orders that were processed, counted from pysystemtrade's history of broker orders as it grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from .text import Histogram, Page

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
FIELDS = {"trade": 1, "fill": 1, "submit_datetime": 1, "fill_datetime": 1, "key": 1}
# Ids are made by the processes, so a document may come in after one with a larger id. It is not that late.
OVERLAP = timedelta(minutes=10)
BATCH = 5000


@dataclass(frozen=True)
class Order:
    """What counts of an order that is done."""

    id: Any
    made: datetime
    strategy: str
    result: str  # filled, partial, unfilled
    seconds: float | None  # from its submission to its last fill


def order(document: dict[str, Any]) -> Order:
    """Read a document of _BROKER_HISTORIC_ORDERS; its times are naive, and compared with each other only."""
    wanted, filled = total(document.get("trade")), total(document.get("fill"))
    submitted, done = document.get("submit_datetime"), document.get("fill_datetime")
    seconds = None
    if filled and isinstance(submitted, datetime) and isinstance(done, datetime):
        seconds = max(0.0, (done - submitted).total_seconds())
    return Order(
        id=document["_id"],
        made=document["_id"].generation_time,
        strategy=str(document.get("key", "")).partition("/")[0],
        result="unfilled" if not filled else "filled" if filled == wanted else "partial",
        seconds=seconds,
    )


def total(values: Any) -> float:
    """The size of a trade or a fill; one of several legs has a value for each."""
    return sum(abs(float(value)) for value in values) if isinstance(values, list) else abs(float(values or 0))


class History:
    """Counts each order once. What was counted is remembered as long as it may be read again."""

    def __init__(self) -> None:
        self._newest: datetime | None = None
        self._seen: dict[Any, datetime] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._durations = Histogram(BOUNDS)

    def read(self, collection: Any) -> Iterator[Order]:
        """Read the orders that may be new, the oldest first."""
        query: dict[str, Any] = {}
        if self._newest is not None:
            from bson import ObjectId  # noqa: PLC0415 - Debian's package, on the host only

            query = {"_id": {"$gte": ObjectId.from_datetime(self._newest - OVERLAP)}}
        for document in collection.find(query, FIELDS).sort("_id", 1).batch_size(BATCH):
            if hasattr(document["_id"], "generation_time"):
                yield order(document)

    def add(self, orders: Iterable[Order]) -> None:
        for one in orders:
            if one.id in self._seen:
                continue
            self._seen[one.id] = one.made
            self._newest = max(self._newest or one.made, one.made)
            key = (one.strategy, one.result)
            self._counts[key] = self._counts.get(key, 0) + 1
            if one.seconds is not None:
                self._durations.observe(one.seconds)
        if self._newest is not None:
            oldest = self._newest.astimezone(UTC) - 2 * OVERLAP
            self._seen = {key: made for key, made in self._seen.items() if made >= oldest}

    def render(self, page: Page) -> None:
        processed = page.counter("pysystemtrade_orders_processed_total", "Orders at the broker that are done")
        for (strategy, result), count in sorted(self._counts.items()):
            processed.add(count, strategy=strategy, result=result)
        page.histogram(
            "pysystemtrade_order_duration_seconds",
            "Time from the submission of an order to its last fill",
            [({}, self._durations)],
        )
