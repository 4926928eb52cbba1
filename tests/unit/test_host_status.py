"""The table of what runs: units, versions and states as rows, and what only all hosts together can tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.pst.platform.plugins.module_utils import host_status as status
from ansible_collections.pst.platform.plugins.module_utils.inventory_check import OPTIONAL_TIERS, REQUIRED_TIERS
from ansible_collections.pst.platform.plugins.module_utils.table import render

GROUPS = {
    "all": ["lb1", "lb2", "m1", "m2", "m3", "r1"],
    "site_t": ["lb1", "lb2", "m1", "m2", "m3", "r1"],
    "load_balancers": ["lb1", "lb2"],
    "mongodb": ["m1", "m2", "m3"],
    "redis": ["r1"],
}
ACTIVE = status.Unit("loaded", "active", "running", "enabled", "2026-11-22 12:00:00")
STOPPED = status.Unit("loaded", "inactive", "dead", "disabled", "")
FAILED = status.Unit("loaded", "failed", "failed", "enabled", "")
ABSENT = status.Unit("not-found", "inactive", "dead", "", "")
CONTEXT = status.Context("192.0.2.1")


def answers(_context: status.Context) -> status.Answer:
    return status.Answer("primary", "6.0.5")


def refuses(_context: status.Context) -> status.Answer:
    raise status.ProbeError("no answer to the handshake")


@pytest.mark.parametrize(
    ("unit", "service", "state", "ok"),
    [
        (ACTIVE, status.Service("t", "s", "s.service", probe=answers), "primary", True),
        (ACTIVE, status.Service("t", "s", "s.service"), "active", True),
        (ACTIVE, status.Service("t", "s", "s.service", probe=refuses), "active, but no answer to the handshake", False),
        (FAILED, status.Service("t", "s", "s.service", probe=answers), "failed (failed)", False),
        (STOPPED, status.Service("t", "s", "s.service"), "inactive (dead)", False),
        (STOPPED, status.Service("t", "s", "s.service", optional=True), "standby", True),
        (FAILED, status.Service("t", "s", "s.service", optional=True), "failed (failed)", False),
        (ABSENT, status.Service("t", "s", "s.service"), "not installed", False),
    ],
)
def test_the_state_of_a_service(unit: status.Unit, service: status.Service, state: str, *, ok: bool) -> None:
    row = status.row_of("h", service, unit, {}, CONTEXT)
    assert (row.state, row.ok) == (state, ok)


def test_the_gate_of_a_standby_gateway_stands_by_with_it() -> None:
    gate = status.Service("t", "gate", "g.service", optional=True, follows="s.service")
    down = status.Unit("loaded", "inactive", "dead", "enabled", "")
    for gateway, state in ((STOPPED, "standby"), (ACTIVE, "inactive (dead)")):
        unit = status.unit_of(gate, {"g.service": down, "s.service": gateway})
        assert status.row_of("h", gate, unit, {}, CONTEXT).state == state


def test_a_service_tells_its_version_and_else_its_package_does() -> None:
    service = status.Service("t", "s", "s.service", package="p")
    asked = status.Service("t", "s", "s.service", package="p", probe=answers)
    assert status.row_of("h", service, ACTIVE, {"p": "2.6.12"}, CONTEXT).version == "2.6.12"
    assert status.row_of("h", asked, ACTIVE, {"p": "2.6.12"}, CONTEXT).version == "6.0.5"


def test_one_slot_may_be_empty_but_not_both() -> None:
    blue = status.Row("h", "app_nodes", "app blue", "ready")
    green = status.Row("h", "app_nodes", "app green", "standby")
    assert all(row.ok for row in status.with_slots([blue, green]))
    assert not any(row.ok for row in status.with_slots([replace(blue, state="not installed"), green]))


def test_units_are_read_in_the_order_of_the_question() -> None:
    output = (
        "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\nActiveEnterTimestamp=@1700000000\n"
        "\nLoadState=not-found\nActiveState=inactive\nSubState=dead\nUnitFileState=\nActiveEnterTimestamp=\n"
    )
    first, second = status.parse_units(output)
    assert first.since == status.local_time(1700000000)
    assert (second.load, second.since) == ("not-found", "")


@pytest.mark.parametrize(
    ("version", "upstream"),
    [("5:7.0.15-1~deb12u5", "7.0.15"), ("2.6.12-1+deb12u1", "2.6.12"), ("1:9.2p1-2", "9.2p1"), ("4.0", "4.0")],
)
def test_versions_lose_what_debian_adds(version: str, upstream: str) -> None:
    assert status.upstream(version) == upstream


def test_the_state_of_a_redis() -> None:
    assert status.redis_state({"role": "master", "connected_slaves": "2"}) == "master of 2"
    replica = {"role": "slave", "master_link_status": "up", "master_host": "r1.lab.pst.test"}
    assert status.redis_state(replica) == "replica of r1"
    with pytest.raises(status.ProbeError, match=r"link to r1\.lab\.pst\.test is down"):
        status.redis_state(replica | {"master_link_status": "down"})


def test_the_state_of_a_mongod() -> None:
    assert status.mongod_state({"isWritablePrimary": True}) == "primary"
    assert status.mongod_state({"secondary": True, "primary": "m1.lab.pst.test:27017"}) == "secondary of m1"
    assert status.mongod_state({}) is None


def mongod(host: str, state: str) -> dict[str, Any]:
    row = {"host": host, "tier": "mongodb", "service": "mongod", "state": state}
    return {"services": [{**row, "version": "6.0.5", "since": "", "ok": True}]}


def test_a_healthy_tier_needs_no_word() -> None:
    results = {"m1": mongod("m1", "primary"), "m2": mongod("m2", "secondary"), "m3": mongod("m3", "secondary")}
    assert all(row["ok"] for row in status.report(results, GROUPS))


@pytest.mark.parametrize(
    ("states", "seen"),
    [
        (("primary", "primary", "secondary"), "primary is m1, m2; wanted exactly one"),
        (("secondary", "secondary", "secondary"), "primary is nobody; wanted exactly one"),
    ],
)
def test_a_tier_has_one_primary(states: tuple[str, ...], seen: str) -> None:
    results = {host: mongod(host, state) for host, state in zip(("m1", "m2", "m3"), states, strict=True)}
    (bad,) = [row for row in status.report(results, GROUPS) if not row["ok"]]
    assert (bad["host"], bad["state"]) == ("site_t", seen)


def test_a_part_of_a_tier_is_not_judged_as_a_whole() -> None:
    assert all(row["ok"] for row in status.report({"m2": mongod("m2", "secondary")}, GROUPS))


def test_a_host_without_an_answer_is_a_row() -> None:
    results = {"r1": {"unreachable": True, "msg": "Task failed: connection refused"}}
    rows = status.report(results, GROUPS)
    assert rows[0]["state"] == "no answer: connection refused"
    assert not rows[0]["ok"]


def placement(
    *, holds: bool = False, epoch: int | None = None, stays_out: bool = False, problem: str = ""
) -> dict[str, Any]:
    return {"holds": holds, "epoch": epoch, "stays_out": stays_out, "problem": problem}


def test_the_state_of_a_guard() -> None:
    state = status.guard_state(
        {
            "trading": placement(holds=True, epoch=7),
            "strategies": placement(),
            "reports": placement(),
            "operations": placement(stays_out=True),
        }
    )
    assert state == "holds trading (epoch 7); stays out of operations; standby for strategies, reports"
    assert status.held_by(state) == {"trading": True, "strategies": False, "reports": False, "operations": False}
    assert status.held_by("failed (failed)") == {}
    with pytest.raises(status.ProbeError, match="trading: MongoDB: time-out"):
        status.guard_state({"trading": placement(holds=True, problem="MongoDB: time-out")})


def guard(host: str, **placements: bool) -> dict[str, Any]:
    state = status.guard_state({name: placement(holds=holds, epoch=1) for name, holds in placements.items()})
    row = {"host": host, "tier": "app_nodes", "service": "guard", "state": state}
    return {"services": [{**row, "version": "", "since": "", "ok": True}]}


@pytest.mark.parametrize(
    ("holders", "seen"),
    [
        ((True, False), None),
        ((False, False), "held by nobody; wanted exactly one"),
        ((True, True), "held by a1, a2; wanted exactly one"),
    ],
)
def test_a_lease_has_one_holder(holders: tuple[bool, bool], seen: str | None) -> None:
    groups = {"app_nodes": ["a1", "a2"], "site_t": ["a1", "a2"]}
    results = {host: guard(host, trading=holds) for host, holds in zip(("a1", "a2"), holders, strict=True)}
    bad = [(row["service"], row["state"]) for row in status.report(results, groups) if not row["ok"]]
    assert bad == ([("lease trading", seen)] if seen else [])
    assert all(row["ok"] for row in status.report({"a2": results["a2"]}, groups)), "a part of the tier is not judged"


def test_rows_are_in_the_order_of_the_tiers() -> None:
    balancer = {"host": "lb1", "tier": "load_balancers", "service": "haproxy", "state": "answers"}
    results = {"m1": mongod("m1", "secondary"), "lb1": {"services": [balancer]}}
    assert [row["host"] for row in status.report(results, GROUPS)] == ["lb1", "m1"]


def test_every_unit_is_of_a_tier_that_the_inventory_knows() -> None:
    tiers = {service.tier for service in status.SERVICES}
    assert tiers - set(OPTIONAL_TIERS) == {*REQUIRED_TIERS, status.EVERY_HOST}


def test_a_table_is_aligned() -> None:
    assert render(["host", "state"], [{"host": "lb1", "state": "up"}, {"host": "balancer", "state": None}]) == [
        "HOST      STATE",
        "lb1       up",
        "balancer",
    ]
