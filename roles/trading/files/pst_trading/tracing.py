"""Spans of the orders that pass here, as lines of the journal: `pst-trace` on the log server makes trees of them.

The ids of an order's trace follow from the number of its instrument order, so that those who see it need not talk to
each other: whoever sends it, the gate, and who reads the lines. Fields are named as OpenTelemetry names them in logs
(https://opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context/).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import NamedTuple

# What the broker knows an order by, where its sender marks it: epoch of the lease, broker order, instrument order.
REFERENCE = re.compile(r"pst:[0-9]+:[0-9]+:([0-9]{1,18})")


class Ids(NamedTuple):
    trace_id: str
    span_id: str  # of the span that all others of the order belong to


def ids_of(order: str) -> Ids:
    """The ids of an order's trace."""
    digest = hashlib.sha256(f"order/{order}".encode()).hexdigest()
    return Ids(digest[:32], digest[32:48])


def order_of(reference: str, client_id: int | None, order_id: int) -> str:
    """An order's name: its instrument order, else what the gateway knows it by."""
    match = REFERENCE.fullmatch(reference)
    return match[1] if match else f"{client_id}/{order_id}"


class Stopwatch:
    """When something has begun, and how long ago that is."""

    def __init__(self) -> None:
        self.start = datetime.now(UTC)
        self._clock = time.monotonic()

    def seconds(self) -> float:
        return round(time.monotonic() - self._clock, 6)


def say(order: str, name: str, watch: Stopwatch, **more: object) -> None:
    """Write the span of a part of an order's life that ends now. Never a reason for anything else to fail."""
    trace_id, parent = ids_of(order)
    line = {
        "level": "info",
        "message": f"order {order}: {name}",
        "order_id": order,
        "trace_id": trace_id,
        "span_id": os.urandom(8).hex(),
        "parent_span_id": parent,
        "span": name,
        "start": watch.start.isoformat(timespec="microseconds"),
        "seconds": watch.seconds(),
        **more,
    }
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(json.dumps(line) + "\n")
