"""Keeps the lease of a placement, and kills what runs under it in time.

A placement's keeper talks to the store about its lease and does nothing that can last. The killer is shared by all: it
needs the monotonic clock and the control groups, and nothing that may hang.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .lease import Contender, Grant, Holder
from .store import LeaseStore, StoreError
from .units import Units

LOG = logging.getLogger("pst.guard")

STEP_S = 1.0
IDLE_S = 2.0
KILL_S = 1.0  # for one attempt; the watchdog has to be fed between them
SWEEP_S = 3.0  # how long something may live in a slice that nobody holds, such as a start that is being refused


class Files:
    """What a placement shows on this host in /run/pst/trading, for the units, the agent and the next guard."""

    def __init__(self, folder: Path, placement: str, group: int) -> None:
        self.grant = folder / f"{placement}.json"
        self.environment = folder / f"{placement}.env"
        self.out = folder / f"{placement}.out"  # stays out: does not contend, by request of a person
        self._group = group

    def write_grant(self, placement: str, grant: Grant) -> None:
        shown = {
            "placement": placement,
            **asdict(grant.holder),
            "epoch": grant.epoch,
            "sent_at_monotonic": grant.sent_at,
            "valid_until_monotonic": grant.valid_until,
            "deadline_monotonic": grant.deadline,
            "previous_ended": grant.previous_ended,
        }
        self._write(self.grant, json.dumps(shown) + "\n")

    def read_grant(self) -> Grant | None:
        """Return the grant that the guard before this one had."""
        try:
            shown = json.loads(self.grant.read_text())
            return Grant(
                epoch=int(shown["epoch"]),
                holder=Holder(*(str(shown[key]) for key in ("host", "colour", "instance", "address"))),
                sent_at=float(shown["sent_at_monotonic"]),
                valid_until=float(shown["valid_until_monotonic"]),
                deadline=float(shown["deadline_monotonic"]),
                previous_ended=shown["previous_ended"],
                confirmed=False,
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            LOG.error("%s cannot be read (%r): what runs is killed", self.grant, error)  # noqa: TRY400
            return None

    def write_environment(self, placement: str, grant: Grant) -> None:
        holder = f"{grant.holder.host}/{grant.holder.colour}"
        values = {"PLACEMENT": placement, "EPOCH": grant.epoch, "HOLDER": holder}
        self._write(self.environment, "".join(f"PST_LEASE_{key}={value}\n" for key, value in values.items()))

    def ready_epoch(self) -> int | None:
        """Return the epoch that was made ready here, if one was."""
        try:
            lines = self.environment.read_text().splitlines()
        except OSError:
            return None
        return next((int(line.partition("=")[2]) for line in lines if line.startswith("PST_LEASE_EPOCH=")), None)

    def remove(self) -> None:
        for path in (self.environment, self.grant):
            path.unlink(missing_ok=True)

    def _write(self, path: Path, text: str) -> None:
        temporary = path.with_suffix(f"{path.suffix}.new")
        temporary.write_text(text)
        temporary.chmod(0o640)
        os.chown(temporary, -1, self._group)
        temporary.replace(path)


# --- the killer -------------------------------------------------------------------------------------------------------


@dataclass
class Fuse:
    """One placement, as the killer sees it."""

    placement: str
    files: Files
    deadline: float | None = None  # None: not held here, so nothing may run
    fired: bool = False
    dead: bool = False  # fired, and nothing is left
    strange_since: float | None = None


class Killer:
    """Kills what runs in a placement when its time is up, whatever else of the guard hangs."""

    def __init__(self, units: Units, clock: Callable[[], float]) -> None:
        self._units = units
        self._clock = clock
        self._changed = threading.Condition()
        self._fuses: dict[str, Fuse] = {}

    def add(self, placement: str, files: Files) -> Fuse:
        fuse = Fuse(placement, files)
        self._fuses[placement] = fuse
        return fuse

    def arm(self, fuse: Fuse, deadline: float) -> bool:
        """Set the deadline; False when the killing has begun already."""
        with self._changed:
            if fuse.fired:
                return False
            if deadline != fuse.deadline:
                fuse.deadline = deadline
                self._changed.notify()
            return True

    def disarm(self, fuse: Fuse) -> None:
        """The lease was given back, or never held: nothing may run from here on."""
        with self._changed:
            fuse.deadline, fuse.fired, fuse.dead = None, False, False

    def fire(self, fuse: Fuse) -> None:
        """Kill now."""
        with self._changed:
            fuse.fired = True
            self._changed.notify()

    def step(self) -> float:
        """Kill what is due; returns until when nothing is, if nothing changes."""
        for fuse in self._fuses.values():
            with self._changed:
                time_is_up = fuse.deadline is not None and self._clock() >= fuse.deadline
                fuse.fired = fuse.fired or time_is_up
            if fuse.fired and not fuse.dead:
                self._kill(fuse, "its lease ends")
            elif fuse.deadline is None:
                self._sweep(fuse)
        armed = [fuse.deadline for fuse in self._fuses.values() if fuse.deadline is not None and not fuse.fired]
        return min([self._clock() + STEP_S, *armed])

    def turn(self, pulse: Callable[[], None], stop: threading.Event) -> None:
        """Run until the guard ends."""
        while not stop.is_set():
            until = self.step()
            pulse()
            with self._changed:
                if not any(fuse.fired and not fuse.dead for fuse in self._fuses.values()):
                    self._changed.wait(max(0.0, until - self._clock()))

    def _kill(self, fuse: Fuse, why: str) -> None:
        fuse.files.remove()  # first: what is being started now has to find no lease
        if not self._units.empty(fuse.placement):
            LOG.error("%s: %s, what runs in it is killed", fuse.placement, why)
        fuse.dead = self._units.kill(fuse.placement, self._clock() + KILL_S)

    def _sweep(self, fuse: Fuse) -> None:
        """Kill what was started past the guard; the check before a start, which says why it refuses, gets its time."""
        if self._units.empty(fuse.placement):
            fuse.strange_since = None
            return
        fuse.strange_since = fuse.strange_since or self._clock()
        if self._clock() - fuse.strange_since >= SWEEP_S:
            self._kill(fuse, "this host does not hold its lease")
            fuse.dead = False


# --- the keeper -------------------------------------------------------------------------------------------------------


class Keeper:
    """Takes, renews and gives back the lease of one placement. Nothing here lasts longer than a call to the store."""

    def __init__(
        self, contender: Contender, store: LeaseStore, units: Units, killer: Killer, files: Files,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.contender = contender
        self.placement = contender.placement
        self.files = files
        self.killer = killer
        self.fuse = killer.add(self.placement, files)
        self.stopping = False
        self.changed = threading.Condition()  # told when the grant is another one
        self.problem = ""
        self._store = store
        self._units = units
        self._clock = clock
        self._aside_until = 0.0
        self._given_back: tuple[bool, int] | None = None  # clean or not, and which epoch

    @property
    def grant(self) -> Grant | None:
        """Return the grant under which things may run, if there is one now."""
        grant = self.contender.grant
        return grant if grant and grant.confirmed and not self.fuse.fired and self._clock() < grant.deadline else None

    def adopt(self) -> None:
        """Go on with the lease of the guard before, or kill what it left if that is too late."""
        grant, at = self.files.read_grant(), self._clock()
        if grant is None:
            if not self._units.empty(self.placement):
                self.killer.fire(self.fuse)
            return
        self.contender.adopt(grant, at)
        in_time = grant.sent_at <= at < grant.deadline  # a time to come: the machine was booted since
        LOG.warning(
            "%s: found the lease of epoch %d, %.1f s to live: %s", self.placement, grant.epoch, grant.deadline - at,
            "adopted" if in_time else "too late, killing",
        )  # fmt: skip
        if in_time:
            self.killer.arm(self.fuse, grant.deadline)
        else:
            self.killer.fire(self.fuse)

    def kill(self) -> None:
        """Kill all that runs, then give the lease back as it is."""
        self.killer.fire(self.fuse)

    def give_back(self, *, clean: bool, epoch: int) -> None:
        """Release the lease of an epoch at the next step. Nothing runs any more: the runner has seen to it."""
        self._given_back = clean, epoch
        with self.changed:
            self.changed.notify_all()

    def stand_aside(self, epoch: int) -> None:
        """Give the lease of an epoch back, and leave it to the others for as long as each of them needs to take it."""
        self._aside_until = self._clock() + 2 * self.contender.timing.ttl_s
        self.give_back(clean=False, epoch=epoch)

    def step(self) -> float:
        """Ask the store what is due; returns when there is something to do again."""
        if self.fuse.fired:
            if not self.fuse.dead:
                return self._clock() + 0.1
            self._abandon(clean=False)
        elif self._given_back is not None:
            (clean, epoch), self._given_back = self._given_back, None
            if self.contender.grant is not None and self.contender.grant.epoch == epoch:
                self._abandon(clean=clean)
        aside = self._clock() < self._aside_until
        contend = not self.stopping and not aside and not self.files.out.exists()
        if self.contender.grant is None and contend:
            contend = self._units.empty(self.placement)
        request = self.contender.next(self._clock(), contend=contend)
        if request:
            before = self.contender.grant
            try:
                lease = self._store.execute(request)
            except StoreError as error:
                self._complain(str(error))
                self.contender.failed(request, self._clock())
            else:
                self._complain("")
                self.contender.answered(request, lease, self._clock())
            self._publish(before)
        return self.contender.due(contend=contend)

    def _publish(self, before: Grant | None) -> None:
        grant = self.contender.grant
        if grant is None or grant is before:
            return
        if not self.killer.arm(self.fuse, grant.deadline):
            return  # too late
        if grant.deadline > self._clock():
            self.files.write_grant(self.placement, grant)
        if before is None or before.epoch != grant.epoch:
            LOG.info("%s: this host holds the lease, epoch %d", self.placement, grant.epoch)
        with self.changed:
            self.changed.notify_all()

    def _abandon(self, *, clean: bool) -> None:
        self.files.remove()
        LOG.info("%s: gives the lease back, %s", self.placement, "drained" if clean else "not drained")
        self.contender.abandon("released" if clean else "killed", self._clock())
        self._given_back = None
        self.killer.disarm(self.fuse)

    def _complain(self, problem: str) -> None:
        if problem and not self.problem:
            LOG.warning("%s: %s", self.placement, problem)
        elif self.problem and not problem:
            LOG.warning("%s: the store answers again", self.placement)
        self.problem = problem

    def turn(self, pulse: Callable[[], None], stop: threading.Event) -> None:
        """Run until the guard ends."""
        while not stop.is_set():
            due = self.step()
            pulse()
            with self.changed:
                if self._given_back is None:
                    step = STEP_S if self.grant else IDLE_S  # of a grant the killer may have something to tell
                    self.changed.wait(min(max(due - self._clock(), 0.0), step))
