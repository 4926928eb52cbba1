#!/usr/bin/env python3
"""Constant load through the virtual address, and an exact account of what became of it.

The load is open-loop: request i is due at start + i / rate, whatever became of the ones before, and its latency counts
from when it was due. So an outage is not hidden by a client that waits for it to end. Nothing is sent twice: a
connection that breaks under a request is a failure, even where a browser would try again.

Needs only Python 3.11. Ends after --duration, or earlier at SIGTERM or SIGINT; always prints the account as JSON:

  sent, ok, failed   requests by outcome; `failed` by kind: refused, unreachable, reset, closed, timeout, tls, protocol,
                     status-NNN
  longest_gap_s      largest time between two successes (or from the begin to the first, or from the last to the end)
  p50_ms p99_ms      latency of the successes
  late_ms            how late the probe itself was at worst; a gap shorter than this may be the probe's own
  failures           the first ones: seconds since the start, kind, method, path, key
  started            seconds since the epoch
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import ssl
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

FAILURES_SHOWN = 1000
MAX_HEAD = 65536


class Outcome(NamedTuple):
    """One request: when it was due and ended (seconds since the start), and `ok` or the kind of its failure."""

    due: float
    end: float
    kind: str
    method: str
    key: str

    @property
    def ok(self) -> bool:
        return self.kind == "ok"


@dataclass(frozen=True)
class Plan:
    """What to send where."""

    url: str
    connect: str
    rate: float
    duration: float
    timeout: float
    ca: str | None = None
    certificate: str | None = None
    post_url: str = ""
    post_body: str = '{"key": "{key}"}'
    post_share: float = 0.0
    new_share: float = 0.5
    expect: tuple[int, ...] = (200, 201)
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def is_post(self, number: int) -> bool:
        return bool(self.post_url) and spread(number, self.post_share)

    def is_new(self, number: int) -> bool:
        # Turned round against the methods' pattern, so that each method meets both kinds of connection.
        return spread(number * 7 + 3, self.new_share)


def spread(number: int, share: float) -> bool:
    """Spread a share evenly: of any n numbers in a row, n * share (rounded either way) are chosen."""
    return math.floor((number + 1) * share) > math.floor(number * share)


class ProbeError(Exception):
    """A request that failed, by kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def close(self) -> None:
        self.writer.transport.abort()


def kind_of(error: Exception) -> str:
    """Name a failure."""
    match error:
        case ProbeError():
            return error.kind
        case TimeoutError():
            return "timeout"
        case ssl.SSLError():
            return "tls"
        case ConnectionRefusedError():
            return "refused"
        case ConnectionError():
            return "reset"
        case asyncio.IncompleteReadError():
            return "closed"
        case OSError():
            return "unreachable"
        case _:
            return "protocol"


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of an answer."""
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ProbeError("protocol")
    headers = (line.partition(":") for line in lines[1:] if line)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in headers}


class Probe:
    """Send the plan's requests and keep the outcomes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outcomes: list[Outcome] = []
        self.late = 0.0
        self.stopped = asyncio.Event()
        self._idle: list[Connection] = []
        self._start = 0.0
        url = urlsplit(plan.url)
        self._host = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._authority = url.netloc
        self._get = _target(plan.url)
        self._post = _target(plan.post_url) if plan.post_url else ""
        self._tls: ssl.SSLContext | None = None
        if url.scheme == "https":
            self._tls = ssl.create_default_context(cafile=plan.ca)
            if plan.certificate:
                self._tls.load_cert_chain(plan.certificate)

    async def run(self) -> dict[str, Any]:
        """Send everything, wait for the last answers, and return the account."""
        clock = asyncio.get_running_loop().time
        started, self._start = time.time(), clock()
        tasks: set[asyncio.Task[None]] = set()
        number = 0
        while (due := number / self.plan.rate) < self.plan.duration:
            if not await self._until(self._start + due):
                break
            self.late = max(self.late, clock() - self._start - due)
            task = asyncio.create_task(self._one(number, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        end = min(clock() - self._start, self.plan.duration)
        await asyncio.gather(*tasks)
        for connection in self._idle:
            connection.close()
        return account(self.outcomes, end) | {
            "late_ms": round(1000 * self.late, 1),
            "started": round(started, 3),
            "run": self.plan.run,
        }

    async def _until(self, when: float) -> bool:
        """Wait until it is time for the next request; tell whether to go on."""
        if self.stopped.is_set():
            return False
        delay = when - asyncio.get_running_loop().time()
        if delay > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), delay)
        return not self.stopped.is_set()

    async def _one(self, number: int, due: float) -> None:
        post = self.plan.is_post(number)
        key = f"{self.plan.run}-{number}"
        try:
            async with asyncio.timeout(self.plan.timeout):
                await self._exchange(number, post, key)
            kind = "ok"
        except Exception as error:  # noqa: BLE001 every failure is counted, whatever it is
            kind = kind_of(error)
        end = asyncio.get_running_loop().time() - self._start
        self.outcomes.append(Outcome(due, end, kind, "POST" if post else "GET", key))

    async def _exchange(self, number: int, post: bool, key: str) -> None:
        new = self.plan.is_new(number)
        connection = await self._connection(new)
        keep = False
        try:
            connection.writer.write(self._request(post, key, close=new))
            await connection.writer.drain()
            status, keep = await self._answer(connection.reader)
        finally:
            if keep and not new:
                self._idle.append(connection)
            else:
                connection.close()
        if status not in self.plan.expect:
            raise ProbeError(f"status-{status}")

    async def _connection(self, new: bool) -> Connection:
        while self._idle and not new:
            connection = self._idle.pop()
            if not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            connection.close()
        name = self._host if self._tls else None
        address = self.plan.connect or self._host
        return Connection(
            *await asyncio.open_connection(address, self._port, ssl=self._tls, server_hostname=name, limit=MAX_HEAD)
        )

    def _request(self, post: bool, key: str, *, close: bool) -> bytes:
        body = self.plan.post_body.replace("{key}", key).encode() if post else b""
        lines = [
            f"{'POST' if post else 'GET'} {self._post if post else self._get} HTTP/1.1",
            f"Host: {self._authority}",
            "User-Agent: pst-probe",
            f"Connection: {'close' if close else 'keep-alive'}",
        ]
        if post:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", f"Idempotency-Key: {key}"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
        """Read one whole answer; return its status and whether the connection stays open."""
        status, headers = parse_head(await reader.readuntil(b"\r\n\r\n"))
        keep = headers.get("connection", "").lower() != "close"
        if "content-length" in headers:
            await reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                await reader.readexactly(size + 2)
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
        elif status not in (204, 304):
            await reader.read()
            keep = False
        return status, keep


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def longest_gap(successes: Sequence[float], end: float) -> float:
    """Return the largest time without a success between the start (0) and the end of the run."""
    marks = [0.0, *sorted(time for time in successes if time < end), end]
    return max(later - earlier for earlier, later in pairwise(marks))


def account(outcomes: Sequence[Outcome], end: float) -> dict[str, Any]:
    """Sum up the outcomes of a run that sent its requests from 0 to `end`."""
    good = [outcome for outcome in outcomes if outcome.ok]
    bad = sorted(outcome for outcome in outcomes if not outcome.ok)
    latencies = sorted(1000 * (outcome.end - outcome.due) for outcome in good)

    def ms(share: float) -> float | None:
        value = percentile(latencies, share)
        return None if value is None else round(value, 1)

    return {
        "sent": len(outcomes),
        "ok": len(good),
        "failed": dict(Counter(outcome.kind for outcome in bad)),
        "longest_gap_s": round(longest_gap([outcome.end for outcome in good], end), 3),
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
        "max_ms": ms(1.0),
        "duration_s": round(end, 3),
        "failures": [
            {
                "at": round(outcome.due, 3),
                "end": round(outcome.end, 3),
                "kind": outcome.kind,
                "method": outcome.method,
                "key": outcome.key,
            }
            for outcome in bad[:FAILURES_SHOWN]
        ],
        "posted_ok": sum(outcome.method == "POST" for outcome in good),
    }


def arguments(argv: Sequence[str] | None = None) -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="what to GET; its host name is the one in TLS and in the Host header")
    parser.add_argument("--connect", default="", metavar="ADDRESS", help="connect here instead of the URL's host")
    parser.add_argument("--ca", metavar="FILE", help="authority that the server's certificate must come from")
    parser.add_argument("--certificate", metavar="FILE", help="client certificate and key (PEM)")
    parser.add_argument("--rate", type=float, default=100, help="requests a second (default %(default)s)")
    parser.add_argument("--duration", type=float, default=10, help="seconds, 3600 at most (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=5, help="seconds for one request (default %(default)s)")
    parser.add_argument("--post", default="", metavar="URL", help="where to POST; same host as URL")
    parser.add_argument(
        "--post-body", default=Plan.post_body, metavar="TEXT", help="{key} is unique (default %(default)s)"
    )
    parser.add_argument(
        "--post-share", type=float, default=0.2, help="share of POSTs when --post is given (default %(default)s)"
    )
    parser.add_argument("--new-share", type=float, default=0.5, help="share of new connections (default %(default)s)")
    parser.add_argument(
        "--expect", type=int, nargs="+", default=[200, 201], metavar="STATUS", help="statuses that count as success"
    )
    parser.add_argument("--output", type=Path, help="write the account here too")
    parser.add_argument("--ledger", type=Path, help="write every request here, one JSON object a line")
    options = parser.parse_args(argv)
    if not 0 < options.rate <= 2000 or not 0 < options.duration <= 3600 or options.timeout <= 0:
        parser.error("wanted: 0 < --rate <= 2000, 0 < --duration <= 3600, --timeout > 0")
    plan = Plan(
        url=options.url,
        connect=options.connect,
        rate=options.rate,
        duration=options.duration,
        timeout=options.timeout,
        ca=options.ca,
        certificate=options.certificate,
        post_url=options.post,
        post_body=options.post_body,
        post_share=options.post_share,
        new_share=options.new_share,
        expect=tuple(options.expect),
    )
    return plan, options


async def run(plan: Plan) -> tuple[dict[str, Any], list[Outcome]]:
    probe = Probe(plan)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, probe.stopped.set)
    result = await probe.run()
    return result, sorted(probe.outcomes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe; the exit status tells whether every request succeeded."""
    plan, options = arguments(argv)
    result, outcomes = asyncio.run(run(plan))
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    if options.ledger:
        options.ledger.write_text("".join(json.dumps(outcome._asdict()) + "\n" for outcome in outcomes))
    return 1 if result["failed"] or not result["ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
