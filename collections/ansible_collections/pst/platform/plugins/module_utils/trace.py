# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Spans of a run of Ansible: of the run, its plays and their tasks, as fields of the lines that its log has of them.

The ids of a run's trace follow from the run's id, and it goes on with the trace of who started it where TRACEPARENT
says so (https://www.w3.org/TR/trace-context-1/). Fields are named as OpenTelemetry names them in logs
(https://opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context/).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

# Of a later version only these four fields are known (section 4.2 of the standard).
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
SLOWEST = 100  # hosts of a task: a line has a bound


class Part:
    """A part of a run that goes on."""

    def __init__(self, name: str, trace_id: str, parent: str, span_id: str = "") -> None:
        self.name, self.trace_id, self.parent = name, trace_id, parent
        self.span_id = span_id or os.urandom(8).hex()
        self.start = datetime.now(UTC)
        self._clock = time.monotonic()
        self._begun: dict[str, float] = {}
        self._took: dict[str, dict[str, Any]] = {}

    def seconds(self) -> float:
        return round(time.monotonic() - self._clock, 3)

    def part(self, name: str) -> Part:
        """A part of this one."""
        return Part(name, self.trace_id, self.span_id)

    def begin(self, host: str) -> None:
        self._begun[host] = self.seconds()

    def end(self, host: str, was: str) -> None:
        """A host has done its share."""
        at = self._begun.get(host, 0.0)
        self._took[host] = {"at": at, "seconds": round(self.seconds() - at, 3), "was": was}

    def fields(self, error: str = "") -> dict[str, Any]:
        """What the line says of a part that ends now; of many hosts, those that took longest."""
        slowest = sorted(self._took.items(), key=lambda item: -float(item[1]["seconds"]))[:SLOWEST]
        return {
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            **({"parent_span_id": self.parent} if self.parent else {}),
            "span": self.name,
            "start": self.start.isoformat(timespec="microseconds"),
            "seconds": self.seconds(),
            **({"took": dict(slowest)} if slowest else {}),
            **({"error": error} if error else {}),
        }


def begin(run: str, name: str, environment: Mapping[str, str] = os.environ) -> Part:
    """The span of a whole run."""
    digest = hashlib.sha256(f"run/{run}".encode()).hexdigest()
    given = TRACEPARENT.fullmatch(environment.get("TRACEPARENT", ""))
    trace_id, parent = (given[1], given[2]) if given else (digest[:32], "")
    return Part(name, trace_id, parent, digest[32:48])
