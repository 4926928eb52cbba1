# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A replica set over two sites: which of them leads, and how the votes go from one to the other.

As in `mongodb`, each step is derived from the live set, so that a run that was killed is resumed by running again, and
the way back is the same way with the sites exchanged. `force` is the exception: it is for when the other site is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils.mongodb import (
    TRANSIENT,
    Change,
    CommandError,
    Credentials,
    Document,
    Member,
    MongoError,
    Reconciler,
    ReplicaSet,
    Spec,
    User,
    adjustment,
    leads,
    member_fields,
    removal,
    wait,
)

# What the manual has for a configuration that must win over any other that a lost member comes back with.
FORCED_VERSION_STEP = 100_000
ELECTION_S = 30.0
UTC = timezone.utc  # noqa: UP017  the hosts have 3.11; this also imports on older ones


@dataclass(frozen=True)
class Seen:
    """One member as this host sees it now."""

    host: str
    answers: bool
    primary: bool = False
    says: str = ""


@dataclass(frozen=True)
class Heard:
    """What a member of this site knows of another member, from the set's own heartbeats."""

    host: str
    state: str
    applied: str  # time of the newest operation that it had when it was last heard, ISO
    seconds_ago: float | None  # since it was last heard


@dataclass
class Outlook:
    """What one host sees of the set."""

    leads_here: bool = False
    leads_there: bool = False
    seen: list[Seen] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    applied: str = ""  # this site's newest operation, the furthest of its members
    lags: dict[str, float | None] = field(default_factory=dict)
    votes: dict[str, int] = field(default_factory=dict)

    @property
    def primaries(self) -> list[str]:
        return [seen.host for seen in self.seen if seen.primary]

    def document(self) -> Document:
        return asdict(self) | {"primaries": self.primaries}


class TwoSites:
    """The set, from a host of one site. `here` are that site's members as the inventory wants them when it leads."""

    def __init__(
        self,
        name: str,
        here: Sequence[Member],
        there: Sequence[str],
        admin: Credentials,
        replica_set: ReplicaSet,
        *,
        check: bool = False,
    ) -> None:
        self.spec = Spec(name, here, [User(admin.user, admin.password)], peers=there, standby=True)
        self.here = [member.host for member in here]
        self.there = list(there)
        self.admin = admin
        self.set = replica_set
        self.check = check
        self.changes: list[str] = []

    # Looking ----------------------------------------------------------------------------------------------------------

    def look(self) -> Outlook:
        """Ask every member at once, and a member of this site for what it has heard of the others."""
        outlook = Outlook(seen=self._ask_all())
        known = [seen.host for seen in outlook.seen if seen.answers]
        for host in sorted(known, key=lambda host: (host not in outlook.primaries, host not in self.here)):
            try:
                config, status = self.set.look(host, self.admin)
            except MongoError:
                continue
            led = leads(config, self.spec)
            outlook.leads_here, outlook.leads_there = led.here, led.there
            outlook.votes = {member["host"]: member_fields(member)["votes"] for member in config["members"]}
            outlook.heard = list(heard(status))
            outlook.applied, outlook.lags = self._applied(status)
            break
        return outlook

    def _ask_all(self) -> list[Seen]:
        """At once: a lost site is many time-outs otherwise."""

        def ask(host: str) -> Seen:
            hello = self.set.hello(host)
            if hello is None:
                return Seen(host, answers=False)
            return Seen(host, True, bool(hello.get("isWritablePrimary")), str(hello.get("primary", "")))

        hosts = [*self.here, *self.there]
        with ThreadPoolExecutor(len(hosts)) as pool:
            return list(pool.map(ask, hosts))

    def _applied(self, status: Document) -> tuple[str, dict[str, float | None]]:
        dates = {m["name"]: m["optimeDate"] for m in status["members"] if m.get("optimeDate")}
        ours = [dates[host] for host in self.here if host in dates]
        newest = max(dates.values(), default=None)
        lags = {
            host: max(0.0, (newest - dates[host]).total_seconds()) if newest and host in dates else None
            for host in self.here
        }
        return iso(max(ours)) if ours else "", lags

    # Taking the lead, with everybody there ----------------------------------------------------------------------------

    def take_lead(self) -> Outlook:
        """Give this site the votes and the primary, one proven step at a time; the other one keeps its data."""
        worker = Reconciler(self.spec, self.here[0], self.set, check=self.check)
        primary = self.set.find_primary([*self.here, *self.there])
        worker.result.primary = primary
        while True:
            config, _ = self.set.look(worker.result.primary, self.admin)
            change = next_lead(config, self.spec, worker.result.primary)
            if change is None:
                break
            if self.check:
                self.changes.append(change.title)
                return self.look()
            worker.apply(change, config)
        self.changes += worker.result.changes
        return self.look()

    # Taking it by force -----------------------------------------------------------------------------------------------

    def force(self) -> Outlook:
        """Go on with the members of this site alone. The other site is lost, or fenced, which the caller has proven."""
        outlook = self.look()
        if outlook.leads_here and not outlook.leads_there and outlook.primaries:
            return outlook  # done by an earlier run
        if alive := [seen.host for seen in outlook.seen if seen.primary]:
            raise MongoError(f"{', '.join(alive)} is primary: a set with a primary is not forced, wanted none")
        furthest, config = self._furthest()
        self.changes.append(f"go on with {', '.join(self.here)} alone, {furthest} first")
        if self.check:
            return outlook
        self.set.ask(
            furthest, {"replSetReconfig": forced_config(config, self.spec, furthest), "force": True}, self.admin
        )
        self._await_primary()
        return self.look()

    def _furthest(self) -> tuple[str, Document]:
        """The member of this site with the newest operation, by what each says of itself, and its configuration."""
        found: list[tuple[datetime, str, Document]] = []
        for host in self.here:
            try:
                config, status = self.set.look(host, self.admin)
            except MongoError:
                continue
            itself = next(member for member in status["members"] if member.get("self"))
            found.append((itself["optimeDate"], host, config))
        if not found:
            raise MongoError(f"no answer from {', '.join(self.here)}: there is nothing to go on with")
        _, host, config = max(found, key=lambda item: item[0])
        return host, config

    def _await_primary(self) -> None:
        def attempt() -> str:
            primaries = [seen.host for seen in self._ask_all() if seen.primary and seen.host in self.here]
            return "" if primaries else f"none of {', '.join(self.here)} is primary"

        if problem := wait(self.set.clock, ELECTION_S, attempt):
            raise MongoError(f"after the forced configuration {problem} within {ELECTION_S:g} s")

    # Leaving ----------------------------------------------------------------------------------------------------------

    def remove_peers(self) -> Outlook:
        """Take the other site out of the set. It must have no vote."""
        primary = self.set.find_primary(self.here)
        while True:
            config, _ = self.set.look(primary, self.admin)
            if leads(config, self.spec).there:
                raise MongoError("members of the other site have votes: promote this site first (state: leads)")
            live = [member["host"] for member in config["members"] if member["host"] in self.there]
            if not live:
                return self.look()
            self.changes.append(f"remove {live[0]}")
            if self.check:
                return self.look()
            self._reconfigure(primary, removal(config, live[0]))

    def _reconfigure(self, primary: str, change: Change) -> None:
        def attempt() -> str:
            live, _ = self.set.look(primary, self.admin)
            version = {"version": live["version"] + 1, "term": live.get("term", -1)}
            try:
                self.set.ask(primary, {"replSetReconfig": change.config | version}, self.admin)
            except CommandError as error:
                if error.code not in TRANSIENT:
                    raise
                return str(error)
            return ""

        if problem := wait(self.set.clock, self.set.timeout, attempt):
            raise MongoError(f"{change.title}: {problem}")


# --- pure -------------------------------------------------------------------------------------------------------------


def next_lead(config: Document, spec: Spec, primary: str) -> Change | None:
    """The next of the steps that give `spec.members` the lead over `spec.peers`; None when they have it.

    First the votes of this site, so that whatever a majority has from then on, this site has. Then those of the other
    site, but for its primary, which hands over before its own: then only members of this site can be elected.
    """
    return next(_lead_changes(config, spec, primary), None)


def _lead_changes(config: Document, spec: Spec, primary: str) -> Iterator[Change]:
    live = {member["host"]: member for member in config["members"]}
    if absent := [member.host for member in spec.members if member.host not in live]:
        raise MongoError(f"{', '.join(absent)}: not in the set, wanted every member of this site (site.yml adds them)")
    for member in spec.members:
        if member_fields(live[member.host]) != member.fields():
            yield adjustment(config, live[member.host], member)
    voting = [host for host in spec.peers if host in live and _has_part(live[host])]
    for host in sorted(voting, key=lambda host: host == primary):
        fields = member_fields(live[host])
        without = Member(host, 0, 0.0, fields["hidden"], fields["tags"])
        yield adjustment(config, live[host], without)


def _has_part(member: Mapping[str, Any]) -> bool:
    fields = member_fields(member)
    return bool(fields["votes"] or fields["priority"])


def forced_config(config: Document, spec: Spec, furthest: str) -> Document:
    """The configuration with this site's members alone; who has the newest operation is elected."""
    wanted = {member.host: member.fields() for member in spec.members}
    highest = max(fields["priority"] for fields in wanted.values()) or 1.0
    members = []
    for live in config["members"]:
        if live["host"] in wanted:
            fields = wanted[live["host"]]
            first = {"votes": 1, "priority": highest + 1.0} if live["host"] == furthest else {}
            members.append(live | fields | first)
    return config | {"members": members, "version": config["version"] + FORCED_VERSION_STEP}


def heard(status: Document) -> Iterator[Heard]:
    """What a member's status tells of the others."""
    now = status.get("date")
    for member in status["members"]:
        if member.get("self"):
            continue
        # Until a heartbeat has come the server says 1970.
        last = member.get("lastHeartbeatRecv") or member.get("lastHeartbeat")
        ago = (now - last).total_seconds() if now and last and last.year > 1970 else None
        applied = member.get("optimeDate")
        yield Heard(
            member["name"],
            member["stateStr"] if member.get("health", 1) else "DOWN",
            iso(applied) if applied and applied.year > 1970 else "",
            ago,
        )


def primaries_of(outlooks: Collection[Mapping[str, Any]]) -> list[str]:
    """Everybody whom any of the hosts has found to be a primary."""
    return sorted({host for outlook in outlooks for host in outlook["primaries"]})


def iso(moment: datetime) -> str:
    """The server's times are UTC without a zone."""
    return moment.replace(tzinfo=UTC).isoformat(timespec="milliseconds")
