"""The causes of `make drill-observe`: what is done to the lab, how it is healed, and which alerts have to come of it.

Thresholds are those of production but for two that are times themselves (THRESHOLDS). What takes hours or days to come
about is made old at its source; such a cause begins with `age`. Where the figures need longer than two scrapes to show
a fault, `seen_after_s` says by how much.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import lab
import trade_once
import trading
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from observed import MONITORING, query

SCALE = float(os.environ.get("OBSERVE_SCALE", "0.1"))
SCRAPE_S = EVALUATE_S = 5
# The lab's own, for the dictionary is given whole; then the two that are times: how old an order is that hangs, and how
# long somebody may be drained.
THRESHOLDS = {"order_latency_seconds": 10, "stuck_order_seconds": 30, "drained_hours": 0.05}
# What follows where trading stands still: the trader ends and comes back, and orders wait.
STALLED = frozenset({"HighOrderLatency", "OrderStuck", "TradingProcessAbsent", "UnitFailed"})
NOT_INJECTED = {
    "HostClockOff": "the hosts are containers: the clock is that of the machine, and no host may set it",
    "HostOutOfDiskSpace": "the hosts are containers: their disk is that of the machine, which the lab would not survive"
    " full, and what a host may mount beside it is not counted (tmpfs, overlay)",
    "HostOutOfMemory": "the hosts are containers and see the memory of the machine: what leaves a tenth of it has the"
    " kernel kill whatever is largest",
}
GATEWAY = "gateway"  # the host that has the active one


@dataclass(frozen=True)
class Alert:
    """An alert that has to come of a cause."""

    name: str
    host: str  # as the alert names it, or GATEWAY; empty: it is about no host
    wait_s: float  # its `for`, before it is compressed
    seen_after_s: float = 0  # how long it may take until the figures show it, beyond a scrape

    @property
    def bound_s(self) -> float:
        return max(1, round(self.wait_s * SCALE)) + 2 * SCRAPE_S + EVALUATE_S + self.seen_after_s


@dataclass(frozen=True)
class Cause:
    """What is done to the lab, how it is healed, which alerts have to come of it, and which others may.

    It is healed also where it was done by half: to heal what is well does no harm.
    """

    what: str
    inject: Callable[[], object]
    heal: Callable[[], object]
    alerts: tuple[Alert, ...]
    with_it: Set[str] = frozenset()

    @property
    def name(self) -> str:
        return "+".join(alert.name for alert in self.alerts)


# Hosts ----------------------------------------------------------------------------------------------------------------


def on(host: str, command: str, stdin: str = "") -> Callable[[], object]:
    return lambda: lab.ssh(host, command, stdin=stdin)


def on_each(hosts: tuple[str, ...], command: str) -> Callable[[], object]:
    return all_of(*(on(host, command) for host in hosts))


def dead(unit: str) -> str:
    """Kill a unit and keep it dead, as a program does that cannot start again."""
    folder = f"/run/systemd/system/{unit}.d"
    return (
        f"mkdir -p {folder} && printf '[Service]\\nRestart=no\\n' >{folder}/zz.conf && systemctl daemon-reload"
        f" && systemctl kill --signal KILL {unit}"
    )


def alive(unit: str) -> str:
    return (
        f"rm -rf /run/systemd/system/{unit}.d && systemctl daemon-reload && systemctl reset-failed {unit}; "
        f"systemctl start {unit}"
    )


def all_of(*steps: Callable[[], object]) -> Callable[[], None]:
    """Take all steps, also after one that has failed: they may heal."""

    def run() -> None:
        with contextlib.ExitStack() as stack:
            for step in reversed(steps):
                stack.callback(step)

    return run


def kept(path: str) -> str:
    return f"/root/observe-{path.replace('/', '-')}"


def keep(path: str) -> str:
    return f"{{ test -e {kept(path)} || cp -a {path} {kept(path)}; }}"


def back(path: str) -> str:
    return f"{{ test ! -e {kept(path)} || {{ rm -rf {path} && mv {kept(path)} {path}; }}; }}"


# Programs -------------------------------------------------------------------------------------------------------------


def program(unit: str, settings: str, hosts: tuple[str, ...]) -> Callable[[], object]:
    """Run a unit of our own, under a name that the platform's units have: a whole file is before their template."""
    start = f"cat >/run/systemd/system/{unit} && systemctl daemon-reload && systemctl start {unit}"
    return all_of(*(on(host, start, f"[Service]\n{settings}\n") for host in hosts))


def no_program(unit: str, hosts: tuple[str, ...]) -> Callable[[], object]:
    stop = f"systemctl stop {unit}; rm -f /run/systemd/system/{unit}; systemctl daemon-reload"
    return on_each(hosts, f"{stop}; systemctl reset-failed {unit} 2>/dev/null; true")


TWIN, RUNAWAY = "pst-run@observe.service", "pst-dashboard@observe.service"
# Two processes, for a core and more even where all hosts want one, behind everything else on their host; and 220 of
# 256 MB.
RUNS_AWAY = """\
ExecStart=/usr/bin/python3 -c "import os; hog = b'x' * (220 << 20); os.fork(); exec('while True: pass')"
MemoryMax=256M
Nice=19
CPUWeight=1"""

# Certificates ---------------------------------------------------------------------------------------------------------

NODE = "/etc/pst/pki/node"
OF_NOBODY = (
    f"{keep(NODE)} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    f" -days 1 -subj /CN=nobody -keyout {NODE}/node.key -out {NODE}/node.crt"
)


def show_one_that_ends(host: str, days: int) -> None:
    """Have the node exporter show a certificate of the site that is good for some days only."""
    folder = lab.STATE / "pki"
    own = x509.load_pem_x509_certificate((folder / host / "node.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((folder / "ca-1.crt").read_bytes())
    key: Any = serialization.load_pem_private_key((folder / "ca-1.key").read_bytes(), None)
    began = datetime.now(UTC) - timedelta(minutes=1)
    builder = x509.CertificateBuilder(
        authority.subject,
        own.subject,
        own.public_key(),
        x509.random_serial_number(),
        began,
        began + timedelta(days=days),
        list(own.extensions),
    )
    shown = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    lab.ssh(host, f"{keep(NODE)} && cat >{NODE}/node.crt", stdin=shown)


# Stores and balancers -------------------------------------------------------------------------------------------------


def in_mongodb(statement: str, password: str = "") -> str:
    """Run a statement of Python with the guards' `client` of MongoDB; returns what it printed, or "refused"."""
    hosts = [f"{host}.{lab.DOMAIN}:27017" for host in lab.MONGODB]
    program = f"""\
import datetime, pymongo
client = pymongo.MongoClient({hosts!r}, replicaSet="pysystemtrade-rs", username="guard",
    password={password or lab.secret("mongodb_guard_password")!r}, authSource="admin", tls=True,
    tlsCAFile="/etc/pst/pki/ca.crt")
try:
    client.pst.command("ping")
except pymongo.errors.OperationFailure:
    print("refused"), exit()
{statement}
"""
    return lab.ssh(MONITORING, "python3 -", stdin=program)


# As a run leaves it that was killed; and as a run leaves it that has ended.
LEFT_LOCK = """\
started = datetime.datetime.utcnow() - datetime.timedelta(hours=7)
left = {"run": "observe", "playbook": "observe", "by": "drill", "started": started}
client.pst.run_lock.update_one({"_id": "site", "run": None}, {"$set": left}, upsert=True)"""
FREE_LOCK = """\
free = {"$replaceWith": {"_id": "$_id", "number": "$number", "run": None}}
client.pst.run_lock.update_one({"_id": "site", "run": "observe"}, [free])"""


def no_backup_for(job: str, hosts: tuple[str, ...], days: float) -> Callable[[], object]:
    """Have the hosts say of a job what they say when it has not succeeded for so long."""
    file, name = f"/var/lib/prometheus/node-exporter/pst_backup_{job}.prom", "pst_backup_last_success_timestamp_seconds"
    text = f'# HELP {name} When the job last succeeded.\n# TYPE {name} gauge\n{name}{{site="lab",job="{job}"}} '
    command = f"systemctl stop pst-backup@{job}.timer; test ! -e {file} || {keep(file)}; cat >{file}; chmod 0644 {file}"
    return lambda: all_of(*(on(host, command, f"{text}{time.time() - days * 86400:.0f}\n") for host in hosts))()


def backup_as_before(job: str, hosts: tuple[str, ...]) -> Callable[[], object]:
    file = f"/var/lib/prometheus/node-exporter/pst_backup_{job}.prom"
    return on_each(hosts, f"rm -f {file}; {back(file)}; systemctl start pst-backup@{job}.timer")


def tell_haproxy(host: str, command: str) -> None:
    script = (
        "import socket; admin = socket.socket(socket.AF_UNIX); admin.connect('/run/haproxy/admin.sock');"
        f" admin.sendall({command!r}.encode() + b'\\n'); admin.recv(4096)"
    )
    lab.ssh(host, "python3 -", stdin=script)


def drain(state: str) -> Callable[[], object]:
    command = f"set server be_blue/lab-app1 state {state}"
    return all_of(*(partial(tell_haproxy, host, command) for host in lab.BALANCERS))


def other_balancer() -> str:
    """Return the balancer that has no clients."""
    return next(host for host in lab.BALANCERS if host != lab.vip_holder())


def move_the_address() -> None:
    """To and fro, each time as soon as Prometheus has seen the move before."""
    for _ in range(3):
        holder = lab.vip_holder()
        lab.ssh(holder, "systemctl stop keepalived.service")
        lab.eventually("Prometheus sees it", partial(query, f'pst:vip_held{{host!="{holder}"}} == 1'), 30)
        lab.ssh(holder, "systemctl start keepalived.service")


# Trading --------------------------------------------------------------------------------------------------------------

ABROAD = "observe"  # the reference of the orders that are not the platform's
MINE, SYMBOL = "SP500_micro", "MES"


def by_hand(side: str) -> None:
    """Trade past the gate, as somebody does who is at the gateway itself."""
    host = trading.active_gateway()
    trading.put_client(host)
    client = f"cd {trading.TOOLS} && python3 -m gateway_simulator.client 127.0.0.1:4101"
    lab.ssh(host, f"{client} --client-id {trading.BY_HAND} --reference {ABROAD} {side} {SYMBOL} 1")


def undo_by_hand() -> None:
    """Give back what was bought, and unlock the instrument until nobody locks it any more."""
    lines = lab.ssh(MONITORING, f"grep -F '\"{ABROAD}\"' {trading.ORDER_LOG} || true").splitlines()
    if sum(trade_once.filled([json.loads(line) for line in lines]).values()) > 0:
        by_hand("sell")
    unlock = f'print(client.production.locks.delete_many({{"instrument_code": "{MINE}"}}).deleted_count)'
    lab.eventually("no lock", lambda: in_mongodb(unlock) == "0", 60, 3)


def to_gateway(signal: str, unit: str) -> Callable[[], object]:
    return lambda: trading.send(trading.active_gateway(), signal, unit)


def tell_gateway(command: str) -> Callable[[], object]:
    return partial(trading.tell_gateway, command)


def kill_switch(*undo: str) -> Callable[[], object]:
    return lambda: lab.succeed(lab.playbook("kill-switch", "-e", "kill_switch_reason=drill", *undo))


def stop_trader() -> None:
    (host,) = trading.traders()
    lab.ssh(host, f"pst-trading stop {trading.HANDLER}", timeout=330)


def traders_cleared() -> None:
    """As the runbook of UnitFailed says: a trader that was killed is `failed` for ever where another host goes on."""
    on_each(lab.APPS, "systemctl reset-failed 'pst-run@*'; true")()


# The causes -----------------------------------------------------------------------------------------------------------

# Of the second webhook, which is there for this.
REFUSES = threading.Event()
ACTIVE = "/etc/haproxy/maps/active.map"
RULES, SETTINGS = "/etc/prometheus/rules/operations.yml", "/etc/prometheus/prometheus.yml"
RELOAD = "systemctl reload prometheus.service"
# A figure of each host belongs to many others.
AMBIGUOUS = "  - name: observe\\n    rules:\\n      - {record: observe, expr: up * on (site) up}\\n"
FAIL = "systemd-run --unit=observe-drill /bin/false"
FAILED_NO_MORE = "systemctl reset-failed observe-drill.service 2>/dev/null; true"
OPLOG, PROVEN = "oplog-mongodb", "test-lab-mongodb"
CUT = (
    "nft add table inet observe && nft add chain inet observe input '{ type filter hook input priority -200; }'"
    " && nft add rule inet observe input tcp dport 9100 drop"
)
NOT_CUT = "! nft list table inet observe >/dev/null 2>&1 || nft delete table inet observe"

CAUSES = (
    Cause(
        "kill: SIGKILL to Redis, which does not start again",
        on("lab-redis3", dead("redis-server.service")),
        on("lab-redis3", alive("redis-server.service")),
        (Alert("RedisDown", "lab-redis3", 60), Alert("RedisReplicaMissing", "", 60)),
        {"UnitFailed"},
    ),
    Cause(
        "freeze: SIGSTOP to mongod",
        on("lab-mongo3", "systemctl kill --signal STOP mongod.service"),
        on("lab-mongo3", "systemctl kill --signal CONT mongod.service"),
        (Alert("MongoDBDown", "lab-mongo3", 60, 5),),
        {"MongoDBReplicationLag", "TargetDown"},
    ),
    Cause(
        "cut: a secondary reaches no other member, and they reach it",
        partial(trading.cut_from_mongodb, "lab-mongo3", "out"),
        partial(trading.mend, "lab-mongo3"),
        (Alert("MongoDBReplicationLag", "", 60, 15),),
    ),
    Cause(
        "freeze: SIGSTOP to two of three mongod",
        on_each(lab.MONGODB[1:], "systemctl kill --signal STOP mongod.service"),
        all_of(on_each(lab.MONGODB[1:], "systemctl kill --signal CONT mongod.service"), traders_cleared),
        (
            Alert("TierHasLostItsMajority", "", 15, 5),
            Alert("MongoDBWithoutPrimary", "", 30, 20),
            Alert("TradingStateUnknown", MONITORING, 60, 15),
        ),
        STALLED | {"MongoDBDown", "MongoDBReplicationLag", "TargetDown", "LeaseWithoutHolder"},
    ),
    Cause(
        "cut: the monitoring host's packets to the node exporter are dropped",
        on("lab-ibgw2", CUT),
        on("lab-ibgw2", NOT_CUT),
        (Alert("TargetDown", "lab-ibgw2", 60, 5),),
    ),
    Cause(
        "break: a unit that ends with an error",
        on("lab-app2", FAIL),
        on("lab-app2", FAILED_NO_MORE),
        (Alert("UnitFailed", "lab-app2", 60),),
    ),
    Cause(
        "break: a unit of pysystemtrade goes round and round, and has most of its memory",
        program(RUNAWAY, RUNS_AWAY, ("lab-app1",)),
        no_program(RUNAWAY, ("lab-app1",)),
        (
            Alert("HighCPUUsage", "lab-app1", 300, 75),
            Alert("HostHighCpuLoad", "lab-app1", 300, 30),
            Alert("HighMemoryUsage", "lab-app1", 300, 15),
        ),
    ),
    Cause(
        "break: one node exporter shows a certificate of nobody, another one of the site that is good for 20 days",
        all_of(on("lab-ibgw2", OF_NOBODY), partial(show_one_that_ends, "lab-redis2", 20)),
        on_each(("lab-ibgw2", "lab-redis2"), back(NODE)),
        (
            Alert("CertificateInvalid", "lab-ibgw2", 60, 4 * SCRAPE_S + 10),
            Alert("CertificateExpires", "lab-redis2", 60, 4 * SCRAPE_S + 10),
        ),
        {"TargetDown"},
    ),
    Cause(
        "break: the configuration of Prometheus is garbage",
        on(MONITORING, f"{keep(SETTINGS)} && echo garbage >>{SETTINGS}; {RELOAD}; true"),
        on(MONITORING, f"{back(SETTINGS)}; {RELOAD}"),
        (Alert("PrometheusReloadFailed", MONITORING, 60),),
    ),
    Cause(
        "break: a rule that matches many with many",
        on(MONITORING, f"{keep(RULES)} && printf '{AMBIGUOUS}' >>{RULES} && {RELOAD}"),
        on(MONITORING, f"{back(RULES)}; {RELOAD}"),
        (Alert("PrometheusRuleFails", MONITORING, 0, 2 * SCRAPE_S),),
    ),
    Cause(
        "break: one of two webhooks refuses, while there is something to tell",
        all_of(REFUSES.set, on("lab-app2", FAIL)),
        all_of(REFUSES.clear, on("lab-app2", FAILED_NO_MORE)),
        (Alert("NotificationsFail", MONITORING, 60, 30 + 2 * SCRAPE_S),),  # what is to be told has to fire first
        {"UnitFailed"},
    ),
    Cause(
        "kill: SIGKILL to the live slot's agent, which does not start again",
        on("lab-app3", dead("pst-app@blue.service")),
        on("lab-app3", alive("pst-app@blue.service")),
        (Alert("TradingSystemDown", "lab-app3", 60),),
        {"UnitFailed"},
    ),
    Cause(
        "kill: keepalived is stopped on both balancers",
        on_each(lab.BALANCERS, "systemctl stop keepalived.service"),
        on_each(lab.BALANCERS, "systemctl start keepalived.service"),
        (Alert("VipNotHeldOnce", "", 30),),
        {"VipFlapping"},
    ),
    Cause(
        "kill: keepalived is stopped three times, each time where the address is",
        move_the_address,
        on_each(lab.BALANCERS, "systemctl start keepalived.service"),
        (Alert("VipFlapping", "", 0, 60),),
        {"VipNotHeldOnce"},
    ),
    Cause(
        "break: a member is drained by hand, and left so",
        drain("drain"),
        drain("ready"),
        (Alert("MemberDrained", "lab-lb1", THRESHOLDS["drained_hours"] * 3600, 30),),
    ),
    Cause(
        "break: the balancer without clients sends to the other slot",
        lambda: tell_haproxy(other_balancer(), f"set map {ACTIVE} active be_green"),
        all_of(*(partial(tell_haproxy, host, f"set map {ACTIVE} active be_blue") for host in lab.BALANCERS)),
        (Alert("TwoColoursLive", "", 120),),
        {"TradingSystemDown"},
    ),
    Cause(
        "kill: the guards of all application nodes are stopped",
        on_each(lab.APPS, "systemctl stop pst-guard.service"),
        on_each(lab.APPS, "systemctl start pst-guard.service"),
        (Alert("LeaseWithoutHolder", "", 60, 15),),
        {"TradingProcessAbsent"},
    ),
    Cause(
        "break: the kill switch, and nobody who undoes it",
        kill_switch(),
        all_of(kill_switch("-e", "kill_switch_undo=true"), traders_cleared),
        (Alert("TradingStopped", "", 60, 20),),
        STALLED,
    ),
    Cause(
        "break: the trader is stopped by hand, and left so",
        stop_trader,
        on("lab-app1", f"pst-trading start {trading.HANDLER}"),
        (Alert("TradingProcessAbsent", "", 300, 5),),
        {"HighOrderLatency"},
    ),
    Cause(
        "break: a unit of a trading process (which sends no orders) runs on two hosts",
        program(TWIN, "ExecStart=/usr/bin/sleep infinity", lab.APPS[:2]),
        no_program(TWIN, lab.APPS[:2]),
        (Alert("TradingProcessTwice", "", 30),),
    ),
    Cause(
        "break: the broker takes a minute to fill an order",
        tell_gateway("FILL 60 1"),
        tell_gateway("FILL 0.05 1"),
        (
            Alert("OrderStuck", "", 60, THRESHOLDS["stuck_order_seconds"] + 30),
            Alert("HighOrderLatency", MONITORING, 120, 60 + 40),
        ),
    ),
    Cause(
        "break: somebody trades at the gateway itself, past the gate and the books",
        partial(by_hand, "buy"),
        undo_by_hand,
        # The handler compares once a minute; until then no figure can show it.
        (Alert("PositionBreak", "", 60, 60 + 10), Alert("PositionReconciliationError", MONITORING, 0, 60 + 15)),
    ),
    Cause(
        "freeze: SIGSTOP to IB Gateway",
        to_gateway("STOP", "ib-gateway.service"),
        all_of(to_gateway("CONT", "ib-gateway.service"), traders_cleared),
        (Alert("GatewayFrozen", GATEWAY, 60, 15),),
        STALLED,
    ),
    Cause(
        "break: the broker's user logs in elsewhere",
        tell_gateway("KICK"),
        all_of(tell_gateway("MODE normal"), traders_cleared),
        (Alert("GatewayNotReady", GATEWAY, 120, 15),),
        STALLED,
    ),
    Cause(
        "break: the login waits for the telephone",
        tell_gateway("MODE second_factor_pending"),
        all_of(tell_gateway("MODE normal"), traders_cleared),
        (Alert("GatewaySecondFactorPending", GATEWAY, 60, 15),),
        STALLED,
    ),
    Cause(
        "freeze: SIGSTOP to the watch of the gateway (two minutes of silence, not compressed)",
        to_gateway("STOP", "pst-gateway-watch.service"),
        to_gateway("CONT", "pst-gateway-watch.service"),
        (Alert("GatewayWatchSilent", GATEWAY, 60, 125),),
    ),
    Cause(
        "age: a run that was killed 7 hours ago has the lock; no part of the oplog for a day, no restore test for 9",
        all_of(
            partial(in_mongodb, LEFT_LOCK),
            no_backup_for(OPLOG, lab.MONGODB, 1),
            no_backup_for(PROVEN, (MONITORING,), 9),
        ),
        all_of(
            partial(in_mongodb, FREE_LOCK),
            backup_as_before(OPLOG, lab.MONGODB),
            backup_as_before(PROVEN, (MONITORING,)),
        ),
        (Alert("RunLockStale", "", 60), Alert("BackupTooOld", "", 60), Alert("RestoreTestTooOld", "", 60)),
    ),
)
