"""Spans of orders, as JSON lines of the log. The ids of a trace follow from the number of the instrument order."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from datetime import datetime


def span(order: int, name: str, start: datetime, *, whole: bool = False, **more: object) -> None:
    """Write the span of a part of an order's life, or of the whole, that ends now."""
    digest = hashlib.sha256(f"order/{order}".encode()).hexdigest()
    ids = {"trace_id": digest[:32], "span_id": digest[32:48]}
    if not whole:
        ids |= {"parent_span_id": digest[32:48], "span_id": os.urandom(8).hex()}
    line = {
        "level": "info",
        "message": f"order {order}: {name}",
        "order_id": str(order),
        **ids,
        "span": name,
        "start": start.astimezone().isoformat(timespec="microseconds"),
        "seconds": round((datetime.now() - start).total_seconds(), 6),
        **more,
    }
    sys.stderr.write(json.dumps(line) + "\n")
