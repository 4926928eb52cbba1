"""The command line of trading on a host.

Exit codes: 0 done; 1 refused or not done, the message says why; 2 wrong arguments; 69 (EX_UNAVAILABLE) MongoDB or the
guard does not answer, so that nothing is known; 78 (EX_CONFIG) the settings cannot be used.

Whatever concerns the lease itself goes to MongoDB directly, so that the kill switch works with every guard dead.
"""

from __future__ import annotations

import argparse
import getpass
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from . import settings as configuration
from .control import GuardAwayError, ask
from .drain import Drain
from .guard import RUN, boot_time, local_time
from .keeper import Files
from .lease import Document
from .processes import MongoProcessControl
from .settings import BAD_CONFIGURATION, Process, Settings, SettingsError
from .store import MongoDrains, MongoLeases, MongoRuns, StoreError, connect
from .units import Systemd, UnitsError

UNAVAILABLE = 69
ANSWER_S = 5.0  # for the guard to say something that it knows
POLL_S = 0.5


class RefusedError(Exception):
    """What was asked is not done; the message says why."""


class LevelFormatter(logging.Formatter):
    """Begins a line with the level as the journal reads it."""

    LEVELS = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def format(self, record: logging.LogRecord) -> str:
        level = next((number for least, number in self.LEVELS if record.levelno >= least), 7)
        return f"<{level}>{super().format(record)}"


class Host:
    """What the commands need of the world, made when it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def settings(self) -> Settings:
        return configuration.load(self.path)

    @cached_property
    def client(self) -> Any:
        return connect(self.settings.mongodb)

    @property
    def database(self) -> Any:
        return self.client[self.settings.mongodb.database]

    @cached_property
    def leases(self) -> MongoLeases:
        return MongoLeases(self.database)

    @cached_property
    def control(self) -> MongoProcessControl:
        return MongoProcessControl(self.client[self.settings.mongodb.trading_database])

    def process(self, name: str) -> Process:
        try:
            return self.settings.process(name)
        except KeyError as error:
            raise RefusedError(str(error.args[0])) from error

    def placement(self, name: str) -> str:
        if name not in self.settings.placements:
            raise RefusedError(f"placement {name!r} is not known, wanted one of: {', '.join(self.settings.placements)}")
        return name

    def files(self, placement: str) -> Files:
        return Files(RUN, placement, -1)

    def drain(self, alive: Callable[[Process], bool]) -> Drain:
        return Drain(
            self.control,
            MongoDrains(self.database),
            MongoRuns(self.database),
            alive,
            self.settings.host,
            boot_time,
            time.sleep,
            lambda: local_time().date(),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LevelFormatter("%(message)s") if "JOURNAL_STREAM" in os.environ else None)
    logging.basicConfig(level=logging.INFO if options.command == "guard" else logging.WARNING, handlers=[handler])
    try:
        if options.check_config:
            configuration.load(options.check_config)
            return 0
        code: int | None = options.run(Host(options.settings), options)
    except SettingsError as error:
        _complain(error)
        return BAD_CONFIGURATION
    except (StoreError, GuardAwayError) as error:
        _complain(error)
        return UNAVAILABLE
    except (RefusedError, UnitsError) as error:
        _complain(error)
        return 1
    return code or 0


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="pst-trading", description="Trading on this host: lease, processes, gate.")
    top.add_argument("--settings", type=Path, default=configuration.PATH, metavar="FILE")
    top.add_argument("--check-config", type=Path, metavar="FILE", help="read a file of settings, and do nothing else")
    top.set_defaults(run=_no_command, command="")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: Callable[[Host, Any], int | None], text: str, *names: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        for argument in names:
            added.add_argument(argument)
        added.set_defaults(run=run)
        return added

    command("guard", _guard, "run the guard of this host (pst-guard.service)")
    command("link", _link, "forward the IB API to the active gateway (pst-gateway-link.service)")
    command("gate", _gate, "stand before IB Gateway (pst-gate.service)")
    command("check", _check, "refuse a start without the lease (ExecStartPre)", "process")
    command("drain", _drain, "drain a process that systemd stops (ExecStop)", "process")
    command("stop", _stop, "drain a process, and keep it stopped", "process")
    command("start", _start, "let the guard start a process again after `stop`", "process")
    command("rerun", _rerun, "let the guard run a daily process again today", "process")
    command("leave", _leave, "drain a placement, give its lease back, and stay out", "placement")
    command("join", _join, "let this host take the lease of a placement again after `leave`", "placement")
    command("prepare-database", _prepare_database, "create the unique indexes that are missing")
    command("status", _status, "say who holds what, and what runs").add_argument("--json", action="store_true")
    _lease_commands(commands.add_parser("lease", help="the lease itself, in MongoDB").add_subparsers(required=True))
    return top


def _lease_commands(commands: Any) -> None:
    def command(name: str, run: Callable[[Host, Any], None], text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        added.add_argument("--placement", nargs="+", default=["trading"], help="one or several, in this order")
        added.set_defaults(run=_each(run))
        return added

    command("show", _lease_show, "show the lease").add_argument("--json", action="store_true")
    command("revoke", _lease_revoke, "kill switch: let nobody take or renew it").add_argument("--reason", default="")
    command("reinstate", _lease_reinstate, "undo revoke").add_argument("--reason", required=True)
    want = command("want", _lease_want, "have the holder drain, and let nobody but this one take it")
    want.add_argument("who", metavar="HOST/COLOUR|nobody")
    want.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="until it is so; exit code 1 if not")
    command("clear-want", _lease_clear_want, "let anybody take it again")
    site = command("site", _lease_site, "have it taken at another site from now on; somebody who holds it keeps it")
    site.add_argument("site", metavar="SITE")
    site.add_argument("--force", action="store_true", help="end it where somebody holds it (the site is lost)")


# --- what systemd runs ------------------------------------------------------------------------------------------------


def _no_command(_host: Host, _options: Any) -> int:
    parser().print_usage(sys.stderr)
    return 2


def _guard(host: Host, _options: Any) -> int:
    from . import guard  # noqa: PLC0415

    try:
        settings = host.settings
    except SettingsError:
        _kill_what_runs()
        raise
    return guard.main(settings)


def _kill_what_runs() -> None:
    """Without settings nothing can be renewed: what a guard before this one has left running must not go on."""
    units = Systemd(clock=boot_time)
    for path in RUN.glob("*.json"):
        files = Files(RUN, path.stem, -1)
        files.remove()
        units.kill(path.stem, boot_time() + ANSWER_S)


def _link(host: Host, _options: Any) -> int:
    from . import link  # noqa: PLC0415

    return link.main(host.path)


def _gate(_host: Host, _options: Any) -> int:
    from . import gate  # noqa: PLC0415

    return gate.main()


def _check(host: Host, options: Any) -> int:
    process = host.process(options.process)
    files = host.files(process.placement)
    grant = files.read_grant()
    if grant is None or boot_time() >= grant.deadline:
        raise RefusedError(
            f"{process.name}: this host does not hold the lease of {process.placement}: {_who(host, process.placement)}"
        )
    if not files.environment.exists():
        raise RefusedError(f"{process.name}: the guard still cleans up after the last holder of {process.placement}")
    if process.kind == "daily":
        run = MongoRuns(host.database).of_day(process.name, local_time().date().isoformat())
        if run is None or run["state"] != "running" or run["epoch"] != grant.epoch:
            seen = f"{run['state']} on {run.get('host')}" if run else "not claimed"
            raise RefusedError(
                f"{process.name}: its run of today is {seen}, wanted one that the guard has claimed "
                f"(pst-trading rerun {process.name})"
            )
    return 0


def _who(host: Host, placement: str) -> str:
    """Say who holds a lease, as far as that can be known now."""
    try:
        return describe(host.leases.read(placement))
    except StoreError as error:
        return f"who does is not known ({error})"


def _drain(host: Host, options: Any) -> int:
    process = host.process(options.process)
    main_pid = os.environ.get("MAINPID", "")
    if not main_pid:  # it has ended by itself
        return 0
    alive = Path("/proc", main_pid)
    result = host.drain(lambda _process: alive.exists())([process], host.settings.drain.timeout_s)
    if result.problem:
        raise RefusedError(f"{process.name}: {result}")
    return 0


# --- what people run --------------------------------------------------------------------------------------------------


def _stop(host: Host, options: Any) -> int:
    process = host.process(options.process)
    grant = host.files(process.placement).read_grant()
    if grant is None or boot_time() >= grant.deadline:
        raise RefusedError(f"{process.name} does not run on this host: {_who(host, process.placement)}")
    units = Systemd(clock=boot_time)
    drain = host.drain(lambda wanted: units.alive(wanted.placement, wanted.unit))
    result = drain([process], host.settings.drain.timeout_s, stay_stopped=True)
    if result.problem:
        raise RefusedError(f"{process.name}: not stopped, and nothing is changed: {result}")
    _say(f"{process.name}: {result}; it stays stopped until `pst-trading start {process.name}`")
    return 0


def _start(host: Host, options: Any) -> None:
    process = host.process(options.process)
    host.control.set_status(process.process_control_name, "GO")
    _say(f"{process.name}: its status is GO; the holder of {process.placement} starts it when it is due")


def _rerun(host: Host, options: Any) -> None:
    process = host.process(options.process)
    if process.kind != "daily":
        raise RefusedError(f"{process.name}: seen a {process.kind}, wanted a daily process")
    day = local_time().date().isoformat()
    over = ["succeeded", "failed", "abandoned", "interrupted"]
    if not MongoRuns(host.database).finish(process.name, day, "again", over):
        raise RefusedError(f"{process.name}: its run of {day} is not over, wanted one that is")
    _say(f"{process.name}: runs again today, within its window")


def _leave(host: Host, options: Any) -> None:
    placement = host.placement(options.placement)
    patience = host.settings.drain.timeout_s + 30
    _told(ask({"command": "leave", "placement": placement}, patience))


def _join(host: Host, options: Any) -> None:
    _told(ask({"command": "join", "placement": host.placement(options.placement)}, ANSWER_S))


def _told(answer: Document) -> None:
    if "error" in answer:
        raise RefusedError(answer["error"])
    _say(answer["ok"])


def _prepare_database(host: Host, _options: Any) -> None:
    for name in host.control.create_indexes():
        _say(f"created {name}")


def _status(host: Host, options: Any) -> int:
    known: Document = {"host": host.settings.host, "colour": host.settings.colour, "guard": None, "leases": None}
    problems = []
    try:
        known["guard"] = ask({"command": "status"}, ANSWER_S)["placements"]
    except GuardAwayError as error:
        problems.append(str(error))
    try:
        known["leases"] = {lease["_id"]: lease for lease in host.leases.all()}
    except StoreError as error:
        problems.append(str(error))
    known["problems"] = problems
    if options.json:
        _say(json.dumps(known, default=_text))
    else:
        _show_status(known)
    return UNAVAILABLE if problems else 0


def _show_status(known: Document) -> None:
    _say(f"{known['host']}, {known['colour']}")
    guard, leases = known["guard"] or {}, known["leases"] or {}
    for placement in sorted({*guard, *leases}):
        _say(f"{placement}: {describe(leases[placement]) if placement in leases else 'its lease is not known'}")
        here = guard.get(placement)
        if here is None:
            continue
        if here["stays_out"]:
            _say(f"  this host stays out until `pst-trading join {placement}`")
        if here["problem"]:
            _say(f"  {here['problem']}")
        for name, note in here["processes"].items():
            _say(f"  {name}: {note}")
    for problem in known["problems"]:
        _complain(problem)


# --- the lease --------------------------------------------------------------------------------------------------------


def describe(lease: Document) -> str:
    """Say in words who holds a lease and what stands in the way."""
    holder = lease["holder"]
    words = [f"held by {holder['host']}/{holder['colour']}, epoch {lease['epoch']}" if holder else "held by nobody"]
    if holder and lease.get("now"):
        left = (lease["expires_at"] - lease["now"]).total_seconds()
        words.append(f"{left:.0f} s to live" if left > 0 else f"expired {-left:.0f} s ago")
    if revoked := lease["revoked"]:
        words.append(f"revoked by {revoked['by']} at {revoked['at']}Z: {revoked['reason'] or 'no reason given'}")
    if site := lease.get("site"):
        words.append(f"of site {site}")
    if wanted := lease["wanted"]:
        words.append(f"reserved for {wanted['host']}/{wanted['colour']}" if wanted["colour"] else "reserved for nobody")
    return ", ".join(words)


def _each(run: Callable[[Host, Any], None]) -> Callable[[Host, Any], None]:
    """Do for several placements what is for one; the first that is refused ends it."""

    def run_each(host: Host, options: Any) -> None:
        for placement in options.placement:
            run(host, argparse.Namespace(**vars(options) | {"placement": placement}))

    return run_each


def _lease_show(host: Host, options: Any) -> None:
    lease = host.leases.read(host.placement(options.placement))
    _say(json.dumps(lease, default=_text) if options.json else f"{options.placement}: {describe(lease)}")


def _lease_revoke(host: Host, options: Any) -> None:
    lease = host.leases.revoke(host.placement(options.placement), _me(), options.reason)
    _say(f"{options.placement}: {describe(lease) if lease else 'revoked'}")


def _lease_reinstate(host: Host, options: Any) -> None:
    if not options.reason.strip():
        raise RefusedError("--reason: seen nothing, wanted why trading may go on")
    lease = host.leases.reinstate(host.placement(options.placement), _me(), options.reason)
    _say(f"{options.placement}: {describe(lease) if lease else 'was not revoked'}")


def _lease_want(host: Host, options: Any) -> None:
    placement = host.placement(options.placement)
    who, _, colour = options.who.partition("/")
    if options.who != "nobody":
        eligible = host.settings.placements[placement].hosts
        if who not in eligible or colour not in ("blue", "green"):
            raise RefusedError(
                f"seen {options.who!r}, wanted nobody, HOST/blue or HOST/green, with one of {', '.join(eligible)}"
            )
    host.leases.want(placement, who, colour)
    until = boot_time() + options.wait
    while True:
        lease = host.leases.read(placement)
        holder = lease["holder"]
        if (holder and (holder["host"], holder["colour"]) == (who, colour)) or (holder is None and who == "nobody"):
            break
        if boot_time() >= until:
            if options.wait:
                raise RefusedError(
                    f"{placement}: {describe(lease)}, wanted {options.who} within {options.wait:g} s "
                    "(pst-trading lease clear-want lets anybody take it)"
                )
            break
        time.sleep(POLL_S)
    _say(f"{placement}: {describe(lease)}")


def _lease_clear_want(host: Host, options: Any) -> None:
    lease = host.leases.want(host.placement(options.placement), None)
    _say(f"{options.placement}: {describe(lease) if lease else 'reserved for nobody any more'}")


def _lease_site(host: Host, options: Any) -> None:
    placement, known = host.placement(options.placement), (host.settings.site, host.settings.peer)
    if not host.settings.peer or options.site not in known:
        raise RefusedError(f"seen {options.site!r}, wanted one of the platform's two sites: {', '.join(known)}")
    lease = host.leases.move(placement, options.site, force=options.force)
    if lease is None:
        raise RefusedError(f"{placement}: {describe(host.leases.read(placement))}, wanted: held by nobody")
    _say(f"{placement}: {describe(lease)}")


def _me() -> str:
    """Who asks: the person behind sudo, where that is known."""
    return f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}"


def _text(value: object) -> str:
    """Return as text what JSON has no form for: the server's times, which are UTC."""
    return f"{value.isoformat()}Z" if isinstance(value, datetime) else str(value)


def _say(text: object) -> None:
    sys.stdout.write(f"{text}\n")


def _complain(text: object) -> None:
    sys.stderr.write(f"{text}\n")
