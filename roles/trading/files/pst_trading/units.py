"""The processes of this host: systemd starts them, their control groups say what lives, and SIGKILL ends them.

What is alive is read from the control groups, which costs a few system calls and no process. A kill needs neither
systemd nor D-Bus, which may be what hangs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SYSTEMCTL_S = 10
AGAIN_S = 0.02  # between two looks at a control group that is being killed
CGROUPS = Path("/sys/fs/cgroup")


class UnitsError(Exception):
    """systemd refuses, or something cannot be killed."""


@dataclass(frozen=True)
class UnitState:
    """What systemd says of a unit."""

    active: str  # inactive, activating, active, deactivating, failed …
    result: str  # success, exit-code, signal, timeout …
    job: bool  # something is queued for it

    @property
    def over(self) -> bool:
        return self.active in ("inactive", "failed") and not self.job


class Units(Protocol):
    def start(self, unit: str) -> None: ...

    def state(self, unit: str) -> UnitState: ...

    def forget_failure(self, unit: str) -> None: ...

    def alive(self, placement: str, unit: str) -> bool: ...

    def empty(self, placement: str) -> bool: ...

    def kill(self, placement: str, give_up_at: float) -> bool:
        """Kill all that runs in the placement until nothing is left; False when the time was up first."""


def slice_path(placement: str) -> Path:
    """Return the folder of a placement's slice: systemd puts `a-b.slice` into `a.slice`."""
    return Path("pst.slice") / "pst-trading.slice" / f"pst-trading-{placement}.slice"


def systemd_root(cgroups: Path = CGROUPS, own: Path = Path("/proc/1/cgroup")) -> Path:
    """Return the folder below which systemd keeps its slices, under cgroup v1 and v2, in a container or not."""
    hierarchies = {}
    for line in own.read_text().splitlines():
        _, names, path = line.split(":", 2)
        hierarchies[names] = path
    path = hierarchies.get("name=systemd") or hierarchies.get("", "/")
    for mount in (cgroups / "systemd", cgroups):  # v1 and hybrid, v2
        if (mount / "cgroup.procs").exists():
            return mount / path.removesuffix("init.scope").strip("/")
    raise UnitsError(f"{cgroups}: no control groups of systemd, wanted {cgroups}/cgroup.procs or systemd/cgroup.procs")


class Systemd:
    """The real units."""

    def __init__(self, root: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root or systemd_root()
        self._clock = clock

    def start(self, unit: str) -> None:
        """Queue the start of a unit; a start that failed before is no reason not to."""
        done = _systemctl("start", "--no-block", unit)
        if done.returncode:
            raise UnitsError(f"systemctl start {unit}: {done.stderr.strip() or done.returncode}")

    def state(self, unit: str) -> UnitState:
        done = _systemctl("show", "--property=ActiveState,Result,Job", unit)
        if done.returncode:
            raise UnitsError(f"systemctl show {unit}: {done.stderr.strip() or done.returncode}")
        values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        return UnitState(
            values.get("ActiveState", ""), values.get("Result", ""), values.get("Job", "0") not in ("", "0")
        )

    def forget_failure(self, unit: str) -> None:
        done = _systemctl("reset-failed", unit)
        if done.returncode:
            raise UnitsError(f"systemctl reset-failed {unit}: {done.stderr.strip() or done.returncode}")

    def alive(self, placement: str, unit: str) -> bool:
        return self._populated(self._root / slice_path(placement) / unit)

    def empty(self, placement: str) -> bool:
        return not self._populated(self._root / slice_path(placement))

    def kill(self, placement: str, give_up_at: float) -> bool:
        """Kill again and again: a process may fork while it is being killed."""
        group = self._root / slice_path(placement)
        while self._populated(group):
            if self._clock() >= give_up_at:
                return False
            try:
                with (group / "cgroup.kill").open("r+") as at_once:
                    at_once.write("1")
            except OSError:  # cgroup v1, an old kernel, or the group has just gone
                for pid in _pids(group):
                    _kill(pid)
            time.sleep(AGAIN_S)  # nothing can be awaited: under v1 a control group does not tell that it is empty
        return True

    @staticmethod
    def _populated(group: Path) -> bool:
        try:
            events = (group / "cgroup.events").read_text()
        except FileNotFoundError:  # cgroup v1, or no such group
            return next(_pids(group), None) is not None
        return "populated 1" in events


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["/usr/bin/systemctl", *words]
    # The socket is the guard's own: systemd complains of a systemctl that speaks on it.
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    try:
        return subprocess.run(  # noqa: S603  no shell, our own words
            command, capture_output=True, text=True, check=False, timeout=SYSTEMCTL_S, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise UnitsError(f"{' '.join(command)}: not finished after {SYSTEMCTL_S} s") from error


def _pids(group: Path) -> Iterator[int]:
    """Yield the processes of a control group and of those in it. Groups come and go while one looks."""
    for folder, _, _ in os.walk(group):
        try:
            yield from map(int, (Path(folder) / "cgroup.procs").read_text().split())
        except OSError:
            continue


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
