#!/usr/bin/env python3
"""Writes a ledger to a MongoDB replica set, then proves that everything it was told is there really is.

Writes small documents at a steady rate, each acknowledged by the majority, until the time is over or SIGTERM comes.
Then reads back and prints one JSON object:

  acked          writes that the set acknowledged
  failed         writes that ended in an error (they may be there or not: nothing was promised)
  longest_gap_s  the longest time between two acknowledgements (of all threads together)
  lost           acknowledged writes that are not there: has to be 0

Needs pymongo 3.11 or newer and nothing else, so it runs on the hosts, on application nodes and on the control node.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pymongo
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

# How an application should connect: notice a dead primary within a second, but never cut a slow answer short.
CLIENT_OPTIONS: dict[str, Any] = {
    "tls": True,
    "retryWrites": True,
    "heartbeatFrequencyMS": 1000,
    "connectTimeoutMS": 1000,
    "socketTimeoutMS": 20000,
    "serverSelectionTimeoutMS": 30000,
    "authSource": "admin",
}


@dataclass
class Ledger:
    """What the set has acknowledged. The lock is held for a moment only, never during a write."""

    acked: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    longest_gap: float = 0.0
    last: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, key: str) -> None:
        with self.lock:
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - self.last)
            self.last = now
            self.acked.add(key)

    def fail(self, error: PyMongoError) -> None:
        with self.lock:
            self.failed.append(f"{type(error).__name__}: {error}"[:300])


@dataclass(frozen=True)
class Verdict:
    acked: int
    failed: int
    longest_gap_s: float
    lost: int
    errors: list[str]


def write(collection: Any, ledger: Ledger, run: str, thread: int, interval: float, stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        key = f"{run}-{thread}-{number}"
        try:
            collection.insert_one({"_id": key, "run": run})
        except PyMongoError as error:
            ledger.fail(error)
        else:
            ledger.acknowledge(key)
        number += 1
        stop.wait(interval)


def verify(collection: Any, ledger: Ledger, run: str) -> Verdict:
    majority = collection.with_options(read_concern=ReadConcern("majority"))
    found = {document["_id"] for document in majority.find({"run": run}, {"_id": True})}
    return Verdict(
        acked=len(ledger.acked),
        failed=len(ledger.failed),
        longest_gap_s=round(ledger.longest_gap, 3),
        lost=len(ledger.acked - found),
        errors=sorted(set(ledger.failed))[:5],
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", required=True, help="members, name:port,name:port")
    parser.add_argument("--replica-set", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--password-file", type=Path, required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--ca-file", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="end after so long (SIGTERM ends earlier)")
    parser.add_argument("--rate", type=float, default=50.0, help="writes per second, all threads together")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--connect-ms", type=int, default=1000, help="a member that takes longer is dead")
    parser.add_argument("--ready", type=Path, help="made when the first write was acknowledged")
    parser.add_argument("--output", type=Path, help="the verdict also goes here")
    return parser.parse_args()


def stop_on_signal(stop: threading.Event) -> None:
    """Set the event at SIGTERM or SIGINT, from a thread: a second signal in a handler would wait for its own lock."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    threading.Thread(target=lambda: (signal.sigwait(ends), stop.set()), daemon=True).start()


def main() -> int:
    options = arguments()
    stop = threading.Event()
    stop_on_signal(stop)
    client: Any = pymongo.MongoClient(
        options.hosts.split(","),
        replicaSet=options.replica_set,
        username=options.user,
        password=options.password_file.read_text().strip(),
        tlsCAFile=str(options.ca_file),
        **CLIENT_OPTIONS | {"connectTimeoutMS": options.connect_ms},
    )
    collection = client[options.database].get_collection("write_ledger", write_concern=WriteConcern("majority"))
    run, ledger = uuid.uuid4().hex, Ledger()
    interval = options.threads / options.rate
    threads = [
        threading.Thread(target=write, args=(collection, ledger, run, thread, interval, stop))
        for thread in range(options.threads)
    ]
    deadline = time.monotonic() + options.seconds
    for thread in threads:
        thread.start()
    while not stop.wait(0.1) and time.monotonic() < deadline:
        if options.ready and ledger.acked:
            options.ready.touch()
    stop.set()
    for thread in threads:
        thread.join()
    verdict = verify(collection, ledger, run)
    collection.delete_many({"run": run})
    text = json.dumps(asdict(verdict))
    print(text)
    if options.output:
        staged = options.output.with_suffix(".new")
        staged.write_text(text)
        staged.replace(options.output)
    return 1 if verdict.lost or not verdict.acked else 0


if __name__ == "__main__":
    sys.exit(main())
