"""Trading on the lab, from outside: the broker's log, the lease, the platform's books, and ways to break things."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lab

T = TypeVar("T")
Record = dict[str, Any]

HANDLER = "run_stack_handler"
TRADER = f"pst-run@{HANDLER}.service"
GUARD = "pst-guard.service"
PLACEMENT = "trading"
GATEWAYS = ("lab-ibgw1", "lab-ibgw2")
OUTSIDE = "lab-mon1"  # takes no part in trading, and no fault: the broker and the observers are here
ORDER_LOG = "/var/lib/ib-gateway-broker/orders.jsonl"
SIMULATOR = lab.ROOT / "tests" / "gateway_simulator"
INSTRUMENTS = "SP500_micro,NASDAQ_micro,GOLD_micro,US10"
TTL = 15.0
TAKEOVER = TTL + 5
BY_HAND = 995  # a client id outside the platform's range

TOOLS = "/run/drill"
CLOCK = "/usr/local/lib/drill-clock.so"
CLOCK_FILE = "/etc/drill-clock"
DROP_INS = ("pst-guard.service.d", "pst-run@.service.d")


def now() -> datetime:
    """The hosts' wall clocks are this machine's."""
    return datetime.now(UTC)


def when(record: Record, key: str = "at") -> datetime:
    return datetime.fromisoformat(record[key])


# Feeds ----------------------------------------------------------------------------------------------------------------


class Feed:
    """JSON lines that a command on a host prints, as they come."""

    def __init__(self, host: str, command: str, stdin: str = "") -> None:
        self.seen: list[Record] = []
        self._what = f"{host}: {command}"
        self._more = threading.Condition()
        self._ended = False
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the command
        self._process = subprocess.Popen(
            lab.remote(host, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin
        self._process.stdin.write(stdin)
        self._process.stdin.close()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with self._more, contextlib.suppress(json.JSONDecodeError):  # a line that a power cut has torn
                self.seen.append(json.loads(line))
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def wait(self, what: str, ask: Callable[[Sequence[Record]], T], within: float) -> T:
        """Return the first true answer to a question about what was seen."""
        answer: T | None = None

        def look() -> bool:
            nonlocal answer
            answer = ask(self.seen)
            return bool(answer) or self._ended

        with self._more:
            self._more.wait_for(look, within)
        assert answer, f"{what}: not within {within:g} s; last of {len(self.seen)}: {self.seen[-1:]}{self.end()}"
        return answer

    def end(self) -> str:
        """Say how the command ended, where it has."""
        if not self._ended:
            return ""
        self._errors.seek(0)
        return f"; {self._what} ended with {self._process.wait()}: {self._errors.read()[-2000:]}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Trading:
    """The feeds, and what follows from them."""

    orders: Feed
    leases: Feed
    intents: Feed

    # The lease

    def states(self) -> list[Record]:
        return [lease for lease in self.leases.seen if lease["_id"] == PLACEMENT]

    def lease(self, what: str, fits: Callable[[Record], bool], within: float) -> Record:
        """Wait until the newest state of the lease is as it should be."""

        def newest(seen: Sequence[Record]) -> Record | None:
            last = next((lease for lease in reversed(seen) if lease["_id"] == PLACEMENT), None)
            return last if last and fits(last) else None

        return self.leases.wait(what, newest, within) or {}

    def held(self, within: float = 60) -> Record:
        return self.lease("somebody holds the lease", lambda lease: bool(lease["holder"]), within)

    def holder(self) -> str:
        return str(self.held()["holder"]["host"])

    def standbys(self) -> list[str]:
        holder = self.holder()
        return [host for host in lab.APPS if host != holder]

    def renewed(self, since: datetime, within: float = 30) -> Record:
        """Wait until the holder has renewed after a moment."""
        return self.lease(
            "the lease is renewed", lambda lease: bool(lease["holder"]) and when(lease, "renewed_at") > since, within
        )

    def taken(self, of: Record, within: float = TAKEOVER * 2) -> Record:
        """Wait until another host than that of an earlier state holds the lease."""
        return self.lease(
            f"another host than {of['holder']['host']} holds the lease",
            lambda lease: bool(lease["holder"]) and lease["holder"]["host"] != of["holder"]["host"],
            within,
        )

    # Orders

    def placed(self, since: datetime, within: float, epoch: int | None = None) -> Record:
        """Wait until the broker has accepted an order after a moment."""

        def newest(seen: Sequence[Record]) -> Record | None:
            for record in reversed(seen):
                if when(record) <= since:
                    return None
                if record["event"] == "placed" and epoch in (None, record["epoch"]):
                    return record
            return None

        return self.orders.wait(f"an order after {since.isoformat()}", newest, within) or {}

    def open_order(self, within: float = 30) -> Record:
        """Wait until an order is open at the broker: what follows happens in mid-order."""

        def newest(seen: Sequence[Record]) -> Record | None:
            last = {(record["client_id"], record["order_id"]): record for record in seen[-40:]}
            return next((record for record in last.values() if record["event"] == "placed"), None)

        return self.orders.wait("an open order", newest, within) or {}

    def goes_on(self, since: datetime, within: float) -> datetime:
        """Wait until the broker gets orders of the present holder again, and one host alone runs the trader."""
        deadline = time.monotonic() + within
        self.held(within)

        def current(seen: Sequence[Record]) -> Record | None:
            lease = self.states()[-1]
            fits = (record for record in reversed(seen) if record["event"] == "placed" and when(record) > since)
            return next((record for record in fits if lease["holder"] and record["epoch"] == lease["epoch"]), None)

        order = self.orders.wait("an order of the present holder", current, within)
        assert order
        lab.eventually(
            "the holder alone runs the trader",
            lambda: traders() == [self.holder()],
            max(15.0, deadline - time.monotonic()),
        )
        return when(order)

    def close(self) -> None:
        for feed in (self.orders, self.leases, self.intents):
            feed.close()


def ledger(*words: str) -> str:
    """The command line of trading_ledger.py on the host outside."""
    hosts = ",".join(f"{host}.{lab.DOMAIN}:27017" for host in lab.MONGODB)
    given = ("--hosts", hosts, "--replica-set", "pysystemtrade-rs", "--user", "guard")
    return " ".join(("python3", f"{TOOLS}/trading_ledger.py", *words, *given, "--ca-file", "/etc/pst/pki/ca.crt"))


def password() -> str:
    return lab.secret("mongodb_guard_password") + "\n"


def books() -> Record:
    """What the platform itself knows."""
    return json.loads(lab.ssh(OUTSIDE, ledger("books"), stdin=password()))


@contextlib.contextmanager
def opened(rate: float, seed: int = 0) -> Iterator[Trading]:
    """Follow the broker and the lease, and keep instrument orders coming."""
    lab.ssh(OUTSIDE, f"mkdir -p -m 0700 {TOOLS} && cat >{TOOLS}/trading_ledger.py", stdin=source("trading_ledger.py"))
    driver = "python3 -c 'import pymongo' || apt-get install -qy --no-install-recommends python3-pymongo"
    lab.ssh(OUTSIDE, driver, timeout=180)
    lab.ssh(OUTSIDE, f"test -e {ORDER_LOG}")  # the gateways of the lab share one broker, and it runs here
    # An observer must not outlive its test for ever: the one that says nothing is not told that nobody reads.
    feeds = (
        Feed(OUTSIDE, f"timeout 4h tail -n +1 -F {ORDER_LOG}"),
        Feed(OUTSIDE, f"timeout 4h {ledger('leases')}", password()),
        Feed(
            OUTSIDE,
            f"timeout 4h {ledger('intend', f'--rate={rate}', f'--seed={seed}', f'--instruments={INSTRUMENTS}')}",
            password(),
        ),
    )
    trading = Trading(*feeds)
    try:
        trading.held()
        yield trading
    finally:
        trading.close()


def source(name: str) -> str:
    return (Path(__file__).resolve().parent / name).read_text()


# What the hosts are asked ---------------------------------------------------------------------------------------------


def traders() -> list[str]:
    """Return the hosts that run the trader."""
    up = [host for host in lab.APPS if lab.running(host)]
    return [host for host in up if lab.ssh(host, f"systemctl is-active {TRADER}", check=False) == "active"]


def main_pid(host: str, unit: str) -> int:
    return int(lab.ssh(host, f"systemctl show --property=MainPID --value {unit}"))


def send(host: str, signal: str, unit: str) -> None:
    """Send a signal to all processes of a unit."""
    lab.ssh(host, f"systemctl kill --signal={signal} {unit}")


def replaced(host: str, unit: str, pid: int, within: float = 30) -> int:
    """Wait until another process is the main one of a unit."""
    return lab.eventually(
        f"another process in {unit} on {host}",
        lambda: (main_pid(host, unit) or pid) != pid and main_pid(host, unit),
        within,
    )


def is_up(host: str) -> bool:
    return lab.ssh(host, "systemctl is-active ssh", check=False) == "active"


def boot(*hosts: str, within: float = 90) -> None:
    """Switch hosts on, all at once, and wait until they answer."""
    lab.engine("start", *map(lab.container, hosts))
    for host in hosts:
        lab.eventually(f"{host} is up", partial(is_up, host), within)


def active_gateway() -> str:
    found = [
        host
        for host in GATEWAYS
        if lab.running(host) and lab.ssh(host, "systemctl is-active ib-gateway", check=False) == "active"
    ]
    assert len(found) == 1, f"active gateways: {found}, wanted exactly one"
    return found[0]


def tell_gateway(command: str) -> str:
    """Say something to the command port of the active gateway."""
    script = 'exec 3<>/dev/tcp/127.0.0.1/7462 && echo "$0" >&3 && read -r -t 10 answer <&3 && echo "$answer"'
    answer = lab.ssh(active_gateway(), f"bash -c '{script}' '{command}'")
    assert answer.startswith("OK"), f"{command}: {answer}"
    return answer


def fill_slowly() -> None:
    """Orders stay open for three seconds and fill in two parts, so that most faults come in mid-order."""
    tell_gateway("FILL 1.5 2")


def on_loopback(host: str, path: str) -> str:
    """Return a page of the dashboard, asked for on its own host, past the agent."""
    script = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
    return lab.ssh(host, f"/srv/pst/blue/venv/bin/python -c '{script}' http://127.0.0.1:5000{path}")


# What should be refused -----------------------------------------------------------------------------------------------


def start_on(host: str) -> str:
    """Start the trader by hand, where it must not: returns what systemd and the check said."""
    since = lab.ssh(host, "date +%s")
    words = f"journalctl --sync; journalctl --since=@{since} --output=cat --unit={TRADER}"
    script = f"systemctl start {TRADER} && echo STARTED; {words}"
    said = lab.ssh(host, script, check=False)
    assert "STARTED" not in said, f"{host}: {TRADER} was started by hand\n{said}"
    return said


def order_by_hand(host: str) -> str:
    """Send an order with a client of the IB API, as a person with a shell would: returns what the gateway said."""
    put_client(host)
    command = f"cd {TOOLS} && timeout 30 python3 -m gateway_simulator.client 127.0.0.1:4001"
    said = lab.ssh(host, f"{command} --client-id {BY_HAND} --reference by-hand buy IBM 1 2>&1", check=False)
    assert '"321"' in said, f"{host}: an order by hand was answered with\n{said}\nwanted error 321"
    return said


def put_client(host: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path in sorted(SIMULATOR.glob("*.py")):
            tar.add(path, f"gateway_simulator/{path.name}")
    unpack = f"mkdir -p -m 0700 {TOOLS} && base64 -d | tar xz -C {TOOLS}"
    lab.ssh(host, unpack, stdin=base64.b64encode(packed.getvalue()).decode())


# What breaks ----------------------------------------------------------------------------------------------------------


def cut_from_mongodb(host: str, direction: str) -> None:
    """Drop what a host sends to MongoDB (`out`), or what comes back (`in`); connections hang, as on a broken line."""
    hook, port = {"out": ("output", "dport"), "in": ("input", "sport")}[direction]
    rules = (
        f"table inet drill {{ chain {direction} {{ type filter hook {hook} priority -200; tcp {port} 27017 drop; }}; }}"
    )
    lab.ssh(host, "nft -f -", stdin=rules)


def mend(host: str) -> None:
    lab.ssh(host, "! nft list table inet drill >/dev/null 2>&1 || nft delete table inet drill")


def watchdog(host: str, *, on: bool) -> None:
    """Have a guard without its watchdog, so that it can be frozen for as long as it takes, or with it again."""
    folder = f"/run/systemd/system/{GUARD}.d"
    write = f"mkdir -p {folder} && printf '[Service]\\nWatchdogSec=0\\n' >{folder}/drill.conf"
    lab.ssh(host, f"{f'rm -f {folder}/drill.conf' if on else write} && systemctl daemon-reload")
    new_guard(host)


def new_guard(host: str) -> None:
    """Have a new guard, that goes on with what the old one held, on the unit's present settings."""
    pid = main_pid(host, GUARD)
    send(host, "KILL", GUARD)
    replaced(host, GUARD, pid)
    lab.eventually(f"the guard of {host} is ready", lambda: guard_is_ready(host))


def guard_is_ready(host: str) -> bool:
    return lab.ssh(host, f"systemctl is-active {GUARD}", check=False) == "active"


def has_no_trader(host: str) -> bool:
    return lab.ssh(host, f"systemctl is-active {TRADER}", check=False) in ("inactive", "failed")


# A clock of its own for guard and traders: the containers share this machine's. clock.c is preloaded by their units;
# libfaketime cannot be used: Debian 12's makes time.sleep() of Python fail when the monotonic clock is to stay true.


def give_clocks(hosts: Sequence[str]) -> None:
    """Let the wall clock of guard and traders be set, host by host."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang", "tcc"))), None)
    assert compiler, "no C compiler on the control node; wanted: cc (any, such as the packages gcc or tcc)"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "clock.so")
        program = str(Path(__file__).resolve().parent / "clock.c")
        command = [compiler, "-shared", "-fPIC", "-nostdlib", "-o", str(library), program]
        subprocess.run(command, check=True, timeout=60)
        packed = base64.b64encode(library.read_bytes()).decode()
    drop_in = f"[Service]\\nEnvironment=LD_PRELOAD={CLOCK} PST_CLOCK_FILE={CLOCK_FILE}\\n"
    for host in hosts:
        lab.ssh(host, f"base64 -d >{CLOCK}.new && chmod 0755 {CLOCK}.new && mv {CLOCK}.new {CLOCK}", stdin=packed)
        set_clock(host, 0)
        for unit in DROP_INS:
            folder = f"/etc/systemd/system/{unit}"
            lab.ssh(host, f"mkdir -p {folder} && printf '{drop_in}' >{folder}/drill-clock.conf")
        lab.ssh(host, "systemctl daemon-reload")
        new_guard(host)


def take_clocks(hosts: Sequence[str]) -> None:
    for host in hosts:
        files = " ".join(f"/etc/systemd/system/{unit}/drill-clock.conf" for unit in DROP_INS)
        take = f"rm -f {files} && systemctl daemon-reload && rm -f {CLOCK} {CLOCK_FILE} && echo had"
        if lab.ssh(host, f"test ! -e {CLOCK} || {{ {take}; }}") == "had":
            new_guard(host)


def set_clock(host: str, seconds: int) -> None:
    lab.ssh(
        host, f"echo {seconds} >{CLOCK_FILE}.new && chmod 0644 {CLOCK_FILE}.new && mv {CLOCK_FILE}.new {CLOCK_FILE}"
    )


def heal() -> None:
    """Undo every fault that may be left: a drill that broke off has healed nothing."""
    for host in lab.HOSTS:
        state = lab.engine("inspect", "--format", "{{.State.Running}} {{.State.Paused}}", lab.container(host))
        if state == "true true":
            lab.engine("unpause", lab.container(host))
        elif state.startswith("false"):
            boot(host)
    for host, units in (
        *((host, (GUARD, TRADER)) for host in lab.APPS),
        *((host, ("mongod.service",)) for host in lab.MONGODB),
        *((host, ("ib-gateway.service",)) for host in GATEWAYS),
    ):
        mend(host)
        for unit in units:
            lab.ssh(host, f"systemctl kill --signal=CONT {unit}", check=False)
    for host in lab.APPS:
        if lab.ssh(host, f"test -e /run/systemd/system/{GUARD}.d/drill.conf && echo off", check=False):
            watchdog(host, on=True)
        if lab.ssh(host, f"cat {CLOCK_FILE}", check=False) not in ("", "0"):
            set_clock(host, 0)
        lab.ssh(host, f"pst-trading join {PLACEMENT}", check=False)
