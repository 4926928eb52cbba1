"""What is said about targets that are not up."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ansible_collections.pst.platform.plugins.module_utils.prometheus import (
    PrometheusError,
    Target,
    problems_of,
    wait_up,
)

NODE = Target("node", "a:9100")
APP = Target("app", "a:8080")


def answer(**health: str) -> bytes:
    names = {"node": "a:9100", "app": "a:8080"}
    targets = [
        {"labels": {"job": job, "instance": names[job]}, "health": state, "lastError": "refused" * (state == "down")}
        for job, state in health.items()
    ]
    return json.dumps({"status": "success", "data": {"activeTargets": targets}}).encode()


@pytest.mark.parametrize(
    ("health", "problems"),
    [
        ({"node": "up", "app": "up"}, []),
        ({"node": "up", "app": "down"}, ["app a:8080: down refused"]),
        ({"app": "unknown"}, ["node a:9100: not a target", "app a:8080: unknown"]),
    ],
)
def test_problems_name_the_target(health: dict[str, str], problems: list[str]) -> None:
    assert problems_of([NODE, APP], answer(**health)) == problems


def test_waits_until_up() -> None:
    answers: Iterator[bytes] = iter([b"not json", answer(node="down"), answer(node="up")])
    assert wait_up([NODE], lambda: next(answers), wait=5, pause=0.01) == 1


def test_wait_is_bound_and_the_error_names_what_is_down() -> None:
    with pytest.raises(PrometheusError, match="node a:9100: down refused"):
        wait_up([NODE], lambda: answer(node="down"), wait=0.05, pause=0.01)


def test_unreachable() -> None:
    def refuse() -> bytes:
        raise ConnectionRefusedError("refused")

    with pytest.raises(PrometheusError, match="does not answer: refused"):
        wait_up([NODE], refuse, wait=0)
