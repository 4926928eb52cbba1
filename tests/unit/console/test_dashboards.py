"""The boards as code: that the seed's panels are there, and that what Grafana gets has the shape that it reads."""

from __future__ import annotations

import json
import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

import pytest
from conftest import ROOT

from ansible_collections.pst.platform.plugins.module_utils import dashboards

FILES = sorted((ROOT / "roles/console/files/grafana").glob("*.json"))
# The seed's five panels, literally; with them what was adapted, as docs/dashboards.md has it.
SEED = {
    "Trading System Health": ['up{job="pysystemtrade"}'],
    "Order Processing Rate": ["rate(pysystemtrade_orders_processed_total[5m])"],
    "Position P&L": ["pysystemtrade_position_pnl_total", "pysystemtrade_position_pnl_unrealized"],
    "Risk Metrics": ["pysystemtrade_portfolio_var", "pysystemtrade_position_concentration"],
    "Database Performance": ["rate(mongodb_op_counters_total[5m])", "redis_commands_processed_total"],
}
ADAPTED = {
    'up{job="pysystemtrade"}': 'max by (host) (up{job="pysystemtrade"})',
    "redis_commands_processed_total": "rate(redis_commands_processed_total[5m])",
}

each_board = pytest.mark.parametrize("board", dashboards.BOARDS, ids=lambda board: board.uid)


def test_the_files_are_current():
    loader = SourceFileLoader("dashboards_of_ci", str(ROOT / ".ci/dashboards"))
    module = module_from_spec(spec_from_loader("dashboards_of_ci", loader))
    loader.exec_module(module)
    assert list(module.outdated(ROOT, write=False)) == [], "run `make docs`"


def test_the_seeds_board():
    board = dashboards.TRADING
    assert board.title == "pysystemtrade Trading Dashboard"
    found = {panel.title: [query.expr for query in panel.queries] for panel in board.panels}
    assert found == {title: [ADAPTED.get(one, one) for one in queries] for title, queries in SEED.items()}
    assert list(found) == list(SEED)


def test_what_was_adapted_is_told():
    text = (ROOT / "docs/dashboards.md").read_text()
    for seed, ours in ADAPTED.items():
        assert f"`{seed}`" in text.replace("\\|", "|")
        assert f"`{ours}`" in text.replace("\\|", "|")


def test_every_tier_has_a_board():
    uids = [board.uid for board in dashboards.BOARDS]
    assert len(set(uids)) == len(uids)
    assert {
        f"pst-{tier}" for tier in ("load-balancers", "app-nodes", "mongodb", "redis", "ib-gateways", "monitoring")
    } < set(uids)


@each_board
def test_every_expression_is_balanced_and_names_what_its_legend_uses(board):
    for panel in board.panels:
        assert panel.queries, panel.title
        for query in panel.queries:
            for opening, closing in ("()", "{}", "[]"):
                assert query.expr.count(opening) == query.expr.count(closing), query.expr
            kept = re.search(r"\b(?:by|without) \(([^)]*)\)", query.expr)
            labels = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
            if kept and " by " in f" {query.expr}":
                assert labels <= {label.strip() for label in kept[1].split(",")}, (panel.title, query)


def load(path: Any) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_board_has_the_shape_that_grafana_reads(path):
    """What its loader and its provisioning refuse, or lose without a word."""
    board = load(path)
    assert path.stem == board["uid"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", board["uid"])
    assert board["id"] is None, "an id belongs to one installation"
    assert isinstance(board["schemaVersion"], int)
    assert isinstance(board["title"], str)
    assert board["title"]
    assert re.fullmatch(r"\d+[smh]", board["refresh"])
    assert set(board["time"]) == {"from", "to"}
    (source,) = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["type"] in ("stat", "timeseries")
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, f"{panel['title']} lies on another panel"
        cells |= own
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
        assert not steps or steps[0]["value"] is None, "the first step begins at minus infinity"


def test_there_is_a_file_for_each_board():
    assert {path.stem for path in FILES} == {board.uid for board in dashboards.BOARDS}
