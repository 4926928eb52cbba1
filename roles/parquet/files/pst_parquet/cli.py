"""The command line of the Parquet store on a host.

Exit codes: 0 done or in health; 1 not, the message says why; 2 wrong arguments; 78 (EX_CONFIG) the settings cannot be
used.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pst_trading.cli import LevelFormatter
from pst_trading.settings import BAD_CONFIGURATION, SettingsError

from . import gluster, settings, store
from .fence import read_state, wait_until
from .settings import Settings

WRITE_S = 8.0  # longer than the store stands still when a host is lost
STALE_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LevelFormatter("%(message)s") if "JOURNAL_STREAM" in os.environ else None)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        if options.check_config:
            settings.load(options.check_config)
            return 0
        code: int = options.run(settings.load(options.settings), options)
    except SettingsError as error:
        _complain(str(error))
        return BAD_CONFIGURATION
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread may wait for the file system for ever


def fence(known: Settings, _options: argparse.Namespace) -> int:
    """Let the other hosts reach the brick while they are clean, and tell them whether this one is."""
    from .fence import main as run  # noqa: PLC0415

    return run(known)


def check(known: Settings, options: argparse.Namespace) -> int:
    """Wait until the store takes a write of this host; before a process of trading starts."""

    def problem() -> str:
        # In the unit of a process the public folder is writable; there the rest of the host is not.
        inside = store.writable(known.public)
        path = known.public if inside else known.store
        missing = "" if inside else store.mount_problem(known.store, known.public)
        return missing or store.write_problem(path, known.host, WRITE_S)

    if left := wait_until(problem, options.wait):
        _complain(f"the Parquet store cannot be written: {left}")
    return 1 if left else 0


def status(known: Settings, options: argparse.Namespace) -> int:
    """Say what is wrong with the store as this host sees it."""
    found = look(known)
    if options.json:
        _say(json.dumps(found))
    else:
        for line in found["problems"] or ["in health"]:
            _say(line)
    return 1 if found["problems"] else 0


def look(known: Settings) -> dict[str, Any]:
    """Return the state of the store, and all that is wrong."""
    problems = [store.mount_problem(known.store, known.public)]
    seen = read_state()
    if not seen or seen["age"] > STALE_S:
        problems.append(f"the fence: seen {seen['age']:.0f} s of silence" if seen else "the fence: seen no state of it")
    else:
        problems.append(f"the fence: {seen['problem']}" if seen["problem"] else "")
        out = sorted(set(known.members) - {known.address} - set(seen["admitted"]))
        problems += [f"the fence: {address} is shut out here, wanted every member admitted" for address in out]
        if not seen["clean"]:
            problems.append("the fence: this host is not clean, wanted nothing that runs without a valid lease")
    result: dict[str, Any] = {"fence": seen}
    try:
        volume = gluster.volume(known.volume)
    except gluster.GlusterError as error:
        problems.append(f"GlusterFS: {error}")
    else:
        result |= {"bricks": volume.bricks, "heal_pending": volume.pending}
        problems += [f"brick {brick} does not run" for brick, up in sorted(volume.bricks.items()) if not up]
        if len(volume.bricks) != len(known.members):
            problems.append(f"{len(volume.bricks)} bricks, wanted {len(known.members)}")
        if volume.pending:
            problems.append(f"{volume.pending} entries wait to be healed, wanted 0")
    return {**result, "problems": [problem for problem in problems if problem]}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    main_parser = argparse.ArgumentParser(prog="pst-parquet", description=__doc__.splitlines()[0] if __doc__ else None)
    main_parser.add_argument("--settings", type=Path, default=settings.PATH)
    main_parser.add_argument("--check-config", type=Path, metavar="FILE", help="only say whether the file can be used")
    commands = main_parser.add_subparsers(dest="command")
    main_parser.set_defaults(run=lambda *_: main_parser.error("a command is missing"))

    def command(run: Any) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(run.__name__, help=run.__doc__)
        added.set_defaults(run=run)
        return added

    command(fence)
    command(check).add_argument("--wait", type=float, default=25.0, metavar="SECONDS")
    command(status).add_argument("--json", action="store_true")
    return main_parser
