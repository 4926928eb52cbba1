"""What is told of trading, compared with figures that are computed from the same documents in another way."""

# ruff: noqa: DTZ001 - the times of pysystemtrade and of the driver are naive

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pandas
import pytest
from bson import ObjectId
from pst_exporter.orders import FIELDS, History
from pst_exporter.settings import Process
from pst_exporter.site import Breaks, Database, Site, State, window_began
from pst_exporter.text import Page
from pymongo.errors import ServerSelectionTimeoutError

NOW = datetime(2026, 11, 30, 15, 0, tzinfo=UTC)
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def samples(text: str) -> dict[tuple[str, str], float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.match(line)
            assert match, line
            assert (match[1], match[2] or "") not in found, f"told twice: {line}"
            found[match[1], match[2] or ""] = float(match[3])
    return found


class Cursor:
    """As much of pymongo's as is asked for; it checks that nothing else is."""

    def __init__(self, documents: list[dict[str, Any]], fields: dict[str, int] | None) -> None:
        keep = None if fields is None else {"_id", *fields}
        self._found = [{k: v for k, v in d.items() if keep is None or k in keep} for d in documents]

    def sort(self, key: str, order: int) -> Cursor:
        self._found.sort(key=lambda document: document[key], reverse=order < 0)
        return self

    def limit(self, count: int) -> Cursor:
        self._found = self._found[:count]
        return self

    def max_time_ms(self, _milliseconds: int) -> Cursor:
        return self

    def batch_size(self, _size: int) -> Cursor:
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._found)


class Collection:
    def __init__(self, documents: list[dict[str, Any]]) -> None:
        self.documents = documents
        self.read = 0

    def find(self, query: dict[str, Any], fields: dict[str, int] | None = None) -> Cursor:
        found = [document for document in self.documents if matches(document, query)]
        self.read += len(found)
        return Cursor(found, fields)


def matches(document: dict[str, Any], query: dict[str, Any]) -> bool:
    tests = {
        "$ne": lambda seen, wanted: seen != wanted,
        "$in": lambda seen, wanted: seen in wanted,
        "$gte": lambda seen, wanted: seen >= wanted,
    }
    for key, wanted in query.items():
        seen = document.get(key)
        if isinstance(wanted, dict):
            if not all(tests[name](seen, value) for name, value in wanted.items()):
                return False
        elif seen != wanted:
            return False
    return True


def made(moment: datetime, number: int = 0) -> ObjectId:
    """An id as a driver makes it at that moment."""
    return ObjectId(ObjectId.from_datetime(moment).binary[:4] + number.to_bytes(8))


def trades(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """A history of broker orders, as pysystemtrade leaves it: some partly filled, some not at all, some of two legs."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        moment = NOW - timedelta(minutes=count - number)
        trade = [chance.choice([-3, -1, 1, 2, 5])] * chance.choice([1, 1, 2])
        share = chance.choice([1, 1, 1, 0, 0.5])
        submitted = moment.replace(tzinfo=None)
        found.append(
            {
                "_id": made(moment, number),
                "order_id": number,
                "key": f"{chance.choice(['momentum', 'carry'])}/SP500_micro/20261218",
                "trade": trade,
                "fill": [leg * share for leg in trade],
                "submit_datetime": submitted,
                "fill_datetime": submitted + timedelta(seconds=chance.uniform(0.01, 90)) if share else None,
                "commission": 1.0,
            }
        )
    return found


def shown(history: History) -> dict[tuple[str, str], float]:
    page = Page()
    history.render(page)
    return samples(page.render())


def test_orders_are_counted_as_pandas_counts_them():
    documents = trades(500)
    history = History()
    history.add(history.read(Collection(documents)))
    table = pandas.DataFrame(documents)
    table["strategy"] = table.key.str.split("/").str[0]
    filled, wanted = (table[name].map(lambda legs: sum(map(abs, legs))) for name in ("fill", "trade"))
    table["result"] = "partial"
    table.loc[filled == wanted, "result"] = "filled"
    table.loc[filled == 0, "result"] = "unfilled"
    told = shown(history)
    for (strategy, result), group in table.groupby(["strategy", "result"]):
        labels = f'strategy="{strategy}",result="{result}"'
        assert told["pysystemtrade_orders_processed_total", labels] == len(group)
    seconds = (table.fill_datetime - table.submit_datetime).dt.total_seconds().dropna()
    assert told["pysystemtrade_order_duration_seconds_count", ""] == len(seconds)
    assert told["pysystemtrade_order_duration_seconds_sum", ""] == pytest.approx(seconds.sum())
    for bound in ("0.05", "0.5", "1.0", "5.0", "60.0", "3600.0"):
        assert told["pysystemtrade_order_duration_seconds_bucket", f'le="{bound}"'] == (seconds <= float(bound)).sum()
    assert told["pysystemtrade_order_duration_seconds_bucket", 'le="+Inf"'] == len(seconds)


def test_each_order_counts_once_however_often_and_in_whatever_order_it_comes():
    documents = trades(200)
    history, collection = History(), Collection([])
    late = documents[150]  # made early, written late: its id is smaller than those that were read before
    rest = [document for document in documents if document is not late]
    for end in (50, 120, 151, 155):
        collection.documents = rest[:end]
        history.add(history.read(collection))
    collection.documents = [*rest[:155], late]
    history.add(history.read(collection))
    collection.documents = [*rest, late]
    history.add(history.read(collection))
    whole = History()
    whole.add(whole.read(Collection(documents)))
    assert shown(history) == shown(whole)


def test_what_was_counted_is_not_read_again():
    collection, history = Collection(trades(5000)), History()
    history.add(history.read(collection))
    collection.read = 0
    history.add(history.read(collection))
    assert 0 < collection.read < 20  # the ten minutes in which one may still come in
    assert set(FIELDS) <= {"trade", "fill", "submit_datetime", "fill_datetime", "key"}


class Client:
    """A database by name of collections, and the server's clock."""

    def __init__(self, **databases: dict[str, list[dict[str, Any]]]) -> None:
        self._databases = databases
        self.admin = self

    def command(self, name: str) -> dict[str, Any]:
        assert name == "hello"
        return {"localTime": NOW.replace(tzinfo=None)}

    def __getitem__(self, name: str) -> Any:
        collections = self._databases[name]

        class Named(dict):
            def __missing__(self, key: str) -> Collection:
                return Collection(collections.get(key, []))

        return Named()


def naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def site(tmp_path, processes=(), clock=datetime(2026, 11, 30, 10, 0), **databases) -> dict[tuple[str, str], float]:
    database = Database(lambda: Client(**{"pst": {}, "production": {}, **databases}), "pst", "production")
    told = Site(database.read, processes, Breaks.load(tmp_path / "breaks.json"), lambda: clock).render()
    return samples(told)


def lease(placement: str, holder: dict[str, str] | None, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "_id": placement,
        "holder": holder,
        "epoch": 7,
        "expires_at": naive(NOW + timedelta(seconds=seconds)),
        **more,
    }


def test_leases_are_judged_by_the_servers_clock(tmp_path):
    blue = {"host": "app1", "colour": "blue"}
    told = site(
        tmp_path,
        pst={
            "leases": [
                lease("trading", blue, 9),
                lease("strategies", blue, -1),
                lease("operations", None, 5),
                lease("stopped", None, -5, revoked={"by": "me"}),
            ]
        },
    )
    held = {labels: value for (name, labels), value in told.items() if name == "pst_lease_held"}
    assert held == {
        'placement="trading"': 1,
        'placement="strategies"': 0,
        'placement="operations"': 0,
        'placement="stopped"': 0,
    }
    assert [labels for name, labels in told if name == "pst_lease_holder_info"] == [
        'placement="trading",holder="app1",colour="blue"'
    ]
    assert told["pst_lease_remaining_seconds", 'placement="trading"'] == 9
    assert told["pst_lease_revoked", 'placement="stopped"'] == 1
    assert told["pst_lease_granted_epoch", 'placement="trading"'] == 7


def test_the_run_lock_has_an_age_while_a_run_has_it(tmp_path):
    lock = {
        "_id": "site",
        "run": "r1",
        "playbook": "blue-green",
        "by": "ann",
        "started": naive(NOW - timedelta(hours=7)),
    }
    told = site(tmp_path, pst={"run_lock": [lock]})
    assert told["pst_run_lock_held", ""] == 1
    assert told["pst_run_lock_age_seconds", 'run="r1",playbook="blue-green",by="ann"'] == 7 * 3600
    told = site(tmp_path, pst={"run_lock": [{"_id": "site", "number": 3, "run": None}]})
    assert told["pst_run_lock_held", ""] == 0
    assert not [name for name, _ in told if name == "pst_run_lock_age_seconds"]


WEEK = ("Mon", "Tue", "Wed", "Thu", "Fri")
HANDLER = Process("run_stack_handler", "service", "00:01", "19:45", WEEK)
SYSTEMS = Process("run_systems", "daily", "20:05", "23:50", WEEK)
NIGHT = Process("night", "service", "22:00", "04:00", ("Fri",))


@pytest.mark.parametrize(
    ("process", "now", "began"),
    [
        (HANDLER, datetime(2026, 11, 30, 0, 0, 59), None),
        (HANDLER, datetime(2026, 11, 30, 0, 1), datetime(2026, 11, 30, 0, 1)),
        (HANDLER, datetime(2026, 11, 30, 19, 44, 59), datetime(2026, 11, 30, 0, 1)),
        (HANDLER, datetime(2026, 11, 30, 19, 45), None),
        (HANDLER, datetime(2026, 11, 29, 12), None),  # a Sunday
        (NIGHT, datetime(2026, 11, 28, 3, 59), datetime(2026, 11, 27, 22)),  # Saturday morning is Friday's
        (NIGHT, datetime(2026, 11, 27, 3, 59), None),
    ],
)
def test_a_window_is_of_the_day_on_which_it_begins(process, now, began):
    assert window_began(process, now) == began


@pytest.mark.parametrize(
    ("document", "clock", "expected", "present"),
    [
        ({"currently_running": 1.0}, datetime(2026, 11, 30, 10), 1, 1),
        ({"currently_running": 0.0}, datetime(2026, 11, 30, 10), 1, 0),
        ({"currently_running": 0.0}, datetime(2026, 11, 29, 10), 0, 0),
    ],
)
def test_a_process_that_runs_all_day_is_missed_when_it_does_not(tmp_path, document, clock, expected, present):
    control = [{"process_name": "run_stack_handler", "status": "GO", **document}]
    told = site(tmp_path, [HANDLER], clock, production={"process_control": control})
    assert told["pst_process_expected", 'process="run_stack_handler"'] == expected
    assert told["pst_process_present", 'process="run_stack_handler"'] == present


@pytest.mark.parametrize(
    ("started", "present"),
    [(datetime(2026, 11, 30, 20, 6), 1), (datetime(2026, 11, 29, 20, 6), 0), (None, 0)],
)
def test_a_daily_process_is_there_once_it_has_run_today(tmp_path, started, present):
    control = [{"process_name": "run_systems", "currently_running": 0.0, "last_start_time": started}]
    told = site(tmp_path, [SYSTEMS], datetime(2026, 11, 30, 21), production={"process_control": control})
    assert told["pst_process_present", 'process="run_systems"'] == present


def test_orders_on_the_stacks_are_counted_and_aged(tmp_path):
    def order(minutes: int, number: int, **more: Any) -> dict[str, Any]:
        return {"_id": made(NOW - timedelta(minutes=minutes), number), "order_id": number, "active": 1.0, **more}

    counter = {
        "_id": made(NOW - timedelta(days=900)),
        "order_id": "_ORDER_ID_STORE_KEY",
        "max_order_id": 9,
        "active": 1,
    }
    broker = [counter, order(20, 1), order(5, 2, locked=True), {**order(90, 3), "active": False}]
    told = site(tmp_path, production={"BROKER_ORDER_STACK": broker})
    assert told["pst_stack_orders", 'stack="broker"'] == 2
    assert told["pst_stack_orders_locked", 'stack="broker"'] == 1
    assert told["pst_stack_oldest_order_seconds", 'stack="broker"'] == 20 * 60
    assert told["pst_stack_oldest_order_seconds", 'stack="contract"'] == 0


BREAKS = ("pysystemtrade_position_reconciliation_errors_total", "")


def test_each_break_counts_once_also_over_a_restart(tmp_path):
    def told(*locked: str) -> float:
        locks = [{"instrument_code": name, "lock": "ON"} for name in locked]
        locks.append({"instrument_code": "OLD", "lock": "OFF"})
        found = site(tmp_path, production={"locks": locks})  # each time an exporter that was just started
        assert found["pst_position_breaks", ""] == len(locked)
        return found[BREAKS]

    counts = [told(*locked) for locked in ((), ("A",), ("A",), ("A", "B"), ("B",), (), ("A",), ("A",))]
    assert counts == [0, 1, 1, 2, 2, 2, 3, 3]
    assert all(before <= after for before, after in pairwise(counts))
    (tmp_path / "breaks.json").write_text("{")
    assert told("A") == 1  # a broken file is begun anew, not a reason to be silent
    assert json.loads((tmp_path / "breaks.json").read_text()) == {"breaks": 1, "locked": ["A"]}


def test_a_primary_that_does_not_answer_is_told_and_nothing_else_is(tmp_path):
    def refuse(_history: History) -> State:
        raise TimeoutError("secret password")

    told = Site(refuse, [HANDLER], Breaks.load(tmp_path / "breaks.json")).render()
    assert samples(told) == {("pst_site_up", ""): 0, ("pst_site_last_error_info", 'error="TimeoutError"'): 1}


def test_a_client_that_finds_no_primary_is_replaced() -> None:
    """It never would: the primary of a set that was made anew has lower terms than the one that it remembers."""

    class Lost:
        closed = False

        @property
        def admin(self) -> Any:
            raise ServerSelectionTimeoutError("no primary")

        def close(self) -> None:
            self.closed = True

    lost = Lost()
    clients = iter([lost, Client(pst={}, production={})])
    database = Database(lambda: next(clients), "pst", "production")
    with pytest.raises(ServerSelectionTimeoutError):
        database.read(History())
    assert lost.closed
    assert database.read(History()).now == NOW
    assert database.read(History()).leases == []  # with the client that it has
