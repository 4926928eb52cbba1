"""One lab for all integration tests: made as the README says, on bare hosts, and left running."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import lab


@pytest.fixture(scope="session", autouse=True)
def platform() -> None:
    """`make lab`. Where no lab is up, the bare hosts are first taken through a dry run."""
    hosts = lab.succeed(lab.playbook("lab", "--tags", "hosts"))
    bare = hosts.total("changed") > 0
    if bare:
        dry = lab.succeed(lab.playbook("site", "--check", "--diff"))
        lab.record(
            "check_on_bare_hosts", seconds=round(dry.seconds, 1), hosts=len(dry.recap), failed=dry.total("failed")
        )
    # At the highest verbosity: test_9_secrets.py looks through what a first run says.
    made = lab.succeed(lab.playbook("lab", "-vvv", "--diff", timeout=1800))
    if bare:
        lab.FIRST_RUN.parent.mkdir(parents=True, exist_ok=True)
        lab.FIRST_RUN.write_text(made.output)
    lab.record("make_lab", seconds=round(made.seconds, 1), on_bare_hosts=bare)
