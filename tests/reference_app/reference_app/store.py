"""Notes: written to MongoDB by a majority, then cached in Redis.

MongoDB decides; Redis may be away. A note is immutable, so a cached one is never wrong.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

import msgspec
from pymongo import AsyncMongoClient, ReadPreference, ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from reference_app.config import Config, Secrets

log = logging.getLogger(__name__)
CACHE_SECONDS = 3600
CACHE_TIMEOUT_S = 0.5

Document = dict[str, Any]


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    text: str


def connect_mongodb(config: Config, secrets: Secrets) -> AsyncMongoClient[Document]:
    """Time-outs measured for failover: a small socketTimeout loses writes that a slow election would have saved."""
    return AsyncMongoClient(
        host=config.mongodb.hosts,
        replicaSet=config.mongodb.replica_set,
        username=config.mongodb.username,
        password=secrets.mongodb_password,
        authSource="admin",
        tls=True,
        tlsCAFile=config.tls.ca,
        appname=f"pst-app/{config.instance.host}/{config.instance.colour}",
        heartbeatFrequencyMS=1000,
        connectTimeoutMS=1000,
        socketTimeoutMS=20000,
        serverSelectionTimeoutMS=30000,
        retryWrites=True,
        retryReads=True,
    )


def connect_redis(config: Config, secrets: Secrets) -> Redis:
    """A client that asks the Sentinels, as the same user, for the master on every new connection.

    No retries inside the client: with its default back-off a hung host holds requests for many seconds.
    """
    common: dict[str, Any] = {
        "username": config.redis.username,
        "password": secrets.redis_password,
        "ssl": True,
        "ssl_ca_certs": config.tls.ca,
        "socket_connect_timeout": 0.5,
        "retry": Retry(NoBackoff(), 0),
    }
    addresses = [(host, int(port)) for host, port in (entry.rsplit(":", 1) for entry in config.redis.sentinels)]
    sentinel = Sentinel(addresses, sentinel_kwargs={**common, "socket_timeout": 0.5}, **common, socket_timeout=1)
    return cast(Redis, sentinel.master_for(config.redis.master))


def majority_database(client: AsyncMongoClient[Document], name: str) -> AsyncDatabase[Document]:
    return client.get_database(
        name,
        read_preference=ReadPreference.PRIMARY,
        read_concern=ReadConcern("majority"),
        write_concern=WriteConcern("majority", wtimeout=20000),
    )


class Probes:
    """Proofs that both stores take a write now; each instance has one document and one key of its own."""

    def __init__(self, database: AsyncDatabase[Document], redis: Redis, instance: str) -> None:
        self._heartbeats, self._redis, self._instance = database["heartbeats"], redis, instance

    async def mongodb(self) -> None:
        await self._heartbeats.update_one({"_id": self._instance}, {"$currentDate": {"at": True}}, upsert=True)

    async def redis(self) -> None:
        try:
            await self._redis.set(f"app:heartbeat:{self._instance}", datetime.now().astimezone().isoformat(), ex=60)
        except (RedisError, OSError):
            # Ask the Sentinels again: this connection may lead to a master that was demoted or cut off.
            await self._redis.connection_pool.disconnect()
            raise


class Notes:
    def __init__(self, database: AsyncDatabase[Document], cache: Redis, cache_up: Callable[[], bool]) -> None:
        self._notes, self._cache, self._cache_up = database["notes"], cache, cache_up

    async def put(self, note: Note) -> tuple[Note, bool]:
        """Store the note unless its key is known; return what is stored, and whether this call created it.

        One operation: an upsert that changes nothing still waits for the majority, so a repeated request is
        acknowledged only when the first one's write is safe.
        """
        token = uuid.uuid4().hex
        stored = await self._notes.find_one_and_update(
            {"_id": note.key},
            {"$setOnInsert": {"text": note.text, "token": token}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        assert stored is not None  # an upsert returns what it made
        kept = Note(stored["_id"], stored["text"])
        await self._remember(kept)
        return kept, stored["token"] == token

    async def get(self, key: str) -> tuple[Note | None, bool]:
        """Return the note and whether it came from the cache."""
        if cached := await self._recall(key):
            return cached, True
        stored = await self._notes.find_one({"_id": key})
        if stored is None:
            return None, False
        note = Note(stored["_id"], stored["text"])
        await self._remember(note)
        return note, False

    async def _remember(self, note: Note) -> None:
        if not self._cache_up():
            return
        try:
            async with asyncio.timeout(CACHE_TIMEOUT_S):
                await self._cache.set(f"app:note:{note.key}", msgspec.json.encode(note), ex=CACHE_SECONDS)
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            log.warning("cache write failed", extra={"error": str(error)})

    async def _recall(self, key: str) -> Note | None:
        if not self._cache_up():
            return None
        try:
            async with asyncio.timeout(CACHE_TIMEOUT_S):
                raw = await self._cache.get(f"app:note:{key}")
            return msgspec.json.decode(raw, type=Note) if raw else None
        except (RedisError, OSError, msgspec.MsgspecError) as error:
            log.warning("cache read failed", extra={"error": str(error)})
            return None
