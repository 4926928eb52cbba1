"""A client that writes through Sentinel while something happens to Redis, and tells what became of its writes.

A write is acknowledged when SET answered and WAIT counted at least `--replicas`. After the run every acknowledged key
is read back from the master of that moment. SIGTERM, SIGINT or `--stop-file` end the run early, after one more
acknowledged write, so that a gap is measured to its end:

    {"acked": 1990, "failed": 0, "longest_gap_s": 1.2, "longest_outage_s": 1.2, "lost": 0, …}

An outage is a gap less the time in which this program itself stood still, because the machine that it runs on did.
`failed` counts keys that could not be written within `--patience` (SET is repeated, it is idempotent). Client settings
are the ones that proved themselves: no retries inside redis-py, whose back-off outlasts any switch, and short timeouts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel


class Ticker(threading.Thread):
    """Knows how much too long it slept so far. As tests/stalls.py: this program is alone where it runs."""

    TICK_S = 0.1

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._so_far = (0.0, time.monotonic())
        self.start()

    @property
    def late(self) -> float:
        late, began = self._so_far
        return late + max(0.0, time.monotonic() - began - self.TICK_S)

    def run(self) -> None:
        while True:
            time.sleep(self.TICK_S)
            self._so_far = (self.late, time.monotonic())


@dataclass
class Ledger:
    """What the client was promised."""

    acked_keys: list[str] = field(default_factory=list)
    failed: int = 0
    retried: int = 0
    longest_gap_s: float = 0.0
    longest_outage_s: float = 0.0
    gap_ended_at: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    _ticker: Ticker = field(default_factory=Ticker)
    _last: float = field(default_factory=time.monotonic)
    _late: float = 0.0

    def acknowledge(self, key: str) -> None:
        now, late = time.monotonic(), self._ticker.late
        self.longest_outage_s = max(self.longest_outage_s, now - self._last - (late - self._late))
        self._late = late
        if now - self._last > self.longest_gap_s:
            self.longest_gap_s, self.gap_ended_at = now - self._last, time.time()
        self._last = now
        self.acked_keys.append(key)

    def refuse(self, reason: str) -> None:
        self.errors[reason] = self.errors.get(reason, 0) + 1


@dataclass(frozen=True)
class Result:
    acked: int
    failed: int
    retried: int
    lost: int
    longest_gap_s: float
    longest_outage_s: float
    gap_ended_at: float
    seconds: float
    errors: dict[str, int]


def resolve_as_told(names: dict[str, str]) -> None:
    """Answer for these names as `curl --resolve` does: this machine need not know the lab's names."""
    ask = socket.getaddrinfo

    def told(host: Any, *rest: Any, **options: Any) -> Any:
        return ask(names.get(host, host), *rest, **options)

    socket.getaddrinfo = told


def connect(given: argparse.Namespace) -> Redis:
    """The master, found anew through the Sentinels for each connection."""
    common: dict[str, Any] = {
        "username": given.user,
        "password": given.password,
        "ssl": True,
        "ssl_ca_certs": given.ca,
        "ssl_check_hostname": True,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": True,
    }
    sentinels = [(host, int(port)) for host, port in (name.rsplit(":", 1) for name in given.sentinels)]
    quick = {**common, "socket_timeout": 0.5, "socket_connect_timeout": 0.5}
    finder = Sentinel(sentinels, sentinel_kwargs=quick, **{**quick, "socket_timeout": given.timeout})
    return finder.master_for(given.master)


def write(master: Redis, key: str, given: argparse.Namespace, ledger: Ledger) -> bool:
    """Write one key, again and again for as long as the patience lasts; whether it was acknowledged."""
    deadline = time.monotonic() + given.patience
    while True:
        try:
            # On one connection: WAIT counts the replicas that have what this connection wrote.
            with master.client() as client:
                client.set(key, key)
                copies = client.wait(given.replicas, int(given.timeout * 800))
        except RedisError as error:
            ledger.refuse(f"{type(error).__name__}: {str(error)[:60]}")
        else:
            if copies >= given.replicas:
                ledger.acknowledge(key)
                return True
            ledger.refuse("too few replicas have it")
        if time.monotonic() >= deadline:
            ledger.failed += 1
            return False
        ledger.retried += 1
        time.sleep(0.02)


def run(given: argparse.Namespace, stop: threading.Event) -> Ledger:
    """Write at a steady rate until the time is over, or until told to stop and writes are acknowledged again."""
    master, ledger, prefix = connect(given), Ledger(), f"app:writer:{uuid.uuid4().hex[:8]}"
    due = time.monotonic()
    end = due + given.seconds
    for number in itertools.count():
        acknowledged = write(master, f"{prefix}:{number}", given, ledger)
        if given.ready and acknowledged:
            given.ready.touch()
        told = stop.is_set() or (given.stop_file is not None and given.stop_file.exists())
        if time.monotonic() >= end or (told and acknowledged):
            break
        due = max(due + 1 / given.rate, time.monotonic())
        stop.wait(due - time.monotonic())
    return ledger


def lost_keys(given: argparse.Namespace, ledger: Ledger) -> list[str]:
    """The acknowledged keys that are not there any more, read within a minute."""
    master, deadline = connect(given), time.monotonic() + 60
    lost: list[str] = []
    for keys in chunks(ledger.acked_keys, 500):
        while True:
            try:
                lost += [key for key, value in zip(keys, master.mget(keys), strict=True) if value != key]
                break
            except RedisError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.2)
    return lost


def chunks(keys: list[str], size: int) -> Iterator[list[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sentinels", nargs="+", required=True, metavar="HOST:PORT")
    parser.add_argument(
        "--resolve", nargs="*", default=[], metavar="HOST=ADDRESS", help="names this machine need not know"
    )
    parser.add_argument("--master", default="pst", help="name under which the Sentinels watch it")
    parser.add_argument("--user", default="app")
    parser.add_argument(
        "--password-file", required=True, help="the password, in a file: it must not be in the process list"
    )
    parser.add_argument("--ca", required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--stop-file", type=Path, help="the run ends once this exists and a write is acknowledged")
    parser.add_argument("--rate", type=float, default=100, help="writes a second at most")
    parser.add_argument("--replicas", type=int, default=1, help="replicas that must have a write before it counts")
    parser.add_argument("--patience", type=float, default=0, help="seconds for which one key is tried again")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds for one command")
    parser.add_argument("--ready", type=Path, help="made when the first write was acknowledged")
    parser.add_argument("--output", help="file for the result beside standard output")
    given = parser.parse_args(words)
    with open(given.password_file, encoding="utf-8") as stream:
        given.password = stream.read().strip()
    return given


def stop_on_signal(stop: threading.Event) -> None:
    """Set the event at SIGTERM or SIGINT, from a thread: a second signal in a handler would wait for its own lock."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    threading.Thread(target=lambda: (signal.sigwait(ends), stop.set()), daemon=True).start()


def main(words: list[str]) -> int:
    given = arguments(words)
    resolve_as_told(dict(name.split("=", 1) for name in given.resolve))
    stop = threading.Event()
    stop_on_signal(stop)
    started = time.monotonic()
    ledger = run(given, stop)
    result = Result(
        acked=len(ledger.acked_keys),
        failed=ledger.failed,
        retried=ledger.retried,
        lost=len(lost_keys(given, ledger)),
        longest_gap_s=round(ledger.longest_gap_s, 3),
        longest_outage_s=round(ledger.longest_outage_s, 3),
        gap_ended_at=round(ledger.gap_ended_at, 3),
        seconds=round(time.monotonic() - started, 3),
        errors=ledger.errors,
    )
    text = json.dumps(asdict(result), indent=2)
    print(text)
    if given.output:
        with open(given.output, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
    return 1 if result.lost else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
