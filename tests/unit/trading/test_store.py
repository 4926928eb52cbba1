"""MongoDB's half, against as much of its language as we use."""

from __future__ import annotations

import pytest
from mongo_rules import Database
from pst_trading import guard, store
from pst_trading.store import MongoDrains, MongoLeases, MongoRuns, StoreError, translated
from pymongo.errors import DuplicateKeyError, OperationFailure

DAY = "2026-11-23"


def claim(epoch, host="app1"):
    return {"epoch": epoch, "host": host, "instance": f"i{epoch}"}


@pytest.fixture
def runs():
    return MongoRuns(Database())


def test_a_run_is_claimed_once(runs):
    assert runs.claim("p", DAY, claim(1, "app1"), take_over=True)["host"] == "app1"
    assert runs.claim("p", DAY, claim(1, "app2"), take_over=True)["host"] == "app1"
    assert runs.claim("p", "2026-11-24", claim(1, "app2"), take_over=True)["host"] == "app2"


@pytest.mark.parametrize(
    ("state", "take_over", "taken"),
    [
        ("running", True, True),
        ("running", False, False),
        ("interrupted", True, True),
        ("interrupted", False, False),
        ("again", False, True),
        ("succeeded", True, False),
        ("failed", True, False),
        ("abandoned", True, False),
    ],
)
def test_which_runs_a_later_holder_takes_over(runs, state, take_over, taken):
    runs.claim("p", DAY, claim(1, "app1"), take_over=True)
    runs.finish("p", DAY, state, ["running"])
    got = runs.claim("p", DAY, claim(2, "app2"), take_over=take_over)
    assert (got["state"], got["host"]) == (("running", "app2") if taken else (state, "app1"))


def test_a_run_is_finished_from_the_named_states_only(runs):
    runs.claim("p", DAY, claim(1), take_over=True)
    assert not runs.finish("p", DAY, "running", ["interrupted"])
    assert runs.finish("p", DAY, "interrupted", ["running"])
    assert not runs.finish("p", DAY, "succeeded", ["running"])
    assert not runs.finish("q", DAY, "succeeded", ["running"])
    assert runs.of_day("p", DAY)["state"] == "interrupted"
    assert runs.of_day("q", DAY) is None


def test_unfinished_runs_are_those_that_run(runs):
    for name in "pqr":
        runs.claim(name, DAY, claim(1), take_over=True)
    runs.finish("q", DAY, "succeeded", ["running"])
    assert [run["_id"]["process"] for run in runs.unfinished(["p", "q"])] == ["p"]


def test_a_drain_keeps_the_status_that_was_noted_first():
    drains = MongoDrains(Database())
    assert drains.begin("p", "PAUSE", "app1") == "PAUSE"
    assert drains.begin("p", "STOP", "app2") == "PAUSE"
    assert drains.under_way(["p", "q"]) == {"p": "PAUSE"}
    drains.end("p")
    assert drains.under_way(["p", "q"]) == {}


def test_the_kill_switch_works_where_no_lease_was_ever_taken():
    leases = MongoLeases(Database())
    assert leases.revoke("trading", "me", "$why")["revoked"]["reason"] == "$why"
    assert leases.revoke("trading", "you", "again")["revoked"]["by"] == "me"
    assert leases.reinstate("trading", "you", "found it")["reinstated"]["revoked"]["by"] == "me"
    assert leases.read("trading")["revoked"] is None
    assert leases.reinstate("trading", "you", "twice") is None


def test_want_and_its_undo():
    leases = MongoLeases(Database())
    assert leases.want("trading", "app2", "blue")["wanted"] == {"host": "app2", "colour": "blue"}
    assert leases.want("trading", None)["wanted"] is None
    leases._change({"_id": "trading"}, [{"$set": {"holder": {"host": "app2", "colour": "blue"}}}])
    assert leases.want("trading", "app2", "blue")["wanted"] is None, "it has it: nobody else may wait for it in vain"
    assert leases.want("trading", "app2", "green")["wanted"] == {"host": "app2", "colour": "green"}
    assert [lease["_id"] for lease in leases.all()] == ["trading"]


def test_errors_of_the_driver_are_of_one_kind_but_for_a_key_that_is_there():
    with pytest.raises(StoreError, match="OperationFailure: not now"), translated():
        raise OperationFailure("not now")
    with pytest.raises(DuplicateKeyError), translated():
        raise DuplicateKeyError("there")


def test_no_call_lasts_longer_than_the_watchdog_allows():
    longest = store.SELECT_MS + store.CONNECT_MS + 2 * store.SOCKET_MS  # a new connection logs in first
    assert store.SERVER_MS < store.SOCKET_MS
    assert longest / 1000 < guard.PULSE_S
    assert not store.time_outs()["retryWrites"], "a retry would double it; the lease has rules for a lost answer"
