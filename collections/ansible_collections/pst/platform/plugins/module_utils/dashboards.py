# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The boards: the seed's trading dashboard and one for each tier. Grafana's JSON and the page's charts come from here.

`.ci/dashboards` writes the JSON files from it. What differs from the seed is in docs/dashboards.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]

# Grafana's schema of dashboards that every version since 8 reads and migrates.
SCHEMA_VERSION = 36
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS, WIDTH, HEIGHT = 24, 12, 8


@dataclass(frozen=True)
class Query:
    """A PromQL expression; the legend may name labels as `{{host}}`."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One chart. `kind` is Grafana's: `stat` for what is either well or not, `timeseries` for what has a course.

    `unit` is Grafana's id of a unit. `description` says what to look for.
    """

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    description: str = ""


@dataclass(frozen=True)
class Board:
    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    tags: tuple[str, ...] = ("pst",)


def panel(
    title: str, *queries: tuple[str, str], unit: str = "short", kind: str = "timeseries", about: str = ""
) -> Panel:
    return Panel(title, tuple(Query(*query) for query in queries), unit, kind, about)


def targets_of(tier: str) -> Panel:
    return panel(
        "Targets up", (f'up{{tier="{tier}"}}', "{{host}} {{job}}"), kind="stat", about="0: Prometheus cannot scrape it."
    )


def hosts_of(tier: str) -> tuple[Panel, ...]:
    """How busy the hosts of a tier are."""
    of, host = f'tier="{tier}"', "{{host}}"
    root = f'mountpoint="/",{of}'
    network = f'device!="lo",{of}'
    return (
        panel(
            "Processor",
            (f'1 - avg by (host) (rate(node_cpu_seconds_total{{mode="idle",{of}}}[5m]))', host),
            unit="percentunit",
        ),
        panel(
            "Memory used",
            (f"1 - node_memory_MemAvailable_bytes{{{of}}} / node_memory_MemTotal_bytes{{{of}}}", host),
            unit="percentunit",
        ),
        panel(
            "Disk used",
            (f"1 - node_filesystem_avail_bytes{{{root}}} / node_filesystem_size_bytes{{{root}}}", host),
            unit="percentunit",
        ),
        panel(
            "Network",
            (f"sum by (host) (rate(node_network_receive_bytes_total{{{network}}}[5m]))", f"{host} in"),
            (f"sum by (host) (rate(node_network_transmit_bytes_total{{{network}}}[5m]))", f"{host} out"),
            unit="Bps",
        ),
    )


def tier(name: str, title: str, description: str, *panels: Panel) -> Board:
    return Board(
        f"pst-{name.replace('_', '-')}", f"pst {title}", description, (targets_of(name), *panels, *hosts_of(name))
    )


# The seed's five panels: its titles and expressions. docs/dashboards.md has the two that were adapted.
TRADING = Board(
    "pst-trading",
    "pysystemtrade Trading Dashboard",
    "Comprehensive monitoring for systematic trading operations",
    (
        panel(
            "Trading System Health", ('max by (host) (up{job="pysystemtrade"})', "System Status {{host}}"), kind="stat"
        ),
        panel(
            "Order Processing Rate",
            ("rate(pysystemtrade_orders_processed_total[5m])", "Orders/sec {{host}}"),
            unit="ops",
        ),
        panel(
            "Position P&L",
            ("pysystemtrade_position_pnl_total", "Total P&L {{instrument}}"),
            ("pysystemtrade_position_pnl_unrealized", "Unrealized P&L {{instrument}}"),
            about="In the base currency; it moves when prices are collected.",
        ),
        panel(
            "Risk Metrics",
            ("pysystemtrade_portfolio_var", "Portfolio VaR"),
            ("pysystemtrade_position_concentration", "Concentration Risk {{instrument}}"),
            about="VaR: a loss of one day in a hundred, in the base currency. Concentration: shares, together 1.",
        ),
        panel(
            "Database Performance",
            ("rate(mongodb_op_counters_total[5m])", "MongoDB Ops/sec {{host}} {{type}}"),
            ("rate(redis_commands_processed_total[5m])", "Redis Commands/sec {{host}}"),
            unit="ops",
        ),
    ),
)

BOARDS: tuple[Board, ...] = (
    TRADING,
    tier(
        "load_balancers",
        "balancers",
        "What clients send, what they get, and which slot answers.",
        panel(
            "Requests by slot",
            ('sum by (proxy) (rate(haproxy_backend_http_requests_total{proxy=~"be_.+"}[1m]))', "{{proxy}}"),
            unit="reqps",
            about="Two lines above zero: a canary, or a switch.",
        ),
        panel(
            "Answers by class",
            ('sum by (code) (rate(haproxy_frontend_http_responses_total{proxy="public"}[1m]))', "{{code}}"),
            unit="reqps",
        ),
        panel(
            "Time to answer",
            ('max by (proxy) (haproxy_backend_response_time_average_seconds{proxy=~"be_.+"})', "{{proxy}}"),
            unit="s",
            about="Mean of the last 1024 requests.",
        ),
        panel(
            "Errors towards the application",
            ("sum by (proxy) (rate(haproxy_backend_connection_errors_total[1m]))", "{{proxy}} connect"),
            ("sum by (proxy) (rate(haproxy_backend_response_errors_total[1m]))", "{{proxy}} answer"),
            ("sum by (proxy) (rate(haproxy_backend_retry_warnings_total[1m]))", "{{proxy}} retry"),
        ),
        panel(
            "Requests by balancer",
            ('rate(haproxy_frontend_http_requests_total{proxy="public"}[1m])', "{{host}}"),
            unit="reqps",
            about="The one that holds the virtual address has them all.",
        ),
        panel(
            "Connections",
            ('haproxy_frontend_current_sessions{proxy="public"}', "{{host}}"),
            ('haproxy_frontend_limit_sessions{proxy="public"}', "{{host}} at most"),
        ),
    ),
    tier(
        "app_nodes",
        "application and trading",
        "Who trades, which slots are ready, and how they answer.",
        panel(
            "Lease holder",
            ("pst_lease_holder", "{{placement}} {{host}}"),
            kind="stat",
            about="One 1 for each placement.",
        ),
        panel(
            "Lease epochs", ("max by (placement) (pst_lease_epoch)", "{{placement}}"), about="A step: the lease moved."
        ),
        panel("Slots ready", ("pst_ready", "{{host}} {{instance}}"), kind="stat"),
        panel("Active orders", ("max by (stack) (pst_orders_active)", "{{stack}}")),
        panel(
            "Requests",
            ("sum by (host) (rate(pst_http_requests_total[1m]))", "{{host}}"),
            unit="reqps",
        ),
        panel(
            "Time to answer, 95th percentile",
            ("histogram_quantile(0.95, sum by (le, host) (rate(pst_http_request_seconds_bucket[5m])))", "{{host}}"),
            unit="s",
        ),
        panel("Dependencies", ("pst_dependency_up", "{{host}} {{dependency}}"), kind="stat"),
    ),
    tier(
        "mongodb",
        "MongoDB",
        "The replica set: orders, process state, leases, journal.",
        panel("Members up", ("mongodb_up", "{{host}}"), kind="stat"),
        panel("Operations", ("rate(mongodb_op_counters_total[5m])", "{{host}} {{type}}"), unit="ops"),
        panel("Unit", ('node_systemd_unit_state{name="mongod.service",state="active"}', "{{host}}"), kind="stat"),
    ),
    tier(
        "redis",
        "Redis",
        "Cache, sessions, publish and subscribe.",
        panel("Members up", ("redis_up", "{{host}}"), kind="stat"),
        panel("Commands", ("rate(redis_commands_processed_total[5m])", "{{host}}"), unit="ops"),
        panel("Memory", ("redis_memory_used_bytes", "{{host}}"), unit="bytes"),
        panel("Unit", ('node_systemd_unit_state{name="redis-server.service",state="active"}', "{{host}}"), kind="stat"),
    ),
    tier(
        "ib_gateways",
        "IB Gateway",
        "The way to the broker: one is active, the other one stands by.",
        panel(
            "Gateway", ('node_systemd_unit_state{name="ib-gateway.service",state="active"}', "{{host}}"), kind="stat"
        ),
        panel("Gate", ('node_systemd_unit_state{name="pst-gate.service",state="active"}', "{{host}}"), kind="stat"),
    ),
    tier(
        "monitoring",
        "monitoring",
        "Whether what watches the others is well itself.",
        panel("Time of a scrape", ("max by (job) (scrape_duration_seconds)", "{{job}}"), unit="s"),
        panel("Series in memory", ("prometheus_tsdb_head_series", "{{host}}")),
        panel("Samples", ("rate(prometheus_tsdb_head_samples_appended_total[5m])", "{{host}}"), unit="short"),
        panel("Failed rules", ("increase(prometheus_rule_evaluation_failures_total[5m])", "{{rule_group}}")),
    ),
)

# What the page shows beside the seed's panels: what clients notice.
PAGE_PANELS: tuple[Panel, ...] = (
    *TRADING.panels,
    BOARDS[1].panels[1],
    BOARDS[1].panels[2],
    BOARDS[1].panels[3],
)


def page_panels() -> list[Document]:
    """The charts of the page, as its collector reads them."""
    return [
        {
            "title": panel.title,
            "kind": panel.kind,
            "unit": panel.unit,
            "queries": [{"expr": query.expr, "legend": query.legend} for query in panel.queries],
        }
        for panel in PAGE_PANELS
    ]


def grafana(board: Board) -> Document:
    """Return a board as Grafana's JSON, for its provisioning or its import."""
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": list(board.tags),
        "id": None,
        "editable": False,
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {"list": [datasource_variable()]},
        "links": links(board),
        "panels": [grafana_panel(panel, number) for number, panel in enumerate(board.panels)],
    }


def datasource_variable() -> Document:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}


def links(board: Board) -> list[Document]:
    """From each board to the others."""
    return [{"title": "pst", "type": "dashboards", "tags": list(board.tags), "asDropdown": True, "keepTime": True}]


def grafana_panel(panel: Panel, number: int) -> Document:
    per_row = COLUMNS // WIDTH
    place = {"x": number % per_row * WIDTH, "y": number // per_row * HEIGHT, "w": WIDTH, "h": HEIGHT}
    defaults: Document = {"unit": panel.unit}
    if panel.kind == "stat":
        steps = [{"color": "red", "value": None}, {"color": "green", "value": 1}]
        defaults |= {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": steps}}
    return {
        "id": number + 1,
        "title": panel.title,
        "description": panel.description,
        "type": panel.kind,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": targets(panel.queries),
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }


def targets(queries: Sequence[Query]) -> list[Mapping[str, Any]]:
    return [
        {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": query.expr, "legendFormat": query.legend}
        for number, query in enumerate(queries)
    ]
