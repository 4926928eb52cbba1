"""Whether the second site could take over: what each line is made of, and which site the lines are about."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ansible_collections.pst.platform.plugins.module_utils import dr

LIMITS = dr.Limits()


def service(host: str, tier: str, name: str, state: str, *, ok: bool = True) -> dict[str, Any]:
    return {"host": host, "tier": tier, "service": name, "state": state, "ok": ok}


def outlook(*, leads: bool, lag: float = 0.1) -> dict[str, Any]:
    return {"leads_here": leads, "leads_there": not leads, "lags": {"db": lag}, "primaries": []}


def site(name: str, *, leads: bool) -> dict[str, dict[str, Any]]:
    gateway = "answers" if leads else "standby"
    lease = {"site": "one", "holder": {"host": "one-app"}}
    guard = {"trading": {"holds": leads}}
    return {
        f"{name}-app": {
            "site": name,
            "tiers": ["app_nodes"],
            "services": [
                service(f"{name}-app", "app_nodes", "app blue", "ready"),
                service(f"{name}-app", "app_nodes", "link", "active, but refused", ok=leads),
            ],
            "trading": {"leases": {"trading": lease}, "guard": guard},
            "slots": {"trading": "blue", "slots": {"blue": {"version": "7"}}},
        },
        f"{name}-db": {"site": name, "tiers": ["mongodb"], "services": [], "outlook": outlook(leads=leads)},
        f"{name}-gw": {
            "site": name,
            "tiers": ["ib_gateways"],
            "services": [service(f"{name}-gw", "ib_gateways", "gateway", gateway)],
            "endpoints": {"broker:1": 0},
        },
    }


@pytest.fixture
def seen() -> dict[str, dict[str, Any]]:
    return site("one", leads=True) | site("two", leads=False)


def verdicts(seen: dict[str, dict[str, Any]], **more: Any) -> dict[str, str]:
    """The lines that say no, with the value seen."""
    return {row["check"]: row["value"] for row in dr.readiness(seen, LIMITS, **more) if not row["ok"]}


def test_a_second_site_that_is_well_is_ready(seen: dict[str, dict[str, Any]]) -> None:
    rows = dr.readiness(seen, LIMITS)
    assert verdicts(seen) == {}
    assert rows[0]["value"] == "one, two"
    assert {row["area"] for row in rows} == {
        "sites", "infrastructure", "replication", "application", "trading", "external", "one",
    }  # fmt: skip
    assert all({"value", "limit", "verdict"} <= row.keys() for row in rows)


def test_the_lines_are_about_the_other_site_after_a_promotion(seen: dict[str, dict[str, Any]]) -> None:
    turned = site("one", leads=False) | site("two", leads=True)
    for name in ("one-app", "two-app"):
        turned[name]["trading"]["leases"]["trading"]["site"] = "two"
    assert dr.readiness(turned, LIMITS)[0]["value"] == "two, one"
    assert verdicts(turned) == {}


def test_a_lost_first_site_is_no_reason_against_it(seen: dict[str, dict[str, Any]]) -> None:
    for name in ("one-app", "one-db", "one-gw"):
        seen[name] = {"site": "one", "tiers": seen[name]["tiers"], "reason": "no route"}
    assert verdicts(seen) == {}


@pytest.mark.parametrize(
    ("host", "change", "check"),
    [
        ("two-db", {"outlook": outlook(leads=False, lag=11)}, "MongoDB behind"),
        ("two-db", {"services": None}, "hosts that answer"),
        (
            "two-app",
            {"services": [service("two-app", "app_nodes", "app blue", "sick", ok=False)]},
            "nodes that are ready",
        ),
        ("two-app", {"slots": {"trading": "blue", "slots": {"blue": {"version": "6"}}}}, "release that would trade"),
        ("two-app", {"trading": {"leases": {"t": {"site": "two"}}, "guard": {}}}, "leases may be taken at"),
        ("two-app", {"trading": {"leases": {}, "guard": {"t": {"holds": True}}}}, "held where it stands by"),
        ("two-app", {"trading": {"leases": {}, "guard": None}}, "guards that wait"),
        ("two-gw", {"services": [service("two-gw", "ib_gateways", "gateway", "answers")]}, "gateways logged out"),
        ("two-gw", {"endpoints": {"broker:1": 124}}, "reached"),
    ],
)
def test_each_line_says_no(seen: dict[str, dict[str, Any]], host: str, change: dict[str, Any], check: str) -> None:
    seen[host] |= change
    assert check in verdicts(seen)


def test_sites_that_cannot_be_told_apart_are_not_ready(seen: dict[str, dict[str, Any]]) -> None:
    both = copy.deepcopy(seen)
    both["one-db"]["outlook"]["leads_there"] = both["two-db"]["outlook"]["leads_here"] = True
    assert "broken off" in verdicts(both)["which one leads"]
    assert dr.readiness(both, LIMITS, "two") == [], "a run that resumes has proven it before"
    split = copy.deepcopy(seen)
    split["two-db"]["outlook"] = outlook(leads=True)
    assert "one-db says one; two-db says two" in verdicts(split, to="two")["which one leads"]
    assert "give both inventories" in verdicts(site("one", leads=True))["which one leads"]


def test_a_site_that_leads_already_needs_no_proof(seen: dict[str, dict[str, Any]]) -> None:
    assert dr.readiness(seen, LIMITS, "one") == []


def test_what_may_be_lost() -> None:
    heard = [
        {"host": "a", "applied": "2026-01-05T09:30:02.000+00:00", "seconds_ago": 12.5},
        {"host": "b", "applied": "", "seconds_ago": None},
        {"host": "mine", "applied": "2026-01-05T09:31:00.000+00:00", "seconds_ago": 0.1},
    ]
    found = dr.loss("2026-01-05T09:30:00.500+00:00", heard, ["a", "b"])
    assert (found["known_s"], found["unknown_s"]) == (1.5, 12.5)
    assert dr.loss("2026-01-05T09:30:03.000+00:00", heard, ["a", "b"])["known_s"] == 0
    assert dr.loss("2026-01-05T09:30:03.000+00:00", [], ["a"])["unknown_s"] is None


def steps(**seconds: float) -> list[dict[str, str]]:
    """Steps one after another, with what comes before each."""
    found, at = [], 0.0
    for name, took in seconds.items():
        at += took
        found.append(
            {"step": name.replace("_", " ").replace("brokers", "broker's"), "at": f"2026-01-05T09:00:{at:09.6f}"}
        )
    return found


def test_a_rehearsal_estimates_what_a_failover_takes() -> None:
    took = steps(copy_the_data=0, force_MongoDB=9, a_write_by_the_application=5.5, the_leases=2, prove=1, done=7)
    before = {"steps": steps(the_brokers_session=0, the_leases=12, done=1)}
    older = {"steps": [{"step": "the broker's session", "at": "2025-01-05T09:00:00"}, *steps(done=0)]}
    found = dr.rehearsal(took, [before, {}, {"steps": []}])
    assert [step["s"] for step in found["steps"]] == [9, 5.5, 2, 1, 7, 0]
    assert (found["estimated_rto_s"], found["session_s"]) == (20.5, 12)
    assert dr.rehearsal(took, [older, before])["session_s"] == 12
    assert dr.rehearsal(took, [])["estimated_rto_s"] == 8.5


def test_a_rehearsal_that_was_broken_off_estimates_nothing() -> None:
    found = dr.rehearsal(steps(copy_the_data=0, force_MongoDB=9), [])
    assert found["estimated_rto_s"] is None
    assert found["not_rehearsed"] == [dr.SESSION, *dr.REHEARSED]
    assert dr.rehearsal([], [])["steps"] == []


def test_answers_of_a_copy_are_compared_by_their_numbers() -> None:
    def asked(what: str, own: dict[str, Any], copied: dict[str, Any], status: int = 200) -> list[dict[str, Any]]:
        return [
            {"item": [what, 8080], "status": 200, "json": own},
            {"item": [what, 8082], "status": status, "json": copied},
        ]

    found = dr.answers(
        [
            *asked("version", {"release": "7", "colour": "blue"}, {"release": "7", "colour": "green"}),
            *asked("processes", {"processes": [1, 2]}, {"processes": [1]}),
            *asked("orders", {"broker": [1, 2]}, {"broker": [1]}),
            *asked("positions", {"contract": [1]}, {"contract": [1]}, 503),
        ]
    )
    assert {row["what"]: row["same"] for row in found} == {
        "version": True,
        "processes": False,
        "orders": True,
        "positions": False,
    }
    assert found[2]["own"] == {"broker": 2}
