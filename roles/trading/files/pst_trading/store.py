"""MongoDB behind small interfaces: leases, the daily runs, and which drains are under way. Database `pst`.

Every call ends within a few seconds, with an answer or a StoreError; after a StoreError it is not known what was done.
The driver retries nothing: the lease has rules of its own for a lost answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from . import lease
from .lease import Document, Request
from .settings import MongoSettings

SELECT_MS = 1000  # to find the primary
CONNECT_MS = 1000
SOCKET_MS = 2000
SERVER_MS = 1500  # so that the server gives up before the socket does


class StoreError(Exception):
    """MongoDB did not answer, or not in time. It may have done what was asked, or may yet do it."""


class LeaseStore(Protocol):
    def execute(self, request: Request) -> Document | None:
        """Do what a contender asks; None where the rule refuses it."""


class RunStore(Protocol):
    def claim(self, process: str, day: str, holder: Document, *, take_over: bool) -> Document:
        """Claim a run, or take over the one that an earlier holder left. Returns the run, whosever it is."""

    def finish(self, process: str, day: str, state: str, only_from: Sequence[str], **more: Any) -> bool: ...

    def of_day(self, process: str, day: str) -> Document | None: ...

    def unfinished(self, processes: Sequence[str]) -> list[Document]: ...


class DrainStore(Protocol):
    def begin(self, process: str, status: str, host: str) -> str:
        """Note the status that has to be put back; returns the one that was noted first."""

    def end(self, process: str) -> None: ...

    def under_way(self, processes: Sequence[str]) -> dict[str, str]: ...


def connect(settings: MongoSettings) -> Any:
    """Return a client. It connects at its first use."""
    import pymongo  # noqa: PLC0415  what only checks a file of settings does not need it

    return pymongo.MongoClient(
        list(settings.hosts),
        replicaSet=settings.replica_set,
        username=settings.username,
        password=settings.password(),
        authSource="admin",
        authMechanism="SCRAM-SHA-256",
        tls=True,
        tlsCAFile=settings.tls_ca,
        appname="pst-trading",
        **time_outs(),
    )


def time_outs() -> dict[str, Any]:
    """Return what keeps a call short."""
    return {
        "serverSelectionTimeoutMS": SELECT_MS,
        "connectTimeoutMS": CONNECT_MS,
        "socketTimeoutMS": SOCKET_MS,
        "waitQueueTimeoutMS": SOCKET_MS,
        "heartbeatFrequencyMS": 10000,  # a change of the primary is pushed; more often costs CPU for nothing
        "localThresholdMS": 0,
        "retryWrites": False,
        "retryReads": False,
        "maxPoolSize": 8,
    }


@contextmanager
def translated() -> Iterator[None]:
    """Raise what the driver raises as StoreError, but for the one error that is an answer: a key that is there."""
    from pymongo import errors  # noqa: PLC0415

    try:
        yield
    except errors.DuplicateKeyError:
        raise
    except errors.PyMongoError as error:
        raise StoreError(f"MongoDB: {type(error).__name__}: {error}") from error


def majority(database: Any) -> Any:
    """Return the database with writes that a majority has before they count, and reads of nothing else."""
    from pymongo import ReadPreference  # noqa: PLC0415
    from pymongo.read_concern import ReadConcern  # noqa: PLC0415
    from pymongo.write_concern import WriteConcern  # noqa: PLC0415

    return database.with_options(
        read_preference=ReadPreference.PRIMARY,
        read_concern=ReadConcern("majority"),
        write_concern=WriteConcern(w="majority", wtimeout=SERVER_MS),
    )


class MongoLeases:
    """The collection `leases`."""

    def __init__(self, database: Any) -> None:
        from pymongo.read_concern import ReadConcern  # noqa: PLC0415

        self._leases = majority(database)["leases"]
        self._linearizable = self._leases.with_options(read_concern=ReadConcern("linearizable"))

    def execute(self, request: Request) -> Document | None:
        """Do what a contender asks, in one atomic step."""
        if request.verb == "read":
            return self.read(request.placement)
        return self._change(*lease.operation(request))

    def read(self, placement: str) -> Document:
        """Return the lease as a majority has it now, with the server's time as `now`."""
        with translated():
            found = self._find({"_id": placement})
        if found:
            return found[0]
        self.create(placement)
        return self.read(placement)

    def all(self) -> list[Document]:
        """Return every lease, with the server's time."""
        with translated():
            return self._find({})

    def create(self, placement: str) -> None:
        """Make the document of a lease where there is none."""
        from pymongo.errors import DuplicateKeyError  # noqa: PLC0415

        with suppress(DuplicateKeyError), translated():  # another guard was faster
            self._leases.update_one({"_id": placement}, {"$setOnInsert": lease.unheld(placement)}, upsert=True)

    def _find(self, only: Document) -> list[Document]:
        stages = [{"$match": only}, {"$set": {"now": "$$NOW"}}, {"$sort": {"_id": 1}}]
        return list(self._linearizable.aggregate(stages, maxTimeMS=SERVER_MS))

    def _change(self, only_if: Document, change: list[Document]) -> Document | None:
        from pymongo import ReturnDocument  # noqa: PLC0415

        with translated():
            found: Document | None = self._leases.find_one_and_update(
                only_if, change, return_document=ReturnDocument.AFTER, maxTimeMS=SERVER_MS
            )
        return found

    # What people do: it works with every guard dead ----------------------------------------------------------------

    def revoke(self, placement: str, by: str, reason: str) -> Document | None:
        """Let nobody take or renew the lease. The first to revoke it stays on record."""
        self.create(placement)
        mark = {"by": {"$literal": by}, "reason": {"$literal": reason}, "at": "$$NOW"}
        return self._change({"_id": placement}, [{"$set": {"revoked": {"$ifNull": ["$revoked", mark]}}}])

    def reinstate(self, placement: str, by: str, reason: str) -> Document | None:
        """Undo `revoke`."""
        mark = {"by": {"$literal": by}, "reason": {"$literal": reason}, "at": "$$NOW", "revoked": "$revoked"}
        return self._change(
            {"_id": placement, "revoked": {"$ne": None}}, [{"$set": {"reinstated": mark, "revoked": None}}]
        )

    def move(self, placement: str, site: str, *, force: bool) -> Document | None:
        """Have the lease taken at a site from now on; None where somebody holds it, and it is not forced."""
        self.create(placement)
        only_if, change = lease.moved(site, force=force)
        return self._change({"_id": placement, **only_if}, change)

    def want(self, placement: str, host: str | None, colour: str = "") -> Document | None:
        """Let nobody but this one take the lease; None: anybody may. Who holds it already needs no reservation."""
        self.create(placement)
        wanted: Any = None
        if host is not None:
            holds = {"$eq": [["$holder.host", "$holder.colour"], [{"$literal": host}, {"$literal": colour}]]}
            wanted = {"$cond": [holds, None, {"$literal": {"host": host, "colour": colour}}]}
        return self._change({"_id": placement}, [{"$set": {"wanted": wanted}}])


class MongoRuns:
    """The collection `runs`: which daily process ran on which day, so that no two hosts run it twice."""

    def __init__(self, database: Any) -> None:
        self._runs = majority(database)["runs"]

    def claim(self, process: str, day: str, holder: Document, *, take_over: bool) -> Document:
        """Insert the claim; one that is there is taken over if its holder is of an earlier epoch and did not finish."""
        from pymongo import ReturnDocument  # noqa: PLC0415
        from pymongo.errors import DuplicateKeyError  # noqa: PLC0415

        key = {"process": process, "day": day}
        with translated():
            try:
                self._runs.insert_one({"_id": key, "state": "running", "attempt": 1, **holder})
            except DuplicateKeyError:
                left: list[Document] = [{"state": "again"}]  # by request of a person
                if take_over:
                    left += [{"state": "interrupted"}, {"state": "running", "epoch": {"$lt": holder["epoch"]}}]
                taken: Document | None = self._runs.find_one_and_update(
                    {"_id": key, "$or": left},
                    {"$set": {"state": "running", **holder}, "$inc": {"attempt": 1}},
                    return_document=ReturnDocument.AFTER,
                )
                if taken:
                    return taken
            found: Document = self._runs.find_one({"_id": key})
        return found

    def finish(self, process: str, day: str, state: str, only_from: Sequence[str], **more: Any) -> bool:
        """Move a run from one of the states to another."""
        key = {"process": process, "day": day}
        with translated():
            done = self._runs.update_one(
                {"_id": key, "state": {"$in": list(only_from)}},
                {"$set": {"state": state, **more}, "$currentDate": {"changed_at": True}},
            )
        return bool(done.matched_count)

    def of_day(self, process: str, day: str) -> Document | None:
        with translated():
            found: Document | None = self._runs.find_one({"_id": {"process": process, "day": day}})
        return found

    def unfinished(self, processes: Sequence[str]) -> list[Document]:
        with translated():
            return list(self._runs.find({"_id.process": {"$in": list(processes)}, "state": "running"}))


class MongoDrains:
    """The collection `drains`: processes whose status a drain has changed, so that it is put back if the drain dies."""

    def __init__(self, database: Any) -> None:
        self._drains = majority(database)["drains"]

    def begin(self, process: str, status: str, host: str) -> str:
        from pymongo import ReturnDocument  # noqa: PLC0415

        with translated():
            found: Document = self._drains.find_one_and_update(
                {"_id": process},
                {"$setOnInsert": {"status": status, "host": host}, "$currentDate": {"at": True}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        return str(found["status"])

    def end(self, process: str) -> None:
        with translated():
            self._drains.delete_one({"_id": process})

    def under_way(self, processes: Sequence[str]) -> dict[str, str]:
        with translated():
            return {d["_id"]: d["status"] for d in self._drains.find({"_id": {"$in": list(processes)}})}
