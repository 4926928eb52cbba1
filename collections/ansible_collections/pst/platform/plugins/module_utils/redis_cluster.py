"""A Redis cluster under Sentinel: what its members say, what is wrong with it, and the moves that lose nothing.

Plain Python over TLS sockets, so that a host needs nothing but Redis itself. The decisions (`choose_master`,
`agreed_master`, `problems`, `differing`) are functions of values; only `Connection` touches the network.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

Reply = str | int | None | list["Reply"]
T = TypeVar("T")

SERVER_UNIT = "redis-server.service"
SENTINEL_UNIT = "redis-sentinel.service"
HOLD_SPARE_S = 3.0

# While a switch is under way a Sentinel looks at each replica (INFO) once a second, not more often, and so may find the
# promoted one a second after it was promoted. Its clock of 10 to 19 Hz needs three ticks to promote one, so a look that
# comes 0.4 s after the order finds it: the last look before the order has to be 0.6 s old by then.
LOOKS_S = 1.0
LOOK_AGE_S = 0.6
QUICK_LOOKS_MS = 50


# The option that every module of the family takes.
CLUSTER_ARGUMENT: dict[str, Any] = {
    "type": "dict",
    "required": True,
    "options": {
        "members": {"type": "list", "elements": "str", "required": True},
        "master_name": {"type": "str", "required": True},
        "user": {"type": "str", "required": True},
        "passwords": {"type": "list", "elements": "str", "required": True, "no_log": True},
        "ca_file": {"type": "path", "required": True},
        "port": {"type": "int", "default": 6379},
        "sentinel_port": {"type": "int", "default": 26379},
    },
}


class ClusterError(Exception):
    """The cluster is not in a state in which the step is safe, or did not reach the state asked for."""


class CommandError(Exception):
    """The server answered a command with an error."""


# --- Talking -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Access:
    """How to log in. Several passwords may be valid while one is being replaced: the first that works is used."""

    user: str
    passwords: tuple[str, ...]
    ca_file: str
    timeout: float = 3.0


class Client(Protocol):
    def call(self, *words: str | int) -> Reply: ...

    def certificate(self) -> bytes: ...

    def close(self) -> None: ...


class Connection:
    """One connection to a Redis or a Sentinel (RESP2 over TLS, host name verified)."""

    def __init__(self, host: str, port: int, access: Access) -> None:
        context = ssl.create_default_context(cafile=access.ca_file)
        plain = socket.create_connection((host, port), timeout=access.timeout)
        try:
            self._socket = context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        self._stream = self._socket.makefile("rb")
        try:
            self._log_in(access)
        except BaseException:
            self.close()
            raise

    def _log_in(self, access: Access) -> None:
        refusal = CommandError(f"no password for the user {access.user}")
        for password in access.passwords:
            try:
                self.call("AUTH", access.user, password)
            except CommandError as error:
                refusal = error
            else:
                return
        raise refusal

    def call(self, *words: str | int) -> Reply:
        parts = [str(word).encode() for word in words]
        packed = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n%s" % (len(parts), packed))
        return self._read()

    def _read(self) -> Reply:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2].decode(errors="replace")
        if kind == b"+":
            return rest
        if kind == b"-":
            raise CommandError(rest)
        if kind == b":":
            return int(rest)
        length = int(rest)
        if length < 0:
            return None
        if kind == b"$":
            data = self._stream.read(length + 2)
            if len(data) != length + 2:
                raise ConnectionError("the server closed the connection")
            return data[:-2].decode(errors="replace")
        if kind == b"*":
            return [self._read() for _ in range(length)]
        raise ConnectionError(f"not a Redis reply: {line[:40]!r}")

    def certificate(self) -> bytes:
        """The certificate that the server uses now (DER)."""
        return self._socket.getpeercert(binary_form=True) or b""

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()


def pairs(reply: Reply) -> dict[str, str]:
    """A flat list of names and values as a dict."""
    if not isinstance(reply, list):
        raise ConnectionError(f"a list was expected, not {reply!r}")
    words = [str(word) if not isinstance(word, list) else " ".join(map(str, word)) for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


def info(reply: Reply) -> dict[str, str]:
    """The answer of INFO as a dict."""
    return dict(line.split(":", 1) for line in str(reply).splitlines() if ":" in line)


# --- Seeing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """What one Redis says of itself. `error` is why it could not be asked."""

    role: str = ""
    master: str = ""
    link: str = ""
    offset: int = 0
    good_replicas: int = 0
    replicas: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Watch:
    """What one Sentinel says of the cluster."""

    master: str = ""
    epoch: int = 0
    others: int = 0
    replicas: int = 0
    flags: str = ""
    quorum_error: str = ""
    error: str = ""


@dataclass(frozen=True)
class State:
    nodes: dict[str, Node]
    watches: dict[str, Watch]


@dataclass
class Cluster:
    """The members of one site, by the names under which they announce themselves."""

    members: Sequence[str]
    name: str
    access: Access
    port: int = 6379
    sentinel_port: int = 26379
    connect: Callable[[str, int, Access], Client] = Connection
    _retry_s: float = field(default=0.02, repr=False)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Cluster:
        """The cluster that a module's option (CLUSTER_ARGUMENT) describes."""
        access = Access(given["user"], tuple(given["passwords"]), given["ca_file"])
        return cls(given["members"], given["master_name"], access, given["port"], given["sentinel_port"])

    def server(self, member: str) -> Client:
        return self.connect(member, self.port, self.access)

    def sentinel(self, member: str) -> Client:
        return self.connect(member, self.sentinel_port, self.access)

    def ask_all(self, question: Callable[[str], T]) -> dict[str, T]:
        """Ask every member at the same time, so that hosts that are down cost one timeout together."""
        with ThreadPoolExecutor(max_workers=max(1, len(self.members))) as pool:
            return dict(zip(self.members, pool.map(question, self.members), strict=True))

    def state(self) -> State:
        return State(nodes=self.ask_all(self._node), watches=self.watches())

    def watches(self) -> dict[str, Watch]:
        return self.ask_all(self._watch)

    def _node(self, member: str) -> Node:
        try:
            client = self.server(member)
            try:
                seen = info(client.call("INFO", "replication"))
            finally:
                client.close()
        except (OSError, CommandError) as error:
            return Node(error=str(error) or type(error).__name__)
        if seen.get("role") == "master":
            count = int(seen.get("connected_slaves", 0))
            replicas = [dict(part.split("=", 1) for part in seen[f"slave{n}"].split(",")) for n in range(count)]
            return Node(
                role="master",
                offset=int(seen["master_repl_offset"]),
                good_replicas=int(seen.get("min_slaves_good_slaves", count)),
                replicas=tuple(sorted(r["ip"] for r in replicas if r["state"] == "online")),
            )
        return Node(
            role="replica",
            master=seen["master_host"],
            link=seen["master_link_status"],
            offset=int(seen.get("slave_repl_offset", 0)),
        )

    def _watch(self, member: str) -> Watch:
        try:
            client = self.sentinel(member)
            try:
                seen = pairs(client.call("SENTINEL", "MASTER", self.name))
                address = client.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
                quorum_error = ""
                try:
                    client.call("SENTINEL", "CKQUORUM", self.name)
                except CommandError as error:
                    quorum_error = str(error)
            finally:
                client.close()
        except (OSError, CommandError) as error:
            return Watch(error=str(error) or type(error).__name__)
        return Watch(
            master=str(address[0]) if isinstance(address, list) else "",
            epoch=int(seen["config-epoch"]),
            others=int(seen["num-other-sentinels"]),
            replicas=int(seen["num-slaves"]),
            flags=seen["flags"],
            quorum_error=quorum_error,
        )

    def until(self, condition: Callable[[], T | None], deadline: float, what: str) -> T:
        """Ask again until there is an answer; time.monotonic() bounds it."""
        while True:
            answer = condition()
            if answer:
                return answer
            if time.monotonic() >= deadline:
                raise ClusterError(f"timed out: {what}")
            time.sleep(self._retry_s)


def agreed_master(watches: Mapping[str, Watch]) -> str:
    """The master that a majority of all Sentinels names; empty where there is none."""
    named = [watch.master for watch in watches.values() if watch.master]
    return next((name for name in named if named.count(name) > len(watches) // 2), "")


def newest_master(watches: Mapping[str, Watch]) -> str:
    """The master of the newest configuration that any Sentinel knows: the one the others will follow."""
    answers = [watch for watch in watches.values() if watch.master]
    return max(answers, key=lambda watch: watch.epoch).master if answers else ""


# --- Deciding: whom a host without state follows --------------------------------------------------------------------


@dataclass(frozen=True)
class Seed:
    """What a host knows before its services are set up."""

    seeded: bool  # it has replication state of its own
    master: str = ""  # recorded in that state
    has_data: bool = False
    named: str = ""  # by the Sentinels that answered it


def recorded_master(text: str, own_name: str) -> str:
    """The master in a node's state file: the last `replicaof`, else the node itself."""
    lines = (line.split() for line in text.splitlines())
    targets = [words[1] for words in lines if len(words) > 1 and words[0].lower() in ("replicaof", "slaveof")]
    return targets[-1].strip('"') if targets else own_name


def choose_master(own_name: str, members: Sequence[str], seeds: Mapping[str, Seed], told: str = "") -> str:
    """Whom a host without state follows. Raises rather than risk that an empty host becomes master of a full one.

    What the operator said (`told`) decides only where this would raise, so that it may stay in an inventory.
    """
    named = seeds[own_name].named
    if named and named != own_name:
        return named
    if told:
        return told
    if named == own_name:
        raise ClusterError(
            f"the Sentinels name {own_name} as master, but its data is gone: started empty, it would wipe the "
            f"replicas. Let the Sentinels move on (a majority has to be up), or set redis_first_master to the member "
            f"to follow"
        )
    absent = [member for member in members if member not in seeds]
    if absent:
        raise ClusterError(
            f"no Sentinel answers and {', '.join(absent)} is not part of this run: a first install and a lost cluster "
            f"look the same from here. Run for all members, or set redis_first_master to the member to follow"
        )
    seeded = {member: seed for member, seed in seeds.items() if seed.seeded}
    if not any(seed.has_data for seed in seeds.values()):
        return members[0] if not seeded else next(iter(seeded.values())).master
    recorded = {seed.master for seed in seeded.values()}
    if len(recorded) == 1 and recorded <= set(seeded):
        return recorded.pop()
    raise ClusterError(
        f"no Sentinel answers, and the members' own records name {', '.join(sorted(recorded)) or 'no master'} as "
        f"master: start the members that hold data, or set redis_first_master to the member to follow"
    )


# --- Deciding: what is wrong ----------------------------------------------------------------------------------------


def problems(state: State, subject: Collection[str], min_replicas: int = 0) -> list[str]:
    """What keeps the members in `subject` from being a working cluster; one line each, empty when healthy."""
    found: list[str] = []
    master = agreed_master(state.watches)
    if not master:
        views = ", ".join(f"{member}: {watch.master or watch.error}" for member, watch in state.watches.items())
        found.append(f"no majority of Sentinels names one master ({views})")
    wanted_others = len(state.nodes) - 1 if len(subject) == len(state.nodes) else None
    for member in subject:
        found += [f"{member}: {text}" for text in _node_problems(state.nodes[member], member, master, min_replicas)]
        found += [f"{member}: {text}" for text in _watch_problems(state.watches[member], master, wanted_others)]
    if master in subject and not state.nodes[master].error:
        missing = sorted({member for member in subject if member != master} - set(state.nodes[master].replicas))
        if missing:
            found.append(f"{master}: not in step with it: {', '.join(missing)}")
    return found


def _node_problems(node: Node, member: str, master: str, min_replicas: int) -> Iterable[str]:
    if node.error:
        yield f"Redis does not answer ({node.error})"
    elif node.role == "master":
        if member != master:
            yield f"is a master, Sentinels name {master or 'none'}"
        if node.good_replicas < min_replicas:
            yield f"{node.good_replicas} replicas in time, at least {min_replicas} wanted"
    elif node.link != "up" or node.master != master:
        yield f"follows {node.master}, link {node.link}; wanted {master or 'a master'}, link up"


def _watch_problems(watch: Watch, master: str, wanted_others: int | None) -> Iterable[str]:
    if watch.error:
        yield f"Sentinel does not answer ({watch.error})"
    elif watch.master != master:
        yield f"Sentinel names {watch.master}, the majority {master or 'none'}"
    elif watch.quorum_error:
        yield f"Sentinel has no quorum ({watch.quorum_error})"
    elif wanted_others is not None and (watch.others, watch.replicas, watch.flags) != (
        wanted_others,
        wanted_others,
        "master",
    ):
        yield (
            f"Sentinel knows {watch.others} other Sentinels and {watch.replicas} replicas, state {watch.flags}; "
            f"wanted {wanted_others} of each, state master"
        )


# --- Moving: the planned switch -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Switch:
    old: str
    new: str
    held_s: float  # how long writes were held back


class Steady:
    """A client that connects again: a Sentinel disconnects everybody from a node that it reconfigures.

    For commands only that may be given twice.
    """

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client = connect()

    def call(self, *words: str | int) -> Reply:
        try:
            return self._client.call(*words)
        except OSError:
            self._client.close()
            self._client = self._connect()
            return self._client.call(*words)

    def certificate(self) -> bytes:
        return self._client.certificate()

    def close(self) -> None:
        self._client.close()


def hand_over(cluster: Cluster, leaving: str, failover_timeout_s: float, timeout_s: float = 60.0) -> Switch | None:
    """Move the master away from `leaving` without losing a write; None when it is not the master.

    A bare SENTINEL FAILOVER loses writes: the old master goes on acknowledging until it is told. So writes are held
    first (clients wait, they get no error), every replica catches up, and only then the Sentinels are told.
    """
    state = cluster.state()
    if agreed_master(state.watches) != leaving:
        return None
    present = [member for member in cluster.members if not state.nodes[member].error]
    followers = state.nodes[leaving].replicas
    ill = problems(state, present)
    if ill or not followers:
        raise ClusterError("; ".join(ill) or f"{leaving} has no replica that could take over")
    with ExitStack() as stack:
        # The connections are opened before the hold begins, so that it does not include that.
        old = stack.enter_context(closing(Steady(partial(cluster.server, leaving))))
        replicas = {name: stack.enter_context(closing(Steady(partial(cluster.server, name)))) for name in followers}
        first = _await_the_moment(cluster, followers)
        start = time.monotonic()
        new = _switch(cluster, old, replicas, failover_timeout_s, first)
        ordered = time.monotonic()
        # There is a new master: from here the old one must not write again, whatever happens next.
        old.call("REPLICAOF", new, cluster.port)
        with suppress(ClusterError):  # a Sentinel that lags is named below, by what is wrong with the cluster
            cluster.until(lambda: _all_name(cluster, present, new), ordered + HOLD_SPARE_S, "a Sentinel lags")
        old.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        old.call("CLIENT", "UNPAUSE")
        held_s = time.monotonic() - start
    await_health(cluster, present, time.monotonic() + timeout_s)
    return Switch(leaving, new, round(held_s, 3))


def _await_the_moment(cluster: Cluster, followers: Sequence[str]) -> str:
    """Wait until a Sentinel is due to look at the replicas just after it will have promoted one; returns which.

    It is made to look at all of them at once (`SENTINEL DEBUG`, since 7.0), then as often as before. Nothing depends on
    it but how long writes are held: 0.6 s instead of up to 1.5 s.

    The last of them first: in `SENTINEL MASTERS`, which redis-py reads, the one that is told names the old master for
    another second or more, until it has seen every replica follow; clients ask the first of their list.
    """
    for member in reversed(followers):
        try:
            with closing(cluster.sentinel(member)) as sentinel:
                usual = pairs(sentinel.call("SENTINEL", "DEBUG"))["INFO-PERIOD"]
                try:
                    sentinel.call("SENTINEL", "DEBUG", "INFO-PERIOD", QUICK_LOOKS_MS)
                    _until_looked(cluster, sentinel, lambda ages: max(ages) < LOOKS_S / 5)
                finally:
                    sentinel.call("SENTINEL", "DEBUG", "INFO-PERIOD", usual)
                _until_looked(cluster, sentinel, lambda ages: min(ages) >= LOOK_AGE_S)
        except (OSError, CommandError, ClusterError, KeyError):
            continue
        else:
            return member
    return followers[-1]


def _until_looked(cluster: Cluster, sentinel: Client, enough: Callable[[list[float]], bool]) -> None:
    """Wait until the ages (seconds) of what a Sentinel knows of the replicas are such."""

    def looked() -> bool:
        reply = sentinel.call("SENTINEL", "REPLICAS", cluster.name)
        ages = [int(pairs(one)["info-refresh"]) / 1000 for one in reply] if isinstance(reply, list) else []
        return bool(ages) and enough(ages)

    cluster.until(looked, time.monotonic() + 2 * LOOKS_S, "the Sentinel does not look at the replicas")


def _switch(
    cluster: Cluster, old: Client, replicas: Mapping[str, Client], failover_timeout_s: float, first: str
) -> str:
    """Hold the writes of `old` and have a replica promoted; returns which.

    Where it ends without a promotion, writers go on at once. Where it is not known whether there was one, they do not:
    the hold lasts until the Sentinels have given up, or have made the old master a replica.
    """
    start = time.monotonic()
    limit = start + failover_timeout_s + 2
    try:
        old.call("CLIENT", "PAUSE", int((failover_timeout_s + 2 + HOLD_SPARE_S) * 1000), "WRITE")
        written = int(_replication(old)["master_repl_offset"])
        cluster.until(
            lambda: all(int(_replication(c).get("slave_repl_offset", -1)) >= written for c in replicas.values()),
            start + 3,
            "the replicas did not catch up; nothing was switched",
        )
    except BaseException:
        _let_go(old)
        raise
    try:
        _order_failover(cluster, sorted(replicas, key=lambda name: name != first))
        return cluster.until(
            lambda: next((name for name, client in replicas.items() if _is_master(client)), None),
            limit,
            f"the Sentinels promoted no replica within {failover_timeout_s:g} s; the master is where it was",
        )
    except ClusterError:
        _let_go(old)
        raise


def _replication(client: Client) -> dict[str, str]:
    return info(client.call("INFO", "replication"))


def _is_master(client: Client) -> bool:
    try:
        return _replication(client)["role"] == "master"
    except OSError:
        return False


def _let_go(old: Client) -> None:
    with suppress(OSError, CommandError):
        old.call("CLIENT", "UNPAUSE")


def _order_failover(cluster: Cluster, askable: Iterable[str]) -> None:
    """Tell one Sentinel; the next one only where that one certainly was not told."""
    refusal = "no Sentinel could be asked"
    for member in askable:
        try:
            client = cluster.sentinel(member)
        except OSError as error:
            refusal = f"{member}: {error}"
            continue
        try:
            client.call("SENTINEL", "FAILOVER", cluster.name)
        except CommandError as error:
            refusal = f"{member}: {error}"
        else:
            return
        finally:
            client.close()
    raise ClusterError(f"the Sentinels refused the switch ({refusal})")


def _all_name(cluster: Cluster, members: Iterable[str], master: str) -> bool:
    watches = cluster.watches()
    return all(watches[member].master == master for member in members)


def await_health(cluster: Cluster, subject: Collection[str], deadline: float, min_replicas: int = 0) -> State:
    """Wait until nothing is wrong with `subject`; raises with what still is."""
    while True:
        state = cluster.state()
        found = problems(state, subject, min_replicas)
        if not found:
            return state
        if time.monotonic() >= deadline:
            raise ClusterError("; ".join(found))
        time.sleep(0.2)


# --- Setting: live settings without a restart -----------------------------------------------------------------------

UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}


def canonical(value: str) -> str:
    """A setting as CONFIG GET prints it: memory in bytes, words separated by one space."""
    words = value.strip().strip('"').lower().split()
    return " ".join(_bytes(word) for word in words)


def _bytes(word: str) -> str:
    number = word.rstrip("bkmg")
    return str(int(number) * UNITS[word[len(number) :]]) if number.isdigit() else word


def differing(wanted: Mapping[str, str], live: Mapping[str, str]) -> dict[str, str]:
    """The settings whose live value is not the wanted one. An unknown name is an error, not a difference."""
    unknown = sorted(set(wanted) - set(live))
    if unknown:
        raise ClusterError(f"this Redis has no setting {', '.join(unknown)}")
    return {name: value for name, value in wanted.items() if canonical(value) != canonical(live[name])}


@dataclass
class Applied:
    """What was set, and what only a restart can bring."""

    changes: list[str] = field(default_factory=list)
    restart: dict[str, list[str]] = field(default_factory=dict)

    def needs_restart(self, unit: str, why: str) -> None:
        self.restart.setdefault(unit, []).append(why)


def apply_settings(client: Client, wanted: Mapping[str, str], dry: bool, applied: Applied) -> None:
    """CONFIG SET what differs; a setting that is fixed at start is reported for a restart."""
    for name, value in differing(wanted, pairs(client.call("CONFIG", "GET", "*"))).items():
        try:
            if not dry:
                client.call("CONFIG", "SET", name, value)
            applied.changes.append(name)
        except CommandError as error:
            if "immutable" not in str(error) and "protected" not in str(error):
                raise ClusterError(f"{name}: {error}") from error
            applied.needs_restart(SERVER_UNIT, f"{name} is fixed at start")


PROBE_USER = "pst-compare"


def apply_users(client: Client, wanted: Mapping[str, str], dry: bool, applied: Applied) -> None:
    """Bring the ACL users to their rules without disconnecting anyone; users that are not wanted go.

    Redis prints rules in a form of its own that differs between releases. So the server is asked to print the
    wanted rules as well: of a user that is off, has no password and lives for three commands.
    """
    for user, rules in wanted.items():
        if _user(client, user) == _as_printed(client, rules):
            continue
        if not dry:
            client.call("ACL", "SETUSER", user, "reset", *rules.split())
        applied.changes.append(f"user {user}")
    users = client.call("ACL", "USERS")
    for user in sorted(set(map(str, users if isinstance(users, list) else [])) - set(wanted)):
        if not dry:
            client.call("ACL", "DELUSER", user)
        applied.changes.append(f"user {user} removed")


def _as_printed(client: Client, rules: str) -> dict[str, list[str]]:
    words = rules.split()
    plain = [word for word in words if word not in ("on", "off") and not word.startswith("#")]
    try:
        client.call("ACL", "SETUSER", PROBE_USER, "reset", *plain)
        printed = _user(client, PROBE_USER)
    finally:
        client.call("ACL", "DELUSER", PROBE_USER)
    printed["passwords"] = sorted(word[1:] for word in words if word.startswith("#"))
    printed["flags"] = sorted((set(printed["flags"]) - {"on", "off"}) | {"on" if "on" in words else "off"})
    return printed


def _user(client: Client, user: str) -> dict[str, list[str]]:
    reply = client.call("ACL", "GETUSER", user)
    if not isinstance(reply, list):
        return {}
    fields = zip(reply[::2], reply[1::2], strict=True)
    return {str(name): sorted(map(str, value)) if isinstance(value, list) else [str(value)] for name, value in fields}


def apply_watch(
    client: Client, name: str, wanted: Mapping[str, str], recorded: Mapping[str, str], dry: bool, applied: Applied
) -> None:
    """SENTINEL SET what differs. Sentinel shows the figures; its passwords are only in its own file (`recorded`)."""
    live = {**pairs(client.call("SENTINEL", "MASTER", name)), **recorded}
    for option, value in wanted.items():
        if live.get(option) == value:
            continue
        if not dry:
            client.call("SENTINEL", "SET", name, option, value)
        applied.changes.append(f"sentinel {option}")


def apply_peers(client: Client, wanted: Mapping[str, str], dry: bool, applied: Applied) -> None:
    """SENTINEL CONFIG SET what differs: how the Sentinels log in at each other."""
    live = pairs(client.call("SENTINEL", "CONFIG", "GET", "*"))
    for option, value in wanted.items():
        if live.get(option) == value:
            continue
        if not dry:
            client.call("SENTINEL", "CONFIG", "SET", option, value)
        applied.changes.append(f"sentinel {option}")


def recorded_watch(text: str, name: str) -> dict[str, str]:
    """The options of one master in Sentinel's own file."""
    lines = (line.split() for line in text.splitlines())
    return {
        words[1]: words[3].strip('"')
        for words in lines
        if len(words) == 4 and words[0] == "sentinel" and words[2] == name and words[1].startswith("auth-")
    }


def serves_old_certificate(client: Client, certificate_file: str) -> bool:
    """Whether the process still uses another certificate than the one on disk."""
    with open(certificate_file, encoding="ascii") as stream:
        text = stream.read()
    end = "-----END CERTIFICATE-----"
    first = text[text.index("-----BEGIN CERTIFICATE-----") : text.index(end) + len(end)]
    return client.certificate() != ssl.PEM_cert_to_DER_cert(first)
