"""Traces: finding their spans in the logs, the tree, OTLP, and that all who write spans write the same ones."""

from __future__ import annotations

import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pst_trace
import pytest
from ansible import context
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from pst_trading import tracing as trading
from test_logs import put, record

from ansible_collections.pst.platform.plugins.callback import run_log as callback
from ansible_collections.pst.platform.plugins.module_utils import run_log, table
from ansible_collections.pst.platform.plugins.module_utils import trace as run_trace
from ansible_collections.pst.platform.plugins.module_utils.relp import Server

sys.path.insert(0, str(ROOT / "tests/reference_app"))

from syslogging import tracing as reference

START = datetime(2026, 11, 30, 14, 0, tzinfo=UTC)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="microseconds")


def hexed(number: int) -> str:
    return f"{number:016x}"


def line(number: int, parent: int = 0, begins: float = 0, lasts: float = 1, **more: Any) -> dict[str, Any]:
    """A line of the log with a span; the fields of the line itself in `more` are those that are not the span's."""
    own = {key: more.pop(key) for key in ("host", "unit", "process", "message") if key in more}
    data = {"trace_id": TRACE, "span_id": hexed(number), "span": f"s{number}", "start": at(begins), "seconds": lasts}
    data |= {"parent_span_id": hexed(parent)} if parent else {}
    return record(own.pop("message", "x"), at(begins + lasts), **own, data=data | more)


def spans(*lines: dict[str, Any]) -> list[pst_trace.Span]:
    return [span for one in lines for span in pst_trace.spans_of(one)]


def drawn(*lines: dict[str, Any], least: float = 0) -> list[str]:
    return [one.branch + one.span.name for one in pst_trace.tree(spans(*lines), least)]


def logs(folder: Path) -> pst_trace.Logs:
    return pst_trace.Logs(folder, START - timedelta(hours=1), START + timedelta(hours=1))


# --- lines of the logs ------------------------------------------------------------------------------------------------


def test_a_line_with_the_fields_of_a_span_is_one() -> None:
    [span] = spans(line(2, 1, 0.5, 0.25, unit="pst-app@blue.service", code=200, kind="server"))
    assert span == pst_trace.Span(
        TRACE, hexed(2), hexed(1), "s2", START + timedelta(seconds=0.5), 0.25, "lab", "app1", "pst-app@blue",
        kind="server", about={"code": 200},
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"trace_id": "0" * 32},
        {"trace_id": TRACE.upper()},
        {"trace_id": 7},
        {"span_id": "0" * 16},
        {"span_id": "12"},
        {"start": "soon"},
        {"start": None},
        {"seconds": "long"},
        {"seconds": None},
    ],
)
def test_a_line_that_is_not_right_is_no_span(wrong: dict[str, Any]) -> None:
    assert spans(line(1, **wrong)) == []
    assert spans(record("text")) == spans(record("text", data={"code": 1})) == spans(record("text", data=[1])) == []


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.just(TRACE), st.lists(st.integers()))
            for name in ("trace_id", "span_id", "parent_span_id", "span", "start", "seconds", "took", "error")
        },
    )
)
def test_no_line_is_a_reason_to_stop(wrong: dict[str, Any]) -> None:
    for data in (wrong, line(1)["data"] | wrong):
        found = spans(record("x", data=data))
        assert all(span.seconds >= 0 for span in found)
        if found:
            json.dumps(pst_trace.otlp(found))
            pst_trace.shown(TRACE, found, attributes=True)


def test_the_hosts_of_a_task_are_its_parts() -> None:
    took = {
        "app1": {"at": 0.5, "seconds": 0.25, "was": "ok"},
        "app2": {"at": 0.0, "seconds": 1.0, "was": "failed"},
    }
    task, *hosts = spans(line(1, took=took, task="t"))
    assert [(span.name, span.host, span.seconds, span.error, span.parent) for span in hosts] == [
        ("app1", "app1", 0.25, "", task.span_id),
        ("app2", "app2", 1.0, "failed", task.span_id),
    ]
    assert drawn(line(1, took=took)) == ["s1", "├─ app2", "└─ app1"]


# --- the tree ---------------------------------------------------------------------------------------------------------


def test_the_tree_is_in_the_order_of_time() -> None:
    lines = [line(1), line(4, 2, 0.3), line(3, 1, 0.5), line(2, 1, 0.1), line(5, 2, 0.2)]
    assert drawn(*lines) == ["s1", "├─ s2", "│  ├─ s5", "│  └─ s4", "└─ s3"]
    assert drawn(*lines, line(2, 3, 0.1)) == drawn(*lines), "of two with one id the first"


def test_a_part_whose_parent_was_not_written_stands_at_the_top_and_says_so() -> None:
    found = spans(line(2, 9, 0.1), line(3, 2, 0.2), line(1, 0, 0.3))
    assert drawn(line(2, 9, 0.1), line(3, 2, 0.2), line(1, 0, 0.3)) == ["s2", "└─ s3", "s1"]
    assert re.findall("part of (.*), which is not in the logs", pst_trace.shown(TRACE, found)) == [hexed(9)]


def test_a_circle_is_drawn_once() -> None:
    assert sorted(drawn(line(1, 2), line(2, 1))) == ["s1", "└─ s2"]
    assert drawn(line(1, 1)) == ["s1"]


def test_short_parts_are_left_out_unless_they_failed() -> None:
    lines = [line(1), line(2, 1, 0.1, 0.01), line(3, 2, 0.1, 0.01), line(4, 1, 0.2, 0.01, error="no"), line(5, 1, 0.3)]
    assert drawn(*lines, least=0.5) == ["s1", "├─ s4", "└─ s5"]
    assert drawn(*lines, line(6, 3, 0.1, 0.01, error="no"), least=0.5) == [
        "s1",
        "├─ s2",
        "│  └─ s3",
        "│     └─ s6",
        "├─ s4",
        "└─ s5",
    ]
    assert pst_trace.shown(TRACE, spans(line(1)), 5).endswith("1 spans")


def test_the_clock_of_another_host_may_be_behind() -> None:
    lines = [line(1, host="lb1"), line(2, 1, -0.3, 0.1, host="app1"), line(3, 2, -0.4, 0.1, host="app1")]
    text = pst_trace.shown(TRACE, spans(*lines))
    assert text.count("behind") == 1
    assert "the clock of app1 is 0.300 s or more behind" in text
    assert "1.400 s  3 spans" in text
    assert "behind" not in pst_trace.shown(TRACE, spans(line(1, host="a"), line(2, 1, -0.0005, host="b")))


numbers = st.integers(1, 12)


@given(
    st.lists(
        st.tuples(
            numbers, st.integers(0, 14), st.floats(-5, 5), st.floats(0, 5), st.sampled_from(["a", "b"]), st.booleans()
        ),
        min_size=1,
    ),
    st.sampled_from([0.0, 1.0]),
)
def test_each_span_is_drawn_once_under_its_parent(drawing: list[Any], least: float) -> None:
    """Whatever the parents are: missing, itself, a circle; whatever the clocks say."""
    found = spans(*(line(n, p, b, t, host=h, error="e" if e else "") for n, p, b, t, h, e in drawing))
    lines = pst_trace.tree(found, least)
    drawn_ids = [one.span.span_id for one in lines]
    assert len(set(drawn_ids)) == len(drawn_ids)
    if not least:
        assert set(drawn_ids) == {span.span_id for span in found}
    above = [""] * 20
    for one in lines:
        depth = len(one.branch) // 3
        assert depth == 0 or above[depth - 1] == one.span.parent
        above[depth] = one.span.span_id
        assert one.behind >= 0
    assert len(pst_trace.shown(TRACE, found, least).splitlines()) == len(lines) + 1


def test_a_chain_of_any_length_is_drawn() -> None:
    assert len(drawn(*(line(n, n - 1) for n in range(1, 3000)))) == 2999


def test_a_line_of_the_tree_keeps_its_shape_in_ansibles_table() -> None:
    """And cannot steer the terminal."""
    text = pst_trace.shown(TRACE, spans(line(1, span="GET /\033[2J\n/x"), line(2, 1), line(3, 2)))
    assert "\033" not in text
    lines = text.splitlines()
    assert len(lines) == 4
    assert table.render(["line"], [{"line": one} for one in lines])[1:] == lines


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_request_is_found_by_either_id_with_the_balancers_line(tmp_path: Path) -> None:
    request = "0f4c0c6e-1c1e-4d6e-8a51-1f1d5b1f9f11"
    said = {"id": request, "status": 200, "server": "app1", "retries": "0", "ms": {"queue": 0, "total": 1500}}
    balancer = record(json.dumps(said), at(1.6), host="lb1", process="haproxy", unit="haproxy.service")
    other = record(json.dumps(said | {"id": "other"}), at(1.6), host="lb1", process="haproxy")
    agent = line(2, 1, 0.2, 1.2, span="GET /notes", request_id=request, code=200)
    put(tmp_path, balancer, other, record(f"{request} was asked", at(1)), agent, line(3, 2, 0.3, 1.0, span="dashboard"))
    for what in (request, TRACE):
        found = pst_trace.find(logs(tmp_path), what)
        assert list(found) == [TRACE]
        assert [one.branch + one.span.name for one in pst_trace.tree(found[TRACE])] == [
            "balancer: GET /notes",
            "└─ GET /notes",
            "   └─ dashboard",
        ]
        assert found[TRACE][0].about["queue"] == 0
        assert found[TRACE][0].parent == hexed(1), "the client's"
    assert pst_trace.find(logs(tmp_path), "other") == {}


def test_an_order_that_nobody_traces_is_found_by_what_is_said_of_it(tmp_path: Path) -> None:
    """pysystemtrade itself, and the recovery of the guard."""
    messages = (
        "{'instrument_order_id': 12, 'contract_order_id': 41} generated",
        "order found open {'reference': 'pst:7:41:12'}",
        "{'instrument_order_id': 123} generated",
        "{'instrument_order_id': 11, 'contract_order_id': 12}",
        "12 apples",
    )
    put(tmp_path, *(record(message, at(number)) for number, message in enumerate(messages)))
    found = pst_trace.find(logs(tmp_path), "12")
    assert list(found) == [trading.ids_of("12").trace_id]
    [moments] = found.values()
    assert [span.name for span in moments] == list(messages[:2])
    assert "·" in pst_trace.shown(next(iter(found)), moments)


def test_a_run_is_found_by_its_name_in_the_journal(tmp_path: Path) -> None:
    run, journal = "20261130T140000Z-7", "20261130T140001Z-abcdef"
    put(
        tmp_path,
        line(1, run=run, journal=journal, span="site.yml"),
        line(2, 1, run=run),
        record("x", data={"run": run}),
    )
    for what in (run, journal):
        assert [len(found) for found in pst_trace.find(logs(tmp_path), what).values()] == [2]
    assert pst_trace.find(logs(tmp_path), "20261130T140000Z") == {}


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    now = datetime.now(UTC) - timedelta(seconds=10)
    written = line(1, order_id="7", kind="server", code=500, error="answered 500", ratio=0.5, ok=True, none=None)
    written["time"] = written["data"]["start"] = now.isoformat()
    put(tmp_path, written)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = pst_trace.main(arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--folder", str(folder), "7", "--attributes")
    assert code == 0
    assert re.fullmatch(
        rf"trace {TRACE}  \S+ \S+  1\.000 s  1 spans\n"
        r"s1  app1 p  \+0\.000      1\.000 s  error: answered 500  order_id=7 .*\n",
        out,
    ), out
    code, out, err = run(capsys, "--folder", str(folder), "8")
    assert (code, out) == (1, "")
    assert "nothing of 8 since 1d" in err


@pytest.mark.parametrize(
    "arguments", [(), ("--export-new", "x"), ("7", "--export-new", "x", "--otlp", "-"), ("7", "--since", "soon")]
)
def test_what_is_not_understood(folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert run(capsys, "--folder", str(folder), *arguments)[0] == 2
    assert run(capsys, "--folder", str(folder / "none"), "7")[0] == 2


def test_otlp_is_as_the_standard_has_it(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "--folder", str(folder), "7", "--otlp", "-")
    assert code == 0
    [resource] = json.loads(out)["resourceSpans"]
    assert {"key": "host.name", "value": {"stringValue": "app1"}} in resource["resource"]["attributes"]
    [scope] = resource["scopeSpans"]
    [span] = scope["spans"]
    assert (span["traceId"], span["spanId"], "parentSpanId" in span, span["kind"]) == (TRACE, hexed(1), False, 2)
    assert int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) == 1_000_000_000
    assert span["status"] == {"code": 2, "message": "answered 500"}
    assert span["attributes"] == [
        {"key": "pst.order_id", "value": {"stringValue": "7"}},
        {"key": "http.response.status_code", "value": {"intValue": "500"}},
        {"key": "pst.ratio", "value": {"doubleValue": 0.5}},
        {"key": "pst.ok", "value": {"boolValue": True}},
    ]
    assert run(capsys, "--folder", str(folder), "7", "--otlp", str(tmp_path / "out.json"))[0] == 0
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(out)


class Collector:
    """An OTLP endpoint, or one that is broken."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.paths: set[str] = set()
        self.code = 200
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if collector.code == 200:
                    collector.taken.append(body)
                    collector.paths.add(self.path)
                self.send_response(collector.code)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def names(self) -> list[str]:
        return [
            span["name"]
            for body in self.taken
            for resource in body["resourceSpans"]
            for span in resource["scopeSpans"][0]["spans"]
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_what_is_new_is_exported_once_and_again_where_the_endpoint_was_away(
    folder: Path, collector: Collector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pst_trace, "BATCH", 1)
    places = folder / "places.json"

    def export() -> int:
        return run(capsys, "--folder", str(folder), "--export-new", str(places), "--otlp", collector.url)[0]

    assert (export(), collector.names()) == (0, []), "what was there before is not sent"
    path = put(folder, line(2), record("no span"), line(3))
    with path.open("ab") as file:
        file.write(b'{"trace_id": "half')
    collector.code = 503
    assert (export(), collector.names()) == (1, [])
    collector.code = 200
    assert (export(), collector.names()) == (0, ["s2", "s3"])
    with path.open("ab") as file:
        file.write(b' a line"}\n')
    assert (export(), collector.names()) == (0, ["s2", "s3"])
    path.unlink()  # compressed; then a late line of that hour begins the file anew
    put(folder, line(4))
    assert (export(), collector.names()) == (0, ["s2", "s3", "s4"])
    assert collector.paths == {"/v1/traces"}
    assert run(capsys, "--folder", str(folder), "7", "--otlp", "http://127.0.0.1:1")[0] == 1


# --- those who write spans --------------------------------------------------------------------------------------------


def as_record(text: str) -> dict[str, Any]:
    """As rsyslog takes a JSON line (roles/logs/templates/rsyslog.conf.j2)."""
    data = json.loads(text)
    message = data.pop("message")
    data.pop("level")
    return record(message, order=data["order_id"], data=data)


@given(st.integers(0, 10**12))
def test_the_ids_of_an_order_follow_from_its_number_for_all(number: int) -> None:
    ids = trading.ids_of(str(number))
    digest = pst_trace.digest("order", str(number))
    assert ids == (digest[:32], digest[32:48])
    assert trading.order_of(f"pst:7:3:{number}", 105, 9) == str(number)


@pytest.mark.parametrize("reference_text", ["", "mine", "pst:7:3", "pst:7:3:4x", "pst:7:3:٤", f"pst:7:3:{'1' * 19}"])
def test_an_order_without_a_reference_of_ours_has_the_gateways_name(reference_text: str) -> None:
    assert trading.order_of(reference_text, 105, 9) == "105/9"


def test_the_gate_and_the_sender_of_an_order_write_one_trace(capsys: pytest.CaptureFixture[str]) -> None:
    made = datetime.now()  # noqa: DTZ005 - as pysystemtrade has it
    reference.span(12, "generate", made, trade=1.0)
    watch = trading.Stopwatch()
    trading.say("12", "gate: placeOrder", watch, sender="app1")
    reference.span(12, "order 12", made, whole=True)
    found = spans(*map(as_record, capsys.readouterr().err.splitlines()))
    assert [one.branch + one.span.name for one in pst_trace.tree(found)] == [
        "order 12",
        "├─ generate",
        "└─ gate: placeOrder",
    ]
    assert [span.about["order_id"] for span in found] == ["12"] * 3
    assert abs((found[0].start - watch.start).total_seconds()) < 5, "local time is taken for what it is"


def test_no_journal_stops_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def write(self, _: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    trading.say("12", "gate: placeOrder", trading.Stopwatch())


# --- a run of Ansible -------------------------------------------------------------------------------------------------


def outcome(host: str, task: Any, **result: Any) -> Any:
    return SimpleNamespace(host=named(host), task=task, result=result)


def named(name: str, action: str = "command") -> Any:
    return SimpleNamespace(get_name=lambda: name, action=action)


class Stats:
    processed: dict[str, int] = {"app1": 1, "app2": 1}  # noqa: RUF012

    def summarize(self, host: str) -> dict[str, int]:
        return {"failures": int(host == "app2"), "unreachable": 0, "changed": 1}


def lines_of_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch, *, ends: bool = True) -> list[dict[str, Any]]:
    """A play with a task that fails on one host, and a handler."""
    (folder / "ca").touch()
    target = run_log.Target("lab", folder / "run-logs", (Server("mon", "192.0.2.1", 1, folder / "ca", folder / "ca"),))
    monkeypatch.setattr(callback, "targets", lambda _: [target])
    taken: list[bytes] = []

    def take(_: Server, lines: Sequence[bytes]) -> int:
        taken.extend(lines)
        return len(lines)

    monkeypatch.setattr(callback, "deliver", lambda target, own: run_log.deliver(target, own, take))
    monkeypatch.setattr(context, "CLIARGS", {"inventory": ("x",)})
    plugin = callback.CallbackModule()
    plugin.v2_playbook_on_start(SimpleNamespace(_file_name="/x/site.yml"))
    plugin.v2_playbook_on_play_start(named("Stores"))
    begin = named("Take the run lock", "pst.platform.run_journal")
    plugin.v2_playbook_on_task_start(begin, is_conditional=False)
    plugin.v2_runner_on_ok(outcome("app1", begin, run="20261130T140001Z-abcdef"))
    install = named("Install")
    plugin.v2_playbook_on_task_start(install, is_conditional=False)
    for host in ("app1", "app2", "app3"):
        plugin.v2_runner_on_start(named(host), install)
    plugin.v2_runner_on_ok(outcome("app1", install, changed=True))
    plugin.v2_runner_on_skipped(outcome("app3", install))
    plugin.v2_runner_on_failed(outcome("app2", install, msg="no disk"))
    plugin.v2_playbook_on_handler_task_start(named("Restart"))
    plugin.v2_playbook_on_play_start(named("Application"))
    if ends:
        plugin.v2_playbook_on_stats(Stats())
        return [json.loads(one.partition(b" - - - ")[2]) for one in taken]
    plugin.logs[0].close()
    return [json.loads(text) for path in target.folder.glob("*") for text in path.read_text().splitlines()]


def test_a_run_is_a_trace_of_plays_tasks_and_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEPARENT", raising=False)
    records = lines_of_a_run(tmp_path, monkeypatch)
    now = datetime.now(UTC)
    put(tmp_path, *({"from": "192.0.2.1", **one} for one in records))
    near = pst_trace.Logs(tmp_path, now - timedelta(minutes=5), now + timedelta(minutes=5))
    run_id = records[0]["data"]["run"]
    found = pst_trace.find(near, run_id)
    assert found == pst_trace.find(near, "20261130T140001Z-abcdef")
    assert list(found) == [run_trace.begin(run_id, "", {}).trace_id]
    [of_run] = found.values()
    drawn_lines = [(one.branch + one.span.name, one.span.error) for one in pst_trace.tree(of_run)]
    assert drawn_lines[0] == ("site.yml", "failed on app2")
    assert sorted(drawn_lines[1:6]) == sorted(
        [
            ("├─ play: Stores", ""),
            ("│  ├─ Take the run lock", ""),
            ("│  │  └─ app1", ""),
            ("│  ├─ Install", "failed"),
            ("│  │  ├─ app1", ""),
        ]
    )
    assert sorted(drawn_lines[6:]) == sorted(
        [("│  │  └─ app2", "failed"), ("│  └─ Restart", ""), ("└─ play: Application", "")]
    )


def test_a_run_that_was_killed_leaves_the_tasks_that_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = spans(*lines_of_a_run(tmp_path, monkeypatch, ends=False))
    assert {"play: Stores", "Take the run lock", "Install", "Restart"} <= {span.name for span in found}
    assert "which is not in the logs" in pst_trace.shown(found[0].trace_id, found)


def test_a_run_goes_on_with_the_trace_of_who_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{TRACE}-{hexed(9)}-01")
    found = spans(*lines_of_a_run(tmp_path, monkeypatch))
    assert {span.trace_id for span in found} == {TRACE}
    assert [span.name for span in found if span.parent == hexed(9)] == ["site.yml"]


@pytest.mark.parametrize("wrong", ["", "x", f"00-{'0' * 32}-{hexed(1)}-01", f"ff-{TRACE}-{hexed(1)}-01"])
def test_a_traceparent_that_is_none_is_left_alone(wrong: str) -> None:
    begun = run_trace.begin("r", "site.yml", {"TRACEPARENT": wrong})
    assert (begun.trace_id, begun.parent) == (pst_trace.digest("run", "r")[:32], "")


def test_of_many_hosts_the_slowest_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(run_trace.time, "monotonic", lambda: float(next(clock)))
    part = run_trace.Part("t", TRACE, "")
    for number in range(500):
        part.end(f"a-host-with-a-long-name-{number}", "changed")
    took = part.fields()["took"]
    assert list(took) == [f"a-host-with-a-long-name-{number}" for number in range(499, 399, -1)]
    assert len(json.dumps(part.fields())) < 20_000
