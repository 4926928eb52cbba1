"""The zone of the service names: what a server may answer, and what a redirect makes of servers, there or not."""

from __future__ import annotations

import itertools
import socket
import threading
from dataclasses import replace

import dns.message
import dns.name
import dns.rcode
import dns.tsig
import pytest

from ansible_collections.pst.platform.plugins.module_utils import dns_zone as dz

ZONE = "trading.example.net"
NAMES = [ZONE, f"api.{ZONE}"]
ONE, TWO = "192.0.2.10", "198.51.100.10"
A, B = "192.0.2.61", "198.51.100.61"
SERVERS = {"a": A, "b": B}
KEY = "c2VjcmV0" * 4


def zone(serial=100, at=ONE, members=("a", "b"), ttl=5, **more):
    return dz.Zone(serial, ttl, dict.fromkeys(NAMES, at), {m: SERVERS[m] for m in members}, **more)


def read(zone, serials, **more):
    return {"answers": True, "serial": None, "serials": serials, **(dz.described(zone) if zone else {}), **more}


def planned(reads, *, to=TWO, now=1000, **more):
    return dz.plan(reads, SERVERS, NAMES, 5, now, address=to, **{"move": True, **more})


# The zone


def test_a_zone_is_read_as_it_was_written():
    extra = frozenset({dz.Record(f"{ZONE}.", 60, "TXT", '"mine"')})
    for written in (zone(extra=extra), replace(zone(), addresses=dict.fromkeys(NAMES, "2001:db8::10"))):
        assert dz.Zone.of(ZONE, written.records(ZONE)) == written


def test_a_zone_without_a_serial_is_refused():
    with pytest.raises(dz.ZoneError, match="0 SOA"):
        dz.Zone.of(ZONE, [])


# What a server may answer


@pytest.mark.parametrize(
    ("own", "heard", "step"),
    [
        # In step with all who count.
        (zone(), {"b": 100}, "open"),
        (zone(), {"b": 90}, "open"),
        # Back from a dead site: whoever may know better is heard first.
        (zone(), {}, "wait"),
        (zone(), {"b": 200}, "copy"),
        # The peer lost its disk: it copies first, then it can be heard.
        (zone(), {"b": None}, "wait"),
        # Left out by a redirect, the other one need not be heard: it does not answer before it has heard this one.
        (zone(members=["a"]), {}, "open"),
        (zone(members=["a"]), {"b": 90}, "open"),
        # The one that was left out joins before it answers, through one that has the newest zone.
        (zone(members=["b"]), {"b": 100}, "join"),
        (zone(members=["b"]), {}, "wait"),
        (zone(members=["b"]), {"b": 90}, "wait"),
        # A new server.
        (None, {"b": 100}, "copy"),
        (None, {"b": None}, "wait"),
        (None, {}, "wait"),
    ],
)
def test_what_a_server_does(own, heard, step):
    assert dz.decide("a", A, own, heard).what == step


def test_a_server_with_a_new_address_joins_again():
    assert dz.decide("a", "192.0.2.99", zone(), {"b": 100}).what == "join"


def test_joining_makes_a_newer_zone_in_which_it_counts():
    new = dz.joined(zone(500, members=["b"]), "a", A, 400)
    assert (new.serial, dict(new.members)) == (501, SERVERS)


class World:
    """Two servers that die, come back and are cut off, and an operator that moves the names; the rules of `Keeper`."""

    def __init__(self):
        self.zones = {"a": zone(), "b": zone()}
        self.up = {"a": True, "b": True}
        self.linked = True
        self.open = {"a": True, "b": True}
        self.clock = 1000
        self.truth = ONE

    def other(self, me):
        return "b" if me == "a" else "a"

    def hears(self, me):
        return self.linked and self.up[self.other(me)]

    def settle(self):
        """Let every server look until nothing changes."""
        before = None
        while before != (before := (dict(self.zones), dict(self.open))):
            for me in [m for m in "ab" if self.up[m]]:
                peer = self.other(me)
                heard = {peer: self.zones[peer].serial} if self.hears(me) else {}
                step = dz.decide(me, SERVERS[me], self.zones[me], heard)
                if step.what == "copy":
                    self.zones[me] = self.zones[peer]
                elif step.what == "join":
                    self.clock += 1
                    self.zones[peer] = dz.joined(self.zones[me], me, SERVERS[me], self.clock)
                self.open[me] = self.open[me] or step.what == "open"

    def do(self, act):
        if act[0] == "kill":
            self.up[act[1]] = self.open[act[1]] = False
        elif act[0] == "start" and not self.up[act[1]]:
            self.up[act[1]] = True
        elif act[0] == "cut":
            self.linked = False
        elif act[0] == "heal":
            self.linked = True
        elif act[0] == "redirect":
            # The operator reaches every server that is up.
            self.clock += 10
            reads = {
                me: read(self.zones[me], {self.other(me): self.zones[self.other(me)].serial} if self.hears(me) else {})
                for me in "ab"
                if self.up[me]
            }
            if not reads:
                return
            plan = planned(reads, to=act[1], now=self.clock)
            for me in plan.writers:
                self.zones[me] = plan.zone
            self.truth = act[1]
        self.settle()


ACTS = [
    *[(verb, server) for verb in ("kill", "start") for server in "ab"],
    ("redirect", ONE),
    ("redirect", TWO),
]


def test_no_server_ever_answers_with_an_old_address():
    """Every order of 4 deaths, returns and redirects: whoever answers says what the last redirect said. 6 held once."""
    for acts in itertools.product(ACTS, repeat=4):
        world = World()
        for act in acts:
            world.do(act)
            for me in "ab":
                if world.up[me] and world.open[me]:
                    assert set(world.zones[me].addresses.values()) == {world.truth}, acts


def test_a_server_that_is_cut_off_and_starts_again_stays_closed():
    world = World()
    for act in [("cut",), ("kill", "a"), ("redirect", TWO), ("start", "a")]:
        world.do(act)
    assert world.up["a"]
    assert not world.open["a"]
    world.do(("heal",))
    assert world.open["a"]
    assert set(world.zones["a"].addresses.values()) == {TWO}


def test_both_answer_when_both_are_back():
    world = World()
    for act in [("kill", "a"), ("redirect", TWO), ("kill", "b"), ("start", "b"), ("start", "a")]:
        world.do(act)
    assert world.open == {"a": True, "b": True}
    assert dict(world.zones["a"].members) == dict(world.zones["b"].members) == SERVERS


# What a run wants


def test_the_first_server_makes_the_zone_when_none_has_it():
    plan = planned({"a": read(None, {"b": None}), "b": read(None, {"a": None})}, to=ONE, move=False)
    assert (plan.writers, plan.zone.serial, dict(plan.zone.addresses)) == (("a",), 1000, dict.fromkeys(NAMES, ONE))
    assert dict(plan.zone.members) == SERVERS


def test_no_zone_is_made_while_a_server_may_have_one():
    with pytest.raises(dz.ZoneError, match="b was not: it may be there"):
        planned({"a": read(None, {})}, to=ONE, move=False)
    with pytest.raises(dz.ZoneError, match="the others copy it"):
        planned({"a": read(None, {"b": 100})}, to=ONE, move=False)


def test_a_run_does_not_move_the_names_back():
    live = zone(at=TWO)
    plan = planned({"a": read(live, {"b": 100}), "b": read(live, {"a": 100})}, to=ONE, move=False)
    assert (plan.writers, plan.zone) == ((), live)


def test_a_run_does_not_bring_back_a_server_that_was_left_out():
    live = zone(at=TWO, members=["b"])
    assert not planned({"b": read(live, {})}, to=ONE, move=False).changed


def test_a_new_name_goes_where_the_others_are():
    live = zone(at=TWO)
    reads = {"a": read(zone(90), {"b": 100}), "b": read(live, {"a": 90})}
    plan = dz.plan(reads, SERVERS, [*NAMES, f"new.{ZONE}"], 7, 50, address=ONE, move=False)
    assert plan.writers == ("b",)
    assert (plan.zone.addresses[f"new.{ZONE}"], plan.zone.ttl, plan.zone.serial) == (TWO, 7, 101)


def test_a_run_waits_for_a_zone_that_only_others_reach():
    with pytest.raises(dz.ZoneError, match="newer zone"):
        planned({"a": read(zone(), {"b": 200})}, move=False)


def test_a_redirect_moves_every_name_on_every_server():
    plan = planned({"a": read(zone(), {"b": 100}), "b": read(zone(), {"a": 100})})
    assert plan.writers == ("a", "b")
    assert plan.zone == zone(1000, at=TWO)
    assert plan.unreached == ()


def test_a_redirect_again_changes_nothing():
    live = zone(at=TWO)
    assert not planned({"a": read(live, {"b": 100}), "b": read(live, {"a": 100})}).changed


def test_a_redirect_leaves_out_what_it_does_not_reach():
    plan = planned({"a": {"unreachable": True}, "b": read(zone(), {})})
    assert (plan.writers, plan.unreached, dict(plan.zone.members)) == (("b",), ("a",), {"b": B})


def test_a_redirect_counts_a_server_that_only_the_other_reaches():
    plan = planned({"a": {"unreachable": True}, "b": read(zone(), {"a": 2000})})
    assert (plan.writers, plan.unreached, plan.zone.serial) == (("b",), (), 2001)


def test_a_serial_only_grows_also_when_the_clock_is_wrong():
    assert planned({"b": read(zone(5000), {})}, now=10).zone.serial == 5001


def test_a_redirect_to_the_same_site_drops_a_dead_server():
    """So a server that waits for one that is gone for good is let in by an operator's word."""
    plan = planned({"a": read(zone(), {}, open=False)}, to=ONE)
    assert plan.changed
    assert dict(plan.zone.members) == {"a": A}


def test_a_redirect_that_reaches_nobody_says_why():
    reads = {"a": {"unreachable": True}, "b": {"answers": False, "problem": "refused", "serials": {}}}
    with pytest.raises(dz.ZoneError, match="a: not reached; b: refused"):
        planned(reads)


# Talking


class FakeServer:
    """Answers one query for the SOA record, as told."""

    def __init__(self, answer):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.answer = answer
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        wire, client = self.socket.recvfrom(4096)
        keyring = {dns.name.from_text("pst-dns"): dns.tsig.Key("pst-dns", KEY, dns.tsig.HMAC_SHA256)}
        query = dns.message.from_wire(wire, keyring=keyring)
        self.socket.sendto(self.answer(query).to_wire(), client)
        self.socket.close()


def signed(query, rcode=dns.rcode.NOERROR):
    answer = dns.message.make_response(query)
    answer.set_rcode(rcode)
    return answer


def asked(answer):
    server = FakeServer(answer)
    return dz.Server(ZONE, "127.0.0.1", server.port, KEY, "127.0.0.1").serial()


def test_a_server_without_the_zone_says_so():
    assert asked(lambda query: signed(query, dns.rcode.SERVFAIL)) is None


def test_an_answer_that_is_not_signed_is_worth_nothing():
    def forged(query):
        return signed(dns.message.make_query(ZONE, "SOA", id=query.id), dns.rcode.SERVFAIL)

    with pytest.raises(dz.ZoneError, match=r"TSIG|not signed"):
        asked(forged)


def test_a_refusal_is_no_serial():
    with pytest.raises(dz.ZoneError, match="NOTAUTH"):
        asked(lambda query: signed(query, dns.rcode.NOTAUTH))


def test_peers_are_also_those_that_only_the_zone_knows():
    settings = dz.Settings(ZONE, "a", {"a": A}, KEY)
    assert dz.peers_of(settings, zone()) == {"b": B}
    assert dz.peers_of(settings, None) == {}


def test_settings_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "settings.json").write_text('{"zone": "x"}')
    with pytest.raises(dz.ZoneError, match="key_file"):
        dz.Settings.read(str(tmp_path / "settings.json"))


# The program beside the server


class Fake:
    """A server in memory."""

    def __init__(self, zone):
        self.held = zone

    def serial(self):
        return self.held.serial if self.held else None

    def zone(self):
        return self.held

    def write(self, _old, new):
        self.held = new


@pytest.fixture
def keeper(tmp_path, monkeypatch):
    """Return the keeper of server a, with a peer b, a gate, and a clock that can be set."""
    monkeypatch.setattr(dz, "ALIVE", tmp_path / "alive")
    clock = [1000.0]
    monkeypatch.setattr(dz, "now_with_sleep", lambda: clock[0])
    settings = dz.Settings(ZONE, "a", SERVERS, KEY)
    local, peer = Fake(zone()), Fake(zone())
    monkeypatch.setattr(dz.Settings, "at", lambda _self, address: local if address == A else peer)
    keeper = dz.Keeper(settings)
    keeper.clock, keeper.peer, keeper.gate = clock, peer, False
    monkeypatch.setattr(dz, "is_open", lambda _settings: keeper.gate)
    monkeypatch.setattr(dz, "set_open", lambda _settings, open_: setattr(keeper, "gate", open_))
    return keeper


def look(keeper, seconds=1.0):
    """Let it look as `run` does."""
    keeper.clock[0] += seconds
    while keeper.round():
        pass
    dz.ALIVE.write_text(f"{keeper.clock[0]}\n")


def silent():
    raise dz.ZoneError("no answer")


def test_it_copies_before_it_opens(keeper):
    keeper.peer.held = zone(200, at=TWO)
    look(keeper)
    assert keeper.local.held == zone(200, at=TWO)
    assert keeper.gate


def test_it_stays_closed_until_it_has_heard_the_other_one(keeper):
    keeper.peer.serial = silent
    look(keeper)
    assert not keeper.gate
    del keeper.peer.serial
    look(keeper)
    assert keeper.gate


def test_once_open_it_answers_on_when_the_other_one_dies(keeper):
    look(keeper)
    keeper.peer.serial = silent
    look(keeper)
    assert keeper.gate


def test_a_restart_of_the_server_alone_needs_nobody(keeper):
    look(keeper)
    keeper.peer.serial = silent
    keeper.gate = False
    look(keeper)
    assert keeper.gate


def test_a_machine_that_slept_asks_first(keeper):
    look(keeper)
    keeper.peer.serial = silent
    look(keeper, seconds=60)
    assert not keeper.gate
    del keeper.peer.serial
    look(keeper)
    assert keeper.gate


def test_the_program_that_starts_again_goes_on(keeper):
    look(keeper)
    keeper.clock[0] += 2
    assert dz.Keeper(keeper.settings).current
    keeper.clock[0] += 60
    assert not dz.Keeper(keeper.settings).current


def test_left_out_it_joins_and_opens(keeper):
    keeper.peer.held = zone(200, at=TWO, members=["b"])
    look(keeper)
    assert keeper.gate
    assert dict(keeper.local.held.members) == dict(keeper.peer.held.members) == SERVERS
    assert set(keeper.local.held.addresses.values()) == {TWO}


def test_what_is_wrong_is_named(keeper, monkeypatch):
    monkeypatch.setattr(dz, "ask_all", lambda _peers: {"b": 90})
    monkeypatch.setattr(dz.Settings, "at", lambda _self, _address: keeper.local)
    keeper.local.as_client = lambda name, _kind: ("NOERROR", [ONE if name == ZONE else TWO])
    keeper.local.held = zone(members=["a"])
    problems = dz.wrong(keeper.settings, None)
    assert problems == [
        "a: refuses clients; `journalctl -u pst-dns` says why",
        f"a: api.{ZONE} is {TWO}, wanted {ONE}",
        "b: serial 90, wanted 100 as on a",
        "b: left out of the zone until it is back, wanted every one of dns_servers",
    ]


def test_a_serial_is_never_taken_back(keeper):
    with pytest.raises(dz.ZoneError, match="somebody else has moved the names"):
        dz.write(keeper.settings, zone(99, at=TWO), check=False)
    assert keeper.local.held == zone()
    assert dz.write(keeper.settings, zone(101, at=TWO), check=True) == (zone(), zone(101, at=TWO))
    assert keeper.local.held == zone()
