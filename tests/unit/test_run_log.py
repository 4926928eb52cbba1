"""The log of a run: what is in it, that it waits for its server, and that it stays small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ansible_collections.pst.platform.plugins.module_utils import run_log
from ansible_collections.pst.platform.plugins.module_utils.relp import RelpError, Server


@pytest.fixture
def target(tmp_path: Path) -> run_log.Target:
    for name in ("ca.crt", "control.pem"):
        (tmp_path / name).touch()
    server = Server("mon.test", "192.0.2.1", 2514, tmp_path / "ca.crt", tmp_path / "control.pem")
    return run_log.Target("lab", tmp_path / "run-logs", (server,))


class Servers:
    """Takes lines, or is away."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.away = False

    def send(self, server: Server, lines: Sequence[bytes]) -> int:
        if self.away:
            raise RelpError(f"{server.name}: away")
        self.taken += lines
        return len(lines)


def log(target: run_log.Target, *messages: str, pid: int = 1) -> run_log.RunLog:
    made = run_log.RunLog(target, "site.yml", "control", pid)
    for message in messages:
        made.add("info", message)
    made.close()
    return made


def deliver(target: run_log.Target, own: Path, servers: Servers, *alive: int) -> str:
    return run_log.deliver(target, own, servers.send, lambda pid: pid in alive)


def test_a_line_is_a_record_like_those_of_the_hosts(target: run_log.Target) -> None:
    made = run_log.RunLog(target, "site.yml", "control", 7)
    made.add("error", "failed: x: password=s3cret", "lab-app1", task="x")
    made.close()
    record = json.loads(made.path.read_text())
    wanted = {"site": "lab", "host": "lab-app1", "level": "error", "process": "ansible"}
    assert wanted.items() <= record.items()
    assert record["message"] == "failed: x: password=***"
    assert record["data"] == {"run": made.run, "playbook": "site.yml", "task": "x"}
    head, _, body = run_log.framed(made.path.read_text()).decode().partition(" - - - ")
    assert head == f"<11>1 {record['time']} lab-app1 lab"
    assert json.loads(body) == record
    assert made.path.stat().st_mode & 0o777 == 0o600


def test_a_long_message_is_cut(target: run_log.Target) -> None:
    made = log(target, "x" * 100_000)
    assert len(made.path.read_text()) < 10_000
    assert "(100000 characters)" in made.path.read_text()


def test_it_is_sent_and_gone(target: run_log.Target) -> None:
    servers = Servers()
    made = log(target, "a", "b")
    assert deliver(target, made.path, servers) == ""
    assert [json.loads(line.partition(b" - - - ")[2])["message"] for line in servers.taken] == ["a", "b"]
    assert list(target.folder.iterdir()) == []


def test_it_waits_for_the_next_run_where_the_server_is_away(target: run_log.Target) -> None:
    servers = Servers()
    servers.away = True
    assert deliver(target, log(target, "first", pid=1).path, servers) == "mon.test: away"
    servers.away = False
    assert deliver(target, log(target, "second", pid=2).path, servers) == ""
    assert b"".join(servers.taken).count(b'"message"') == 2


def test_a_run_that_was_killed_is_sent_by_the_next_and_one_that_runs_is_not(target: run_log.Target) -> None:
    servers = Servers()
    killed, running = log(target, "killed", pid=11), log(target, "running", pid=12)
    with killed.path.open("a") as file:
        file.write('{"time": "2026-')
    assert deliver(target, log(target, "own", pid=13).path, servers, 12, 13) == ""
    sent = b"".join(servers.taken)
    assert (b'"killed"' in sent, b'"own"' in sent, b'"running"' in sent) == (True, True, False)
    assert list(target.folder.iterdir()) == [running.path]


def test_before_there_are_certificates_nothing_is_wrong(target: run_log.Target) -> None:
    target.servers[0].certificate.unlink()
    made = log(target, "bare")
    assert deliver(target, made.path, Servers()) == ""
    assert made.path.exists()


def test_what_waits_is_bound(target: run_log.Target) -> None:
    for n in range(10):
        (target.folder).mkdir(exist_ok=True)
        (target.folder / f"2026113{n}-1.jsonl").write_text("x" * 100)
    run_log.prune(target.folder, files=5)
    assert len(list(target.folder.iterdir())) == 5
    run_log.prune(target.folder, size=250)
    assert sorted(path.name for path in target.folder.iterdir()) == ["20261138-1.jsonl", "20261139-1.jsonl"]
    run_log.prune(target.folder, size=1)
    assert [path.name for path in target.folder.iterdir()] == ["20261139-1.jsonl"]
