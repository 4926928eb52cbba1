"""The report of `make drill-trade-once` as a page: one file, nothing from outside, readable without scripts."""

from __future__ import annotations

from collections.abc import Sequence, Set
from datetime import datetime
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trade_once import Fault, Placed, Term, Verdict

WIDTH, LEFT, ROW = 1160, 190, 26
STYLE = """
:root{color-scheme:light dark;--line:#8886;--soft:#8882;--good:#2a7d4f;--bad:#c0392b;--bar:#3f6fb5;--fault:#b8860b}
body{font:15px/1.45 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem} h2{font-size:1.1rem;margin-top:2rem} table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums} .good{color:var(--good)} .bad{color:var(--bad);font-weight:600}
svg{width:100%;height:auto;font:11px system-ui,sans-serif} svg text{fill:currentColor}
"""


class Scale:
    """From a moment to a place on the page."""

    def __init__(self, moments: Sequence[datetime]) -> None:
        self.first = min(moments, default=None)
        self.seconds = max(1.0, (max(moments) - min(moments)).total_seconds()) if moments else 1.0

    def __call__(self, moment: datetime) -> float:
        assert self.first
        share = (moment - self.first).total_seconds() / self.seconds
        return round(LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - 10), 1)


def render(
    verdict: Verdict, faults: Sequence[Fault], terms: Sequence[Term], orders: Sequence[Placed], seed: int
) -> str:
    """Return the page."""
    result = "passed" if verdict.passed else "failed"
    bad = [text for texts in verdict.violations.values() for text in texts]
    return "".join(
        (
            "<!doctype html><html lang='en'><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width'><title>Trade once: the drill</title>",
            f"<style>{STYLE}</style><h1>Trade once: <span class='{_mark(verdict.passed)}'>{result}</span></h1>",
            f"<p>{verdict.minutes:g} minutes, {verdict.faults} faults, seed {seed}</p>",
            _figures(verdict),
            _list("Problems", verdict.problems),
            _list("Violations", bad),
            "<h2>Timeline</h2>",
            _timeline(faults, terms, orders, {word for text in bad for word in text.split()}),
            "<h2>Faults</h2>",
            _faults(faults),
            "</html>\n",
        )
    )


def _mark(good: bool) -> str:
    return "good" if good else "bad"


def _figures(verdict: Verdict) -> str:
    bars: list[tuple[str, Any, bool]] = [
        ("faults", verdict.faults, True),
        ("orders_sent", verdict.orders_sent, verdict.orders_sent > 0),
        ("orders_filled", verdict.orders_filled, verdict.orders_filled > 0),
        ("duplicate_orders", verdict.duplicate_orders, not verdict.duplicate_orders),
        ("orders_without_lease", verdict.orders_without_lease, not verdict.orders_without_lease),
        ("max_holders_at_once", verdict.max_holders_at_once, verdict.max_holders_at_once == 1),
        ("unmatched_broker_orders", verdict.unmatched_broker_orders, not verdict.unmatched_broker_orders),
        ("orders_late_from_gateway", verdict.orders_late_from_gateway, True),
    ]
    for name in ("takeover_seconds", "handover_seconds", "trading_again_seconds"):
        figures = getattr(verdict, name)
        slow = name == "takeover_seconds" and figures.get("p95", 0) > verdict.takeover_bar_seconds
        bars.append((name, ", ".join(f"{key} {value:g}" for key, value in figures.items()), not slow))
    rows = (f"<tr><td>{name}<td class='n {_mark(good)}'>{value}" for name, value, good in bars)
    return f"<table>{''.join(rows)}</table>"


def _list(title: str, texts: Sequence[str]) -> str:
    if not texts:
        return ""
    items = "".join(f"<li class='bad'>{escape(text)}" for text in texts)
    return f"<h2>{title}</h2><ul>{items}</ul>"


def _timeline(faults: Sequence[Fault], terms: Sequence[Term], orders: Sequence[Placed], bad: Set[str]) -> str:
    """A lane per host with its terms, one with the orders, one with the faults."""
    moments = [order.at for order in orders] + [fault.at for fault in faults if fault.at]
    moments += [fault.trading_at for fault in faults if fault.trading_at]
    if not moments:
        return "<p>Nothing happened.</p>"
    x = Scale(moments)
    hosts = sorted({term.host for term in terms})
    lanes = {name: 8 + number * ROW for number, name in enumerate([*hosts, "orders", "faults"])}
    ends = [later.began for _, later in pairwise(terms)] + [max(moments)]
    parts = [
        f"<text x='4' y='{y + 14}'>{escape(name)}</text><path d='M{LEFT} {y + 20}H{WIDTH - 10}' stroke='var(--line)'/>"
        for name, y in lanes.items()
    ]
    for term, end in zip(terms, ends, strict=True):
        left, right = x(term.began), x(min(term.until, end))
        label = f"epoch {term.epoch} on {term.host}, {term.began:%H:%M:%S} to {term.until:%H:%M:%S} {term.ended}"
        parts.append(_box(left, lanes[term.host] + 3, right - left, "var(--bar)", label))
    for order in orders:
        colour, tall = ("var(--bad)", 22) if order.reference in bad else ("currentColor", 12)
        title = escape(f"{order.reference} at {order.at:%H:%M:%S.%f}")
        place = f"M{x(order.at)} {lanes['orders'] + 18}v-{tall}"
        parts.append(f"<path d='{place}' stroke='{colour}' stroke-width='.7'><title>{title}</title></path>")
    for fault in faults:
        if fault.at:
            left, right = x(fault.at), x(fault.trading_at or max(moments))
            colour = "var(--bad)" if fault.problem or not fault.trading_at else "var(--fault)"
            label = f"{fault.kind} on {fault.target}, {fault.at:%H:%M:%S}"
            parts.append(_box(left, lanes["faults"] + 3, right - left, colour, label))
    return f"<svg viewBox='0 0 {WIDTH} {len(lanes) * ROW + 14}' role='img'>{''.join(parts)}</svg>"


def _box(left: float, top: float, width: float, colour: str, label: str) -> str:
    size = f"width='{max(1.5, width):.1f}' height='14' rx='2'"
    return f"<rect x='{left}' y='{top}' {size} fill='{colour}' fill-opacity='.75'><title>{escape(label)}</title></rect>"


def _faults(faults: Sequence[Fault]) -> str:
    rows = []
    for number, fault in enumerate(faults, 1):
        began = f"{fault.at:%H:%M:%S}" if fault.at else ""
        again = f"{(fault.trading_at - fault.at).total_seconds():.1f} s" if fault.at and fault.trading_at else "–"
        cells = (fault.kind, fault.target, began, fault.expect, again, fault.problem or fault.detail)
        mark = "" if fault.trading_at and not fault.problem else " class='bad'"
        rows.append(f"<tr{mark}><td class='n'>{number}{''.join(f'<td>{escape(str(cell))}' for cell in cells)}")
    head = "".join(f"<th>{name}" for name in ("", "kind", "host", "at", "lease", "orders again after", "seen"))
    return f"<table><tr>{head}{''.join(rows)}</table>"
