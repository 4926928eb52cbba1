#!/usr/bin/python3
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The zone of the service names, and what makes its servers be of one mind.

Every server is a primary of its own, so that the one that is left can be rewritten when the other site is dead. What is
true is the zone with the highest serial. The zone's NS records are the servers that count: a redirect leaves out those
that it did not reach, and a server that is not among them joins again before it answers.

Installed on the name servers as `pst-dns`, which keeps a server closed to clients until it has heard all of the servers
that count, so that one that comes back does not answer with an old address. Also imported by the Ansible module.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

try:
    import dns.exception
    import dns.flags
    import dns.message
    import dns.name
    import dns.query
    import dns.rcode
    import dns.tsig
    import dns.update
    import dns.xfr
    import dns.zone

    HAS_DNSPYTHON = True
except ImportError:  # the module says so; a bare host has it after the role's install
    HAS_DNSPYTHON = False

SETTINGS = "/etc/pst/dns/settings.json"
SOCKET = "/run/knot/knot.sock"
ALIVE = Path("/run/pst-dns/alive")
# The control socket's program, and the module of Knot that refuses clients while a server is closed.
KNOTC = "/usr/sbin/knotc"
CLOSED = "mod-queryacl/servers"

# A server refuses clients here as well while it is closed; its own address and its peers' are let in.
LOOPBACK = "127.0.0.1"
PREFIX = "ns-"  # of a server's own name in the zone
MEMBER_TTL = 60
QUERY_SECONDS = 1.0
TRANSFER_SECONDS = 5.0


class ZoneError(Exception):
    """What is wrong, in words for the operator."""


@dataclass(frozen=True, order=True)
class Record:
    """One line of the zone, with absolute names."""

    owner: str
    ttl: int
    kind: str
    data: str


@dataclass(frozen=True)
class Zone:
    """What the zone says: where the services are, and which servers count."""

    serial: int
    ttl: int
    addresses: Mapping[str, str]
    members: Mapping[str, str]
    # What somebody else has put there; copied, never changed.
    extra: frozenset[Record] = field(default=frozenset())

    def says(self) -> tuple[Any, ...]:
        """Everything but the serial."""
        return self.ttl, dict(self.addresses), dict(self.members), self.extra

    def records(self, zone: str) -> frozenset[Record]:
        first = f"{PREFIX}{min(self.members)}.{zone}."
        soa = f"{first} hostmaster.{zone}. {self.serial} {self.ttl} {self.ttl} 60 {self.ttl}"
        lines = {Record(f"{zone}.", self.ttl, "SOA", soa)}
        for name, address in self.addresses.items():
            lines.add(Record(f"{name}.", self.ttl, kind_of(address), address))
        for member, address in self.members.items():
            lines.add(Record(f"{zone}.", MEMBER_TTL, "NS", f"{PREFIX}{member}.{zone}."))
            lines.add(Record(f"{PREFIX}{member}.{zone}.", MEMBER_TTL, kind_of(address), address))
        return frozenset(lines | self.extra)

    @classmethod
    def of(cls, zone: str, records: Iterable[Record]) -> Zone:
        """Read what a server has."""
        lines = sorted(records)
        soa = [line for line in lines if line.kind == "SOA"]
        if len(soa) != 1:
            raise ZoneError(f"{zone}: seen {len(soa)} SOA records, wanted one")
        own = [line for line in lines if line.kind in ("A", "AAAA")]
        ends = f".{zone}."
        counted = [line.data for line in lines if line.kind == "NS" and line.owner == f"{zone}."]
        members = {
            host.removeprefix(PREFIX).removesuffix(ends): next((line.data for line in own if line.owner == host), "")
            for host in counted
        }
        services = [line for line in own if not line.owner.startswith(PREFIX)]
        return cls(
            serial=int(soa[0].data.split()[2]),
            ttl=services[0].ttl if services else soa[0].ttl,
            addresses={line.owner.rstrip("."): line.data for line in services},
            members=members,
            extra=frozenset(line for line in lines if line.kind not in ("SOA", "NS", "A", "AAAA")),
        )

    def text(self, zone: str) -> str:
        """For a diff."""
        return "".join(f"{r.owner} {r.ttl} {r.kind} {r.data}\n" for r in sorted(self.records(zone)))


def kind_of(address: str) -> str:
    """Return the type of the record of an address."""
    return "A" if ip_address(address).version == 4 else "AAAA"


# What a server does next ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """`copy` from a peer, `join` through a peer, `open`, or `wait`."""

    what: str
    peer: str = ""
    why: str = ""


def decide(me: str, address: str, own: Zone | None, serials: Mapping[str, int | None]) -> Step:
    """What the server `me` does; `serials` holds the peers that answered, None for one that has no zone.

    A peer without a zone has lost its disk and is as good as one that was not heard: it first takes a copy.
    """
    heard = {peer: serial for peer, serial in serials.items() if serial is not None}
    newest = max(heard, key=lambda peer: (heard[peer], peer), default="")
    if newest and (own is None or heard[newest] > own.serial):
        return Step("copy", newest)
    if own is None:
        return Step("wait", why="it has no zone, and no server that answers has one")
    if own.members.get(me) != address:
        current = sorted(peer for peer in own.members if peer != me and heard.get(peer) == own.serial)
        if current:
            return Step("join", current[0])
        if set(own.members) - {me}:
            return Step("wait", why=f"it was left out, and none of {', '.join(sorted(own.members))} answers")
    if missing := sorted(peer for peer in own.members if peer != me and peer not in heard):
        return Step("wait", why=f"it has to hear {', '.join(missing)} first, who may know of a redirect")
    return Step("open")


def joined(zone: Zone, me: str, address: str, now: float) -> Zone:
    """Return the zone in which the server `me` counts."""
    return replace(zone, serial=max(zone.serial + 1, int(now)), members={**zone.members, me: address})


# What a run wants -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The zone that is wanted, the servers on which it is written, and those that nobody reached."""

    zone: Zone
    writers: tuple[str, ...]
    unreached: tuple[str, ...]

    @property
    def changed(self) -> bool:
        return bool(self.writers)


def plan(
    reads: Mapping[str, Mapping[str, Any]],
    servers: Mapping[str, str],
    names: Sequence[str],
    ttl: int,
    now: float,
    *,
    address: str,
    move: bool,
) -> Plan:
    """From what the reached servers said to the zone that all of them are to have.

    With `move` the names go to `address` and the servers that were not reached are left out. Without it the names stay
    where they are, and `address` is only for a zone that does not exist yet.
    """
    reached = {host: read for host, read in reads.items() if read.get("answers")}
    if not reached:
        seen = "; ".join(f"{host}: {read.get('problem') or 'not reached'}" for host, read in sorted(reads.items()))
        raise ZoneError(f"no name server was reached, so the names stay where they are ({seen or 'no server'})")
    heard = {peer for read in reached.values() for peer, serial in read["serials"].items() if serial is not None}
    there = {host: zone_of(read) for host, read in reached.items() if read.get("serial") is not None}
    serials = [serial for read in reached.values() for serial in read["serials"].values() if serial is not None]
    serials += [zone.serial for zone in there.values()]
    serial = max([int(now), *(serial + 1 for serial in serials)])
    alive = {server: at for server, at in servers.items() if server in reached or server in heard}
    unreached = tuple(sorted(set(servers) - set(alive)))
    if not there:
        if heard:
            raise ZoneError(f"{', '.join(sorted(heard))} have the zone; the others copy it. Run again in a few seconds")
        if unreached:
            raise ZoneError(
                f"no server that was reached has the zone, and {', '.join(unreached)} was not: it may be there, so none"
                " is made. Wanted: every server of dns_servers, or a run with --limit only after the first install"
            )
        return Plan(Zone(serial, ttl, dict.fromkeys(names, address), dict(servers)), (min(reached),), ())
    speaker = max(there, key=lambda host: (there[host].serial, host))
    live = there[speaker]
    if not move and max(serials) > live.serial:
        raise ZoneError(
            "a server that only the others reach has a newer zone; they copy it. Run again in a few seconds"
        )
    if not move:
        address = live.addresses[min(live.addresses)] if live.addresses else address
        alive = dict(live.members)
    wanted = replace(live, serial=serial, ttl=ttl, addresses=dict.fromkeys(names, address), members=alive)
    if wanted.says() == live.says():
        return Plan(live, (), unreached)
    # All of them at once where names move; else the others copy it.
    return Plan(wanted, tuple(sorted(reached)) if move else (speaker,), unreached)


def zone_of(read: Mapping[str, Any]) -> Zone:
    """Return the zone of what the module returned."""
    extra = frozenset(Record(*line) for line in read.get("extra", ()))
    return Zone(int(read["serial"]), int(read["ttl"]), dict(read["addresses"]), dict(read["members"]), extra)


# Talking to servers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Of this server, as the role has written them."""

    zone: str
    server: str
    servers: Mapping[str, str]
    key: str
    port: int = 53
    interval: float = 1.0
    silence: float = 15.0

    @property
    def address(self) -> str:
        return self.servers[self.server]

    @classmethod
    def read(cls, path: str) -> Settings:
        try:
            values = json.loads(Path(path).read_text())
            key = Path(values.pop("key_file")).read_text().strip()
            base64.b64decode(key, validate=True)
            return cls(key=key, **values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ZoneError(f"{path}: cannot be used: {error}") from None

    def at(self, address: str) -> Server:
        return Server(self.zone, address, self.port, self.key, self.address)


class Talker(Protocol):
    """A server that can be asked."""

    def serial(self) -> int | None: ...
    def zone(self) -> Zone: ...
    def write(self, old: Zone, new: Zone) -> None: ...


@dataclass(frozen=True)
class Server:
    """Speaks to one server, by TSIG but for what a client would ask."""

    name: str
    address: str
    port: int
    key: str
    source: str

    def serial(self) -> int | None:
        """The serial, or None where the server has no zone; by UDP."""
        query = dns.message.make_query(self.name, "SOA")
        query.flags &= ~dns.flags.RD
        query.use_tsig(self._key)
        answer = self._ask(partial(dns.query.udp, query, self.address, QUERY_SECONDS, self.port, self.source))
        if not answer.had_tsig:
            raise ZoneError(f"{self.address}: an answer that is not signed")
        if answer.rcode() == dns.rcode.SERVFAIL:
            return None
        if answer.rcode() != dns.rcode.NOERROR or not answer.answer:
            raise ZoneError(f"{self.address}: {dns.rcode.to_text(answer.rcode())}, wanted the zone {self.name}")
        return int(answer.answer[0][0].serial)

    def zone(self) -> Zone:
        """Everything that it has."""
        found = dns.zone.Zone(self.name, relativize=False)
        query, _ = dns.xfr.make_query(found, keyring=self._key)
        self._ask(
            partial(dns.query.inbound_xfr, self.address, found, query, self.port, TRANSFER_SECONDS, source=self.source)
        )
        return Zone.of(
            self.name,
            (
                Record(str(owner), rdataset.ttl, rdataset.rdtype.name, rdata.to_text())
                for owner, rdataset in found.iterate_rdatasets()
                for rdata in rdataset
            ),
        )

    def write(self, old: Zone, new: Zone) -> None:
        """Make it say `new`, unless it no longer says `old`."""
        update = dns.update.UpdateMessage(self.name)
        update.use_tsig(self._key)
        before, after = old.records(self.name), new.records(self.name)
        (soa,) = (r for r in before if r.kind == "SOA")
        update.present(soa.owner, "SOA", soa.data)
        # The last NS record of a zone cannot be taken away, so the new ones come first.
        added, gone = sorted(after - before), sorted(before - after)
        for record in (r for r in added if r.kind == "NS"):
            update.add(record.owner, record.ttl, record.kind, record.data)
        for record in (r for r in gone if r.kind != "SOA"):
            update.delete(record.owner, record.kind, record.data)
        for record in (r for r in added if r.kind not in ("NS", "SOA")):
            update.add(record.owner, record.ttl, record.kind, record.data)
        for record in (r for r in added if r.kind == "SOA"):
            update.add(record.owner, record.ttl, record.kind, record.data)
        answer = self._ask(
            partial(dns.query.tcp, update, self.address, TRANSFER_SECONDS, self.port, source=self.source)
        )
        if answer.rcode() != dns.rcode.NOERROR:
            raise ZoneError(f"{self.address}: refused the update: {dns.rcode.to_text(answer.rcode())}")

    def as_client(self, name: str, kind: str) -> tuple[str, list[str]]:
        """What anybody gets for a name: the answer's code and data."""
        query = dns.message.make_query(name, kind)
        answer = self._ask(partial(dns.query.udp, query, self.address, QUERY_SECONDS, self.port))
        found = [item.to_text() for rrset in answer.answer for item in rrset]
        return dns.rcode.to_text(answer.rcode()), found

    @property
    def _key(self) -> Any:
        return dns.tsig.Key("pst-dns", self.key, dns.tsig.HMAC_SHA256)

    def _ask(self, call: Any) -> Any:
        try:
            return call()
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise ZoneError(f"{self.address}: {type(error).__name__}: {error}") from None


def is_open(settings: Settings) -> bool | None:
    """Whether clients get an answer; None where the server has no zone, or does not answer."""
    try:
        code, _ = settings.at(LOOPBACK).as_client(settings.zone, "SOA")
    except ZoneError:
        return None
    return None if code == "SERVFAIL" else code == "NOERROR"


def ask_all(peers: Mapping[str, Talker]) -> dict[str, int | None]:
    """Serials of the peers that answer."""

    def ask(peer: str) -> tuple[str, int | None] | None:
        try:
            return peer, peers[peer].serial()
        except ZoneError:
            return None

    if not peers:
        return {}
    with ThreadPoolExecutor(len(peers)) as pool:
        return dict(found for found in pool.map(ask, peers) if found)


def peers_of(settings: Settings, own: Zone | None) -> dict[str, str]:
    """Other servers and their addresses: those that count, also where the settings do not know them."""
    known = {**(own.members if own else {}), **settings.servers}
    return {name: address for name, address in sorted(known.items()) if name != settings.server and address}


def knotc(*commands: Sequence[str]) -> None:
    """Give commands to the local server."""
    for command in commands:
        done = subprocess.run(  # noqa: S603
            [KNOTC, "-s", SOCKET, *command], capture_output=True, text=True, check=False, timeout=10
        )
        if done.returncode:
            raise ZoneError(f"knotc {' '.join(command)}: {(done.stderr or done.stdout).strip()}")


def create(settings: Settings, new: Zone) -> None:
    """Give a server that has no zone its first one; a dynamic update needs one that is there."""
    lines = [(r.owner, str(r.ttl), r.kind, *r.data.split()) for r in sorted(new.records(settings.zone))]
    knotc(["zone-begin", settings.zone])
    try:
        knotc(*(["zone-set", settings.zone, *line] for line in lines), ["zone-commit", settings.zone])
    except ZoneError:
        knotc(["zone-abort", settings.zone])
        raise


def set_open(settings: Settings, open_: bool) -> None:
    """Let clients in, or refuse them. Not kept: a server that starts is closed."""
    key = f"zone[{settings.zone}].module"
    knotc(["conf-begin"])
    try:
        knotc(["conf-unset", key] if open_ else ["conf-set", key, CLOSED], ["conf-commit"])
    except ZoneError:
        knotc(["conf-abort"])
        raise


# What an Ansible module does on a server ------------------------------------------------------------------------------


def read(settings: Settings) -> dict[str, Any]:
    """What this server has and hears."""
    local = settings.at(settings.address)
    found: dict[str, Any] = {"answers": False, "problem": "", "serial": None, "serials": {}, "open": None}
    try:
        own = local.zone() if local.serial() is not None else None
    except ZoneError as error:
        return {**found, "problem": str(error)}
    found |= {"answers": True, "open": is_open(settings)}
    found["serials"] = ask_all({name: settings.at(address) for name, address in peers_of(settings, own).items()})
    return found | described(own) if own else found


def described(zone: Zone) -> dict[str, Any]:
    """A zone as Ansible has it."""
    return {
        "serial": zone.serial,
        "ttl": zone.ttl,
        "addresses": dict(zone.addresses),
        "members": dict(zone.members),
        "extra": [[r.owner, r.ttl, r.kind, r.data] for r in sorted(zone.extra)],
    }


def write(settings: Settings, new: Zone, *, check: bool) -> tuple[Zone | None, Zone]:
    """Make this server say `new`; returns what it said and says. A higher serial is never taken back."""
    local = settings.at(settings.address)
    old = local.zone() if local.serial() is not None else None
    if old and old.serial >= new.serial:
        if old.serial > new.serial:
            raise ZoneError(
                f"serial: seen {old.serial}, wanted {new.serial} to be newer; somebody else has moved the names"
            )
        return old, old
    if not check:
        if old:
            local.write(old, new)
        else:
            create(settings, new)
    return old, new


def wrong(settings: Settings, wanted: Zone | None) -> list[str]:
    """What keeps this server and those that it hears from saying what is wanted, or from saying the same."""
    state = read(settings)
    if not state["answers"] or state["serial"] is None:
        return [f"{settings.server}: {state['problem'] or 'has no zone'}"]
    own = zone_of(state)
    problems = [] if state["open"] else [f"{settings.server}: refuses clients; `journalctl -u pst-dns` says why"]
    if wanted and own.serial < wanted.serial:
        problems.append(f"{settings.server}: serial {own.serial}, wanted {wanted.serial}")
    for name, address in (wanted or own).addresses.items():
        code, seen = settings.at(LOOPBACK).as_client(name, kind_of(address))
        if seen != [address]:
            problems.append(f"{settings.server}: {name} is {', '.join(seen) or code}, wanted {address}")
    for peer in sorted({*own.members, *state["serials"]} - {settings.server}):
        serial = state["serials"].get(peer)
        if serial != own.serial:
            said = "no answer" if peer not in state["serials"] else f"serial {serial or 'none'}"
            problems.append(f"{peer}: {said}, wanted {own.serial} as on {settings.server}")
    left_out = sorted(set(settings.servers) - set(own.members))
    if not wanted and left_out:
        problems.append(
            f"{', '.join(left_out)}: left out of the zone until it is back, wanted every one of dns_servers"
        )
    return problems


def prove(settings: Settings, wanted: Zone | None, seconds: float) -> list[str]:
    """Wait until nothing is wrong; returns what still is."""
    end = time.monotonic() + seconds
    while True:
        try:
            problems = wrong(settings, wanted)
        except ZoneError as error:
            problems = [str(error)]
        if not problems or time.monotonic() >= end:
            return problems
        time.sleep(0.5)


# The program that keeps the server in step ----------------------------------------------------------------------------


def notify(state: str) -> None:
    """Tell systemd."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


class Keeper:
    """Keeps one server in step with its peers, and closed until it is."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.local = settings.at(settings.address)
        self.own: Zone | None = None
        self.said = ""
        # Whether it was in step, without a gap in which it heard nobody: then a restart of the server changes nothing.
        self.current = gap() < settings.silence

    def round(self) -> bool:
        """Look once; true where there is more to do at once."""
        if self.current and gap() >= self.settings.silence:
            set_open(self.settings, False)
            self.current = False
            self.say(f"closed: it stood still for {self.settings.silence:.0f} seconds or more")
        serial = self.local.serial()
        if serial is None:
            self.own = None
        elif self.own is None or self.own.serial != serial:
            self.own = self.local.zone()
        peers = {name: self.settings.at(address) for name, address in peers_of(self.settings, self.own).items()}
        step = decide(self.settings.server, self.settings.address, self.own, ask_all(peers))
        if step.what == "copy":
            self.take(peers[step.peer].zone())
            return True
        # In step once, it answers on when peers die; what it may have missed while it stood still, it asks for first.
        self.current = self.own is not None and (step.what == "open" or self.current)
        if is_open(self.settings) is (not self.current):
            set_open(self.settings, self.current)
        self.say(": ".join(filter(None, ("open" if self.current else "closed", step.why))))
        if step.what == "join" and self.own is not None:
            new = joined(self.own, self.settings.server, self.settings.address, time.time())
            peers[step.peer].write(self.own, new)
            self.say(f"joined through {step.peer}")
            return True
        return False

    def take(self, new: Zone) -> None:
        if self.own is None:
            create(self.settings, new)
        else:
            self.local.write(self.own, new)
        self.say(f"copied serial {new.serial}: {', '.join(sorted(set(new.addresses.values())))}")

    def say(self, what: str) -> None:
        if what != self.said:
            print(what, flush=True)  # noqa: T201
            self.said = what

    def run(self) -> None:
        while True:
            again = False
            try:
                again = self.round()
                ALIVE.write_text(f"{now_with_sleep()}\n")
            except (ZoneError, subprocess.TimeoutExpired) as error:
                self.say(str(error))
            notify(f"READY=1\nWATCHDOG=1\nSTATUS={self.said}")
            if not again:
                time.sleep(self.settings.interval)


def now_with_sleep() -> float:
    """Seconds since the boot, those in which the machine slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def gap() -> float:
    """Seconds since the program last looked, in this boot."""
    try:
        return now_with_sleep() - float(ALIVE.read_text())
    except (OSError, ValueError):
        return float("inf")


def main() -> int:
    """Run as a service."""
    path = sys.argv[1] if len(sys.argv) > 1 else SETTINGS
    try:
        Keeper(Settings.read(path)).run()
    except ZoneError as error:
        print(error, file=sys.stderr)  # noqa: T201
    return 78  # systemd: configuration


if __name__ == "__main__":
    sys.exit(main())
