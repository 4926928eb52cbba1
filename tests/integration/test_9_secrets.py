"""No secret in what a run prints, whatever the verbosity. (site.yml on a converged lab: test_1_converged.py.)"""

from __future__ import annotations

import lab
import pytest


def test_the_first_run_printed_no_secret() -> None:
    """The run that wrote them all, at -vvv --diff."""
    if not lab.FIRST_RUN.exists():
        pytest.skip("the lab was up before the tests")
    output = lab.FIRST_RUN.read_text()
    assert "TASK [mongodb : " in output
    assert not lab.leaked(output)


@pytest.mark.parametrize("name", ["validate", "preflight", "status"])
def test_no_playbook_prints_a_secret(name: str) -> None:
    run = lab.succeed(lab.playbook(name, "-vvv", "--diff"))
    assert not lab.leaked(run.output)
