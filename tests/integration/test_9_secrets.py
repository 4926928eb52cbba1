"""No secret in what a run prints, whatever the verbosity."""

from __future__ import annotations

import lab
import pytest


def secrets() -> dict[str, str]:
    found = {path.name: path.read_text().strip() for path in (lab.STATE / "secrets").iterdir() if path.is_file()}
    assert len(found) >= 5, "the lab has no secrets: this test would prove nothing"
    return found


def leaked(output: str) -> list[str]:
    """Name the secrets and private keys whose text is in the output."""
    keys = {path.name: path.read_text().splitlines()[1] for path in (lab.STATE / "pki").rglob("*.key")}
    return sorted(name for name, value in (secrets() | keys).items() if value in output)


def test_the_first_run_printed_no_secret() -> None:
    """The run that wrote them all, at -vvv --diff."""
    if not lab.FIRST_RUN.exists():
        pytest.skip("the lab was up before the tests")
    output = lab.FIRST_RUN.read_text()
    assert "TASK [mongodb : " in output
    assert not leaked(output)


@pytest.mark.parametrize("name", ["validate", "preflight", "status", "site"])
def test_no_playbook_prints_a_secret(name: str) -> None:
    run = lab.succeed(lab.playbook(name, "-vvv", "--diff"))
    assert not leaked(run.output)
