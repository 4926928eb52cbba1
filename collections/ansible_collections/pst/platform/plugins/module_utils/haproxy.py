# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""HAProxy's runtime API: entries of maps, state and weight of servers, and the proof that traffic has left a server.

All changes of a request go out on one command line, so that two colours are live together for milliseconds only. What
was set is read back; where that is not what was asked for, the old values are put back. Maps and the servers' state
are also kept on disk: HAProxy starts, and reloads, from there.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

ANSWER_SECONDS = 5.0
POLL_SECONDS = 0.05
LINE_BYTES = 16_000
"""HAProxy reads a command line into one buffer of 16384 bytes (tune.bufsize)."""

FMAINT, FDRAIN = 0x01, 0x08
"""The bits of srv_admin_state that `set server … state` sets and clears; the others are inherited or from the file."""

STATES = ("ready", "drain", "maint")
COUNTERS = (
    *("scur", "qcur", "stot", "econ", "eresp", "wretr", "wredis"),
    *("hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx", "hrsp_other"),
    *("rtime", "qtime"),
)

# Blanks, `;` and line ends part commands; `\` and quotes escape; `<<` starts a payload, `#` a comment or a reference.
WORD = re.compile(r"(?!#)[^\s;\\\"'<\x00-\x1f\x7f]+")
NAME = re.compile(r"[A-Za-z0-9_.:-]+")
WEIGHT = re.compile(r"\d{1,3}|\d{1,5}%")

Ask = Callable[[str], str]


class HAProxyError(Exception):
    """What went wrong, for the operator."""


class Item(NamedTuple):
    """One thing that can be set: an entry of a map, or the state or the weight of a server."""

    owner: str
    """The map's absolute path, or backend/server."""
    key: str

    @property
    def of_map(self) -> bool:
        return self.owner.startswith("/")


Values = dict[Item, str]


@dataclass(frozen=True)
class Change:
    """An item that has to become another; None is an entry that is not there."""

    item: Item
    old: str | None
    new: str | None

    def command(self) -> str:
        if not self.item.of_map:
            return f"set server {self.item.owner} {self.item.key} {self.new}"
        if self.new is None:
            return f"del map {self.item.owner} {self.item.key}"
        return f"{'add' if self.old is None else 'set'} map {self.item.owner} {self.item.key} {self.new}"

    def rank(self) -> int:
        """Servers are opened before the maps send traffic to them, and closed after the maps no longer do."""
        if self.item.of_map:
            return 1
        if self.item.key == "weight":
            return 0 if int(self.new or 0) > int(self.old or 0) else 2
        return 0 if self.new == "ready" else 2


def changes_to(wanted: Mapping[Item, str | None], live: Mapping[Item, str]) -> list[Change]:
    """Return what has to be done, in the order in which it has to be done."""
    found = (Change(item, live.get(item), value) for item, value in wanted.items() if live.get(item) != value)
    return sorted(found, key=Change.rank)


def line_of(changes: Iterable[Change]) -> str:
    return "; ".join(change.command() for change in changes)


def words(changes: Iterable[Change]) -> str:
    """Name what is not as it should be."""
    return ", ".join(f"{c.item.owner} {c.item.key}: seen {c.old or 'none'}, wanted {c.new or 'none'}" for c in changes)


class Server(NamedTuple):
    """A server's lasting settings. Weights are 0 to 256; the initial one is that of haproxy.cfg."""

    state: str
    weight: int
    initial_weight: int


def servers_of(shown: str) -> dict[str, Server]:
    """Read the answer of `show servers state`, or the file that it was saved to; by backend/server."""
    version, *lines = shown.splitlines() or [""]
    if version != "1":
        raise HAProxyError(f"'show servers state': seen {shown[:200].strip()!r}, wanted its format 1")
    header = lines[0].lstrip("# ").split() if lines else []
    rows = (dict(zip(header, line.split(), strict=False)) for line in lines[1:] if line.strip())
    return {
        f"{row['be_name']}/{row['srv_name']}": Server(
            _state_of(int(row["srv_admin_state"])), int(row["srv_uweight"]), int(row["srv_iweight"])
        )
        for row in rows
    }


def _state_of(admin: int) -> str:
    return "maint" if admin & FMAINT else "drain" if admin & FDRAIN else "ready"


def server_values(servers: Mapping[str, Server]) -> Values:
    states = {Item(name, "state"): server.state for name, server in servers.items()}
    return states | {Item(name, "weight"): str(server.weight) for name, server in servers.items()}


def entries_of(shown: str, path: str) -> dict[str, str]:
    """Read the answer of `show map` (reference, key and value a line)."""
    entries: dict[str, str] = {}
    for line in filter(None, shown.splitlines()):
        reference, _, entry = line.partition(" ")
        key, _, value = entry.partition(" ")
        if not reference.startswith("0x"):
            raise HAProxyError(f"'show map {path}': HAProxy answered {shown.strip()!r}")
        if entries.setdefault(key, value) != value:
            raise HAProxyError(f"{path}: {key} is there twice ({entries[key]}, {value}); wanted: one value")
    return entries


def lines_by_key(text: str) -> dict[str, list[str]]:
    """Read a map's file: the values of each key. More than one is not as it should be."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            key, *value = line.split(maxsplit=1)
            found.setdefault(key, []).append("".join(value).strip())
    return found


def edited(text: str, entries: Mapping[str, str]) -> str:
    """Return a map's file with these entries; the other lines, comments among them, stay."""
    lines, left = [], dict(entries)
    for line in text.splitlines():
        key = (line.split(maxsplit=1) or [""])[0]
        if key not in entries:
            lines.append(line)
        elif key in left:
            lines.append(f"{key} {left.pop(key)}")
    return "".join(f"{line}\n" for line in (*lines, *(f"{key} {value}" for key, value in left.items())))


@dataclass(frozen=True)
class AdminSocket:
    """Sends a command line to HAProxy and returns the whole answer."""

    path: str
    timeout: float = ANSWER_SECONDS
    master: bool = False
    """The master process answers on until it is told that nothing more comes."""

    def __call__(self, line: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self.timeout)
                connection.connect(self.path)
                connection.sendall(f"{line}\n".encode())
                if self.master:
                    connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode(errors="replace")
        except OSError as error:
            raise HAProxyError(
                f"socket {self.path}: {error.strerror or error}; wanted: HAProxy's admin socket, and that it answers"
            ) from error


class Runtime:
    """What HAProxy says."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    def entries(self, path: str) -> dict[str, str]:
        return entries_of(self.ask(f"show map {path}"), path)

    def servers(self) -> dict[str, Server]:
        return servers_of(self.ask("show servers state"))

    def values(self, paths: Iterable[str]) -> Values:
        """Return all that can be set: the entries of these maps and every server."""
        maps = {Item(path, key): value for path in paths for key, value in self.entries(path).items()}
        return maps | server_values(self.servers())

    def statistics(self) -> tuple[int, Rows]:
        """Return the process that answered, and the row of `show stat` of each backend/server."""
        command = "show info; show stat -1 4 -1"
        answer = self.ask(command)
        pid = re.search(r"^Pid: (\d+)$", answer, re.MULTILINE)
        rows = rows_of(answer)
        if not pid or rows is None:
            raise HAProxyError(f"{command!r}: HAProxy answered {answer[:200].strip()!r}")
        return int(pid[1]), rows


Rows = dict[str, dict[str, str]]


def rows_of(answer: str) -> Rows | None:
    """Return the rows of `show stat` by backend/server; None where the answer has no such table."""
    _, header, table = answer.partition("# pxname,")
    rows = csv.DictReader(line for line in f"pxname,{table}".splitlines() if line)
    return {f"{row['pxname']}/{row['svname']}": row for row in rows} if header else None


def old_workers(master: Ask) -> dict[int, Rows]:
    """Return the statistics of the processes that a reload has replaced and that still carry sessions."""
    answer = master("show proc")
    if not answer.startswith("#<PID>"):
        raise HAProxyError(f"'show proc': HAProxy's master answered {answer[:200].strip()!r}")
    section = answer.partition("# old workers\n")[2].partition("#")[0]
    pids = [int(line.split()[0]) for line in section.splitlines() if line.strip()]
    # One that has left meanwhile has no rows.
    return {pid: rows_of(master(f"@!{pid} show stat -1 4 -1")) or {} for pid in pids}


@dataclass(frozen=True)
class Drained:
    """The proof that is asked for: these servers (backend/server) carry nothing and get nothing for `quiet` seconds."""

    servers: tuple[str, ...]
    quiet: float
    timeout: float


@dataclass(frozen=True)
class Wish:
    """What is wanted of a server; None: as it is. A weight is 0 to 256, or a percentage of the initial one."""

    state: str | None
    weight: str | None


@dataclass(frozen=True)
class Request:
    """What one call is given."""

    maps: Mapping[str, Mapping[str, str]]
    servers: Mapping[str, Wish]
    drained: Drained | None = None
    backends: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Request:
        """Check the options of the module; raise HAProxyError with all that is wrong."""
        problems = [*_map_problems(given.get("maps") or ()), *_server_problems(given.get("servers") or (), "servers")]
        drained = given.get("drained")
        if drained:
            problems += _server_problems(drained["servers"], "drained.servers")
            quiet, timeout = drained["quiet_seconds"], drained["timeout_seconds"]
            if not 0 <= quiet < timeout:
                problems.append(
                    f"drained: seen quiet_seconds {quiet:g} and timeout_seconds {timeout:g}, wanted 0 or "
                    "more, and a timeout that is longer"
                )
        backends = tuple(given.get("backends") or ())
        problems += [f"backends: seen {name!r}, wanted a backend's name" for name in backends if not _named(name)]
        _refuse(problems)
        return cls(
            {
                one["path"]: {key: str(value) for key, value in (one.get("entries") or {}).items()}
                for one in given.get("maps") or ()
            },
            {_full_name(one): Wish(one.get("state"), one.get("weight")) for one in given.get("servers") or ()},
            Drained(tuple(map(_full_name, drained["servers"])), quiet, timeout) if drained else None,
            backends,
        )

    def wanted(self, servers: Mapping[str, Server]) -> Values:
        """Return the value that each item has to have, weights as HAProxy keeps them; raise with what is unknown."""
        values = {Item(path, key): value for path, entries in self.maps.items() for key, value in entries.items()}
        drained = self.drained.servers if self.drained else ()
        problems = [
            f"{option}: {name} is no server of HAProxy; wanted one of {', '.join(servers) or '(it has none)'}"
            for option, names in (("servers", self.servers), ("drained.servers", drained))
            for name in names
            if name not in servers
        ]
        known = dict.fromkeys(name.partition("/")[0] for name in servers)
        problems += [
            f"backends: {name} is no backend with servers; wanted one of {', '.join(known) or '(there is none)'}"
            for name in self.backends
            if name not in known
        ]
        for name, wish in self.servers.items():
            if wish.state:
                values[Item(name, "state")] = wish.state
            if wish.weight and name in servers:
                weight = weight_of(wish.weight, servers[name].initial_weight)
                if not 0 <= weight <= 256 or (weight == 0 and float(wish.weight.rstrip("%"))):
                    problems.append(
                        f"servers: {name}: weight {wish.weight} of its initial weight {servers[name].initial_weight} "
                        f"is {weight}; wanted 1 to 256 (give it a greater or lesser weight in haproxy.cfg)"
                    )
                values[Item(name, "weight")] = str(weight)
        _refuse(problems)
        return values


def weight_of(given: str, initial: int) -> int:
    """Return the weight as HAProxy computes it: a percentage is rounded down."""
    return initial * int(given[:-1]) // 100 if given.endswith("%") else int(given)


def _named(name: object) -> bool:
    return isinstance(name, str) and bool(NAME.fullmatch(name))


def _full_name(server: Mapping[str, Any]) -> str:
    return f"{server['backend']}/{server['name']}"


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise HAProxyError("\n".join(problems))


def _twice(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _map_problems(maps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in maps:
        path = one["path"]
        if not path.startswith("/") or not WORD.fullmatch(path):
            yield f"maps: path: seen {path!r}, wanted an absolute path without blanks, quotes, ';', '\\' or '<'"
        for key, value in (one.get("entries") or {}).items():
            for what, seen in (("key", key), ("value", value)):
                # `yes` without quotes is a boolean: what it would be written as is anybody's guess.
                if isinstance(seen, bool) or not isinstance(seen, str | int) or not WORD.fullmatch(str(seen)):
                    yield (
                        f"maps: {path}: {what} of {key!r}: seen {seen!r}, wanted a quoted string or a whole number "
                        "without blanks, line ends, quotes, ';', '\\' or '<', that does not start with '#'"
                    )
    yield from (f"maps: {path} is listed twice" for path in _twice([one["path"] for one in maps]))


def _server_problems(servers: Sequence[Mapping[str, Any]], option: str) -> Iterator[str]:
    if option != "servers" and not servers:
        yield f"{option}: seen none, wanted at least one server"
    for one in servers:
        for key in ("backend", "name"):
            if not _named(one[key]):
                yield f"{option}: {key}: seen {one[key]!r}, wanted letters, digits and _ . : -"
        state, weight = one.get("state"), one.get("weight")
        if state is not None and state not in STATES:
            yield f"{option}: {_full_name(one)}: state: seen {state!r}, wanted one of {', '.join(STATES)}"
        absolute = weight is not None and not weight.endswith("%")
        if weight is not None and (not WEIGHT.fullmatch(weight) or (absolute and int(weight) > 256)):
            yield f"{option}: {_full_name(one)}: weight: seen {weight!r}, wanted 0 to 256 or a percentage ('50%')"
    yield from (f"{option}: {name} is listed twice" for name in _twice([_full_name(one) for one in servers]))


@dataclass(frozen=True)
class Result:
    """What was found, and done; times as in the module's documentation."""

    changed: bool
    before: str
    after: str
    maps: dict[str, dict[str, str]]
    servers: list[dict[str, Any]]
    pid: int
    switch_ms: float | None
    drained_seconds: float | None


def apply(request: Request, ask: Ask, state_file: str, *, master: Ask | None = None, check: bool = False) -> Result:
    """Do all that is requested; raise HAProxyError. In check mode nothing is written, sent or awaited."""
    runtime = Runtime(ask)
    wanted, changes = _plan(request, runtime)
    disk = _Disk.read(request, wanted, state_file)
    switch_ms = drained_seconds = None
    if len(line_of(changes).encode()) > LINE_BYTES:
        raise HAProxyError(f"seen {len(changes)} changes, wanted as many as fit on one line of {LINE_BYTES} bytes")
    if not check:
        switch_ms = _carry_out(runtime, request, changes, disk)
        if request.drained:
            drained_seconds = await_drained(runtime, request.drained, master)
    pid, statistics = runtime.statistics()
    servers = {
        name: server
        for name, server in runtime.servers().items()
        if not request.backends or name.partition("/")[0] in request.backends
    }
    before, after = ([*_texts(changes, side), *_texts(disk.changes, side, " (on disk)")] for side in ("old", "new"))
    return Result(
        changed=bool(changes or disk.changes),
        before="".join(before),
        after="".join(after),
        maps={path: runtime.entries(path) for path in request.maps},
        servers=[_shown(name, server, statistics.get(name, {})) for name, server in servers.items()],
        pid=pid,
        switch_ms=switch_ms,
        drained_seconds=drained_seconds,
    )


def _plan(request: Request, runtime: Runtime) -> tuple[Values, list[Change]]:
    """Return what is wanted and what has to change at run time; raise with all that HAProxy does not know."""
    problems, maps = [], Values()
    for path in request.maps:
        try:
            maps |= {Item(path, key): value for key, value in runtime.entries(path).items()}
        except HAProxyError as error:
            problems.append(f"maps: {error}")
    servers = runtime.servers()
    wanted = Values()
    try:
        wanted = request.wanted(servers)
    except HAProxyError as error:
        problems.append(str(error))
    _refuse(problems)
    return wanted, changes_to(wanted, maps | server_values(servers))


@dataclass(frozen=True)
class _Disk:
    """What HAProxy would start with: where it differs from what is wanted, and the maps' files as they have to be."""

    changes: list[Change]
    files: dict[str, str]
    state_file: str

    @classmethod
    def read(cls, request: Request, wanted: Values, state_file: str) -> _Disk:
        saved, texts = Values(), {path: _read(path) for path, entries in request.maps.items() if entries}
        for path, text in texts.items():
            saved |= {Item(path, key): ", ".join(values) for key, values in lines_by_key(text).items()}
        if request.servers:
            text = _read(state_file)
            with suppress(HAProxyError):  # whatever else it is, it is replaced
                saved |= server_values(servers_of(text))
        changes = changes_to(wanted, saved)
        wrong = {change.item.owner for change in changes}
        files = {path: edited(text, request.maps[path]) for path, text in texts.items() if path in wrong}
        return cls(changes, files, state_file)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise HAProxyError(f"{path}: cannot be read: {error}") from error


def _carry_out(runtime: Runtime, request: Request, changes: list[Change], disk: _Disk) -> float | None:
    """Change HAProxy, then the disk; return the milliseconds of the change. Files are staged first: what can fail on
    disk fails before anything is changed."""
    switch_ms = None
    with ExitStack() as stack:
        try:
            commits = [stack.enter_context(staged(path, text)) for path, text in disk.files.items()]
        except OSError as error:
            raise HAProxyError(f"cannot be written, nothing was changed: {error}") from error
        if changes:
            switch_ms = switch(runtime, changes, request.maps)
        try:
            for commit in commits:
                commit()
            if not all(change.item.of_map for change in (*changes, *disk.changes)):
                state = runtime.ask("show servers state")
                servers_of(state)
                with staged(disk.state_file, state) as commit:
                    commit()
        except (OSError, HAProxyError) as error:
            raise HAProxyError(
                f"HAProxy has the new values, the disk has not ({error}): a reload would lose them. Run it again"
            ) from error
    return switch_ms


def switch(runtime: Runtime, changes: Sequence[Change], paths: Iterable[str]) -> float:
    """Make the changes on one line and read them back; return the line's milliseconds.

    Raises HAProxyError, after putting the old values back, where HAProxy refuses one or does not have it afterwards.
    """
    paths = tuple(paths)
    try:
        return _switched(runtime, changes, paths)
    except HAProxyError as error:
        raise HAProxyError(f"{error}; {_put_back(runtime, changes, paths)}") from error


def _switched(runtime: Runtime, changes: Sequence[Change], paths: Sequence[str]) -> float:
    line = line_of(changes)
    began = time.perf_counter()
    answer = runtime.ask(line)
    took = 1000 * (time.perf_counter() - began)
    if answer.strip():
        raise HAProxyError(f"{line!r}: HAProxy answered {answer.strip()!r}")
    if wrong := changes_to({change.item: change.new for change in changes}, runtime.values(paths)):
        raise HAProxyError(f"{line!r}: read back: {words(wrong)}")
    return round(took, 3)


def _put_back(runtime: Runtime, changes: Sequence[Change], paths: Sequence[str]) -> str:
    """Undo what was done of the changes; say whether that worked. A line may have been carried out in part."""
    old = {change.item: change.old for change in changes}
    try:
        if back := changes_to(old, runtime.values(paths)):
            runtime.ask(line_of(back))
        wrong = changes_to(old, runtime.values(paths))
    except HAProxyError as error:
        return f"the old values could not be put back: {error}"
    return f"the old values could not be put back: {words(wrong)}" if wrong else "the old values were put back"


class Traffic(NamedTuple):
    """Sessions of a server in one process: now, waiting for it, and ever."""

    current: int
    queued: int
    total: int


Sessions = dict[tuple[int, str], Traffic]
"""By process and backend/server."""


def await_drained(runtime: Runtime, wanted: Drained, master: Ask | None = None) -> float:
    """Wait until the servers carry nothing and have got nothing for the quiet time; return the seconds that it took.

    The master process knows the workers that a reload has replaced; they count as well. Without it only the process
    that answers is seen, and there is no proof where that one is replaced meanwhile.
    """
    began = quiet_since = time.monotonic()
    pid, first, last = 0, Sessions(), Sessions()
    while True:
        now = time.monotonic()
        try:
            asked, seen = _traffic(runtime, wanted, master)
            trouble = ""
        except HAProxyError as error:  # a reload closes the sockets for a moment
            asked, seen, trouble = pid, Sessions(), str(error)
        if pid and asked != pid and not master:
            raise HAProxyError(
                f"drained: HAProxy was reloaded meanwhile (process {pid}, then {asked}), and the old process cannot be "
                "seen without its master's socket. The change stays. Run it again when the old process has left"
            )
        pid, first = asked, first or seen
        if not seen or any(one.current or one.queued or one != last.get(key) for key, one in seen.items()):
            quiet_since = time.monotonic()
        elif now - quiet_since >= wanted.quiet:
            return round(now - began, 3)
        if now - began >= wanted.timeout:
            raise HAProxyError(
                f"drained: after {wanted.timeout:g} s seen {trouble or _figures(first, seen)}; wanted scur 0, qcur 0 "
                f"and the same stot for {wanted.quiet:g} s. The change stays. Run it again to go on waiting"
            )
        last = seen
        time.sleep(POLL_SECONDS)


def _figures(first: Sessions, now: Sessions) -> str:
    return "; ".join(
        f"{name} (process {pid}): scur {one.current}, qcur {one.queued}, "
        f"stot {first.get((pid, name), Traffic(0, 0, 0)).total} -> {one.total}"
        for (pid, name), one in now.items()
    )


def _traffic(runtime: Runtime, wanted: Drained, master: Ask | None) -> tuple[int, Sessions]:
    pid, rows = runtime.statistics()
    if missing := [name for name in wanted.servers if name not in rows]:
        raise HAProxyError(f"drained: {', '.join(missing)}: not in 'show stat'")
    processes = {**(old_workers(master) if master else {}), pid: rows}
    return pid, {
        (process, name): Traffic(*(int(table[name][key]) for key in ("scur", "qcur", "stot")))
        for process, table in processes.items()
        for name in wanted.servers
        if name in table
    }


def _shown(name: str, server: Server, row: Mapping[str, str]) -> dict[str, Any]:
    backend, _, short = name.partition("/")
    counters = {key: int(row.get(key) or 0) for key in COUNTERS}
    seen = {"status": row.get("status", ""), "check_status": row.get("check_status", "")}
    return {"backend": backend, "name": short, **server._asdict(), **seen, **counters}


def _texts(changes: Sequence[Change], side: str, where: str = "") -> Iterator[str]:
    """One side of a diff, as readable lines."""
    ordered = sorted(changes, key=lambda change: change.item)
    for owner, group in itertools.groupby(ordered, key=lambda change: change.item.owner):
        yield f"{owner}{where}:\n"
        for change in group:
            value = getattr(change, side)
            yield f"  {change.item.key}: {'(none)' if value is None else value}\n"


@contextmanager
def staged(path: str, text: str) -> Iterator[Callable[[], None]]:
    """Write a file beside its place; the call that is yielded puts it there. A reader sees the old or the new one."""
    folder = os.path.dirname(path)
    descriptor, stage = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=folder)

    def commit() -> None:
        os.replace(stage, path)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield commit
    finally:
        with suppress(FileNotFoundError):
            os.unlink(stage)
