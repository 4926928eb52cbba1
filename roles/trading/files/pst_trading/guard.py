"""The guard: runs the processes of a placement while this host holds its lease, and has them dead before it expires.

Each placement has two threads. The keeper talks to the store about the lease and does nothing that can last. The runner
starts, drains and recovers, which can. The killer is shared, and needs only the clock and the control groups. The main
thread feeds systemd's watchdog while keepers and killer turn.
"""

from __future__ import annotations

import grp
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from .control import SOCKET, ControlSocket, Message
from .keeper import Files, Keeper, Killer
from .lease import Contender, Holder, Sites, Timing
from .processes import MongoProcessControl
from .runner import Runner, Tools
from .settings import Settings
from .store import LeaseStore, MongoDrains, MongoLeases, MongoRuns, connect
from .units import Systemd

LOG = logging.getLogger("pst.guard")

RUN = Path("/run/pst/trading")
KEEP = "keep"  # while this file is there, a stop of the guard leaves everything as it is for the next one
SIGNALS = {signal.SIGTERM, signal.SIGHUP}
FEED_S = 1.0
FAILED = 70  # EX_SOFTWARE
PULSE_S = 8.0  # longer than the longest call to the store, shorter than a lease
LEFT_S = 10.0  # for the release to be confirmed


def boot_time() -> float:
    """Return the time of a clock that nobody can set, and that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def local_time() -> datetime:
    """Return the host's local time, naive, as pysystemtrade has it everywhere."""
    return datetime.now().astimezone().replace(tzinfo=None)


def notify(state: str) -> None:
    """Tell systemd, where it listens."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
            notifier.connect(address.replace("@", "\0", 1))
            notifier.sendall(state.encode())


def last_breath(target: Callable[..., None], *arguments: Any) -> None:
    """Run a thread without which the guard is none: where it fails the guard ends, and the next one adopts."""
    try:
        target(*arguments)
    except BaseException:
        LOG.critical("a thread of the guard has failed", exc_info=True)
        logging.shutdown()
        os._exit(FAILED)


class Pulse:
    """When each thread that must not hang last came round."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def of(self, name: str) -> Callable[[], None]:
        """Return what the thread calls each time it comes round."""
        self._last[name] = self._clock()

        def beat() -> None:
            self._last[name] = self._clock()

        return beat

    def stuck(self) -> list[str]:
        """Return the threads that did not come round in time."""
        return [name for name, at in self._last.items() if self._clock() - at > PULSE_S]


class Guard:
    """All placements of this host."""

    def __init__(self, tools: Tools, leases: LeaseStore, folder: Path = RUN, group: int = -1) -> None:
        settings = tools.settings
        self.tools = tools
        self.folder = folder
        self.killer = Killer(tools.units, tools.clock)
        self.pulse = Pulse(tools.clock)
        self.over = threading.Event()
        self.stopping = False
        self.keep = False
        timing = Timing(
            settings.lease.ttl_s, settings.lease.renew_s, settings.lease.margin_s, settings.lease.rank_delay_s
        )
        sites = Sites(settings.site, settings.peer, settings.standby) if settings.peer else None
        self.runners: dict[str, Runner] = {}
        for placement, rank in settings.placements_here().items():
            me = Holder(settings.host, settings.colour, new_instance(), settings.address)
            contender = Contender(placement, me, timing, rank, new_instance, sites)
            files = Files(folder, placement, group)
            keeper = Keeper(contender, leases, tools.units, self.killer, files, tools.clock)
            self.runners[placement] = Runner(keeper, tools)

    def run(self) -> None:
        """Guard until told to stop. Signals are waited for and never handled: a handler may not take a lock."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before the threads, which inherit it
        for runner in self.runners.values():
            runner.keeper.adopt()
        self._start_threads()
        notify("READY=1")
        LOG.info("guards %s", ", ".join(self.runners) or "nothing: no placement names this host")
        while not (self.stopping and (self.keep or self.has_left())):
            if not (stuck := self.pulse.stuck()):
                notify("WATCHDOG=1")
            else:
                LOG.error("does not come round: %s", ", ".join(stuck))
            told = signal.sigtimedwait(SIGNALS, FEED_S / 4 if self.stopping else FEED_S)
            if told:
                self.stop(keep=told.si_signo == signal.SIGHUP or (self.folder / KEEP).exists())
        self.over.set()
        notify("STOPPING=1")

    def _start_threads(self) -> None:
        server = ControlSocket(self.folder / SOCKET.name, self.answer)
        loops: list[tuple[str, Callable[..., None], tuple[Any, ...]]] = [
            ("control", server.turn, ()),
            ("killer", self.killer.turn, (self.pulse.of("killer"), self.over)),
        ]
        for placement, runner in self.runners.items():
            beat = self.pulse.of(f"keeper of {placement}")
            loops.append((f"keep-{placement}", runner.keeper.turn, (beat, self.over)))
            loops.append((f"run-{placement}", runner.turn, (self.over,)))
        for name, target, arguments in loops:
            threading.Thread(target=last_breath, args=(target, *arguments), name=name, daemon=True).start()

    # Stopping ---------------------------------------------------------------------------------------------------------

    def stop(self, *, keep: bool) -> None:
        """Leave all placements, or with `keep` everything as it is."""
        self.keep = keep
        LOG.warning("stops, %s", "and keeps its leases for the next guard" if keep else "and leaves all placements")
        if not keep:
            for runner in self.runners.values():
                runner.stopping = runner.keeper.stopping = True
        self.stopping = True

    def has_left(self) -> bool:
        return all(
            runner.keeper.contender.settled and self.tools.units.empty(placement)
            for placement, runner in self.runners.items()
        )

    # The socket -------------------------------------------------------------------------------------------------------

    def answer(self, message: Message) -> Message:
        """Do what the command line asks."""
        if message["command"] == "status":
            return {"placements": {name: runner.status() for name, runner in self.runners.items()}}
        placement = str(message["placement"])
        if placement not in self.runners:
            here = ", ".join(self.runners) or "nothing"
            return {"error": f"placement {placement!r} does not run on this host, wanted one of: {here}"}
        runner = self.runners[placement]
        if message["command"] == "leave":
            return self._leave(runner)
        if message["command"] == "join":
            runner.keeper.files.out.unlink(missing_ok=True)
            return {"ok": f"{placement}: this host may take the lease again"}
        return {"error": f"command {message['command']!r}, wanted status, leave or join"}

    def _leave(self, runner: Runner) -> Message:
        out = runner.keeper.files.out
        was_out = out.exists()
        out.touch(mode=0o640)  # first, so that this host is not the one that takes what it gives back
        leave = runner.ask_to_leave()
        leave.done.wait(self.tools.settings.drain.timeout_s + LEFT_S)
        if leave.result is None or leave.result.problem:
            if not was_out:
                out.unlink(missing_ok=True)
            return {"error": f"{runner.placement}: not drained, this host goes on: {leave.result or 'no answer'}"}
        return {"ok": f"{runner.placement}: left, and stays out until `pst-trading join {runner.placement}`"}


def new_instance() -> str:
    return uuid.uuid4().hex


def main(settings: Settings) -> int:
    """Run the guard of this host with the real world."""
    client = connect(settings.mongodb)
    database = client[settings.mongodb.database]
    RUN.mkdir(mode=0o750, parents=True, exist_ok=True)
    tools = Tools(
        settings=settings,
        units=Systemd(clock=boot_time),
        control=MongoProcessControl(client[settings.mongodb.trading_database]),
        runs=MongoRuns(database),
        drains=MongoDrains(database),
        recover=lambda: _recover(settings),
        clock=boot_time,
        local_time=local_time,
        wait=time.sleep,
    )
    Guard(tools, MongoLeases(database), RUN, grp.getgrnam(settings.user).gr_gid).run()
    return 0


def _recover(settings: Settings) -> object:
    from .recover import recover  # noqa: PLC0415  needed after a death only

    return recover(settings, LOG.warning)
