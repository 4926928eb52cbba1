"""The audit: "clean" is said only where a database knew every package."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.pst.platform.plugins.module_utils import release_audit
from ansible_collections.pst.platform.plugins.module_utils.release import ReleaseError
from ansible_collections.pst.platform.plugins.module_utils.release_audit import Audit, Finding, UnansweredError

PINS = [{"flask": "3.0.0", "jinja2": "3.1.2"}, {"flask": "3.0.0", "jinja2": "3.1.6"}]
UNKNOWN = {"name": "flask", "skip_reason": "Dependency not found on PyPI and could not be audited"}


def package(name: str, version: str, *ids: str) -> dict[str, Any]:
    vulns = [{"id": name_, "aliases": [f"CVE-{name_}"], "fix_versions": ["9.9"]} for name_ in ids]
    return {"name": name, "version": version, "vulns": vulns}


ALL = [package("flask", "3.0.0"), package("Jinja2", "3.1.2"), package("jinja2", "3.1.6")]
VULNERABLE = [package("flask", "3.0.0"), package("jinja2", "3.1.2", "B", "A"), package("jinja2", "3.1.6")]


def databases(**answers: list[dict[str, Any]]) -> Callable[[str, float], dict[str, Any]]:
    def ask(database: str, timeout: float) -> dict[str, Any]:
        assert 0 < timeout <= release_audit.LIMIT
        if database not in answers:
            raise UnansweredError("no route")
        return {"dependencies": answers[database]}

    return ask


def run(ignore: list[str] | None = None, **answers: list[dict[str, Any]]) -> Audit:
    return release_audit.audit(PINS, "c", ignore or [], databases(**answers))


def test_clean() -> None:
    found = run(pypi=ALL)
    assert (found.status, found.database, found.packages, found.content) == ("clean", "pypi", 3, "c")
    assert found.line() == "clean (3 packages)"


def test_vulnerable() -> None:
    found = run(pypi=VULNERABLE)
    assert found.status == "vulnerable"
    wanted = "2 vulnerabilities in 1 package: jinja2 3.1.2 A (fixed in 9.9), jinja2 3.1.2 B (fixed in 9.9)"
    assert found.line() == wanted


def test_an_ignored_one_by_any_of_its_names_stays_on_record() -> None:
    found = run(["A", "CVE-B"], pypi=VULNERABLE)
    assert found.status == "clean"
    assert found.line() == "clean (3 packages; ignored: A, B)"
    assert run(["A"], pypi=VULNERABLE).line().startswith("1 vulnerability in 1 package: jinja2 3.1.2 B")


def test_no_database_answers() -> None:
    found = run()
    assert found.status == "unreachable"
    assert found.line() == "not audited: the database cannot be reached (pypi: no route; osv: no route)"


def test_a_database_that_does_not_know_the_packages_is_no_clean_bill() -> None:
    """pip-audit says "No known vulnerabilities found" then: seen behind a mirror."""
    found = run(pypi=[UNKNOWN])
    assert found.status == "unreachable"
    assert "pypi: does not know 3 of 3 packages: flask 3.0.0, jinja2 3.1.2, jinja2 3.1.6; osv" in found.line()


def test_one_package_that_is_not_known_sends_us_to_the_next_database() -> None:
    found = run(pypi=[UNKNOWN, *ALL[1:]], osv=ALL)
    assert (found.status, found.database, found.reason) == ("clean", "osv", "")
    assert run(pypi=[UNKNOWN, *ALL[1:]]).status == "unreachable"


def test_what_is_known_counts_whatever_else_is_not() -> None:
    found = run(pypi=[UNKNOWN, *VULNERABLE[1:]])
    assert (found.status, found.database) == ("vulnerable", "pypi")
    assert found.line().endswith("; pypi: does not know 1 of 3 packages: flask 3.0.0")


def test_it_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "1.0.0.audit.json"
    found = run(pypi=VULNERABLE)
    path.write_bytes(found.to_json())
    assert release_audit.recorded(path, "c") == found
    assert json.loads(path.read_text())["status"] == "vulnerable"
    assert release_audit.recorded(path, "another content") is None
    for text in ("", "{}", '{"status": "clean", "findings": [{}]}', "[]"):
        path.write_text(text)
        assert release_audit.recorded(path, "c") is None


def result(status: str) -> Audit:
    return Audit(status, "c", "2026-01-01T00:00:00+00:00", 3, reason="no route" if status == "unreachable" else "")


@pytest.mark.parametrize(
    ("before", "mode", "due", "asked"),
    [
        (None, "off", True, False),
        (None, "report", True, True),
        (None, "report", False, False),
        ("vulnerable", "report", False, False),
        ("clean", "report", True, True),
        ("clean", "require", False, False),
        ("vulnerable", "require", False, True),
        ("unreachable", "require", False, True),
        (None, "require", False, True),
    ],
)
def test_when_a_database_is_asked(tmp_path: Path, before: str | None, mode: str, due: bool, asked: bool) -> None:
    path = tmp_path / "x.audit.json"
    if before:
        path.write_bytes(result(before).to_json())
    calls = []

    def audit_it() -> Audit:
        calls.append(1)
        return result("clean")

    found = release_audit.gate(path, "c", mode, audit_it, due=due)
    assert bool(calls) is asked
    assert (found.status if found else None) == (None if mode == "off" else "clean" if asked else before)
    assert path.exists() is (asked or before is not None)


@pytest.mark.parametrize("status", ["vulnerable", "unreachable"])
def test_a_gate_that_requires_refuses_what_is_not_clean_and_keeps_the_result(tmp_path: Path, status: str) -> None:
    path = tmp_path / "x.audit.json"
    with pytest.raises(ReleaseError, match=r"app_release_audit is require.*wanted: clean.*app_release_audit_ignore"):
        release_audit.gate(path, "c", "require", lambda: result(status), due=True)
    assert release_audit.recorded(path, "c") == result(status)
    assert release_audit.gate(path, "c", "report", lambda: result(status), due=True) == result(status)


def test_an_answer_that_does_not_come_takes_nothing_away(tmp_path: Path) -> None:
    path = tmp_path / "x.audit.json"
    path.write_bytes(result("clean").to_json())
    found = release_audit.gate(path, "c", "report", lambda: result("unreachable"), due=True)
    assert found is not None
    assert found.status == "unreachable"
    assert found.reason == "no route; clean on 2026-01-01T00:00:00+00:00"
    assert release_audit.recorded(path, "c") == result("clean")
    with pytest.raises(ReleaseError, match="not audited"):
        release_audit.gate(path, "c", "require", lambda: result("unreachable"), due=True)


def test_a_missing_pip_audit_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ReleaseError, match=r"app_release_audit: the control node has no pip-audit; .*or set .*off"):
        release_audit.pip_audit(PINS, tmp_path)


def fake_pip_audit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str) -> release_audit.Ask:
    """Stand in for pip-audit: a module of that name, run in the way the real one is."""
    (tmp_path / "pip_audit.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return release_audit.pip_audit(PINS, tmp_path / "cache")


def test_it_is_given_every_package_once_and_one_version_in_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = """
import json, sys
text = open(sys.argv[sys.argv.index("--requirement") + 1]).read()
print(json.dumps({"dependencies": [{"text": text, "arguments": sys.argv[1:]}]}))
sys.exit(1)
"""
    answer = fake_pip_audit(monkeypatch, tmp_path, program)("osv", 60)["dependencies"]
    assert [run["text"] for run in answer] == ["flask==3.0.0\njinja2==3.1.2\n", "jinja2==3.1.6\n"]
    assert {"--vulnerability-service", "osv", "--no-deps", "--disable-pip"} <= set(answer[0]["arguments"])


def test_a_failure_is_told_in_its_last_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask = fake_pip_audit(monkeypatch, tmp_path, "import sys; sys.exit('Traceback …\\nno such host')")
    with pytest.raises(UnansweredError, match=r"^no such host$"):
        ask("pypi", 60)


def test_no_connection_is_told_in_two_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    last = "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x', port=443): Max retries …"
    ask = fake_pip_audit(monkeypatch, tmp_path, f"import sys; sys.exit({last!r})")
    with pytest.raises(UnansweredError, match=r"^no connection \(ConnectionError\)$"):
        ask("pypi", 60)


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask = fake_pip_audit(monkeypatch, tmp_path, "import time; time.sleep(600)")
    before = time.monotonic()
    found = release_audit.audit(PINS, "c", [], ask, limit=1)
    assert time.monotonic() - before < 30
    assert found.status == "unreachable"
    assert found.reason == "pypi: no answer in 0 s; osv: no answer in 0 s"


def test_the_real_one_reads_what_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network: every error but that of a connection is one of ours."""
    pytest.importorskip("pip_audit")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    ask = release_audit.pip_audit(PINS, tmp_path)
    for database in release_audit.DATABASES:
        with pytest.raises(UnansweredError, match=r"no connection \(ProxyError\)"):
            ask(database, 60)


def test_a_finding_without_a_fix_says_so() -> None:
    finding = Finding("x", "1", "CVE-1", [], [], ignored=False)
    assert str(finding) == "x 1 CVE-1 (no fix)"
