"""`make drill-dr`: the platform moves between the lab and its second site while writes and orders flow.

Needs the lab and lab_dr up (`make lab lab-dr`). DR_REPETITIONS (5) of each kind; DR_KINDS chooses some. Each repetition
writes `reports/dr-<kind>-<UTC time>.json`.

Who is believed: the broker's order log (lab-mon1, the outside world of both sites, is never killed), the ledger of a
writer that runs on an application node of the second site, and requests through each site's virtual address.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import lab
import pytest
import trading

REPETITIONS = int(os.environ.get("DR_REPETITIONS", "5"))
KINDS = os.environ.get("DR_KINDS", "planned,unplanned,cut_off").split(",")
BOTH = ("-i", "inventories/lab_dr")
STATE = lab.ROOT / "inventories" / "lab_dr" / ".state"
VIPS = {"lab": lab.VIP, "lab_dr": "10.78.1.10"}
NAME = f"trading.{lab.DOMAIN}"
WORLD = trading.OUTSIDE
KILLED = tuple(host for host in lab.HOSTS if host != WORLD)
WRITER = "dr-app1"
MEMBERS = "dr-mongo1.lab-dr.pst.test:27017,dr-mongo2.lab-dr.pst.test:27017"
BAR_S = 60.0
Record = dict[str, Any]


def at_second(command: str, host: str = WRITER, **options: Any) -> str:
    """Run a shell command as root on a host of the second site."""
    known, lab.STATE = lab.STATE, STATE
    try:
        return lab.ssh(host, command, **options)
    finally:
        lab.STATE = known


@dataclass
class Requests:
    """Asks a site's virtual address once in a while, and keeps when it answered."""

    vip: str
    answered: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        context = ssl.create_default_context(cafile=str(lab.STATE / "pki" / "ca.crt"))
        request = urllib.request.Request(f"https://{self.vip}/version", headers={"Host": NAME})
        while not self._over.wait(0.25):
            try:
                with urllib.request.urlopen(request, timeout=3, context=context) as answer:
                    answer.read()
                self.answered.append(time.time())
            except OSError:
                self.failed.append(time.time())

    def first_after(self, moment: float) -> float | None:
        return next((at for at in self.answered if at >= moment), None)

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)


def orders() -> list[Record]:
    """Everything that the broker has written down."""
    text = lab.ssh(WORLD, f"cat {trading.ORDER_LOG}", timeout=60)
    return [json.loads(line) for line in text.splitlines()]


def placed(records: list[Record], since: datetime) -> list[Record]:
    return [r for r in records if r["event"] == "placed" and trading.when(r) >= since]


def duplicates(records: list[Record]) -> list[str]:
    """References of which the broker has taken more than one order; a reference ends with what it was made from."""
    references = Counter(r["reference"] for r in records if r["event"] == "placed" and r["reference"])
    origins = Counter(
        r["reference"].split(":")[3] for r in records if r["event"] == "placed" and r["reference"].count(":") == 3
    )
    return sorted(
        [name for name, count in references.items() if count > 1] + [n for n, count in origins.items() if count > 1]
    )


def wait_for_order(site: str, since: datetime, within: float = 180) -> Record:
    """The first order that a site's gateway has passed on since."""
    prefix = "dr-" if site == "lab_dr" else "lab-"

    def look() -> Record | None:
        return next((r for r in placed(orders(), since) if r["gateway"].startswith(prefix)), None)

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


def promote(to: str, *arguments: str) -> lab.Run:
    return lab.playbook("dr-promote", *BOTH, "-e", f"dr_to={to}", *arguments, timeout=1200)


def steps_of() -> list[Record]:
    """The steps of the newest promotion, each with its seconds."""
    newest = max(lab.REPORTS.glob("dr-promote-*.json"), key=lambda path: path.stat().st_mtime)
    steps = json.loads(newest.read_text())["steps"]
    moments = [datetime.fromisoformat(step["at"]) for step in steps]
    return [
        {"step": step["step"], "s": round((after - at).total_seconds(), 1)}
        for step, at, after in zip(steps, moments, moments[1:], strict=False)
    ]


def report(kind: str, **figures: Any) -> Record:
    lab.REPORTS.mkdir(exist_ok=True)
    found = {"kind": kind, "at": trading.now().isoformat(timespec="seconds"), **figures}
    path = lab.REPORTS / f"dr-{kind}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"measured {path.name}: {json.dumps(found)}")
    return found


def moved(kind: str, to: str, *arguments: str) -> Record:
    """One move, measured."""
    lab.eventually("orders flow", lambda: placed(orders(), trading.now().replace(microsecond=0)) or True, 5)
    asked = Requests(VIPS[to])
    try:
        with ledger() as verdict:
            time.sleep(3)
            began = trading.now()
            run = lab.succeed(promote(to, *arguments))
            first = wait_for_order(to, began)
            time.sleep(3)
    finally:
        asked.close()
    everything = orders()
    order_at = trading.when(first)
    steps = steps_of()
    before = [trading.when(r) for r in placed(everything, datetime.fromtimestamp(0, UTC)) if trading.when(r) < order_at]
    request_at = asked.first_after(began.timestamp())
    return report(
        kind,
        to=to,
        rto_s=round((order_at - began).total_seconds(), 1),
        rto_requests_s=round(request_at - began.timestamp(), 1) if request_at else None,
        requests_failed=len(asked.failed),
        without_orders_s=round((order_at - max(before)).total_seconds(), 1) if before else None,
        rpo_writes_lost=verdict["lost"],
        rpo_s=0.0 if not verdict["lost"] else None,
        writes_acked=verdict["acked"],
        writes_longest_gap_s=verdict["longest_gap_s"],
        duplicate_orders=len(duplicates(everything)),
        orders_lost=unfinished(everything),
        playbook_s=round(run.seconds, 1),
        steps=steps,
    )


def unfinished(records: list[Record]) -> int:
    """Orders that the broker took and that came to no end, for longer than a minute."""
    open_orders: dict[Any, datetime] = {}
    left: Counter[Any] = Counter()
    for record in records:
        key = record["perm_id"]
        if record["event"] == "placed":
            open_orders[key], left[key] = trading.when(record), abs(record["quantity"])
        elif record["event"] == "filled":
            left[key] -= record["shares"]
            if left[key] <= 0:
                open_orders.pop(key, None)
        elif record["event"] in ("cancelled", "rejected"):
            open_orders.pop(key, None)
    return sum((trading.now() - at).total_seconds() > 60 for at in open_orders.values())


def converged() -> None:
    for arguments in ((), BOTH):
        run = lab.succeed(lab.playbook("site", *arguments))
        assert run.total("changed") == 0, run.changed_tasks()


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
    asked = Requests(VIPS["lab_dr"])
    with ledger() as verdict:
        time.sleep(5)
        lab.engine("kill", *map(lab.container, KILLED))
        lost_at = trading.now()
        try:
            refused = promote("lab_dr", "-e", "dr_kind=unplanned")
            assert refused.code != 0
            assert "confirm: seen nothing, wanted -e confirm=lab_dr" in refused.output
            confirmed = trading.now()
            run = lab.succeed(promote("lab_dr", "-e", "dr_kind=unplanned", "-e", "confirm=lab_dr"))
            first = wait_for_order("lab_dr", confirmed)
            time.sleep(3)
        finally:
            asked.close()
            lab.engine("start", *map(lab.container, KILLED))
    request_at = asked.first_after(confirmed.timestamp())
    everything = orders()
    found = report(
        "unplanned",
        to="lab_dr",
        rto_s=round((trading.when(first) - confirmed).total_seconds(), 1),
        rto_requests_s=round(request_at - confirmed.timestamp(), 1) if request_at else None,
        since_the_loss_s=round((trading.when(first) - lost_at).total_seconds(), 1),
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
WORLD_ADDRESS = "10.78.0.61"


def iptables(*rule: str) -> None:
    subprocess.run(["iptables", "-w", "10", *rule], check=True, timeout=20)


@contextmanager
def cut_off() -> Iterator[None]:
    """The first site lives on, and reaches the broker; neither the second site nor this machine reaches it."""
    before_link = [
        (chain, "-s", one, "-d", other, "-j", "ACCEPT")
        for chain in ("DOCKER-USER",)
        for one, other in ((WORLD_ADDRESS, SUBNETS[1]), (SUBNETS[1], WORLD_ADDRESS))
    ]
    nat = [(one, other) for one, other in ((WORLD_ADDRESS, SUBNETS[1]), (SUBNETS[1], WORLD_ADDRESS))]
    hosts = [
        lab.engine("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", lab.container(h))
        for h in KILLED
    ]
    for rule in before_link:
        iptables("-I", *rule)
    for one, other in nat:
        iptables("-t", "nat", "-I", "POSTROUTING", "-s", one, "-d", other, "-j", "ACCEPT")
    subprocess.run(["sh", str(LINK), "down", *SUBNETS], check=True, timeout=30)
    for address in hosts:
        iptables("-I", "OUTPUT", "-d", address, "-j", "DROP")
    try:
        yield
    finally:
        for address in hosts:
            iptables("-D", "OUTPUT", "-d", address, "-j", "DROP")
        subprocess.run(["sh", str(LINK), "up", *SUBNETS], check=True, timeout=30)
        for rule in before_link:
            iptables("-D", *rule)
        for one, other in nat:
            iptables("-t", "nat", "-D", "POSTROUTING", "-s", one, "-d", other, "-j", "ACCEPT")


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
    late = [r["reference"] for r in placed(everything, trading.when(first)) if r["gateway"].startswith("lab-")]
    last = [trading.when(r) for r in placed(during, cut_at) if r["gateway"].startswith("lab-")]
    found = report(
        "cut_off",
        to="lab_dr",
        rto_s=round((trading.when(first) - confirmed).total_seconds(), 1),
        old_site_stopped_before_s=round((trading.when(first) - max(last)).total_seconds(), 1),
        orders_of_the_old_site_after=len(late),
        duplicate_orders=len(duplicates(everything)),
        orders_lost=unfinished(everything),
        playbook_s=round(run.seconds, 1),
        steps=steps_of(),
    )
    assert (found["orders_of_the_old_site_after"], found["duplicate_orders"]) == (0, 0)
    states = {host: lab.ssh(host, "pst-trading status --json", check=False) for host in lab.APPS}
    assert not any('"holds": true' in state for state in states.values()), states
    assert not [r for r in placed(orders(), healed) if r["gateway"].startswith("lab-")]
    lab.succeed(lab.playbook("dr-failback", *BOTH, "-e", "dr_to=lab", timeout=1800))
    converged()
