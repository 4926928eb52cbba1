"""A world for the guard: a clock, a replica set, hosts whose processes obey STOP. Nothing in it runs by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mongo_rules import Database, Document, Stored
from pst_trading import settings
from pst_trading.guard import Guard
from pst_trading.lease import Request
from pst_trading.processes import ORDER_ID_STORE, ORDER_SENDER, STACKS, MongoProcessControl, ProcessState
from pst_trading.runner import Runner, Tools
from pst_trading.store import MongoDrains, MongoLeases, MongoRuns, StoreError
from pst_trading.units import UnitState

TICK_S = 0.25
NAMES = {
    "running": "currently_running",
    "crashed": "recently_crashed",
    "last_start": "last_start_time",
    "last_end": "last_end_time",
}
MONDAY_MORNING = datetime.fromisoformat("2026-11-23T08:00")

DOCUMENT: Document = {
    "site": "lab",
    "host": "app1",
    "address": "10.0.0.1",
    "colour": "blue",
    "user": "pst",
    "mongodb": {
        "hosts": ["m1:27017"],
        "replica_set": "rs0",
        "username": "guard",
        "password_file": "/etc/pst/password",
        "database": "pst",
        "trading_database": "production",
        "tls_ca": "/etc/pst/ca.crt",
    },
    "lease": {"ttl_s": 15, "renew_s": 2, "margin_s": 3, "drain_after_s": 5, "rank_delay_s": 1},
    "placements": {"trading": {"hosts": ["app1", "app2"]}, "strategies": {"hosts": ["app2", "app1"]}},
    "processes": [
        {
            "name": "run_stack_handler",
            "process_control_name": "run_stack_handler",
            "placement": "trading",
            "kind": "service",
            "start": "00:01",
            "stop": "19:45",
            "days": ["Mon", "Tue", "Wed", "Thu", "Fri"],
        },
        {
            "name": "run_systems",
            "process_control_name": "run_systems",
            "placement": "strategies",
            "kind": "daily",
            "start": "20:05",
            "stop": "23:50",
            "days": ["Mon", "Tue", "Wed", "Thu", "Fri"],
        },
        {
            "name": "run_strategy_order_generator",
            "process_control_name": "run_strategy_order_generator",
            "placement": "strategies",
            "kind": "daily",
            "start": "20:10",
            "stop": "23:50",
            "days": ["Mon", "Tue", "Wed", "Thu", "Fri"],
            "previous": "run_systems",
            "rerun": False,
        },
    ],
    "gateway": {
        "host": "127.0.0.1",
        "port": 4001,
        "client_id_offset": 100,
        "client_id_count": 900,
        "recover_client_id": 998 + 1000,
        "account": "DU1234567",
    },
    "drain": {"timeout_s": 300},
    "link": {"listen": "127.0.0.1:4001", "gateways": ["10.0.0.51:4001"]},
}


def make_settings(**changes: Any) -> settings.Settings:
    problems: list[str] = []
    made = settings._convert(settings.Settings, DOCUMENT, "", problems)
    assert problems == []
    return replace(made, **changes)


class Leases(MongoLeases):
    """The real ones; what was done to a lease is in the world's log, but for renewals."""

    def __init__(self, world: World, host: str) -> None:
        super().__init__(world.database(host))
        self.world = world
        self.host = host

    def execute(self, request: Request) -> Document | None:
        if self.host in self.world.unwritable:
            raise StoreError("no majority")
        lease = super().execute(request)
        if lease is not None and request.verb not in ("read", "renew"):
            self.world.log.append(f"{self.host} {request.verb}s {request.placement}")
        return lease


class Control(MongoProcessControl):
    """Process control as the processes themselves write it, and the stacks."""

    def __init__(self, world: World, host: str = "") -> None:
        super().__init__(world.database(host))
        self.world = world

    def __getitem__(self, name: str) -> ProcessState:
        return self.states([name])[name]

    def change(self, name: str, **fields: Any) -> None:
        stored = {
            NAMES.get(key, key): float(value) if isinstance(value, bool) else value for key, value in fields.items()
        }
        self._control.update_one({"process_name": name}, {"$set": stored}, upsert=True)

    def set_status(self, name: str, status: str) -> None:
        super().set_status(name, status)
        self.world.statuses.append((self.world.now, status))

    def put_orders(self, *orders: tuple[str, int], begun: bool = True) -> None:
        """Replace what is on the stacks."""
        for stack in STACKS:
            collection = self._database[stack]
            collection.delete_many({})
            collection.insert_one({"order_id": ORDER_ID_STORE, "max_order_id": 99.0})
            collection.insert_one({"order_id": 1.0, "active": 0.0})
        for stack, order_id in orders:
            self._database[stack].insert_one(
                {"order_id": order_id, "active": 1.0, "key": "s/GOLD/20261200", "children": [5] if begun else []}
            )


class Units:
    """systemd of one host. A process that is started runs at once, and obeys STOP unless it is deaf."""

    def __init__(self, world: World, host: str) -> None:
        self.world = world
        self.host = host
        self.running: dict[str, str] = {}  # unit -> placement
        self.started: list[str] = []
        self.failed: set[str] = set()
        self.asked = 0  # for the state of a unit

    def name(self, unit: str) -> str:
        return unit.removeprefix("pst-run@").removesuffix(".service")

    def start(self, unit: str) -> None:
        name = self.name(unit)
        process = self.world.settings.process(name)
        self.started.append(name)
        self.world.log.append(f"{self.host} starts {name}")
        if self.world.control[name].running:
            return  # "already running": it ends at once, with exit code 0
        self.running[unit] = process.placement
        self.failed.discard(unit)
        self.world.control.change(name, running=True, crashed=False, last_start=self.world.local_time())

    def ends(self, name: str, *, crashes: bool = False) -> None:
        self.running.pop(f"pst-run@{name}.service", None)
        if not crashes:
            self.world.control.change(name, running=False, last_end=self.world.local_time())

    def state(self, unit: str) -> UnitState:
        self.asked += 1
        if unit in self.failed:
            return UnitState("failed", "signal", job=False)
        return UnitState("active" if unit in self.running else "inactive", "success", job=False)

    def forget_failure(self, unit: str) -> None:
        self.world.log.append(f"{self.host} forgets {self.name(unit)}")
        self.failed.remove(unit)

    def alive(self, placement: str, unit: str) -> bool:
        return unit in self.running

    def empty(self, placement: str) -> bool:
        return placement not in self.running.values()

    def kill(self, placement: str, give_up_at: float) -> bool:
        if not self.empty(placement):
            self.world.log.append(f"{self.host} kills {placement}")
        self.failed |= {unit for unit, where in self.running.items() if where == placement}
        self.running = {unit: where for unit, where in self.running.items() if where != placement}
        return True


@dataclass
class Node:
    """One app node and its guard."""

    host: str
    units: Units
    guard: Guard | None
    folder: Path

    def runner(self, placement: str = "trading") -> Runner:
        assert self.guard
        return self.guard.runners[placement]

    def holds(self, placement: str = "trading") -> bool:
        return self.guard is not None and self.runner(placement).keeper.grant is not None


class World:
    """Everything, driven by `run`."""

    def __init__(self, folder: Path, hosts: Sequence[str] = ("app1", "app2"), **changes: Any) -> None:
        self.now = 1000.0
        self.begin = MONDAY_MORNING
        self.settings = make_settings(**changes)
        self.cut_off: set[str] = set()  # from MongoDB
        self.unwritable: set[str] = set()  # for whom renewals alone fail
        self.deaf: set[str] = set()
        self.frozen: set[str] = set()
        self.log: list[str] = []
        self.statuses: list[tuple[float, str]] = []
        self.stored: dict[str, Stored] = {}
        self.control = Control(self)
        self.runs = MongoRuns(self.database())
        self.drains = MongoDrains(self.database())
        self.recover: Callable[[], object] = lambda: self.log.append("recovers") or "nothing was open"
        self.nodes = {host: self.node(host, folder / host) for host in hosts}

    def local_time(self) -> datetime:
        return self.begin + timedelta(seconds=self.now - 1000)

    def database(self, host: str = "") -> Database:
        return Database(self.stored, lambda: self.now * 1000, lambda: host not in self.cut_off)

    def lease(self, placement: str = "trading") -> Document:
        return next(document for document in self.stored["leases"].documents if document["_id"] == placement)

    def run_of(self, process: str) -> Document:
        day = self.begin.date().isoformat()
        return self.runs.of_day(process, day) or {}

    def node(self, host: str, folder: Path) -> Node:
        folder.mkdir()
        node = Node(host, Units(self, host), None, folder)
        node.guard = self.make_guard(node)
        return node

    def make_guard(self, node: Node, **changes: Any) -> Guard:
        tools = Tools(
            settings=replace(self.settings, host=node.host, **changes),
            units=node.units,
            control=Control(self, node.host),
            runs=MongoRuns(self.database(node.host)),
            drains=MongoDrains(self.database(node.host)),
            recover=lambda: self.recover(),
            clock=lambda: self.now,
            local_time=self.local_time,
            wait=self.wait,
        )
        guard = Guard(tools, Leases(self, node.host), node.folder)
        for runner in guard.runners.values():
            runner.keeper.adopt()
        return guard

    def restart_guard(self, host: str, **changes: Any) -> None:
        self.nodes[host].guard = self.make_guard(self.nodes[host], **changes)

    def crash_guard(self, host: str) -> None:
        self.nodes[host].guard = None

    def lose_host(self, host: str) -> None:
        self.crash_guard(host)
        self.nodes[host].units.running.clear()

    # Time ------------------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Let time pass for everything but the runners: one of them may be what waits."""
        until = self.now + seconds
        while self.now < until:
            self.now += TICK_S
            for node in self.nodes.values():
                self.processes_obey(node)
                if node.guard and node.host not in self.frozen:
                    node.guard.killer.step()
                    for runner in node.guard.runners.values():
                        runner.keeper.step()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self.now < until:
            self.wait(TICK_S)
            for node in self.nodes.values():
                if node.guard and node.host not in self.frozen:
                    for runner in node.guard.runners.values():
                        runner.step()

    def run_until(self, condition: Callable[[], bool], seconds: float = 60) -> float:
        """Let time pass until the condition holds; returns how long it took."""
        begin = self.now
        while not condition():
            assert self.now - begin < seconds, f"not within {seconds} s; {self.log}"
            self.run(TICK_S)
        return self.now - begin

    def processes_obey(self, node: Node) -> None:
        for unit in list(node.units.running):
            name = node.units.name(unit)
            if self.control[name].status == "STOP" and name not in self.deaf:
                if name == ORDER_SENDER:
                    self.control.put_orders()
                node.units.ends(name)

    def holders(self, placement: str = "trading") -> list[str]:
        return [node.host for node in self.nodes.values() if node.holds(placement)]

    def running(self, name: str) -> list[str]:
        return [node.host for node in self.nodes.values() if f"pst-run@{name}.service" in node.units.running]
