"""What the agent reads of trading, against stand-ins of the database that answer as MongoDB does."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pst_agent.config import Trading
from pst_agent.mongo import MongoError
from pst_agent.state import Cached, Placements, State, StateError, process

NOW = datetime(2026, 11, 20, 12, 0, 0)  # noqa: DTZ001 - pysystemtrade stores local times without a zone


class Database:
    """What is stored, by collection; `error` is raised for the leases."""

    def __init__(self, leases: list[dict[str, Any]], error: Exception | None = None) -> None:
        self.collections = {"process_control": [HANDLER], "leases": leases}
        self.error = error
        self.asked: list[Any] = []

    async def find(self, database: str, collection: str, query: Any, limit: int, sort: Any) -> list[dict[str, Any]]:
        self.asked.append((database, collection, query))
        return self.collections.get(collection, [{"order_id": 1}])[:limit]

    async def aggregate(self, database: str, collection: str, pipeline: Any) -> list[dict[str, Any]]:
        self.asked.append((database, collection, pipeline))
        if self.error:
            raise self.error
        return [dict(document) for document in self.collections[collection]]

    async def count(self, database: str, collection: str, query: Any) -> int:
        self.asked.append((database, collection, query))
        return 3


LEASE = {"_id": "trading", "epoch": 7, "holder": {"host": "app1", "colour": "blue"}, "held": True, "remaining_ms": 9000}
HANDLER = {
    "process_name": "run_stack_handler",
    "status": "GO",
    "currently_running": 1.0,
    "process_id": 25227.0,
    "recently_crashed": 0.0,
    "last_start_time": datetime(2026, 11, 20, 0, 1),  # noqa: DTZ001
    "last_end_time": datetime(2026, 11, 19, 19, 45),  # noqa: DTZ001
    "running_methods": {
        "check_external_position_break": [datetime(2026, 11, 20, 11, 59, 50), datetime(2026, 11, 20, 11, 59, 58)],  # noqa: DTZ001
        "never_run": [None, None],
    },
}


def made(tmp_path: Path, database: Database | None = None, python: Path = Path("/nonexistent")) -> State:
    settings = tmp_path / "trading.json"
    settings.write_text(
        json.dumps(
            {
                "processes": [
                    {"name": "run_stack_handler", "placement": "trading"},
                    {
                        "name": "run_daily_price_updates",
                        "process_control_name": "run_daily_prices_updates",
                        "placement": "operations",
                    },
                ]
            }
        )
    )
    trading = Trading(str(settings), str(tmp_path / "run"), "/etc/pst/blue")
    return State(database or Database([LEASE]), "production", trading, python)


def test_a_process_is_told_with_its_liveness_its_placement_and_its_holder(tmp_path: Path) -> None:
    told = asyncio.run(made(tmp_path).processes())
    assert [item["process"] for item in told["processes"]] == ["run_daily_prices_updates", "run_stack_handler"]
    never_ran, handler = told["processes"]
    assert (never_ran["status"], never_ran["running"], never_ran["placement"]) == (None, False, "operations")
    assert (handler["running"], handler["process_id"], handler["crashed"]) == (True, 25227, False)
    assert (handler["placement"], handler["holder"]) == ("trading", "app1/blue")
    assert "error" not in told


def test_idle_time_counts_from_the_newest_method() -> None:
    told = process("run_stack_handler", HANDLER, None, {}, NOW)
    assert told["idle_seconds"] == 2.0
    assert told["holder"] is None


def test_an_expired_lease_has_no_holder() -> None:
    lease = {"holder": {"host": "app1", "colour": "blue"}, "held": False}
    assert process("x", {}, "trading", {"trading": lease}, NOW)["holder"] is None


def test_processes_are_told_without_leases(tmp_path: Path) -> None:
    told = asyncio.run(made(tmp_path, Database([], MongoError("not authorized"))).processes())
    assert told["error"] == "leases: MongoError"
    assert told["processes"][1]["running"] is True


def test_leases_are_judged_by_the_servers_clock(tmp_path: Path) -> None:
    database = Database([LEASE])
    [lease] = asyncio.run(made(tmp_path, database).leases())
    assert (lease["placement"], lease["held"], lease["epoch"]) == ("trading", True, 7)
    assert "_id" not in lease
    [(name, collection, pipeline)] = database.asked
    assert (name, collection) == ("pst", "leases")
    assert "$$NOW" in json.dumps(pipeline)


def test_the_counter_of_a_stack_is_no_order(tmp_path: Path) -> None:
    database = Database([])
    state = made(tmp_path, database)

    async def scenario() -> None:
        assert set(await state.orders()) == {"instrument", "contract", "broker"}
        assert await state.active_orders() == {"instrument": 3, "contract": 3, "broker": 3}

    asyncio.run(scenario())
    assert {name for name, *_ in database.asked} == {"production"}
    assert all(query["order_id"] == {"$ne": "_ORDER_ID_STORE_KEY"} for *_, query in database.asked)
    assert len(database.asked) == 6


def test_what_the_guard_says_is_told_and_a_broken_file_too(tmp_path: Path) -> None:
    state = made(tmp_path)
    assert state.local_grants() == []
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "trading.json").write_text('{"placement": "trading", "epoch": 7}')
    (folder / "operations.json").write_text('{"placem')
    broken, whole = state.local_grants()
    assert whole == {"placement": "trading", "epoch": 7}
    assert broken["placement"] == "operations"
    assert "JSONDecodeError" in broken["error"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "runs no trading"), ("{", "JSONDecodeError"), ("{}", "KeyError"), ('{"processes": [1]}', "Error")],
)
def test_unreadable_placements_are_told(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "trading.json"
    if content is not None:
        path.write_text(content)
    read = Placements.read(path)
    assert read.of == {}
    assert str(path) in read.error
    assert said in read.error


def test_an_answer_is_asked_for_once_in_its_time() -> None:
    clock, asked = [0.0], []

    async def ask() -> int:
        asked.append(1)
        await asyncio.sleep(0)
        return len(asked)

    async def scenario() -> None:
        cached = Cached(ask, 5, lambda: clock[0])
        assert await asyncio.gather(cached(), cached(), cached()) == [1, 1, 1]
        clock[0] = 4.9
        assert await cached() == 1
        clock[0] = 5.0
        assert await cached() == 2

    asyncio.run(scenario())


# --- positions, read by the release's Python


def python(folder: Path, script: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_positions_come_from_the_releases_python(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    interpreter = python(tmp_path, f'echo "$@" >>{calls}; echo \'{{"strategy_positions": []}}\'')
    state = made(tmp_path, python=interpreter)

    async def scenario() -> None:
        assert await asyncio.gather(state.positions(), state.positions()) == [{"strategy_positions": []}] * 2

    asyncio.run(scenario())
    [call] = calls.read_text().splitlines()  # two clients, one process
    assert call.startswith("-I /")
    assert call.endswith("pst_agent/positions_reader.py /etc/pst/blue")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first >&2; echo 'parquet_store is None, wanted: an absolute path' >&2; exit 1", "wanted: an absolute"),
        ("exit 3", "exit status 3"),
    ],
)
def test_a_reader_that_fails_says_why(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(StateError, match=said):
        asyncio.run(made(tmp_path, python=python(tmp_path, script)).positions())


def test_a_release_without_python_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        asyncio.run(made(tmp_path).positions())


def test_a_reader_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pst_agent.state.POSITIONS_TIMEOUT_S", 0.2)
    pid = tmp_path / "pid"
    with pytest.raises(StateError, match=r"did not answer within 0\.2 s"):
        asyncio.run(made(tmp_path, python=python(tmp_path, f"echo $$ >{pid}; exec sleep 60")).positions())
    assert not Path("/proc", pid.read_text().strip()).exists()
