"""The command line: what it says of a store that is not in health, and its exit codes."""

from __future__ import annotations

import json

import pytest
from pst_parquet import cli, gluster
from pst_parquet import store as mounted
from pst_parquet.gluster import Volume
from pst_parquet.settings import FenceSettings, Settings
from pst_trading.settings import MongoSettings

KNOWN = Settings(
    host="a",
    address="10.0.0.1",
    members=("10.0.0.1", "10.0.0.2", "10.0.0.3"),
    volume="parquet",
    brick="/x",
    store="/s",
    public="/p",
    mongodb=MongoSettings(("m:27017",), "rs", "guard", "/x", "pst", "pst", "/ca"),
    fence=FenceSettings(15, 2, 49152, 49155),
)
ADMITTED = {"10.0.0.2": 8.0, "10.0.0.3": 8.0}
BRICKS = {"a:/x": True, "b:/x": True, "c:/x": True}


@pytest.fixture
def state(monkeypatch):
    """What the host is like; in health where a test changes nothing."""
    seen = {
        "mount": "",
        "write": "",
        "inside": False,
        "fence": {"age": 1.0, "clean": True, "admitted": dict(ADMITTED), "problem": ""},
        "volume": Volume(dict(BRICKS), 0),
    }
    monkeypatch.setattr(mounted, "mount_problem", lambda *_: seen["mount"])
    monkeypatch.setattr(mounted, "writable", lambda _: seen["inside"])
    monkeypatch.setattr(mounted, "write_problem", lambda path, *_: seen["write"] and f"{path}: {seen['write']}")
    monkeypatch.setattr(cli, "read_state", lambda: seen["fence"])
    monkeypatch.setattr(gluster, "volume", lambda _: seen["volume"])
    return seen


def test_a_store_in_health_has_no_problem(state):
    assert cli.look(KNOWN)["problems"] == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mount": "/s: seen nothing, wanted the volume"}, "/s: seen nothing, wanted the volume"),
        ({"fence": {}}, "the fence: seen no state of it"),
        ({"fence": {"age": 33.0}}, "the fence: seen 33 s of silence"),
        (
            {"fence": {"age": 1.0, "clean": True, "admitted": {"10.0.0.2": 3.0}, "problem": ""}},
            "the fence: 10.0.0.3 is shut out here, wanted every member admitted",
        ),
        (
            {"fence": {"age": 1.0, "clean": False, "admitted": ADMITTED, "problem": ""}},
            "the fence: this host is not clean, wanted nothing that runs without a valid lease",
        ),
        (
            {"fence": {"age": 1.0, "clean": True, "admitted": ADMITTED, "problem": "MongoDB: gone"}},
            "the fence: MongoDB: gone",
        ),
        ({"volume": Volume({**BRICKS, "b:/x": False}, 0)}, "brick b:/x does not run"),
        ({"volume": Volume({"a:/x": True}, 0)}, "1 bricks, wanted 3"),
        ({"volume": Volume(BRICKS, 7)}, "7 entries wait to be healed, wanted 0"),
    ],
)
def test_what_is_wrong_is_said(state, change, problem):
    state.update(change)
    assert cli.look(KNOWN)["problems"] == [problem]


def test_a_daemon_that_refuses_is_a_problem_and_not_an_end(state, monkeypatch):
    def away(_: str) -> Volume:
        raise gluster.GlusterError("volume status: no answer")

    monkeypatch.setattr(gluster, "volume", away)
    assert cli.look(KNOWN)["problems"] == ["GlusterFS: volume status: no answer"]


def run(*words: str) -> int:
    options = cli.parser().parse_args(words)
    return int(options.run(KNOWN, options))


def test_status_has_an_exit_code_and_words(state, capsys):
    assert run("status") == 0
    assert capsys.readouterr().out == "in health\n"
    state["mount"] = "gone"
    assert run("status", "--json") == 1
    assert json.loads(capsys.readouterr().out)["problems"] == ["gone"]


def test_check_waits_for_a_write_and_says_what_is_in_the_way(state, capsys):
    assert run("check") == 0
    state["write"] = "Read-only file system"
    assert run("check", "--wait", "0") == 1
    assert capsys.readouterr().err == "the Parquet store cannot be written: /s: Read-only file system\n"


def test_check_in_a_unit_tries_what_the_unit_will_write(state, capsys):
    state.update(inside=True, mount="/p: seen fuse.glusterfs, wanted the volume, read-only", write="no")
    assert run("check", "--wait", "0") == 1
    assert capsys.readouterr().err == "the Parquet store cannot be written: /p: no\n"


def test_settings_that_cannot_be_used_have_a_code_of_their_own(tmp_path, capsys):
    path = tmp_path / "parquet.json"
    path.write_text("{}")
    assert cli.main(["--check-config", str(path)]) == 78
    assert "host: is missing" in capsys.readouterr().err
