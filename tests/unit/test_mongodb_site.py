"""One set over two sites: who has votes when, and how they move, against the set that lives in memory."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import test_mongodb as fake
from test_mongodb import APP, HOSTS, ROOT, FakeSet

from ansible_collections.pst.platform.plugins.module_utils import mongodb as m
from ansible_collections.pst.platform.plugins.module_utils import mongodb_site as s

HERE, THERE = HOSTS[:3], HOSTS[3:]
ADMIN = m.Credentials("root", "secret")


def members(hosts: tuple[str, ...]) -> list[m.Member]:
    return [m.Member(host, priority=float(len(hosts) - number)) for number, host in enumerate(hosts)]


def converge(live: FakeSet, *, first: bool, check: bool = False, **changes: Any) -> m.Result:
    """As the run of one site does."""
    own, other = (HERE, THERE) if first else (THERE, HERE)
    spec = m.Spec(
        name="rs",
        members=members(own),
        users=[ROOT, APP],
        settings={"electionTimeoutMillis": 2000 if first else 9000},
        peers=other,
        standby=not first,
        **changes,
    )
    replica_set = m.ReplicaSet(live.connect, live.clock, timeout=10)
    return m.Reconciler(spec, own[0], replica_set, check=check, join_timeout=10).run()


def site(live: FakeSet, *, first: bool, check: bool = False) -> s.TwoSites:
    own, other = (HERE, THERE) if first else (THERE, HERE)
    replica_set = m.ReplicaSet(live.connect, live.clock, timeout=10)
    return s.TwoSites("rs", members(own), other, ADMIN, replica_set, check=check)


def votes(live: FakeSet) -> dict[str, int]:
    assert live.config
    return {member["host"]: m.member_fields(member)["votes"] for member in live.config["members"]}


@pytest.fixture
def live() -> FakeSet:
    return FakeSet()


@pytest.fixture
def both(live: FakeSet) -> FakeSet:
    converge(live, first=True)
    converge(live, first=False)
    return live


def test_the_second_site_joins_without_a_vote_and_both_are_quiet_then(both: FakeSet) -> None:
    assert votes(both) == dict.fromkeys(HERE, 1) | dict.fromkeys(THERE, 0)
    assert both.config
    assert all(not m.member_fields(x)["priority"] for x in both.config["members"] if x["host"] in THERE)
    for first in (True, False):
        result = converge(both, first=first)
        assert (result.changes, result.warnings) == ([], [])


def test_the_first_site_is_made_without_the_second(live: FakeSet) -> None:
    live.down = set(THERE)
    assert converge(live, first=True).changes[0].startswith("initiate")
    assert live.clock.now < 1, "nobody waits for a site that need not be there"
    assert votes(live) == dict.fromkeys(HERE, 1)


def test_the_second_site_never_makes_a_set(live: FakeSet) -> None:
    with pytest.raises(m.MongoError, match="make the set there first"):
        converge(live, first=False)
    live.down = set(HERE)
    with pytest.raises(m.MongoError, match="no answer from db1"):
        converge(live, first=False)
    assert live.config is None
    assert converge(live, first=False, check=True).changes == ["join rs of the other site"]


def test_a_lost_second_site_holds_up_nothing_at_the_first(both: FakeSet) -> None:
    both.down = set(THERE)
    assert converge(both, first=True).changes == []
    health = m.MemberVerbs(HERE[1], ADMIN, m.ReplicaSet(both.connect, both.clock, timeout=1), THERE)
    assert health.health(others=True, max_lag=2).problems == []


@pytest.mark.parametrize("first", [False, True], ids=["to the second", "and back"])
def test_the_lead_moves_and_converging_does_not_move_it_back(both: FakeSet, first: bool) -> None:
    site(both, first=False).take_lead()
    if first:
        site(both, first=True).take_lead()
    own, other = (HERE, THERE) if first else (THERE, HERE)
    assert votes(both) == dict.fromkeys(own, 1) | dict.fromkeys(other, 0)
    assert both.primary in own
    for one in (True, False):
        # The settings are those of the site that leads.
        changes = converge(both, first=one).changes
        assert changes == ([] if first or one else ["set electionTimeoutMillis 2000 -> 9000"])


def test_the_lead_is_taken_without_a_moment_in_which_a_majority_is_elsewhere(both: FakeSet) -> None:
    """From the first vote that the old site loses, no majority is without this site."""
    before = len(both.reconfigurations)
    site(both, first=False).take_lead()
    for config in both.reconfigurations[before:]:
        voters = {x["host"] for x in config["members"] if m.member_fields(x)["votes"]}
        if len(voters & set(HERE)) < len(HERE):
            assert set(THERE) <= voters


def test_a_move_that_is_killed_is_resumed_or_taken_back(both: FakeSet) -> None:
    for stop in range(1, 60):
        both.commands, both.interrupt_after = 0, stop
        try:
            site(both, first=False).take_lead()
        except fake.Killed:
            both.interrupt_after = fake.NEVER
            assert (
                converge(both, first=True).changes == [] or not s.leads(both.config, site(both, first=True).spec).there
            )
            site(both, first=True).take_lead()
            assert votes(both) == dict.fromkeys(HERE, 1) | dict.fromkeys(THERE, 0)
        else:
            both.interrupt_after = fake.NEVER
            break
    assert both.primary in THERE


def test_a_member_that_is_not_in_the_set_is_named(live: FakeSet) -> None:
    converge(live, first=True)
    with pytest.raises(m.MongoError, match=r"db4.*db5.*not in the set"):
        site(live, first=False).take_lead()


def test_a_set_with_a_primary_is_not_forced(both: FakeSet) -> None:
    with pytest.raises(m.MongoError, match="is primary: a set with a primary is not forced"):
        site(both, first=False).force()


def test_the_forced_configuration_has_this_site_alone_and_the_furthest_first() -> None:
    config = {
        "version": 7,
        "members": [{"_id": n, "host": host, "votes": int(host in HERE)} for n, host in enumerate(HOSTS)],
    }
    spec = m.Spec("rs", members(THERE), [ROOT], peers=HERE, standby=True)
    forced = s.forced_config(config, spec, THERE[1])
    assert [member["host"] for member in forced["members"]] == list(THERE)
    assert [member["_id"] for member in forced["members"]] == [3, 4], "a member keeps its number"
    assert all(member["votes"] == 1 for member in forced["members"])
    first, second = (member["priority"] for member in forced["members"])
    assert second > first > 0
    assert forced["version"] > 7 + 1000


def test_the_second_site_leaves_the_set_unless_it_has_votes(both: FakeSet) -> None:
    changes = site(both, first=True)
    changes.remove_peers()
    assert set(votes(both)) == set(HERE)
    converge(both, first=False)
    site(both, first=False).take_lead()
    with pytest.raises(m.MongoError, match="promote this site first"):
        site(both, first=True).remove_peers()


def test_what_a_look_tells(both: FakeSet) -> None:
    both.lags = {THERE[0]: 3}
    outlook = site(both, first=False).look()
    assert (outlook.leads_here, outlook.leads_there, outlook.primaries) == (False, True, [HERE[0]])
    assert outlook.lags == {THERE[0]: 3.0, THERE[1]: 0.0}
    both.down = set(HERE)
    assert site(both, first=False).look().primaries == []


def test_what_was_heard_of_members_that_are_silent() -> None:
    now = datetime.datetime(2026, 1, 5, 9, 30)  # noqa: DTZ001  the driver gives UTC without a zone
    status = {
        "date": now,
        "members": [
            {"name": "me", "self": True, "stateStr": "SECONDARY", "optimeDate": now},
            {
                "name": "gone",
                "health": 0,
                "stateStr": "(not reachable/healthy)",
                "optimeDate": datetime.datetime(1970, 1, 1),  # noqa: DTZ001
                "lastHeartbeatRecv": now - datetime.timedelta(seconds=5),
            },
        ],
    }
    assert list(s.heard(status)) == [s.Heard("gone", "DOWN", "", 5.0)]
