"""Bring a MongoDB replica set to the state that the inventory describes.

The logic is level-triggered: look at the live set, derive the next single step, take it, look again. Nothing is
remembered between steps, so a run that was killed at any point is resumed by running again. Nothing here imports
Ansible; pymongo is imported only by `PymongoServer` (Debian 12 has 3.11, Debian 13 has 4.x).
"""

from __future__ import annotations

import importlib.util
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

Document = dict[str, Any]

AUTHENTICATION_FAILED = 18
UNAUTHORIZED = 13
USER_EXISTS = 51003
ALREADY_INITIALIZED = 23
# Answers of a set that is busy with an election or with an earlier configuration: look again.
TRANSIENT = frozenset({91, 103, 109, 189, 308, 10058, 10107, 11600, 11602, 13435, 13436})

HEALTHY = frozenset({"PRIMARY", "SECONDARY"})
MEMBER_FIELDS = ("votes", "priority", "hidden", "tags")
MAX_VOTERS = 7


class MongoError(Exception):
    """What went wrong, in words for the operator."""


class UnreachableError(MongoError):
    """The server did not answer, or the connection broke."""


class CommandError(MongoError):
    """The server refused a command."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Credentials:
    user: str
    password: str = field(repr=False)


class Server(Protocol):
    """One mongod, asked directly (never through the set)."""

    def command(self, command: Mapping[str, Any], database: str = "admin") -> Document: ...

    def close(self) -> None: ...


class Connect(Protocol):
    def __call__(self, host: str, credentials: Credentials | None) -> Server: ...


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


# --- what is wanted ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A member as the inventory wants it. `host` is `name:port`, the way every other host reaches it."""

    host: str
    votes: int = 1
    priority: float = 1.0
    hidden: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> Document:
        return {"votes": self.votes, "priority": self.priority, "hidden": self.hidden, "tags": dict(self.tags)}


@dataclass(frozen=True)
class User:
    """A SCRAM user of the admin database. `roles` are (role, database) pairs."""

    name: str
    password: str = field(repr=False)
    roles: frozenset[tuple[str, str]] = frozenset()
    present: bool = True

    def role_documents(self) -> list[Document]:
        return [{"role": role, "db": database} for role, database in sorted(self.roles)]

    def creation(self) -> Document:
        mechanisms = ["SCRAM-SHA-256"]
        return {"createUser": self.name, "pwd": self.password, "roles": self.role_documents(), "mechanisms": mechanisms}


@dataclass(frozen=True)
class Spec:
    """The wanted replica set. The first user is the administrator that this program logs in as.

    `members` are those of this site. `peers` are those of the other site, where there is one: its own run brings them
    to their state, and this one leaves them as they are. With `standby` this site joins the set of its peers, and never
    makes one of its own.
    """

    name: str
    members: Sequence[Member]
    users: Sequence[User]
    settings: Mapping[str, Any] = field(default_factory=dict)
    previous_password: str = field(default="", repr=False)
    remove_members: bool = False
    feature_compatibility_version: str = ""
    peers: Sequence[str] = ()
    standby: bool = False

    def __post_init__(self) -> None:
        errors = list(spec_errors(self))
        if errors:
            raise MongoError("; ".join(errors))


def spec_errors(spec: Spec) -> Iterator[str]:
    """All that is wrong with what is wanted, before anything is asked of a server."""
    hosts = [member.host for member in spec.members]
    if len(hosts) != len(set(hosts)):
        yield f"members: a host is named twice in {hosts}"
    if both := sorted(set(hosts) & set(spec.peers)):
        yield f"peers: {', '.join(both)} of this site, wanted members of the other site"
    if spec.standby and not spec.peers:
        yield "peers: none, wanted the members of the site that this one stands by for"
    voters = sum(member.votes for member in spec.members)
    # Two are few, but they are what a small site that takes over has.
    if (voters % 2 == 0 and not spec.standby) or voters > MAX_VOTERS:
        yield f"members: {voters} votes, wanted an odd number up to {MAX_VOTERS}"
    if not any(member.votes and member.priority > 0 for member in spec.members):
        yield "members: no member has votes 1 and a priority above 0, so none could become primary"
    for member in spec.members:
        if member.priority > 0 and (not member.votes or member.hidden):
            yield f"members: {member.host} has priority {member.priority}, wanted 0 with votes 0 or hidden"
    names = [user.name for user in spec.users]
    if not names or len(names) != len(set(names)):
        yield f"users: wanted distinct names, the administrator first, seen {names}"


# --- which step comes next (pure) -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One reconfiguration. It touches one member at most, so majorities before and after it overlap."""

    title: str
    config: Document
    promotes: str = ""  # has to be SECONDARY first: a vote of a member without data counts towards no majority of data
    displaces: str = ""  # must not be the primary


def member_fields(member: Mapping[str, Any]) -> Document:
    return {"votes": 1, "priority": 1.0, "hidden": False, "tags": {}} | {
        key: member[key] for key in MEMBER_FIELDS if key in member
    }


@dataclass(frozen=True)
class Leads:
    """Which of two sites has the votes, by a live configuration. Promotion moves them; converging never does."""

    here: bool
    there: bool

    @property
    def only_here(self) -> bool:
        return self.here and not self.there


def leads(config: Mapping[str, Any], spec: Spec) -> Leads:
    voters = {member["host"] for member in config["members"] if member_fields(member)["votes"]}
    return Leads(here=bool(voters - set(spec.peers)), there=bool(voters & set(spec.peers)))


def wanted_members(config: Mapping[str, Any], spec: Spec) -> list[Member]:
    """The site's members as they are to be now: with the votes that the inventory gives them where the site leads.

    A site that stands by has none. While the votes are being moved, each member keeps what it has.
    """
    if not spec.peers or (led := leads(config, spec)).only_here:
        return list(spec.members)
    live = {member["host"]: member_fields(member) for member in config["members"]} if led.here else {}
    nothing = {"votes": 0, "priority": 0.0}
    return [replace(member, **{key: live.get(member.host, nothing)[key] for key in nothing}) for member in spec.members]


def next_change(config: Document, spec: Spec, reachable: Collection[str]) -> Change | None:
    """The first of the reconfigurations that lead from `config` to `spec`; None when there is none to make.

    A member that does not answer is neither added nor given a vote. Members are added before others are removed, so
    that the number of copies never falls below what it is or has to be.
    """
    return next(_changes(config, spec, reachable), None)


def _changes(config: Document, spec: Spec, reachable: Collection[str]) -> Iterator[Change]:
    live = {member["host"]: member for member in config["members"]}
    wanted = {member.host: member for member in wanted_members(config, spec)}
    settings = config.get("settings", {})
    ours = not spec.peers or leads(config, spec).only_here  # the other site's inventory decides while it leads
    for key, value in spec.settings.items() if ours else ():
        if settings.get(key) != value:
            yield Change(f"set {key} {settings.get(key)} -> {value}", config | {"settings": settings | {key: value}})

    strange = [host for host in live if host not in wanted and host not in spec.peers]
    removals = [removal(config, host) for host in strange] if spec.remove_members else []
    voters = sum(member_fields(member)["votes"] for member in live.values())
    demotions = []
    for host, member in wanted.items():
        if host not in live or member_fields(live[host]) == member.fields():
            continue
        change = adjustment(config, live[host], member)
        if change.displaces:
            demotions.append(change)  # when those who are to take over are there
        elif not change.promotes or host in reachable:
            if change.promotes and voters >= MAX_VOTERS:
                yield from removals
            yield change

    for host, member in wanted.items():
        if host not in live and host in reachable:
            number = max(m["_id"] for m in live.values()) + 1
            new = {"_id": number, "host": host, **member.fields(), "votes": 0, "priority": 0}
            yield Change(f"add {host} without a vote", config | {"members": [*config["members"], new]})

    yield from demotions
    yield from removals


def adjustment(config: Document, live: Document, member: Member) -> Change:
    before, after = member_fields(live), member.fields()
    differences = (f"{key} {before[key]} -> {after[key]}" for key in MEMBER_FIELDS if before[key] != after[key])
    return Change(
        f"{member.host}: {', '.join(differences)}",
        config | {"members": [m | after if m["host"] == member.host else m for m in config["members"]]},
        promotes=member.host if after["votes"] > before["votes"] else "",
        displaces=member.host if before["priority"] and not after["priority"] else "",
    )


def removal(config: Document, host: str) -> Change:
    members = [member for member in config["members"] if member["host"] != host]
    return Change(f"remove {host}", config | {"members": members}, displaces=host)


def plan(config: Document, spec: Spec, reachable: Collection[str]) -> tuple[list[str], Document]:
    """Titles of all the changes to come, and the configuration they lead to (for check mode)."""
    titles = []
    while change := next_change(config, spec, reachable):
        titles.append(change.title)
        config = change.config
    return titles, config


def pending_members(config: Document, spec: Spec) -> list[str]:
    """Wanted members that are not yet what they should be."""
    live = {member["host"]: member_fields(member) for member in config["members"]}
    return [member.host for member in wanted_members(config, spec) if live.get(member.host) != member.fields()]


def voter_shortage(config: Document, states: Mapping[str, str]) -> str:
    """Why `config` would have no majority of healthy voters; empty when it would."""
    voters = [member["host"] for member in config["members"] if member_fields(member)["votes"]]
    down = [f"{host} is {states.get(host, 'unknown')}" for host in voters if states.get(host) not in HEALTHY]
    healthy = len(voters) - len(down)
    if 2 * healthy > len(voters):
        return ""
    return f"{healthy} of {len(voters)} voters healthy, wanted a majority ({', '.join(down)})"


# --- one member's health (pure) ---------------------------------------------------------------------------------------


def states_of(status: Mapping[str, Any]) -> dict[str, str]:
    """State of every member; a member that does not answer is DOWN, whatever it was last."""
    return {member["name"]: member["stateStr"] if member.get("health", 1) else "DOWN" for member in status["members"]}


def lags_of(status: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that each data-bearing member is behind the primary."""
    dates = {member["name"]: member["optimeDate"] for member in status["members"] if member.get("optimeDate")}
    primary = next((m["name"] for m in status["members"] if m["stateStr"] == "PRIMARY"), None)
    if primary is None:
        return {}
    return {name: max(0.0, (dates[primary] - date).total_seconds()) for name, date in dates.items()}


def health_problems(status: Document, config: Document, hosts: Collection[str], max_lag: float) -> list[str]:
    """Everything that keeps `hosts` from being healthy members of a set with a majority."""
    states, lags = states_of(status), lags_of(status)
    problems = []
    if "PRIMARY" not in states.values():
        problems.append("the set has no primary")
    if shortage := voter_shortage(config, states):
        problems.append(shortage)
    for host in hosts:
        state = states.get(host, "not a member")
        if state not in HEALTHY:
            problems.append(f"{host} is {state}, wanted PRIMARY or SECONDARY")
        elif lags.get(host, 0.0) > max_lag:
            problems.append(f"{host} is {lags[host]:.0f} s behind the primary, wanted at most {max_lag:g} s")
    return problems


# --- talking to the set -----------------------------------------------------------------------------------------------


def wait(clock: Clock, timeout: float, attempt: Callable[[], str]) -> str:
    """Repeat `attempt` until it names no problem or the time is over; the last problem is the answer."""
    deadline = clock.monotonic() + timeout
    while (problem := attempt()) and clock.monotonic() < deadline:
        clock.sleep(0.25)
    return problem


class ReplicaSet:
    """The live set as seen from one of its hosts."""

    def __init__(self, connect: Connect, clock: Clock = time, timeout: float = 60.0) -> None:
        self.connect = connect
        self.clock = clock
        self.timeout = timeout

    def ask(self, host: str, command: Mapping[str, Any], credentials: Credentials | None = None) -> Document:
        server = self.connect(host, credentials)
        try:
            return server.command(command)
        finally:
            server.close()

    def hello(self, host: str) -> Document | None:
        try:
            return self.ask(host, {"hello": 1})
        except (UnreachableError, CommandError):
            return None

    def find_primary(self, hosts: Sequence[str], timeout: float | None = None) -> str:
        """The primary that itself says that it is one; asked through any of `hosts`."""
        answers: dict[str, str] = {}
        found = ""

        def attempt() -> str:
            nonlocal found
            answers.clear()
            for host in hosts:
                hello = self.hello(host)
                answers[host] = "no answer" if hello is None else hello.get("primary") or "knows no primary"
                candidate = (hello or {}).get("primary", "")
                if candidate and (self.hello(candidate) or {}).get("isWritablePrimary"):
                    found = candidate
                    return ""
            return "no primary: " + ", ".join(f"{host}: {answer}" for host, answer in answers.items())

        if problem := wait(self.clock, self.timeout if timeout is None else timeout, attempt):
            raise MongoError(problem)
        return found

    def look(self, primary: str, credentials: Credentials) -> tuple[Document, Document]:
        """Configuration and status, both by the primary, whose view of the others is the freshest."""
        server = self.connect(primary, credentials)
        try:
            return server.command({"replSetGetConfig": 1})["config"], server.command({"replSetGetStatus": 1})
        finally:
            server.close()

    def hand_over(self, primary: str, hosts: Sequence[str], credentials: Credentials) -> str:
        """Make `primary` step down to the member that is furthest; answer who is primary then."""
        new = ""

        def attempt() -> str:
            nonlocal new
            try:
                new = self.find_primary(hosts, timeout=0)
                if new != primary:
                    return ""
                # Not longer: a member cannot be elected again in this time, and the next hand-over may need it.
                self.ask(primary, {"replSetStepDown": 15, "secondaryCatchUpPeriodSecs": 10}, credentials)
            except MongoError as error:
                return str(error)
            return f"{primary} is still the primary"

        if problem := wait(self.clock, self.timeout, attempt):
            raise MongoError(f"{primary} does not hand over: {problem}")
        return new

    def unchain(self, member: str, primary: str, credentials: Credentials) -> list[str]:
        """Have those that copy the oplog of `member` copy the primary's; answer who did.

        A member that loses what it copies from looks for a second for another one, and in that time a majority may
        acknowledge no write. Only that is at stake: one that cannot be told is left to find it by itself.
        """
        _, status = self.look(primary, credentials)
        told = []
        for other in status["members"]:
            if other.get("syncSourceHost") == member and other["name"] != primary:
                with suppress(UnreachableError, CommandError):
                    self.ask(other["name"], {"replSetSyncFrom": primary}, credentials)
                    told.append(other["name"])
        return told


# --- bringing the set to the wanted state -----------------------------------------------------------------------------


@dataclass
class Result:
    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    primary: str = ""
    before: Document = field(default_factory=dict)
    after: Document = field(default_factory=dict)


def describe(config: Document | None) -> Document:
    """What of a configuration is ours to set, for diffs and results."""
    if config is None:
        return {}
    return {
        "name": config["_id"],
        "members": {member["host"]: member_fields(member) for member in config["members"]},
        "settings": {k: v for k, v in config.get("settings", {}).items() if isinstance(v, int | float | bool | str)},
    }


class Reconciler:
    """Takes the live set to `spec`, one proven step at a time. `local` is the member that runs on this host."""

    def __init__(
        self, spec: Spec, local: str, replica_set: ReplicaSet, *, check: bool = False, join_timeout: float = 600.0
    ) -> None:
        self.spec = spec
        self.local = local
        self.set = replica_set
        self.check = check
        self.join_timeout = join_timeout
        self.hosts = [member.host for member in spec.members]
        self.everybody = [*self.hosts, *spec.peers]
        self.admin = Credentials(spec.users[0].name, spec.users[0].password)
        self.result = Result()

    def run(self) -> Result:
        if not self._initiated():
            if self.spec.standby:
                return self._nothing_to_join()
            if self.check:
                return self._planned_from_nothing()
            self._initiate()
        self.result.primary = self.set.find_primary(self.everybody)
        self._log_in()
        if self._leads():
            self._ensure_users()
            self._ensure_default_concern()
            self._ensure_feature_version()
        self._ensure_members()
        return self.result

    def _leads(self) -> bool:
        """Whether users and settings of the whole set are this site's to bring to their state."""
        if not self.spec.peers:
            return True
        config, _ = self.set.look(self.result.primary, self.admin)
        return leads(config, self.spec).only_here

    # The first member -------------------------------------------------------------------------------------------------

    def _nothing_to_join(self) -> Result:
        if not self.check:
            raise MongoError(
                f"this site stands by for {', '.join(self.spec.peers)}, and none of them belongs to {self.spec.name}: "
                "make the set there first"
            )
        self.result.changes = [f"join {self.spec.name} of the other site"]
        return self.result

    def _initiated(self) -> bool:
        """Whether a member belongs to the set. False only when every member has said that it belongs to none.

        A site whose members are all new joins the set of the other site, where that one has the data. One that stands
        by waits for it; any other is made without it, since the other site may come later.
        """
        names: dict[str, str] = {}

        def attempt() -> str:
            for host in self.everybody:
                if host in self.spec.peers and any(names.values()):
                    break  # who need not be there is not waited for either
                if not names.get(host) and (hello := self.set.hello(host)) is not None:
                    names[host] = hello.get("setName", "")
            needed = self.everybody if self.spec.standby else self.hosts
            silent = [host for host in needed if host not in names]
            return f"no answer from {', '.join(silent)}" if silent and not any(names.values()) else ""

        problem = wait(self.set.clock, 0 if self.check else self.set.timeout, attempt)
        for host, name in names.items():
            if name not in ("", self.spec.name):
                raise MongoError(f"{host} belongs to the set {name}, wanted {self.spec.name}")
        if problem and not self.check:
            raise MongoError(f"{problem}: a set is made only when every member has said that it belongs to none")
        return any(names.values())

    def _planned_from_nothing(self) -> Result:
        config = self._first_config()
        titles, after = plan(config, self.spec, self.hosts)
        users = [f"create user {user.name}" for user in self.spec.users if user.present]
        self.result.changes = [f"initiate {self.spec.name} on {self.local}", *users, *titles]
        self.result.after = describe(after)
        return self.result

    def _first_config(self) -> Document:
        return {"_id": self.spec.name, "version": 1, "members": [{"_id": 0, "host": self.local}]}

    def _localhost(self) -> str:
        """The address that MongoDB's localhost exception wants: open until the first user exists."""
        return f"localhost:{self.local.rpartition(':')[2]}"

    def _initiate(self) -> None:
        """Make a set of this host alone. The others join it like any later member, proven before it gets a vote."""
        for host in self.hosts:
            if self._can_log_in(host, self.admin):
                raise MongoError(
                    f"{host} has no replica set configuration but knows the user {self.admin.user}: it holds data of "
                    "an earlier set. Wait until it has started, or empty its data directory if the data is not wanted"
                )
        try:
            self.set.ask(self._localhost(), {"replSetInitiate": self._first_config()})
        except CommandError as error:
            if error.code != ALREADY_INITIALIZED:
                raise MongoError(f"cannot initiate on {self.local}: {error}") from error
        self.result.changes.append(f"initiate {self.spec.name} on {self.local}")

    # Users ------------------------------------------------------------------------------------------------------------

    def _can_log_in(self, host: str, credentials: Credentials) -> bool:
        try:
            self.set.ask(host, {"ping": 1}, credentials)
        except CommandError as error:
            if error.code == AUTHENTICATION_FAILED:
                return False
            raise
        return True

    def _log_in(self) -> None:
        """Find the password that the administrator has now, or make that user through the localhost exception."""
        user, primary = self.spec.users[0], self.result.primary
        if self._can_log_in(primary, self.admin):
            return
        if self.spec.previous_password:
            previous = Credentials(user.name, self.spec.previous_password)
            if self._can_log_in(primary, previous):
                self.result.changes.append(f"change the password of {user.name}")
                if self.check:
                    self.admin = previous
                else:
                    self._command({"updateUser": user.name, "pwd": user.password}, previous)
                return
        refused = (
            f"{primary} refuses the user {user.name}: either it has another password (give the one it has as "
            "mongodb_root_password_previous) or it does not exist yet"
        )
        if primary != self.local:
            raise MongoError(f"{refused}, and only {primary} itself can make it: run without --limit, or there first")
        if self.check:
            raise MongoError(refused)
        try:
            self.set.ask(self._localhost(), {**user.creation(), **MAJORITY})
        except CommandError as error:
            raise MongoError(f"{refused}: {error}") from error
        self.result.changes.append(f"create user {user.name}")

    def _command(self, command: Mapping[str, Any], credentials: Credentials | None = None) -> Document:
        return self.set.ask(self.result.primary, {**command, **MAJORITY}, credentials or self.admin)

    def _ensure_users(self) -> None:
        answer = self.set.ask(self.result.primary, {"usersInfo": 1}, self.admin)
        live = {user["user"]: user for user in answer["users"]}
        for user in self.spec.users:
            command = self._user_command(user, live.get(user.name))
            if command is None:
                continue
            verb, differences = next(iter(command)), sorted(set(command) & {"pwd", "roles"})
            title = {"createUser": "create user ", "dropUser": "drop user "}.get(
                verb, f"change {', '.join(differences)} of "
            )
            self.result.changes.append(title + user.name)
            if not self.check:
                self._command(command)

    def _user_command(self, user: User, live: Document | None) -> Document | None:
        if not user.present:
            return {"dropUser": user.name} if live else None
        if live is None:
            return user.creation()
        changes: Document = {}
        if {(role["role"], role["db"]) for role in live["roles"]} != user.roles:
            changes["roles"] = user.role_documents()
        is_admin = user.name == self.admin.user  # who has just logged in
        if not is_admin and not self._can_log_in(self.result.primary, Credentials(user.name, user.password)):
            changes["pwd"] = user.password
        return {"updateUser": user.name, **changes} if changes else None

    # Cluster-wide settings --------------------------------------------------------------------------------------------

    def _ensure_default_concern(self) -> None:
        live = self.set.ask(self.result.primary, {"getDefaultRWConcern": 1}, self.admin)
        write, read = live.get("defaultWriteConcern", {}), live.get("defaultReadConcern", {})
        explicit = live.get("defaultWriteConcernSource", "global") == "global"
        if explicit and write.get("w") == "majority" and read.get("level") == "majority":
            return
        self.result.changes.append("set the default read and write concern to majority")
        if not self.check:
            self._command(
                {
                    "setDefaultRWConcern": 1,
                    "defaultWriteConcern": {"w": "majority", "wtimeout": 0},
                    "defaultReadConcern": {"level": "majority"},
                }
            )

    def _ensure_feature_version(self) -> None:
        wanted = self.spec.feature_compatibility_version
        if not wanted:
            return
        live = feature_compatibility_version(self.set, self.result.primary, self.admin)
        if live == wanted:
            return
        self.result.changes.append(f"set the feature compatibility version {live} -> {wanted}")
        if not self.check:
            confirm = {"confirm": True} if float(wanted) >= 7 else {}
            self._command({"setFeatureCompatibilityVersion": wanted, **confirm})

    # Members ----------------------------------------------------------------------------------------------------------

    def _reachable(self, config: Document) -> set[str]:
        """Wanted members that answer. One that is about to join may have been started a moment ago: wait for it."""
        live = {member["host"] for member in config["members"]}
        reachable: set[str] = set()

        def attempt() -> str:
            reachable.update(host for host in self.hosts if host not in reachable and self.set.hello(host) is not None)
            return "" if reachable >= set(self.hosts) - live else "silent"

        wait(self.set.clock, 0 if self.check else self.set.timeout, attempt)
        return reachable

    def _ensure_members(self) -> None:
        config, _ = self.set.look(self.result.primary, self.admin)
        self.result.before = describe(config)
        unwanted = ", ".join(sorted({member["host"] for member in config["members"]} - set(self.everybody)))
        if unwanted and not self.spec.remove_members:
            self.result.warnings.append(
                f"members that the inventory does not name: {unwanted} (mongodb_remove_members removes them)"
            )
        _refuse_moved_ports(config, self.spec)
        reachable = self._reachable(config)
        if self.check:
            titles, config = plan(config, self.spec, reachable)
            self.result.changes += titles
        else:
            config = self._apply_changes(reachable)
        self.result.after = describe(config)
        self.result.pending = pending_members(config, self.spec)
        if self.result.pending:
            self.result.warnings.append(f"no answer, so not yet full members: {', '.join(self.result.pending)}")

    def _apply_changes(self, reachable: set[str]) -> Document:
        while True:
            config, _ = self.set.look(self.result.primary, self.admin)
            change = next_change(config, self.spec, reachable)
            if change is None:
                return config
            self.apply(change, config)

    def apply(self, change: Change, config: Document) -> None:
        """Wait until the change is safe, make it, and leave it when the majority has it."""
        if change.displaces == self.result.primary:
            others = [m["host"] for m in config["members"]]
            self.result.changes.append(f"{change.displaces} steps down")
            self.result.primary = self.set.hand_over(change.displaces, others, self.admin)

        def attempt() -> str:
            try:
                live, status = self.set.look(self.result.primary, self.admin)
                if live["version"] != config["version"]:
                    return ""  # somebody else changed it: the caller looks again
                if problem := self._unsafe(change, status):
                    return problem
                version = {"version": live["version"] + 1, "term": live.get("term", -1)}
                self.set.ask(self.result.primary, {"replSetReconfig": change.config | version}, self.admin)
            except UnreachableError as error:
                self.result.primary = self.set.find_primary(self.everybody)
                return str(error)
            except CommandError as error:
                if error.code not in TRANSIENT:
                    raise MongoError(f"{change.title}: {error}") from error
                self.result.primary = self.set.find_primary(self.everybody)
                return str(error)
            self.result.changes.append(change.title)
            return ""

        timeout = self.join_timeout if change.promotes else self.set.timeout
        if problem := wait(self.set.clock, timeout, attempt):
            raise MongoError(f"{change.title}: not done within {timeout:g} s: {problem}")

    @staticmethod
    def _unsafe(change: Change, status: Document) -> str:
        states = states_of(status)
        if change.promotes and states.get(change.promotes) != "SECONDARY":
            said = next(
                (m.get("lastHeartbeatMessage", "") for m in status["members"] if m["name"] == change.promotes), ""
            )
            return f"{change.promotes} is {states.get(change.promotes)}, wanted SECONDARY {said}".rstrip()
        return voter_shortage(change.config, states)


MAJORITY: Mapping[str, Any] = {"writeConcern": {"w": "majority", "wtimeout": 30000}}


def _refuse_moved_ports(config: Document, spec: Spec) -> None:
    live, wanted = {m["host"] for m in config["members"]} - {*spec.peers}, {member.host for member in spec.members}
    gone = {host.rpartition(":")[0]: host for host in live - wanted}
    for host in sorted(wanted - live):
        if seen := gone.get(host.rpartition(":")[0]):
            raise MongoError(f"mongodb_port: a live member cannot change its port: seen {seen}, wanted {host}")


def feature_compatibility_version(replica_set: ReplicaSet, host: str, credentials: Credentials) -> str:
    answer = replica_set.ask(host, {"getParameter": 1, "featureCompatibilityVersion": 1}, credentials)
    return str(answer["featureCompatibilityVersion"]["version"])


# --- one member: is it healthy, hand over, take a new certificate -----------------------------------------------------


def served_certificate(host: str) -> bytes:
    """The certificate (DER) that a server shows to a new connection."""
    name, _, port = host.rpartition(":")
    try:
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((name, int(port)), timeout=5))
    except OSError as error:
        raise UnreachableError(f"{host}: {error}") from error


def first_certificate(pem: str) -> bytes:
    """The first certificate (DER) of a file that may begin with a key."""
    begin = pem.find(ssl.PEM_HEADER)
    end = pem.find(ssl.PEM_FOOTER, begin)
    if begin < 0 or end < 0:
        raise MongoError("no certificate in the file")
    return ssl.PEM_cert_to_DER_cert(pem[begin : end + len(ssl.PEM_FOOTER)])


@dataclass(frozen=True)
class Health:
    primary: str
    states: dict[str, str]
    lags: dict[str, float]
    problems: list[str]


class MemberVerbs:
    """What the verbs of the role do to the member on this host."""

    def __init__(self, member: str, admin: Credentials, replica_set: ReplicaSet, peers: Sequence[str] = ()) -> None:
        self.member = member
        self.peers = peers  # members of the other site
        self.admin = admin
        self.set = replica_set

    def health(self, *, others: bool, max_lag: float) -> Health:
        """Look once. `others`: all the rest of the site has to be healthy, before this member may stop.

        Not the other site, which holds nothing up while it is away: it stands by, and has no vote.
        """
        primary = self.set.find_primary([self.member], timeout=0)
        config, status = self.set.look(primary, self.admin)
        states, lags = states_of(status), lags_of(status)
        hosts = [host for host in states if host != self.member and host not in self.peers] if others else [self.member]
        return Health(primary, states, lags, health_problems(status, config, hosts, max_lag))

    def await_health(self, *, others: bool, max_lag: float) -> Health:
        """Wait for health; after the time is over the answer names the problems."""
        health = Health("", {}, {}, [])

        def attempt() -> str:
            nonlocal health
            try:
                health = self.health(others=others, max_lag=max_lag)
            except MongoError as error:
                health = Health("", {}, {}, [str(error)])
            return "; ".join(health.problems)

        wait(self.set.clock, self.set.timeout, attempt)
        return health

    def rotate_certificate(self, pem: str, *, check: bool) -> bool:
        """Have the server read its files again when it shows another certificate than the file holds."""
        wanted = first_certificate(pem)
        if served_certificate(self.member) == wanted:
            return False
        if not check:
            self.set.ask(self.member, {"rotateCertificates": 1, "message": "new files"}, self.admin)
            if served_certificate(self.member) != wanted:
                raise MongoError(f"{self.member} still shows the old certificate after rotateCertificates")
        return True


# --- the inventory's side ---------------------------------------------------------------------------------------------


def members_from_inventory(
    hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], domain: str, port: int
) -> list[Document]:
    """Members by inventory name, with the host variables mongodb_{votes,priority,hidden,tags} where a host has them."""
    members = []
    for host in hosts:
        given = hostvars[host]
        votes, hidden = int(given.get("mongodb_votes", 1)), bool(given.get("mongodb_hidden", False))
        usual = 1.0 if votes and not hidden else 0.0
        members.append(
            {
                "host": f"{host}.{domain}:{port}",
                "votes": votes,
                "priority": float(given.get("mongodb_priority", usual)),
                "hidden": hidden,
                "tags": dict(given.get("mongodb_tags", {})),
            }
        )
    return members


# --- pymongo ----------------------------------------------------------------------------------------------------------


def have_pymongo() -> bool:
    return importlib.util.find_spec("pymongo") is not None


class PymongoServer:
    """A mongod through Debian's pymongo, 3.11 or 4.x."""

    def __init__(self, host: str, credentials: Credentials | None, ca_file: str, timeout: float) -> None:
        try:
            import pymongo  # noqa: PLC0415
        except ImportError as error:  # a bare host in check mode
            raise UnreachableError("pymongo is not installed") from error
        milliseconds = int(timeout * 1000)
        options: Document = {
            "directConnection": True,
            "appname": "pst.platform",
            "serverSelectionTimeoutMS": 3000,
            "connectTimeoutMS": 3000,
            "socketTimeoutMS": milliseconds,
        }
        if ca_file:
            options |= {"tls": True, "tlsCAFile": ca_file}
        if credentials is not None:
            options |= {
                "username": credentials.user,
                "password": credentials.password,
                "authSource": "admin",
                "authMechanism": "SCRAM-SHA-256",
            }
        self.host = host
        self.client: Any = pymongo.MongoClient(host, **options)

    def command(self, command: Mapping[str, Any], database: str = "admin") -> Document:
        from pymongo import errors  # noqa: PLC0415

        try:
            return dict(self.client[database].command(dict(command)))
        except errors.ConnectionFailure as error:
            raise UnreachableError(f"{self.host}: {error}") from error
        except errors.OperationFailure as error:
            raise CommandError(f"{self.host}: {error}", error.code or 0) from error

    def close(self) -> None:
        self.client.close()


def connector(ca_file: str, timeout: float) -> Connect:
    def connect(host: str, credentials: Credentials | None) -> Server:
        return PymongoServer(host, credentials, ca_file, timeout)

    return connect
