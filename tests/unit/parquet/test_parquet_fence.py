"""The fence around the rules: what it asks the kernel, what it counts as running, how it lives without MongoDB."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pst_parquet import fence as module
from pst_parquet import gluster, settings, store
from pst_parquet.fence import Fence, Placements, admit, rules
from pst_parquet.membership import Request, Slice
from pst_parquet.settings import FenceSettings, Settings
from pst_trading.settings import SettingsError
from pst_trading.store import StoreError

DOCUMENT = {
    "host": "a",
    "address": "10.0.0.1",
    "members": ["10.0.0.1", "10.0.0.2"],
    "volume": "parquet",
    "brick": "/srv/parquet/brick",
    "store": "/srv/parquet/store",
    "public": "/var/lib/pst/parquet",
    "mongodb": {
        "hosts": ["m:27017"], "replica_set": "rs", "username": "guard", "password_file": "/x", "database": "pst",
        "trading_database": "pst", "tls_ca": "/ca",
    },
    "fence": {"lease_ttl_s": 15.0, "renew_s": 2.0, "low_port": 49152, "high_port": 49155},
}  # fmt: skip


@pytest.fixture
def known(tmp_path: Path) -> Settings:
    path = tmp_path / "parquet.json"
    path.write_text(json.dumps(DOCUMENT))
    return settings.load(path)


def test_settings_that_are_wrong_are_named(tmp_path):
    path = tmp_path / "parquet.json"
    path.write_text(json.dumps({**DOCUMENT, "address": "fe80::1", "brik": "/x"}))
    with pytest.raises(SettingsError) as error:
        settings.load(path)
    assert 'address: seen "fe80::1", wanted an IPv4 address' in str(error.value)
    assert "brik: is not a setting" in str(error.value)


def test_the_rule_closes_the_bricks_to_who_is_not_in_the_set():
    text = rules(FenceSettings(15, 2, 49152, 49155))
    assert "tcp dport 49152-49155 ip saddr != @members" in text
    assert "flags timeout" in text
    assert "flush set" not in text, "a restart of the fence cuts nobody"


def test_an_address_is_let_in_for_its_time_and_put_out_when_it_has_none():
    assert admit({"10.0.0.2": 8.5}).splitlines() == [
        "add element inet pst_parquet members { 10.0.0.2 }",
        "delete element inet pst_parquet members { 10.0.0.2 }",
        "add element inet pst_parquet members { 10.0.0.2 timeout 8500ms }",
    ]
    assert len(admit({"10.0.0.2": -1.0}).splitlines()) == 2


class Store:
    def __init__(self) -> None:
        self.own: dict[str, Any] = {"_id": "a", "address": "10.0.0.1", "seq": 1, "valid_ms": 0}
        self.other: dict[str, Any] = {"_id": "b", "address": "10.0.0.2", "seq": 1, "valid_ms": 9000}
        self.asked: list[Request] = []
        self.away = False

    def execute(self, request: Request) -> dict[str, Any] | None:
        if self.away:
            raise StoreError("MongoDB: gone")
        self.asked.append(request)
        if request.verb != "read":
            self.own = {**self.own, "seq": self.own["seq"] + 1, "valid_ms": request.valid_ms}
        return dict(self.own)

    def all(self) -> Sequence[dict[str, Any]]:
        if self.away:
            raise StoreError("MongoDB: gone")
        return [dict(self.own), dict(self.other)]


def test_it_renews_while_it_is_clean_and_lets_in_who_renews(known):
    now, loaded, mongodb = [100.0], [], Store()
    slices: list[Slice] = []

    def running() -> Iterator[Slice]:
        yield from slices

    fence = Fence(known, mongodb, running, loaded.append, lambda: now[0])
    fence.step()
    assert [request.verb for request in mongodb.asked] == ["read", "join", "renew"]
    assert loaded == []
    now[0] += 1
    mongodb.other["seq"] += 1
    fence.step()
    assert "10.0.0.2 timeout 8000ms" in loaded[0]
    assert fence.state()["admitted"] == {"10.0.0.2": 8.0}
    now[0] += 2
    slices.append(Slice(populated=True, valid_until=None))
    fence.step()
    assert [request.verb for request in mongodb.asked] == ["read", "join", "renew"], "not clean: it says nothing"
    assert not fence.state()["clean"]


def test_without_mongodb_it_goes_on_and_says_so_once(known, caplog):
    now, mongodb = [100.0], Store()
    fence = Fence(known, mongodb, lambda: iter(()), lambda _: None, lambda: now[0])
    mongodb.away = True
    for _ in range(3):
        fence.step()
        now[0] += 1
    assert caplog.text.count("MongoDB: gone") == 1
    assert fence.state()["problem"] == "MongoDB: gone"
    mongodb.away = False
    fence.step()
    assert fence.state()["problem"] == ""
    assert [request.verb for request in mongodb.asked] == ["read", "join", "renew"]


def test_what_runs_is_read_from_the_control_groups_and_the_grants(tmp_path):
    grants = tmp_path / "run"
    grants.mkdir()
    for name, processes in (("trading", "7\n"), ("operations", "")):
        group = tmp_path / f"pst.slice/pst-trading.slice/pst-trading-{name}.slice"
        group.mkdir(parents=True)
        (group / "cgroup.procs").write_text(processes)
    grant = {"host": "a", "colour": "blue", "instance": "i", "address": "1", "epoch": 3, "sent_at_monotonic": 1.0,
             "valid_until_monotonic": 16.0, "deadline_monotonic": 13.0, "previous_ended": None}  # fmt: skip
    (grants / "strategies.json").write_text(json.dumps(grant))
    seen = list(Placements(tmp_path, grants).slices())
    assert seen == [Slice(False, None), Slice(False, 16.0), Slice(True, None)]  # operations, strategies, trading


def test_the_state_tells_its_age(tmp_path):
    path = tmp_path / "fence.json"
    assert module.read_state(path) == {}
    path.write_text(json.dumps({"at": module.boot_time() - 5, "clean": True}))
    assert 5 <= module.read_state(path)["age"] < 10


def test_waiting_ends_with_what_is_still_wrong():
    answers = iter(["not yet", "", "never asked"])
    assert module.wait_until(lambda: next(answers), 5) == ""
    assert module.wait_until(lambda: "still", 0) == "still"


MOUNTS = """\
1 0 0:1 / / rw - ext4 /dev/sda rw
2 1 0:5 / /srv/parquet/store rw,relatime shared:1 - fuse.glusterfs x:/parquet rw
3 1 0:5 / /var/lib/pst/parquet {} shared:1 - fuse.glusterfs x:/parquet rw
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (MOUNTS.format("ro,relatime"), ""),
        (MOUNTS.format("rw,relatime"), "/var/lib/pst/parquet: seen fuse.glusterfs, wanted the volume, read-only"),
        (MOUNTS.splitlines()[0] + "\n", "/srv/parquet/store: seen nothing, wanted the volume (fuse.glusterfs)"),
        ("\n".join(MOUNTS.splitlines()[:2]) + "\n", "/var/lib/pst/parquet: seen nothing, wanted the volume, read-only"),
    ],
)
def test_mounts_that_are_missing_or_writable_are_told(tmp_path, text, problem):
    table = tmp_path / "mountinfo"
    table.write_text(text)
    assert store.mount_problem("/srv/parquet/store", "/var/lib/pst/parquet", table) == problem
    assert store.writable("/var/lib/pst/parquet", table) == (text == MOUNTS.format("rw,relatime"))


def test_a_write_is_tried_and_leaves_nothing(tmp_path):
    assert store.write_problem(str(tmp_path), "a", 5) == ""
    assert list(tmp_path.iterdir()) == []
    assert "No such file" in store.write_problem(str(tmp_path / "gone"), "a", 5)


STATUS = """<cliOutput><opRet>0</opRet><volStatus><volumes><volume><volName>parquet</volName>
<node><hostname>a.t</hostname><path>/srv/parquet/brick</path><status>1</status></node>
<node><hostname>b.t</hostname><path>/srv/parquet/brick</path><status>0</status></node>
<node><hostname>Self-heal Daemon</hostname><path>localhost</path><status>1</status></node>
</volume></volumes></volStatus></cliOutput>"""
HEAL = """<cliOutput><opRet>0</opRet><healInfo><bricks>
<brick hostUuid="1"><name>a.t:/x</name><status>Connected</status><numberOfEntries>3</numberOfEntries></brick>
<brick hostUuid="-"><name>b.t:/x</name><status>Not connected</status><numberOfEntries>-</numberOfEntries></brick>
</bricks></healInfo></cliOutput>"""


def test_the_state_of_the_volume_is_read(monkeypatch):
    answers = {"status": STATUS, "heal": HEAL}
    monkeypatch.setattr(
        gluster.subprocess, "run", lambda command, **_: type("Done", (), {"stdout": answers[command[3]]})
    )
    seen = gluster.volume("parquet")
    assert seen.bricks == {"a.t:/srv/parquet/brick": True, "b.t:/srv/parquet/brick": False}
    assert seen.pending == 3


def test_a_refusal_of_gluster_is_an_error(monkeypatch):
    refused = "<cliOutput><opRet>-1</opRet><opErrstr>Another transaction is in progress</opErrstr></cliOutput>"
    waited: list[float] = []
    monkeypatch.setattr(gluster.time, "sleep", waited.append)
    monkeypatch.setattr(gluster.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": refused}))
    with pytest.raises(gluster.GlusterError, match="Another transaction"):
        gluster.volume("parquet")
    assert len(waited) == gluster.TRIES
