"""Every alert is tested, has a severity, a runbook that exists, and a row in docs/alerts.md."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from conftest import ROOT

ROLE = ROOT / "roles/monitoring"
TESTS = ROOT / "molecule/monitoring/tests/rules"
# Name, threshold where it has one, and `for`, as the deployment architecture has them.
SEED = {
    "TradingSystemDown": ("== 0", "60s", "critical"),
    "HighOrderLatency": ("[300s])) > 1", "120s", "warning"),
    "PositionReconciliationError": ("[300s]) > 0", None, "critical"),
    "MongoDBDown": ("mongodb_up == 0", "60s", "critical"),
    "RedisDown": ("redis_up == 0", "60s", "critical"),
    "HighMemoryUsage": ("> 0.8", "300s", "warning"),
    "HighCPUUsage": ("[300s]) > 0.8", "300s", "warning"),
}


def rendered(path: Path, **variables: Any) -> Any:
    loader = jinja2.FileSystemLoader(path.parent)
    environment = jinja2.Environment(
        variable_start_string="[[",
        variable_end_string="]]",
        trim_blocks=True,
        loader=loader,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    values = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    given = {
        "_monitoring_thresholds": values["_monitoring_default_thresholds"],
        "ansible_managed": "",
        "monitoring_alert_time_scale": 1.0,
        "monitoring_runbooks": "docs/runbooks",
        "monitoring_scrape_interval": 15,
        "monitoring_units_interval": 15,
        "site_name": "lab",
        "site_vip": "10.0.0.10",
    }
    return yaml.safe_load(environment.get_template(path.name).render(given | variables))


@cache
def alerts() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((ROLE / "templates/rules").glob("*.yml.j2")):
        for group in rendered(path)["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    assert rule["alert"] not in found, f"{rule['alert']} is there twice"
                    found[rule["alert"]] = rule | {"file": path.name.removesuffix(".j2")}
    return found


each_alert = pytest.mark.parametrize("name", sorted(alerts()))


@pytest.mark.parametrize("name", SEED)
def test_the_seeds_alerts_are_there_as_it_has_them(name):
    threshold, wait, severity = SEED[name]
    rule = alerts()[name]
    assert threshold in rule["expr"]
    assert rule.get("for") == wait
    assert rule["labels"]["severity"] == severity


@each_alert
def test_an_alert_says_how_bad_it_is_and_what_to_do(name):
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("critical", "warning", "none")
    assert (rule["labels"]["severity"] == "none") == (name == "Watchdog")
    assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
    page = ROOT / rule["annotations"]["runbook_url"]
    assert page.is_file(), page
    assert page.read_text().startswith(f"# {name}\n")
    assert page.name == f"alert-{kebab(name)}.md"


def kebab(name: str) -> str:
    words = re.sub(r"MongoDB", "Mongodb", name)
    words = re.sub(r"CPU", "Cpu", words)
    return re.sub(r"(?<!^)([A-Z])", r"-\1", words).lower()


@each_alert
def test_an_alert_is_tested_firing_and_not_firing(name):
    rule = alerts()[name]
    documents = [yaml.safe_load(path.read_text()) for path in sorted(TESTS.glob("*.yml"))]
    tests = [test for one in documents if rule["file"] in one["rule_files"] for test in one["tests"]]
    checks = [check for test in tests for check in test["alert_rule_test"] if check["alertname"] == name]
    assert any(check["exp_alerts"] for check in checks), "no test in which it fires"
    if name != "Watchdog":  # it fires always
        assert any(not check["exp_alerts"] for check in checks), "no test in which it does not"


@each_alert
def test_an_alert_has_a_row_in_the_documentation(name):
    assert f"| `{name}` |" in (ROOT / "docs/alerts.md").read_text()


@each_alert
def test_an_alert_has_a_cause_in_the_drill_that_waits_as_long_or_a_reason_why_not(name):
    causes = (ROOT / "tests/integration/alert_causes.py").read_text()
    waits = re.findall(rf'Alert\("{name}", [^,]+, ([^,)]+)', causes)
    reasons = re.findall(rf'^    "{name}": "', causes, re.MULTILINE)
    assert len(waits) + len(reasons) == (name != "Watchdog")
    if waits and waits[0].isdigit():
        assert alerts()[name].get("for", "0s") == f"{waits[0]}s"


def test_a_runbook_of_an_alert_that_is_gone_is_gone_as_well():
    pages = {path.stem.removeprefix("alert-") for path in (ROOT / "docs/runbooks").glob("alert-*.md")}
    assert pages == {kebab(name) for name in alerts()}


def test_waiting_times_can_be_compressed_and_thresholds_changed():
    thresholds = yaml.safe_load((ROLE / "vars/main.yml").read_text())["_monitoring_default_thresholds"]
    fast = rendered(
        ROLE / "templates/rules/seed.yml.j2",
        monitoring_alert_time_scale=0.1,
        _monitoring_thresholds=thresholds | {"memory_ratio": 0.5},
    )
    rules = {rule["alert"]: rule for rule in fast["groups"][0]["rules"]}
    assert rules["HighMemoryUsage"]["for"] == "30s"
    assert rules["HighMemoryUsage"]["expr"].endswith("> 0.5")
    # What is looked back on is compressed too, and holds four looks at the figure.
    assert "[60s]" in rules["HighOrderLatency"]["expr"]


def test_every_threshold_is_documented_and_used():
    values = yaml.safe_load((ROLE / "vars/main.yml").read_text())["_monitoring_default_thresholds"]
    spec = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert set(spec["monitoring_thresholds"]["options"]) == set(values)
    text = "".join(path.read_text() for path in (ROLE / "templates/rules").glob("*.j2"))
    assert {name for name in values if f"_monitoring_thresholds.{name}" not in text} == set()
