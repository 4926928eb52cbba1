# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The files of a role on a host: compared, staged, checked, then put in place together."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

STATES = ("file", "directory", "link", "absent")
SOURCES = ("template", "content", "src")
KEYS = {
    "file": {*SOURCES, "brackets", "owner", "group", "mode", "secret", "validate", "force"},
    "directory": {"owner", "group", "mode"},
    "link": {"target"},
    "absent": set[str](),
}
STAGE = ".pst-staged"
"""A folder beside the destinations: the same file system, so that rename is atomic, and the same base name,
because some checkers (systemd-analyze verify) read the type of a file from its name."""

DIFF_LIMIT = 100_000


class FilesError(Exception):
    """All that is wrong, at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class Entry:
    """One wanted path."""

    dest: str
    state: str = "file"
    owner: str = "root"
    group: str = "root"
    mode: str = "0644"
    content: bytes = field(default=b"", repr=False)
    secret: bool = False
    validate: str | None = None
    force: bool = True
    target: str = ""

    @property
    def parent(self) -> str:
        return os.path.dirname(self.dest)


class Access(NamedTuple):
    """Who owns a path and what they may do."""

    owner: str
    group: str
    mode: str

    def text(self) -> str:
        return f"owner: {self.owner}\ngroup: {self.group}\nmode: {self.mode}\n"


@dataclass(frozen=True)
class Change:
    """What has to happen to one path; `content` and `access` say which side differs."""

    entry: Entry
    existed: bool
    content: bool = False
    access: bool = False


@dataclass
class Outcome:
    """What was done, or would be done in check mode."""

    changed_files: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)


def problems_of(files: object) -> list[str]:
    """Return everything that is wrong with the `files` of a task, before anything is rendered or sent."""
    if not isinstance(files, list):
        return [f"files: wanted a list, got {type(files).__name__}"]
    problems: list[str] = []
    seen: set[str] = set()
    for number, entry in enumerate(files):
        if not isinstance(entry, Mapping):
            problems.append(f"files[{number}]: wanted a dictionary, got {type(entry).__name__}")
            continue
        dest = entry.get("dest")
        if not isinstance(dest, str) or not dest.startswith("/") or os.path.normpath(dest) != dest:
            problems.append(
                f"files[{number}].dest: wanted an absolute path without '..' or a slash at its end, got {dest!r}"
            )
            continue
        if dest in seen:
            problems.append(f"{dest}: is listed twice")
        seen.add(dest)
        problems += [f"{dest}: {problem}" for problem in _entry_problems(entry)]
    return problems


def _entry_problems(entry: Mapping[str, Any]) -> Iterator[str]:
    state = entry.get("state", "file")
    if state not in STATES:
        yield f"state: wanted one of {', '.join(STATES)}, got {state!r}"
        return
    for key in sorted(set(entry) - KEYS[state] - {"dest", "state", "when"}):
        yield f"{key}: is not an option of a path with state {state}"
    if state in ("file", "directory"):
        mode = entry.get("mode")
        if not isinstance(mode, str) or not re.fullmatch(r"[0-7]{3,4}", mode):
            yield f'mode: wanted a quoted octal such as "0640", got {mode!r}'
    if state == "link" and not entry.get("target"):
        yield "target: a link needs one"
    if state == "file":
        given = [key for key in SOURCES if entry.get(key) is not None]
        if len(given) != 1:
            yield f"wanted exactly one of {', '.join(SOURCES)}, got {', '.join(given) or 'none'}"
        validate = entry.get("validate")
        if validate is not None and "%s" not in str(validate):
            yield f"validate: wanted %s in the command where the file's path goes, got {validate!r}"
    if state == "absent" and str(entry["dest"]).count("/") < 2:
        yield "refused: would remove a directory of the root"


def apply(entries: Sequence[Entry], *, check: bool = False) -> Outcome:
    """Bring every path to its wanted state; raise FilesError with all problems and no file touched.

    Directories come first, because files are staged in them; what is to be absent goes last.
    """
    _refuse(_host_problems(entries, check=check))
    changes = [change for change in map(_compare, entries) if change]
    ordered = {state: [change for change in changes if change.entry.state == state] for state in STATES}
    outcome = Outcome(
        changed_files=[change.entry.dest for change in changes],
        diff=[item for change in changes for item in _diff(change)],
    )
    if check:
        _check_only(ordered["file"])
        return outcome
    _clear_stages(entries)
    for change in sorted(ordered["directory"], key=lambda change: change.entry.dest):  # parents first
        _make_directory(change)
    _put_files(ordered["file"])
    for change in ordered["link"]:
        _put_link(change.entry)
    for change in ordered["absent"]:
        _remove(change.entry.dest)
    return outcome


def _clear_stages(entries: Sequence[Entry]) -> None:
    """Remove what a killed run left beside the destinations."""
    for folder in {os.path.join(entry.parent, STAGE) for entry in entries}:
        if _kind(folder):
            _remove(folder)


def _put_link(entry: Entry) -> None:
    with _stage(entry.parent) as folder:
        staged = os.path.join(folder, os.path.basename(entry.dest))
        os.symlink(entry.target, staged)
        _rename(staged, entry.dest)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise FilesError(problems)


def _host_problems(entries: Sequence[Entry], *, check: bool) -> list[str]:
    """What this host lacks. In check mode users, groups and folders may be made by tasks that did not run."""
    problems = []
    made = {entry.dest for entry in entries if entry.state == "directory"}
    for entry in entries:
        kind = _kind(entry.dest)
        if entry.state in ("file", "link") and kind == "directory":
            problems.append(f"{entry.dest}: wanted a {entry.state}, there is a directory")
        if entry.state == "directory" and kind not in ("directory", ""):
            problems.append(f"{entry.dest}: wanted a directory, there is a {kind}")
        if check:
            continue
        if entry.state in ("file", "directory"):
            problems += [
                f"{entry.dest}: {what} {name} does not exist on this host"
                for what, name, number in (
                    ("owner", entry.owner, _uid(entry.owner)),
                    ("group", entry.group, _gid(entry.group)),
                )
                if number is None
            ]
        if entry.state != "absent" and entry.parent not in made and not os.path.isdir(entry.parent):
            problems.append(f"{entry.dest}: its directory {entry.parent} does not exist")
    return problems


def _kind(path: str) -> str:
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISDIR(mode):
        return "directory"
    return "file" if stat.S_ISREG(mode) else "special file"


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return int(name) if name.isdigit() else None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return int(name) if name.isdigit() else None


def _known(number: int | None, name: str) -> int:
    if number is None:  # it was there when the task began
        raise FilesError([f"{name}: was removed from this host while the task ran"])
    return number


def _live_access(path: str) -> Access:
    info = os.lstat(path)
    try:
        owner = pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        owner = str(info.st_uid)
    try:
        group = grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        group = str(info.st_gid)
    return Access(owner, group, f"{stat.S_IMODE(info.st_mode):04o}")


def _same_access(entry: Entry) -> bool:
    info = os.lstat(entry.dest)
    return (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (
        _uid(entry.owner),
        _gid(entry.group),
        int(entry.mode, 8),
    )


def _same_content(entry: Entry) -> bool:
    path = Path(entry.dest)
    return path.stat().st_size == len(entry.content) and path.read_bytes() == entry.content


def _compare(entry: Entry) -> Change | None:
    """Return what differs between an entry and the host, or None."""
    kind = _kind(entry.dest)
    existed = kind != ""
    if entry.state == "absent":
        return Change(entry, existed, content=True) if existed else None
    if entry.state == "link":
        same = kind == "link" and os.readlink(entry.dest) == entry.target
        return None if same else Change(entry, existed, content=True)
    if entry.state == "directory":
        if not existed:
            return Change(entry, existed, content=True)
        return None if _same_access(entry) else Change(entry, existed, access=True)
    if existed and not entry.force:
        return None
    if kind != "file":
        return Change(entry, existed, content=True)
    change = Change(entry, existed, content=not _same_content(entry), access=not _same_access(entry))
    return change if change.content or change.access else None


def _diff(change: Change) -> Iterator[dict[str, str]]:
    entry = change.entry
    header = {"before_header": entry.dest, "after_header": entry.dest}
    if change.content:
        before, after = _describe_live(entry), _describe_wanted(entry)
        if entry.secret:
            before, after = "", "(secret content changed)\n"
        yield {**header, "before": before, "after": after}
    if change.access:
        wanted = Access(entry.owner, entry.group, f"{int(entry.mode, 8):04o}")
        yield {**header, "before": _live_access(entry.dest).text(), "after": wanted.text()}


def _describe_live(entry: Entry) -> str:
    kind = _kind(entry.dest)
    if kind == "link":
        return f"link to {os.readlink(entry.dest)}\n"
    if kind == "file" and entry.state == "file":
        return _printable(Path(entry.dest).read_bytes())
    return f"{kind}\n" if kind else ""


def _describe_wanted(entry: Entry) -> str:
    if entry.state == "file":
        return _printable(entry.content)
    return {"directory": "directory\n", "link": f"link to {entry.target}\n", "absent": ""}[entry.state]


def _printable(content: bytes) -> str:
    if len(content) > DIFF_LIMIT:
        return f"({len(content)} bytes)\n"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"({len(content)} bytes, binary)\n"
    return text if "\0" not in text else f"({len(content)} bytes, binary)\n"


def _make_directory(change: Change) -> None:
    if not change.existed:
        os.mkdir(change.entry.dest, 0o700)
    _set_access(change.entry)


def _give(descriptor: int, entry: Entry) -> None:
    """Set owner, then mode: a change of owner clears the set-id bits."""
    os.fchown(descriptor, _known(_uid(entry.owner), entry.owner), _known(_gid(entry.group), entry.group))
    os.fchmod(descriptor, int(entry.mode, 8))


def _put_files(changes: Sequence[Change]) -> None:
    """Stage all, check all, rename all.

    A new file without a check of its own is put in place before the checks and taken back when one fails: a checker
    may have to read what the checked file refers to, and nothing that runs reads a file that was not there.
    """
    written = [change for change in changes if change.content]
    with _stages({change.entry.parent for change in written}) as folders:
        staged = [(os.path.join(folders[c.entry.parent], os.path.basename(c.entry.dest)), c) for c in written]
        for path, change in staged:
            _write(path, change.entry)
        early = [(path, c) for path, c in staged if not c.existed and not c.entry.validate]
        for path, change in early:
            _rename(path, change.entry.dest)
        problems = [problem for path, change in staged for problem in _validate(change.entry, path)]
        if problems:
            for _, change in early:
                os.unlink(change.entry.dest)
            raise FilesError([*problems, "no file of the task was changed"])
        for path, change in staged:
            if (path, change) not in early:
                _rename(path, change.entry.dest)
    for change in changes:
        if not change.content:
            _set_access(change.entry)


def _set_access(entry: Entry) -> None:
    """Set owner and mode of what is there, without following a link."""
    descriptor = os.open(entry.dest, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _give(descriptor, entry)
    finally:
        os.close(descriptor)


def _check_only(changes: Sequence[Change]) -> None:
    """Run the checks on copies outside the destinations.

    Only where every file of the task exists already: on a bare host a checker would miss what it refers to.
    """
    if not all(change.existed for change in changes):
        return
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pst-files-") as folder:
        for number, change in enumerate(changes):
            entry = change.entry
            if change.content and entry.validate and shutil.which(shlex.split(entry.validate)[0]):
                os.mkdir(place := os.path.join(folder, str(number)), 0o700)
                path = os.path.join(place, os.path.basename(entry.dest))
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                    stream.write(entry.content)
                problems += _validate(entry, path)
    _refuse(problems)


def _validate(entry: Entry, path: str) -> list[str]:
    if not entry.validate:
        return []
    command = [word.replace("%s", path) for word in shlex.split(entry.validate)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"{entry.dest}: cannot be checked with {command[0]}: {error}"]
    if done.returncode == 0:
        return []
    said = (done.stderr + b"\n" + done.stdout).decode(errors="replace").strip()
    said = "(its output is withheld, the file is secret)" if entry.secret else said.replace(path, entry.dest)
    return [f"{entry.dest}: refused by {entry.validate!r} (exit status {done.returncode}): {said}"]


@contextmanager
def _stage(parent: str) -> Iterator[str]:
    """Yield an empty folder in `parent`, gone afterwards."""
    folder = os.path.join(parent, STAGE)
    os.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        _remove(folder)


@contextmanager
def _stages(parents: set[str]) -> Iterator[dict[str, str]]:
    """Yield one staging folder for each parent."""
    if not parents:
        yield {}
        return
    first, *rest = sorted(parents)
    with _stage(first) as folder, _stages(set(rest)) as others:
        yield {first: folder, **others}


def _write(path: str, entry: Entry) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(entry.content)
        stream.flush()
        _give(stream.fileno(), entry)
        os.fsync(stream.fileno())


def _rename(staged: str, dest: str) -> None:
    try:
        os.rename(staged, dest)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise FilesError([f"{dest}: is a mount point, it cannot be replaced atomically"]) from error
    descriptor = os.open(os.path.dirname(dest), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    if _kind(path) == "directory":
        shutil.rmtree(path)
    else:
        os.unlink(path)
