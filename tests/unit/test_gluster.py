"""Forming a volume, finishing what was begun, and taking a lost member back: against a daemon in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.pst.platform.plugins.module_utils import gluster as rules
from ansible_collections.pst.platform.plugins.module_utils.gluster import Gluster, GlusterError, Wanted
from ansible_collections.pst.platform.plugins.module_utils.units import Completed

MEMBERS = ["a.t", "b.t", "c.t"]
OTHERS = {"b.t": "uuid-b", "c.t": "uuid-c"}
OPTIONS = {"client.ssl": "on", "network.ping-timeout": "5"}
VOLUME_ID = "11111111-2222-3333-4444-555555555555"


class Daemon:
    """What glusterd keeps and answers, as XML."""

    def __init__(self) -> None:
        self.uuid = "uuid-a"
        self.peers: dict[str, bool] = {}
        self.states: dict[str, int] = {}
        self.volume: dict[str, Any] | None = None
        self.shared: dict[str, Any] | None = None  # what the others know
        self.running = True
        self.said: list[str] = []

    def run(self, command: Sequence[str], timeout: float | None) -> Completed:
        if command[0] == "systemctl":
            self.said.append(" ".join(command))
            self.running = command[1] != "stop"
            if command[1] == "start" and rules.PEERS.exists():
                self.volume = self.shared
            return Completed(0, "", "")
        if not self.running:
            return Completed(1, "", "Connection failed. Please check if gluster daemon is operational.")
        words = [word for word in command[2:] if word != "--xml"]
        if words[:2] not in (["pool", "list"], ["volume", "info"], ["volume", "status"]):
            self.said.append(" ".join(words))
        return Completed(0, f"<cliOutput>{self.answer(words)}</cliOutput>", "")

    def answer(self, words: list[str]) -> str:
        good = "<opRet>0</opRet>"
        if words[:2] == ["pool", "list"]:
            peers = {"localhost": True, **self.peers}
            return good + "".join(
                f"<peer><uuid>{self.uuid if name == 'localhost' else 'uuid-' + name[0]}</uuid>"
                f"<hostname>{name}</hostname>"
                f"<connected>{int(up)}</connected><state>{self.states.get(name, 3)}</state></peer>"
                for name, up in peers.items()
            )
        if words[:2] == ["peer", "probe"]:
            self.peers[words[2]] = True
            return good
        if words[:2] == ["volume", "create"]:
            bricks = {word: False for word in words[3:] if ":" in word}
            self.volume = {"started": False, "bricks": bricks, "options": {}}
            return good
        if self.volume is None:
            return "<opRet>-1</opRet><opErrstr>Volume parquet does not exist</opErrstr>"
        if words[1] == "set":
            pairs = words[3:]
            self.volume["options"].update(dict(zip(pairs[::2], pairs[1::2], strict=True)))
        elif words[1] == "start":
            self.volume["started"] = True
            self.volume["bricks"] = dict.fromkeys(self.volume["bricks"], True)
        elif words[1] == "info":
            bricks = "".join(f"<brick><name>{name}</name></brick>" for name in self.volume["bricks"])
            options = "".join(
                f"<option><name>{k}</name><value>{v}</value></option>" for k, v in self.volume["options"].items()
            )
            status = "Started" if self.volume["started"] else "Created"
            return f"{good}<volume><id>{VOLUME_ID}</id><statusStr>{status}</statusStr>{bricks}{options}</volume>"
        elif words[1] == "status":
            return good + "".join(
                f"<node><hostname>{name.split(':')[0]}</hostname><path>{name.split(':')[1]}</path><status>{int(up)}</status></node>"
                for name, up in self.volume["bricks"].items()
            )
        return good


@pytest.fixture
def daemon(monkeypatch) -> Daemon:
    made = Daemon()

    def runs(gluster: Gluster) -> bool:
        assert made.volume is not None
        return bool(made.volume["bricks"].get(f"a.t:{gluster.wanted.brick}"))

    monkeypatch.setattr(Gluster, "_runs", runs)
    return made


def on(daemon: Daemon, brick: str = "/srv/parquet/brick", members: Sequence[str] = MEMBERS) -> Gluster:
    return Gluster(Wanted("parquet", members, "a.t", brick, OPTIONS), daemon.run, lambda _: None)


def test_a_host_without_glusterfs_says_so(daemon):
    daemon.running = False
    gluster = on(daemon)
    assert gluster.look().lacks(gluster.wanted) == ["glusterd does not answer"]


def test_one_that_comes_up_is_waited_for(daemon, monkeypatch, tmp_path):
    monkeypatch.setattr(rules, "PROGRAM", tmp_path)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        daemon.running = len(waited) == 3

    daemon.running = False
    gluster = Gluster(Wanted("parquet", MEMBERS, "a.t", "/srv/parquet/brick", OPTIONS), daemon.run, wait)
    assert gluster.look(patience=2).answers is False
    waited.clear()
    assert gluster.look(patience=10).answers


def test_a_volume_is_formed_and_then_nothing_is_left_to_do(daemon):
    gluster = on(daemon)
    assert "volume parquet does not exist" in gluster.look().lacks(gluster.wanted)
    done = gluster.form(10)
    assert done == [
        "probed b.t",
        "probed c.t",
        "created the volume",
        "set client.ssl, network.ping-timeout",
        "started the volume",
    ]
    assert (
        "volume create parquet replica 3 a.t:/srv/parquet/brick b.t:/srv/parquet/brick c.t:/srv/parquet/brick"
        in daemon.said
    )
    assert gluster.look().lacks(gluster.wanted) == []
    daemon.said.clear()
    assert gluster.form(10) == []
    assert daemon.said == []


def test_one_member_makes_a_volume_without_copies(daemon):
    on(daemon, members=["a.t"]).form(10)
    assert daemon.said[0] == "volume create parquet a.t:/srv/parquet/brick"


def test_what_was_begun_is_finished(daemon):
    gluster = on(daemon)
    daemon.peers["b.t"] = True
    daemon.volume = {
        "started": False,
        "bricks": dict.fromkeys(gluster.wanted.bricks, False),
        "options": {"client.ssl": "on"},
    }
    assert gluster.look().lacks(gluster.wanted) == [
        "c.t is no peer",
        "option network.ping-timeout is not set, wanted 5",
        "volume parquet is not started",
    ]
    assert gluster.form(10) == ["probed c.t", "set network.ping-timeout", "started the volume"]


def test_a_brick_that_died_is_started(daemon):
    gluster = on(daemon)
    gluster.form(10)
    assert daemon.volume is not None
    daemon.volume["bricks"]["a.t:/srv/parquet/brick"] = False
    assert gluster.look().lacks(gluster.wanted) == ["brick a.t:/srv/parquet/brick does not run"]
    assert gluster.form(10) == ["started a.t:/srv/parquet/brick"]
    assert daemon.said[-1] == "volume start parquet force"


def test_whether_a_brick_runs_is_read_from_its_process(tmp_path, monkeypatch):
    gluster = Gluster(Wanted("parquet", MEMBERS, "a.t", "/srv/parquet/brick", {}))
    monkeypatch.setattr(rules, "PIDS", tmp_path)
    assert not gluster._runs()
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet/a.t-srv-parquet-brick.pid").write_text(f"{os.getpid()}\n")
    assert not gluster._runs(), "another process has its number"


def test_a_busy_cluster_is_asked_again(daemon):
    gluster, refusals = on(daemon), [2]
    answer = daemon.answer

    def busy(words: list[str]) -> str:
        if words[:2] == ["peer", "probe"] and refusals[0]:
            refusals[0] -= 1
            return "<opRet>-1</opRet><opErrstr>Another transaction is in progress. Please try again</opErrstr>"
        return answer(words)

    daemon.answer = busy  # type: ignore[method-assign]
    assert gluster.form(10)[0] == "probed b.t"


def test_another_hosts_dead_brick_is_not_this_hosts_to_tell(daemon):
    gluster = on(daemon)
    gluster.form(10)
    assert daemon.volume is not None
    daemon.volume["bricks"]["b.t:/srv/parquet/brick"] = False
    assert gluster.look().lacks(gluster.wanted) == []


def test_a_peer_that_does_not_connect_is_named(daemon):
    daemon.peers = {"b.t": True, "c.t": False}
    with pytest.raises(GlusterError, match=r"c\.t: peers are not connected after 3 s"):
        on(daemon).form(3)


def test_a_peer_that_is_not_accepted_yet_is_waited_for(daemon):
    daemon.peers, daemon.states = {"b.t": True, "c.t": True}, {"c.t": 5}
    with pytest.raises(GlusterError, match=r"c\.t: peers are not connected after 3 s"):
        on(daemon).form(3)


def test_members_are_not_exchanged_by_a_variable(daemon):
    on(daemon).form(10)
    changed = Gluster(
        Wanted("parquet", ["a.t", "b.t", "d.t"], "a.t", "/srv/parquet/brick", OPTIONS), daemon.run, lambda _: None
    )
    with pytest.raises(GlusterError, match=r"has the bricks c\.t:/srv/parquet/brick, wanted none but"):
        changed.form(10)


@pytest.fixture
def marks(monkeypatch) -> dict[str, bytes]:
    """Extended attributes of `trusted.`, which only root may set."""
    there: dict[str, bytes] = {}

    def get(path: Path, name: str) -> bytes:
        if str(path) not in there:
            raise OSError(61, "No data available")
        return there[str(path)]

    monkeypatch.setattr(rules.os, "getxattr", get)
    monkeypatch.setattr(rules.os, "setxattr", lambda path, name, value: there.__setitem__(str(path), value))
    return there


def test_a_member_that_lost_its_disk_takes_its_place_again(daemon, tmp_path, marks, monkeypatch):
    monkeypatch.setattr(rules, "IDENTITY", tmp_path / "glusterd.info")
    monkeypatch.setattr(rules, "PEERS", tmp_path / "peers")
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers/uuid-old").touch()
    rules.IDENTITY.write_text("UUID=uuid-new\noperating-version=100000\n")
    daemon.uuid = "uuid-new"
    daemon.shared = {"started": True, "bricks": {"a.t:/x": False}, "options": {}}
    brick = tmp_path / "brick"
    done = on(daemon, str(brick)).rejoin("uuid-a", VOLUME_ID, OTHERS, 10)
    assert done == ["took the identity uuid-a", "learnt the volume from the others", "prepared an empty brick"]
    assert {path.name: path.read_text() for path in rules.PEERS.iterdir()} == {
        "uuid-b": "uuid=uuid-b\nstate=3\nhostname1=b.t\n",
        "uuid-c": "uuid=uuid-c\nstate=3\nhostname1=c.t\n",
    }
    assert rules.IDENTITY.read_text() == "UUID=uuid-a\noperating-version=100000\n"
    assert marks[str(brick)] == bytes.fromhex(VOLUME_ID.replace("-", ""))
    assert [path.name for path in brick.iterdir()] == [".glusterfs"]
    assert daemon.said == [
        "systemctl stop glusterd.service",
        "systemctl start glusterd.service",
    ]


def test_one_that_lost_its_brick_alone_gets_an_empty_one(daemon, tmp_path, marks):
    gluster = on(daemon, str(tmp_path / "brick"))
    gluster.form(10)
    daemon.said.clear()
    assert gluster.rejoin("uuid-a", VOLUME_ID, OTHERS, 10) == ["prepared an empty brick"]
    assert gluster.rejoin("uuid-a", VOLUME_ID, OTHERS, 10) == []
    assert daemon.said == []


def test_a_heal_is_begun_and_its_refusal_told(daemon):
    said: list[list[str]] = []

    def run(command: Sequence[str], timeout: float | None) -> Completed:
        said.append(list(command))
        return Completed(len(said) - 1, "Launching heal operation", "not started")

    gluster = Gluster(Wanted("parquet", MEMBERS, "a.t", "/x", {}), run, lambda _: None)
    gluster.heal(3)
    assert said == [["/usr/sbin/gluster", "--mode=script", "volume", "heal", "parquet", "full"]]
    with pytest.raises(GlusterError, match="heal parquet full: not started"):
        gluster.heal(3)


def test_a_heal_waits_for_the_healing_process_of_the_new_brick(daemon, tmp_path, marks):
    gluster, refusals = on(daemon, str(tmp_path / "brick")), [2]
    gluster.form(10)
    gluster.prepare(VOLUME_ID)
    missing = f"brick a.t:{tmp_path}/brick is not compared with the others"
    assert gluster.look().lacks(gluster.wanted) == [missing], "and a run that was killed here goes on with it"

    def run(command: Sequence[str], timeout: float | None) -> Completed:
        if "full" in command and refusals[0]:
            refusals[0] -= 1
            return Completed(1, "Commit failed on c.t.", "")
        return daemon.run(command, timeout)

    healing = Gluster(gluster.wanted, run, lambda _: None)
    with pytest.raises(GlusterError, match=r"heal parquet full: Commit failed on c\.t\."):
        healing.heal(0)
    assert gluster.look().lacks(gluster.wanted) == [missing]
    healing.heal(10)
    assert gluster.look().lacks(gluster.wanted) == []


def test_a_folder_with_somebodys_files_is_left_alone(daemon, tmp_path, marks):
    (tmp_path / "precious").touch()
    with pytest.raises(GlusterError, match="seen files of something else"):
        on(daemon, str(tmp_path)).prepare(VOLUME_ID)
    marks[str(tmp_path)] = os.urandom(16)
    with pytest.raises(GlusterError, match="seen files of something else"):
        on(daemon, str(tmp_path)).prepare(VOLUME_ID)
    assert (tmp_path / "precious").exists()


def test_a_host_of_another_pool_is_refused(daemon):
    gluster = on(daemon)
    gluster.form(10)
    with pytest.raises(
        GlusterError, match="this host is uuid-a and knows a volume parquet; the others know it as uuid-z"
    ):
        gluster.rejoin("uuid-z", VOLUME_ID, OTHERS, 10)
