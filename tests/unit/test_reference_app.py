"""The reference application: its own code and the real client library, a gateway simulator, MongoDB in memory."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mongomock
import pst_trace
import pytest
import yaml
from ib_async import IB
from pymongo.collection import Collection
from pymongo.errors import AutoReconnect
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.gateway_simulator import oracle
from tests.unit.test_gateway_simulator import Loop, Running

sys.path.insert(0, str(Path(__file__).parents[1] / "reference_app"))

from dashboard import notes
from dashboard.app import app
from migrations import contract, expand
from pst_agent import account_reader
from sysbrokers.IB.ib_connection import clear_all_client_ids
from syscontrol.run_process import Timer, processToRun
from sysdata.config import control_config, production_config
from sysdata.mongodb import mongo_connection
from sysdata.parquet.parquet_access import INDEX, ParquetAccess
from sysexecution import stack_handler
from sysexecution.order_stack import OrderStack, broker_stack, contract_stack, instrument_stack
from sysexecution.stack_handler import StackHandler
from sysproduction import jobs
from sysproduction.data.control_process import dataControlProcess, diagControlProcess
from sysproduction.startup import startup

CACHES = (
    production_config.get_production_config,
    control_config.get_control_config,
    mongo_connection.get_database,
    notes.slot,
    notes.the_cache,
)
NO_PROCESS = 4_194_305.0  # above the kernel's maximum
ALL_DAY = {"process_configuration_start_time": {"p": "00:00"}, "process_configuration_stop_time": {"p": "24:00"}}


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private directory, and a MongoDB of the test's own."""
    client: Any = mongomock.MongoClient(serverSelectionTimeoutMS=1)
    monkeypatch.setattr(mongo_connection, "MongoClient", lambda *_, **__: client)
    monkeypatch.setenv("PYSYS_PRIVATE_CONFIG_DIR", str(tmp_path))
    configure(tmp_path)
    configure_control(tmp_path, ALL_DAY)
    yield tmp_path
    for cached in CACHES:
        cached.cache_clear()


def configure(folder: Path, **settings: Any) -> None:
    """Write the private configuration."""
    given = {
        "broker_account": "DU1",
        "parquet_store": str(folder / "store"),
        "strategy_list": {"momentum": {}, "carry": {}},
        "reference_poll_seconds": 0.01,
        "reference_loop_seconds": 0.01,
        "reference_cancel_seconds": 5,
        **settings,
    }
    (folder / "private_config.yaml").write_text(yaml.safe_dump(given))
    production_config.get_production_config.cache_clear()


def configure_control(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "private_control_config.yaml").write_text(yaml.safe_dump(settings))
    control_config.get_control_config.cache_clear()


# --- migrations


@pytest.mark.usefixtures("private")
def test_migrations_are_safe_to_repeat() -> None:
    trades = mongo_connection.get_database()["_BROKER_HISTORIC_ORDERS"]
    trades.create_index("order_id", name=contract.FORMER)
    for _ in range(2):
        expand.expand()
        assert {contract.FORMER, expand.NEWEST_TRADES} <= trades.index_information().keys(), "the old one goes on"
    for _ in range(2):
        contract.contract()
        assert expand.NEWEST_TRADES in trades.index_information()
        assert contract.FORMER not in trades.index_information()


# --- configuration


def test_the_private_file_overrides_the_defaults(private: Path) -> None:
    configure(private, mongo_host="mongodb://m1,m2/?replicaSet=rs", ib_port=4444)
    config = production_config.get_production_config()
    assert (config.mongo_host, config.mongo_db) == ("mongodb://m1,m2/?replicaSet=rs", "production")
    assert (config.ib_ipaddress, config.ib_port, config.ib_idoffset) == ("127.0.0.1", 4444, 100)
    assert config.broker_account == config.get_element("broker_account") == "DU1"
    assert config.get_element_or_default("email_to", "nobody") == "nobody"
    with pytest.raises(AttributeError, match="email_to"):
        _ = config.email_to


def test_a_dotted_directory_is_silently_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Upstream's trap, which the platform has to catch: so it has to be here."""
    folder = tmp_path / "private.d"
    folder.mkdir()
    configure(folder, broker_account="DU9")
    monkeypatch.setenv("PYSYS_PRIVATE_CONFIG_DIR", str(folder))
    config = production_config.get_production_config()
    production_config.get_production_config.cache_clear()
    assert config.mongo_host == "127.0.0.1"
    assert config.get_element_or_default("broker_account", None) is None
    assert f"{tmp_path}/private/d/private_config.yaml is missing" in capsys.readouterr().out


def test_a_private_default_window_does_not_reach_a_named_process(private: Path) -> None:
    configure_control(private, {"process_configuration_start_time": {"default": "00:00", "run_backups": "03:00"}})
    diag = diagControlProcess()
    assert [diag.get_start_time(name) for name in ("run_stack_handler", "run_backups", "other")] == [
        "00:01",
        "03:00",
        "00:00",
    ]
    assert diag.get_stop_time("run_stack_handler") == "19:45"


# --- process control


def recorder(done: list[str], *names: str) -> Callable[[], dict[str, Callable[[], None]]]:
    return lambda: {name: lambda name=name: done.append(name) for name in names}


def test_a_daily_process_runs_its_methods_once_and_is_closed(private: Path) -> None:
    done: list[str] = []
    processToRun("p", recorder(done, "a", "b")).run_process()
    document = dataControlProcess().get("p")
    assert done == ["a", "b"]
    assert (document["currently_running"], document["process_id"], document["status"]) == (0.0, 0.0, "GO")
    assert document["last_start_time"] <= document["running_methods"]["b"][1] <= document["last_end_time"]


def test_stop_ends_after_the_method_and_runs_what_is_for_the_end(private: Path) -> None:
    methods = {"a": {"frequency": 0, "max_executions": -1}, "end": {"run_on_completion_only": True}}
    configure_control(private, {**ALL_DAY, "process_configuration_methods": {"p": methods}})
    done: list[str] = []
    control = dataControlProcess()

    def a() -> None:
        done.append("a")
        if len(done) == 3:
            control.change_status_to_stop("p")

    processToRun("p", lambda: {"a": a, "b": lambda: done.append("b"), "end": lambda: done.append("end")}).run_process()
    assert done == ["a", "b", "a", "end"]
    assert control.get("p")["status"] == "STOP", "somebody has to say GO again"
    processToRun("p", recorder(done, "a")).run_process()
    assert done[-1] == "end", "it does not start"


def test_a_process_that_is_marked_as_running_is_not_started_and_that_is_no_failure(private: Path) -> None:
    done: list[str] = []
    dataControlProcess().start_process("p")
    processToRun("p", recorder(done, "a")).run_process()
    assert done == []


def test_a_crash_leaves_it_marked_as_running(private: Path) -> None:
    def crash() -> None:
        raise ConnectionError("Socket disconnect")

    with pytest.raises(ConnectionError):
        processToRun("p", lambda: {"a": crash}).run_process()
    assert dataControlProcess().get("p")["currently_running"] == 1.0


def test_no_run_waits_and_pause_runs_nothing(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control, done, waits = dataControlProcess(), [], []
    control.change_status_to_no_run("p")

    def sleep(_seconds: float) -> None:
        waits.append(list(done))
        {3: control.change_status_to_pause, 6: control.change_status_to_go}.get(len(waits), lambda _: None)("p")

    monkeypatch.setattr("syscontrol.run_process.time.sleep", sleep)
    processToRun("p", recorder(done, "a")).run_process()
    assert waits[:6] == [[]] * 6
    assert done == ["a"]


def test_a_window_that_is_over_or_has_not_come_keeps_it_from_starting(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    configure_control(private, {"process_configuration_stop_time": {"p": "00:00"}})
    processToRun("p", recorder(done, "a")).run_process()
    assert done == []
    configure_control(private, {kind: {"p": f"24:0{number}"} for number, kind in enumerate(ALL_DAY)})

    def come(_seconds: float) -> None:
        configure_control(private, ALL_DAY)
        raise InterruptedError

    monkeypatch.setattr("syscontrol.run_process.time.sleep", come)
    with pytest.raises(InterruptedError):
        processToRun("p", recorder(done, "a")).run_process()


def test_a_process_waits_for_the_one_before_it(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure_control(private, {**ALL_DAY, "process_configuration_previous_process": {"p": "before"}})
    done: list[str] = []
    monkeypatch.setattr(
        "syscontrol.run_process.time.sleep", lambda _: dataControlProcess().finish_process("before") or done.append("w")
    )
    processToRun("p", recorder(done, "a")).run_process()
    assert done[:2] == ["w", "a"]


def test_timer() -> None:
    now = datetime.now().astimezone()
    timer = Timer.of({"frequency": 10, "max_executions": 2, "object": "ignored"})
    assert timer.due(now)
    timer.ran(now)
    assert not timer.due(now + timedelta(minutes=9))
    assert timer.due(now + timedelta(minutes=10))
    timer.ran(now)
    assert timer.done
    assert not timer.due(now + timedelta(days=1))


def test_the_dangers_of_upstream_are_here(private: Path) -> None:
    """What the platform has to make safe: process ids of another host looked up here, and a start-up that frees all."""
    control, documents = dataControlProcess(), mongo_connection.get_database()["process_control"]
    control.start_process("here")
    control.start_process("elsewhere")
    documents.update_one({"process_name": "elsewhere"}, {"$set": {"process_id": NO_PROCESS}})
    assert control.check_if_pid_running_and_if_not_finish_all_processes() == ["elsewhere"]
    assert control.get("elsewhere")["recently_crashed"] == 1.0
    startup()
    assert control.get("here")["currently_running"] == 0.0


# --- the stack handler


class LostError(BaseException):
    """The power went."""


class Power:
    """Counts the writes to MongoDB, and goes before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left: int | None = None
        kind = type(mongo_connection.get_database()["x"])
        for name in ("insert_one", "update_one", "replace_one", "delete_one", "find_one_and_update"):
            monkeypatch.setattr(kind, name, self._counted(getattr(kind, name)))

    def _counted(self, original: Any) -> Any:
        def write(collection: Collection[Any], *arguments: Any, **options: Any) -> Any:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    raise LostError
            return original(collection, *arguments, **options)

        return write

    def lasts(self, writes: int, work: Callable[[], object]) -> bool:
        """Whether some work needs no more than that many writes; more are not made."""
        self._left = writes
        try:
            work()
        except LostError:
            return False
        finally:
            self._left = None
        return True


class World:
    """A gateway with its broker, and handlers that come and go."""

    def __init__(self, loop: Loop, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gateway = Running(loop, folder / "orders.jsonl")
        self._monkeypatch, self._epoch, self._connections = monkeypatch, 0, []
        for module, name in ((stack_handler, "connect"), (stack_handler, "take_over"), (jobs, "connect")):
            monkeypatch.setattr(module, name, self._remembered(getattr(module, name)))
        monkeypatch.setattr(stack_handler, "EVENT_SECONDS", 0.001)
        configure(folder, ib_port=self.gateway.port)

    def _remembered(self, connect: Callable[..., IB]) -> Callable[..., IB]:
        def remember(*arguments: Any) -> IB:
            self._connections.append(connect(*arguments))
            return self._connections[-1]

        return remember

    def kill(self) -> None:
        """Drop all connections, as the kernel does for dead processes."""
        for connection in self._connections:
            connection.disconnect()
        self._connections.clear()
        asyncio.get_event_loop_policy().get_event_loop().run_until_complete(asyncio.sleep(0))
        clear_all_client_ids()  # as the guard does at a takeover

    def handler(self) -> StackHandler:
        self._epoch += 1
        self._monkeypatch.setenv("PST_LEASE_EPOCH", str(self._epoch))
        return StackHandler()

    def rounds(self, handler: StackHandler, until: Callable[[], bool] = lambda: not active()) -> None:
        """Let a handler work as its process does."""
        for _ in range(500):
            for name, method in handler.methods().items():
                if name != "safe_stack_removal":
                    method()
            if until():
                return
        pytest.fail(f"still active: {active()}")

    def verdict(self) -> oracle.Verdict:
        """Judge by the broker's log, and compare it with the handlers' books."""
        stack = broker_stack()
        orders = [*stack.find(), *stack.history.find()]
        return oracle.judge(self.gateway.events(), {str(order["order_id"]): order["fill"][0] for order in orders})


def active() -> list[dict[str, Any]]:
    return [order for stack in (instrument_stack(), contract_stack(), broker_stack()) for order in stack.active()]


@pytest.fixture
def world(private: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    clients_loop = asyncio.new_event_loop()
    asyncio.set_event_loop(clients_loop)
    with Loop() as loop:
        made = World(loop, private, monkeypatch)
        yield made
        made.kill()
        made.gateway.stop()
    asyncio.set_event_loop(None)
    clients_loop.close()


def test_orders_become_fills_positions_and_history(world: World) -> None:
    jobs.put_instrument_orders(["momentum", "carry"])
    handler = world.handler()
    world.rounds(handler)
    verdict = world.verdict()
    assert verdict == oracle.Verdict(8, 1, [], [], [])
    [first, *_] = broker_stack().history.find().sort("order_id")
    assert first["fill"] == first["trade"]
    assert first["filled_price"] > 0
    assert first["broker_permid"] == 1_000_001.0
    assert {order["fill"][0] == order["trade"][0] for order in instrument_stack().history.find()} == {True}
    strategy, instrument, expiry = first["key"].split("/")
    rows = ParquetAccess().read("strategy_positions", f"{strategy} {instrument}")
    assert rows[-1]["position"] == first["fill"][0]
    assert isinstance(rows[-1][INDEX], datetime)
    held = sum(order["fill"][0] for order in broker_stack().history.find() if instrument in order["key"])
    assert ParquetAccess().read("contract_positions", f"{instrument}#{expiry}")[-1]["position"] == held
    handler.safe_stack_removal()


def test_an_orders_life_is_one_trace(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    jobs.put_instrument_orders(["momentum"], at_most=1)
    handler = world.handler()
    world.rounds(handler)
    handler.safe_stack_removal()
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    spans = [span for data in said for span in pst_trace.spans_of({"host": "app1", "data": data, "message": ""})]
    whole, *parts = [one.span for one in pst_trace.tree(spans)]
    assert whole.name == "order 1"
    # MongoDB keeps milliseconds, so those of one may be in another order.
    assert sorted(span.name for span in parts) == ["choose a contract", "fill", "generate", "send"]
    assert {span.parent for span in parts} == {whole.span_id}
    assert [span.trace_id for span in spans] == [pst_trace.digest("order", "1")[:32]] * 5
    assert whole.about["filled"] == whole.about["wanted"] != 0


def test_the_agent_reads_what_the_account_has_earned(world: World, private: Path) -> None:
    """The figures of the reader, from files and orders that it has not made itself; no fill is lost on the way."""
    handler = world.handler()
    for _ in range(4):
        jobs.put_instrument_orders(["momentum", "carry"])
        world.rounds(handler)
    orders, cash = list(broker_stack().history.find()), dict[str, float]()
    table = account_reader.instruments(Path(__file__).parents[1] / "reference_app")
    for order in orders:
        _, name, expiry = order["key"].split("/")
        ParquetAccess().append("futures_contract_prices", f"{name}#{expiry}", {"FINAL": 1000.0})
        earned = order["fill"][0] * (1000.0 - order["filled_price"]) * table[name].point_size
        cash[name] = cash.get(name, 0.0) + earned
    account = account_reader.Account(account_reader.Store(private / "store", time.time()), table, "USD")
    database = mongo_connection.get_database()
    account.load(account_reader.fills(*(database[name] for name in account_reader.ORDERS)))
    pnl = account.figures()["pnl"]
    assert len(pnl) == 4
    assert {name: values["total"] for name, values in pnl.items()} == pytest.approx(cash)


def test_power_may_go_before_any_write(world: World, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of writes is such that no kill makes a handler send twice or lose a fill: tried at each of them.

    The handler that cleans up after the first is killed in the same way, and the next one has to do it.
    """
    instruments = {"SP500_micro": {"symbol": "MES", "exchange": "CME"}}
    power, rounds, lasted, offsets = Power(monkeypatch), 0, False, itertools.cycle([100, 100, 200])

    def work() -> None:
        world.rounds(world.handler())

    while not lasted:
        # A successor has the client id of the dead one, or another.
        settings = {"reference_instruments": instruments, "ib_idoffset": next(offsets)}
        configure(private, ib_port=world.gateway.port, **settings)
        jobs.put_instrument_orders(["momentum", "carry"])
        lasted = power.lasts(rounds, work)
        world.kill()
        power.lasts(rounds, work)
        world.kill()
        configure(private, ib_port=world.gateway.port, **settings | {"ib_idoffset": 100})
        work()
        world.kill()
        assert world.verdict().ok, f"power lost before write {rounds}: {world.verdict()}"
        for key, filled in broker_stack().filled().items():
            rows = ParquetAccess().read("strategy_positions", " ".join(key.split("/")[:2])) or [{"position": 0.0}]
            assert rows[-1]["position"] == filled, f"power lost before write {rounds}: position of {key}"
        rounds += 1
    assert rounds > 30
    assert instrument_stack().history.count_documents({}) == 2 * rounds
    assert world.verdict().orders_sent > 1.5 * rounds, "orders were sent before the power went, or after"
    assert mongo_connection.get_database()["locks"].count_documents({}) == 0


def test_a_successor_ends_what_a_dead_handler_left_at_the_broker(world: World) -> None:
    world.gateway.command("FILL 30 1")
    jobs.put_instrument_orders(["momentum"])
    first = world.handler()
    world.rounds(first, until=lambda: len(broker_stack().active()) == 4)
    world.kill()
    world.handler()
    assert active() == []
    assert [event["event"] for event in world.gateway.events()] == ["placed"] * 4 + ["cancelled"] * 4
    assert {order["algo_comment"] for order in broker_stack().history.find()} == {"ended by a later handler"}


def test_a_successor_sends_nothing_while_the_handler_before_it_lives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysbrokers.IB.ib_connection.TAKE_OVER_SECONDS", 0.3)
    world.gateway.command("FILL 30 1")
    jobs.put_instrument_orders(["momentum"])
    first = world.handler()
    world.rounds(first, until=lambda: len(broker_stack().active()) == 4)
    jobs.put_instrument_orders(["carry"])
    with pytest.raises((ConnectionError, TimeoutError)):
        world.handler()
    assert world.verdict().orders_sent == 4


def test_stop_leaves_nothing_behind(world: World) -> None:
    world.gateway.command("FILL 30 1")
    jobs.put_instrument_orders(["momentum"])
    handler = world.handler()
    world.rounds(handler, until=lambda: len(broker_stack().active()) == 4)
    jobs.put_instrument_orders(["carry"])
    handler.safe_stack_removal()
    assert active() == []
    assert [event["event"] for event in world.gateway.events()] == ["placed"] * 4 + ["cancelled"] * 4
    assert world.verdict().ok


@pytest.mark.parametrize("fault", ["MODE read_only", "REJECT 4"])
def test_a_refused_order_ends_unfilled_and_is_not_sent_again(world: World, fault: str) -> None:
    handler = world.handler()
    world.gateway.command(fault)
    jobs.put_instrument_orders(["momentum"])
    world.rounds(handler)
    assert [order["fill"] for order in broker_stack().history.find()] == [[0.0]] * 4
    assert world.verdict() == oracle.Verdict(0, 0, [], [], [])


def test_a_lost_gateway_is_a_crash(world: World) -> None:
    handler = world.handler()
    world.gateway.command("RESTART 60")
    with pytest.raises(ConnectionError, match="Socket disconnect"):
        world.rounds(handler, until=lambda: False)
    with pytest.raises(ConnectionError):
        world.handler()


def test_a_break_locks_the_instrument_and_no_other(world: World) -> None:
    handler = world.handler()
    [contract] = {handler._find_contract("GOLD_micro").lastTradeDateOrContractMonth}
    with world.gateway.client(900) as stranger:
        stranger.place(stranger.next_order_id(), "MGC", 2, sec_type="FUT", expiry=contract)
        while not any(event["event"] == "filled" for event in world.gateway.events()):
            stranger.receive()
    handler.check_external_position_break()
    locks = list(mongo_connection.get_database()["locks"].find({}, {"_id": 0}))
    assert locks == [{"instrument_code": "GOLD_micro", "lock": "ON"}]
    jobs.put_instrument_orders(["momentum"])
    world.rounds(handler, until=lambda: len(active()) == 2)
    assert {order["key"].replace("/", " ").split()[1] for order in active()} == {"GOLD_micro"}


def test_two_handlers_at_once_do_trade_twice(world: World) -> None:
    """As upstream's do: a drill in which the fences fail has to show it."""
    first, second = world.handler(), world.handler()
    jobs.put_instrument_orders(["momentum"])
    looked_up = first._contracts.child_of
    first._contracts.child_of = lambda _parent: None  # it looked before the other one wrote
    second.spawn_children_from_new_instrument_orders()
    first.spawn_children_from_new_instrument_orders()
    first._contracts.child_of = looked_up
    world.rounds(second)
    assert len(world.verdict().duplicate_orders) == 8


def test_every_process_is_locked_under_a_client_id_of_its_own(world: World) -> None:
    handlers = [world.handler(), world.handler()]
    locks = mongo_connection.get_database()["IBClientTracker"].distinct("client_id")
    assert locks == [handler._ib.client.clientId for handler in handlers] == [100, 101]


# --- the other processes


def test_daily_processes_write_their_files(world: World, private: Path) -> None:
    configure(
        private,
        ib_port=world.gateway.port,
        strategy_capital_allocation={"strategy_weights": {"momentum": 0.4}},
        offsystem_backup_directory=str(private / "backup"),
        reporting_directory=str(private / "reports"),
    )
    makers = (jobs.capital_update, jobs.price_updates, jobs.fx_and_contract_updates, jobs.multiple_adjusted_prices)
    for maker in (*makers, jobs.systems, jobs.backups, jobs.cleaners, jobs.reports):
        for method in maker().values():
            method()
    store = ParquetAccess()
    assert store.read("capital", "__global_capital")[-1]["Actual"] == 1_000_000.0
    assert store.read("capital", "momentum")[-1]["capital"] == 400_000.0
    assert len(store.identifiers("futures_contract_prices")) == len(store.identifiers("futures_adjusted_prices")) == 4
    assert store.read("spotfx_prices", "EURUSD")[-1]["price"] > 0
    assert len(store.identifiers("optimal_positions")) == 8
    assert (private / "backup" / "parquet" / "capital" / "__global_capital.parquet").is_file()
    assert (private / "reports" / "status_report").read_text() == ""


def test_the_generator_makes_one_round_or_a_steady_flow(private: Path) -> None:
    for method in jobs.strategy_order_generator().values():
        method()
    jobs.put_instrument_orders(["momentum"])
    assert len(instrument_stack().active()) == 8, "one order per strategy and instrument at a time"
    assert [order["order_id"] for order in instrument_stack().active()] == list(range(1, 9))
    OrderStack("INSTRUMENT", "STRATEGY").orders.delete_many({})
    configure(private, reference_orders_per_minute=60_000)
    [flow] = jobs.strategy_order_generator().values()
    for _ in range(12):
        flow()
    assert len(instrument_stack().active()) == 8


# --- the dashboard


def test_pages(private: Path) -> None:
    client = app.test_client()
    assert [client.get(path).status_code for path in ("/", "/strategy", "/trades", "/capital", "/health")] == [
        200,
        200,
        200,
        500,
        404,
    ]
    broker_stack().put(1, "momentum/GOLD_micro/20261218", 2.0, fill=[2.0])
    assert client.get("/strategy").json == {"momentum": {"GOLD_micro": 2.0}}


def test_the_page_of_processes_is_as_dangerous_as_upstreams(private: Path) -> None:
    configure(private, mongo_host="mongodb://app:secret@m1/?replicaSet=rs")
    control = dataControlProcess()
    control.start_process("run_stack_handler")
    documents = mongo_connection.get_database()["process_control"]
    documents.update_one({"process_name": "run_stack_handler"}, {"$set": {"process_id": NO_PROCESS}})
    page = app.test_client().get("/processes")
    assert "secret" in page.text
    assert control.get("run_stack_handler")["currently_running"] == 0.0


def test_notes(private: Path) -> None:
    client, note = app.test_client(), {"key": "a/b", "text": "t"}
    answers = [
        client.post("/notes", json=note),
        client.post("/notes", json=note),
        client.post("/notes", json=note | {"text": "u"}),
        client.get("/notes/a/b"),
        client.get("/notes/x"),
        client.post("/notes", json=note | {"more": 1}),
        client.post("/notes", json=note | {"key": ""}),
        client.post("/notes", data="{"),
        client.post("/notes", data=b"x" * (notes.MAX_BODY + 1)),
        client.delete("/notes/a/b"),
    ]
    assert [answer.status_code for answer in answers] == [201, 200, 409, 200, 404, 422, 422, 422, 413, 405]
    assert (answers[3].json, answers[3].headers["X-Cache"]) == (note, "miss")


def test_a_database_that_does_not_answer_is_a_503_to_be_tried_again(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise AutoReconnect("no primary")

    monkeypatch.setattr(notes, "get_database", fail)
    answer = app.test_client().get("/notes/a")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


class FakeRedis:
    """A Redis that may fail."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.failing, self.asked, self.disconnected = False, 0, 0
        self.connection_pool = self

    def _ask(self) -> None:
        self.asked += 1
        if self.failing:
            raise RedisConnectionError("gone")

    def get(self, key: str) -> bytes | None:
        self._ask()
        return self.values.get(key)

    def set(self, key: str, text: str, ex: int) -> None:
        self._ask()
        self.values[key] = text.encode()

    def disconnect(self) -> None:
        self.disconnected += 1


@pytest.fixture
def redis(private: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRedis:
    """A slot with its settings and its credential, whose Sentinels lead to a fake."""
    fake = FakeRedis()
    slot = {
        "instance": {"host": "app1", "colour": "blue"},
        "tls": {"ca": "/ca.crt"},
        "redis": {"sentinels": ["r1:26379"], "master": "pst", "username": "app"},
    }
    (private / "app.json").write_text(json.dumps(slot))
    (private / "redis_password").write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(private))

    class Sentinel:
        def __init__(self, addresses: Any, sentinel_kwargs: Any, **options: Any) -> None:
            assert addresses == [("r1", 26379)]
            assert options["password"] == sentinel_kwargs["password"] == "secret"
            assert options["ssl_ca_certs"] == "/ca.crt"

        def master_for(self, name: str) -> FakeRedis:
            assert name == "pst"
            return fake

    monkeypatch.setattr(notes, "Sentinel", Sentinel)
    return fake


def test_a_note_comes_from_the_cache_where_there_is_one(redis: FakeRedis) -> None:
    client, note = app.test_client(), {"key": "k", "text": "t"}
    client.post("/notes", json=note)
    answer = client.get("/notes/k")
    assert (answer.json, answer.headers["X-Cache"]) == (note, "hit")
    echo = client.get("/echo?message=hi").json
    assert echo == {"message": "hi", "host": "app1", "colour": "blue", "release": "unreleased"}


def test_a_cache_that_fails_is_left_alone_for_a_while(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("dashboard.notes.time.monotonic", lambda: now[0])
    client, note = app.test_client(), {"key": "k", "text": "t"}
    redis.failing = True
    assert client.post("/notes", json=note).status_code == 201
    assert client.get("/notes/k").headers["X-Cache"] == "miss"
    assert (redis.asked, redis.disconnected) == (1, 1)
    redis.failing = False
    now[0] += notes.CACHE_REST_S
    assert client.get("/notes/k").headers["X-Cache"] == "miss"
    assert client.get("/notes/k").headers["X-Cache"] == "hit"
