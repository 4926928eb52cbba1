"""pysystemtrade's own documents, as it writes them."""

from __future__ import annotations

from datetime import datetime

import pytest
from mongo_rules import Database
from pst_trading.processes import ORDER_ID_STORE, MongoProcessControl, ProcessState

NOON = datetime.fromisoformat("2026-11-23T12:00")
EARLIER = datetime.fromisoformat("2026-11-23T08:00")
RUNNING = {
    "process_name": "run_stack_handler",
    "status": "GO",
    "currently_running": 1.0,
    "process_id": 25227.0,
    "last_start_time": EARLIER,
    "last_end_time": None,
    "recently_crashed": 0.0,
    "running_methods": {"one": [EARLIER, NOON], "two": [EARLIER, ""]},
}


@pytest.fixture
def database():
    made = Database()
    made["process_control"].insert_one(RUNNING)
    return made


@pytest.fixture
def control(database):
    return MongoProcessControl(database)


def entry(database, name="run_stack_handler"):
    found = database["process_control"].find_one({"process_name": name})
    return {key: value for key, value in found.items() if key != "_id"}


def test_states_are_read_and_one_that_never_ran_may_start(control):
    states = control.states(["run_stack_handler", "run_systems"])
    assert states["run_stack_handler"] == ProcessState(
        "run_stack_handler", "GO", running=True, last_start=EARLIER, newest_activity=NOON
    )
    assert states["run_systems"].may_start
    assert control.any_running()


@pytest.mark.parametrize(("status", "may"), [("GO", True), ("PAUSE", True), ("STOP", False), ("NO-RUN", False)])
def test_stop_and_no_run_refuse_a_start(status, may):
    assert ProcessState("x", status).may_start is may


def test_a_status_is_set_and_all_else_is_left(control, database):
    control.set_status("run_stack_handler", "STOP")
    assert entry(database) == {**RUNNING, "status": "STOP"}


def test_a_status_can_be_set_before_the_first_run(control, database):
    control.set_status("run_systems", "STOP")
    assert entry(database, "run_systems") == {
        "process_name": "run_systems",
        "status": "STOP",
        "currently_running": 0.0,
        "process_id": 0.0,
        "recently_crashed": 0.0,
        "running_methods": {},
        "last_start_time": None,
        "last_end_time": None,
    }


def test_only_what_was_left_open_is_closed(control, database):
    control.set_status("run_systems", "GO")
    before = entry(database, "run_systems")
    assert control.close_dead(["run_stack_handler", "run_systems", "run_backups"], NOON) == ["run_stack_handler"]
    closed = {"currently_running": 0.0, "process_id": 0.0, "recently_crashed": 1.0, "last_end_time": NOON}
    assert entry(database) == {**RUNNING, **closed}
    assert entry(database, "run_systems") == before
    assert not control.any_running()


def test_active_orders_are_those_of_three_stacks_without_the_counter(control, database):
    for stack in ("INSTRUMENT_ORDER_STACK", "CONTRACT_ORDER_STACK", "BROKER_ORDER_STACK"):
        database[stack].insert_one({"order_id": ORDER_ID_STORE, "max_order_id": 3.0, "active": 1.0})
        database[stack].insert_one({"order_id": 1.0, "active": 0.0})
        database[stack].insert_one({"order_id": 2.0, "active": False})
        database[stack].insert_one({"order_id": 3.0, "active": True, "key": "k", "trade": [1], "fill": [0]})
    assert [str(order) for order in control.active_orders()] == [
        f"{stack} 3: k, trade [1], filled [0]"
        for stack in ("INSTRUMENT_ORDER_STACK", "CONTRACT_ORDER_STACK", "BROKER_ORDER_STACK")
    ]


def test_client_ids_of_the_range_are_freed_and_no_others(control, database):
    for number in (99, 100, 999, 1000):
        database["IBClientTracker"].insert_one({"client_id": number})
    assert control.free_client_ids(range(100, 1000)) == 2
    assert [tracker["client_id"] for tracker in database["IBClientTracker"].find({})] == [99, 1000]


def test_missing_indexes_are_created_once(control, database):
    made = control.create_indexes()
    assert {"process_control.process_name_1", "IBClientTracker.client_id_1", "BROKER_ORDER_STACK.order_id_1"} < set(
        made
    )
    assert "limit_status.instrument_strategy_key_1_period_days_1" in made
    assert control.create_indexes() == []
    with pytest.raises(Exception, match="process_name"):
        database["process_control"].insert_one(RUNNING)
