#!/usr/bin/env python3
"""MongoDB's side of trading, told in JSON lines, from a host that is no part of trading.

  leases   every state of the leases that a majority had, in order: a change stream, so that none is missed
  intend   puts instrument orders on the stack at a steady rate, as a strategy would, and tells each once it is there
  books    the orders of stacks and histories, what is unfinished, locked, and said to run; once

The password is the first line of stdin. Needs pymongo 3.11 or newer and nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import pymongo
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

Document = dict[str, Any]
COUNTER = "_ORDER_ID_STORE_KEY"
STACKS = ("INSTRUMENT_ORDER_STACK", "CONTRACT_ORDER_STACK", "BROKER_ORDER_STACK")
PAUSE = 0.5  # before the next try, where no primary answers
INTENT: Document = {
    "fill": [0.0],
    "fill_datetime": None,
    "filled_price": None,
    "locked": False,
    "active": True,
    "parent": None,
    "children": [],
    "order_type": "market",
    "limit_price": None,
    "limit_contract": None,
    "reference_price": None,
    "manual_trade": False,
    "roll_order": False,
}


def connect(options: argparse.Namespace) -> Any:
    """Return a client that takes a dead primary for dead within seconds, and waits for the next one."""
    return pymongo.MongoClient(
        options.hosts.split(","),
        replicaSet=options.replica_set,
        username=options.user,
        password=sys.stdin.readline().strip(),
        authSource="admin",
        tls=True,
        tlsCAFile=options.ca_file,
        tz_aware=True,
        appname="drill",
        connectTimeoutMS=2000,
        socketTimeoutMS=10000,
        serverSelectionTimeoutMS=5000,
        heartbeatFrequencyMS=1000,
    )


def say(value: Any) -> None:
    print(json.dumps(value, default=text), flush=True)


def text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def trouble(error: Exception) -> None:
    sys.stderr.write(f"{datetime.now(timezone.utc).isoformat()} {type(error).__name__}: {error}\n")  # noqa: UP017
    time.sleep(PAUSE)


# Leases ---------------------------------------------------------------------------------------------------------------


def leases(client: Any) -> None:
    """The states now, then each change applied to them. The stream begins at the moment of the first read."""
    collection = client["pst"].get_collection("leases", read_concern=ReadConcern("majority"))
    states, token = {}, None
    while token is None:
        try:
            with client.start_session() as session:
                states = {lease["_id"]: lease for lease in collection.find(session=session)}
                token = {"start_at_operation_time": session.operation_time}
        except PyMongoError as error:
            trouble(error)
    for lease in states.values():
        say(lease)
    while True:
        try:
            with collection.watch(max_await_time_ms=1000, **token) as stream:
                while stream.alive:
                    change = stream.try_next()
                    # One token per change that was told, so that none is told twice or not at all.
                    if change is not None:
                        say(apply(states, change))
                    if stream.resume_token is not None:
                        token = {"resume_after": stream.resume_token}
        except PyMongoError as error:
            trouble(error)


def apply(states: dict[str, Document], change: Document) -> Document:
    """Return the document after a change."""
    name = change["documentKey"]["_id"]
    if change["operationType"] in ("insert", "replace"):
        states[name] = change["fullDocument"]
    elif change["operationType"] == "update":
        described = change["updateDescription"]
        for path, value in described["updatedFields"].items():
            *parents, last = path.split(".")
            inner(states[name], parents)[last] = value
        for path in described.get("removedFields") or []:
            *parents, last = path.split(".")
            inner(states[name], parents).pop(last, None)
    else:
        raise SystemExit(f"the lease {name} was changed by {change['operationType']}, wanted only updates")
    return states[name]


def inner(document: Document, path: list[str]) -> Document:
    for key in path:
        document = document[key]
    return document


# Intents --------------------------------------------------------------------------------------------------------------


def intend(client: Any, options: argparse.Namespace) -> None:
    """Until it is ended. An answer that was lost is asked for again: the number is unique, so nothing is put twice."""
    stack = client[options.database].get_collection(STACKS[0], write_concern=WriteConcern("majority", wtimeout=10000))
    chance = random.Random(options.seed)
    for instrument in cycle(options.instruments.split(",")):
        started = time.monotonic()
        trade = float(chance.choice((-1, 1)) * chance.randint(1, 3))
        number = persistently(lambda: next_number(stack))
        order = {
            **INTENT,
            "order_id": number,
            "key": f"drill {instrument}",
            "trade": [trade],
            "generated_datetime": datetime.now(),  # noqa: DTZ005  local and naive, as pysystemtrade writes it
        }
        persistently(lambda: put(stack, order))  # noqa: B023  called at once
        say({"order_id": number, "trade": trade})
        time.sleep(max(0.0, 1 / options.rate - (time.monotonic() - started)))


def cycle(instruments: list[str]) -> Iterator[str]:
    while True:
        yield from instruments


def next_number(stack: Any) -> int:
    counted = stack.find_one_and_update(
        {"order_id": COUNTER},
        {"$inc": {"max_order_id": 1}},
        upsert=True,
        return_document=pymongo.ReturnDocument.AFTER,
    )
    return int(counted["max_order_id"])


def put(stack: Any, order: Document) -> bool:
    with suppress(DuplicateKeyError):  # an earlier try had arrived
        stack.insert_one(dict(order))
    return True


def persistently(ask: Any) -> Any:
    while True:
        try:
            return ask()
        except PyMongoError as error:
            trouble(error)


# Books ----------------------------------------------------------------------------------------------------------------


def books(client: Any, options: argparse.Namespace) -> None:
    """One line: broker and instrument orders by number, what is active on any stack, what is locked, what runs."""
    database = client.get_database(options.database, read_concern=ReadConcern("majority"))
    real = {"order_id": {"$ne": COUNTER}}
    orders = {}
    for collection in ("_BROKER_HISTORIC_ORDERS", "BROKER_ORDER_STACK"):
        for order in database[collection].find(real):
            orders[int(order["order_id"])] = {
                "fill": float(order["fill"][0]),
                "active": collection == "BROKER_ORDER_STACK" and bool(order["active"]),
            }
    intents = {
        int(order["order_id"]): float(order["trade"][0])
        for collection in ("_STRATEGY_HISTORIC_ORDERS", "INSTRUMENT_ORDER_STACK")
        for order in database[collection].find(real)
    }
    unfinished = [
        f"{stack} {order['order_id']:g}: {order['key']}"
        for stack in STACKS
        for order in database[stack].find({**real, "active": {"$nin": [0, False, None]}})
    ]
    locks = [lock["instrument_code"] for lock in database["locks"].find({"lock": "ON"})]
    running = [entry["process_name"] for entry in database["process_control"].find({"currently_running": 1})]
    say({"orders": orders, "intents": intents, "unfinished": unfinished, "locks": locks, "running": running})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["leases", "intend", "books"])
    parser.add_argument("--hosts", required=True, help="host:port,…")
    parser.add_argument("--replica-set", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--ca-file", required=True)
    parser.add_argument("--database", default="production", help="the trading database")
    parser.add_argument("--rate", type=float, default=1.0, help="intents per second")
    parser.add_argument("--instruments", default="", help="name,…")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    client = connect(options)
    if options.what == "leases":
        leases(client)
    elif options.what == "intend":
        intend(client, options)
    else:
        persistently(lambda: books(client, options))


if __name__ == "__main__":
    main()
