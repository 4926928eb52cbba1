"""Prometheus' text format, written by hand: its client library costs 2 MiB to import, and these are forty lines."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Labels = Mapping[str, object]
Sample = tuple[Labels, float]


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    """Return one metric with all its samples; nothing where there is none."""
    lines = [line(name, labels, value) for labels, value in samples]
    return "\n".join([f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines, ""]) if lines else ""


def line(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{escaped(str(item))}"' for key, item in labels.items())
    return f"{name}{{{pairs}}} {float(value)!r}" if pairs else f"{name} {float(value)!r}"


def escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def gauge(name: str, text: str, value: float) -> str:
    return family(name, "gauge", text, [({}, value)])


class Requests:
    """How many requests were served, by method and code, and how long they took."""

    # A method is what a client sends: only those that exist become labels.
    METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

    def __init__(self) -> None:
        self._count: dict[tuple[str, int], int] = {}
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def observe(self, method: str, code: int, seconds: float) -> None:
        key = (method if method in self.METHODS else "other", code)
        self._count[key] = self._count.get(key, 0) + 1
        self._buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds += seconds

    def render(self) -> str:
        total, name = 0, "pst_http_request_seconds"
        lines = [f"# HELP {name} Time to the end of the answer, probes left out", f"# TYPE {name} histogram"]
        for bound, count in zip([*map(repr, BUCKETS), "+Inf"], self._buckets, strict=True):
            total += count
            lines.append(line(f"{name}_bucket", {"le": bound}, total))
        lines += [line(f"{name}_count", {}, total), line(f"{name}_sum", {}, self._seconds), ""]
        counted = [({"method": method, "code": code}, count) for (method, code), count in sorted(self._count.items())]
        return family("pst_http_requests_total", "counter", "Requests served, probes left out", counted) + "\n".join(
            lines
        )
