"""The judge of a canary: what is a breach, what is too little to say, and counters that begin anew."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.pst.platform.plugins.filter.canary import FilterModule
from ansible_collections.pst.platform.plugins.module_utils.canary import Limits, Side, judge, side_of, verdict, wilson

LIMITS = Limits()


def reading(pid: int = 1, **backends: dict[str, int]) -> dict[str, Any]:
    return {"pid": pid, "servers": [{"backend": name, "name": "app1", **values} for name, values in backends.items()]}


NOTHING = {"lb1": reading(green={}, blue={}), "lb2": reading(green={}, blue={})}


@pytest.mark.parametrize(
    ("canary", "stable", "wanted"),
    [
        (Side(100, 0), Side(1900, 0), "ok"),
        (Side(100, 1), Side(1900, 0), "ok"),  # one error is no evidence
        (Side(100, 1), Side(10**6, 0), "ok"),
        (Side(100, 2), Side(10**6, 0), "ok"),
        (Side(100, 3), Side(1900, 0), "breach"),
        (Side(3, 3), Side(0, 0), "breach"),  # one that fails all is stopped at once
        (Side(2, 2), Side(1900, 0), "too_few"),
        (Side(99, 0), Side(1900, 0), "too_few"),
        (Side(100, 0), Side(99, 0), "too_few"),
        (Side(10_000, 80), Side(10_000, 80), "ok"),  # as bad as the other, and under the limit
        (Side(10_000, 80), Side(100_000, 100), "breach"),  # under the limit, but eight times the other
        (Side(10_000, 500), Side(10_000, 500), "breach"),  # both are bad
    ],
)
def test_errors(canary: Side, stable: Side, wanted: str) -> None:
    word, reasons = judge(canary, stable, LIMITS)
    assert (word, bool(reasons)) == (wanted, True)


@pytest.mark.parametrize(
    ("canary", "stable", "wanted"),
    [(15.0, 2.0, "ok"), (23.0, 2.0, "breach"), (149.0, 100.0, "ok"), (151.0, 100.0, "breach"), (None, 100.0, "ok")],
)
def test_latency_is_a_breach_beyond_both_the_ratio_and_the_slack(
    canary: float | None, stable: float, wanted: str
) -> None:
    assert judge(Side(100, 0, canary), Side(100, 0, stable), LIMITS)[0] == wanted


def test_latency_of_few_requests_says_nothing() -> None:
    assert judge(Side(99, 0, 900.0), Side(100, 0, 1.0), LIMITS)[0] == "too_few"


def test_all_breaches_are_named() -> None:
    reasons = judge(Side(1000, 100, 500.0), Side(1000, 0, 10.0), LIMITS)[1]
    text = " ".join(reasons)
    assert all(name in text for name in ("error_rate_max", "error_rate_ratio_max", "latency_ratio_max"))


def test_counters_are_summed_over_balancers_and_errors_counted_once() -> None:
    before = {"lb1": reading(green={"hrsp_2xx": 50}, blue={}), "lb2": reading(green={}, blue={})}
    after = {
        "lb1": reading(green={"hrsp_2xx": 90, "hrsp_5xx": 1, "rtime": 10}, blue={}),
        "lb2": reading(green={"hrsp_2xx": 50, "hrsp_4xx": 3, "econ": 2, "eresp": 4, "wretr": 9, "rtime": 30}, blue={}),
    }
    side = side_of(before, after, "green")
    assert (side.requests, side.errors, side.retries) == (41 + 59, 7, 9)
    assert side.latency_ms == pytest.approx((41 * 10 + 59 * 30) / 100)
    assert side_of(before, after, "green", [1, 2, 30]).latency_ms == 2


@pytest.mark.parametrize("pids", [(1, 1), (None, None), (1, 2)], ids=["counters fell", "no pid", "other process"])
def test_a_reload_starts_the_window_at_zero(pids: tuple[int, int]) -> None:
    grew = {"hrsp_2xx": 600, "stot": 600}
    before = {"lb1": reading(pids[0], green={"hrsp_2xx": 500, "hrsp_5xx": 9, "stot": 509}, blue=grew)}
    after = {"lb1": reading(pids[1], green={"hrsp_2xx": 120, "hrsp_5xx": 1, "stot": 121}, blue={**grew, "stot": 700})}
    side = side_of(before, after, "green")
    assert (side.requests, side.errors) == (121, 1)
    assert side_of(before, after, "blue").requests == 600  # its counters did not fall, but those beside it did


def test_a_server_that_was_added_starts_at_zero() -> None:
    after = {"lb1": reading(green={"hrsp_2xx": 5}, blue={}), "lb2": NOTHING["lb2"]}
    assert side_of({**NOTHING, "lb1": {"pid": 1, "servers": []}}, after, "green").requests == 5


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"lb1": NOTHING["lb1"]}, NOTHING, "lb2: read only once"),
        (NOTHING, {**NOTHING, "lb2": reading(blue={})}, "lb2: has no backend green"),
        ({}, {}, "no balancer was read"),
    ],
)
def test_a_reading_that_is_missing_is_an_error(before: Any, after: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        verdict(before, after, "green", "blue")


def test_the_filter_returns_the_verdict_and_what_it_saw() -> None:
    canary_verdict = FilterModule().filters()["canary_verdict"]
    after = {name: reading(green={"hrsp_2xx": 60}, blue={"hrsp_2xx": 940, "rtime": 7}) for name in NOTHING}
    result = canary_verdict(NOTHING, after, "green", "blue", {"minimum_requests": 120})
    assert result["verdict"] == "ok"
    assert result["canary"] == {"requests": 120, "errors": 0, "error_rate": 0.0, "latency_ms": 0.0, "retries": 0}
    assert result["stable"]["latency_ms"] == 7
    with pytest.raises(AnsibleFilterError) as caught:
        canary_verdict(NOTHING, after, "green", "blue", {"error_rate_max": 2, "latency_ratio_max": True, "patience": 1})
    assert all(
        name in str(caught.value) for name in ("error_rate_max: seen 2", "latency_ratio_max: seen True", "patience")
    )


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_interval_holds_the_rate_seen(a: int, b: int) -> None:
    errors, requests = min(a, b), max(a, b)
    low, high = wilson(errors, requests)
    assert 0 <= low <= high <= 1
    if requests:
        assert low - 1e-9 <= errors / requests <= high + 1e-9


def test_the_interval_is_the_known_one() -> None:
    assert wilson(3, 100) == pytest.approx((0.01025, 0.08452), abs=1e-5)


def test_some_hosts_of_a_backend_are_judged_against_the_others() -> None:
    def readings(bad: int, good: int) -> dict[str, Any]:
        servers = [
            {"backend": "blue", "name": "app1", "hrsp_5xx": bad, "hrsp_2xx": 100},
            {"backend": "blue", "name": "app2", "hrsp_5xx": 0, "hrsp_2xx": good},
        ]
        return {"lb1": {"pid": 1, "servers": servers}}

    seen = verdict(readings(0, 0), readings(20, 500), "blue", "blue", servers=["app1"])
    assert seen["verdict"] == "breach"
    assert (seen["canary"]["errors"], seen["stable"]["requests"]) == (20, 500)
    assert verdict(readings(0, 0), readings(20, 500), "blue", "blue", servers=["app2"])["canary"]["errors"] == 0
