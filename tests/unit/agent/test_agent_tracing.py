"""The agent's part of a trace: whose request it is, which are traced, what is passed on, and what the log says."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pst_trace
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pst_agent.logs import JsonFormatter
from pst_agent.tracing import Parent, Tracer, parent_of
from test_agent import TOKEN, agent
from test_logs import record
from test_pst_dashboard import App, ask

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
ids = st.integers(1, 2**64 - 1)


def headers(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), *((b"traceparent", value.encode("latin-1")) for value in values)]


@given(ids, ids, st.integers(0, 255))
def test_a_parent_is_read(trace: int, span: int, flags: int) -> None:
    given_ids = f"{trace:032x}", f"{span:016x}"
    assert parent_of(headers(f"00-{'-'.join(given_ids)}-{flags:02x}")) == Parent(*given_ids, bool(flags % 2))


def test_a_version_to_come_may_say_more() -> None:
    assert (
        parent_of(headers(f"cc{GOOD[2:]}"))
        == parent_of(headers(f"cc{GOOD[2:]}-what-else"))
        == Parent(TRACE, SPAN, True)
    )
    assert parent_of(headers(f"  {GOOD}\t")) == Parent(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "00",
        GOOD.upper(),
        GOOD[:-1],
        GOOD + "0",
        GOOD + "-more",
        f"cc{GOOD[2:]}.more",
        f"ff{GOOD[2:]}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        GOOD + "\n",
    ],
)
def test_what_is_no_parent_is_none(wrong: str) -> None:
    assert parent_of(headers(wrong)) is None


def test_of_two_parents_neither_counts() -> None:
    assert parent_of(headers(GOOD, GOOD)) is parent_of(headers()) is None


@given(st.lists(st.text(st.characters(max_codepoint=255)) | st.from_regex(r"\A[0-9a-f-]{50,60}\Z"), max_size=2))
def test_no_header_is_a_reason_to_stop(values: list[str]) -> None:
    span = Tracer(1).begin(headers(*values))
    parent = parent_of(headers(*values))
    assert (span is None) == (parent is not None and not parent.sampled)
    if span:
        assert parent_of(span.onward(headers(*values))) == Parent(span.trace_id, span.span_id, True)


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_a_share_of_those_is_traced_whose_sender_does_not_say(share: float, drawn: float) -> None:
    tracer = Tracer(share, lambda: drawn)
    assert (tracer.begin(headers()) is not None) == (drawn < share)
    assert (tracer.begin(headers("malformed")) is not None) == (drawn < share)
    assert tracer.begin(headers(GOOD)) is not None
    assert tracer.begin(headers(f"{GOOD[:-2]}00")) is None


def test_vendors_words_go_on_with_a_parent_that_was_understood_only() -> None:
    state = (b"tracestate", b"vendor=1")
    for parent, kept in ((GOOD, True), ("malformed", False)):
        given_headers = [*headers(parent), state]
        span = Tracer(1).begin(given_headers)
        assert span is not None
        assert (state in span.onward(given_headers)) is kept
        assert (b"host", b"x") in span.onward(given_headers)


# --- the agent's line


def lines_of(made: Any, caplog: pytest.LogCaptureFixture, *requests: dict[str, str]) -> list[dict[str, Any]]:
    """What the log says of requests with these headers, as rsyslog takes it."""

    async def scenario() -> None:
        transport = httpx.ASGITransport(app=made)
        async with httpx.AsyncClient(transport=transport, base_url="https://app") as client:
            for given_headers in requests:
                await client.get("/api/v1/status", headers={"Authorization": f"Bearer {TOKEN}", **given_headers})

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    formatted = [JsonFormatter().format(one) for one in caplog.records if one.message == "request"]
    caplog.clear()
    return [record("request", data=json.loads(text)) for text in formatted]


def test_a_traced_request_is_a_span_and_another_one_is_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet = agent(tmp_path / "drain")
    plain, traced = lines_of(quiet, caplog, {}, {"traceparent": GOOD, "x-request-id": "r1"})
    assert list(pst_trace.spans_of(plain)) == []
    assert plain["data"].keys().isdisjoint({"trace_id", "start"})
    [span] = pst_trace.spans_of(traced)
    assert (span.trace_id, span.parent, span.name, span.kind) == (TRACE, SPAN, "GET /api/v1/status", "server")
    assert span.about | {"request_id": "r1", "code": 200, "method": "GET"} == span.about
    assert span.error == ""


def test_a_share_of_requests_begins_a_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = lines_of(agent(tmp_path / "drain", share=1), caplog, {}, {})
    found = [span for line in lines for span in pst_trace.spans_of(line)]
    assert len({span.trace_id for span in found}) == 2
    assert {span.parent for span in found} == {""}


def test_a_request_that_fails_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def leases(self) -> Any:
            raise OSError

    [line] = lines_of(agent(tmp_path / "drain", state=Broken()), caplog, {"traceparent": GOOD})  # type: ignore[arg-type]
    assert [span.error for span in pst_trace.spans_of(line)] == ["answered 503"]


# --- the dashboard behind it


def test_the_dashboard_goes_on_where_the_agent_traces(capsys: pytest.CaptureFixture[str]) -> None:
    app = App()
    ask(app, "/trades", HTTP_TRACEPARENT=GOOD)
    ask(app, "/trades", HTTP_TRACEPARENT=f"{GOOD[:-2]}00")
    ask(app, "/trades")
    [line] = capsys.readouterr().err.splitlines()
    data = json.loads(line)
    [span] = pst_trace.spans_of(record(data.pop("message"), data=data))
    assert (span.trace_id, span.parent, span.name) == (TRACE, SPAN, "dashboard: GET /trades")
    assert app.traces == [f"00-{TRACE}-{span.span_id}-01", f"{GOOD[:-2]}00", ""]


def test_a_dashboard_that_breaks_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    class Breaks(App):
        def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
            raise KeyError("x")

    with pytest.raises(KeyError):
        ask(Breaks(), "/trades", HTTP_TRACEPARENT=GOOD)
    assert re.search('"error": "KeyError"', capsys.readouterr().err)
