"""MongoDB, as much as the agent needs: one connection to the primary, one command at a time.

The official driver would take 10 MiB of the 60 that agent and guard may have together on every node, and watch each
member of the replica set all day. The agent asks some small questions that can be asked again, and makes inserts that
the server knows again (`Mongo.insert`): its own client is this page. Documents are encoded by `bson`, the driver's own
package. Orders and leases are never written from here.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import secrets
import ssl
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bson
from bson.binary import UUID_SUBTYPE, Binary
from bson.int64 import Int64

Document = dict[str, Any]

OP_MSG = 2013
HEADER = struct.Struct("<iiii")  # length, request, answer to, kind
LARGEST = 48 * 1000 * 1000  # bytes; the server's own limit of a message
CONNECT_TIMEOUT_S = 0.7  # a member that hangs must leave time to ask the others
COMMAND_TIMEOUT_S = 5.0
RETRY_PAUSE_S = 0.1
MAJORITY_READ = {"readConcern": {"level": "majority"}, "maxTimeMS": 2000}
MAJORITY_WRITE = {"writeConcern": {"w": "majority", "wtimeout": 5000}, "maxTimeMS": 5000}


class MongoError(Exception):
    """The server refused, or no server could be asked."""


class RetryableError(MongoError):
    """A change of the primary, or a connection that was lost: a write that the server knows again may be sent again."""


@dataclass(frozen=True)
class Login:
    username: str
    password: str


class Connection:
    """One connection to one member: messages of the kind OP_MSG, and the login."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._numbers = reader, writer, itertools.count(1)

    async def command(self, database: str, body: Mapping[str, Any]) -> Document:
        number = next(self._numbers)
        # Four bytes of flags and the kind of the section (0: one document) go before the document.
        content = bytes(5) + bson.encode({**body, "$db": database})
        self._writer.write(HEADER.pack(HEADER.size + len(content), number, 0, OP_MSG) + content)
        await self._writer.drain()
        length, _, answer_to, kind = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        if answer_to != number or kind != OP_MSG or not HEADER.size + 5 < length <= LARGEST:
            raise MongoError(f"an answer of kind {kind} to message {answer_to}, wanted: {OP_MSG} to {number}")
        answer: Document = bson.decode((await self._reader.readexactly(length - HEADER.size))[5:])
        problems = [answer] if answer.get("ok") != 1 else answer.get("writeErrors", [])
        problems += [answer["writeConcernError"]] if "writeConcernError" in answer else []
        if problems:
            kind = RetryableError if "RetryableWriteError" in answer.get("errorLabels", []) else MongoError
            raise kind(f"{next(iter(body))}: {problems[0].get('codeName', '')} {problems[0].get('errmsg', '')}")
        return answer

    async def log_in(self, login: Login) -> None:
        """SCRAM-SHA-256 (RFC 7677): each side proves that it knows the password, which is not sent."""
        if not login.password.isascii():
            raise MongoError(f"the password of {login.username!r} has characters beyond ASCII, wanted: ASCII")
        nonce = base64.b64encode(secrets.token_bytes(24)).decode()
        name = login.username.replace("=", "=3D").replace(",", "=2C")
        first = f"n={name},r={nonce}"
        start = {"saslStart": 1, "mechanism": "SCRAM-SHA-256", "options": {"skipEmptyExchange": True}}
        challenge = await self.command("admin", start | {"payload": f"n,,{first}".encode()})
        told = challenge["payload"].decode()
        fields = dict(part.split("=", 1) for part in told.split(","))
        if not fields["r"].startswith(nonce) or int(fields["i"]) < 4096:
            raise MongoError("login: not an answer to this login")
        bare = f"c=biws,r={fields['r']}"
        signed = f"{first},{told},{bare}".encode()
        salt, rounds = base64.b64decode(fields["s"]), int(fields["i"])
        # Out of the loop: it takes long on purpose.
        salted = await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", login.password.encode(), salt, rounds)
        client_key = digest(salted, b"Client Key")
        signature = digest(hashlib.sha256(client_key).digest(), signed)
        proof = bytes(left ^ right for left, right in zip(client_key, signature, strict=True))
        final = f"{bare},p={base64.b64encode(proof).decode()}".encode()
        step = {"saslContinue": 1, "conversationId": challenge["conversationId"], "payload": final}
        done = await self.command("admin", step)
        wanted = base64.b64encode(digest(digest(salted, b"Server Key"), signed))
        if not done["done"] or not hmac.compare_digest(done["payload"], b"v=" + wanted):
            raise MongoError("login: the server does not know the password itself")

    def close(self) -> None:
        self._writer.transport.abort()


def digest(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


class Mongo:
    """The primary of a replica set, found anew whenever its connection fails."""

    def __init__(self, hosts: Sequence[str], replica_set: str, login: Login, tls: ssl.SSLContext, name: str) -> None:
        self._hosts, self._replica_set, self._login, self._tls = list(hosts), replica_set, login, tls
        self._hello = {"hello": 1, "client": {"application": {"name": name}, "driver": {"name": name, "version": "1"},
                       "os": {"type": "Linux"}}}  # fmt: skip
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._session = {"id": Binary(uuid.uuid4().bytes, UUID_SUBTYPE)}
        self._writes, self._insert_lock = itertools.count(1), asyncio.Lock()

    async def find(self, database: str, collection: str, query: Document, limit: int, sort: Document) -> list[Document]:
        """Return the first documents, without their `_id`."""
        body = {"find": collection, "filter": query, "sort": sort, "projection": {"_id": 0}}
        return await self._first_batch(database, body | {"limit": limit, "batchSize": limit, "singleBatch": True})

    async def aggregate(self, database: str, collection: str, pipeline: list[Document]) -> list[Document]:
        """Return the first thousand documents of a pipeline."""
        return await self._first_batch(
            database, {"aggregate": collection, "pipeline": pipeline, "cursor": {"batchSize": 1000}}
        )

    async def count(self, database: str, collection: str, query: Document) -> int:
        return int((await self._command(database, {"count": collection, "query": query} | MAJORITY_READ))["n"])

    async def upsert(self, database: str, collection: str, key: str, update: Document) -> None:
        """Acknowledged by the majority."""
        updates = [{"q": {"_id": key}, "u": update, "upsert": True}]
        await self._command(database, {"update": collection, "updates": updates} | MAJORITY_WRITE)

    async def insert(self, database: str, collection: str, documents: Sequence[Document]) -> None:
        """Acknowledged by the majority, and carried out once, however often it had to be sent.

        It is what the drivers call a retryable write: session and number go with it, every primary keeps those that it
        has carried out and hands them on with its data, and so a write that is sent again is answered, not repeated.
        """
        async with self._insert_lock:  # in one session the numbers have to come in their order
            numbered = {"lsid": self._session, "txnNumber": Int64(next(self._writes))}
            await self._retried(
                database, {"insert": collection, "documents": list(documents)} | numbered | MAJORITY_WRITE
            )

    async def create_indexes(self, database: str, collection: str, indexes: Sequence[Document]) -> None:
        """Make those that are not there yet."""
        await self._retried(database, {"createIndexes": collection, "indexes": list(indexes)} | MAJORITY_WRITE)

    async def _retried(self, database: str, body: Document) -> None:
        """Send it until it is answered, through an election; at most COMMAND_TIMEOUT_S."""
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            while True:
                try:
                    await self._command(database, body)
                except (RetryableError, OSError) as error:
                    if isinstance(error, TimeoutError):
                        raise
                else:
                    return
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _first_batch(self, database: str, body: Document) -> list[Document]:
        batch: list[Document] = (await self._command(database, body | MAJORITY_READ))["cursor"]["firstBatch"]
        return batch

    async def _command(self, database: str, body: Document) -> Document:
        async with self._lock, asyncio.timeout(COMMAND_TIMEOUT_S):
            if self._connection is not None:
                try:
                    return await self._once(self._connection, database, body)
                except (OSError, EOFError):
                    pass  # it was lost since it was last used; all that is asked may be asked again
            self._connection = await self._find_primary()
            try:
                return await self._once(self._connection, database, body)
            except EOFError as error:
                raise RetryableError(f"{next(iter(body))}: the server closed the connection") from error

    async def _once(self, connection: Connection, database: str, body: Document) -> Document:
        try:
            return await connection.command(database, body)
        except BaseException:  # a demoted primary, and a cancellation, whose answer would be taken for the next one's
            self.close()
            raise

    async def _find_primary(self) -> Connection:
        """Ask the members one after another, the last primary first."""
        failures = []
        for host in list(self._hosts):
            try:
                connection = await self._connect(host)
            except (OSError, EOFError, MongoError) as error:  # TimeoutError is an OSError
                failures.append(f"{host}: {type(error).__name__} {error}".strip())
                self._hosts.append(self._hosts.pop(0))
                continue
            return connection
        raise RetryableError(f"no primary: {'; '.join(failures)}")

    async def _connect(self, host: str) -> Connection:
        name, port = host.rsplit(":", 1)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = Connection(*await asyncio.open_connection(name, int(port), ssl=self._tls))
        try:
            await self._greet(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _greet(self, connection: Connection) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            hello = await connection.command("admin", self._hello)
        if hello.get("setName") != self._replica_set or not hello.get("isWritablePrimary"):
            raise MongoError(f"not the primary of {self._replica_set}")
        await connection.log_in(self._login)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
