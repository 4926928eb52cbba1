"""Add what this release needs, and nothing that the one of before would miss. Safe to repeat."""

from __future__ import annotations

from sysdata.mongodb.mongo_connection import get_database

NEWEST_TRADES = "newest_trades"


def expand() -> None:
    """The dashboard lists the newest trades: an index for that."""
    get_database()["_BROKER_HISTORIC_ORDERS"].create_index([("order_id", -1)], name=NEWEST_TRADES)


if __name__ == "__main__":
    expand()
