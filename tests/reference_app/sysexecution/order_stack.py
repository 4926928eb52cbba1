"""The three stacks of orders and their histories, in the documents of pysystemtrade."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pymongo import ReturnDocument

from sysdata.mongodb.mongo_connection import Document, keyed_collection

COUNTER = "_ORDER_ID_STORE_KEY"
NEW = {
    "fill": [0.0],
    "fill_datetime": None,
    "filled_price": None,
    "locked": False,
    "active": True,
    "parent": None,
    "children": [],
    "order_type": "market",
    "limit_price": None,
    "manual_trade": False,
    "roll_order": False,
}


class OrderStack:
    """One stack, and the history that its orders move to."""

    def __init__(self, level: str, history: str) -> None:
        self.orders = keyed_collection(f"{level}_ORDER_STACK", "order_id")
        self.history = keyed_collection(f"_{history}_HISTORIC_ORDERS", "order_id")

    def next_id(self) -> int:
        """Return a number that no order of this stack has had."""
        document: Any = self.orders.find_one_and_update(
            {"order_id": COUNTER},
            {"$inc": {"max_order_id": 1}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        return int(document["max_order_id"])

    def put(self, order_id: int, key: str, trade: float, **fields: Any) -> None:
        """Put an order on the stack."""
        document = {"order_id": order_id, "key": key, "trade": [trade], "generated_datetime": datetime.now()}
        self.orders.insert_one({**NEW, **document, **fields})

    def find(self, **query: Any) -> list[Document]:
        """Return orders, oldest first, without the counter."""
        return list(self.orders.find({"order_id": {"$ne": COUNTER}, **query}, {"_id": 0}).sort("order_id"))

    def active(self) -> list[Document]:
        """Return orders that are not done."""
        return self.find(active=True)

    def update(self, order_id: int, **fields: Any) -> None:
        """Change an order."""
        self.orders.update_one({"order_id": order_id}, {"$set": fields})

    def child_of(self, parent: int) -> Document | None:
        """Return the order that was made from another: on the stack, or done."""
        query = {"parent": parent}
        return self.orders.find_one(query, {"_id": 0}) or self.history.find_one(query, {"_id": 0})

    def archive(self, order: Mapping[str, Any]) -> None:
        """Move an order to the history; to be repeated where it was interrupted."""
        self.history.replace_one({"order_id": order["order_id"]}, dict(order), upsert=True)
        self.orders.delete_one({"order_id": order["order_id"]})

    def filled(self) -> dict[str, float]:
        """Return what all orders ever filled, by their key."""
        sums: dict[str, float] = {}
        group = {"$group": {"_id": "$key", "filled": {"$sum": {"$arrayElemAt": ["$fill", 0]}}}}
        for collection in (self.orders, self.history):
            for row in collection.aggregate([{"$match": {"order_id": {"$ne": COUNTER}}}, group]):
                sums[row["_id"]] = sums.get(row["_id"], 0.0) + row["filled"]
        return sums


def instrument_stack() -> OrderStack:
    """Orders of strategies: key `strategy instrument`."""
    return OrderStack("INSTRUMENT", "STRATEGY")


def contract_stack() -> OrderStack:
    """Orders for a contract: key `strategy/instrument/YYYYMMDD`."""
    return OrderStack("CONTRACT", "CONTRACT")


def broker_stack() -> OrderStack:
    """Orders that were given to the broker: same key as the contract order."""
    return OrderStack("BROKER", "BROKER")
