"""The probe is an oracle: it must count a failure as one, and never hide an outage."""

import asyncio
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[1] / "integration/probe.py"
spec = importlib.util.spec_from_file_location("probe", SCRIPT)
assert spec
assert spec.loader
probe = importlib.util.module_from_spec(spec)
sys.modules["probe"] = probe
spec.loader.exec_module(probe)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def against(handler: Handler, **plan: Any) -> dict[str, Any]:
    """Run a short probe against a server of this process."""

    async def scenario() -> dict[str, Any]:
        async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"http://probe.test:{port}/"
            settings = {"rate": 100, "duration": 0.2, "timeout": 1, "connect": "127.0.0.1"} | plan
            if settings.pop("post", False):
                settings["post_url"] = url
            return await probe.Probe(probe.Plan(url, **settings)).run()

    return asyncio.run(scenario())


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = OK, limit: int = 0) -> None:
    """Answer requests on one connection, `limit` of them when it is not 0."""
    try:
        served = 0
        while not limit or served < limit:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
            writer.write(answer)
            await writer.drain()
            served += 1
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def test_good_server_gives_a_clean_account() -> None:
    result = against(serve, post=True, post_share=0.5)
    assert result["sent"] == result["ok"] == 20
    assert result["failed"] == {}
    assert result["posted_ok"] == 10
    assert result["longest_gap_s"] < 0.2


def test_answers_of_every_framing_are_read_whole() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    until_close = b"HTTP/1.1 200 OK\r\n\r\nabc"
    assert against(lambda r, w: serve(r, w, chunked), new_share=0)["failed"] == {}
    assert against(lambda r, w: serve(r, w, until_close, 1), new_share=0)["failed"] == {}


def test_status_is_a_failure() -> None:
    result = against(lambda r, w: serve(r, w, b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"))
    assert result["failed"] == {"status-503": 20}
    assert result["longest_gap_s"] == pytest.approx(result["duration_s"], abs=0.001)
    assert result["p50_ms"] is None


def test_silence_is_a_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    assert against(silent, timeout=0.05)["failed"] == {"timeout": 20}


def test_cut_answer_is_a_failure() -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok"
    assert set(against(lambda r, w: serve(r, w, cut, 1))["failed"]) <= {"closed", "reset"}


def test_nobody_listening_is_refused() -> None:
    async def scenario() -> dict[str, Any]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        plan = probe.Plan(f"http://x:{port}/", connect="127.0.0.1", rate=50, duration=0.1, timeout=1)
        return await probe.Probe(plan).run()

    assert asyncio.run(scenario())["failed"] == {"refused": 5}


def test_connection_closed_between_requests_is_not_used_again() -> None:
    """A server may close an idle connection; a client that sees it opens another, and nothing has failed."""
    assert against(lambda r, w: serve(r, w, OK, 1), new_share=0, rate=20, duration=0.3)["failed"] == {}


def test_latency_counts_from_when_the_request_was_due() -> None:
    """A server that stops for 0.3 s delays all that was due meanwhile: this must be seen in p99."""
    begin: list[float] = []

    async def stops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        begin.append(clock())
        await asyncio.sleep(max(0.0, begin[0] + 0.3 - clock()))
        await serve(reader, writer)

    result = against(stops, duration=0.4, new_share=1)
    assert result["failed"] == {}
    assert result["longest_gap_s"] >= 0.29
    assert result["p99_ms"] >= 270


def test_stop_ends_early_with_an_account() -> None:
    async def scenario() -> dict[str, Any]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            running = probe.Probe(probe.Plan(f"http://127.0.0.1:{port}/", "", rate=50, duration=60, timeout=1))
            asyncio.get_running_loop().call_later(0.2, running.stopped.set)
            return await running.run()

    result = asyncio.run(scenario())
    assert result["failed"] == {}
    assert 0.1 < result["duration_s"] < 5


@given(st.integers(0, 10**6), st.integers(1, 500), st.floats(0, 1))
def test_share_is_spread_evenly(first: int, count: int, share: float) -> None:
    chosen = sum(probe.spread(number, share) for number in range(first, first + count))
    assert abs(chosen - count * share) < 1.001


@given(st.lists(st.floats(0, 10), max_size=50))
def test_longest_gap_covers_the_whole_run(successes: list[float]) -> None:
    gap = probe.longest_gap(successes, 10.0)
    assert 10.0 / (len(successes) + 1) - 1e-9 <= gap <= 10.0
    # No window longer than the gap is without a success.
    marks = sorted(success for success in successes if success < 10.0)
    assert all(later - earlier <= gap for earlier, later in zip([0.0, *marks], [*marks, 10.0], strict=True))


@pytest.mark.parametrize(
    ("successes", "end", "gap"),
    [
        ([], 5.0, 5.0),
        ([0.1, 0.2, 2.2, 2.3], 3.0, 2.0),
        ([1.5], 2.0, 1.5),
        ([0.1, 0.2], 2.0, 1.8),
        ([0.5, 9.0], 1.0, 0.5),
    ],
)
def test_longest_gap(successes: list[float], end: float, gap: float) -> None:
    assert probe.longest_gap(successes, end) == pytest.approx(gap)


@given(st.lists(st.floats(0, 1000), min_size=1), st.floats(0.01, 1))
def test_percentile_is_a_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    ordered = sorted(values)
    value = probe.percentile(ordered, share)
    assert value in ordered
    assert sum(other <= value for other in ordered) >= share * len(ordered) - 1e-9


def test_arguments_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        probe.arguments(["https://x/", "--duration", "100000"])
    assert "--duration <= 3600" in capsys.readouterr().err
