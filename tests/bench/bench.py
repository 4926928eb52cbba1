#!/usr/bin/env python3
"""Time site.yml against a floor of the same run: a shell script that installs the same and starts the same.

    make bench        makes the lab anew, twice: whatever was in it is gone

Prints, for the floor, a cold site.yml, a no-op site.yml and a change in one role: wall seconds, CPU seconds of the
whole machine, tasks (runs of a task on a host), and the ratio to the floor. Writes reports/bench.json. Absolute times
depend on the machine; the ratios are what to compare.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

import lab

FLOOR = Path(__file__).resolve().parent / "floor.sh"
GROUPS = {
    "load_balancers": lab.BALANCERS,
    "app_nodes": lab.APPS,
    "mongodb": lab.MONGODB,
    "redis": lab.REDIS,
    "ib_gateways": ("lab-ibgw1", "lab-ibgw2"),
    "monitoring": ("lab-mon1",),
}


@dataclass(frozen=True)
class Figure:
    """One measured thing."""

    name: str
    wall: float
    cpu: float
    tasks: int
    changed: int


def busy() -> float:
    """Return the CPU seconds that the machine has spent on anything but idling and waiting."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / 100


def bare_hosts() -> None:
    lab.succeed(lab.playbook("lab-down"))
    lab.succeed(lab.playbook("lab", "--tags", "hosts"))


def floor_on(group: str, host: str) -> None:
    """Send what the host needs and run the script, all over one ssh connection."""
    files = {"mongodb": ["mongodb"], "app_nodes": ["releases", "agent"]}.get(group, [])
    pack = subprocess.Popen(
        [
            "tar",
            "-c",
            "-C",
            str(lab.ROOT / ".cache"),
            "--transform",
            "s,^,cache/,",
            *files,
            "-C",
            str(FLOOR.parent),
            FLOOR.name,
        ],
        stdout=subprocess.PIPE,
    )
    done = subprocess.run(
        [
            "ssh",
            "-F",
            str(lab.STATE / "ssh" / "config"),
            host,
            f"mkdir -p floor && tar -x -C floor && sudo sh floor/cache/{FLOOR.name} {group}",
        ],
        stdin=pack.stdout,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    pack.wait()
    assert done.returncode == 0, f"{host}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def measured_floor() -> Figure:
    cpu, started = busy(), time.monotonic()
    pairs = [(group, host) for group, hosts in GROUPS.items() for host in hosts]
    with ThreadPoolExecutor(len(pairs)) as pool:
        list(pool.map(lambda pair: floor_on(*pair), pairs))
    return Figure("floor (shell, same packages and services)", time.monotonic() - started, busy() - cpu, 0, 0)


def measured(name: str, *arguments: str) -> Figure:
    cpu = busy()
    run = lab.succeed(lab.playbook("site", *arguments, timeout=1800))
    tasks = sum(run.total(what) for what in ("ok", "skipped"))
    return Figure(name, run.seconds, busy() - cpu, tasks, run.total("changed"))


def main() -> None:
    bare_hosts()
    lab.succeed(
        lab.playbook("lab", timeout=1800)
    )  # fills the downloads and builds the release, which the floor sends too
    bare_hosts()
    floor = measured_floor()
    bare_hosts()
    figures = [
        floor,
        measured("cold site.yml"),
        measured("no-op site.yml"),
        measured("one role changed (slow operations at 150 ms)", "-e", "mongodb_slow_operation_ms=150"),
    ]
    lab.succeed(lab.playbook("site"))  # back to the inventory's settings
    print(f"{'':48} {'wall s':>8} {'CPU s':>8} {'tasks':>6} {'changed':>8} {'x floor':>8}")
    for figure in figures:
        print(
            f"{figure.name:48} {figure.wall:8.1f} {figure.cpu:8.1f} {figure.tasks:6d} {figure.changed:8d}"
            f" {figure.wall / floor.wall:8.2f}"
        )
    lab.REPORTS.mkdir(exist_ok=True)
    (lab.REPORTS / "bench.json").write_text(json.dumps([vars(figure) for figure in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
