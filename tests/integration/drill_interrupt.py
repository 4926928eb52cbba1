"""make drill-interrupt: site.yml is safe to kill at any point; run again, it converges.

Kills the control process (SIGKILL to its whole process group) at two random points while it replaces one lost host of
each kind, and at ten random points of a whole first installation: in the middle of a task that is drawn, so that a
machine that is faster by then than it was before does not matter. The seed is printed, so that a failure can be
repeated: INTERRUPT_SEED=… make drill-interrupt. The lab is made anew: whatever was in it is gone. About two hours.
"""

from __future__ import annotations

import os
import random
import time

import lab
import pytest

SEED = int(os.environ.get("INTERRUPT_SEED", str(time.time_ns() % 1_000_000)))
REBUILT = ("lab-lb2", "lab-app3", "lab-mongo3", "lab-redis3", "lab-ibgw2")


def tasks(output: str) -> int:
    """Return how many tasks of site.yml have begun, beyond those that contact no host."""
    site = output.partition("PLAY [Check that no run is changing the site]")[2]
    return site.partition("PLAY [Ask through the virtual address]")[0].count("\nTASK [")


@pytest.fixture(scope="session", autouse=True)
def platform() -> int:
    """In place of conftest.py's: a lab made anew; its tasks are the range that the points are drawn from."""
    return tasks(lab.anew().output)


def killed_in_task(number: int, after: float) -> bool:
    """Start site.yml and SIGKILL its process group so many seconds into this task; False where it had ended by then."""
    log = lab.REPORTS / "test" / "interrupted.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = lab.start_playbook("site", output=output.fileno())
    try:
        begun = f"task {number} of site.yml"
        lab.eventually(begun, lambda: process.poll() is not None or tasks(log.read_text()) >= number, 1800, 0.1)
        return lab.killed_after(process, after)
    finally:
        if process.poll() is None:
            lab.kill(process)


def converges() -> None:
    """Run to the end, then once more: nothing is left to do, and everything works."""
    lab.succeed(lab.playbook("site", timeout=1800))
    again = lab.succeed(lab.playbook("site"))
    assert again.total("changed") == 0, again.changed_tasks()
    lab.wait_until_all_serve()


def test_a_run_killed_while_it_replaces_lost_hosts() -> None:
    """Hosts are lost with their disks; site.yml that replaces them is killed twice."""
    print(f"INTERRUPT_SEED={SEED}")
    chance = random.Random(SEED)
    lab.engine("rm", "--force", *(lab.container(host) for host in REBUILT))
    lab.succeed(lab.playbook("lab", "--tags", "hosts"))
    points = [round(chance.uniform(5, 100), 1) for _ in range(2)]
    killed = [lab.interrupted("site", point) for point in points]
    lab.record("interrupted_rebuild", points=points, killed=killed, seed=SEED)
    assert all(killed), f"site.yml ended before it could be killed: {points}"
    converges()


@pytest.mark.parametrize("point", [random.Random(SEED + index).random() for index in range(10)])
def test_a_first_installation_killed_at_a_random_point_converges(point: float, platform: int) -> None:
    lab.succeed(lab.playbook("lab-down"))
    lab.succeed(lab.playbook("lab", "--tags", "hosts"))
    number, after = int(point * platform) + 1, random.Random(point).random()
    killed = killed_in_task(number, after)
    lab.record(f"interrupted_at_{point:.2f}", killed=killed, task=number, of=platform, seed=SEED)
    assert killed
    converges()
