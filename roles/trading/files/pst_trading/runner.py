"""Starts, watches, drains and recovers the processes of one placement while this host holds its lease."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .drain import Drain, Drained
from .keeper import Keeper
from .lease import Document, Grant
from .processes import ORDER_SENDER, ProcessControl, ProcessState
from .settings import Process, Settings, in_window
from .store import DrainStore, RunStore, StoreError
from .units import Units, UnitsError

LOG = logging.getLogger("pst.guard")

STEP_S = 1.0
IDLE_S = 10.0  # while nothing is held: a grant and a request to leave are told
LOOK_AGAIN_S = 5.0  # at what keeps a process from being started
SETTLED_S = 30.0  # the same for a daily process that is done for today
BACKOFF_S = (1.0, 30.0)
STEADY_S = 60.0  # a process that ran that long is restarted as if for the first time
PATIENCE_S = 120.0  # with a recovery that fails on this host, while nothing runs
ATTEMPTS = 5  # at a daily process that ends before it has begun


@dataclass
class Leave:
    """A request to drain the placement and to give the lease back."""

    done: threading.Event = field(default_factory=threading.Event)
    result: Drained | None = None


@dataclass
class Session:
    """What was done since the lease was granted."""

    epoch: int
    since: float
    ready: bool = False
    checked: bool = False  # nothing of the process that sends orders is left at the broker
    unsettled: bool = False  # a drain was cut short: statuses may have to be put back
    leaving: str = ""  # why, if it drains or has tried to
    left: bool = False
    problem: str = ""
    try_at: float = 0.0
    backoff: float = BACKOFF_S[0]


@dataclass
class Track:
    """One process, as this guard has seen it."""

    note: str = ""
    running: bool = False
    since: float = 0.0
    ended_at: float = float("-inf")
    try_at: float = 0.0
    backoff: float = BACKOFF_S[0]
    day: str = ""  # of the run that is under way
    settled: str = ""  # the day whose run needs nothing more
    attempts: int = 0


@dataclass
class Tools:
    """What a runner works with."""

    settings: Settings
    units: Units
    control: ProcessControl
    runs: RunStore
    drains: DrainStore
    recover: Callable[[], object]  # cancels what is open at the broker; raises while it cannot
    clock: Callable[[], float]
    local_time: Callable[[], datetime]
    wait: Callable[[float], object]


class Runner:
    """The slow half of a placement. `step` is called about every second and may take minutes."""

    def __init__(self, keeper: Keeper, tools: Tools) -> None:
        self.keeper = keeper
        self.placement = keeper.placement
        self.processes = tools.settings.processes_of(self.placement)
        self.tools = tools
        self.leave: Leave | None = None
        self.stopping = False
        self.session: Session | None = None
        self.tracks = {process.name: Track() for process in self.processes}
        self.problem = ""
        self._refused: Document | None = None  # a hand-over that could not be drained
        self._forgotten = False  # what had failed when the lease went
        self._drain = Drain(
            tools.control,
            tools.drains,
            tools.runs,
            self._alive,
            tools.settings.host,
            tools.clock,
            tools.wait,
            lambda: tools.local_time().date(),
        )

    def _alive(self, process: Process) -> bool:
        return self.tools.units.alive(self.placement, process.unit)

    @property
    def sends_orders(self) -> bool:
        return any(process.process_control_name == ORDER_SENDER for process in self.processes)

    def turn(self, stop: threading.Event) -> None:
        """Run until the guard ends."""
        while not stop.is_set():
            self.step()
            with self.keeper.changed:
                idle = self.keeper.grant is None and self.leave is None
                self.keeper.changed.wait(IDLE_S if idle else STEP_S)

    def ask_to_leave(self) -> Leave:
        """Leave as soon as possible; who asked waits for the result."""
        with self.keeper.changed:
            self.leave = self.leave or Leave()
            self.keeper.changed.notify_all()
            return self.leave

    def step(self) -> None:
        """Do what is due."""
        try:
            self._step()
        except (StoreError, UnitsError) as error:
            self._complain(str(error))
        else:
            self._complain("")

    def _step(self) -> None:
        grant = self.keeper.grant
        if grant is None:
            self._nothing_held()
            return
        self._forgotten = False
        if self.session is None or self.session.epoch != grant.epoch:
            # An adopted lease was made ready by the guard before: the environment says so, and goes with the lease.
            adopted = self.keeper.files.ready_epoch() == grant.epoch
            self.session = Session(grant.epoch, self.tools.clock(), ready=adopted, unsettled=adopted)
            self.tracks = {process.name: Track() for process in self.processes}
            self._refused = None
        if self.keeper.contender.wanted_elsewhere is None:
            self._refused = None  # the next one is another request, though it may look the same
        if self.session.left:
            return
        if reason := self._why_leave(grant):
            self._leave(self.session, reason)
            return
        self.session.leaving = ""
        if self.session.ready or self._prepare(self.session, grant):
            if self.session.unsettled:
                self._put_statuses_back(self.session)
            for process in self.processes:
                self._look_after(process, self.tracks[process.name])

    def _holds(self, session: Session) -> bool:
        """Whether this is still the same grant: what took minutes may have outlived it."""
        grant = self.keeper.grant
        return grant is not None and grant.epoch == session.epoch

    def _nothing_held(self) -> None:
        self.session = None
        if not self.keeper.contender.settled:
            return
        if self.leave:
            leave, self.leave = self.leave, None
            leave.result = leave.result or Drained()
            leave.done.set()
        if not self._forgotten:
            self._forget_failures()

    def _forget_failures(self) -> None:
        """Have systemd forget that processes were killed: nobody starts them here, so they would be told of for ever.

        Once, when all have ended: what fails later is somebody else's doing, and is to be seen.
        """
        states = {process.unit: self.tools.units.state(process.unit) for process in self.processes}
        for unit, state in states.items():
            if state.active == "failed":
                self.tools.units.forget_failure(unit)
                LOG.info(
                    "%s: %s had failed (%s), and does not count as that any more", self.placement, unit, state.result
                )
        self._forgotten = all(state.over for state in states.values())

    def _complain(self, problem: str) -> None:
        if problem and problem != self.problem:
            LOG.warning("%s: %s", self.placement, problem)
        self.problem = problem

    # Leaving ----------------------------------------------------------------------------------------------------------

    def _why_leave(self, grant: Grant) -> str:
        contender, settings = self.keeper.contender, self.tools.settings
        overdue = self.tools.clock() - grant.sent_at - settings.lease.renew_s
        if self.stopping:
            return "the guard is stopped"
        if self.leave:
            return "asked to leave"
        if contender.revoked:
            return "the lease is revoked"
        if overdue > settings.lease.drain_after_s and self._renewals_alone_fail(grant):
            return f"its renewals have failed for {settings.lease.drain_after_s:g} s"
        if contender.wanted_elsewhere and contender.wanted_elsewhere != self._refused:
            return "the lease is wanted by {host}/{colour}".format(**contender.wanted_elsewhere)
        if grant.holder.colour != settings.colour:
            return f"this host has become {settings.colour}"
        return ""

    def _renewals_alone_fail(self, grant: Grant) -> bool:
        """Ask the store something else: while it is away STOP cannot be said, and once it is back nobody need stop."""
        self.tools.control.states([])  # raises while it is away
        self.tools.wait(STEP_S)  # for the renewal that is tried every half second
        return self.keeper.grant is not None and self.keeper.grant.sent_at == grant.sent_at

    def _leave(self, session: Session, reason: str) -> None:
        if reason != session.leaving:
            LOG.warning("%s: %s: draining", self.placement, reason)
        session.leaving = reason
        session.unsettled = True
        wanted = self.keeper.contender.wanted_elsewhere
        result = self._drain(
            self.processes, self.tools.settings.drain.timeout_s, give_up=lambda: not self._holds(session)
        )
        if result.lost:
            return
        session.unsettled = False
        if result.problem:
            LOG.error("%s: %s: not drained: %s", self.placement, reason, result)
            self._stay(result, wanted)
        elif self._why_leave_for_good(wanted):
            clean = session.ready and result.clean and self._nothing_at_broker(session)
            if not self._holds(session):
                return
            session.left = True
            self.keeper.files.environment.unlink(missing_ok=True)
            self.keeper.give_back(clean=clean, epoch=session.epoch)
        # Otherwise the store was silent and answers again, or will before the killer comes: nothing is given back.

    def _nothing_at_broker(self, session: Session) -> bool:
        """Ask the broker, whose word counts: a sender closes its stacks even where a cancellation was never confirmed.

        Not once the lease is revoked: the gates are closed then, and there is no time. The next holder asks.
        """
        return not self.sends_orders or (not self.keeper.contender.revoked and self._recover(session))

    def _why_leave_for_good(self, wanted: Document | None) -> bool:
        contender = self.keeper.contender
        grant = contender.grant
        moved = grant is not None and grant.holder.colour != self.tools.settings.colour
        return bool(self.stopping or self.leave or contender.revoked or wanted or moved)

    def _stay(self, result: Drained, wanted: Document | None) -> None:
        """Go on holding: what cannot be drained is not abandoned, unless this host goes down."""
        self._refused = wanted
        if self.leave:
            leave, self.leave = self.leave, None
            leave.result = result
            leave.done.set()
        if self.stopping:
            self.keeper.kill()

    def _put_statuses_back(self, session: Session) -> None:
        """Undo the STOP of a drain that died, here or with the holder before."""
        by_control_name = {process.process_control_name: process.name for process in self.processes}
        for name, status in self.tools.drains.under_way(list(by_control_name)).items():
            LOG.warning("%s: a drain of %s was cut short, its status is %s again", self.placement, name, status)
            self.tools.control.set_status(name, status)
            self.tools.drains.end(name)
        session.unsettled = False

    # After a grant ------------------------------------------------------------------------------------------------

    def _prepare(self, session: Session, grant: Grant) -> bool:
        """Clean up after whoever held the lease before; nothing is started until that has succeeded."""
        if self.tools.clock() < session.try_at:
            return False
        self._put_statuses_back(session)
        self._settle_runs(grant)
        # Whatever the books say: only the broker knows what is open there.
        if self.sends_orders and not self._recover(session):
            return False
        if not self._holds(session):
            return False
        session.checked = True
        self._close_dead()
        if not self.tools.control.any_running():
            for ids in (self.tools.settings.gateway.client_ids, self.tools.settings.gateway.peer_client_ids):
                self.tools.control.free_client_ids(ids)
        self.keeper.files.write_environment(self.placement, grant)
        session.ready = True
        return True

    def _recover(self, session: Session) -> bool:
        """Have the broker's open orders cancelled."""
        try:
            report = self.tools.recover()
        except Exception as error:  # noqa: BLE001  whatever it is, nothing may trade before it is right
            session.problem = f"the recovery failed, trading waits for it: {error}"
            LOG.error("%s: %s", self.placement, session.problem)  # noqa: TRY400  the message says what is open
            session.try_at = self.tools.clock() + session.backoff
            session.backoff = min(session.backoff * 2, BACKOFF_S[1])
            if not session.ready and self.tools.clock() - session.since > PATIENCE_S and self._holds(session):
                LOG.warning("%s: stands aside: another host may reach the gateway", self.placement)
                session.left = True
                self.keeper.stand_aside(session.epoch)
            return False
        LOG.warning("%s: recovered: %s", self.placement, report)
        session.backoff, session.problem = BACKOFF_S[0], ""
        session.checked = True
        return self._holds(session)

    def _close_dead(self) -> None:
        dead = [process.process_control_name for process in self.processes if not self._alive(process)]
        for name in self.tools.control.close_dead(dead, self.tools.local_time()):
            LOG.warning("%s: closed the entry that %s has left in process control", self.placement, name)

    def _settle_runs(self, grant: Grant) -> None:
        """Report the daily runs that an earlier holder left and that must not be run again."""
        today = self._today()
        daily = {process.name: process for process in self.processes if process.kind == "daily"}
        for run in self.tools.runs.unfinished(list(daily)):
            name, day = run["_id"]["process"], run["_id"]["day"]
            if run["epoch"] < grant.epoch and (day != today or not daily[name].rerun):
                LOG.error("%s of %s was cut off on %s and is not run again", name, day, run.get("host"))
                self.tools.runs.finish(name, day, "abandoned", ["running"])

    # Processes --------------------------------------------------------------------------------------------------------

    def _look_after(self, process: Process, track: Track) -> None:
        if self._alive(process):
            if self.session and process.process_control_name == ORDER_SENDER:
                self.session.checked = False  # it may leave something, whoever has started it
            if not track.running:
                track.running, track.since = True, self.tools.clock()
            track.note = "runs"
            return
        if track.running:
            if self.tools.units.state(process.unit).over:
                self._ended(process, track)
            return
        if self.tools.clock() < track.try_at:
            return
        settled = track.settled == self._today()
        track.try_at = self.tools.clock() + (SETTLED_S if settled else LOOK_AGAIN_S)
        due = self._service_due if process.kind == "service" else self._daily_due
        track.note = due(process, track) or self._start(process, track)

    def _in_window(self, process: Process) -> bool:
        return in_window(process.days, process.start, process.stop, self.tools.local_time())

    def _today(self) -> str:
        return self.tools.local_time().date().isoformat()

    def _state(self, process: Process) -> ProcessState:
        name = process.process_control_name
        return self.tools.control.states([name])[name]

    def _not_due(self, process: Process, today: str) -> str:
        """Say why no process of this kind would be started now; nothing if there is no reason."""
        if not self._in_window(process):
            return f"waits for its window, {process.start} to {process.stop} {', '.join(process.days)}"
        if process.previous and not self._has_succeeded(process.previous, today):
            return f"waits for {process.previous}"
        state = self._state(process)
        return "" if state.may_start else f"its status is {state.status} (pst-trading start {process.name})"

    def _service_due(self, process: Process, _track: Track) -> str:
        """Say why a service is not to be started now; nothing if it is."""
        return self._not_due(process, self._today())

    def _daily_due(self, process: Process, track: Track) -> str:
        """Say why a daily process is not to be started now; nothing if it is: then this guard has claimed its run."""
        today = self._today()
        if track.settled == today and self._is_done(process.name, today):
            return track.note
        grant = self.keeper.grant
        if grant is None:
            return "the lease is gone"
        if reason := self._not_due(process, today):
            return reason
        claim = {
            "epoch": grant.epoch,
            "host": grant.holder.host,
            "instance": grant.holder.instance,
            "claimed_at": self.tools.local_time(),
        }
        run = self.tools.runs.claim(process.name, today, claim, take_over=process.rerun)
        if run["state"] != "running" or run["epoch"] != grant.epoch:
            track.settled = today
            return f"{run['state']} on {run.get('host')}"
        track.day = today
        state = self._state(process)
        if state.last_start and state.last_start >= run["claimed_at"]:  # it ran while no guard was looking
            self._judge(process, track)
            return track.note
        return ""

    def _is_done(self, name: str, day: str) -> bool:
        """Whether nobody has asked to run it again since."""
        run = self.tools.runs.of_day(name, day)
        return run is not None and run["state"] != "again"

    def _has_succeeded(self, name: str, day: str) -> bool:
        process = self.tools.settings.process(name)
        if process.kind == "daily":
            run = self.tools.runs.of_day(name, day)
            return run is not None and run["state"] == "succeeded"
        state = self._state(process)
        return not state.running and state.last_end is not None and state.last_end.date().isoformat() == day

    def _start(self, process: Process, track: Track) -> str:
        grant, session = self.keeper.grant, self.session
        # Renewed since it ended: if a kill switch ended it, the lease is revoked, and a renewal would have told.
        if grant is None or session is None or grant.sent_at <= track.ended_at:
            track.try_at = self.tools.clock()
            return "waits for a renewal of the lease"
        unchecked = process.process_control_name == ORDER_SENDER and not session.checked
        if unchecked and (self.tools.clock() < session.try_at or not self._recover(session)):
            return "waits for the recovery of what it has left at the broker"
        self.tools.control.close_dead([process.process_control_name], self.tools.local_time())
        if not self._holds(session):
            return "the lease is gone"
        LOG.info("%s: starts %s", self.placement, process.name)
        if process.process_control_name == ORDER_SENDER:
            session.checked = False  # from here on it may leave something, also where systemd does not answer in time
        self.tools.units.start(process.unit)
        track.running, track.since = True, self.tools.clock()
        return "starts"

    def _ended(self, process: Process, track: Track) -> None:
        at = self.tools.clock()
        steady = at - track.since >= STEADY_S
        track.running, track.ended_at = False, at
        track.backoff = BACKOFF_S[0] if steady else min(track.backoff * 2, BACKOFF_S[1])
        track.try_at = at + track.backoff
        state = self._state(process)
        LOG.warning("%s: %s has ended%s", self.placement, process.name, ", and left its entry" if state.running else "")
        if process.kind == "daily" and track.day:
            self._judge(process, track)
        else:
            track.note = "has ended"

    def _judge(self, process: Process, track: Track) -> None:
        """Judge a daily run by process control: exit codes say nothing."""
        run = self.tools.runs.of_day(process.name, track.day)
        if run is None or run["state"] != "running":  # a drain cut it short
            track.day = ""
            return
        state = self._state(process)
        if state.last_start is None or state.last_start < run["claimed_at"]:
            track.attempts += 1
            if track.attempts < ATTEMPTS:  # it never began, so it may be tried again
                track.note = "ended before it began"
                return
        good = (
            state.last_start is not None
            and state.last_start >= run["claimed_at"]
            and state.last_end is not None
            and state.last_end >= state.last_start
            and not state.running
            and not state.crashed
        )
        outcome = "interrupted" if good and state.status == "STOP" else "succeeded" if good else "failed"
        self.tools.runs.finish(process.name, track.day, outcome, ["running"])
        if not good:
            LOG.error("%s of %s failed: %s", process.name, track.day, state)
        if outcome != "interrupted":
            track.settled = track.day
        track.note, track.day, track.attempts = f"{outcome} today", "", 0

    # What others ask ----------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Say what this guard knows of the placement."""
        grant, session = self.keeper.grant, self.session
        return {
            "holds": grant is not None,
            "epoch": grant.epoch if grant else None,
            "valid_for_s": round(grant.valid_until - self.tools.clock(), 1) if grant else None,
            "ready": session is not None and session.ready,
            "stays_out": self.keeper.files.out.exists(),
            "problem": (session.problem if session else "") or self.problem or self.keeper.problem,
            "processes": {name: track.note for name, track in self.tracks.items()} if grant else {},
        }
