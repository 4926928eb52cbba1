"""The figures of the account, against the same data in plain pandas and by hand.

The files are written as pysystemtrade writes them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pst_agent import account_reader
from pst_agent.account_reader import Account, Book, Instrument, MissingError, Store, fills

NOW = datetime(2026, 11, 30, 21, 0)  # noqa: DTZ001 - pysystemtrade stores local times without a zone
TODAY = datetime(2026, 11, 30)  # noqa: DTZ001
INSTRUMENTS = {
    "SP500": Instrument(50.0, "USD"),
    "BUND": Instrument(1000.0, "EUR"),
    "NIKKEI": Instrument(500.0, "JPY"),
}


class Collection:
    """Answers find as pymongo's collection does, as far as the reader asks."""

    def __init__(self, *documents: dict[str, Any]) -> None:
        self.documents = list(documents)

    def find(self, query: dict[str, Any], fields: dict[str, int]) -> Collection:
        assert query == {}
        wanted = {name for name, kept in fields.items() if kept}
        return Collection(*({k: v for k, v in one.items() if k in wanted} for one in self.documents))

    def limit(self, most: int) -> Collection:
        return Collection(*self.documents[:most])

    def batch_size(self, _size: int) -> Collection:
        return self

    def max_time_ms(self, _ms: int) -> Collection:
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.documents)


class World:
    """A store on disk, and the orders beside it."""

    def __init__(self, root: Path) -> None:
        self.root, self.orders, self.count = root, [], 0

    def write(self, kind: str, name: str, frame: pd.DataFrame) -> Path:
        """As pysystemtrade's ParquetAccess."""
        path = self.root / kind / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path, coerce_timestamps="us", allow_truncated_timestamps=True)
        return path

    def position(self, contract: str, *rows: tuple[datetime, float]) -> Path:
        return self.write(
            "contract_positions",
            contract,
            pd.DataFrame({"position": [row[1] for row in rows]}, index=[row[0] for row in rows]),
        )

    def prices(self, contract: str, series: pd.Series) -> Path:
        frame = pd.DataFrame(dict.fromkeys(("OPEN", "HIGH", "LOW", "FINAL"), series)) * [0.5, 2.0, 0.25, 1.0]
        frame["VOLUME"] = 1
        frame.index.name = "index"
        return self.write("futures_contract_prices", contract, frame)

    def adjusted(self, instrument: str, series: pd.Series) -> Path:
        return self.write("futures_adjusted_prices", instrument, pd.DataFrame({"price": series}))

    def rate(self, pair: str, value: float, at: datetime = TODAY) -> Path:
        series = pd.Series([9.9, value], index=[at - timedelta(days=1), at])
        return self.write("spotfx_prices", pair, pd.DataFrame({"price": series}))

    def order(self, key: str, fill: Any, price: Any, at: datetime | None, **more: Any) -> None:
        self.count += 1
        document = {"_id": self.count, "order_id": self.count, "key": key, "fill": fill, "trade": fill}
        self.orders.append(document | {"filled_price": price, "leg_filled_price": [], "fill_datetime": at} | more)

    def account(self, base: str = "USD") -> Account:
        account = Account(Store(self.root, NOW.timestamp()), INSTRUMENTS, base)
        account.load(fills(Collection(*self.orders)))
        return account

    def figures(self, base: str = "USD") -> dict[str, Any]:
        return self.account(base).figures()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "parquet")


def at(day: int, hour: int = 12, month: int = 11) -> datetime:
    return datetime(2026, month, day, hour)  # noqa: DTZ001


def walk(days: int, seed: int, start: float = 5000.0, end: datetime = TODAY) -> pd.Series:
    """A price on each business day."""
    made = np.random.default_rng(seed)
    return pd.Series(start + made.normal(0, 25, days).cumsum(), index=pd.bdate_range(end=end, periods=days))


def close(contract: str, price: float, when: datetime = TODAY) -> tuple[str, pd.Series]:
    return contract, pd.Series([1.0, price, np.nan], index=[when - timedelta(days=1), when, when + timedelta(hours=1)])


def reasons(found: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(item["figure"], item["instrument"], item["reason"]) for item in found["missing"]}


# --- P&L


def with_trades(world: World) -> dict[str, list[tuple[datetime, float, float]]]:
    """Bought, added, partly sold, turned to short; and one contract that was rolled out of and is flat."""
    trades = {
        "20261200": [
            (at(2), 3, 100.0),
            (at(9), 2, 110.0),
            (at(16), -4, 120.0),
            (at(20), -3, 118.0),
            (at(23), -1, 121.0),
        ],
        "20260900": [(at(1, month=8), 5, 90.0), (at(1, month=9), -5, 97.5)],
    }
    for contract, rows in trades.items():
        for when, quantity, price in rows:
            world.order(f"momentum/SP500/{contract}", [quantity], price, when)
        held = np.cumsum([row[1] for row in rows])
        world.position(f"SP500#{contract}", *zip([row[0] for row in rows], held, strict=True))
    world.prices(*close("SP500#20261200", 125.0))
    world.adjusted("SP500", walk(600, 1))
    return trades


def pandas_total(trades: list[tuple[datetime, float, float]], last: float, point: float) -> float:
    """As pysystemtrade's report: each change of the price times the position before it."""
    frame = pd.DataFrame(trades, columns=["at", "quantity", "price"]).set_index("at").sort_index()
    prices = pd.concat([frame.price, pd.Series([last], index=[TODAY])])
    positions = frame.quantity.cumsum().reindex(prices.index, method="ffill")
    return float((positions.shift(1) * prices.diff()).sum() * point)


def test_the_total_is_what_pandas_makes_of_the_same_fills(world: World) -> None:
    trades = with_trades(world)
    [(instrument, pnl)] = world.figures()["pnl"].items()
    wanted = pandas_total(trades["20261200"], 125.0, 50) + pandas_total(trades["20260900"], 97.5, 50)
    assert instrument == "SP500"
    assert pnl["total"] == pytest.approx(wanted)
    assert wanted == pytest.approx(50 * (5 * 7.5 + 4 * (120 - 104) + 1 * (118 - 104) - 2 * (125 - 118) - (125 - 121)))


def test_the_unrealised_part_is_that_of_the_open_contracts(world: World) -> None:
    """Three short, two of them since the turn at 118, one at 121: at 119 in the mean."""
    with_trades(world)
    assert world.figures()["pnl"]["SP500"]["unrealized"] == pytest.approx(50 * -3 * (125 - 119))


def test_what_is_closed_has_nothing_unrealised_and_needs_no_price(world: World) -> None:
    world.order("momentum/SP500/20260900", [1], 90.0, at(1, month=8))
    world.order("momentum/SP500/20260900", [-1], 91.0, at(2, month=8))
    world.position("SP500#20260900", (at(1, month=8), 1.0), (at(2, month=8), 0.0))
    found = world.figures()
    assert found["pnl"] == {"SP500": {"total": pytest.approx(50.0), "unrealized": 0.0}}
    assert (found["prices"], found["missing"]) == ({}, [])


def test_the_legs_of_a_roll_have_a_price_each(world: World) -> None:
    world.order("momentum/SP500/20260900", [2], 100.0, at(1))
    world.order("momentum/SP500/20260900_20261200", [-2, 2], 3.0, at(8), leg_filled_price=[104.0, 107.0])
    world.position("SP500#20260900", (at(1), 2.0), (at(8), 0.0))
    world.position("SP500#20261200", (at(8), 2.0))
    world.prices(*close("SP500#20261200", 110.0))
    world.adjusted("SP500", walk(600, 1))
    assert world.figures()["pnl"] == {"SP500": {"total": 50 * (2 * 4 + 2 * 3), "unrealized": 50 * 2 * 3}}


def test_fills_count_in_the_order_of_their_times_and_strategies_share_a_contract(world: World) -> None:
    world.order("carry/SP500/202612", [-1], 130.0, at(9))  # stored first, filled last; the day left out
    world.order("momentum/SP500/20261200", 2, 100.0, at(2))  # not a list
    world.order("momentum/SP500/20261200", [0], None, None)  # cancelled
    world.position("SP500#20261200", (at(2), 2.0), (at(9), 1.0))
    world.prices(*close("SP500#20261200", 140.0))
    world.adjusted("SP500", walk(600, 1))
    assert world.figures()["pnl"] == {"SP500": {"total": 50 * (30 + 40), "unrealized": 50 * 40}}


@pytest.mark.parametrize(
    ("base", "rate"), [("USD", 1.25), ("EUR", 1.0), ("GBP", 1.25 / 1.6)], ids=["dollar", "own", "cross"]
)
def test_pnl_is_in_the_base_currency_at_the_last_rate(world: World, base: str, rate: float) -> None:
    world.rate("EURUSD", 1.25)
    world.rate("GBPUSD", 1.6)
    world.order("momentum/BUND/20261200", [-1], 131.0, at(2))
    world.position("BUND#20261200", (at(2), -1.0))
    world.prices(*close("BUND#20261200", 130.0))
    world.adjusted("BUND", walk(600, 2, 130.0))
    found = world.figures(base)
    assert found["currency"] == base
    assert found["pnl"]["BUND"] == {"total": pytest.approx(1000 * rate), "unrealized": pytest.approx(1000 * rate)}


def test_random_trades_agree_with_their_cash(world: World) -> None:
    """Whatever was traded: what was paid and got, and what is left at its price."""
    made = np.random.default_rng(7)
    book, cash = Book(), 0.0
    for quantity, price in zip(made.integers(-4, 5, 500), made.normal(100, 10, 500), strict=True):
        if quantity:
            book.add(float(quantity), float(price))
            cash -= quantity * price
    assert book.realised + book.unrealised(99.0) == pytest.approx(cash + book.quantity * 99.0)


# --- risk


def portfolio(world: World) -> pd.DataFrame:
    """Two instruments, one with holidays of its own and with prices of each hour; returns earnings by day."""
    world.rate("EURUSD", 1.25)
    world.position("SP500#20261200", (at(2), 3.0))
    world.position("SP500#20270300", (at(2), -1.0))
    world.position("BUND#20261200", (at(2), -2.0))
    world.position("NIKKEI#20261200", (at(2), 4.0), (at(3), 0.0))  # nothing is held: neither prices nor rate are needed
    stocks, bonds = walk(700, 1), walk(620, 2, 130.0)
    bonds = bonds.drop(bonds.index[[-5, -90, -91]])
    world.adjusted("SP500", stocks)
    hours = pd.concat([bonds - 1.0, pd.Series(bonds.to_numpy(), index=bonds.index + timedelta(hours=17))]).sort_index()
    weekend = pd.Series([hours.iloc[-3]], index=[datetime(2026, 11, 28, 3)])  # noqa: DTZ001 - a Saturday; Friday's price
    world.adjusted("BUND", pd.concat([hours, weekend]).sort_index())
    world.prices(*close("SP500#20261200", 1.0))
    daily = pd.DataFrame({"SP500": stocks, "BUND": bonds}).resample("1B").last().ffill().dropna()
    daily.loc["2026-11-27", "BUND"] = weekend.iloc[0]
    return daily.diff().dropna().iloc[-512:] * [2 * 50, -2 * 1000 * 1.25]


def test_the_value_at_risk_is_the_quantile_of_pandas(world: World) -> None:
    earned = portfolio(world)
    assert len(earned) == 512
    assert world.figures()["var"] == pytest.approx(-earned.sum(axis=1).quantile(0.01))


def test_the_concentration_is_the_share_of_the_stand_alone_risks(world: World) -> None:
    earned = portfolio(world)
    found = world.figures()["concentration"]
    spread = earned.std()
    assert found == pytest.approx((spread / spread.sum()).to_dict())
    assert sum(found.values()) == pytest.approx(1.0)
    assert "NIKKEI" not in found


def test_an_empty_portfolio_risks_nothing(world: World) -> None:
    world.position("SP500#20261200", (at(2), 1.0), (at(3), 0.0))
    found = world.figures()
    assert (found["var"], found["concentration"]) == (0.0, {})


def test_a_short_history_is_no_risk(world: World) -> None:
    portfolio(world)
    world.adjusted("BUND", walk(250, 3))  # 249 changes
    found = world.figures()
    assert found.keys().isdisjoint({"var", "concentration"})
    assert ("risk", "BUND", "fewer than 250 days with a price of all") in reasons(found)
    world.adjusted("BUND", walk(251, 3))
    assert "var" in world.figures()


# --- absent, broken, old


def held(world: World) -> None:
    world.rate("EURUSD", 1.25)
    world.order("momentum/BUND/20261200", [-1], 131.0, at(2))
    world.position("BUND#20261200", (at(2), -1.0))
    world.prices(*close("BUND#20261200", 130.0))
    world.adjusted("BUND", walk(600, 2, 130.0))


def other(world: World) -> None:
    """A second instrument that nothing is wrong with."""
    world.order("momentum/SP500/20261200", [1], 100.0, at(2))
    world.position("SP500#20261200", (at(2), 1.0))
    world.prices(*close("SP500#20261200", 101.0))
    world.adjusted("SP500", walk(600, 1))


BEFORE = datetime(2026, 11, 20)  # noqa: DTZ001
BUND, DAYS = "BUND#20261200", "futures_adjusted_prices"
PRICE, ADJUSTED = f"futures_contract_prices/{BUND}.parquet", f"{DAYS}/BUND.parquet"
RATE, POSITION = "spotfx_prices/EURUSD.parquet", f"contract_positions/{BUND}.parquet"
Break = Callable[[World], Any]


@pytest.mark.parametrize(
    ("breaks", "figures", "reason"),
    [
        (lambda w: (w.root / PRICE).unlink(), {"pnl"}, "futures_contract_prices: no file"),
        (lambda w: (w.root / PRICE).write_bytes(b"PAR1"), {"pnl"}, "futures_contract_prices: ArrowInvalid"),
        (lambda w: w.prices(*close(BUND, 1.0, BEFORE)), {"pnl"}, "futures_contract_prices: older than 7 days"),
        (lambda w: w.prices(BUND, pd.Series([np.nan], index=[TODAY])), {"pnl"}, "futures_contract_prices: empty"),
        (lambda w: w.adjusted("BUND", walk(600, 2, end=BEFORE)), {"risk"}, f"{DAYS}: older than 7 days"),
        (lambda w: (w.root / ADJUSTED).unlink(), {"risk"}, "futures_adjusted_prices: no file"),
        (lambda w: (w.root / RATE).unlink(), {"pnl", "risk"}, "spotfx_prices: no file"),
        (lambda w: w.rate("EURUSD", 1.2, BEFORE), {"pnl", "risk"}, "spotfx_prices: older than 7 days"),
        (lambda w: (w.root / POSITION).write_bytes(b""), {"pnl", "risk"}, "contract_positions: ArrowInvalid"),
        (lambda w: w.orders.pop(0), {"pnl"}, "the fills do not add up to the position"),
        (lambda w: w.order("x/BUND/20261200", [-1], 130.0, at(3)), {"pnl"}, "the fills do not add up to the position"),
        (lambda w: (w.root / POSITION).unlink(), {"pnl"}, "the fills do not add up to the position"),
        (lambda w: w.orders[0].update(filled_price=None), {"pnl"}, "a fill has no price or no time"),
        (lambda w: w.orders[0].update(fill_datetime=None), {"pnl"}, "a fill has no price or no time"),
        (lambda w: w.orders[0].update(filled_price=float("nan")), {"pnl"}, "a fill has no price or no time"),
        (lambda w: w.position("COCOA#20261200", (at(2), 1.0)), set(), ""),
    ],
)  # fmt: skip
def test_what_is_missing_is_left_out_and_told(world: World, breaks: Break, figures: set[str], reason: str) -> None:
    held(world)
    other(world)
    breaks(world)
    found = world.figures()
    assert {(figure, one, why) for figure, one, why in reasons(found) if one == "BUND"} == {
        (figure, "BUND", reason) for figure in figures
    }
    assert ("BUND" in found["pnl"]) == ("pnl" not in figures)
    assert found["pnl"]["SP500"]["total"] == 50.0
    # A risk that leaves out a position is none.
    assert ("var" in found) == (not any(figure == "risk" for figure, *_ in reasons(found)))
    assert ("concentration" in found) == ("var" in found)


def test_an_instrument_that_the_release_does_not_know_is_told(world: World) -> None:
    world.position("COCOA#20261200", (at(2), 1.0))
    world.order("x/COCOA/20261200", [1], 1.0, at(2))
    world.prices(*close("COCOA#20261200", 1.0))
    found = world.figures()
    unknown = "not in instrumentconfig.csv"
    assert reasons(found) == {("pnl", "COCOA", unknown), ("risk", "COCOA", unknown)}


def test_the_age_of_a_price_is_told_however_old(world: World) -> None:
    held(world)
    world.prices(*close("BUND#20261200", 1.0, BEFORE))
    found = world.figures()
    assert found["pnl"] == {}
    assert found["prices"] == {"BUND": BEFORE.timestamp()}


def test_a_store_without_positions_is_no_empty_portfolio(world: World) -> None:
    with pytest.raises(SystemExit, match="contract_positions: no file"):
        world.figures()


def test_a_file_without_a_column_of_times_is_broken(world: World) -> None:
    world.write("spotfx_prices", "EURUSD", pd.DataFrame({"price": [1.0]}))
    with pytest.raises(MissingError, match="spotfx_prices: StopIteration"):
        Store(world.root, 0).series("spotfx_prices", "EURUSD")


def test_orders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_reader, "MAX_ORDERS", 2)
    one, two, three = ({"order_id": number} for number in (1, 2, 3))
    assert list(fills(Collection(one, two), Collection(two))) == []
    for collections in ([Collection(one, two, three)], [Collection(one, two), Collection(three)]):
        with pytest.raises(SystemExit, match="more than 2 orders"):
            list(fills(*collections))


def test_an_order_counts_while_it_is_filled_and_once(world: World) -> None:
    """pysystemtrade has a completed order in its history and, until the end of the day, on its stack."""
    world.order("momentum/SP500/20261200", [2], 100.0, at(2))
    done, [under_way] = [{**world.orders[0]}], [{**world.orders[0], "order_id": 2, "fill": [1], "filled_price": 101.0}]
    counter = {"order_id": "_ORDER_ID_STORE_KEY", "max_order_id": 2}
    stale = {**done[0], "fill": [1]}
    found = list(fills(Collection(counter, stale, under_way), Collection(*done)))
    assert [(fill.quantity, fill.price) for fill in found] == [(2.0, 100.0), (1.0, 101.0)]


# --- the program


def release(tmp_path: Path, store: Path, **settings: Any) -> tuple[Path, Path]:
    private, source = tmp_path / "private", tmp_path / "source"
    private.mkdir()
    (private / "private_config.yaml").write_text(json.dumps({"parquet_store": str(store), **settings}))
    table = source / account_reader.INSTRUMENTS
    table.parent.mkdir(parents=True)
    table.write_text("Instrument,Description,Pointsize,Currency,AssetClass\nSP500,S&P 500,50,USD,Equity\n")
    return private, source


def run(monkeypatch: pytest.MonkeyPatch, private: Path, source: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["account_reader.py", str(private), str(source)])
    monkeypatch.setattr(account_reader, "time", SimpleNamespace(time=NOW.timestamp))
    return account_reader.main()


def test_the_program_reads_pysystemtrades_own_settings(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other(world)
    asked: list[Any] = []

    class Client(dict[str, Any]):
        def __init__(self, host: str, port: int, **_options: Any) -> None:
            asked.append((host, port))
            super().__init__(
                live={"_BROKER_HISTORIC_ORDERS": Collection(*world.orders), "BROKER_ORDER_STACK": Collection()}
            )

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_error: object) -> None:
            asked.append("closed")

    monkeypatch.setitem(sys.modules, "pymongo", SimpleNamespace(MongoClient=Client))
    assert run(monkeypatch, *release(tmp_path, world.root, mongo_host="mongodb://m1", mongo_db="live")) == 0
    told = json.loads(capsys.readouterr().out)
    assert asked == [("mongodb://m1", 27017), "closed"]
    assert told["pnl"] == {"SP500": {"total": 50.0, "unrealized": 50.0}}
    assert told["currency"] == "USD"
    assert told["missing"] == []
    assert told["concentration"] == {"SP500": 1.0}


def test_a_database_that_is_away_is_told_by_the_kind_of_its_error(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other(world)
    monkeypatch.setattr(account_reader, "SELECT_MS", 50)
    with pytest.raises(SystemExit, match=r"^ServerSelectionTimeoutError$"):
        run(monkeypatch, *release(tmp_path, world.root, mongo_host="127.0.0.1", mongo_port=1))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda settings, _table: settings.write_text("parquet_store: data"), "parquet_store is"),
        (lambda settings, _table: settings.unlink(), "FileNotFoundError"),
        (lambda _settings, table: table.unlink(), "FileNotFoundError"),
        (lambda _settings, table: table.write_text("Instrument\nSP500\n"), "KeyError"),
    ],
)
def test_settings_that_cannot_be_used_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[Path, Path], Any], said: str
) -> None:
    private, source = release(tmp_path, tmp_path)
    breaks(private / "private_config.yaml", source / account_reader.INSTRUMENTS)
    with pytest.raises(SystemExit, match=said):
        run(monkeypatch, private, source)
