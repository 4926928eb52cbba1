"""Watches the gateway of this host, writes its state to a file and each change of it to the journal.

A gateway that waits for the second factor is not broken: somebody has to take the telephone. IBC tells so in its event
log; everything else is what a session with the API shows. An open port alone shows nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from . import ibapi
from .gate_settings import PATH, GateSettings, WatchSettings, load
from .session import ClientIdBusyError, Session, SessionError
from .settings import BAD_CONFIGURATION, SettingsError
from .streams import Endpoint, tell_systemd

UNIT = "ib-gateway.service"
# Where the node exporter reads what a host tells; the unit says so, because nothing else on the host is told.
METRICS_VARIABLE = "PST_GATEWAY_METRICS"
REMIND_S = 600.0  # what needs somebody is said again


class State(StrEnum):
    """What the gateway is up to."""

    READY = "ready"
    STARTING = "starting"  # no API yet, for less than start_timeout_s
    SECOND_FACTOR_PENDING = "second_factor_pending"
    LOGIN_FAILED = "login_failed"
    UNKNOWN_WINDOW = "unknown_window"  # one that IBC does not know keeps the login waiting
    NOT_LOGGED_IN = "not_logged_in"  # answers the handshake, starts no session
    BROKER_LOST = "broker_lost"  # logged in, without the broker's servers
    WRONG_ACCOUNT = "wrong_account"
    FROZEN = "frozen"  # takes connections, answers nothing
    DOWN = "down"  # no API for longer than start_timeout_s


# Priorities of the journal (sd-daemon(3)): 3 needs somebody, 4 needs somebody or time, 5 is worth a line.
PRIORITY = {
    State.READY: 5,
    State.STARTING: 5,
    State.SECOND_FACTOR_PENDING: 4,
    State.NOT_LOGGED_IN: 4,
    State.BROKER_LOST: 4,
    State.LOGIN_FAILED: 3,
    State.UNKNOWN_WINDOW: 3,
    State.WRONG_ACCOUNT: 3,
    State.FROZEN: 3,
    State.DOWN: 3,
}
# What the last event of a login that is not through means. IBC's words.
EVENTS = {
    "TWO_FA_REQUIRED": State.SECOND_FACTOR_PENDING,
    "LOGIN_FAILED": State.LOGIN_FAILED,
    "UNKNOWN_WINDOW": State.UNKNOWN_WINDOW,
}
LOGIN_EVENTS = frozenset(EVENTS) | {"LOGIN_STARTED", "LOGGED_IN", "EXIT"}


@dataclass(frozen=True)
class Seen:
    """A state, with what showed it."""

    state: State
    detail: str
    handshake_s: float | None = None  # until a session was there


def last_event(path: Path, tail: int = 1 << 16) -> tuple[str, str]:
    """Type and detail of the last event about the login; IBC appends JSON lines."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - tail))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "", ""
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("type") in LOGIN_EVENTS:
                return str(event["type"]), str(event.get("detail", ""))[:300]
    return "", ""


def look(settings: WatchSettings, starting: bool) -> Seen:
    """Ask the gateway, within bounds."""
    api = Endpoint.parse(settings.api)
    began = time.monotonic()
    deadline = began + settings.timeout_s
    stage = State.FROZEN
    try:
        with contextlib.closing(Session.connect(api.host, api.port, deadline)) as session:
            stage = State.NOT_LOGGED_IN
            session.start(settings.client_id)
            return replace(judge(settings, session), handshake_s=time.monotonic() - began)
    except ClientIdBusyError as error:
        return Seen(State.READY, str(error))  # it knows its clients, so it is logged in
    except TimeoutError:
        seen = Seen(stage, f"no answer within {settings.timeout_s:g} s")
    except (OSError, SessionError, ibapi.ProtocolError, ValueError, IndexError) as error:
        seen = Seen(State.STARTING if starting else State.DOWN, str(error))
    event, detail = last_event(Path(settings.events))
    return Seen(EVENTS[event], detail or event) if event in EVENTS else seen


def judge(settings: WatchSettings, session: Session) -> Seen:
    """Say whether a session is the one that is wanted."""
    seen = ", ".join(session.accounts)
    if any(account.startswith("D") != (settings.trading_mode == "paper") for account in session.accounts):
        return Seen(State.WRONG_ACCOUNT, f"accounts seen {seen}, wanted {settings.trading_mode} accounts")
    if missing := sorted(set(settings.accounts) - set(session.accounts)):
        return Seen(State.WRONG_ACCOUNT, f"accounts seen {seen}, wanted also {', '.join(missing)}")
    if session.broker_lost:
        return Seen(State.BROKER_LOST, session.broker_lost)
    return Seen(State.READY, f"version {session.version}, {seen}")


def write(path: Path, text: str) -> None:
    """Replace a file at once, so that nobody reads half of it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def metrics(seen: Seen, seconds: float) -> str:
    """The state as the node exporter's textfile collector reads it."""
    ready = seen.state is State.READY
    lines = ["# HELP pst_gateway_state 1 for the state that the gateway is in", "# TYPE pst_gateway_state gauge"]
    lines += [f'pst_gateway_state{{state="{state.value}"}} {int(state is seen.state)}' for state in State]
    values: list[tuple[str, str, float]] = [
        ("state_seconds", "For how long it has been in this state", seconds),
        ("connected", "1 while a session with the API works and the broker is there", ready),
        (
            "second_factor_pending",
            "1 while the login waits for the telephone",
            seen.state is State.SECOND_FACTOR_PENDING,
        ),
        ("session_age_seconds", "For how long sessions have worked without a break", seconds if ready else 0.0),
    ]
    if seen.handshake_s is not None:
        values.append(("handshake_seconds", "Time until a session with the API was there", seen.handshake_s))
    for name, text, value in values:
        head = f"# HELP pst_gateway_{name} {text}\n# TYPE pst_gateway_{name} gauge"
        lines.append(f"{head}\npst_gateway_{name} {float(value)!r}")
    return "\n".join(lines) + "\n"


class Watch:
    """Keeps the state file, tells of changes, and restarts a frozen gateway where that is wanted."""

    def __init__(
        self,
        settings: WatchSettings,
        restart: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
        metrics: Path | None = None,
    ) -> None:
        self._settings = settings
        self._restart = restart
        self._clock = clock
        self._now = now
        self._metrics = metrics
        self._began = clock()
        self._ready_once = False
        self._state: State | None = None
        self._since = clock()
        self._said = clock()

    def step(self, look: Callable[[WatchSettings, bool], Seen] = look) -> Seen:
        """Look once."""
        starting = not self._ready_once and self._clock() - self._began < self._settings.start_timeout_s
        seen = look(self._settings, starting)
        now = self._clock()
        self._ready_once |= seen.state is State.READY
        if seen.state is not self._state:
            self._state, self._since, self._said = seen.state, now, now
            self._say(seen)
        elif PRIORITY[seen.state] < PRIORITY[State.READY] and now - self._said >= REMIND_S:
            self._said = now
            self._say(seen)
        self._write(seen)
        self._restart_if_frozen(now)
        return seen

    def _say(self, seen: Seen) -> None:
        sys.stdout.write(f"<{PRIORITY[seen.state]}>gateway {seen.state.value}: {seen.detail}\n")
        sys.stdout.flush()

    def _write(self, seen: Seen) -> None:
        path = Path(self._settings.state_file)
        record = {
            "state": seen.state.value,
            "detail": seen.detail,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "for_seconds": round(self._clock() - self._since),
        }
        write(path, json.dumps(record) + "\n")
        if self._metrics:
            write(self._metrics, metrics(seen, self._clock() - self._since))

    def _restart_if_frozen(self, now: float) -> None:
        after = self._settings.restart_frozen_after_s
        if not after or self._state is not State.FROZEN or now - self._since < after:
            return
        if self._settings.trading_window.covers(self._now()):
            return  # ending the process ends the login: whoever trades would rather wait than lose it
        sys.stdout.write(f"<3>gateway frozen for {now - self._since:.0f} s: it is restarted\n")
        sys.stdout.flush()
        self._restart()
        self._state, self._began, self._ready_once = None, now, False


def kill_gateway() -> None:
    """End the program; systemd starts it again. It runs as the same user, so this needs no rights."""
    shown = subprocess.run(  # noqa: S603  constant arguments
        ["/usr/bin/systemctl", "show", "--property=MainPID", "--value", UNIT],
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
    )
    if pid := int(shown.stdout.strip() or 0):
        os.kill(pid, signal.SIGKILL)


def main(path: Path = PATH) -> int:
    """Watch until told to stop; returns the exit status."""
    try:
        settings: GateSettings = load(path)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_CONFIGURATION
    stopped = threading.Event()
    # Not in a handler: a second signal would wait there for a lock that the first one holds.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)

    def wait_for_the_end() -> None:
        signal.sigwait(ends)
        stopped.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    told = os.environ.get(METRICS_VARIABLE)
    watch = Watch(settings.watch, kill_gateway, metrics=Path(told) if told else None)
    tell_systemd("READY=1")
    while True:
        watch.step()
        if stopped.wait(settings.watch.interval_s):
            return 0


if __name__ == "__main__":
    sys.exit(main())
