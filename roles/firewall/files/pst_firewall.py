#!/usr/bin/python3
"""Load the firewall so that a mistake undoes itself.

New rules are loaded on trial: a timer brings the last confirmed ones back unless `confirm` comes first. Only confirmed
rules are loaded at boot. The rules are /etc/pst/firewall.nft with /etc/pst/firewall.d/*.nft in place of its include.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

TABLE = ("inet", "pst")
TIMER = "pst-firewall-rollback"


class FirewallError(Exception):
    """What is wrong, for the person at the terminal."""


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (no shell, own words)
    if check and result.returncode:
        raise FirewallError(f"{' '.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
    return result


class Firewall:
    """The rules on disk and in the kernel. `root` is another folder only in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.rules = root / "etc/pst/firewall.nft"
        self.additions = root / "etc/pst/firewall.d"
        self.confirmed = root / "var/lib/pst-firewall/confirmed.nft"
        self.candidate = root / "run/pst-firewall/candidate.nft"
        self.trial = root / "run/pst-firewall/trial.nft"  # exists only while its rules are the live ones
        self.recorded = root / "run/pst-firewall/loaded"

    def wanted(self) -> str:
        """The rules with the additions in their place, so that what was tried is what is loaded at boot."""
        lines = []
        for line in self.rules.read_text().splitlines():
            if line.strip().startswith("include "):
                for file in sorted(self.additions.glob("*.nft")):
                    lines += [f"# {file}", file.read_text().rstrip("\n")]
            else:
                lines.append(line)
        return "\n".join(lines) + "\n"

    def live(self) -> str:
        """The table in the kernel without its counters and without what services put into named sets; empty: none."""
        return run("nft", "--stateless", "--terse", "list", "table", *TABLE, check=False).stdout

    def is_current(self) -> bool:
        return (
            _read(self.confirmed) == self.wanted()
            and self.live() != ""
            and self.live() == _read(self.recorded)
            and not self.trial.exists()
        )

    def record(self) -> None:
        """Remember the live table, to notice when somebody changes it."""
        _write(self.recorded, self.live())

    def apply(self, seconds: int) -> bool:
        """Load the wanted rules on trial; False when they are loaded and confirmed already."""
        if self.is_current():
            return False
        self._disarm()
        self.trial.unlink(missing_ok=True)
        _write(self.candidate, self.wanted())
        run("nft", "--check", "--file", str(self.candidate))
        run(
            *("systemd-run", "--quiet", "--collect", f"--unit={TIMER}", f"--on-active={seconds}"),
            *("--timer-property=AccuracySec=100ms", os.path.abspath(sys.argv[0]), "rollback"),
        )
        run("nft", "--file", str(self.candidate))
        self.record()
        self.candidate.rename(self.trial)
        return True

    def confirm(self) -> None:
        """Keep the rules on trial."""
        self._disarm()
        trial = _read(self.trial)
        if trial is None or self.live() != _read(self.recorded):
            self.rollback()
            raise FirewallError("the trial has ended and the confirmed rules are back: apply again")
        _write(self.confirmed, trial)
        self.trial.unlink()

    def rollback(self) -> None:
        """Bring the confirmed rules back, or no rules where none were ever confirmed."""
        self.trial.unlink(missing_ok=True)
        if self.confirmed.exists():
            run("nft", "--file", str(self.confirmed))
        else:
            run("nft", "add", "table", *TABLE)
            run("nft", "delete", "table", *TABLE)
        self.record()

    def _disarm(self) -> None:
        run("systemctl", "stop", f"{TIMER}.timer", f"{TIMER}.service", check=False)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")
    with staged.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(prog="pst-firewall", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    apply = verbs.add_parser("apply", help="load the rules on trial")
    apply.add_argument("--seconds", type=int, default=60, help="length of the trial (default 60)")
    verbs.add_parser("confirm", help="keep the rules on trial, also after a reboot")
    verbs.add_parser("rollback", help="bring the confirmed rules back")
    verbs.add_parser("status", help="say whether the wanted rules are loaded and confirmed")
    verbs.add_parser("record", help="remember the live table (the service does this after it has loaded it)")
    arguments = parser.parse_args()
    firewall = Firewall()
    try:
        if arguments.verb == "apply":
            sys.stdout.write("on trial\n" if firewall.apply(arguments.seconds) else "current\n")
        elif arguments.verb == "status":
            sys.stdout.write("current\n" if firewall.is_current() else "differs\n")
        else:
            getattr(firewall, arguments.verb)()
    except (FirewallError, OSError) as error:
        sys.exit(f"pst-firewall: {error}")


if __name__ == "__main__":
    main()
