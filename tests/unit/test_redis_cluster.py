"""Redis under Sentinel: what the members say, whom a new host follows, and the switch that loses nothing."""

from __future__ import annotations

import io
import ssl
import time
from dataclasses import dataclass, field, replace

import pytest

from ansible_collections.pst.platform.plugins.filter.redis import redis_first_master, redis_users, redis_words
from ansible_collections.pst.platform.plugins.module_utils import redis_cluster as rc

A, B, C = MEMBERS = ("a.test", "b.test", "c.test")
ACCESS = rc.Access("admin", ("secret",), "/ca")


@dataclass
class FakeCluster:
    """Three Redis and three Sentinels in memory: enough of them to be handed over, and to refuse."""

    master: str = A
    down: set[str] = field(default_factory=set)
    offsets: dict[str, int] = field(default_factory=lambda: {A: 100, B: 90, C: 90})
    links: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=lambda: {A: "master", B: A, C: A})
    refuses: str = ""
    ignores_order: bool = False
    old: bool = False  # a release without SENTINEL DEBUG
    looks_ms: int = 10000
    looked: dict[str, float] = field(default_factory=dict)  # by each Sentinel: the age of its last look, in ms
    cut: set[FakeClient] = field(default_factory=set)
    clients: list[FakeClient] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def connect(self, host: str, port: int, access: rc.Access) -> FakeClient:
        if host in self.down:
            raise ConnectionRefusedError(f"{host} is down")
        self.clients.append(FakeClient(self, host, port))
        return self.clients[-1]

    def cluster(self) -> rc.Cluster:
        return rc.Cluster(MEMBERS, "pst", ACCESS, connect=self.connect)

    def others(self, host: str) -> list[str]:
        return [member for member in MEMBERS if member not in {host, *self.down}]


@dataclass(eq=False)
class FakeClient:
    fake: FakeCluster
    host: str
    port: int

    def close(self) -> None:
        pass

    def certificate(self) -> bytes:
        return b""

    def call(self, *words: str | int) -> rc.Reply:
        fake, command = self.fake, " ".join(map(str, words))
        if self in fake.cut:
            raise ConnectionResetError
        asks = ("SENTINEL MASTER", "SENTINEL GET", "SENTINEL CK", "SENTINEL REPLICAS")
        if command not in ("INFO replication", "SENTINEL DEBUG") and not command.startswith(asks):
            fake.log.append(f"{self.host} {command}")
        if words[0] == "INFO":
            return self.replication()
        if words[0] == "SENTINEL":
            return self.sentinel(command)
        if words[0] == "REPLICAOF":
            fake.roles[self.host] = str(words[1])
        return "OK"

    def sentinel(self, command: str) -> rc.Reply:
        fake = self.fake
        if command.startswith("SENTINEL MASTER"):
            seen = {"config-epoch": 7, "num-other-sentinels": 2, "num-slaves": 2, "flags": "master"}
            return [word for item in seen.items() for word in map(str, item)]
        if command.startswith("SENTINEL GET"):
            return [fake.master, "6379"]
        if command.startswith("SENTINEL DEBUG"):
            if fake.old:
                raise rc.CommandError("ERR Unknown sentinel subcommand 'DEBUG'")
            fake.looks_ms = int(command.split()[3]) if "PERIOD" in command else fake.looks_ms
            return ["INFO-PERIOD", str(fake.looks_ms), "PING-PERIOD", "1000"]
        if command.startswith("SENTINEL REPLICAS"):
            age = fake.looked.get(self.host, 7000.0) + 100  # time passes with each question
            fake.looked[self.host] = age if age <= fake.looks_ms else 0.0
            return [["name", f"r{n}", "info-refresh", str(int(fake.looked[self.host]) + n)] for n in range(2)]
        if command.startswith("SENTINEL FAILOVER"):
            if fake.refuses:
                raise rc.CommandError(fake.refuses)
            if not fake.ignores_order:
                fake.master = B
                fake.roles.update({B: "master", C: B})
                fake.cut.update(client for client in fake.clients if client.host in (B, C) and client.port == 6379)
        return "OK"

    def replication(self) -> str:
        fake = self.fake
        role = fake.roles[self.host]
        if role == "master":
            replicas = [member for member in fake.others(self.host) if fake.roles[member] == self.host]
            lines = [f"slave{n}:ip={name},port=6379,state=online,offset=1,lag=0" for n, name in enumerate(replicas)]
            head = ["role:master", f"connected_slaves:{len(replicas)}", f"master_repl_offset:{fake.offsets[self.host]}"]
            return "\r\n".join(["# Replication", *head, *lines])
        offset = fake.offsets[self.host]
        fake.offsets[self.host] = min(offset + 5, fake.offsets[A])  # it catches up, a little with each question
        link = fake.links.get(self.host, "up")
        return f"role:slave\r\nmaster_host:{role}\r\nmaster_link_status:{link}\r\nslave_repl_offset:{offset}"


# --- replies


def connection_with(data: bytes) -> rc.Connection:
    connection = rc.Connection.__new__(rc.Connection)
    connection._stream = io.BytesIO(data)  # type: ignore[assignment]
    return connection


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"+OK\r\n", "OK"),
        (b":42\r\n", 42),
        (b"$5\r\na\r\nbc\r\n", "a\r\nbc"),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"*2\r\n$1\r\nx\r\n*1\r\n:1\r\n", ["x", [1]]),
    ],
)
def test_replies_are_read(data: bytes, reply: rc.Reply) -> None:
    assert connection_with(data)._read() == reply


def test_an_error_reply_is_an_exception() -> None:
    with pytest.raises(rc.CommandError, match="NOGOODSLAVE"):
        connection_with(b"-NOGOODSLAVE none\r\n")._read()


@pytest.mark.parametrize("data", [b"", b"+OK", b"$5\r\nab", b"HTTP/1.1 400\r\n"])
def test_a_broken_reply_is_a_lost_connection(data: bytes) -> None:
    with pytest.raises((ConnectionError, ValueError)):
        connection_with(data)._read()


# --- health


def test_a_healthy_cluster_has_no_problems() -> None:
    assert rc.problems(FakeCluster().cluster().state(), MEMBERS) == []


def test_a_member_that_is_down_is_named_and_the_others_are_well_without_it() -> None:
    state = FakeCluster(down={C}).cluster().state()
    assert f"{C}: Redis does not answer ({C} is down)" in rc.problems(state, MEMBERS)
    assert rc.problems(state, [A, B]) == []


def test_a_cut_link_and_a_second_master_are_named() -> None:
    fake = FakeCluster(links={B: "down"})
    fake.roles[C] = "master"
    found = "\n".join(rc.problems(fake.cluster().state(), MEMBERS))
    assert f"{B}: follows {A}, link down" in found
    assert f"{C}: is a master, Sentinels name {A}" in found
    assert f"{A}: not in step with it: {C}" in found


def test_without_a_majority_there_is_no_master() -> None:
    watches = {A: rc.Watch(master=A), B: rc.Watch(error="down"), C: rc.Watch(error="down")}
    assert rc.agreed_master(watches) == ""
    assert rc.newest_master(watches) == A


def test_the_newest_configuration_wins() -> None:
    watches = {A: rc.Watch(master=A, epoch=1), B: rc.Watch(master=B, epoch=2), C: rc.Watch(error="down")}
    assert rc.newest_master(watches) == B


def test_a_stranger_among_the_sentinels_is_a_problem() -> None:
    state = FakeCluster().cluster().state()
    watches = {**state.watches, A: replace(state.watches[A], others=3)}
    found = rc.problems(rc.State(state.nodes, watches), MEMBERS)
    assert [line for line in found if "knows 3 other Sentinels" in line]


def test_too_few_replicas_are_a_problem_of_the_master() -> None:
    assert rc.problems(FakeCluster().cluster().state(), MEMBERS, min_replicas=3) == [
        f"{A}: 2 replicas in time, at least 3 wanted"
    ]


# --- whom a host without state follows

EMPTY = rc.Seed(seeded=False)


def test_a_first_install_follows_the_first_member() -> None:
    assert rc.choose_master(B, MEMBERS, dict.fromkeys(MEMBERS, EMPTY)) == A


def test_an_interrupted_first_install_goes_on_with_the_same_master() -> None:
    seeds = {A: EMPTY, B: rc.Seed(True, A), C: EMPTY}
    assert rc.choose_master(A, MEMBERS, seeds) == A
    assert rc.choose_master(C, MEMBERS, seeds) == A


def test_the_sentinels_are_believed_not_the_inventory() -> None:
    assert rc.choose_master(A, MEMBERS, {A: rc.Seed(False, named=C)}) == C


def test_a_wiped_master_does_not_come_back_empty() -> None:
    with pytest.raises(rc.ClusterError, match="would wipe the replicas"):
        rc.choose_master(A, MEMBERS, {A: rc.Seed(False, named=A)})


def test_a_lone_host_cannot_tell_a_first_install_from_a_lost_cluster() -> None:
    with pytest.raises(rc.ClusterError, match=r"b\.test, c\.test is not part of this run"):
        rc.choose_master(A, MEMBERS, {A: EMPTY})


def test_after_a_total_outage_the_members_that_hold_data_decide() -> None:
    full = rc.Seed(True, B, has_data=True)
    assert rc.choose_master(A, MEMBERS, {A: EMPTY, B: full, C: full}) == B


def test_after_a_total_outage_without_its_master_nothing_is_guessed() -> None:
    full = rc.Seed(True, A, has_data=True)
    with pytest.raises(rc.ClusterError, match="start the members that hold data"):
        rc.choose_master(A, MEMBERS, {A: EMPTY, B: full, C: full})


def test_the_operator_decides_only_where_nothing_else_can() -> None:
    full = rc.Seed(True, A, has_data=True)
    assert rc.choose_master(A, MEMBERS, {A: EMPTY, B: full, C: full}, told=B) == B
    assert rc.choose_master(A, MEMBERS, {A: rc.Seed(False, named=C)}, told=A) == C


def test_the_recorded_master_is_the_last_one() -> None:
    assert rc.recorded_master('# x\nreplicaof a.test 6379\nreplicaof "b.test" 6379\n', C) == B
    assert rc.recorded_master("maxmemory 100\n", C) == C


# --- the planned switch


def test_writes_are_held_before_the_order_and_let_go_after_the_old_master_follows() -> None:
    fake = FakeCluster()
    switch = rc.hand_over(fake.cluster(), A, failover_timeout_s=10)
    assert switch is not None
    assert (switch.old, switch.new) == (A, B)
    assert [line.split(maxsplit=1)[1] for line in fake.log] == [
        "SENTINEL DEBUG INFO-PERIOD 50",
        "SENTINEL DEBUG INFO-PERIOD 10000",
        "CLIENT PAUSE 15000 WRITE",
        "SENTINEL FAILOVER pst",
        f"REPLICAOF {B} 6379",
        "CLIENT KILL TYPE normal SKIPME yes",
        "CLIENT UNPAUSE",
    ]
    assert fake.offsets[B] == fake.offsets[C] == 100


def test_the_order_is_given_when_a_look_is_due_just_after_the_promotion() -> None:
    """To the Sentinel that clients ask last, of those with a replica; its last look is as old as it has to be."""
    fake = FakeCluster()
    rc.hand_over(fake.cluster(), A, failover_timeout_s=10)
    assert f"{C} SENTINEL FAILOVER pst" in fake.log
    assert fake.looks_ms == 10000
    assert set(fake.looked) == {C}
    assert 1000 * rc.LOOK_AGE_S <= fake.looked[C] < 1000 * rc.LOOK_AGE_S + 200


def test_a_sentinel_that_cannot_be_timed_is_told_all_the_same() -> None:
    fake = FakeCluster(old=True)
    assert rc.hand_over(fake.cluster(), A, failover_timeout_s=10) is not None
    assert f"{C} SENTINEL FAILOVER pst" in fake.log


def test_a_replica_is_left_alone() -> None:
    fake = FakeCluster()
    assert rc.hand_over(fake.cluster(), B, failover_timeout_s=10) is None
    assert fake.log == []


def test_an_unhealthy_cluster_is_not_switched() -> None:
    fake = FakeCluster(links={C: "down"})
    with pytest.raises(rc.ClusterError, match="link down"):
        rc.hand_over(fake.cluster(), A, failover_timeout_s=10)
    assert fake.log == []


def test_a_refused_order_lets_the_writers_go_on() -> None:
    fake = FakeCluster(refuses="NOGOODSLAVE No suitable replica to promote")
    with pytest.raises(rc.ClusterError, match="NOGOODSLAVE"):
        rc.hand_over(fake.cluster(), A, failover_timeout_s=10)
    assert fake.log[-1] == f"{A} CLIENT UNPAUSE"
    assert fake.roles[A] == "master"


def test_where_it_is_not_known_whether_a_replica_was_promoted_writers_wait_on() -> None:
    fake = FakeCluster()
    connect = fake.connect

    def cut_off(host: str, port: int, access: rc.Access) -> FakeClient:
        client = connect(host, port, access)
        if port == 26379 and any("PAUSE" in line for line in fake.log):
            fake.cut.add(client)
        return client

    with pytest.raises(ConnectionResetError):
        rc.hand_over(replace(fake.cluster(), connect=cut_off), A, failover_timeout_s=10)
    assert not any("UNPAUSE" in line for line in fake.log)


def test_an_order_without_effect_ends_in_time_and_lets_the_writers_go_on() -> None:
    fake = FakeCluster(ignores_order=True)
    with pytest.raises(rc.ClusterError, match="promoted no replica"):
        rc.hand_over(fake.cluster(), A, failover_timeout_s=-1.9)
    assert fake.log[-1] == f"{A} CLIENT UNPAUSE"


def test_waiting_for_health_ends_with_what_is_wrong() -> None:
    with pytest.raises(rc.ClusterError, match=r"b\.test is down"):
        rc.await_health(FakeCluster(down={B}).cluster(), MEMBERS, time.monotonic())


# --- settings


@dataclass
class FakeServer:
    """A Redis that knows settings and users."""

    settings: dict[str, str] = field(default_factory=dict)
    users: dict[str, list[str]] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    served: bytes = b""

    def close(self) -> None:
        pass

    def certificate(self) -> bytes:
        return self.served

    def call(self, *words: str | int) -> rc.Reply:
        match [str(word) for word in words]:
            case ["CONFIG", "GET", "*"]:
                return [word for item in self.settings.items() for word in item]
            case ["CONFIG", "SET", name, value]:
                if name in self.fixed:
                    raise rc.CommandError(f"ERR CONFIG SET failed - can't set immutable config '{name}'")
                self.settings[name] = value
            case ["ACL", "SETUSER", user, *rules]:
                self.users[user] = sorted(set(rules[1:]))
            case ["ACL", "DELUSER", user]:
                del self.users[user]
            case ["ACL", "USERS"]:
                return list(self.users)
            case ["ACL", "GETUSER", user]:
                if user not in self.users:
                    return None
                rules = self.users[user]
                flags: rc.Reply = ["on" if "on" in rules else "off", "sanitize-payload"]
                passwords: rc.Reply = [rule[1:] for rule in rules if rule.startswith("#")]
                commands = " ".join(rule for rule in rules if rule[0] in "+-")
                return ["flags", flags, "passwords", passwords, "commands", commands]
        return "OK"


@pytest.mark.parametrize(
    ("wanted", "live"),
    [("64mb", "67108864"), ("1gb", "1073741824"), ('""', ""), ("YES", "yes"), ("normal 0 0 0", "normal  0 0 0")],
)
def test_two_spellings_of_one_value_do_not_differ(wanted: str, live: str) -> None:
    assert rc.differing({"x": wanted}, {"x": live}) == {}


def test_a_setting_that_redis_does_not_know_is_refused() -> None:
    with pytest.raises(rc.ClusterError, match="no setting maxmemroy"):
        rc.differing({"maxmemroy": "1"}, {"maxmemory": "1"})


def test_settings_are_set_live_and_fixed_ones_reported() -> None:
    server, applied = FakeServer({"maxmemory": "1", "databases": "16", "port": "0"}, fixed=("databases",)), rc.Applied()
    rc.apply_settings(server, {"maxmemory": "2", "databases": "4", "port": "0"}, False, applied)
    assert server.settings == {"maxmemory": "2", "databases": "16", "port": "0"}
    assert applied.changes == ["maxmemory"]
    assert applied.restart == {rc.SERVER_UNIT: ["databases is fixed at start"]}


def test_check_mode_says_what_it_would_set() -> None:
    server, applied = FakeServer({"maxmemory": "1"}, {"old": ["on"]}), rc.Applied()
    rc.apply_settings(server, {"maxmemory": "2"}, True, applied)
    rc.apply_users(server, {"app": "on #aa +get"}, True, applied)
    assert (server.settings, server.users) == ({"maxmemory": "1"}, {"old": ["on"]})
    assert applied.changes == ["maxmemory", "user app", "user old removed"]


def test_users_are_brought_to_their_rules_and_strangers_go() -> None:
    server, applied = FakeServer(users={"app": ["#aa", "+get", "on"], "old": ["on"], "default": []}), rc.Applied()
    wanted = {"default": "off", "app": "on #aa #bb +get"}
    rc.apply_users(server, wanted, False, applied)
    assert applied.changes == ["user app", "user old removed"]
    assert sorted(server.users) == ["app", "default"]
    again = rc.Applied()
    rc.apply_users(server, wanted, False, again)
    assert again.changes == []


def test_the_watch_keeps_its_passwords_in_its_file() -> None:
    text = (
        'sentinel myid 1\nsentinel auth-pass pst "new"\nsentinel auth-pass other old\nsentinel auth-user pst sentinel\n'
    )
    assert rc.recorded_watch(text, "pst") == {"auth-pass": "new", "auth-user": "sentinel"}


def test_a_certificate_that_changed_on_disk_is_noticed(tmp_path: pytest.TempPathFactory) -> None:
    path = f"{tmp_path}/redis.crt"
    with open(path, "w", encoding="ascii") as stream:
        stream.write("comment\n" + ssl.DER_cert_to_PEM_cert(b"new") + ssl.DER_cert_to_PEM_cert(b"ca"))
    assert not rc.serves_old_certificate(FakeServer(served=b"new"), path)
    assert rc.serves_old_certificate(FakeServer(served=b"old"), path)


# --- filters


def test_previous_passwords_stay_valid_beside_the_new_ones() -> None:
    users = redis_users({"app": "+get", "admin": "+@all"}, {"app": "x", "admin": "y"}, {"app": "w"})
    assert users["app"].startswith("on #2d711642b726b044")
    assert users["app"].count("#") == 2
    assert users["admin"].count("#") == 1


def test_settings_are_written_as_redis_writes_them() -> None:
    assert redis_words({"a": True, "b": False, "c": 3, "d": ""}) == {"a": "yes", "b": "no", "c": "3", "d": ""}


def test_the_first_master_comes_from_what_the_run_registered() -> None:
    seed = {"seeded": False, "master": "", "has_data": False, "named": ""}
    hostvars: dict[str, dict[str, object]] = {
        "a": {"__redis_seed": seed},
        "b": {"__redis_seed": seed},
        "c": {"__redis_seed": seed},
    }
    assert redis_first_master(["a", "b", "c"], hostvars, "c", "test") == A
