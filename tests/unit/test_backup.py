"""The backup's rules without a MongoDB: what leads to a point in time, what the oplog does, what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pst_backup import catalog, cli, copy, jobs, keeper, metrics, mongo, raw, replay, restic, restore, settings
from pst_backup.catalog import CatalogError, Snapshot, Stamp

from ansible_collections.pst.platform.plugins.module_utils import backup as role

# Catalog --------------------------------------------------------------------------------------------------------------


def full(second: int, identity: str = "f", ordinal: int = 1) -> Snapshot:
    return Snapshot(
        f"{identity}{second}", second + 1.0, "m1", (catalog.FULL, f"until={second}.{ordinal}", "documents=9")
    )


def part(after: str, until: str, host: str = "m1") -> Snapshot:
    tags = (catalog.OPLOG, f"after={after}", f"until={until}")
    return Snapshot(f"p{after}-{until}", float(until) + 1, host, tags)


def test_the_last_dump_before_the_target_and_the_parts_after_it_lead_there() -> None:
    there = [
        full(100),
        part("100.1", "110.5"),
        full(120),
        part("110.5", "120.2"),
        part("120.1", "130.1"),
        part("130.1", "140.1"),
    ]
    plan = catalog.plan(there, 125)
    assert plan.full.id == "f120"
    # The first one overlaps the dump: what is in both is applied once.
    assert [chunk.id for chunk in plan.chunks] == ["p110.5-120.2", "p120.1-130.1"]
    assert catalog.plan(there, 115).full.id == "f100"
    assert catalog.plan(there, None).reaches == Stamp(140, 1)


def test_parts_of_two_members_that_overlap_are_a_chain() -> None:
    there = [full(100), part("100.1", "110.5", "m1"), part("105.1", "115.1", "m2"), part("112.1", "113.1", "m3")]
    assert [chunk.id for chunk in catalog.plan(there, None).chunks] == ["p100.1-110.5", "p105.1-115.1"]


def test_a_gap_is_told_and_not_jumped_over() -> None:
    there = [full(100), part("100.1", "110.1"), part("115.1", "130.1")]
    with pytest.raises(CatalogError, match=r"reach to 1970-01-01T00:01:50Z.*next part begins at 1970-01-01T00:01:55Z"):
        catalog.plan(there, 120)
    assert catalog.last(there) == Stamp(110, 1)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (99, "the first full dump is of 1970-01-01T00:01:40Z; wanted one before"),
        # Of the last second there may be more than the repository has.
        (110, "not to the end of 1970-01-01T00:01:50Z"),
    ],
)
def test_a_second_that_is_not_wholly_in_the_backups_is_refused(target: int, words: str) -> None:
    with pytest.raises(CatalogError, match=words):
        catalog.plan([full(100), part("100.1", "110.1")], target)
    assert catalog.plan([full(100), part("100.1", "110.1")], 109).target == 109


def test_without_a_dump_there_is_nothing() -> None:
    assert catalog.last([part("1.1", "2.1")]) is None
    with pytest.raises(CatalogError, match="no full dump"):
        catalog.plan([part("1.1", "2.1")], 1)


@pytest.mark.parametrize(
    ("text", "second"), [("latest", None), ("1970-01-01T00:01:40Z", 100), ("1970-01-01 01:01:40+01:00", 100)]
)
def test_a_moment_is_read(text: str, second: int | None) -> None:
    assert catalog.moment(text) == second


def test_a_moment_without_a_zone_is_the_hosts() -> None:
    assert catalog.moment("2026-11-30T02:15:07") == int(datetime(2026, 11, 30, 2, 15, 7).astimezone().timestamp())


@pytest.mark.parametrize("text", ["yesterday", "2026-11-30T02:15:07.5Z", ""])
def test_a_moment_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CatalogError, match="wanted"):
        catalog.moment(text)


def test_backups_with_made_up_times_stop_the_thinning_out() -> None:
    honest = Snapshot("a" * 64, 1000.0, "m1", ())
    future = Snapshot("b" * 64, 500_000.0, "m1", ())
    backdated = Snapshot("c" * 64, 1000.0, "m1", ())
    came = {honest.id: 1300.0, future.id: 1300.0, backdated.id: 400_000.0}
    told = catalog.suspicious([honest, future, backdated], came, now=1400.0)
    assert [line[:8] for line in told] == ["bbbbbbbb", "cccccccc"]
    assert "in the future" in told[0]


def test_restics_times_are_read_to_the_nanosecond() -> None:
    told = {"id": "x", "time": "2026-11-30T02:15:07.123456789-05:00", "hostname": "h", "tags": ["full", "until=5.1"]}
    found = Snapshot.of(told)
    assert (found.kind, found.until, round(found.time, 3)) == ("full", Stamp(5, 1), 1796022907.123)


# The oplog ------------------------------------------------------------------------------------------------------------


class Recorder:
    """A target that keeps what it was told."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    def apply(self, operations: list[dict[str, Any]]) -> None:
        self.done += [(op["op"], op["ns"], bson.decode(op["o"].raw)) for op in operations]

    def create(self, namespace: str, options: Any) -> None:
        self.done.append(("create", namespace, dict(options)))

    def drop(self, namespace: str) -> None:
        self.done.append(("drop", namespace))

    def rename(self, namespace: str, to: str) -> None:
        self.done.append(("rename", namespace, to))

    def modify(self, namespace: str, change: Any) -> None:
        self.done.append(("modify", namespace, dict(change)))


def entry(second: int, kind: str, namespace: str, document: dict[str, Any], ordinal: int = 1, **more: Any) -> Any:
    whole = {"ts": Timestamp(second, ordinal), "op": kind, "ns": namespace, "o": document, **more}
    return Stamp(second, ordinal), RawBSONDocument(bson.encode(whole), mongo.RAW)


def run(*entries: Any, target: int | None = None, only: str = "", shapes: dict[str, replay.Shape] | None = None) -> Any:
    recorder = Recorder()
    work = replay.Replay(
        recorder, {"d.a": replay.Shape()} if shapes is None else shapes, cli.selection(only), restore.staged
    )
    work.run(entries, Stamp(10, 1), target)
    return recorder.done, work


def test_operations_go_to_the_staged_collections_up_to_the_end_of_the_second() -> None:
    done, work = run(
        entry(10, "i", "d.a", {"_id": 0}),  # in the dump already
        entry(10, "i", "d.a", {"_id": 1}, ordinal=2),
        entry(11, "u", "d.a", {"$v": 2, "diff": {"u": {"x": 1}}}, o2={"_id": 1}),
        entry(12, "d", "d.a", {"_id": 1}, ordinal=7),
        entry(13, "i", "d.a", {"_id": 2}),
        target=12,
    )
    assert [what[:2] for what in done] == [("i", "d.__restore__.a"), ("u", "d.__restore__.a"), ("d", "d.__restore__.a")]
    assert work.applied == 3


def test_parts_that_overlap_are_applied_once() -> None:
    one = entry(11, "i", "d.a", {"_id": 1})
    done, _ = run(one, entry(12, "i", "d.a", {"_id": 2}), one, entry(13, "i", "d.a", {"_id": 3}))
    assert [what[2]["_id"] for what in done] == [1, 2, 3]


def test_a_transaction_of_several_entries_is_applied_when_it_is_whole() -> None:
    session = {"lsid": {"id": 1}, "txnNumber": 5}

    def inner(number: int) -> dict[str, Any]:
        return {"op": "i", "ns": "d.a", "o": {"_id": number}}

    begun = entry(11, "c", "admin.$cmd", {"applyOps": [inner(1)], "partialTxn": True}, **session)
    done, _ = run(begun, entry(12, "i", "d.a", {"_id": 9}), target=12)
    assert [what[2]["_id"] for what in done] == [9]
    done, _ = run(begun, entry(12, "c", "admin.$cmd", {"applyOps": [inner(2)]}, **session))
    assert [what[2]["_id"] for what in done] == [1, 2]


def test_what_changes_collections_and_indexes_is_followed() -> None:
    index = {"v": 2, "key": {"k": 1}, "name": "k_1"}
    done, work = run(
        entry(11, "c", "d.$cmd", {"create": "b", "idIndex": {}, "capped": False}),
        entry(12, "c", "d.$cmd", {"createIndexes": "b", **index}),
        entry(13, "c", "d.$cmd", {"startIndexBuild": "b", "indexes": [index]}),
        entry(14, "c", "d.$cmd", {"commitIndexBuild": "b", "indexes": [{**index, "name": "l_1"}]}),
        entry(15, "c", "d.$cmd", {"collMod": "b", "index": {"name": "l_1", "expireAfterSeconds": 5}}),
        entry(16, "c", "d.$cmd", {"dropIndexes": "b", "index": "k_1"}),
        entry(17, "c", "d.$cmd", {"renameCollection": "d.b", "to": "d.c"}),
        entry(18, "c", "d.$cmd", {"drop": "a"}),
        entry(19, "c", "d.$cmd", {"dropDatabase": 1}),
        entry(20, "n", "", {"msg": "periodic noop"}),
    )
    assert done == [
        ("create", "d.__restore__.b", {"capped": False}),
        ("rename", "d.__restore__.b", "d.__restore__.c"),
        ("drop", "d.__restore__.a"),
    ]
    # Built at the end: an index that expires documents would act on a state that never was.
    assert list(work.shapes) == ["d.c"]
    (found,) = work.shapes["d.c"].indexes.values()
    assert (found["name"], found["expireAfterSeconds"], found["v"]) == ("l_1", 5, 2)


def test_one_collection_alone_takes_its_own_operations_only() -> None:
    many = [{"op": "i", "ns": f"d.{name}", "o": {"_id": name}} for name in "ab"]
    done, _ = run(
        entry(11, "c", "admin.$cmd", {"applyOps": many}),
        entry(12, "i", "e.a", {"_id": 1}),
        entry(13, "i", "config.system.sessions", {"_id": 1}),
        only="d.a",
    )
    assert [what[1] for what in done] == ["d.__restore__.a"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (entry(11, "c", "d.$cmd", {"convertToCapped": "a"}), "convertToCapped cannot be replayed"),
        (entry(11, "i", "d.system.views", {"_id": "d.v"}), "changes a view"),
        (entry(11, "c", "d.$cmd", {"drop": "z"}), "not in the backup"),
        (entry(11, "c", "admin.$cmd", {"applyOps": [], "prepare": True}), "prepared transaction"),
        (entry(11, "x", "d.a", {}), "unknown kind"),
    ],
)
def test_what_cannot_be_replayed_is_told_with_its_time(what: Any, words: str) -> None:
    with pytest.raises(replay.ReplayError, match=rf"1970-01-01T00:00:11Z.*{words}.*restore to a second before it"):
        run(what)


def test_one_collection_is_not_restored_across_its_renaming() -> None:
    with pytest.raises(replay.ReplayError, match="one collection alone cannot be restored"):
        run(entry(11, "c", "d.$cmd", {"renameCollection": "d.a", "to": "d.b"}), only="d.a")


def test_large_documents_are_applied_in_several_commands() -> None:
    class Counter(Recorder):
        calls = 0

        def apply(self, operations: list[dict[str, Any]]) -> None:
            self.calls += 1

    counter = Counter()
    work = replay.Replay(counter, {"d.a": replay.Shape()}, lambda _: True, restore.staged)
    work.run((entry(11, "i", "d.a", {"_id": n, "x": "y" * 3_000_000}, n) for n in range(1, 6)), Stamp(10, 1), None)
    assert (counter.calls, work.applied) == (3, 5)


# Files ----------------------------------------------------------------------------------------------------------------


def dumped(folder: Path, documents: int = 3) -> Path:
    folder.mkdir()
    writer = raw.Writer(folder / "d.a.bson")
    for number in range(documents):
        writer.add(bson.encode({"_id": number}))
    sha = writer.close()
    about = {"namespace": "d.a", "file": "d.a.bson", "count": documents, "sha256": sha, "digest": str(writer.digest)}
    mongo.save(folder / "manifest.json", {"format": mongo.FORMAT, "at": "1.1", "collections": [about], "views": []})
    return folder


def test_a_dump_that_is_whole_passes(tmp_path: Path) -> None:
    restore.check(dumped(tmp_path / "x"))


@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_dump_that_is_not_is_refused(tmp_path: Path, how: str) -> None:
    path = dumped(tmp_path / "x") / "d.a.bson"
    content = path.read_bytes()
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if how == "cut" else content[:10] + bytes([content[10] ^ 1]) + content[11:])
    with pytest.raises(restore.RestoreError, match=r"d\.a\.bson"):
        restore.check(tmp_path / "x")


def test_the_digest_of_a_collection_needs_no_order() -> None:
    one, other, changed = raw.Digest(), raw.Digest(), raw.Digest()
    documents = [bson.encode({"_id": number}) for number in range(5)]
    for document in documents:
        one.add(document)
    for document in reversed(documents):
        other.add(document)
    for document in [*documents[:4], bson.encode({"_id": 7})]:
        changed.add(document)
    assert str(one) == str(other) != str(changed)


def test_a_file_that_is_cut_short_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bson.encode({"_id": 1}) + b"\x20\x00\x00\x00short")
    with pytest.raises(raw.DamagedError, match="cut short"):
        list(raw.read(path))


def test_too_small_a_disk_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(restore.RestoreError, match="MB free; wanted"):
        restore.room(tmp_path / "not" / "there", 1 << 60, "the dump")


# Who does it ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ({"m1:1": {"isWritablePrimary": True}, "m3:1": {"secondary": True}, "m2:1": {"secondary": True}}, "m2:1"),
        ({"m1:1": {"isWritablePrimary": True}, "m2:1": {"secondary": True, "hidden": True}}, "m1:1"),
        ({"m1:1": {"isWritablePrimary": False, "secondary": False}}, ""),
    ],
)
def test_a_secondary_is_read_from_where_there_is_one(said: dict[str, Any], chosen: str) -> None:
    assert mongo.elected(said) == chosen


def test_the_host_whose_turn_it_is_not_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = settings.Settings("lab", "m1", {"mongodb": {"mongodb": {}}}, {})
    account = mongo.Account(("m1.x:1", "m2.x:1"), "rs", "u", "p", "ca")
    monkeypatch.setattr(settings.Settings, "account", lambda *_: account)
    monkeypatch.setattr(
        mongo, "states", lambda _: {"m2.x:1": {"secondary": True}, "m1.x:1": {"isWritablePrimary": True}}
    )
    said: list[str] = []
    assert jobs.oplog(told, "mongodb", said.append) is None
    assert said == ["m2.x:1 does this"]
    monkeypatch.setattr(mongo, "states", lambda _: {})
    with pytest.raises(jobs.JobError, match=r"none of m1\.x:1, m2\.x:1 answers"):
        jobs.oplog(told, "mongodb", said.append)


class Client:
    """A MongoDB that is never asked."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A host whose turn it is, with a repository that has one dump; what is put into it goes to `stored`."""
    world: dict[str, Any] = {
        "stored": [],
        "snapshots": [full(100)],
        "dump": {"at": "200.1", "documents": 9, "bytes": 9},
    }
    told = settings.Settings("lab", "m1", {"mongodb": {"mongodb": {}}}, {})
    account = mongo.Account(("m1.x:1",), "rs", "u", "p", "ca")
    world["settings"] = told
    monkeypatch.setattr(jobs, "STATE", tmp_path)
    monkeypatch.setattr(settings.Settings, "account", lambda *_: account)
    monkeypatch.setattr(settings.Settings, "repository", lambda *_: REMOTE)
    monkeypatch.setattr(mongo.Account, "client", lambda *_, **__: Client())
    monkeypatch.setattr(mongo, "states", lambda _: {"m1.x:1": {"isWritablePrimary": True}})
    monkeypatch.setattr(mongo, "size_on_disk", lambda _: 0)
    monkeypatch.setattr(mongo, "dump", lambda *_: world["dump"])
    monkeypatch.setattr(mongo, "follow", lambda *_: world["part"])
    monkeypatch.setattr(restic.Restic, "snapshots", lambda *_: world["snapshots"])

    def backup(_: Any, paths: Any, tags: list[str], **__: Any) -> dict[str, Any]:
        world["stored"].append(tags)
        return {"snapshot_id": "x" * 64, "data_added": 1}

    monkeypatch.setattr(restic.Restic, "backup", backup)
    return world


def test_a_dump_is_stored_with_what_a_restore_looks_for(member: dict[str, Any]) -> None:
    done = jobs.full(member["settings"], "mongodb", lambda _: None)
    assert member["stored"] == [["full", "until=200.1", "documents=9", "bytes=9"]]
    assert done is not None
    assert done["point_in_time_timestamp_seconds"] == 199


def test_an_empty_database_is_not_taken_for_a_backup(member: dict[str, Any]) -> None:
    member["dump"] |= {"documents": 0}
    with pytest.raises(jobs.JobError, match="no documents; the dump before had 9"):
        jobs.full(member["settings"], "mongodb", lambda _: None)
    assert member["stored"] == []
    assert jobs.full(member["settings"], "mongodb", lambda _: None, allow_empty=True)


def test_an_oplog_that_does_not_reach_back_is_an_error_and_begins_anew(member: dict[str, Any]) -> None:
    member["part"] = None
    with pytest.raises(jobs.JobError, match=r"no longer reaches back to 1970-01-01T00:01:40Z.*in no backup"):
        jobs.oplog(member["settings"], "mongodb", lambda _: None)
    assert [tags[0] for tags in member["stored"]] == ["full"]


def test_a_part_goes_on_from_the_repositorys_end(member: dict[str, Any]) -> None:
    member["part"] = {"after": "100.1", "until": "130.2", "count": 3, "bytes": 5}
    jobs.oplog(member["settings"], "mongodb", lambda _: None)
    assert member["stored"] == [["oplog", "after=100.1", "until=130.2"]]
    member["snapshots"] = []
    jobs.oplog(member["settings"], "mongodb", lambda _: None)
    assert member["stored"][1][0] == "full", "the first thing in a repository is a dump"


def test_a_disk_that_is_too_small_for_the_dump_is_told_first(
    member: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo, "size_on_disk", lambda _: 1 << 60)
    with pytest.raises(restore.RestoreError, match="MB free; wanted"):
        jobs.full(member["settings"], "mongodb", lambda _: None)


# restic ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "restic"
    path.write_text('#!/bin/sh\n[ -e "$0.fail" ] && { cat "$0.fail" >&2; exit 1; }\necho "$@" "$RESTIC_REPOSITORY"\n')
    path.chmod(0o755)
    return path


REMOTE = restic.Repository("r", "rest:https://h:1/r/", Path("/key"), user="r", password="p/w", ca="/ca")


def test_no_password_is_on_the_command_line(program: Path) -> None:
    said = restic.Restic(REMOTE, str(program)).run("snapshots")
    words, _, place = said.strip().rpartition(" ")
    assert place == "rest:https://r:p%2Fw@h:1/r/"
    assert "p/w" not in words
    assert "p%2Fw" not in words
    assert "p/w" not in repr(REMOTE)


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("Fatal: wrong password or no key found", "the key .* does not open"),
        ("ciphertext verification failed", "the repository is damaged"),
        ("Load(<data/1>): invalid data returned", "the repository is damaged"),
        ("write /x: no space left on device", "no space is left"),
        ("dial tcp: connect: connection refused", "the repository cannot be reached"),
        ("unexpected HTTP response (401): 401 Unauthorized", "the repository's server refuses the password"),
    ],
)
def test_errors_are_in_plain_words(program: Path, said: str, meaning: str) -> None:
    program.with_name("restic.fail").write_text(said)
    with pytest.raises(restic.ResticError, match=f"repository r: restic check failed: {meaning}"):
        restic.Restic(REMOTE, str(program)).run("check")


def test_errors_that_are_objects_are_read_as_well() -> None:
    error = '{"message_type":"error","error":{"message":"permission denied"},"during":"archival","item":"/a"}'
    closing = '{"message_type":"exit_error","code":3,"message":"Warning: at least one source file could not be read"}'
    status = '{"message_type":"summary","files_new":1}'
    assert restic.essence("\n".join([status, error, closing])) == [
        "/a permission denied",
        "Warning: at least one source file could not be read",
    ]


def test_a_lock_of_another_is_waited_for(program: Path) -> None:
    fail = program.with_name("restic.fail")
    fail.write_text("unable to create lock in backend: repository is already locked by PID 1")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        fail.unlink()

    assert "snapshots" in restic.Restic(REMOTE, str(program), sleep=sleep).run("snapshots")
    assert waited == [restic.LOCK_POLL_S]


# The repositories' host -----------------------------------------------------------------------------------------------


def test_a_repository_that_somebody_tampers_with_is_not_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = {"daily": 7, "weekly": 4, "point_in_time_days": 7}
    server = {"repositories": ["bad", "good"], "folder": "/f", "keep": keep, "check_subset": "5%"}
    told = settings.Settings("lab", "h", {}, server)
    asked: list[tuple[str, ...]] = []

    def run_restic(self: restic.Restic, *words: str, **_: Any) -> str:
        asked.append((self.repository.name, *words))
        future = json.dumps([{"id": "x" * 64, "time": "2030-01-01T00:00:00Z", "hostname": "m", "tags": []}])
        return future if self.repository.name == "bad" else "[]"

    monkeypatch.setattr(restic.Restic, "run", run_restic)
    monkeypatch.setattr(keeper, "arrived", lambda _: {})
    with pytest.raises(keeper.KeeperError, match="bad: not thinned out"):
        keeper.prune(told, lambda _: None, now=1.8e9)
    done = {(name, words[0]) for name, *words in asked}
    assert ("bad", "forget") not in done
    assert {("good", "forget"), ("good", "prune"), ("good", "check")} <= done
    counted = [words for name, *words in asked if words[0] == "forget"]
    assert counted[0][-4:] == ["--keep-daily", "7", "--keep-weekly", "4"]
    assert counted[2][-2:] == ["--keep-within", "7d"]


# Monitoring -----------------------------------------------------------------------------------------------------------


def test_a_failure_keeps_the_last_success(tmp_path: Path) -> None:
    metrics.note(tmp_path, "full-m", {"documents": 5})
    good = metrics.record(tmp_path, "full-m", succeeded=True, now=100.0, seconds=3.0)
    bad = metrics.record(tmp_path, "full-m", succeeded=False, now=200.0, seconds=1.0)
    assert good["last_success_timestamp_seconds"] == bad["last_success_timestamp_seconds"] == 100.0
    assert (good["success"], bad["success"], bad["last_run_timestamp_seconds"], bad["documents"]) == (
        1.0,
        0.0,
        200.0,
        5,
    )
    text = metrics.merged([(bad, {"site": "lab", "job": "full-m"})])
    assert 'pst_backup_success{site="lab",job="full-m"} 0\n' in text
    assert text.count("# HELP pst_backup_success ") == 1


# The role -------------------------------------------------------------------------------------------------------------

SETS = [
    {"name": "mongodb", "kind": "mongodb", "groups": ["mongodb"]},
    {"name": "parquet", "kind": "files", "groups": ["app_nodes"], "paths": ["/p"]},
    {"name": "control", "kind": "files", "groups": ["backup"], "paths": ["/c"], "scheduled": False},
]
TIMES = {"full": "07:00", "files": "07:20", "prune": "08:20", "test": "09:30", "oplog_minutes": 5}


def test_each_host_has_the_jobs_of_its_groups() -> None:
    def names(groups: list[str], server: bool = False) -> dict[str, str]:
        return {job["name"]: job["at"] for job in role.jobs(SETS, groups, server, "lab", TIMES)}

    assert names(["mongodb"]) == {"full-mongodb": "*-*-* 07:00:00", "oplog-mongodb": "*:0/5"}
    assert names(["app_nodes"]) == {"files-parquet": "*-*-* 07:20:00"}
    assert names(["backup", "monitoring"], server=True) == {
        "files-control": "", "init": "", "look": "*:0/5",
        "prune": "*-*-* 08:20:00", "test-lab-mongodb": "*-*-* 09:30:00",
    }  # fmt: skip


def test_a_host_is_told_of_its_own_sets_only() -> None:
    told = role.told(SETS, ["app_nodes"], "lab", "keeper.x:8000", {})
    assert told == {
        "parquet": {
            "kind": "files", "repository": "lab-parquet", "url": "rest:https://keeper.x:8000/lab-parquet/",
            "paths": ["/p"], "exclude": [],
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("window", "at", "fine"),
    [(("07:00", "09:00"), "08:59", True), (("07:00", "09:00"), "09:00", False), (("23:00", "01:00"), "00:30", True)],
)
def test_daily_jobs_are_in_the_window(window: tuple[str, str], at: str, fine: bool) -> None:
    told = role.problems({"start": window[0], "end": window[1]}, {"backup_full_at": at}, 5)
    assert (told == []) is fine
    assert all(f"backup_full_at: seen {at}; wanted a time in backup_window" in line for line in told)


def test_the_oplogs_minutes_are_a_part_of_an_hour() -> None:
    (line,) = role.problems({"start": "07:00", "end": "09:00"}, {}, 7)
    assert line.startswith("backup_oplog_minutes: seen 7; wanted")


def test_the_file_of_passwords_is_what_openssl_makes() -> None:
    command = "printf %s secret | openssl dgst -sha1 -binary | openssl base64"
    sha = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout.strip()
    assert role.htpasswd({"b": "secret", "a": "x"}).splitlines()[1] == f"b:{{SHA}}{sha}"


def test_secrets_are_files_of_systemd_or_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pst_lab-m.key").write_text("given\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert settings.secret("lab-m.key") == "given"
    assert settings.secret_file("other") == settings.SECRETS / "other"
    with pytest.raises(settings.SettingsError, match="other"):
        settings.secret("other")


def test_a_wrong_set_is_named() -> None:
    with pytest.raises(settings.SettingsError, match="seen no such set; wanted one of mongodb"):
        settings.Settings("lab", "h", {"mongodb": {}}, {}).set("mongo")


def test_hashing_is_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100_000)
    assert raw.sha256(path) == hashlib.sha256(b"x" * 100_000).hexdigest()


# Copies for a rehearsal -----------------------------------------------------------------------------------------------


def held(*documents: bytes) -> raw.Digest:
    found = raw.Digest()
    for document in documents:
        found.add(document)
    return found


def test_a_copy_is_compared_by_count_and_content() -> None:
    wanted = {"a.same": held(b"1", b"2"), "a.fewer": held(b"1", b"2"), "a.other": held(b"1"), "a.empty": held()}
    seen = {"a.same": held(b"2", b"1"), "a.fewer": held(b"1"), "a.other": held(b"2"), "a.more": held(b"1")}
    assert copy.differences(wanted, seen) == [
        "a.fewer has 1 documents, wanted 2",
        "a.more has 1 documents, wanted 0",
        "a.other has 1 documents, wanted 1 of the same content",
    ]


def test_a_copy_begins_where_the_dump_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Target:
        """A member of the empty set; notes what it is told."""

        told: list[Any]

        def __init__(self) -> None:
            self.told, self.admin = [], self

        def command(self, what: Any) -> dict[str, Any]:
            self.told.append(what)
            return {"me": "m2"}

    digests = {"a.b": held(b"1")}
    stored: list[Any] = []
    monkeypatch.setattr(mongo, "size_on_disk", lambda _: 0)
    monkeypatch.setattr(mongo, "dump", lambda *_: {"at": "200.1", "member": "m1"})
    monkeypatch.setattr(mongo, "follow", lambda *_: {"until": "210.3"})
    monkeypatch.setattr(mongo, "listing", lambda _: mongo.Listing({"a.b": {}}, {}))
    monkeypatch.setattr(mongo, "digest_of", lambda _, name, at=None: stored.append(at) or digests[name])

    def stage(live: Any, fetched: restore.Fetched, *_: Any) -> restore.Staged:
        assert (fetched.plan.full.until, fetched.plan.reaches) == (Stamp(200, 1), Stamp(210, 3))
        assert live.concern.document["w"] == 2
        return restore.Staged({"a.b": restore.Shape({}, {})}, {}, Stamp(210, 3), 4, 1)

    monkeypatch.setattr(copy, "stage", stage)
    targets = [Target(), Target()]
    found = copy.copy(object(), targets, tmp_path / "data", lambda _: None)
    assert (found["documents"], found["operations"], found["members"], found["from"]) == (1, 4, 2, "m1")
    assert targets[0].told[0]["writeConcern"]["w"] == 2
    assert stored == [Stamp(210, 3), None, None]
    monkeypatch.setattr(mongo, "follow", lambda *_: None)
    with pytest.raises(restore.RestoreError, match="no longer reaches back"):
        copy.copy(object(), targets, tmp_path / "other", lambda _: None)


def test_a_copy_says_in_one_line_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--source", "m:1", "--target", "n:1", "--set", "s", "--ca", "/ca", "--folder", str(tmp_path / "f")]
    assert copy.main([*words, "--login", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
