# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Revoke the leases of a site, and reinstate them: what the kill switch does, with no guard and no agent needed.

The leases themselves, and everything else that is done with them, are in roles/trading/files/pst_trading. Here is only
what has to work from any host that reaches MongoDB, members included; a unit test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils.mongodb import (
    Connect,
    Credentials,
    Document,
    MongoError,
    ReplicaSet,
    Server,
)

COLLECTION = "leases"
# A lease that nobody has held yet.
UNHELD: Document = {
    "epoch": 0,
    "renewals": 0,
    "ttl_ms": 0,
    **dict.fromkeys(("holder", "granted_at", "renewed_at", "expires_at", "ended", "wanted", "revoked", "site")),
}


@dataclass(frozen=True)
class Switch:
    """What is wanted of all the leases, by whom and why."""

    revoked: bool
    by: str
    reason: str

    def change(self) -> Document:
        """The update of one lease. Who revoked it first stays on record."""
        mark = {"by": {"$literal": self.by}, "reason": {"$literal": self.reason}, "at": "$$NOW"}
        if self.revoked:
            return {"revoked": {"$ifNull": ["$revoked", mark]}}
        return {"reinstated": {**mark, "revoked": "$revoked"}, "revoked": None}

    def to_change(self) -> Document:
        return {"revoked": None if self.revoked else {"$ne": None}}

    def done(self, leases: Iterable[Document]) -> bool:
        return all((lease.get("revoked") is not None) == self.revoked for lease in leases)


class Leases:
    """The leases of a site, asked of the primary of its replica set."""

    def __init__(
        self, connect: Connect, hosts: Sequence[str], admin: Credentials, database: str, timeout: float
    ) -> None:
        self.replica_set = ReplicaSet(connect, timeout=timeout)
        self.hosts = hosts
        self.admin = admin
        self.database = database
        self.wait_ms = int(timeout * 1000)

    def switch(self, wanted: Switch, placements: Sequence[str], *, check: bool = False) -> tuple[list[Document], bool]:
        """Bring all leases there are, and those named, to what is wanted. Returns them as a majority has them."""
        server = self.replica_set.connect(self.replica_set.find_primary(self.hosts), self.admin)
        try:
            before = self._read(server)
            missing = set(placements) - {lease["_id"] for lease in before}
            changed = not wanted.done(before) or (wanted.revoked and bool(missing))
            if check:
                return before, changed
            if wanted.revoked and missing:
                upserts = ({"q": {"_id": name}, "u": {"$setOnInsert": UNHELD}, "upsert": True} for name in missing)
                self._write(server, upserts)
            # Also where nothing seems left to do: the majority has to say so.
            self._write(server, [{"q": wanted.to_change(), "u": [{"$set": wanted.change()}], "multi": True}])
            after = self._read(server)
        finally:
            server.close()
        if not wanted.done(after):
            seen = ", ".join(f"{lease['_id']}: {lease.get('revoked')}" for lease in after)
            raise MongoError(f"revoked is {seen}; wanted {'set' if wanted.revoked else 'empty'} for all")
        return after, changed

    def _write(self, server: Server, updates: Iterable[Document]) -> None:
        concern = {"w": "majority", "wtimeout": self.wait_ms}
        answer = server.command(
            {"update": COLLECTION, "updates": list(updates), "writeConcern": concern}, self.database
        )
        for problem in (*answer.get("writeErrors", ()), *filter(None, [answer.get("writeConcernError")])):
            raise MongoError(f"the majority has not confirmed it: {problem.get('errmsg', problem)}")

    def _read(self, server: Server) -> list[Document]:
        answer = server.command(
            {
                "find": COLLECTION,
                "filter": {},
                "sort": {"_id": 1},
                "readConcern": {"level": "majority"},
                "maxTimeMS": self.wait_ms,
            },
            self.database,
        )
        leases: list[Document] = answer["cursor"]["firstBatch"]
        return leases


def shown(lease: Document) -> dict[str, Any]:
    """A lease in plain words."""
    holder, revoked = lease.get("holder"), lease.get("revoked")
    return {
        "placement": lease["_id"],
        "holder": f"{holder['host']}/{holder['colour']}" if holder else "",
        "epoch": lease["epoch"],
        "revoked": f"by {revoked['by']}: {revoked['reason']}" if revoked else "",
    }
