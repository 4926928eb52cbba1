#!/usr/bin/env python3
"""Constant load through the virtual address, and an exact account of what became of it.

The load is open-loop: request i is due at start + i / rate, whatever became of the ones before, and its latency counts
from when it was due. So an outage is not hidden by a client that waits for it to end. Nothing is sent twice: a
connection that breaks under a request is a failure, even where a browser would try again. What a correct client does
is done: a connection that the server has closed, or has announced to close, is not used again, nor one that was idle
for IDLE_S, because a server that closes idle connections may do so while a request is on its way; and there are no more
than POOL of them that are kept: a request that finds none free waits for one, which counts. Without a bound a server
that stalls for a second would be answered by hundreds of handshakes, which hold up the probe for longer than the stall.

TLS is verified, and every new connection is a handshake in full: Python parses the certificate again when it is handed
a session, so that resuming one would save nothing, and a certificate that was replaced by a bad one is noticed at once.

Needs only Python 3.11. Ends after --duration, or earlier at SIGTERM or SIGINT; always prints the account as JSON:

  sent, ok, failed   requests by outcome; `failed` by kind: refused, unreachable, reset, closed, timeout, tls, protocol,
                     status-NNN
  longest_gap_s      largest time between two successes (or from the begin to the first, or from the last to the end)
  p50_ms p99_ms      latency of the successes
  late_ms            how late the probe itself was at worst
  held_up            when it was more than 50 ms late: [begin, end] in seconds since the start
  failures           the first ones: seconds since the start, kind, method, key
  started            seconds since the epoch
  run                what every key begins with: the n-th request's is `<run>-<n>`
  cpu_s              what the probe itself has used

--output adds `gaps` (the longest ones: seconds since the start, how long, and how long of it the probe itself was held
up) and `seconds` (per second: ok, failed, p99_ms; by the time at which a request was due).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import resource
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
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

FAILURES_SHOWN = 1000
GAPS_SHOWN = 20
MAX_HEAD = 65536
PROGRESS_S = 1.0
POOL = 100
IDLE_S = 5.0  # as httpx has it; less than any server's
LATE_S = 0.05  # less is what any busy machine has
RUN = "[0-9a-f]{12}"


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
    headers: tuple[str, ...] = field(default=(), repr=False)  # a token is among them
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


class Answer(NamedTuple):
    """The status of an answer, and whether the connection may carry another request."""

    status: int
    keep: bool


def parse_head(head: bytes) -> tuple[int, bool, dict[str, str]]:
    """Return the status, whether the connection stays open, and the headers of an answer."""
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ProbeError("protocol")
    parts = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in parts}
    words = {word.strip() for word in headers.get("connection", "").lower().split(",")}
    return int(rest[:3]), "close" not in words and (version != "HTTP/1.0" or "keep-alive" in words), headers


def chunked_size(body: bytes) -> int | None:
    """Return the length of a whole chunked body; None while some of it is missing."""
    at = 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end].split(b";")[0], 16)
        at = end + 2 + size + 2
        if size == 0:  # trailers, up to an empty line
            last = body.find(b"\r\n\r\n", end)
            return last + 4 if last >= 0 else None
    return None


def parse_answer(received: bytes, *, ended: bool) -> Answer | None:
    """Read one whole answer; None while some of it is missing. `ended`: the server sends no more."""
    while True:
        head, found, rest = received.partition(b"\r\n\r\n")
        if not found:
            if len(received) > MAX_HEAD:
                raise ProbeError("protocol")
            return None
        status, keep, headers = parse_head(head)
        if status >= 200:
            break
        received = rest  # an interim answer
    if status in (204, 304):
        size: int | None = 0
    elif headers.get("transfer-encoding", "").lower().endswith("chunked"):
        size = chunked_size(rest)
    elif "content-length" in headers:
        size = int(headers["content-length"])
    else:  # it ends with the connection
        size, keep = len(rest) if ended else None, False
    if size is None or len(rest) < size:
        return None
    return Answer(status, keep and len(rest) == size)


class Connection(asyncio.Protocol):
    """A connection, one request at a time. It is open until the server closes it or says what nobody has asked for."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.open = False
        self.idle_since = 0.0
        self._received = b""
        self._answer: asyncio.Future[Answer] | None = None

    async def ask(self, request: bytes) -> Answer:
        if not self.open:  # closed as soon as it was made
            raise ProbeError("closed")
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        self.open = False
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._settle(ended=False)

    def eof_received(self) -> None:
        self._settle(ended=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ProbeError("closed"))

    def _settle(self, *, ended: bool) -> None:
        if not self._answer or self._answer.done():
            self.close()
            return
        try:
            answer = parse_answer(self._received, ended=ended)
        except (ProbeError, ValueError):
            self._answer.set_exception(ProbeError("protocol"))
            return
        if answer:
            self._answer.set_result(answer)
        elif ended:
            self._answer.set_exception(ProbeError("closed"))


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
        case OSError():
            return "unreachable"
        case _:
            return "protocol"


class Probe:
    """Send the plan's requests and keep the outcomes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outcomes: list[Outcome] = []
        self.late = 0.0
        self.held_up: list[tuple[float, float]] = []
        self.ok = 0
        self.failed: Counter[str] = Counter()
        self.stopped = asyncio.Event()
        self._idle: list[Connection] = []
        self._pool = asyncio.Semaphore(POOL)
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
            now = clock() - self._start
            self.late = max(self.late, now - due)
            if now - due > LATE_S:
                joined(self.held_up, due, now)
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
            "held_up": [[round(begin, 3), round(end, 3)] for begin, end in self.held_up],
            "started": round(started, 3),
            "run": self.plan.run,
            "cpu_s": round(time.process_time(), 2),
        }

    def progress(self) -> dict[str, Any]:
        """Return the totals so far."""
        return {
            "run": self.plan.run,
            "pid": os.getpid(),
            "ok": self.ok,
            "failed": dict(self.failed),
            "at": round(time.time(), 3),
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
                if self.plan.is_new(number):
                    await self._exchange(post, key, new=True)
                else:
                    async with self._pool:
                        await self._exchange(post, key, new=False)
            kind = "ok"
        except Exception as error:  # noqa: BLE001 every failure is counted, whatever it is
            kind = kind_of(error)
        end = asyncio.get_running_loop().time() - self._start
        self.outcomes.append(Outcome(due, end, kind, "POST" if post else "GET", key))
        if kind == "ok":
            self.ok += 1
        else:
            self.failed[kind] += 1

    async def _exchange(self, post: bool, key: str, *, new: bool) -> None:
        connection = await self._connection(new)
        keep = False
        try:
            status, keep = await connection.ask(self._request(post, key, close=new))
        finally:
            if keep and not new:
                connection.idle_since = asyncio.get_running_loop().time()
                self._idle.append(connection)
            else:
                connection.close()
        if status not in self.plan.expect:
            raise ProbeError(f"status-{status}")

    async def _connection(self, new: bool) -> Connection:
        while self._idle and not new:
            connection = self._idle.pop()
            if connection.open and asyncio.get_running_loop().time() - connection.idle_since < IDLE_S:
                return connection
            connection.close()
        name = self._host if self._tls else None
        address = self.plan.connect or self._host
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            Connection, address, self._port, ssl=self._tls, server_hostname=name
        )
        return connection

    def _request(self, post: bool, key: str, *, close: bool) -> bytes:
        body = self.plan.post_body.replace("{key}", key).encode() if post else b""
        lines = [
            f"{'POST' if post else 'GET'} {self._post if post else self._get} HTTP/1.1",
            f"Host: {self._authority}",
            "User-Agent: pst-probe",
            f"Connection: {'close' if close else 'keep-alive'}",
            *self.plan.headers,
        ]
        if post:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", f"Idempotency-Key: {key}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def joined(spans: list[tuple[float, float]], begin: float, end: float) -> None:
    """Add a span to spans that are in order and do not overlap; `begin` is not before that of the last one."""
    if spans and begin <= spans[-1][1]:
        spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
    else:
        spans.append((begin, end))


def within(spans: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Return how long of the time from `begin` to `end` is in the spans."""
    return sum(max(0.0, min(end, last) - max(begin, first)) for first, last in spans)


def gaps(successes: Sequence[float], end: float) -> list[tuple[float, float]]:
    """Return (begin, length) of each time without a success between the start (0) and the end of the run."""
    marks = [0.0, *sorted(time for time in successes if time < end), end]
    return [(earlier, later - earlier) for earlier, later in pairwise(marks)]


def longest_gap(successes: Sequence[float], end: float) -> float:
    """Return the largest time without a success between the start (0) and the end of the run."""
    return max(length for _, length in gaps(successes, end))


def details(outcomes: Sequence[Outcome], end: float, held_up: Sequence[tuple[float, float]] = ()) -> dict[str, Any]:
    """Tell the run second by second, and its longest gaps, in the order of time; `held_up`: when it was late."""
    seconds: list[list[Outcome]] = [[] for _ in range(math.ceil(end))]
    for outcome in outcomes:
        if outcome.due < len(seconds):
            seconds[int(outcome.due)].append(outcome)
    longest = sorted(gaps([outcome.end for outcome in outcomes if outcome.ok], end), key=lambda gap: -gap[1])
    return {
        "gaps": [
            {
                "at": round(begin, 3),
                "seconds": round(length, 3),
                "own": round(within(held_up, begin, begin + length), 3),
            }
            for begin, length in sorted(longest[:GAPS_SHOWN])
        ],
        "seconds": [
            {
                "ok": sum(outcome.ok for outcome in second),
                "failed": sum(not outcome.ok for outcome in second),
                "p99_ms": milliseconds(sorted(outcome.end - outcome.due for outcome in second if outcome.ok), 0.99),
            }
            for second in seconds
        ],
    }


def milliseconds(ordered: Sequence[float], share: float) -> float | None:
    """Return a percentile of times in seconds, in milliseconds."""
    value = percentile(ordered, share)
    return None if value is None else round(1000 * value, 1)


def account(outcomes: Sequence[Outcome], end: float) -> dict[str, Any]:
    """Sum up the outcomes of a run that sent its requests from 0 to `end`."""
    good = [outcome for outcome in outcomes if outcome.ok]
    bad = sorted(outcome for outcome in outcomes if not outcome.ok)
    latencies = sorted(outcome.end - outcome.due for outcome in good)
    return {
        "sent": len(outcomes),
        "ok": len(good),
        "failed": dict(Counter(outcome.kind for outcome in bad)),
        "longest_gap_s": round(longest_gap([outcome.end for outcome in good], end), 3),
        "p50_ms": milliseconds(latencies, 0.5),
        "p99_ms": milliseconds(latencies, 0.99),
        "max_ms": milliseconds(latencies, 1.0),
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
    parser.add_argument("--duration", type=float, default=10, help="seconds, 14400 at most (default %(default)s)")
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
    parser.add_argument(
        "--header-file", type=Path, metavar="FILE", help="headers, one a line; mode 0600: it has a token"
    )
    parser.add_argument(
        "--run", metavar="ID", help="what every key begins with: 12 hexadecimal digits (default: random)"
    )
    parser.add_argument(
        "--output", type=Path, help="write the account here too, with every second and the longest gaps"
    )
    parser.add_argument("--progress", type=Path, metavar="FILE", help="write the totals so far here, every second")
    parser.add_argument("--ledger", type=Path, help="write every request here, one JSON object a line")
    options = parser.parse_args(argv)
    if not 0 < options.rate <= 2000 or not 0 < options.duration <= 14400 or options.timeout <= 0:
        parser.error("wanted: 0 < --rate <= 2000, 0 < --duration <= 14400, --timeout > 0")
    if options.run and not re.fullmatch(RUN, options.run):
        parser.error(f"--run is {options.run!r}, wanted: 12 hexadecimal digits")
    try:
        headers = read_headers(options.header_file) if options.header_file else ()
    except (OSError, ValueError) as error:
        parser.error(f"--header-file: {error}")
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
        headers=headers,
        **({"run": options.run} if options.run else {}),
    )
    return plan, options


def read_headers(path: Path) -> tuple[str, ...]:
    """Read headers, one a line, from a file that nobody else can read."""
    if mode := path.stat().st_mode & 0o077:
        raise ValueError(f"{path}: others may read or write it ({mode:03o}), wanted: mode 0600")
    lines = tuple(line for line in path.read_text(encoding="ascii").splitlines() if line)
    if any(not re.fullmatch(r"[A-Za-z0-9-]+: [ -~]+", line) for line in lines):
        raise ValueError(f"{path}: wanted: one `Name: value` a line")
    return lines


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, whole."""
    if path.exists() and not path.is_file():  # such as /dev/null
        path.write_text(text)
        return
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    os.replace(new, path)


async def tell(probe: Probe, path: Path) -> None:
    """Write the totals every second, for as long as the probe runs."""
    while True:
        replace(path, json.dumps(probe.progress()) + "\n")
        await asyncio.sleep(PROGRESS_S)


async def run(plan: Plan, progress: Path | None = None) -> tuple[dict[str, Any], list[Outcome]]:
    probe = Probe(plan)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, probe.stopped.set)
    telling = asyncio.create_task(tell(probe, progress)) if progress else None
    result = await probe.run()
    if telling and progress:
        telling.cancel()
        await asyncio.wait([telling])
        with suppress(OSError):  # a full disk is told by the account
            replace(progress, json.dumps(probe.progress()) + "\n")
    return result, sorted(probe.outcomes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe; the exit status tells whether every request succeeded."""
    plan, options = arguments(argv)
    # An outage leaves `rate * timeout` requests open; a shell's limit would make of them failures of the probe's own.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # It must not be late where the control node is busy; only root may. The second is for its session, which the kernel
    # weighs against the others where it groups processes by session.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        Path("/proc/self/autogroup").write_text("-20")
    result, outcomes = asyncio.run(run(plan, options.progress))
    if options.ledger:
        options.ledger.write_text("".join(json.dumps(outcome._asdict()) + "\n" for outcome in outcomes))
    if options.output:
        more = result | details(outcomes, result["duration_s"], result["held_up"])
        replace(options.output, json.dumps(more) + "\n")
    with suppress(BrokenPipeError):  # who started it may be gone
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        sys.stdout.flush()
    return 1 if result["failed"] or not result["ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
