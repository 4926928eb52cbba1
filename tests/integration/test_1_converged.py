"""A converged platform is quiet, says what it is, and rolls a change."""

from __future__ import annotations

import json
import re

import lab

# The bars of the issue; the machine that tests run on has 2 cores.
NOOP_SECONDS = 90
VALIDATE_SECONDS = 3  # what a run costs that contacts no host, on the machine of the bar


def test_the_virtual_address_answers_with_verified_tls() -> None:
    status, body = lab.ask("/version")
    assert status == 200, body
    assert json.loads(body)["colour"] in {"blue", "green"}


def test_readiness_means_that_mongodb_and_redis_were_used() -> None:
    status, body = lab.ask("/ready")
    assert status == 200, body


def test_status_shows_every_service_healthy() -> None:
    lab.wait_until_all_serve(60)  # a scrape that was missed is no service that is down
    run = lab.succeed(lab.playbook("status"))
    for host in lab.HOSTS:
        assert re.search(rf"^\W*{host}\b", run.output, re.MULTILINE), f"{host} is not in the table\n{run.output}"


def test_a_second_run_changes_and_restarts_nothing() -> None:
    before = lab.start_times()
    # The machine is shared: in an hour in which it is slower, everything is.
    yard = min(lab.succeed(lab.playbook("validate")).seconds for _ in range(3))
    run = lab.succeed(lab.playbook("site"))
    lab.record(
        "noop_site",
        bar_s=NOOP_SECONDS,
        seconds=round(run.seconds, 1),
        validate_s=round(yard, 1),
        changed=run.total("changed"),
        hosts=len(run.recap),
    )
    assert run.total("changed") == 0, run.changed_tasks()
    assert lab.start_times() == before
    assert run.seconds <= NOOP_SECONDS * lab.SLACK * max(1, yard / VALIDATE_SECONDS)


def test_check_mode_on_a_converged_lab_finds_nothing() -> None:
    run = lab.succeed(lab.playbook("site", "--check", "--diff", "-vvv"))
    assert not lab.leaked(run.output)
    assert run.total("changed") == 0, run.changed_tasks()
    assert run.total("failed") == 0


def test_a_limited_run_touches_no_other_host() -> None:
    run = lab.succeed(lab.playbook("site", "--limit", "lab-redis2"))
    assert set(run.recap) - {"localhost"} == {"lab-redis2"}
    assert run.total("changed") == 0, run.changed_tasks()
