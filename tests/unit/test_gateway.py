"""The rules of the gateways' variables."""

from __future__ import annotations

import pytest

from ansible_collections.pst.platform.plugins.module_utils import gateway
from ansible_collections.pst.platform.plugins.module_utils.inventory_check import Contract, Host, Site

WINDOW = {"start": "00:01", "stop": "19:45", "days": ["Mon", "Tue", "Wed", "Thu", "Fri"]}
OPTIONS = {
    "ib_gateway_program": {"type": "str", "default": "simulator"},
    "ib_gateway_simulator_source": {"type": "path", "default": "/simulator"},
    "ib_gateway_trading_mode": {"type": "str", "default": "paper"},
    "ib_gateway_accounts": {"type": "list", "default": []},
    "ib_gateway_trading_window": {"type": "dict", "default": WINDOW},
    "ib_gateway_auto_restart_time": {"type": "str", "default": "11:45 PM"},
    "ib_gateway_cold_restart_time": {"type": "str", "default": "07:05"},
}
CONTRACT = Contract({}, {}, {gateway.ROLE: OPTIONS})


def settings(**changes):
    return {key: option["default"] for key, option in OPTIONS.items()} | {
        f"ib_gateway_{key}": value for key, value in changes.items()
    }


def problems(production=True, time_zone="America/New_York", **changes):
    found = gateway.findings(settings(**changes), production=production, time_zone=time_zone)
    return [str(finding) for finding in found]


def test_the_defaults_are_fine():
    assert problems() == problems(production=False) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"auto_restart_time": "7:30 PM"},
            "ib_gateway_auto_restart_time: seen 7:30 PM; wanted a time outside ib_gateway_trading_window, 00:01",
        ),
        ({"auto_restart_time": "12:01 AM"}, "seen 12:01 AM; wanted a time outside"),
        ({"auto_restart_time": "19:50"}, "wanted a time of day such as 11:45 PM"),
        ({"auto_restart_time": "", "auto_logoff_time": "12:30 PM"}, "ib_gateway_auto_logoff_time: seen 12:30 PM"),
        ({"auto_logoff_time": "11:50 PM"}, "wanted one of them"),
        ({"cold_restart_time": "7:05"}, "ib_gateway_cold_restart_time: seen 7:05; wanted a time of day"),
        (
            {"cold_restart_time": "00:30"},
            "seen 00:30 on Sundays in America/New_York; wanted a time after 01:00 in America/New_York",
        ),
        ({"trading_window": {**WINDOW, "days": ["Sun"]}}, "seen 07:05 on Sundays; wanted a time outside"),
        ({"trading_window": {**WINDOW, "days": ["Sunday"]}}, "ib_gateway_trading_window.days: seen Sunday"),
        ({"trading_window": {**WINDOW, "start": "1"}}, "ib_gateway_trading_window.start: seen 1; wanted a time"),
        ({"trading_window": {**WINDOW, "stop": "00:00"}}, "stop: seen 00:00; wanted a time after its start 00:01"),
        ({"accounts": ["U1234567"]}, "ib_gateway_accounts: seen U1234567; wanted paper accounts"),
        ({"trading_mode": "live", "accounts": ["DU1234567"]}, "seen DU1234567; wanted live accounts"),
        ({"program": "ibgateway", "version": ""}, "ib_gateway_version: seen nothing; wanted a value, since"),
        ({"simulator_source": ""}, "ib_gateway_simulator_source: seen nothing"),
        ({"installer_sha256": "abc"}, "ib_gateway_installer_sha256: seen abc; wanted a SHA-256"),
        ({"port": 4001, "api_port": 4001}, "ib_gateway_api_port: seen 4001, which is ib_gateway_port"),
        ({"probe_client_id": 999, "watch_client_id": 999}, "ib_gateway_watch_client_id: seen 999, which is"),
    ],
)
def test_what_is_wrong_is_told_with_key_value_and_want(changes, problem):
    found = problems(**changes)
    assert any(problem in text for text in found), found


@pytest.mark.parametrize(
    ("changes", "fine"),
    [
        ({"auto_restart_time": "7:45 PM"}, True),
        ({"auto_restart_time": "12:00 AM"}, True),
        ({"auto_restart_time": "12:00 PM"}, False),
        ({"auto_restart_time": "12:00 PM", "trading_window": {**WINDOW, "days": []}}, True),
        ({"auto_restart_time": ""}, True),
    ],
)
def test_the_edges_of_the_window(changes, fine):
    assert (problems(**changes) == []) is fine


@pytest.mark.parametrize(
    ("zone", "clock", "early"),
    [
        ("Europe/London", "05:59", True),
        ("Europe/London", "06:01", False),
        ("Asia/Tokyo", "14:30", True),
        ("Asia/Tokyo", "15:30", False),
        ("America/Los_Angeles", "00:30", False),
        ("no zone", "00:30", False),
    ],
)
def test_the_weekly_login_comes_after_the_brokers_week(zone, clock, early):
    assert gateway.before_the_week_ends(clock, zone) is early


def test_a_live_account_has_no_place_outside_production():
    found = problems(production=False, trading_mode="live", accounts=["U1234567"])
    because = "because site_production is false"
    assert found == [
        f"ib_gateway_trading_mode: seen live; wanted paper, {because}",
        f"ib_gateway_accounts: seen U1234567; wanted paper accounts, which begin with D, {because}",
    ]


def site(name, *hosts, **shared):
    def host(name, values):
        return Host(name, frozenset({"ib_gateways", f"site_{name}"}), {}, {**shared, **values})

    return Site(f"site_{name}", tuple(host(one, values) for one, values in hosts))


def test_one_user_name_has_one_active_gateway_over_all_sites():
    user = {"ib_gateway_username": "me"}
    one = site("a", ("a-1", {**user, "ib_gateway_active": True}), ("a-2", {**user, "ib_gateway_active": False}))
    assert list(gateway.check_sites([one], CONTRACT)) == []
    two = site("b", ("b-1", {**user, "ib_gateway_active": "yes"}))
    (problem,) = gateway.check_sites([one, two], CONTRACT)
    assert str(problem) == (
        "ib_gateway_active [a-1, b-1]: seen true on 2 hosts with one ib_gateway_username; "
        "wanted true on one host: the broker allows one session"
    )
    other = site("b", ("b-1", {"ib_gateway_username": "you", "ib_gateway_active": True}))
    assert list(gateway.check_sites([one, other], CONTRACT)) == []


def test_the_first_host_of_the_tier_is_active_by_default():
    user = {"ib_gateway_username": "me"}
    assert list(gateway.check_sites([site("a", ("a-2", user), ("a-1", user))], CONTRACT)) == []
    (problem,) = gateway.check_sites([site("a", ("a-1", user), ("a-2", {**user, "ib_gateway_active": True}))], CONTRACT)
    assert problem.key == "ib_gateway_active"


def test_the_rules_of_a_site_name_the_host():
    bad = site("a", ("a-1", {"ib_gateway_trading_mode": "live", "site_production": False}), site_production=False)
    (problem,) = gateway.check_sites([bad], CONTRACT)
    assert str(problem).startswith("ib_gateway_trading_mode [a-1]: seen live; wanted paper")
