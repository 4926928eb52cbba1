"""The agent's client of MongoDB, against members of this process that speak the protocol and check the login."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import bson
import pytest
from pst_agent import mongo
from pst_agent.mongo import Login, Mongo, MongoError
from servers import localhost_pair, serving

Document = dict[str, Any]
PASSWORD = "correct horse"
SALT, ROUNDS = b"0123456789abcdef", 4096


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no member that hangs."""
    monkeypatch.setattr(mongo, "CONNECT_TIMEOUT_S", 10)
    monkeypatch.setattr(mongo, "COMMAND_TIMEOUT_S", 15)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return localhost_pair(tmp_path_factory.mktemp("tls"))


def keyed(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


class Member:
    """A mongod: `answer` is asked for what is no login; None is never answered, an exception closes the connection."""

    def __init__(self, answer: Callable[[Document], Document | None] = lambda _: {"ok": 1}, **hello: Any) -> None:
        self.answer = answer
        self.hello = {"ok": 1, "setName": "rs", "isWritablePrimary": True} | hello
        self.commands: list[Document] = []
        self.knows = PASSWORD
        self.foreign = 0
        self.connections = self.port = 0

    @asynccontextmanager
    async def listening(self, pair: Path) -> AsyncIterator[Member]:
        async with serving(self._serve, pair=pair) as self.port:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        state: Document = {}
        while True:
            length, number, _, kind = struct.unpack("<iiii", await reader.readexactly(16))
            assert kind == 2013
            command = bson.decode((await reader.readexactly(length - 16))[5:])
            answered = self._answer(command, state)
            if answered is not None:
                body = bytes(5) + bson.encode(answered)
                writer.write(struct.pack("<iiii", 16 + len(body), 1, number + self.foreign, 2013) + body)

    def _answer(self, command: Document, state: Document) -> Document | None:
        if "hello" in command:
            return self.hello
        if "saslStart" in command:
            first = command["payload"].decode().removeprefix("n,,")
            state["told"] = (
                f"{first.split('r=')[1].join(['r=', 'server'])},s={base64.b64encode(SALT).decode()},i={ROUNDS}"
            )
            state["first"] = first
            return {"ok": 1, "conversationId": 1, "done": False, "payload": state["told"].encode()}
        if "saslContinue" in command:
            return self._proven(command["payload"].decode(), state)
        self.commands.append(command)
        return self.answer(command)

    def _proven(self, final: str, state: Document) -> Document:
        bare, _, proof = final.partition(",p=")
        salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), SALT, ROUNDS)
        signed = f"{state['first']},{state['told']},{bare}".encode()
        stored = hashlib.sha256(keyed(salted, b"Client Key")).digest()
        key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), keyed(stored, signed), strict=True))
        if hashlib.sha256(key).digest() != stored:
            return {"ok": 0, "codeName": "AuthenticationFailed", "errmsg": "Authentication failed."}
        own = hashlib.pbkdf2_hmac("sha256", self.knows.encode(), SALT, ROUNDS)
        signature = base64.b64encode(keyed(keyed(own, b"Server Key"), signed))
        return {"ok": 1, "conversationId": 1, "done": True, "payload": b"v=" + signature}


def client(pair: Path, *members: Member | int, password: str = PASSWORD) -> Mongo:
    hosts = [f"localhost:{member if isinstance(member, int) else member.port}" for member in members]
    return Mongo(hosts, "rs", Login("app", password), ssl.create_default_context(cafile=pair), "pst-agent/app1/blue")


def run(tls: Path, scenario: Callable[..., Awaitable[None]], *members: Member) -> None:
    async def with_members() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            for member in members:
                await stack.enter_async_context(member.listening(tls))
            await scenario()

    asyncio.run(with_members())


def found(*documents: Document) -> Callable[[Document], Document]:
    return lambda _: {"ok": 1, "n": len(documents), "cursor": {"id": 0, "firstBatch": list(documents)}}


def test_the_questions_are_asked_of_the_majority_on_one_connection(tls: Path) -> None:
    member = Member(found({"order_id": 1}))

    async def scenario() -> None:
        asked = client(tls, member)
        assert await asked.find("production", "stack", {"active": True}, 5, {"order_id": 1}) == [{"order_id": 1}]
        assert await asked.aggregate("pst", "leases", [{"$sort": {"_id": 1}}]) == [{"order_id": 1}]
        assert await asked.count("production", "stack", {}) == 1
        await asked.upsert("production", "heartbeats", "app1/blue", {"$currentDate": {"at": True}})
        asked.close()

    run(tls, scenario, member)
    assert member.connections == 1
    find, aggregate, count, update = member.commands
    assert (find["find"], find["limit"], find["singleBatch"], find["projection"]) == ("stack", 5, True, {"_id": 0})
    assert [command["$db"] for command in member.commands] == ["production", "pst", "production", "production"]
    assert all(command["readConcern"] == {"level": "majority"} for command in (find, aggregate, count))
    assert update["writeConcern"]["w"] == "majority"
    assert update["updates"] == [{"q": {"_id": "app1/blue"}, "u": {"$currentDate": {"at": True}}, "upsert": True}]


def test_a_wrong_password_is_refused_and_not_told(tls: Path) -> None:
    member = Member()

    async def scenario() -> None:
        with pytest.raises(MongoError, match="AuthenticationFailed") as caught:
            await client(tls, member, password="hidden").count("d", "c", {})
        assert "hidden" not in str(caught.value)

    run(tls, scenario, member)
    assert member.commands == []


def test_a_server_that_does_not_know_the_password_is_not_believed(tls: Path) -> None:
    member = Member()
    member.knows = "something else"

    async def scenario() -> None:
        with pytest.raises(MongoError, match="the server does not know the password itself"):
            await client(tls, member).count("d", "c", {})

    run(tls, scenario, member)
    assert member.commands == []


def test_a_password_beyond_ascii_is_told_before_it_is_sent(tls: Path) -> None:
    member = Member()

    async def scenario() -> None:
        with pytest.raises(MongoError, match="wanted: ASCII"):
            await client(tls, member, password="pässword").count("d", "c", {})

    run(tls, scenario, member)


def test_the_primary_is_found_among_members_that_are_away_hang_or_follow(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo, "CONNECT_TIMEOUT_S", 3)
    secondary, foreign, primary = Member(isWritablePrimary=False), Member(setName="other"), Member(found())
    hangs = Member()
    hangs.hello = None  # type: ignore[assignment]

    async def scenario() -> None:
        asked = client(tls, 1, hangs, secondary, foreign, primary)
        assert await asked.count("d", "c", {}) == 0
        asked.close()
        assert await asked.count("d", "c", {}) == 0  # the last primary is asked first
        asked.close()

    run(tls, scenario, hangs, secondary, foreign, primary)
    assert [member.connections for member in (hangs, secondary, foreign, primary)] == [1, 1, 1, 2]


def test_no_primary_is_told_for_each_member(tls: Path) -> None:
    secondary = Member(isWritablePrimary=False)

    async def scenario() -> None:
        with pytest.raises(MongoError, match=r"no primary: .*ConnectionRefusedError.*; .*not the primary of rs"):
            await client(tls, 1, secondary).count("d", "c", {})

    run(tls, scenario, secondary)


def test_a_demoted_primary_is_left_for_the_new_one(tls: Path) -> None:
    demoted = {"ok": 0, "codeName": "NotWritablePrimary", "errmsg": "not primary"}
    said = iter([{"ok": 1, "n": 1}, demoted])
    old, new = Member(lambda _: next(said)), Member(lambda _: {"ok": 1, "n": 2})

    async def scenario() -> None:
        asked = client(tls, old, new)
        assert await asked.count("d", "c", {}) == 1
        with pytest.raises(MongoError, match="count: NotWritablePrimary not primary"):
            await asked.count("d", "c", {})
        old.hello["isWritablePrimary"] = False
        assert await asked.count("d", "c", {}) == 2
        asked.close()

    run(tls, scenario, old, new)


def test_a_connection_that_was_lost_is_replaced_and_asked_again_once(tls: Path) -> None:
    lost = iter([False, True, False, True, True])

    def answer(_: Document) -> Document:
        if next(lost):
            raise EOFError
        return {"ok": 1, "n": 1}

    member = Member(answer)

    async def scenario() -> None:
        asked = client(tls, member)
        assert await asked.count("d", "c", {}) == 1
        assert await asked.count("d", "c", {}) == 1
        with pytest.raises(MongoError, match="count: the server closed the connection"):
            await asked.count("d", "c", {})

    run(tls, scenario, member)
    assert member.connections == 3


def test_an_answer_that_came_too_late_is_not_taken_for_the_next_one(tls: Path) -> None:
    said = iter([None, {"ok": 1, "n": 2}])
    was_asked = asyncio.Event()

    def answer(_: Document) -> Document | None:
        was_asked.set()
        return next(said)

    member = Member(answer)

    async def scenario() -> None:
        asked = client(tls, member)
        first = asyncio.create_task(asked.count("d", "c", {}))
        await was_asked.wait()
        first.cancel()  # what a time-out does
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await asked.count("d", "c", {}) == 2
        asked.close()

    run(tls, scenario, member)
    assert member.connections == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"ok": 1, "writeErrors": [{"errmsg": "duplicate"}]}, "update:  duplicate"),
        ({"ok": 1, "writeConcernError": {"codeName": "WriteConcernFailed", "errmsg": "waiting"}}, "WriteConcernFailed"),
        ({"ok": 0, "codeName": "Unauthorized", "errmsg": "not authorized on d"}, "update: Unauthorized not authorized"),
    ],
)
def test_a_write_counts_only_when_the_majority_has_it(tls: Path, answer: Document, said: str) -> None:
    member = Member(lambda _: answer)

    async def scenario() -> None:
        with pytest.raises(MongoError, match=said):
            await client(tls, member).upsert("d", "c", "k", {"$set": {"a": 1}})

    run(tls, scenario, member)


def test_an_answer_to_another_message_is_refused(tls: Path) -> None:
    member = Member()
    member.foreign = 7

    async def scenario() -> None:
        with pytest.raises(MongoError, match="to message 8, wanted: 2013 to 1"):
            await client(tls, member).count("d", "c", {})

    run(tls, scenario, member)


DEMOTED = {"ok": 0, "codeName": "NotWritablePrimary", "errmsg": "not primary", "errorLabels": ["RetryableWriteError"]}


def test_an_insert_is_sent_again_as_the_same_write_through_an_election(tls: Path) -> None:
    """The primary steps down under it, for a while there is none, then another one is: the number stays the same."""
    old, new = Member(), Member(isWritablePrimary=False)

    def steps_down(_: Document) -> Document:
        old.hello["isWritablePrimary"] = False
        asyncio.get_running_loop().call_later(0.3, new.hello.update, {"isWritablePrimary": True})
        return DEMOTED

    old.answer = steps_down

    async def scenario() -> None:
        asked = client(tls, old, new)
        await asked.insert("d", "c", [{"key": "a"}, {"key": "b"}])
        await asked.insert("d", "c", [{"key": "e"}])
        asked.close()

    run(tls, scenario, old, new)
    [first] = old.commands
    again, second = new.commands
    assert again == first
    assert first["documents"] == [{"key": "a"}, {"key": "b"}]
    assert first["writeConcern"]["w"] == "majority"
    assert second["lsid"] == first["lsid"]
    assert second["txnNumber"] == first["txnNumber"] + 1


def test_an_insert_whose_connection_is_lost_is_sent_again_as_the_same_write(tls: Path) -> None:
    lost = iter([True, True, False])

    def answer(_: Document) -> Document:
        if next(lost):
            raise EOFError
        return {"ok": 1, "n": 1}

    member = Member(answer)

    async def scenario() -> None:
        asked = client(tls, member)
        await asked.insert("d", "c", [{"key": "a"}])
        asked.close()

    run(tls, scenario, member)
    assert [command["txnNumber"] for command in member.commands] == 3 * [member.commands[0]["txnNumber"]]


@pytest.mark.parametrize("answer", [{"ok": 0, "errmsg": "no"}, {"ok": 1, "writeErrors": [{"errmsg": "no"}]}])
def test_an_insert_that_is_refused_is_not_sent_again(tls: Path, answer: Document) -> None:
    member = Member(lambda _: answer)

    async def scenario() -> None:
        with pytest.raises(MongoError, match=r"insert: +no"):
            await client(tls, member).insert("d", "c", [{"key": "a"}])

    run(tls, scenario, member)
    assert len(member.commands) == 1


def test_an_insert_gives_up_when_there_is_no_primary(tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo, "COMMAND_TIMEOUT_S", 0.4)
    secondary = Member(isWritablePrimary=False)

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await client(tls, secondary).insert("d", "c", [{"key": "a"}])

    run(tls, scenario, secondary)
