"""The lease of trading as the gate sees it: read from MongoDB, judged by this host's monotonic clock."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pymongo
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError
from pymongo.read_concern import ReadConcern

from .gate_settings import MongoSettings

LOG = logging.getLogger("pst.gate")

READ_MS = 3000  # a read of the lease that takes longer has failed; an election takes about that

FIELDS = ("epoch", "renewals", "holder", "ttl_ms", "revoked")

Clock = Callable[[], float]


class LeaseReadError(Exception):
    """The lease could not be read."""


@dataclass(frozen=True)
class Lease:
    """What one read said. ``remaining_s`` is by the server's clock at the moment of the read."""

    epoch: int
    renewals: int
    host: str | None
    colour: str
    remaining_s: float
    ttl_s: float
    revoked: bool

    @property
    def holder(self) -> str:
        """Who holds it, in words."""
        if self.revoked:
            return "trading is revoked"
        if self.host is None:
            return "nobody holds the lease of trading"
        return f"{self.host}/{self.colour} holds the lease of trading (epoch {self.epoch})"


NO_LEASE = Lease(0, 0, None, "", 0.0, 0.0, revoked=False)


class LeaseReader(Protocol):
    """Reads the lease, blocking for a bounded time."""

    def read(self) -> Lease:
        """Return the lease, linearizable, or raise LeaseReadError."""


@dataclass(frozen=True)
class View:
    """A read of the lease, on this host's monotonic clock."""

    lease: Lease
    began: float  # when the read did
    renewed_by: float  # when the first read began that saw this renewal
    older_until: float  # when the last read began that saw an older epoch

    @property
    def valid_until(self) -> float:
        """Until when it holds: by the server's clock, but never longer than a ttl after its renewal was seen.

        The second bound holds when the server's clock was set back, and the date in the document lies far ahead.
        """
        return min(self.began + self.lease.remaining_s, self.renewed_by + self.lease.ttl_s)

    def objection(self, host: str, opened: float, now: float) -> str:
        """Why an order of a host, on a connection opened then, may not pass now; empty where it may."""
        lease = self.lease
        if lease.revoked or lease.host is None:
            return lease.holder
        if lease.host != host:
            return f"{lease.holder}, this is {host}"
        if now >= self.valid_until:
            return f"the lease of {lease.host}/{lease.colour} (epoch {lease.epoch}) has not been seen renewed in time"
        if opened < self.older_until:
            return f"this connection is older than epoch {lease.epoch} of the lease; wanted: a new connection"
        return ""


class Watch:
    """The one view that all connections share."""

    def __init__(self, reader: LeaseReader, clock: Clock = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._begun = self._ended = 0  # numbers of the last read that began, that ended
        self._lock = asyncio.Lock()
        # One thread: a read that hangs delays the next one and cannot pile up.
        self._thread = ThreadPoolExecutor(1, "lease")
        self.view: View | None = None
        self.failure = "it was not read yet"

    async def fresh(self) -> View | None:
        """The view of a read that began after this call; None where that failed (see ``failure``)."""
        called = self._begun
        async with self._lock:
            # Many connections that ask at once share the first read that began after they asked.
            if self._ended <= called:
                await self._read()
            return None if self.failure else self.view

    async def _read(self) -> None:
        self._begun += 1
        began = self._clock()
        try:
            lease = await asyncio.get_running_loop().run_in_executor(self._thread, self._reader.read)
        except Exception as error:  # noqa: BLE001  whatever it is, without a view nothing passes
            if not self.failure:
                LOG.warning("the lease cannot be read: %s", error)
            self.failure = str(error)
            self._ended = self._begun
            return
        self._ended = self._begun
        renewed_by, older_until, last = began, float("-inf"), self.view
        if last is not None:
            older_until = last.older_until if last.lease.epoch == lease.epoch else last.began
            if (last.lease.epoch, last.lease.renewals) == (lease.epoch, lease.renewals):
                renewed_by = last.renewed_by
        if last is None or last.lease.holder != lease.holder or self.failure:
            LOG.info("%s", lease.holder)
        self.failure = ""
        self.view = View(lease, began, renewed_by, older_until)

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class MongoLease:
    """The lease in MongoDB."""

    def __init__(self, settings: MongoSettings, placement: str) -> None:
        self._settings = settings
        # The server's own clock, in the same read: no host's clock takes part.
        remaining = {"$subtract": ["$expires_at", "$$NOW"]}
        self._pipeline = [
            {"$match": {"_id": placement}},
            {"$project": {**dict.fromkeys(FIELDS, 1), "remaining_ms": remaining}},
        ]
        self._client = self._connect()

    def _connect(self) -> Any:
        """Return a client. It connects at its first use."""
        settings = self._settings
        return pymongo.MongoClient(
            list(settings.hosts),
            replicaSet=settings.replica_set,
            username=settings.username,
            password=settings.password(),
            authSource="admin",
            **({"tls": True, "tlsCAFile": settings.tls_ca} if settings.tls_ca else {}),
            appname="pst-gate",
            maxPoolSize=2,
            serverSelectionTimeoutMS=READ_MS,
            connectTimeoutMS=READ_MS,
            socketTimeoutMS=READ_MS + 1000,
        )

    def read(self) -> Lease:
        """Return the lease; no document is a lease that nobody ever held."""
        database = self._client.get_database(self._settings.database, read_concern=ReadConcern("linearizable"))
        try:
            found = next(iter(database["leases"].aggregate(self._pipeline, maxTimeMS=READ_MS)), None)
        except ServerSelectionTimeoutError as error:
            # A set that was made anew after a disaster elects with lower terms than the lost one: a client that
            # remembers those takes its primary for an old one, for ever. A deposed primary is still not believed: the
            # read is linearizable.
            self._client.close()
            self._client = self._connect()
            raise LeaseReadError(str(error)) from None
        except PyMongoError as error:
            raise LeaseReadError(str(error)) from None
        return NO_LEASE if found is None else lease_of(found)


def lease_of(document: Mapping[str, Any]) -> Lease:
    """Read the document, or raise LeaseReadError."""
    try:
        holder = document["holder"] or {}
        return Lease(
            epoch=int(document["epoch"]),
            renewals=int(document["renewals"]),
            remaining_s=float(document["remaining_ms"]) / 1000 if holder else 0.0,
            ttl_s=float(document["ttl_ms"]) / 1000,
            host=str(holder["host"]) if holder else None,
            colour=str(holder["colour"]) if holder else "",
            revoked=document.get("revoked") is not None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LeaseReadError(f"the document of the lease is not one: {error!r}") from None
