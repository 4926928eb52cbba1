"""Prometheus' text format, by hand: its client library is not made for metrics that come and go between scrapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, object]
Sample = tuple[Labels, float]


@dataclass
class Family:
    """One metric with its samples."""

    name: str
    kind: str
    text: str
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float, **labels: object) -> Family:
        self.samples.append((labels, float(value)))
        return self


class Page:
    """What one scrape answers. A metric is begun once, wherever its samples come from."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._lines: list[str] = []

    def gauge(self, name: str, text: str) -> Family:
        return self._families.setdefault(name, Family(name, "gauge", text))

    def counter(self, name: str, text: str) -> Family:
        return self._families.setdefault(name, Family(name, "counter", text))

    def put(self, family: Family) -> None:
        self._families[family.name] = family

    def histogram(self, name: str, text: str, histograms: Iterable[tuple[Labels, Histogram]]) -> None:
        lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        for labels, histogram in histograms:
            lines += histogram.lines(name, labels)
        self._lines += lines

    def render(self) -> str:
        lines = []
        for family in self._families.values():
            if family.samples:
                lines += [f"# HELP {family.name} {family.text}", f"# TYPE {family.name} {family.kind}"]
                lines += [line(family.name, labels, value) for labels, value in family.samples]
        return "\n".join([*lines, *self._lines, ""])


class Histogram:
    """Counts of values up to each bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        place = next((n for n, bound in enumerate(self._bounds) if value <= bound), len(self._bounds))
        self._counts[place] += 1
        self._sum += value

    def lines(self, name: str, labels: Labels) -> list[str]:
        total, found = 0, []
        for bound, count in zip([*map(repr, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            found.append(line(f"{name}_bucket", {**labels, "le": bound}, total))
        return [*found, line(f"{name}_count", labels, total), line(f"{name}_sum", labels, self._sum)]


def line(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{escaped(str(item))}"' for key, item in labels.items())
    return f"{name}{{{pairs}}} {float(value)!r}" if pairs else f"{name} {float(value)!r}"


def escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
