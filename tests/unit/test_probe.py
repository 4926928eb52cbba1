"""The probe is an oracle: it must count a failure as one, and never hide an outage."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pst_probe as probe
import pytest
from hypothesis import given
from hypothesis import strategies as st

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def against(handler: Handler, **plan: Any) -> dict[str, Any]:
    """Run a short probe against a server of this process."""

    async def scenario() -> dict[str, Any]:
        async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"http://probe.test:{port}/"
            # Server and probe share one loop: a time-out that a busy machine reaches would be the test's, not theirs.
            settings = {"rate": 100, "duration": 0.2, "timeout": 20, "connect": "127.0.0.1"} | plan
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
    result = against(serve, post=True, post_share=0.5, rate=20, duration=1)
    assert result["sent"] == result["ok"] == 20
    assert result["failed"] == {}
    assert result["posted_ok"] == 10
    assert result["longest_gap_s"] < 0.5 + result["late_ms"] / 1000  # what the machine held up is no gap of the server


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
        plan = probe.Plan(f"http://x:{port}/", connect="127.0.0.1", rate=50, duration=0.1, timeout=20)
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
            running = probe.Probe(probe.Plan(f"http://127.0.0.1:{port}/", "", rate=50, duration=60, timeout=20))
            asyncio.get_running_loop().call_later(0.2, running.stopped.set)
            return await running.run()

    result = asyncio.run(scenario())
    assert result["failed"] == {}
    assert 0.1 < result["duration_s"] < 30


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
    assert "--duration <= 14400" in capsys.readouterr().err


@pytest.mark.parametrize(
    "last_word",
    [
        b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n",  # what some servers say before they close
        b"",
    ],
)
def test_connection_that_the_server_gave_up_while_idle_is_not_used_again(last_word: bytes) -> None:
    async def gives_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, Unclosed(writer), OK, 1)  # type: ignore[arg-type]
        writer.write(last_word)
        if not last_word:
            writer.write_eof()
        await reader.read()
        writer.close()

    assert against(gives_up, new_share=0, rate=20, duration=0.3)["failed"] == {}


class Unclosed:
    """A writer that stays open where its user closes it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.write, self.drain = writer.write, writer.drain

    def close(self) -> None:
        pass


def test_connection_that_is_announced_to_close_is_not_used_again() -> None:
    connections = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await serve(reader, writer, OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive, Close\r\n\r\n"))

    assert against(counted, new_share=0, rate=50)["failed"] == {}
    assert connections == 10


def test_request_on_a_connection_that_breaks_under_it_is_a_failure_and_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GET might be sent again (RFC 9110, 9.2.2); the probe tells what became of the one that it sent."""
    # One request at a time, however late they are: every second one meets a connection that breaks.
    monkeypatch.setattr(probe, "POOL", 1)
    monkeypatch.setattr(probe, "IDLE_S", 60)
    seen = broken = 0

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen, broken
        await serve(reader, Unclosed(writer), OK, 1)  # type: ignore[arg-type]
        seen += 1
        await reader.readuntil(b"\r\n\r\n")
        seen += 1
        broken += 1
        writer.close()

    result = against(breaks, new_share=0, rate=20, duration=0.4)
    assert result["sent"] == seen == 8
    assert result["failed"] == {"closed": broken}
    assert broken == 4


@pytest.mark.parametrize(
    ("received", "ended", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", False, None),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Made\r\nContent-Length: 2\r\n\r\nok", False, (201, True)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nok", False, (200, False)),  # more than was announced
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False, (200, False)),
        (b"HTTP/1.1 204 No\r\n\r\n", False, (204, True)),
        (b"HTTP/1.1 200 OK\r\n\r\nok", False, None),
        (b"HTTP/1.1 200 OK\r\n\r\nok", True, (200, False)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n", False, None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n", False, (200, True)),
    ],
)
def test_answer_is_read_when_it_is_whole(received: bytes, ended: bool, answer: Any) -> None:
    assert probe.parse_answer(received, ended=ended) == answer


@given(st.integers(0, 120))
def test_no_part_of_an_answer_is_taken_for_the_whole(cut: int) -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n0123456789abcdef\r\n3\r\nabc\r\n0\r\n\r\n"
    assert (probe.parse_answer(whole[:cut], ended=False) is None) == (cut < len(whole))


def test_details_tell_each_second_and_the_longest_gaps() -> None:
    outcomes = [probe.Outcome(at / 10, at / 10 + 0.01, "ok", "GET", "") for at in (*range(8), *range(15, 30))]
    outcomes.append(probe.Outcome(0.9, 1.0, "reset", "POST", "k"))
    told = probe.details(sorted(outcomes), 3.0)
    assert [(second["ok"], second["failed"]) for second in told["seconds"]] == [(8, 1), (5, 0), (10, 0)]
    assert told["seconds"][0]["p99_ms"] == pytest.approx(10)
    assert {"at": 0.71, "seconds": 0.8, "own": 0} in told["gaps"]
    assert len(told["gaps"]) == 20
    assert max(gap["seconds"] for gap in told["gaps"]) == 0.8


def test_a_gap_tells_how_long_the_probe_itself_was_held_up() -> None:
    outcomes = [probe.Outcome(at / 10, at / 10 + 0.01, "ok", "GET", "") for at in (*range(8), *range(18, 30))]
    held_up: list[tuple[float, float]] = []
    for due, sent in ((0.2, 0.3), (0.8, 1.1), (0.9, 1.1), (1.0, 1.2), (1.75, 2.5)):
        probe.joined(held_up, due, sent)
    assert held_up == [(0.2, 0.3), (0.8, 1.2), (1.75, 2.5)]
    gap = max(probe.details(sorted(outcomes), 3.0, held_up)["gaps"], key=lambda gap: gap["seconds"])
    assert gap == {"at": 0.71, "seconds": 1.1, "own": 0.46}


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.06, 3)), max_size=40), st.floats(0, 10), st.floats(0, 5))
def test_held_up_is_never_more_than_the_gap(late: list[tuple[float, float]], begin: float, length: float) -> None:
    spans: list[tuple[float, float]] = []
    for due, by in sorted(late):
        probe.joined(spans, due, due + by)
    assert -1e-9 <= probe.within(spans, begin, begin + length) <= length + 1e-9
    assert all(one[1] < other[0] for one, other in pairwise(spans))


HEADERS = "Authorization: Bearer abc\n"


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (HEADERS, 0o644, "others may read or write it (044), wanted: mode 0600"),
        ("no header\n", 0o600, "wanted: one `Name: value` a line"),
        ("A: b\x00\n", 0o600, "wanted: one `Name: value` a line"),
    ],
)
def test_header_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, mode: int, said: str
) -> None:
    path = tmp_path / "headers"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(SystemExit):
        probe.arguments(["https://x/", f"--header-file={path}"])
    assert said in capsys.readouterr().err


def test_headers_are_sent_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.touch(0o600)
    path.write_text(HEADERS)
    plan, _ = probe.arguments(["https://x/", f"--header-file={path}", "--run=0123456789ab"])
    assert "Bearer" not in repr(plan)
    assert plan.run == "0123456789ab"
    assert b"\r\nAuthorization: Bearer abc\r\n" in probe.Probe(plan)._request(False, "k", close=False)


def test_terminated_probe_leaves_its_account_and_its_progress(tmp_path: Path) -> None:
    progress, output = tmp_path / "progress.json", tmp_path / "account.json"

    async def scenario() -> tuple[int, str]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            options = (url, "--rate=50", "--duration=60", f"--progress={progress}", f"--output={output}")
            options += (f"--post={url}", "--run=0123456789ab")
            process = await asyncio.create_subprocess_exec(
                sys.executable, probe.__file__, *options, stdout=subprocess.PIPE
            )
            deadline = time.monotonic() + 30
            while not (progress.exists() and json.loads(progress.read_text())["ok"]):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            os.kill(process.pid, signal.SIGTERM)
            out, _ = await process.communicate()
            return await process.wait(), out.decode()

    status, printed = asyncio.run(scenario())
    assert status == 0
    account = json.loads(printed)
    assert account["ok"] == account["sent"] == json.loads(progress.read_text())["ok"]
    assert account["run"] == "0123456789ab"
    assert json.loads(output.read_text()).items() >= account.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["account.json", "progress.json"]
