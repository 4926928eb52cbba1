"""The replica set's logic against a set that lives in memory and enforces the rules that the server enforces."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.pst.platform.plugins.module_utils import mongodb as m

HOSTS = tuple(f"db{n}.example.test:27017" for n in range(1, 6))
ROOT = m.User("root", "secret", frozenset({("root", "admin")}))
APP = m.User("app", "app-secret", frozenset({("readWrite", "production")}))
NEVER = 10_000
NOW = datetime.datetime(2026, 1, 5, 9, 30, tzinfo=datetime.UTC)


class Killed(BaseException):
    """The process dies here."""


class FakeClock:
    """Time that passes only when somebody waits; `then` says what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.then: list[Any] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
        for action in self.then:
            action()


class FakeSet:
    """Five mongods. What one of them refuses in reality is refused here."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.clock.then.append(self.pass_time)
        self.down: set[str] = set()
        self.config: m.Document | None = None
        self.states: dict[str, str] = {}
        self.lags: dict[str, int] = {}
        self.sources: dict[str, str] = {}  # whose oplog a member copies
        self.users: dict[str, dict[str, Any]] = {}
        self.concern: m.Document = {"defaultWriteConcernSource": "implicit"}
        self.fcv = "6.0"
        self.reconfigurations: list[m.Document] = []
        self.interrupt_after = NEVER
        self.commands = 0

    @property
    def primary(self) -> str:
        return next((host for host, state in self.states.items() if state == "PRIMARY"), "")

    def pass_time(self) -> None:
        """Members that copy data finish; a set with a majority and without a primary elects one."""
        for host, state in self.states.items():
            if state == "STARTUP2" and host not in self.down:
                self.states[host] = "SECONDARY"
        self.elect()

    def elect(self, without: str = "") -> None:
        if self.config is None or self.primary:
            return
        electable = [
            x["host"]
            for x in self.config["members"]
            if m.member_fields(x)["priority"] and x["host"] != without and self.states.get(x["host"]) == "SECONDARY"
        ]
        if electable:
            self.states[electable[0]] = "PRIMARY"

    def connect(self, host: str, credentials: m.Credentials | None) -> FakeServer:
        self.commands += 1
        if self.commands > self.interrupt_after:
            raise Killed
        name = HOSTS[0] if host.startswith("localhost") else host
        if name in self.down:
            raise m.UnreachableError(f"{name}: refused")
        if credentials and self.users.get(credentials.user, {}).get("pwd") != credentials.password:
            raise m.CommandError("Authentication failed", m.AUTHENTICATION_FAILED)
        return FakeServer(self, name, local=host.startswith("localhost"), user=credentials.user if credentials else "")


class FakeServer:
    def __init__(self, owner: FakeSet, host: str, *, local: bool, user: str) -> None:
        self.set = owner
        self.host = host
        self.may = bool(user) or (local and not owner.users)

    def close(self) -> None:
        pass

    def command(self, command: Mapping[str, Any]) -> m.Document:
        name = next(iter(command))
        if name != "hello" and not self.may:
            raise m.CommandError("requires authentication", m.UNAUTHORIZED)
        return getattr(self, name)(command) or {"ok": 1}

    def writable(self) -> None:
        if self.set.states.get(self.host) != "PRIMARY":
            raise m.CommandError("not primary", 10107)

    def ping(self, _: Any) -> None: ...

    def hello(self, _: Any) -> m.Document:
        if self.set.config is None or self.host not in self.set.states:
            return {"isWritablePrimary": False, "info": "no config"}
        return {
            "setName": self.set.config["_id"],
            "isWritablePrimary": self.set.primary == self.host,
            **({"primary": self.set.primary} if self.set.primary else {}),
        }

    def replSetInitiate(self, command: Any) -> None:  # noqa: N802
        assert self.set.config is None, "a second set was made"
        self.set.config = command["replSetInitiate"]
        self.set.states = {self.host: "PRIMARY"}

    def replSetGetConfig(self, _: Any) -> m.Document:  # noqa: N802
        return {"config": self.set.config}

    def replSetGetStatus(self, _: Any) -> m.Document:  # noqa: N802
        members = [
            {
                "name": host,
                "stateStr": state,
                "health": int(host not in self.set.down),
                "syncSourceHost": self.set.sources.get(host, ""),
                "optimeDate": NOW - datetime.timedelta(seconds=self.set.lags.get(host, 0)),
            }
            for host, state in self.set.states.items()
        ]
        return {"members": members}

    def replSetReconfig(self, command: Any) -> None:  # noqa: N802
        self.writable()
        old, new = self.set.config, command["replSetReconfig"]
        assert old is not None
        assert new["version"] == old["version"] + 1, "configuration version"
        before = {x["host"] for x in old["members"] if m.member_fields(x)["votes"]}
        after = {x["host"] for x in new["members"] if m.member_fields(x)["votes"]}
        assert len(before ^ after) <= 1, "the server refuses two voters in one step"
        assert len(after) <= m.MAX_VOTERS
        assert len({x["_id"] for x in new["members"]}) == len(new["members"])
        healthy = {host for host, state in self.set.states.items() if state in m.HEALTHY and host not in self.set.down}
        assert len(after & healthy) * 2 > len(after), "a step without a majority"
        own = next((x for x in new["members"] if x["host"] == self.host), None)
        assert own, "the primary removed itself"
        assert m.member_fields(own)["priority"], "the primary made itself unelectable"
        self.set.config = new
        self.set.reconfigurations.append(new)
        hosts = [x["host"] for x in new["members"]]
        self.set.states = {host: self.set.states.get(host, "STARTUP2") for host in hosts}

    def replSetStepDown(self, _: Any) -> None:  # noqa: N802
        self.writable()
        self.set.states[self.host] = "SECONDARY"
        self.set.elect(without=self.host)

    def replSetSyncFrom(self, command: Any) -> None:  # noqa: N802
        assert self.set.states[self.host] != "PRIMARY", "the primary copies from nobody"
        self.set.sources[self.host] = command["replSetSyncFrom"]

    def createUser(self, command: Any) -> None:  # noqa: N802
        self.writable()
        self.set.users[command["createUser"]] = {"pwd": command["pwd"], "roles": command["roles"]}

    def updateUser(self, command: Any) -> None:  # noqa: N802
        self.writable()
        self.set.users[command["updateUser"]].update({k: v for k, v in command.items() if k in {"pwd", "roles"}})

    def dropUser(self, command: Any) -> None:  # noqa: N802
        self.writable()
        del self.set.users[command["dropUser"]]

    def usersInfo(self, _: Any) -> m.Document:  # noqa: N802
        return {"users": [{"user": name, "roles": user["roles"]} for name, user in self.set.users.items()]}

    def getDefaultRWConcern(self, _: Any) -> m.Document:  # noqa: N802
        return self.set.concern

    def setDefaultRWConcern(self, command: Any) -> None:  # noqa: N802
        self.writable()
        self.set.concern = {**command, "defaultWriteConcernSource": "global"}

    def getParameter(self, _: Any) -> m.Document:  # noqa: N802
        return {"featureCompatibilityVersion": {"version": self.set.fcv}}

    def setFeatureCompatibilityVersion(self, command: Any) -> None:  # noqa: N802
        self.writable()
        self.set.fcv = command["setFeatureCompatibilityVersion"]


@pytest.fixture
def live() -> FakeSet:
    return FakeSet()


def spec(*members: m.Member, **changes: Any) -> m.Spec:
    wanted = members or tuple(m.Member(host) for host in HOSTS[:3])
    defaults: dict[str, Any] = {"name": "rs", "users": [ROOT, APP], "settings": {"electionTimeoutMillis": 2000}}
    return m.Spec(**{**defaults, "members": wanted, **changes})


def run(live: FakeSet, wanted: m.Spec | None = None, *, check: bool = False) -> m.Result:
    replica_set = m.ReplicaSet(live.connect, live.clock, timeout=10)
    return m.Reconciler(wanted or spec(), HOSTS[0], replica_set, check=check, join_timeout=10).run()


def live_members(live: FakeSet) -> dict[str, m.Document]:
    assert live.config
    return {x["host"]: m.member_fields(x) for x in live.config["members"]}


def test_first_run_makes_the_set_and_second_run_changes_nothing(live: FakeSet) -> None:
    first = run(live)
    assert first.changes[0] == f"initiate rs on {HOSTS[0]}"
    assert set(live.states.values()) == {"PRIMARY", "SECONDARY"}
    assert live_members(live) == {host: m.Member(host).fields() for host in HOSTS[:3]}
    assert set(live.users) == {"root", "app"}
    assert live.concern["defaultWriteConcern"]["w"] == "majority"
    second = run(live)
    assert (second.changes, second.warnings, second.pending) == ([], [], [])


def test_check_mode_foretells_what_the_run_does(live: FakeSet) -> None:
    foretold = run(live, check=True)
    assert live.config is None
    assert not live.users
    done = run(live)
    assert [c for c in foretold.changes if "add" in c] == [c for c in done.changes if "add" in c]
    assert foretold.after["members"] == done.after["members"]
    assert run(live, check=True).changes == []


@pytest.mark.parametrize("commands", range(1, 35))
def test_a_run_killed_anywhere_is_resumed(live: FakeSet, commands: int) -> None:
    live.interrupt_after = commands
    with pytest.raises(Killed):
        run(live)
    live.interrupt_after = NEVER
    run(live)
    assert live_members(live) == {host: m.Member(host).fields() for host in HOSTS[:3]}
    assert set(live.users) == {"root", "app"}
    assert run(live).changes == []


def test_no_set_is_made_while_a_member_is_silent(live: FakeSet) -> None:
    live.down = {HOSTS[2]}
    with pytest.raises(m.MongoError, match=f"no answer from {HOSTS[2]}"):
        run(live)
    assert live.config is None


def test_no_set_is_made_beside_data_of_an_earlier_one(live: FakeSet) -> None:
    live.users["root"] = {
        "pwd": "secret",
        "roles": ROOT.role_documents(),
    }  # a member whose configuration is not loaded yet
    with pytest.raises(m.MongoError, match="holds data of an earlier set"):
        run(live)


def test_set_of_another_name_is_refused(live: FakeSet) -> None:
    run(live)
    with pytest.raises(m.MongoError, match="belongs to the set rs, wanted other"):
        run(live, spec(name="other"))


def test_silent_new_member_is_reported_and_not_added(live: FakeSet) -> None:
    run(live)
    live.down = {HOSTS[3], HOSTS[4]}
    result = run(live, spec(*(m.Member(host) for host in HOSTS)))
    assert result.pending == [HOSTS[3], HOSTS[4]]
    assert len(live.states) == 3


def test_member_down_in_the_set_does_not_stop_other_work(live: FakeSet) -> None:
    run(live)
    live.down = {HOSTS[2]}
    live.states[HOSTS[2]] = "(not reachable/healthy)"
    assert run(live).changes == []


def test_without_a_majority_nothing_is_changed(live: FakeSet) -> None:
    run(live)
    live.down = {HOSTS[1], HOSTS[2]}
    with pytest.raises(m.MongoError, match="1 of 3 voters healthy"):
        run(live, spec(settings={"electionTimeoutMillis": 5000}))


def test_unnamed_member_stays_unless_removal_is_asked_for(live: FakeSet) -> None:
    run(live)
    one = m.Member(HOSTS[0])
    result = run(live, spec(one))
    assert result.changes == []
    assert HOSTS[1] in result.warnings[0]
    run(live, spec(one, remove_members=True))
    assert list(live_members(live)) == [HOSTS[0]]


def test_nobody_copies_from_a_member_that_goes(live: FakeSet) -> None:
    run(live)
    admin, replica_set = m.Credentials("root", "secret"), m.ReplicaSet(live.connect, live.clock, timeout=5)
    live.sources = {HOSTS[0]: HOSTS[1], HOSTS[1]: HOSTS[0], HOSTS[2]: HOSTS[1]}  # the primary's is an old one
    assert replica_set.unchain(HOSTS[1], HOSTS[0], admin) == [HOSTS[2]]
    assert (live.sources[HOSTS[1]], live.sources[HOSTS[2]]) == (HOSTS[0], HOSTS[0])


def test_a_member_that_cannot_be_told_where_to_copy_from_holds_nothing_up(live: FakeSet) -> None:
    run(live)
    live.sources, live.down = {HOSTS[2]: HOSTS[1]}, {HOSTS[2]}
    replica_set = m.ReplicaSet(live.connect, live.clock, timeout=5)
    assert replica_set.unchain(HOSTS[1], HOSTS[0], m.Credentials("root", "secret")) == []


def test_primary_hands_over_before_it_is_removed(live: FakeSet) -> None:
    run(live)
    others = [m.Member(host) for host in HOSTS[1:4]]
    result = run(live, spec(*others, remove_members=True))
    assert f"{HOSTS[0]} steps down" in result.changes
    assert set(live_members(live)) == set(HOSTS[1:4])


def test_primary_hands_over_before_it_is_demoted(live: FakeSet) -> None:
    run(live)
    run(live, spec(m.Member(HOSTS[0], priority=0), m.Member(HOSTS[1]), m.Member(HOSTS[2])))
    assert live.primary != HOSTS[0]
    assert live_members(live)[HOSTS[0]]["priority"] == 0


def test_passwords_and_roles_follow_the_inventory(live: FakeSet) -> None:
    run(live)
    app = m.User("app", "new", frozenset({("read", "production")}))
    assert run(live, spec(users=[ROOT, app])).changes == ["change pwd, roles of app"]
    assert run(live, spec(users=[ROOT, app])).changes == []
    assert run(live, spec(users=[ROOT, m.User("app", "", present=False)])).changes == ["drop user app"]


def test_administrators_password_needs_the_previous_one(live: FakeSet) -> None:
    run(live)
    new = m.User("root", "new", ROOT.roles)
    with pytest.raises(m.MongoError, match="mongodb_root_password_previous"):
        run(live, spec(users=[new, APP]))
    assert run(live, spec(users=[new, APP], previous_password="secret")).changes == ["change the password of root"]
    assert run(live, spec(users=[new, APP])).changes == []


def test_feature_version_is_left_alone_unless_asked_for(live: FakeSet) -> None:
    live.fcv = "5.0"
    run(live)
    assert live.fcv == "5.0"
    assert run(live, spec(feature_compatibility_version="6.0")).changes == [
        "set the feature compatibility version 5.0 -> 6.0"
    ]


def test_changed_port_is_refused(live: FakeSet) -> None:
    run(live)
    moved = [m.Member(host.replace("27017", "27018")) for host in HOSTS[:3]]
    live.connect, connect = (lambda h, c: connect(h.replace("27018", "27017"), c)), live.connect  # type: ignore[method-assign]
    with pytest.raises(m.MongoError, match="cannot change its port"):
        run(live, spec(*moved))


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ([m.Member(HOSTS[0]), m.Member(HOSTS[0])], "named twice"),
        ([m.Member(HOSTS[0]), m.Member(HOSTS[1])], "wanted an odd number"),
        ([m.Member(HOSTS[0], priority=0)], "none could become primary"),
        ([m.Member(HOSTS[0]), m.Member(HOSTS[1], votes=0)], "wanted 0 with votes 0"),
    ],
)
def test_impossible_sets_are_refused_before_anything_is_asked(members: list[m.Member], error: str) -> None:
    with pytest.raises(m.MongoError, match=error):
        spec(*members)


# One host stays: an inventory that shares none with the live set is another set.
wanted_members = st.lists(st.sampled_from(HOSTS[1:]), unique=True).flatmap(
    lambda others: st.tuples(
        *(
            st.builds(
                lambda host, kind, priority: m.Member(
                    host,
                    votes=int(kind != "silent"),
                    priority=0 if kind in {"silent", "hidden", "passive"} else priority,
                    hidden=kind == "hidden",
                ),
                st.just(host),
                st.sampled_from(["normal", "normal", "passive", "hidden", "silent"]),
                st.sampled_from([1, 2, 5]),
            )
            for host in (HOSTS[0], *others)
        )
    )
)


def possible(members: tuple[m.Member, ...]) -> bool:
    try:
        spec(*members)
    except m.MongoError:
        return False
    return True


@settings(max_examples=50, deadline=None)
@given(first=wanted_members.filter(possible), second=wanted_members.filter(possible))
def test_any_set_reaches_any_other_by_steps_that_the_server_accepts(
    first: tuple[m.Member, ...], second: tuple[m.Member, ...]
) -> None:
    live = FakeSet()
    run(live, spec(*first))
    before = set(live_members(live))
    run(live, spec(*second, remove_members=True))
    assert live_members(live) == {member.host: member.fields() for member in second}
    assert live.primary in {member.host for member in second if member.priority}
    assert run(live, spec(*second, remove_members=True)).changes == []
    for config in live.reconfigurations:
        assert {x["host"] for x in config["members"]} & (before | {member.host for member in second})


def test_lag_and_state_are_health_problems(live: FakeSet) -> None:
    run(live)
    verbs = m.MemberVerbs(HOSTS[0], m.Credentials("root", "secret"), m.ReplicaSet(live.connect, live.clock, timeout=5))
    assert verbs.await_health(others=True, max_lag=2).problems == []
    live.lags[HOSTS[2]] = 30
    assert verbs.await_health(others=True, max_lag=2).problems == [
        f"{HOSTS[2]} is 30 s behind the primary, wanted at most 2 s"
    ]
    live.down.add(HOSTS[1])
    assert f"{HOSTS[1]} is DOWN, wanted PRIMARY or SECONDARY" in verbs.await_health(others=True, max_lag=60).problems


def test_certificate_is_found_behind_the_key() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    pem = f"{key}-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n"
    assert m.first_certificate(pem) == b"\x04\x10A"
    with pytest.raises(m.MongoError, match="no certificate"):
        m.first_certificate("")


def test_members_from_inventory_read_each_hosts_own_variables() -> None:
    hostvars = {"a": {}, "b": {"mongodb_votes": 0}, "c": {"mongodb_priority": 2, "mongodb_tags": {"zone": "z"}}}
    members = m.members_from_inventory(["a", "b", "c"], hostvars, "example.test", 27017)
    assert [x["priority"] for x in members] == [1.0, 0.0, 2.0]
    assert members[2]["host"] == "c.example.test:27017"
    assert members[2]["tags"] == {"zone": "z"}
