"""Take away what only releases of before needed. Safe to repeat."""

from __future__ import annotations

from sysdata.mongodb.mongo_connection import get_database

FORMER = "trades"


def contract() -> None:
    """Drop the index that `newest_trades` has replaced, where it is still there."""
    trades = get_database()["_BROKER_HISTORIC_ORDERS"]
    if FORMER in trades.index_information():
        trades.drop_index(FORMER)


if __name__ == "__main__":
    contract()
