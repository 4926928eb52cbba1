#!/usr/bin/env python3
"""Writes to MongoDB and notes the operation time of each write, so that a restore to a second can be judged exactly.

  restore_ledger.py write <first> <last>    documents <first> to <last>: each is inserted, and the one before it changed
  restore_ledger.py read                    what there is: the number and the change of each document

Prints JSON. An operation time is [second, number in the second]. Needs pymongo 3.11 or newer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pymongo
from pymongo.write_concern import WriteConcern

COLLECTION = "restore_ledger"


def write(client: Any, collection: Any, first: int, last: int) -> list[dict[str, Any]]:
    """The writes with their operation times, by the server's own account."""
    done = []
    with client.start_session() as session:
        for number in range(first, last + 1):
            collection.insert_one({"_id": number, "text": "x" * 2000, "changed": 0}, session=session)
            done.append({"number": number, "change": 0, "at": stamp(session)})
            collection.update_one({"_id": number - 1}, {"$inc": {"changed": 1}}, session=session)
            done.append({"number": number - 1, "change": 1, "at": stamp(session)})
    return done


def stamp(session: Any) -> list[int]:
    return [session.operation_time.time, session.operation_time.inc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", required=True, help="members, name:port,name:port")
    parser.add_argument("--replica-set", default="pysystemtrade-rs")
    parser.add_argument("--user", default="app")
    parser.add_argument("--password-file", type=Path, required=True)
    parser.add_argument("--database", default="production")
    parser.add_argument("--ca-file", default="/etc/pst/pki/ca.crt")
    parser.add_argument("command", choices=["write", "read"])
    parser.add_argument("range", nargs="*", type=int)
    options = parser.parse_args()
    client: Any = pymongo.MongoClient(
        options.hosts.split(","), replicaSet=options.replica_set, username=options.user, authSource="admin",
        password=options.password_file.read_text().strip(), tls=True, tlsCAFile=options.ca_file, retryWrites=True,
    )  # fmt: skip
    collection = client[options.database].get_collection(COLLECTION, write_concern=WriteConcern("majority"))
    if options.command == "write":
        print(json.dumps(write(client, collection, *options.range)))
    else:
        print(json.dumps({one["_id"]: one["changed"] for one in collection.find({}, {"changed": 1})}))


if __name__ == "__main__":
    main()
