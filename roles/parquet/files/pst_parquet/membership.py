"""Which hosts may reach the bricks of the others. The rules, without I/O.

The lease says who may write, and the guard has what writes dead before the lease ends. Neither stops the write of a
host that was frozen with it, or one that hangs in the kernel of a host whose process cannot be killed. So each host
lets the others reach its brick only for a few seconds at a time, after they were seen to be *clean*, and its kernel
ends that time by itself. A host is clean when nothing runs in the slice of a placement without a grant of its lease.

Each host has a document in `pst.parquet_members` and renews it. Why no write of an old holder reaches a brick of
another host after the lease has a new one:

- A renewal says for how long it is good: at most until the earliest grant of this host ends, counted from before it was
  looked, less `DELAY_S`.
- The server takes a renewal only within `DELAY_S` of the one before, by its own clock: what was judged before a freeze
  and is sent after it comes too late. Whoever comes too late joins again, which by itself allows nothing.
- A host counts the time of a renewal from when its last read *began* that did not show it yet.

Without a clock that jumps on the server that is exact, and no two clocks are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Document = dict[str, Any]

DELAY_S = 4.0  # a renewal that the server gets later than this after the one before is refused
SLACK_S = 1.0
LEAST_S = 0.5  # what is good for less is not worth a renewal
RETRY_S = 0.5


@dataclass(frozen=True)
class Slice:
    """A placement on this host: whether anything runs in it, and until when its lease is held, if it is."""

    populated: bool
    valid_until: float | None


def longest(lease_ttl_s: float) -> float:
    """How long a renewal of a host that holds nothing is good.

    A grant that it gets right after lasts for a ttl from then on, so whatever runs under it is covered.
    """
    return lease_ttl_s - DELAY_S - SLACK_S


def good_for(slices: Iterable[Slice], lease_ttl_s: float, now: float) -> float:
    """How many seconds a renewal that is judged now may be good for; 0 where this host is not clean."""
    until = math.inf
    for item in slices:
        held = item.valid_until is not None and item.valid_until > now
        if item.populated and not held:
            return 0.0
        if held and item.valid_until is not None:
            until = min(until, item.valid_until)
    seconds = min(longest(lease_ttl_s), until - now - DELAY_S)
    return seconds if seconds >= LEAST_S else 0.0


@dataclass(frozen=True)
class Request:
    verb: Literal["read", "join", "renew"]
    host: str
    seq: int = 0
    valid_ms: int = 0


def operation(request: Request) -> tuple[Document, list[Document]]:
    """Return filter and update pipeline of a request that changes the document."""
    only_if: Document = {"_id": request.host, "seq": request.seq}
    if request.verb == "renew":
        soon = {"$gte": ["$renewed_at", {"$subtract": ["$$NOW", round(DELAY_S * 1000)]}]}
        only_if = {**only_if, "$expr": soon}
    change = {"seq": {"$add": ["$seq", 1]}, "valid_ms": request.valid_ms, "renewed_at": "$$NOW"}
    return only_if, [{"$set": change}]


class Member:
    """This host's own document."""

    def __init__(self, host: str, renew_s: float) -> None:
        self._host = host
        self._renew_s = renew_s
        self._seq: int | None = None
        self._joined = False
        self._next_at = 0.0

    def next(self, now: float, good_for_s: float) -> Request | None:
        """Return what to ask the store, if anything. `good_for_s` was judged at `now` or later."""
        if now < self._next_at:
            return None
        if self._seq is None:
            return Request("read", self._host)
        if not self._joined:
            return Request("join", self._host, self._seq)
        if not good_for_s:
            return None
        return Request("renew", self._host, self._seq, int(good_for_s * 1000))

    def answered(self, request: Request, document: Document | None, now: float) -> None:
        """Take the document after the request; None where the rule refused it."""
        if document is None:
            self._lost(now)
        else:
            self._seq = int(document["seq"])
            self._joined = request.verb != "read"
            self._next_at = now + self._renew_s if request.verb == "renew" else now

    def failed(self, now: float) -> None:
        """No answer came: the store may have done it or not."""
        self._lost(now)

    def _lost(self, now: float) -> None:
        self._seq, self._joined, self._next_at = None, False, now + RETRY_S


class View:
    """The documents of all hosts, as this host sees them."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._seq: dict[str, int] = {}
        self._began = -math.inf
        self.until: dict[str, float] = {}  # by address

    def observe(self, documents: Iterable[Mapping[str, Any]], began: float) -> dict[str, float]:
        """Take a read that began then; return the addresses whose time is another one now."""
        changed = {}
        for document in documents:
            host, seq = str(document["_id"]), int(document["seq"])
            before = self._seq.get(host)
            if before is not None and seq <= before:
                continue  # nothing new, or an old state of a member that was the primary
            self._seq[host] = seq
            if before is None or host == self._me:
                continue  # how old it is cannot be told: the next one counts
            if not (valid_ms := int(document["valid_ms"])):
                continue  # it has joined, which allows nothing
            until = self._began + valid_ms / 1000
            address = str(document["address"])
            if until > self.until.get(address, -math.inf):
                self.until[address] = changed[address] = until
        self._began = began
        return changed
