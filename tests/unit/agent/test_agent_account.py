"""Who tells the figures of the account, when they are read, and what a scrape gets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from pst_agent.account import EVERY_S, OLDEST_S, Account, failed, render, runs_here
from pst_agent.state import StateError, ask_python

FOUND: dict[str, Any] = {
    "currency": "USD",
    "pnl": {"SP500": {"total": -12.5, "unrealized": 3.0}},
    "var": 1000.0,
    "concentration": {"SP500": 1.0},
    "prices": {"SP500": 1790000000.0},
    "missing": [{"figure": "pnl", "instrument": "BUND", "reason": "spotfx_prices: no file"}],
}


class Reader:
    """Answers what it is told to, and counts how often."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers, self.asked, self.hangs = list(answers), 0, False

    async def __call__(self) -> dict[str, Any]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if self.hangs:
            await asyncio.sleep(3600)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "trading.json"
    path.write_text(json.dumps({"host": "app1", "placements": {"trading": {"hosts": ["app2", "app1"]}}}))
    return path


def scenario(settings: Path, reader: Reader, steps: Callable[[Account, list[float]], Awaitable[None]]) -> None:
    clock = [0.0]
    account = Account(settings, reader, lambda: clock[0], lambda: 1790000100.0)

    async def run() -> None:
        await steps(account, clock)

    asyncio.run(run())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_scrape_starts_the_read_and_the_next_one_tells_it(settings: Path) -> None:
    async def steps(account: Account, _clock: list[float]) -> None:
        assert account.tell(mine=True) == ""
        await settle()
        told = account.tell(mine=True).splitlines()
        assert [line for line in told if not line.startswith("#")] == [
            "pst_account_up 1.0",
            "pst_account_read_timestamp_seconds 1790000100.0",
            'pysystemtrade_position_pnl_total{instrument="SP500",currency="USD"} -12.5',
            'pysystemtrade_position_pnl_unrealized{instrument="SP500",currency="USD"} 3.0',
            'pysystemtrade_portfolio_var{confidence="0.99",days="1",currency="USD"} 1000.0',
            'pysystemtrade_position_concentration{instrument="SP500"} 1.0',
            'pst_account_price_timestamp_seconds{instrument="SP500"} 1790000000.0',
            'pst_account_missing_info{figure="pnl",instrument="BUND",reason="spotfx_prices: no file"} 1.0',
        ]
        # It falls as well as it rises, whatever its name ends with.
        assert "# TYPE pysystemtrade_position_pnl_total gauge" in told

    scenario(settings, Reader(FOUND), steps)


def test_every_series_has_its_definition() -> None:
    told = render(FOUND, 0.0) + failed("x")
    names = set(re.findall(r"(?m)^# TYPE (\S+)", told))
    text = (ROOT / "docs/account-figures.md").read_text()
    assert len(names) == 9
    assert [name for name in sorted(names) if f"| `{name}" not in text] == []


def test_it_is_read_once_in_its_time_however_often_it_is_asked_for(settings: Path) -> None:
    reader = Reader(FOUND)

    async def steps(account: Account, clock: list[float]) -> None:
        for moment, asked in ((0, 1), (EVERY_S - 1, 1), (EVERY_S, 2), (EVERY_S + 1, 2)):
            clock[0] = moment
            account.tell(mine=True)
            account.tell(mine=True)
            await settle()
            assert reader.asked == asked

    scenario(settings, reader, steps)


def test_a_reader_that_takes_its_time_is_not_started_twice(settings: Path) -> None:
    reader = Reader(FOUND)
    reader.hangs = True

    async def steps(account: Account, clock: list[float]) -> None:
        account.tell(mine=True)
        await settle()
        clock[0] = 10 * EVERY_S
        account.tell(mine=True)
        await settle()
        assert reader.asked == 1

    scenario(settings, reader, steps)


def test_an_old_answer_is_not_told(settings: Path) -> None:
    async def steps(account: Account, clock: list[float]) -> None:
        account.tell(mine=True)
        await settle()
        clock[0] = OLDEST_S + 1
        assert account.tell(mine=True) == ""
        await settle()
        assert "pst_account_up 1.0" in account.tell(mine=True)

    scenario(settings, Reader(FOUND), steps)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StateError("account: ServerSelectionTimeoutError"), "ServerSelectionTimeoutError"),
        (StateError("account: the reader did not answer within 60.0 s"), "the reader did not answer within 60.0 s"),
        (ValueError("Expecting value: line 1"), "ValueError"),
    ],
)
def test_a_read_that_fails_takes_the_figures_away_and_says_why(settings: Path, error: Exception, said: str) -> None:
    async def steps(account: Account, clock: list[float]) -> None:
        for moment in (0.0, EVERY_S):
            clock[0] = moment
            account.tell(mine=True)
            await settle()
        lines = [line for line in account.tell(mine=True).splitlines() if not line.startswith("#")]
        assert lines == ["pst_account_up 0.0", f'pst_account_last_error_info{{error="{said}"}} 1.0']
        clock[0] = 2 * EVERY_S
        account.tell(mine=True)
        await settle()
        assert "pst_account_up 1.0" in account.tell(mine=True)

    scenario(settings, Reader(FOUND, error, FOUND), steps)


def test_without_a_risk_there_is_no_series_of_it(settings: Path) -> None:
    async def steps(account: Account, _clock: list[float]) -> None:
        account.tell(mine=True)
        await settle()
        told = account.tell(mine=True)
        assert "pst_account_up 1.0" in told
        assert "pysystemtrade_" not in told

    bare = {"currency": "USD", "pnl": {}, "prices": {}, "missing": []}
    scenario(settings, Reader(bare), steps)


def test_another_slots_figures_are_neither_read_nor_told(settings: Path) -> None:
    reader = Reader(FOUND)

    async def steps(account: Account, _clock: list[float]) -> None:
        account.tell(mine=True)
        await settle()
        assert account.tell(mine=False) == ""

    scenario(settings, reader, steps)
    assert reader.asked == 1


@pytest.mark.parametrize(
    "content",
    [None, "{", "[]", "{}", '{"host": "app3", "placements": {"trading": {"hosts": ["app1"]}}}', '{"host": "app1"}'],
)
def test_a_host_that_may_not_trade_tells_nothing(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "trading.json"
    if content is not None:
        path.write_text(content)
    assert not runs_here(path)
    reader = Reader(FOUND)

    async def steps(account: Account, _clock: list[float]) -> None:
        assert account.tell(mine=True) == ""
        await settle()

    scenario(path, reader, steps)
    assert reader.asked == 0


def test_the_reader_gets_the_settings_and_the_tree_of_its_release(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf \'{"got": "%s"}\' "$*"\n')
    python.chmod(0o755)
    told = asyncio.run(ask_python("account", 10, python, Path("/reader.py"), Path("/etc/pst/blue"), Path("/source")))
    assert told == {"got": "-I /reader.py /etc/pst/blue /source"}
