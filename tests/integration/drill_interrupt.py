"""make drill-interrupt: a whole first installation, killed at ten random points, run to the end after each."""

from __future__ import annotations

import random

import lab
import pytest
from test_3_interruption import SEED, converges


@pytest.fixture(scope="module")
def seconds() -> float:
    """How long a first installation takes here: the range that the points are drawn from."""
    lab.succeed(lab.playbook("lab-down"))
    return lab.succeed(lab.playbook("lab", timeout=1800)).seconds


@pytest.mark.parametrize("point", [random.Random(SEED + index).random() for index in range(10)])
def test_a_first_installation_killed_at_a_random_point_converges(point: float, seconds: float) -> None:
    lab.succeed(lab.playbook("lab-down"))
    lab.succeed(lab.playbook("lab", "--tags", "hosts"))
    killed = lab.interrupted("site", point * seconds * 0.9)
    lab.record(f"interrupted_at_{point:.2f}", killed=killed, after_seconds=round(point * seconds * 0.9, 1), seed=SEED)
    assert killed
    converges()
