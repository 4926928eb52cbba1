"""Rewrites the files of the store in place, as pysystemtrade does, and logs on this host what it was told is written.

Every file begins with who wrote it, when by count, and the hash of the rest: a torn one is seen. `history` gets a line
for each acknowledged write: the epochs in it never go down, or a host wrote that held the lease no more.
"""

import hashlib
import json
import os
import time
from pathlib import Path

STORE = Path("/var/lib/pst/parquet/ledger")
HOST = os.uname().nodename
EPOCH = int(os.environ["PST_LEASE_EPOCH"])


def write(path: Path, mode: str, data: bytes) -> None:
    with path.open(mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def one(number: int) -> None:
    body = f"{EPOCH} {HOST} {number};".encode() * 8000
    head = json.dumps({"epoch": EPOCH, "host": HOST, "n": number, "sha256": hashlib.sha256(body).hexdigest()})
    write(STORE / f"f{number % 5}", "wb", head.encode() + b"\n" + body)
    write(STORE / "history", "ab", f"{EPOCH} {HOST} {number}\n".encode())


def main() -> None:
    STORE.mkdir(exist_ok=True)
    number = 0
    with Path("/var/log/pst/writer.log").open("a", buffering=1) as log:
        while True:
            number += 1
            began = time.time()
            try:
                one(number)
                outcome = "ok"
            except OSError as error:
                outcome = repr(error)
            log.write(
                json.dumps({"at": began, "took": time.time() - began, "epoch": EPOCH, "n": number, "outcome": outcome})
                + "\n"
            )
            time.sleep(0.1)


main()
