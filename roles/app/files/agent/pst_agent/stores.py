"""MongoDB, Redis and the gateway as the agent asks them: each has a probe that proves that it works now."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from datetime import datetime
from typing import Any

import hiredis

from pst_agent.config import Config, Secrets
from pst_agent.mongo import Mongo


class MongoProbe:
    """Proof that a write is taken by a majority; each instance has one document of its own."""

    def __init__(self, mongo: Mongo, database: str, instance: str) -> None:
        self._mongo, self._database, self._instance = mongo, database, instance

    async def __call__(self) -> None:
        await self._mongo.upsert(self._database, "heartbeats", self._instance, {"$currentDate": {"at": True}})


class RedisError(Exception):
    """Redis answered with an error, or nobody knows the master."""


class RedisConnection:
    """One connection: TLS, login, one command at a time. The protocol is hiredis's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._parser = reader, writer, hiredis.Reader(encoding="utf-8")

    @classmethod
    async def open(cls, address: tuple[str, int], tls: ssl.SSLContext, username: str, password: str) -> RedisConnection:
        connection = cls(*await asyncio.open_connection(*address, ssl=tls))
        try:
            await connection.command("AUTH", username, password)
        except BaseException:
            connection.close()
            raise
        return connection

    async def command(self, *words: str) -> Any:
        self._writer.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub knows one word
        await self._writer.drain()
        while (answer := self._parser.gets()) is False:
            data = await self._reader.read(4096)
            if not data:
                raise ConnectionResetError("Redis closed the connection")
            self._parser.feed(data)
        if isinstance(answer, hiredis.ReplyError):
            raise RedisError(f"{words[0]}: {answer}")
        return answer

    def close(self) -> None:
        self._writer.transport.abort()


class RedisProbe:
    """Proof that the master that the Sentinels name takes a write.

    A connection that failed is not used again: it may lead to a master that was demoted or cut off.
    """

    SENTINEL_TIMEOUT_S = 0.5

    def __init__(self, config: Config, secrets: Secrets, tls: ssl.SSLContext) -> None:
        self._sentinels = [
            (host, int(port)) for host, port in (entry.rsplit(":", 1) for entry in config.redis.sentinels)
        ]
        self._master, self._login = config.redis.master, (config.redis.username, secrets.redis_password)
        self._key = f"app:heartbeat:{config.instance.host}/{config.instance.colour}"
        self._tls = tls
        self._connection: RedisConnection | None = None

    async def __call__(self) -> None:
        try:
            if self._connection is None:
                self._connection = await RedisConnection.open(await self._find_master(), self._tls, *self._login)
            await self._connection.command("SET", self._key, datetime.now().astimezone().isoformat(), "EX", "60")
        except BaseException:  # a time-out's cancellation too: its answer would be taken for the next command's
            self.close()
            raise

    async def _find_master(self) -> tuple[str, int]:
        failures = []
        for address in self._sentinels:
            try:
                async with asyncio.timeout(self.SENTINEL_TIMEOUT_S):
                    sentinel = await RedisConnection.open(address, self._tls, *self._login)
                    with contextlib.closing(sentinel):
                        found = await sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master)
            except (OSError, RedisError) as error:  # TimeoutError is an OSError
                failures.append(f"{address[0]}: {type(error).__name__} {error}".strip())
                continue
            if found:
                return found[0], int(found[1])
            failures.append(f"{address[0]}: knows no master {self._master!r}")
        raise RedisError(f"no Sentinel names the master: {'; '.join(failures)}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class GatewayProbe:
    """The broker's program answers the handshake of its API. It uses up no client id, and sends nothing else."""

    GREETING = b"v100..176"

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._address = (host, int(port))

    async def __call__(self) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(b"API\0" + struct.pack(">I", len(self.GREETING)) + self.GREETING)
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            if not 0 < length <= 1024:
                raise ConnectionError(f"the gateway announces {length} bytes, wanted: its version")
            version = (await reader.readexactly(length)).split(b"\0")[0]
            if not version.isdigit():
                raise ConnectionError(f"the gateway answers {version[:40]!r}, wanted: its version")
        finally:
            writer.transport.abort()
