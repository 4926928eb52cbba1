"""The way to the dashboard: every request as it came, at most once; every answer as given, or told as cut off."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pst_agent.proxy import Dashboard, Limits, ProxyError, TooLargeError, end_to_end
from pst_agent.server import dashboard_probe
from pst_agent.web import Release
from servers import Handler, free_port, serving

LIMITS = Limits(body=1000, timeout_s=2, refused_s=0.3)


class Upstream:
    """A dashboard that keeps what it was sent, byte by byte, and gives a prepared answer."""

    def __init__(self, answer: bytes, *, reads_body: bool = True) -> None:
        self.answer, self.reads_body = answer, reads_body
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.reads_body:
            self.bodies.append(await self.body(reader, head.lower()))
        writer.write(self.answer)

    @staticmethod
    async def body(reader: asyncio.StreamReader, head: bytes) -> bytes:
        if b"\r\ntransfer-encoding: chunked\r\n" in head:
            found = b""
            while size := int(await reader.readline(), 16):
                found += await reader.readexactly(size)
                await reader.readline()
            return found
        length = [line.split(b":")[1] for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        return await reader.readexactly(int(length[0])) if length else b""


def response(body: bytes = b"ok", *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Client:
    """The server's side of ASGI: what the client sends, and what became of it."""

    def __init__(self, *body: bytes, leaves: bool = False) -> None:
        self._body = list(body) or [b""]
        self._leaves = leaves
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self._body:
            block = self._body.pop(0)
            return {"type": "http.request", "body": block, "more_body": bool(self._body)}
        if not self._leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def content(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def complete(self) -> bool:
        return bool(self.sent) and self.sent[-1]["type"] == "http.response.body" and not self.sent[-1].get("more_body")


def scope(method: str = "GET", target: str = "/x", *headers: tuple[str, str]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    given = [("host", "trading.lab"), *headers]
    return {
        "type": "http",
        "method": method,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given],
    }


def passed(handler: Handler, client: Client, request: dict[str, Any], limits: Limits = LIMITS) -> None:
    """Pass one request to a server of this process."""

    async def scenario() -> None:
        async with serving(handler) as port, asyncio.timeout(10):
            await Dashboard(port, limits).handle(request, client.receive, client.send, b"id-1")

    asyncio.run(scenario())


def test_a_request_arrives_as_it_was_sent_and_the_answer_as_it_was_given() -> None:
    upstream = Upstream(response(b"page", "Content-Type: text/html", "Set-Cookie: a=1", "Set-Cookie: b=2"))
    client = Client()
    headers = (("x-forwarded-for", "10.0.0.9"), ("x-forwarded-proto", "https"), ("cookie", "c=1"))
    passed(upstream, client, scope("GET", "/a%2Fb/c?q=%20&q=2", *headers))
    lines = upstream.heads[0].decode().split("\r\n")
    assert lines[0] == "GET /a%2Fb/c?q=%20&q=2 HTTP/1.1"
    sent = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    assert sent == {
        "host": "trading.lab",
        "x-forwarded-for": "10.0.0.9",
        "x-forwarded-proto": "https",
        "cookie": "c=1",
        "x-request-id": "id-1",
        "connection": "close",
    }
    assert client.status == 200
    assert client.content == b"page"
    assert client.complete
    cookies = [value for name, value in client.sent[0]["headers"] if name == b"set-cookie"]
    assert cookies == [b"a=1", b"b=2"]


def test_what_holds_for_one_connection_only_is_not_passed() -> None:
    names = ("connection", "keep-alive", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade")
    given = [(name.encode(), b"x") for name in names] + [(b"Connection", b"close, X-Secret"), (b"x-secret", b"1")]
    assert end_to_end([*given, (b"Accept", b"*/*")]) == [(b"accept", b"*/*")]


@pytest.mark.parametrize(
    "framing", [("content-length", "11"), ("transfer-encoding", "chunked")], ids=["length", "chunked"]
)
def test_a_body_is_passed_in_its_blocks(framing: tuple[str, str]) -> None:
    upstream, client = Upstream(response()), Client(b"hello ", b"world")
    passed(upstream, client, scope("POST", "/x", framing, ("expect", "100-continue")))
    assert upstream.bodies == [b"hello world"]
    assert b"expect" not in upstream.heads[0].lower()
    assert client.status == 200


def test_an_answer_is_passed_while_it_comes() -> None:
    """Its begin arrives before its end exists."""
    seen = asyncio.Event()

    class Watching(Client):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body"):
                seen.set()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await seen.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    client = Watching()
    passed(slow, client, scope())
    assert client.content == b"firstlast"
    assert client.complete
    assert b"transfer-encoding" not in client.headers


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nServer: old\r\nDate: then\r\n\r\nuntil the end",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\nuntil the end",
    ],
)
def test_old_and_early_answers_are_understood(answer: bytes) -> None:
    client = Client()
    passed(Upstream(answer), client, scope())
    assert (client.status, client.content, client.complete) == (200, b"until the end", True)
    assert not {b"server", b"date"} & client.headers.keys()


def test_the_answer_to_head_has_a_length_and_no_body() -> None:
    client = Client()
    passed(Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 4711\r\n\r\n"), client, scope("HEAD"))
    assert (client.headers[b"content-length"], client.content, client.complete) == (b"4711", b"", True)


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (("content-length", "1001"), [b"x" * 1001]),
        (("transfer-encoding", "chunked"), [b"x" * 600, b"x" * 600]),
    ],
)
def test_a_body_that_is_too_large_is_refused(framing: tuple[str, str], body: list[bytes]) -> None:
    client = Client(*body)
    with pytest.raises(TooLargeError):
        passed(Upstream(response()), client, scope("POST", "/x", framing))
    assert client.sent == []


def test_an_answer_before_the_body_was_read_is_passed() -> None:
    """A server that refuses a body without reading it; the body is larger than any buffer between."""
    upstream = Upstream(response(b"no", status="403 Forbidden"), reads_body=False)
    client = Client(*[b"x" * 65536] * 64)
    size = ("content-length", str(64 * 65536))
    passed(upstream, client, scope("POST", "/x", size), Limits(body=8 << 20, timeout_s=5))
    assert (client.status, client.content) == (403, b"no")


def test_a_refused_connection_is_tried_again_and_sends_once() -> None:
    upstream, client = Upstream(response()), Client(b"order")

    async def scenario() -> None:
        port = await free_port()
        dashboard = Dashboard(port, Limits(body=1000, timeout_s=2, refused_s=5))
        request = scope("POST", "/x", ("content-length", "5"))
        sending = asyncio.create_task(dashboard.handle(request, client.receive, client.send, b"id"))
        await asyncio.sleep(0.15)  # it meets nobody; what is awaited is that it goes on trying
        assert not sending.done()
        async with serving(upstream, port=port), asyncio.timeout(5):
            await sending

    asyncio.run(scenario())
    assert client.status == 200
    assert upstream.bodies == [b"order"]


def test_nobody_there_is_a_503() -> None:
    async def scenario() -> None:
        client = Client()
        await Dashboard(await free_port(), LIMITS).handle(scope(), client.receive, client.send, b"id")

    with pytest.raises(ProxyError, match="does not answer: ConnectionRefusedError") as caught:
        asyncio.run(scenario())
    assert caught.value.code == 503


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"hello?\r\n\r\n"], ids=["nothing", "half a head", "no http"])
def test_a_request_that_was_sent_is_never_sent_again(answer: bytes) -> None:
    upstream, client = Upstream(answer), Client(b"order")
    with pytest.raises(ProxyError) as caught:
        passed(upstream, client, scope("POST", "/x", ("content-length", "5")))
    assert caught.value.code == 502
    assert upstream.bodies == [b"order"]
    assert client.sent == []


def test_a_dashboard_that_hangs_is_a_504() -> None:
    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with pytest.raises(ProxyError, match=r"longer than 0\.1 s") as caught:
        passed(hangs, Client(), scope(), Limits(body=1, timeout_s=0.1))
    assert caught.value.code == 504


def test_an_answer_that_breaks_off_is_not_taken_for_whole() -> None:
    client = Client()
    passed(Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), client, scope())
    assert client.content == b"half"
    assert not client.complete


def test_a_client_that_leaves_ends_the_request() -> None:
    """An answer without an end would otherwise keep the slot from ever being drained."""
    left = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await reader.read()
        left.set()

    async def scenario() -> None:
        client = Client(leaves=True)
        async with serving(endless) as port, asyncio.timeout(5):
            await Dashboard(port, LIMITS).handle(scope(), client.receive, client.send, b"id")
            await left.wait()

    asyncio.run(scenario())


def probed(answer: bytes, version: str = "1.2.3") -> None:
    async def scenario() -> None:
        async with serving(Upstream(answer)) as port:
            await dashboard_probe(Dashboard(port, LIMITS), Release(version))()

    asyncio.run(scenario())


def test_the_dashboard_is_ready_when_it_runs_the_agents_release() -> None:
    body = json.dumps({"release": "1.2.3"}).encode()
    probed(response(body))
    with pytest.raises(RuntimeError, match=r"runs release 1\.2\.3, wanted: 1\.2\.4"):
        probed(response(body), "1.2.4")
    with pytest.raises(ConnectionError, match="answers 500, wanted: 200"):
        probed(response(body, status="500 No"))
