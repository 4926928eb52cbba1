"""`make drill-dr`: the platform moves between the lab and its second site while writes and orders flow.

Needs the lab and lab_dr up (`make lab lab-dr`). DR_REPETITIONS (5) of each kind; DR_KINDS chooses some. Each repetition
writes `reports/dr-<kind>-<UTC time>.json`.

Who is believed: the broker's order log (lab-mon1, the outside world of both sites, is never killed), the ledger of a
writer that runs on an application node of the second site, and a client that follows the service's name.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import dns.exception
import dns.resolver
import lab
import pytest
import trade_once
import trading

from ansible_collections.pst.platform.plugins.module_utils.dr import durations

REPETITIONS = int(os.environ.get("DR_REPETITIONS", "5"))
KINDS = os.environ.get("DR_KINDS", "rehearsed,planned,broken_off,unplanned,cut_off").split(",")
BOTH = ("-i", "inventories/lab_dr")
STATE = lab.ROOT / "inventories" / "lab_dr" / ".state"
SITES = {lab.VIP: "lab", "10.78.1.10": "lab_dr"}
NAME = f"trading.{lab.DOMAIN}"
WORLD = trading.OUTSIDE  # with the name server
WORLD_ADDRESS = "10.78.0.61"
KILLED = tuple(host for host in lab.HOSTS if host != WORLD)
WRITER = "dr-app1"
MEMBERS = "dr-mongo1.lab-dr.pst.test:27017,dr-mongo2.lab-dr.pst.test:27017"
BEGAN = trading.now()
Record = dict[str, Any]


def at_second(command: str, host: str = WRITER, **options: Any) -> str:
    """Run a shell command as root on a host of the second site."""
    known, lab.STATE = lab.STATE, STATE
    try:
        return lab.ssh(host, command, **options)
    finally:
        lab.STATE = known


@dataclass
class Answer:
    at: float
    site: str  # whose virtual address the name stood for
    good: bool


class Requests:
    """A client that knows the service by its name: four times a second it asks, and writes down who answered."""

    def __init__(self) -> None:
        self.seen: list[Answer] = []
        self._resolver = dns.resolver.Resolver(configure=False)
        self._resolver.nameservers = [WORLD_ADDRESS]
        self._resolver.cache = dns.resolver.Cache()  # as long as the answer says, as everybody's does
        self._context = ssl.create_default_context(cafile=str(lab.STATE / "pki" / "ca.crt"))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._over.wait(0.25):
            site, good = "", False
            with suppress(OSError, dns.exception.DNSException):
                address = self._resolver.resolve(NAME, "A", lifetime=3)[0].to_text()
                site = SITES[address]
                good = self._asked(address)
            self.seen.append(Answer(time.time(), site, good))

    def _asked(self, address: str) -> bool:
        question = f"GET /version HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"
        with (
            socket.create_connection((address, 443), 3) as plain,
            self._context.wrap_socket(plain, server_hostname=NAME) as link,
        ):
            link.sendall(question.encode())
            return link.recv(64).startswith(b"HTTP/1.1 200 ")

    def first(self, site: str, since: datetime) -> datetime:
        """When that site first answered; waits for it."""

        def look() -> datetime | None:
            found = (a.at for a in self.seen if a.good and a.site == site and a.at >= since.timestamp())
            return next((datetime.fromtimestamp(at, UTC) for at in found), None)

        return lab.eventually(f"an answer of {site} by its name", look, 120, 0.5) or since

    def outage(self) -> float:
        """The longest time without an answer of any site, in seconds."""
        good = [answer.at for answer in self.seen if answer.good]
        return round(max((b - a for a, b in pairwise(good)), default=0.0), 1)

    def failed(self) -> int:
        return sum(not answer.good for answer in self.seen)


def orders() -> list[Record]:
    """Everything that the broker has written down."""
    text = lab.ssh(WORLD, f"cat {trading.ORDER_LOG}", timeout=60)
    return [json.loads(line) for line in text.splitlines()]


def placed(records: list[Record], since: datetime, site: str = "") -> list[Record]:
    """What was placed since, by the gateways of a site or of both."""
    prefix = {"lab": "lab-", "lab_dr": "dr-", "": ""}[site]
    found = (r for r in records if r["event"] == "placed" and trading.when(r) >= since)
    return [r for r in found if r["gateway"].startswith(prefix)]


def duplicates(records: list[Record]) -> list[str]:
    """References of which the broker has taken more than one order; a reference ends with what it was made from.

    The second one in this drill, the first one whenever it was: another drill may have traded by hand before.
    """
    times: defaultdict[str, list[datetime]] = defaultdict(list)
    for order in trade_once.placements(records):
        for name in (order.reference, "" if order.origin is None else str(order.origin)):
            times[name].append(order.at)
    return sorted(name for name, at in times.items() if name and len(at) > 1 and max(at) >= BEGAN)


def wait_for_order(site: str, since: datetime, within: float = 180) -> Record:
    """The first order that a site's gateway has passed on since."""

    def look() -> Record | None:
        return next(iter(placed(orders(), since, site)), None)

    return lab.eventually(f"an order from {site}", look, within, 1) or {}


@contextmanager
def ledger() -> Iterator[dict[str, Any]]:
    """Writes, each acknowledged by the majority, from the second site; the verdict is there at the end."""
    source = (lab.TOOLS / "mongo_writer.py").read_text()
    arguments = (
        f"--hosts {MEMBERS} --replica-set pysystemtrade-rs --user app --password-file /run/drill-password "
        "--database production --ca-file /etc/pst/pki/ca.crt --seconds 900 --rate 20 --threads 2 "
        "--output /run/drill-verdict"
    )
    at_second("umask 077; cat > /run/drill-password", stdin=lab.secret("mongodb_app_password"))
    at_second("cat > /run/drill-writer.py", stdin=source)
    at_second(
        "rm -f /run/drill-verdict; systemd-run --quiet --collect --unit=drill-writer "
        f"/srv/pst/blue/venv/bin/python /run/drill-writer.py {arguments}"
    )
    verdict: dict[str, Any] = {}
    try:
        yield verdict
        at_second("systemctl kill --signal=TERM drill-writer")
        lab.eventually("the verdict", lambda: at_second("cat /run/drill-verdict", check=False), 120, 1)
        verdict |= json.loads(at_second("cat /run/drill-verdict"))
    finally:
        at_second("systemctl stop drill-writer; rm -f /run/drill-password", check=False)


def ready() -> bool:
    return lab.playbook("dr-status", *BOTH).code == 0


def promote(to: str, *arguments: str) -> lab.Run:
    return lab.playbook("dr-promote", *BOTH, "-e", f"dr_to={to}", *arguments, timeout=1200)


def newest(kind: str) -> Record:
    """The newest report of a playbook."""
    path = max(lab.REPORTS.glob(f"{kind}-*.json"), key=lambda path: path.stat().st_mtime)
    found: Record = json.loads(path.read_text())
    return found


def steps_of() -> list[Record]:
    """The steps of the newest promotion, each with its seconds; the last one only marks the end."""
    return [{"step": step["step"], "s": step["s"]} for step in durations(newest("dr-promote")["steps"])[:-1]]


def report(kind: str, **figures: Any) -> Record:
    lab.REPORTS.mkdir(exist_ok=True)
    found = {"kind": kind, "at": trading.now().isoformat(timespec="seconds"), **figures}
    path = lab.REPORTS / f"dr-{kind}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"measured {path.name}: {json.dumps(found)}")
    return found


def seconds(later: datetime, earlier: datetime) -> float:
    return round((later - earlier).total_seconds(), 1)


def moved(kind: str, to: str) -> Record:
    """One move, measured. A site that has led until just now takes some seconds until it is ready to stand by."""
    lab.eventually("a site that is ready", ready, 180, 3)
    wait_for_order("lab" if to == "lab_dr" else "lab_dr", trading.now())
    with Requests() as client, ledger() as verdict:
        time.sleep(3)
        began = trading.now()
        run = lab.succeed(promote(to))
        first = trading.when(wait_for_order(to, began))
        answered = client.first(to, began)
        time.sleep(3)
    everything = orders()
    before = [trading.when(r) for r in placed(everything, datetime.fromtimestamp(0, UTC)) if trading.when(r) < first]
    return report(
        kind,
        to=to,
        rto_s=seconds(max(first, answered), began),
        requests_outage_s=client.outage(),
        requests_failed=client.failed(),
        requests=len(client.seen),
        request_s=seconds(answered, began),
        order_s=seconds(first, began),
        without_orders_s=seconds(first, max(before)),
        rpo_writes_lost=verdict["lost"],
        rpo_s=0.0 if not verdict["lost"] else None,
        writes_acked=verdict["acked"],
        writes_longest_gap_s=verdict["longest_gap_s"],
        duplicate_orders=len(duplicates(everything)),
        orders_lost=unfinished(everything),
        playbook_s=round(run.seconds, 1),
        steps=steps_of(),
    )


def unfinished(records: list[Record]) -> int:
    """Orders that the broker took and that came to no end, for longer than a minute."""
    return sum((trading.now() - order.at).total_seconds() > 60 for order in trade_once.open_at_broker(records))


def converged() -> None:
    for arguments in ((), BOTH):
        run = lab.succeed(lab.playbook("site", *arguments))
        assert run.total("changed") == 0, run.changed_tasks()


@pytest.mark.skipif("rehearsed" not in KINDS, reason="DR_KINDS")
def test_a_rehearsal_times_a_failover_and_leaves_nothing() -> None:
    began = trading.now()
    lab.succeed(lab.playbook("dr-drill", *BOTH, timeout=1200))
    found = newest("dr-drill")
    assert (found["verdict"], found["to"]) == ("ok", "lab_dr")
    assert 0 < found["estimated_rto_s"] < 900
    assert found["copy"]["documents"] > 0
    for host in ("dr-mongo1", "dr-mongo2", WRITER):
        left = "ls -d /var/lib/mongodb-drill /run/pst-drill /etc/pst/drill 2>/dev/null; "
        left += "systemctl list-units -q 'mongod-drill*' 'pst-*@drill*'"
        assert at_second(left, host, check=False).strip() == ""
    assert placed(orders(), began, "lab_dr") == []
    wait_for_order("lab", trading.now())


@pytest.mark.skipif("planned" not in KINDS, reason="DR_KINDS")
@pytest.mark.parametrize("number", range(REPETITIONS))
def test_a_planned_switchover_loses_nothing(number: int) -> None:
    for to in ("lab_dr", "lab"):
        found = moved("planned" if to == "lab_dr" else "failback", to)
        assert (found["rpo_writes_lost"], found["duplicate_orders"], found["orders_lost"]) == (0, 0, 0)
    if number == REPETITIONS - 1:
        converged()


@pytest.mark.skipif("unplanned" not in KINDS, reason="DR_KINDS")
@pytest.mark.parametrize("number", range(REPETITIONS))
def test_a_site_that_is_lost_at_once_is_replaced(number: int) -> None:
    with Requests() as client, ledger() as verdict:
        time.sleep(5)
        lab.engine("kill", *map(lab.container, KILLED))
        lost_at = trading.now()
        try:
            refused = promote("lab_dr", "-e", "dr_kind=unplanned")
            assert refused.code != 0
            assert "confirm: seen nothing, wanted -e confirm=lab_dr" in refused.output
            confirmed = trading.now()
            run = lab.succeed(promote("lab_dr", "-e", "dr_kind=unplanned", "-e", "confirm=lab_dr"))
            first = trading.when(wait_for_order("lab_dr", confirmed))
            answered = client.first("lab_dr", confirmed)
            time.sleep(3)
        finally:
            lab.engine("start", *map(lab.container, KILLED))
    everything = orders()
    found = report(
        "unplanned",
        to="lab_dr",
        rto_s=seconds(max(first, answered), confirmed),
        request_s=seconds(answered, confirmed),
        order_s=seconds(first, confirmed),
        requests_outage_s=client.outage(),
        since_the_loss_s=seconds(max(first, answered), lost_at),
        rpo_writes_lost=verdict["lost"],
        writes_acked=verdict["acked"],
        printed=[
            line.strip()
            for line in refused.output.splitlines()
            if "known to be missing" in line or "not known:" in line
        ],
        duplicate_orders=len(duplicates(everything)),
        orders_lost=unfinished(everything),
        playbook_s=round(run.seconds, 1),
        steps=steps_of(),
    )
    assert found["duplicate_orders"] == 0
    back = lab.succeed(lab.playbook("dr-failback", *BOTH, "-e", "dr_to=lab", timeout=1800))
    report(
        "failback",
        to="lab",
        playbook_s=round(back.seconds, 1),
        duplicate_orders=len(duplicates(orders())),
        steps=steps_of(),
    )
    converged()


LINK = lab.ROOT / "roles/lab_host/files/link.sh"
SUBNETS = ("10.78.0.0/24", "10.78.1.0/24")


def iptables(*rule: str) -> None:
    subprocess.run(["iptables", "-w", "10", *rule], check=True, timeout=20)


@contextmanager
def cut_off() -> Iterator[None]:
    """The first site lives on, and reaches the broker; neither the second site nor this machine reaches it."""
    ways = ((WORLD_ADDRESS, SUBNETS[1]), (SUBNETS[1], WORLD_ADDRESS))
    tables = (("filter", "DOCKER-USER"), ("nat", "POSTROUTING"))
    let_pass = [
        (table, chain, "-s", one, "-d", other, "-j", "ACCEPT") for table, chain in tables for one, other in ways
    ]
    hosts = [
        lab.engine("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", lab.container(h))
        for h in KILLED
    ]
    for table, *rule in let_pass:
        iptables("-t", table, "-I", *rule)
    subprocess.run(["sh", str(LINK), "down", *SUBNETS], check=True, timeout=30)
    for address in hosts:
        iptables("-I", "OUTPUT", "-d", address, "-j", "DROP")
    try:
        yield
    finally:
        for address in hosts:
            iptables("-D", "OUTPUT", "-d", address, "-j", "DROP")
        subprocess.run(["sh", str(LINK), "up", *SUBNETS], check=True, timeout=30)
        for table, *rule in let_pass:
            iptables("-t", table, "-D", *rule)


@pytest.mark.skipif("cut_off" not in KINDS, reason="DR_KINDS")
@pytest.mark.parametrize("number", range(REPETITIONS))
def test_a_site_that_is_cut_off_trades_no_more_once_the_other_one_does(number: int) -> None:
    with cut_off():
        cut_at = trading.now()
        wait_for_order("lab", cut_at)  # it trades on: the broker answers it, and its own majority
        confirmed = trading.now()
        run = lab.succeed(promote("lab_dr", "-e", "dr_kind=unplanned", "-e", "confirm=lab_dr"))
        first = wait_for_order("lab_dr", confirmed)
        time.sleep(30)
        during = orders()
    # It hears of the other site again, and still runs.
    healed = trading.now()
    time.sleep(60)
    everything = orders()
    late = placed(everything, trading.when(first), "lab")
    last = [trading.when(r) for r in placed(during, cut_at, "lab")]
    found = report(
        "cut_off",
        to="lab_dr",
        rto_s=seconds(trading.when(first), confirmed),
        old_site_stopped_before_s=seconds(trading.when(first), max(last)),
        orders_of_the_old_site_after=len(late),
        duplicate_orders=len(duplicates(everything)),
        orders_lost=unfinished(everything),
        playbook_s=round(run.seconds, 1),
        steps=steps_of(),
    )
    assert (found["orders_of_the_old_site_after"], found["duplicate_orders"]) == (0, 0)
    states = {host: lab.ssh(host, "pst-trading status --json", check=False) for host in lab.APPS}
    assert not any('"holds": true' in state for state in states.values()), states
    assert not placed(orders(), healed, "lab")
    lab.succeed(lab.playbook("dr-failback", *BOTH, "-e", "dr_to=lab", timeout=1800))
    converged()


# Broken off and failed ------------------------------------------------------------------------------------------------

# Where a run is killed: the name of a task of each step, as ansible-playbook prints it when the task begins.
MOMENTS = (
    "Have nobody generate, then nobody trade, then nobody hold anything",
    "Wait until nothing is missing here",
    "mongodb : Look at the set, or have this site lead it",
    "ib_gateway : Read what is left of it",
    "ib_gateway : Run the gateway",
    "Have the leases taken here",
    "Let the guards take them",
    "Ask through the virtual address of this site, by the name that clients use",
)
SPOILED = "/run/systemd/system/ib-gateway.service.d/drill.conf"


def disturbed(to: str, moment: str, act: Callable[[subprocess.Popen[str]], None]) -> lab.Run:
    """A planned promotion, and something that happens when a task of its last plays begins."""
    log = lab.REPORTS / "test" / "dr-disturbed.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("w") as output:
        process = lab.start_playbook("dr-promote", *BOTH, "-e", f"dr_to={to}", output=output.fileno())
    try:
        while process.poll() is None and moment:
            move = log.read_text().partition("PLAY [Move the platform]")[2]
            if f"TASK [{moment}]" in move:
                act(process)
                moment = ""
            time.sleep(0.1)
        process.wait(900)
    finally:
        if process.poll() is None:
            lab.kill(process)
    assert not moment, f"{moment} did not begin: {log.read_text()[-4000:]}"
    return lab.Run(process.returncode, log.read_text(), time.monotonic() - began)


def alternated(records: list[Record]) -> int:
    """How often the site changed that sends orders; once is a move."""
    sites = [r["gateway"].partition("-")[0] for r in records if r["event"] == "placed" and r["gateway"]]
    return sum(one != other for one, other in pairwise(sites))


@pytest.mark.skipif("broken_off" not in KINDS, reason="DR_KINDS")
@pytest.mark.parametrize("number", range(len(MOMENTS)))
def test_a_switchover_that_is_killed_is_carried_on(number: int) -> None:
    source, to = ("lab", "lab_dr") if number % 2 == 0 else ("lab_dr", "lab")
    began = trading.now()
    wait_for_order(source, began)
    with ledger() as verdict:
        killed = disturbed(to, MOMENTS[number], lab.kill)
        again = lab.succeed(promote(to, "-e", "run_break_lock=drill"))
        wait_for_order(to, trading.now())
    everything = orders()
    moves = alternated([r for r in everything if trading.when(r) >= began])
    found = report(
        "broken_off",
        to=to,
        killed_at=MOMENTS[number],
        killed_after_s=round(killed.seconds, 1),
        playbook_s=round(again.seconds, 1),
        moves_of_the_orders=moves,
        rpo_writes_lost=verdict["lost"],
        duplicate_orders=len(duplicates(everything)),
        orders_lost=unfinished(everything),
        steps=steps_of(),
    )
    assert (found["rpo_writes_lost"], found["duplicate_orders"], found["orders_lost"], moves) == (0, 0, 0, 1)


# What goes wrong, and when it does.
FAULTS = {
    "the gateway does not start": MOMENTS[0],
    "a member falls behind": MOMENTS[0],
    "the balancers are lost": MOMENTS[5],
}


@contextmanager
def spoiled(fault: str) -> Iterator[Callable[[object], None]]:
    """Yields what does it; puts it right afterwards."""
    balancers = ("dr-lb1", "dr-lb2")

    def act(_process: object) -> None:
        match fault:
            case "the gateway does not start":
                drop_in = "[Service]\nExecStartPre=/bin/false\n"
                command = f"install -D /dev/stdin {SPOILED} && systemctl daemon-reload"
                at_second(command, "dr-ibgw1", stdin=drop_in)
            case "a member falls behind":
                lab.engine("pause", lab.container("dr-mongo2"))
            case _:
                for host in balancers:
                    at_second("systemctl stop keepalived haproxy", host)

    try:
        yield act
    finally:
        match fault:
            case "the gateway does not start":
                at_second(f"rm -f {SPOILED}; systemctl daemon-reload; systemctl reset-failed", "dr-ibgw1")
            case "a member falls behind":
                lab.engine("unpause", lab.container("dr-mongo2"))
            case _:
                for host in balancers:
                    at_second("systemctl start haproxy keepalived", host)


@pytest.mark.skipif("broken_off" not in KINDS, reason="DR_KINDS")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_fails_puts_everything_back(fault: str) -> None:
    if not placed(orders(), trading.now() - timedelta(seconds=90), "lab"):
        lab.succeed(promote("lab"))
    with ledger() as verdict, Requests() as client:
        with spoiled(fault) as act:
            failed = disturbed("lab_dr", FAULTS[fault], act)
        ended = trading.now()
        wait_for_order("lab", ended)
    everything = orders()
    found = report(
        "failed",
        to="lab_dr",
        fault=fault,
        playbook_s=round(failed.seconds, 1),
        said=[line.strip() for line in failed.output.splitlines() if "Everything is back" in line][:1],
        requests_failed=client.failed(),
        rpo_writes_lost=verdict["lost"],
        duplicate_orders=len(duplicates(everything)),
        orders_lost=unfinished(everything),
    )
    assert failed.code != 0
    assert found["said"], failed.output[-4000:]
    assert (found["rpo_writes_lost"], found["duplicate_orders"], found["orders_lost"]) == (0, 0, 0)
