"""What the probe of a planned operation has posted: every request that was carried out leaves one document.

The key has no unique index, on purpose: a request that was carried out twice must be seen as two documents.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

from pst_agent.config import Instance
from pst_agent.mongo import Document, Mongo

COLLECTION = "pst_probe"
RUN = re.compile(r"[0-9a-f]{12}")
KEY = re.compile(rf"({RUN.pattern})-[0-9]{{1,9}}")
DUPLICATES_SHOWN = 20
INDEXES: list[Document] = [
    {"key": {"at": 1}, "name": "expiry", "expireAfterSeconds": 24 * 3600},
    {"key": {"run": 1, "key": 1}, "name": "run"},
]


class Ledger:
    """The documents of all runs. It has a client of its own, so that a burst does not hold up the readiness checks."""

    def __init__(self, mongo: Mongo, database: str, instance: Instance) -> None:
        self._mongo, self._database = mongo, database
        self._where = {"host": instance.host, "colour": instance.colour}
        self._indexed = False
        self._waiting: list[tuple[Document, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def add(self, key: str) -> None:
        """Return when the majority has it. Raises MongoError or OSError where that is not known."""
        made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        document = {"key": key, "run": key.partition("-")[0], **self._where, "at": datetime.now(UTC)}
        self._waiting.append((document, made))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await made

    async def _write(self) -> None:
        """Write what waits. What comes during a write goes with the next one, so that a slow disk makes no queue."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            problem: Exception | None = None
            try:
                await self._insert([document for document, _ in batch])
            except Exception as error:  # noqa: BLE001 - it is told to each of those who wait
                problem = error
            for _, made in batch:
                if made.done():
                    continue  # the client has left
                if problem:
                    made.set_exception(problem)
                else:
                    made.set_result(None)
        self._writing = None

    async def _insert(self, documents: list[Document]) -> None:
        if not self._indexed:
            await self._mongo.create_indexes(self._database, COLLECTION, INDEXES)
            self._indexed = True
        await self._mongo.insert(self._database, COLLECTION, documents)

    async def count(self, run: str) -> dict[str, Any]:
        """Tell how many requests of a run were carried out, and which of them more than once."""
        totals = {"_id": None, "posts": {"$sum": "$times"}, "distinct": {"$sum": 1}}
        pipeline: list[Document] = [
            {"$match": {"run": run}},
            {"$group": {"_id": "$key", "times": {"$sum": 1}}},
            {
                "$facet": {
                    "totals": [{"$group": totals}],
                    "twice": [{"$match": {"times": {"$gt": 1}}}, {"$sort": {"_id": 1}}, {"$limit": DUPLICATES_SHOWN}],
                }
            },
        ]
        [found] = await self._mongo.aggregate(self._database, COLLECTION, pipeline)
        counted = found["totals"][0] if found["totals"] else {"posts": 0, "distinct": 0}
        duplicates = [item["_id"] for item in found["twice"]]
        return {"posts": counted["posts"], "distinct": counted["distinct"], "duplicates": duplicates}
