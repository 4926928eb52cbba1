"""W3C trace context, by hand: OpenTelemetry's SDK costs 3 MiB to import, and 9 with its exporter.

A span is a few fields of the line that the log has of a request in any case, named as OpenTelemetry names them there
(https://opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context/). On the log server `pst-trace` makes
trees and OTLP of them. The header is that of https://www.w3.org/TR/trace-context-1/.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

HEADER = b"traceparent"
_FORMAT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01

Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Parent:
    trace_id: str
    span_id: str
    sampled: bool


def parent_of(headers: Iterable[Header]) -> Parent | None:
    """Return whose span a request belongs to; None where nothing says so, or not as the standard has it."""
    values = [value for name, value in headers if name == HEADER]
    match = _FORMAT.fullmatch(values[0].strip(b" \t")) if len(values) == 1 else None
    # Only a version to come may say more.
    if match is None or (match[1] == b"00" and match[5]):
        return None
    return Parent(match[2].decode(), match[3].decode(), bool(int(match[4], 16) & _SAMPLED))


@dataclass(frozen=True)
class Span:
    trace_id: str
    span_id: str
    parent_span_id: str
    start: datetime

    def onward(self, headers: Iterable[Header]) -> list[Header]:
        """The headers for who is asked next. The vendors' part (tracestate) belongs to a parent that was understood."""
        dropped = {HEADER} if self.parent_span_id else {HEADER, b"tracestate"}
        kept = [header for header in headers if header[0] not in dropped]
        return [*kept, (HEADER, f"00-{self.trace_id}-{self.span_id}-01".encode())]

    def fields(self, name: str, code: int) -> dict[str, Any]:
        """What the request's line says besides its duration."""
        said = {"trace_id": self.trace_id, "span_id": self.span_id, "span": name, "kind": "server"}
        said |= {"parent_span_id": self.parent_span_id} if self.parent_span_id else {}
        said |= {"error": f"answered {code}" if code else "not answered"} if code == 0 or code >= 500 else {}
        return said | {"start": self.start.isoformat(timespec="microseconds")}


class Tracer:
    """Decides which requests are traced: as their sender says, else a share of them."""

    def __init__(self, share: float, draw: Callable[[], float] = random.random) -> None:
        self._share, self._draw = share, draw

    def begin(self, headers: Iterable[Header]) -> Span | None:
        """The span of a request that begins now; None where it is not traced."""
        parent = parent_of(headers)
        if not (parent.sampled if parent else self._draw() < self._share):
            return None
        ids = os.urandom(24).hex()
        trace_id, parent_id = (parent.trace_id, parent.span_id) if parent else (ids[16:], "")
        return Span(trace_id, ids[:16], parent_id, datetime.now(UTC))
