"""pst.platform.files on a real file system: all of a task's files or none, and a second run that changes nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.pst.platform.plugins.module_utils import files
from ansible_collections.pst.platform.plugins.module_utils.files import Entry, FilesError, apply, problems_of

ME, US = str(os.getuid()), str(os.getgid())
CANARY = b"c4n4ry-secret\n"


def file(path: Path, content: bytes = b"new\n", **options) -> Entry:
    return Entry(str(path), content=content, **{"owner": ME, "group": US, "mode": "0640", **options})


def directory(path: Path, mode: str = "0750") -> Entry:
    return Entry(str(path), state="directory", owner=ME, group=US, mode=mode)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def leftovers(path: Path) -> list[str]:
    return [name for _, folders, names in os.walk(path) for name in (*folders, *names) if name.startswith(".pst")]


def test_a_tree_is_made_and_then_left_alone(tmp_path):
    entries = [
        file(tmp_path / "d/sub/a", b"a"),
        Entry(str(tmp_path / "d/link"), state="link", target="sub/a"),
        directory(tmp_path / "d/sub", "0700"),  # in any order
        directory(tmp_path / "d"),
        Entry(str(tmp_path / "old"), state="absent"),
    ]
    (tmp_path / "old/deep").mkdir(parents=True)
    assert apply(entries).changed_files == [entry.dest for entry in entries]
    assert (tmp_path / "d/link").read_bytes() == b"a"
    assert (mode_of(tmp_path / "d"), mode_of(tmp_path / "d/sub"), mode_of(tmp_path / "d/sub/a")) == (
        0o750,
        0o700,
        0o640,
    )
    assert not (tmp_path / "old").exists()
    assert leftovers(tmp_path) == []
    assert apply(entries).changed_files == []


def test_only_a_changed_content_changes_the_time(tmp_path):
    path = tmp_path / "a"
    apply([file(path)])
    os.utime(path, (1, 1))
    assert apply([file(path, mode="0600")]).changed_files == [str(path)]
    assert (mode_of(path), path.stat().st_mtime) == (0o600, 1)
    apply([file(path, b"other\n", mode="0600")])
    assert path.stat().st_mtime > 1


def test_a_refused_file_leaves_every_file_of_the_task_untouched(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FilesError) as caught:
        apply(
            [
                file(tmp_path / "a"),
                file(tmp_path / "new"),
                file(tmp_path / "b", validate="grep -q wanted %s"),
                file(tmp_path / "c", validate="/no/such/checker %s"),
            ]
        )
    assert len(caught.value.problems) == 3
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a"]


def test_a_check_sees_the_new_files_it_refers_to_under_the_final_name_of_its_own(tmp_path):
    entries = [
        file(
            tmp_path / "main.service", validate=f"sh -c 'test $(basename $0) = main.service && cat {tmp_path}/part' %s"
        ),
        file(tmp_path / "part"),
    ]
    assert len(apply(entries).changed_files) == 2


def test_what_a_checker_says_of_a_secret_is_withheld(tmp_path):
    for secret in (False, True):
        with pytest.raises(FilesError) as caught:
            apply([file(tmp_path / "a", CANARY, secret=secret, validate="sh -c 'cat $0; exit 3' %s")])
        assert "exit status 3" in str(caught.value)
        assert (CANARY.decode().strip() in str(caught.value)) is not secret


def test_a_diff_shows_content_and_access_but_no_secret(tmp_path):
    apply([file(tmp_path / "a", b"old\n"), file(tmp_path / "s", b"old\n"), file(tmp_path / "b", b"\xff\0")])
    outcome = apply(
        [
            file(tmp_path / "a", mode="0600"),
            file(tmp_path / "s", CANARY, secret=True),
            file(tmp_path / "b", b"\0"),
            directory(tmp_path / "d"),
        ]
    )
    content, access, secret, binary, made = outcome.diff
    assert (content["before"], content["after"]) == ("old\n", "new\n")
    assert "mode: 0640" in access["before"]
    assert "mode: 0600" in access["after"]
    assert secret["after"] == "(secret content changed)\n"
    assert CANARY.decode() not in str(outcome)
    assert binary["before"] == "(2 bytes, binary)\n"
    assert made["after"] == "directory\n"


def test_check_mode_predicts_on_a_bare_host(tmp_path):
    entries = [
        file(tmp_path / "not/there/a", owner="nobody-yet", group="nobody-yet", validate="/no/such/checker %s"),
        directory(tmp_path / "d"),
        Entry(str(tmp_path / "d/link"), state="link", target="x"),
    ]
    assert len(apply(entries, check=True).changed_files) == 3
    assert os.listdir(tmp_path) == []


def test_check_mode_checks_what_a_converged_host_would_get(tmp_path):
    entry = file(tmp_path / "a", validate="grep -q new %s")
    apply([entry])
    before = tmp_path.stat().st_mtime_ns
    assert apply([file(tmp_path / "a", b"new, too\n", validate="grep -q new %s")], check=True).changed_files
    with pytest.raises(FilesError, match="refused by"):
        apply([file(tmp_path / "a", b"bad\n", validate="grep -q new %s")], check=True)
    assert ((tmp_path / "a").read_bytes(), tmp_path.stat().st_mtime_ns) == (b"new\n", before)


def test_check_mode_checks_nothing_where_a_file_of_the_task_is_still_missing(tmp_path):
    """The checker might read what is missing."""
    apply([file(tmp_path / "a")])
    refused = file(tmp_path / "a", b"other\n", validate="false %s")
    assert len(apply([refused, file(tmp_path / "part")], check=True).changed_files) == 2


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: (events.append(name), real(*args)))
    apply([file(tmp_path / "a")])
    assert events == ["fsync", "rename", "fsync"]


def test_all_that_the_host_lacks_is_told_at_once(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch()
    with pytest.raises(FilesError) as caught:
        apply(
            [
                file(tmp_path / "no/a"),
                file(tmp_path / "b", owner="no-such-user", group="no-such-group"),
                file(tmp_path / "folder"),
                directory(tmp_path / "plain"),
            ]
        )
    assert len(caught.value.problems) == 5
    assert "its directory" in caught.value.problems[0]


def test_force_false_writes_once_and_never_looks_again(tmp_path):
    path = tmp_path / "sentinel.conf"
    assert apply([file(path, force=False)]).changed_files
    path.write_text("rewritten by the service")
    path.chmod(0o600)
    assert not apply([file(path, b"other", force=False)]).changed_files


def test_a_link_and_a_file_replace_each_other_and_the_target_stays(tmp_path):
    target, path = tmp_path / "target", tmp_path / "a"
    target.write_text("old")
    path.symlink_to(target)
    apply([file(path)])
    assert not path.is_symlink()
    assert target.read_text() == "old"
    assert apply([Entry(str(path), state="link", target="target")]).changed_files
    assert path.read_text() == "old"
    assert not apply([Entry(str(path), state="link", target="target")]).changed_files


def test_what_a_killed_run_left_is_cleared_even_when_nothing_changes(tmp_path):
    for _ in range(2):
        (tmp_path / files.STAGE).mkdir()
        (tmp_path / files.STAGE / "a").write_text("half")
        apply([file(tmp_path / "a")])
        assert os.listdir(tmp_path) == ["a"]


def test_a_secret_is_never_readable_by_others_not_even_while_staged(tmp_path, monkeypatch):
    seen = []
    rename = os.rename
    monkeypatch.setattr(
        os, "rename", lambda a, b: (seen.append((mode_of(Path(a)), mode_of(Path(a).parent))), rename(a, b))
    )
    apply([file(tmp_path / "key", CANARY, secret=True, mode="0600")])
    assert seen == [(0o600, 0o700)]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dest": "relative", "content": "", "mode": "0644"}, "absolute path"),
        ({"dest": "/a/../b", "content": "", "mode": "0644"}, "absolute path"),
        ({"dest": "/a/b", "content": ""}, "quoted octal"),
        ({"dest": "/a/b", "content": "", "mode": 420}, "quoted octal"),
        ({"dest": "/a/b", "mode": "0644"}, "exactly one of template, content, src, got none"),
        ({"dest": "/a/b", "content": "", "src": "x", "mode": "0644"}, "got content, src"),
        ({"dest": "/a/b", "content": "", "mode": "0644", "validate": "check"}, "wanted %s"),
        ({"dest": "/a/b", "state": "directory", "mode": "0755", "content": ""}, "content: is not an option"),
        ({"dest": "/a/b", "state": "link"}, "target: a link needs one"),
        ({"dest": "/a/b", "state": "touch"}, "wanted one of file, directory, link, absent"),
        ({"dest": "/etc", "state": "absent"}, "refused"),
        ({"dest": "/a/b", "content": "", "mode": "0644", "unsafe_writes": True}, "unsafe_writes: is not an option"),
        ("text", "wanted a dictionary"),
    ],
)
def test_a_wrong_entry_is_refused_on_the_control_node(entry, words):
    (problem,) = problems_of([entry])
    assert words in problem


def test_all_wrong_entries_are_told_at_once():
    wrong = {"dest": "/a/b", "mode": "0644"}
    assert len(problems_of([wrong, wrong, {"dest": "/c/d", "content": "", "mode": "rw"}])) == 4
    assert problems_of("text") == ["files: wanted a list, got str"]


@given(
    before=st.none() | st.binary(max_size=40),
    after=st.binary(max_size=40),
    mode=st.sampled_from(["0600", "0644", "4755"]),
)
def test_whatever_was_there_one_run_is_enough(tmp_path_factory, before, after, mode):
    path = tmp_path_factory.mktemp("any") / "a"
    if before is not None:
        path.write_bytes(before)
    predicted = apply([file(path, after, mode=mode)], check=True)
    assert predicted == apply([file(path, after, mode=mode)])
    assert (path.read_bytes(), mode_of(path)) == (after, int(mode, 8))
    assert apply([file(path, after, mode=mode)]).changed_files == []
