# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""systemd units: their wanted state, and which of them run on settings older than their files.

Nothing is remembered between runs. What has to be restarted follows from the time of modification of the files and
the start of the process, so a run that was killed between the two is finished by the next one.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

PROPERTIES = (
    "LoadState,ActiveState,SubState,UnitFileState,FragmentPath,DropInPaths,NeedDaemonReload,CanReload,Type,"
    "RemainAfterExit,Result,ConditionResult,ConditionTimestampMonotonic,"
    "ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic,ActiveEnterTimestampMonotonic"
)
NAME = re.compile(r"[A-Za-z0-9:_.@\\-]+\.(service|socket|timer|path|mount|target|slice)")
RUNNING = ("active", "reloading", "refreshing")
MARKERS = Path("/run/pst-units")
DROP_INS = Path("/etc/systemd/system")
JOURNAL_LINES = 20
ACTIONS = ("unmasked", "enabled", "disabled", "masked", "stopped", "started", "restarted", "reloaded")


OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "enabled": {"type": "bool", "default": True},
    "state": {"type": "str", "choices": ["started", "stopped", "as_is"]},
    "masked": {"type": "bool", "default": False},
    "restart_when_newer": {"type": "list", "elements": "path", "default": []},
    "reload_when_newer": {"type": "list", "elements": "path", "default": []},
    "on_stale": {"type": "str", "choices": ["restart", "report"], "default": "restart"},
}


class UnitsError(Exception):
    """A unit that cannot be brought to its state; the message says what was seen and what was wanted."""


class Completed(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


Run = Callable[[Sequence[str], "float | None"], Completed]


def run(command: Sequence[str], timeout: float | None = None) -> Completed:
    """Run a command; time out as exit status 124, as timeout(1) does."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=timeout)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Completed(124, "", f"not finished after {timeout:g} s")
    return Completed(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Wanted:
    """One unit as the task wants it."""

    name: str
    enabled: bool = True
    started: bool | None = True
    """None: it is left as it is, because somebody else starts and stops it."""
    masked: bool = False
    restart_when_newer: tuple[str, ...] = ()
    reload_when_newer: tuple[str, ...] = ()
    restart_on_stale: bool = True


def wanted_of(option: Mapping[str, Any]) -> Wanted:
    """Return the typed form of one unit that a module has checked against `OPTIONS`."""
    state = option["state"] or ("stopped" if option["masked"] else "started")
    return Wanted(
        name=option["name"],
        enabled=option["enabled"],
        started=None if state == "as_is" else state == "started",
        masked=option["masked"],
        restart_when_newer=tuple(option["restart_when_newer"]),
        reload_when_newer=tuple(option["reload_when_newer"]),
        restart_on_stale=option["on_stale"] == "restart",
    )


@dataclass(frozen=True)
class Status:
    """One unit as systemd has it."""

    values: Mapping[str, str]

    def __getitem__(self, key: str) -> str:
        return self.values.get(key, "")

    @property
    def found(self) -> bool:
        return self["LoadState"] not in ("", "not-found")

    @property
    def masked(self) -> bool:
        return self["LoadState"] == "masked"

    @property
    def running(self) -> bool:
        return self["ActiveState"] in RUNNING or self.done

    @property
    def done(self) -> bool:
        """A job that leaves no process behind and has succeeded since boot counts as started."""
        return (
            self["Type"] == "oneshot"
            and self["RemainAfterExit"] == "no"
            and self["ActiveState"] == "inactive"
            and self["Result"] == "success"
            and self.microseconds("ExecMainExitTimestampMonotonic") > 0
        )

    @property
    def left_out(self) -> bool:
        """Whether the unit's own conditions keep it from starting here, such as a writable /proc/sys in a container."""
        return (
            self["ActiveState"] == "inactive"
            and self["ConditionResult"] == "no"
            and self.microseconds("ConditionTimestampMonotonic") > 0
        )

    @property
    def enabled(self) -> bool:
        """Whether nothing is left for `systemctl enable` to do: a static or generated unit has no switch."""
        return self.found and self["UnitFileState"] not in ("disabled", "linked", "linked-runtime", "enabled-runtime")

    @property
    def can_be_disabled(self) -> bool:
        return self["UnitFileState"] in ("enabled", "enabled-runtime", "linked", "linked-runtime")

    @property
    def files(self) -> list[str]:
        """The unit's own files, without those that systemd itself makes anew at every daemon-reload."""
        paths = [self["FragmentPath"], *self["DropInPaths"].split()]
        return [path for path in paths if path and not path.startswith(("/run/systemd/", "/dev/"))]

    def microseconds(self, key: str) -> int:
        value = self[key]
        return int(value) if value.isdigit() else 0

    def started_ns(self, clock_offset_ns: int) -> int:
        """When the main process started, or the unit became active where it has none, on the wall clock.

        The monotonic stamp is converted with the offset of now, because a host may boot with a wrong wall clock.
        """
        stamp = self.microseconds("ExecMainStartTimestampMonotonic") or self.microseconds(
            "ActiveEnterTimestampMonotonic"
        )
        return stamp * 1000 + clock_offset_ns

    def text(self) -> str:
        return f"{self['UnitFileState'] or self['LoadState'] or 'unknown'}, {self['ActiveState'] or 'unknown'}"


@dataclass
class Report:
    """What was done, or would be in check mode, and what is left to restart."""

    stale: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    reloaded: list[str] = field(default_factory=list)
    enabled: list[str] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    unmasked: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    daemon_reloaded: bool = False
    before: str = ""
    after: str = ""

    def done(self) -> dict[str, list[str]]:
        return {verb: names for verb in ACTIONS if (names := getattr(self, verb))}

    @property
    def changed(self) -> bool:
        return self.daemon_reloaded or bool(self.done())

    def told(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what a module returns of it, and its diff."""
        result = asdict(self)
        return result, {"before": result.pop("before"), "after": result.pop("after")}

    def actions(self) -> str:
        """Return one line for each action, which is what a diff shows of a restart, or of a prediction."""
        return "".join(f"{verb}: {', '.join(names)}\n" for verb, names in self.done().items())


def problems_of(units: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return everything that is wrong with the `units` of a task."""
    problems = []
    names = [str(unit["name"]) for unit in units]
    for unit in units:
        name = str(unit["name"])
        if not NAME.fullmatch(name):
            problems.append(f"{name}: wanted the full name of one unit, such as mongod.service")
        if names.count(name) > 1 and f"{name}: is listed twice" not in problems:
            problems.append(f"{name}: is listed twice")
        if unit.get("masked") and unit.get("state") == "started":
            problems.append(f"{name}: a masked unit cannot be started")
    return problems


def newest_ns(paths: Iterable[str]) -> int:
    """Return the newest time of modification among the paths and what they link to; 0 where none exists."""
    newest = 0
    for path in paths:
        for look in (os.lstat, os.stat):
            try:
                newest = max(newest, look(path).st_mtime_ns)
            except (FileNotFoundError, NotADirectoryError):
                continue
    return newest


def clock_offset_ns() -> int:
    """Return what to add to the monotonic clock to get the wall clock."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def is_stale(wanted: Wanted, status: Status, offset_ns: int) -> bool:
    """Whether the unit runs, and started before one of its files was written."""
    if not status.running:
        return False
    return newest_ns([*wanted.restart_when_newer, *status.files]) > status.started_ns(offset_ns)


@dataclass
class Systemd:
    """The units of one task on this host."""

    wanted: Sequence[Wanted]
    check: bool = False
    timeout: float = 90
    run: Run = run
    markers: Path = MARKERS
    drop_ins: Path = DROP_INS
    _shown: dict[str, Status] | None = field(default=None, init=False)

    def converge(self) -> Report:
        """Bring every unit to its state."""
        report = Report()
        before = self.show()
        outdated = any(self.outdated(name, status) for name, status in before.items())
        if outdated or not all(status.found for status in before.values()):
            report.daemon_reloaded = outdated
            self.do("daemon-reload")
        self.unit_files(before if self.check else self.show(), report)
        now = before if self.check else self.show()
        self.processes(now, report)
        after = now if self.check else self.show()
        if not self.check:
            self.prove(after)
        offset = clock_offset_ns()
        report.stale = [
            unit.name
            for unit in self.wanted
            if unit.name not in report.restarted
            and unit.started is not False
            and is_stale(unit, after[unit.name], offset)
        ]
        # Its conditions kept it out before, and now they hold: only the answer after the attempt tells.
        report.started += [unit.name for unit in self.wanted if now[unit.name].left_out and after[unit.name].running]
        report.left_out = [unit.name for unit in self.wanted if unit.started and after[unit.name].left_out]
        report.before = self.text(before)
        report.after = self.text(after) + report.actions()
        return report

    def outdated(self, name: str, status: Status) -> bool:
        """Whether systemd has not read the unit's files; version 252 itself overlooks a new folder of drop-ins."""
        known = status["DropInPaths"].split()
        # An empty file, or a link to /dev/null, switches a drop-in off and is not listed.
        drop_ins = [str(path) for path in self.drop_ins.glob(f"{name}.d/*.conf") if path.stat().st_size]
        return status["NeedDaemonReload"] == "yes" or (status.found and not set(drop_ins) <= set(known))

    def show(self) -> dict[str, Status]:
        """Ask systemd for all units at once; the answers come in the order of the names, with an empty line between.

        While nothing is done, the first answer stands: each question costs the host as much as Python's start.
        """
        if self._shown is not None:
            return self._shown
        names = [unit.name for unit in self.wanted]
        done = self.run(["systemctl", "show", f"--property={PROPERTIES}", "--", *names], 30)
        blocks = done.out.strip().split("\n\n")
        if done.code != 0 or len(blocks) != len(names):
            raise UnitsError(
                f"systemctl show: status {done.code}, {len(blocks)} answers for {len(names)} units {done.err.strip()}"
            )
        self._shown = {
            name: Status(dict(line.split("=", 1) for line in block.splitlines() if "=" in line))
            for name, block in zip(names, blocks, strict=True)
        }
        return self._shown

    def do(self, verb: str, names: Sequence[str] = (), *options: str) -> None:
        """Change something, unless in check mode."""
        if self.check or (not names and verb != "daemon-reload"):
            return
        self._shown = None
        done = self.run(["systemctl", verb, *options, *(["--", *names] if names else [])], self.timeout)
        if done.code != 0:
            raise UnitsError(
                f"systemctl {' '.join([verb, *names])}: {done.err.strip() or done.code}{self.evidence(names)}"
            )

    def unit_files(self, now: Mapping[str, Status], report: Report) -> None:
        """Unmask, enable, disable, mask."""
        absent = [unit.name for unit in self.wanted if unit.started and not unit.masked and not now[unit.name].found]
        if absent and not self.check:
            raise UnitsError(f"{', '.join(absent)}: systemd knows no such unit, wanted one to start")
        report.unmasked = [unit.name for unit in self.wanted if not unit.masked and now[unit.name].masked]
        self.do("unmask", report.unmasked)
        self.do(
            "unmask", [name for name in report.unmasked if now[name]["UnitFileState"] == "masked-runtime"], "--runtime"
        )
        if report.unmasked:
            now = self.show()
        report.enabled = [
            unit.name
            for unit in self.wanted
            if unit.enabled
            and not unit.masked
            and not now[unit.name].enabled
            and (now[unit.name].found or unit.started)  # what is not there need not be enabled in order to be stopped
        ]
        self.do("enable", report.enabled)
        report.disabled = [
            unit.name for unit in self.wanted if not unit.enabled and not unit.masked and now[unit.name].can_be_disabled
        ]
        self.do("disable", report.disabled)
        report.masked = [unit.name for unit in self.wanted if unit.masked and not now[unit.name].masked]
        self.do("mask", report.masked)

    def processes(self, now: Mapping[str, Status], report: Report) -> None:
        """Stop, start, restart, reload."""
        offset = clock_offset_ns()
        report.stopped = [
            unit.name
            for unit in self.wanted
            if unit.started is False and now[unit.name]["ActiveState"] in (*RUNNING, "activating")
        ]
        self.do("stop", report.stopped)

        wanted = [unit for unit in self.wanted if unit.started]
        report.restarted = [
            unit.name for unit in wanted if unit.restart_on_stale and is_stale(unit, now[unit.name], offset)
        ]
        idle = [unit.name for unit in wanted if not now[unit.name].running]
        joined = [name for name in idle if now[name]["ActiveState"] == "activating"]  # a package may be starting it
        report.started = [name for name in idle if name not in joined and not now[name].left_out]
        self.do("reset-failed", [name for name in idle if now[name]["ActiveState"] == "failed"])
        self.do("start", idle)
        self.do("restart", report.restarted)

        for unit in wanted:
            newest = newest_ns(unit.reload_when_newer)
            marker = self.markers / f"{unit.name}.reloaded"
            covered = max(now[unit.name].started_ns(offset), newest_ns([str(marker)]))
            if unit.name in (*idle, *report.restarted) or newest <= covered:
                continue
            if not self.check and now[unit.name]["CanReload"] == "no":
                raise UnitsError(
                    f"{unit.name}: has no way to reload (ExecReload=), wanted one for {list(unit.reload_when_newer)}"
                )
            report.reloaded.append(unit.name)
            self.do("reload", [unit.name])
            if not self.check:
                self.markers.mkdir(mode=0o755, exist_ok=True)
                marker.touch()
                os.utime(marker, ns=(newest, newest))

    def prove(self, now: Mapping[str, Status]) -> None:
        """Refuse to go on while a unit that was wanted does not run: `start` alone is no proof for every type."""
        down = [
            unit.name
            for unit in self.wanted
            if unit.started and not (now[unit.name].running or now[unit.name].left_out)
        ]
        if down:
            seen = ", ".join(f"{name} is {now[name]['ActiveState']} ({now[name]['SubState']})" for name in down)
            raise UnitsError(f"{seen}, wanted active{self.evidence(down)}")

    def evidence(self, names: Sequence[str]) -> str:
        """Return the last lines of the journal of those units that do not run, or of all where all run."""
        now = self.show()
        names = [name for name in names if not now[name].running] or names
        said = ""
        for name in names:
            command = f"journalctl --lines={JOURNAL_LINES} --no-pager --output=short-iso --unit".split()
            said += f"\n{name} is {now[name]['ActiveState']} ({now[name]['Result']}); its journal ends with\n"
            said += self.run([*command, name], 30).out.rstrip()
        return said

    def text(self, now: Mapping[str, Status]) -> str:
        return "".join(f"{unit.name}: {now[unit.name].text()}\n" for unit in self.wanted)


def converge(options: Iterable[Mapping[str, Any]], *, check: bool, timeout: float = 90) -> Report:
    """Bring the units of a task to their state; the options are those that a module has checked against `OPTIONS`."""
    return Systemd([wanted_of(option) for option in options], check=check, timeout=timeout).converge()
