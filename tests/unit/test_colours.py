"""What clients notice of a switch between the slots: the arithmetic of the drill of changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from colours import Answer, both_live_ms, moved_after_s

BLUE, GREEN = "blue", "green"


@pytest.mark.parametrize(
    ("answers", "both", "after"),
    [
        # One client after the other, and one whose request was on its way: nobody asked later and got the old slot.
        ([Answer(1.0, 1.1, BLUE), Answer(1.2, 1.4, BLUE), Answer(1.25, 1.3, GREEN)], 0.0, 0.2),
        # Asked 40 ms after somebody had been answered by the new one.
        ([Answer(1.0, 1.1, BLUE), Answer(1.25, 1.3, GREEN), Answer(1.34, 1.4, BLUE)], 40.0, 0.34),
        ([Answer(1.5, 1.6, GREEN)], 0.0, 0.0),
    ],
)
def test_both_are_live_while_somebody_is_still_sent_to_the_old_one(
    answers: list[Answer], both: float, after: float
) -> None:
    assert both_live_ms(answers, GREEN) == both
    assert moved_after_s(answers, GREEN, 1.0) == after


def test_a_switch_that_never_came_is_no_short_one() -> None:
    assert both_live_ms([Answer(1.0, 1.1, BLUE)], GREEN) == 0.0  # the drill asks for both slots beside this
    assert moved_after_s([Answer(4.0, 4.1, BLUE)], GREEN, 1.0) == 3.0
