"""The rules of the role trading, each broken once, and the tables that the role renders from its variables."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from test_inventory_check import Inventory, change, make_site, validate

from ansible_collections.pst.platform.plugins.module_utils import inventory_check, trading

SPECS = yaml.safe_load((ROOT / "roles/trading/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
    "options"
]
DEFAULTS = yaml.safe_load((ROOT / "roles/trading/defaults/main.yml").read_text())
NODES = ["app1", "app2", "app3"]
GOOD: dict[str, Any] = {
    **{key: value for key, value in DEFAULTS.items() if "{{" not in str(value)},
    "trading_broker_account": "DU1234567",
    "trading_parquet_shared": True,
    "trading_placements": {"trading": ["app1", "app2"], "strategies": ["app2"], "operations": ["app3", "app1"]},
    "trading_strategies": [
        {"name": "momentum_strategy", "capital_weight": 0.4, "risk_limit": 0.02},
        {"name": "mean_reversion_strategy", "capital_weight": 0.3, "risk_limit": 0.015},
        {"name": "carry_strategy", "capital_weight": 0.3, "risk_limit": 0.015},
    ],
}


def told(settings: dict[str, Any], *, production: bool = True) -> list[str]:
    found = trading.findings(
        settings, production=production, nodes=NODES, reserved_ids=[("ib_gateway_probe_client_id", 999)]
    )
    return [str(finding) for finding in found]


def process(settings: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (item for item in settings["trading_processes"] if item["name"] == name)
    return found


def extra(name: str, **keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda s: s.update(trading_processes_extra=[{"name": name, **keys}])


def weights(*numbers: float) -> Callable[[dict[str, Any]], object]:
    def change_weights(settings: dict[str, Any]) -> None:
        for strategy, number in zip(settings["trading_strategies"], numbers, strict=True):
            strategy["capital_weight"] = number

    return change_weights


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no account": (
        lambda s: s.update(trading_broker_account=""),
        "trading_broker_account: seen ''; wanted the account",
    ),
    "dotted directory": (
        lambda s: s.update(trading_parquet_store="/srv/pst.d/parquet"),
        "trading_parquet_store: seen /srv/pst.d/parquet; wanted a path without a dot",
    ),
    "relative directory": (
        lambda s: s.update(trading_backtest_directory="private.backtests"),
        "trading_backtest_directory: seen private.backtests; wanted an absolute path",
    ),
    "weights above 1": (
        weights(0.5, 0.3, 0.3),
        "trading_strategies.capital_weight: seen 0.5 + 0.3 + 0.3 = 1.1; wanted weights that add up to 1",
    ),
    "weights that miss 1 by little": (weights(0.4, 0.3, 0.3 + 2e-9), "= 1.000000002; wanted weights that add up to 1"),
    "a weight of nothing": (weights(0.7, 0, 0.3), "mean_reversion_strategy.capital_weight: seen 0; wanted above 0"),
    "one strategy twice": (
        lambda s: s["trading_strategies"][1].update(name="momentum_strategy"),
        "trading_strategies.name: seen momentum_strategy 2 times; wanted names that differ",
    ),
    "no strategy": (lambda s: s.update(trading_strategies=[]), "trading_strategies: seen no strategy"),
    "risk above 1": (
        lambda s: s["trading_strategies"][0].update(risk_limit=2),
        "trading_strategies.momentum_strategy.risk_limit: seen 2; wanted above 0, at most 1",
    ),
    "unknown placement": (
        lambda s: process(s, "run_systems").update(placement="strategy"),
        "run_systems.placement: seen strategy; wanted one of trading, strategies, operations (did you mean",
    ),
    "orders from another placement": (
        extra("run_stack_handler", placement="strategies"),
        "trading_processes.run_stack_handler.placement: seen strategies; wanted trading: the gate",
    ),
    "unknown host": (
        lambda s: s["trading_placements"].update(trading=["app11"]),
        "trading_placements.trading: seen app11; wanted hosts of the group app_nodes in this site (did you mean app1?)",
    ),
    "a placement without a host": (
        lambda s: s["trading_placements"].update(operations=[]),
        "trading_placements.operations: seen no host",
    ),
    "no placement for orders": (
        lambda s: s["trading_placements"].pop("trading"),
        "trading_placements: seen strategies, operations; wanted trading among them",
    ),
    "many hosts and no shared store": (
        lambda s: s.update(trading_parquet_shared=False),
        "trading_placements: seen app1, app2, app3; wanted one host for all placements, because trading_parquet_shared",
    ),
    "unknown process": (
        extra("run_system", memory_mb=100),
        "_extra.name: seen run_system; wanted a process of trading_processes (did you mean run_systems",
    ),
    "window that passes midnight": (
        extra("run_systems", stop="04:00"),
        "trading_processes.run_systems.stop: seen 04:00; wanted later than the start 20:05",
    ),
    "empty window": (
        extra("run_systems", stop="20:05"),
        "trading_processes.run_systems.stop: seen 20:05; wanted later",
    ),
    "no time": (
        extra("run_systems", start=1205),
        "trading_processes.run_systems.start: seen 1205; wanted HH:MM, in quotes",
    ),
    "no such day": (
        extra("run_systems", days=["Tues"]),
        "trading_processes.run_systems.days: seen Tues; wanted of Mon",
    ),
    "never": (extra("run_systems", days=[]), "trading_processes.run_systems.days: seen no day; wanted some of"),
    "kind": (extra("run_systems", kind="weekly"), "trading_processes.run_systems.kind: seen weekly; wanted service or"),
    "unknown previous": (
        extra("run_systems", previous="run_backup"),
        "run_systems.previous: seen run_backup; wanted the name of a process (did you mean run_backups",
    ),
    "circle": (
        lambda s: s.update(
            trading_processes_extra=[
                {"name": "run_systems", "previous": "run_reports"},
                {"name": "run_reports", "previous": "run_backups"},
                {"name": "run_backups", "previous": "run_systems"},
            ]
        ),
        "trading_processes.previous: seen run_backups after run_systems after run_reports after run_backups; wanted no",
    ),
    "two of one name in process control": (
        extra("run_systems", process_control_name="run_backups"),
        "trading_processes.process_control_name: seen run_backups 2 times",
    ),
    "methods of no process": (
        lambda s: s.update(trading_process_methods={"run_report": {}}),
        "trading_process_methods: seen run_report; wanted a process by its name in process control (did you mean",
    ),
    "methods of no strategy": (
        lambda s: s.update(trading_process_methods={"run_systems": {"momentum": {"max_executions": 2}}}),
        "trading_process_methods.run_systems: seen momentum; wanted a strategy of trading_strategies",
    ),
    "recovery within the range": (
        lambda s: s.update(trading_client_id_count=899),
        "trading_recover_client_id: seen 998; wanted outside the client ids of pysystemtrade, 100 to 998",
    ),
    "probe within the range": (
        lambda s: s.update(trading_client_id_offset=990, trading_client_id_count=10, trading_recover_client_id=5),
        "ib_gateway_probe_client_id: seen 999; wanted outside the client ids of pysystemtrade, 990 to 999",
    ),
    "recovery and probe": (
        lambda s: s.update(trading_recover_client_id=999),
        "trading_recover_client_id: seen 999; wanted another client id than ib_gateway_probe_client_id",
    ),
    "no client id": (lambda s: s.update(trading_client_id_count=0), "trading_client_id_offset: seen 100 to 99; wanted"),
    "renewals too rare": (
        lambda s: s.update(trading_lease_renew_seconds=4.1),
        (
            "trading_lease_renew_seconds: seen 4.1; wanted at most a third of trading_lease_ttl_seconds - "
            "trading_lease_margin_seconds (4)"
        ),
    ),
    "drained too late": (
        lambda s: s.update(trading_lease_drain_after_seconds=12),
        "trading_lease_drain_after_seconds: seen 12; wanted between trading_lease_renew_seconds (2)",
    ),
    "no margin": (
        lambda s: s.update(trading_lease_margin_seconds=0),
        "trading_lease_margin_seconds: seen 0; wanted at",
    ),
}


def test_good_settings_are_good_in_whole_and_in_part() -> None:
    assert told(GOOD) == []
    assert trading.findings({}, production=True, nodes=[]) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_setting_is_refused_with_its_key_what_is_there_and_what_is_wanted(name: str) -> None:
    settings = copy.deepcopy(GOOD)
    break_it, message = BROKEN[name]
    break_it(settings)
    assert [line for line in told(settings) if message in line], told(settings)


def test_a_live_account_trades_on_a_production_site_only() -> None:
    live = GOOD | {"trading_broker_account": "U1234567"}
    assert told(live) == []
    (refusal,) = told(live, production=False)
    assert refusal.startswith("trading_broker_account: seen U1234567; wanted a paper account, which begins with D")
    assert told(GOOD, production=False) == []


def test_a_backup_may_go_to_another_machine() -> None:
    assert told(GOOD | {"trading_offsystem_backup_directory": "backup@nas.example.net:/volume1/pst.bak"}) == []


# The inventory --------------------------------------------------------------------------------------------------------

CONTRACT = inventory_check.Contract(
    site={},
    host={},
    roles={
        ("trading", "main"): SPECS,
        ("ib_gateway", "main"): {"ib_gateway_probe_client_id": {"type": "int", "default": 999}},
    },
)


def with_trading(inventory: Inventory, **values: Any) -> Inventory:
    for name, host in list(inventory.items()):
        if "app_nodes" in host.groups:
            own = {**host.values, "trading_broker_account": "DU1", **values}
            inventory[name] = inventory_check.Host(name, host.groups, own, own, dict.fromkeys(own, "trading.yml:3"))
    return inventory


def problems(inventory: Inventory) -> list[str]:
    return [str(found) for found in trading.check_sites(inventory_check.sites_of(inventory.values()), CONTRACT)]


def test_an_inventory_is_judged_with_the_role_s_own_defaults() -> None:
    assert problems(with_trading(make_site())) == []
    (refusal,) = problems(with_trading(make_site(), trading_recover_client_id=500))
    assert refusal.startswith("trading_recover_client_id [app_nodes of site_test]: seen 500; wanted outside")
    assert refusal.endswith("100 to 989 (trading_client_id_offset, _count) (in trading.yml:3)")


def test_check_tells_the_rules_of_the_role_with_all_the_others() -> None:
    inventory = with_trading(make_site(), trading_lease_ttl_seconds=6)
    found = inventory_check.check(inventory.values(), CONTRACT, validate, (trading.check_sites,))
    assert [problem.where for problem in found if problem.key == "trading_lease_renew_seconds"] == [
        "app_nodes of site_test"
    ]


def test_the_probe_of_the_gateways_is_kept_free() -> None:
    inventory = with_trading(make_site())
    change(inventory, "ib_gateways0", ib_gateway_probe_client_id=150)
    assert [line.partition(":")[0] for line in problems(inventory)] == [
        "ib_gateway_probe_client_id [app_nodes of site_test]"
    ]


def test_two_sites_do_not_take_each_other_s_client_ids() -> None:
    def both(offset: int) -> list[str]:
        other = make_site("site_other", "198.51.100")
        recover = {"trading_recover_client_id": 5000}
        return problems(with_trading(make_site()) | with_trading(other, trading_client_id_offset=offset, **recover))

    assert both(1100) == []
    (meeting,) = [line for line in both(989) if "ranges" in line]
    assert meeting.startswith(
        "trading_client_id_offset [site_other, site_test]: seen 989 to 1878 and 100 to 989; wanted ranges that"
    )


@given(st.dictionaries(st.sampled_from(sorted(SPECS)), st.none() | st.integers() | st.text() | st.lists(st.integers())))
def test_nonsense_is_left_to_the_check_of_types(values: dict[str, Any]) -> None:
    problems(with_trading(make_site(), **values))  # does not raise


# The tables -----------------------------------------------------------------------------------------------------------


def test_the_table_has_pysystemtrade_s_ten_and_what_was_changed() -> None:
    changes = [
        {"name": "run_systems", "memory_mb": 8192},
        {
            "name": "run_mine",
            "function": "private.mine.run",
            "placement": "operations",
            "kind": "daily",
            "start": "10:00",
        },
    ]
    table = {item["name"]: item for item in trading.process_table(GOOD["trading_processes"], changes, memory_mb=512)}
    assert len(table) == 11
    assert table["run_systems"]["memory_mb"] == 8192
    assert table["run_systems"]["function"] == "sysproduction.run_systems.run_systems"
    assert table["run_reports"]["memory_mb"] == 512
    assert table["run_daily_price_updates"]["process_control_name"] == "run_daily_prices_updates"
    assert table["run_mine"]["function"] == "private.mine.run"
    assert table["run_strategy_order_generator"]["rerun"] is False
    assert all(set(item) == set(table["run_mine"]) for item in table.values())


def test_every_key_of_a_process_is_an_option() -> None:
    options = set(SPECS["trading_processes"]["options"])
    assert options == {"name", *trading.PROCESS}
    assert set(SPECS["trading_processes_extra"]["options"]) == options


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["", *"abcdef"])))
def test_circles_are_found_once_and_nothing_else_is(previous: dict[str, str]) -> None:
    found = list(trading.circles(previous))
    for circle in found:
        assert circle[0] == circle[-1] == min(circle)
        assert all(previous[name] == after for name, after in itertools.pairwise(circle))

    def returns(name: str) -> bool:
        seen = previous.get(name, "")
        for _ in previous:
            if seen == name:
                return True
            seen = previous.get(seen, "")
        return False

    assert {name for circle in found for name in circle} == {name for name in previous if returns(name)}
    assert len({frozenset(circle) for circle in found}) == len(found)


# A running site -------------------------------------------------------------------------------------------------------

HOLDER = {"host": "app1", "colour": "blue"}
REVOKED = {"by": "me@app1", "reason": "why"}


@pytest.mark.parametrize(
    ("known", "seen"),
    [
        ({"leases": {"trading": {"holder": HOLDER, "revoked": None}}}, []),
        ({"leases": {"trading": {"holder": None, "revoked": None}}}, ["trading: held by nobody"]),
        ({"leases": {}}, ["trading: held by nobody"]),
        ({"leases": {"trading": {"holder": HOLDER, "revoked": REVOKED}}}, ["trading: revoked by me@app1: why"]),
        ({"leases": None, "problems": ["MongoDB: away"]}, ["MongoDB: away"]),
    ],
)
def test_what_a_running_site_lacks(known: dict[str, Any], seen: list[str]) -> None:
    assert trading.status_problems(json.dumps({"problems": [], **known}), ["trading"]) == seen


def test_an_answer_that_is_none_is_told() -> None:
    assert trading.status_problems("", ["trading"]) == ["pst-trading says nothing"]
    assert trading.status_problems("/etc/pst: no such file", []) == ["/etc/pst: no such file"]
