# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a canary may go on: its errors and its speed, against the limits and against the stable backend.

The figures are the difference of two readings of every balancer (what `pst.platform.haproxy_runtime` returns), summed.

- An error is an answer of class 5xx, a connection that failed (`econ`) or an answer that was none (`eresp`). HAProxy
  counts an error in one of the three. Requests are the answers of all classes plus those two.
- What the true error rate may be is the Wilson interval (95 %, both sides) around errors / requests.
- **breach**, with at least 3 errors of the canary, where the lower end of its interval is above `error_rate_max`, or
  above `error_rate_ratio_max` times the upper end of the stable one's. So 1 or 2 errors are never a breach, and 3
  errors in 100 requests are one at a limit of 1 %. This needs no minimum of requests: a canary that fails
  all is stopped at 3.
- **breach**, with `minimum_requests` (and a latency) on both sides, where the canary's latency is above
  `latency_ratio_max` times the stable one's and also more than `latency_slack_ms` above it.
- **too_few**, where there is no breach and one of the sides has fewer than `minimum_requests`.
- **ok** otherwise.

The latency is the median of samples where there are any; else HAProxy's average response time at the end of the window
(over a server's last 1024 requests, some of them before the window where it had fewer), weighted by requests.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

ANSWERS = ("hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx", "hrsp_other")
FAILURES = ("econ", "eresp")
COUNTERS = (*ANSWERS, *FAILURES, "stot", "wretr")
MINIMUM_ERRORS = 3
Z = 1.96
"""Standard deviations of a two-sided interval of 95 %."""

Reading = Mapping[str, Any]
"""What one balancer said: `servers`, and `pid` where it is known."""


@dataclass(frozen=True)
class Limits:
    """See the module's text. Rates are 0 to 1, ratios 1 or more."""

    error_rate_max: float = 0.01
    error_rate_ratio_max: float = 2.0
    latency_ratio_max: float = 1.5
    latency_slack_ms: float = 20.0
    minimum_requests: int = 100

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Limits:
        """Check the limits given; raise ValueError with all that is wrong."""
        lowest = {"error_rate_ratio_max": 1, "latency_ratio_max": 1, "minimum_requests": 1}
        names = {field.name for field in fields(cls)}
        problems = [f"{name}: is no limit; wanted {', '.join(sorted(names))}" for name in given if name not in names]
        for name in sorted(names & set(given)):
            value, low, high = given[name], lowest.get(name, 0), 1 if name == "error_rate_max" else math.inf
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                problems.append(f"{name}: seen {value!r}, wanted a number from {low} to {high}")
        if problems:
            raise ValueError("canary limits: " + "; ".join(problems))
        return cls(**given)


@dataclass(frozen=True)
class Side:
    """What a backend did in the window, on all balancers together. `retries` is for the reader: it does not decide."""

    requests: int = 0
    errors: int = 0
    latency_ms: float | None = None
    retries: int = 0

    @property
    def rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    def shown(self) -> dict[str, Any]:
        latency = None if self.latency_ms is None else round(self.latency_ms, 1)
        return {
            "requests": self.requests,
            "errors": self.errors,
            "error_rate": round(self.rate, 6),
            "latency_ms": latency,
            "retries": self.retries,
        }


def wilson(errors: int, requests: int) -> tuple[float, float]:
    """Return the ends of the interval in which the true rate is; 0 and 1 where nothing was seen."""
    if not requests:
        return 0.0, 1.0
    rate, square = errors / requests, Z * Z / requests
    middle = rate + square / 2
    half = Z * math.sqrt(rate * (1 - rate) / requests + square / (4 * requests))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def judge(canary: Side, stable: Side, limits: Limits) -> tuple[str, list[str]]:
    """Return ok, breach or too_few, and why (all reasons)."""
    if breaches := [*_error_breaches(canary, stable, limits), *_latency_breaches(canary, stable, limits)]:
        return "breach", breaches
    few = [
        f"{name}: seen {side.requests} requests, wanted {limits.minimum_requests}"
        for name, side in (("canary", canary), ("stable", stable))
        if side.requests < limits.minimum_requests
    ]
    if few:
        return "too_few", few
    return "ok", [
        f"canary: {canary.errors} errors in {canary.requests} requests; stable: {stable.errors} in {stable.requests}"
    ]


def _error_breaches(canary: Side, stable: Side, limits: Limits) -> Iterator[str]:
    if canary.errors < MINIMUM_ERRORS:
        return
    low, high = wilson(canary.errors, canary.requests)[0], wilson(stable.errors, stable.requests)[1]
    seen = f"canary: seen {canary.errors} errors in {canary.requests} requests ({low:.2%} or more)"
    if low > limits.error_rate_max:
        yield f"{seen}, wanted at most {limits.error_rate_max:.2%} (error_rate_max)"
    if low > limits.error_rate_ratio_max * high:
        yield (
            f"{seen}, wanted at most {limits.error_rate_ratio_max:g} times (error_rate_ratio_max) the stable one's: "
            f"{stable.errors} in {stable.requests} ({high:.2%} or less)"
        )


def _latency_breaches(canary: Side, stable: Side, limits: Limits) -> Iterator[str]:
    if min(canary.requests, stable.requests) < limits.minimum_requests:
        return
    if canary.latency_ms is None or stable.latency_ms is None:
        return
    most = max(limits.latency_ratio_max * stable.latency_ms, stable.latency_ms + limits.latency_slack_ms)
    if canary.latency_ms > most:
        yield (
            f"canary: seen {canary.latency_ms:.1f} ms, wanted at most {most:.1f} ms: the stable one's "
            f"{stable.latency_ms:.1f} ms times {limits.latency_ratio_max:g} (latency_ratio_max), or plus "
            f"{limits.latency_slack_ms:g} ms (latency_slack_ms), whichever is more"
        )


def side_of(
    before: Mapping[str, Reading], after: Mapping[str, Reading], backend: str, samples: Sequence[float] = ()
) -> Side:
    """Sum a backend's window over all balancers; raise ValueError where a reading lacks it.

    A balancer that was reloaded in between has begun to count at zero. It is known by another `pid`, or by a counter of
    any of its servers that is less than before; then its window begins at zero.
    """
    missing = [f"{name}: read only once" for name in sorted(set(before) ^ set(after))]
    missing += [f"{name}: has no backend {backend}" for name, one in after.items() if not _servers(one, backend)]
    if missing or not after:
        raise ValueError("canary: " + ("; ".join(missing) or "no balancer was read"))
    requests = errors = retries = 0
    weighted: list[tuple[float, int]] = []
    for balancer, reading in after.items():
        old = {} if was_reset(before[balancer], reading) else _servers(before[balancer], backend)
        for name, server in _servers(reading, backend).items():
            grown = {key: server.get(key, 0) - old.get(name, {}).get(key, 0) for key in COUNTERS}
            answered = sum(grown[key] for key in (*ANSWERS, *FAILURES))
            requests += answered
            errors += sum(grown[key] for key in ("hrsp_5xx", *FAILURES))
            retries += grown["wretr"]
            weighted.append((float(server.get("rtime", 0)), answered))
    latency = statistics.median(samples) if samples else None
    if latency is None and requests:
        latency = sum(value * count for value, count in weighted) / requests
    return Side(requests, errors, latency, retries)


def was_reset(before: Reading, after: Reading) -> bool:
    """Tell whether a balancer began to count anew between two readings."""
    pids = {one["pid"] for one in (before, after) if one.get("pid")}
    if len(pids) > 1:
        return True
    old, new = _servers(before), _servers(after)
    return any(new[name].get(key, 0) < old[name].get(key, 0) for name in old.keys() & new.keys() for key in COUNTERS)


def _servers(reading: Reading, backend: str = "") -> dict[tuple[str, str], Mapping[str, Any]]:
    servers: Sequence[Mapping[str, Any]] = reading["servers"]
    return {(one["backend"], one["name"]): one for one in servers if backend in ("", one["backend"])}


def _renamed(reading: Reading, canary: str, stable: str, servers: Sequence[str]) -> Reading:
    """Return a reading in which the servers that are watched and the others are two backends, canary and stable."""
    sides = [("canary", one) for one in reading["servers"] if one["backend"] == canary and one["name"] in servers]
    sides += [("stable", one) for one in reading["servers"] if one["backend"] == stable and one["name"] not in servers]
    return {**reading, "servers": [{**one, "backend": side} for side, one in sides]}


def verdict(
    before: Mapping[str, Reading],
    after: Mapping[str, Reading],
    canary: str,
    stable: str,
    limits: Mapping[str, Any] | None = None,
    samples: Mapping[str, Sequence[float]] | None = None,
    servers: Sequence[str] = (),
) -> dict[str, Any]:
    """Judge a window from the readings of every balancer at its beginning and its end.

    `canary` and `stable` are names of backends; `samples` are latencies in ms under the keys canary and stable. With
    `servers` the canary is those alone, and no stable one is among them: so it can be some hosts of one backend.
    """
    measured = samples or {}
    if servers:
        before, after = (
            {name: _renamed(one, canary, stable, servers) for name, one in readings.items()}
            for readings in (before, after)
        )
        canary, stable = "canary", "stable"
    one = side_of(before, after, canary, measured.get("canary", ()))
    other = side_of(before, after, stable, measured.get("stable", ()))
    word, reasons = judge(one, other, Limits.of(limits or {}))
    return {"verdict": word, "reasons": reasons, "canary": one.shown(), "stable": other.shown()}
