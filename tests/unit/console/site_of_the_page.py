"""A site as Prometheus would tell of it: the lab, well, with what a test changes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pst_console

from ansible_collections.pst.platform.plugins.module_utils import console

NOW = 1_800_000_000.0
ADDRESSES = {
    "lb1": ("load_balancers", "a", 11),
    "lb2": ("load_balancers", "b", 12),
    "app1": ("app_nodes", "a", 21),
    "app2": ("app_nodes", "b", 22),
    "app3": ("app_nodes", "c", 23),
    "mongo1": ("mongodb", "a", 31),
    "mongo2": ("mongodb", "b", 32),
    "mongo3": ("mongodb", "c", 33),
    "redis1": ("redis", "a", 41),
    "redis2": ("redis", "b", 42),
    "redis3": ("redis", "c", 43),
    "ibgw1": ("ib_gateways", "a", 51),
    "ibgw2": ("ib_gateways", "b", 52),
    "mon1": ("monitoring", "c", 61),
}
SHARED = {"mon1": ["backup", "dns"]}  # what a host is besides
HOSTVARS = {
    name: {
        "group_names": [tier, *SHARED.get(name, []), "site_lab"],
        "site_zone": zone,
        "site_address": f"10.78.0.{number}",
    }
    for name, (tier, zone, number) in ADDRESSES.items()
}
JOBS = {"load_balancers": ("haproxy", 8404), "app_nodes": ("app", 8080), "monitoring": ("prometheus", 9090)}
STOPPED = {("app1", "pst-app@green.service"), ("app2", "pst-app@green.service"), ("app3", "pst-app@green.service")}
STOPPED |= {("ibgw2", "ib-gateway.service"), ("ibgw2", "pst-gate.service")}
PLACEMENTS = {"node_1": "app1", "node_2": "app2", "node_3": "app3"}


def document(**changes: Any) -> dict[str, Any]:
    """The settings file, as the role writes it."""
    of_site = {
        "site": "lab",
        "prometheus": "https://10.78.0.61:9090",
        "vip": "10.78.0.10",
        "names": ["trading.lab.pst.test", "api.trading.lab.pst.test"],
        "ca": "/etc/pst/pki/ca.crt",
        "certificate": "/etc/pst/pki/console/console.pem",
        "output": "/run/pst-console",
        "runs": "/var/lib/pst-console/runs",
        "period": 2,
        "chart_period": 15,
        "chart_hours": 1,
        "scrape_interval": 5,
        "links": {},
    }
    return console.settings(of_site | changes, console.hosts(HOSTVARS, HOSTVARS), [])


def settings(folder: Path, **changes: Any) -> pst_console.Settings:

    path = folder / "site.json"
    path.write_text(json.dumps(document(**changes)))
    return pst_console.Settings.read(path)


def sample(value: float, metric: str = "", /, **labels: str) -> pst_console.Sample:
    return pst_console.Sample(({"__name__": metric} if metric else {}) | labels, value)


def targets() -> Iterator[tuple[str, str, str, str]]:
    for host, (tier, _, number) in ADDRESSES.items():
        yield "node", host, tier, f"10.78.0.{number}:9100"
        if tier in JOBS:
            job, port = JOBS[tier]
            yield job, host, tier, f"10.78.0.{number}:{port}"


def agents(down: tuple[str, ...]) -> Iterator[pst_console.Sample]:
    """What the agents of the application nodes tell."""
    for host, (tier, _, number) in ADDRESSES.items():
        if tier != "app_nodes" or host in down or f"{host}:8080" in down:
            continue
        labels = {"host": host, "instance": f"10.78.0.{number}:8080", "job": "app"}
        yield sample(1, "pst_build_info", **labels, version="1.4.2", revision="8c1f2ab", colour="blue")
        yield sample(1, "pst_ready", **labels)
        yield sample(0, "pst_draining", **labels)
        yield sample(1, "pst_state_up", **labels)
        for epoch, (placement, holder) in enumerate(PLACEMENTS.items(), 7):
            yield sample(float(holder == host), "pst_lease_holder", **labels, placement=placement)
            yield sample(epoch, "pst_lease_epoch", **labels, placement=placement)
        for process in ("run_stack_handler", "run_strategy_order_generator", "run_capital_update", "run_reports"):
            yield sample(float(process != "run_reports"), "pst_process_running", **labels, process=process)
        for stack, count in (("instrument_order_stack", 3), ("contract_order_stack", 2), ("broker_order_stack", 1)):
            yield sample(count, "pst_orders_active", **labels, stack=stack)


def unit_states(down: tuple[str, ...], states: Mapping[tuple[str, str], str]) -> Iterator[pst_console.Sample]:
    found = document()
    for host in (host for host in found["hosts"] if host["name"] not in down):
        for unit in (unit for unit in found["units"] if unit["tier"] in host["groups"]):
            key = (host["name"], unit["unit"])
            state = states.get(key, "inactive" if key in STOPPED else "active")
            yield sample(1, host=host["name"], name=unit["unit"], state=state)


def seen(down: tuple[str, ...] = (), units: Mapping[tuple[str, str], str] | None = None) -> pst_console.Seen:
    """All is well, but for the instances that are `down` (a host, or host:port) and the states of `units`."""
    up, scraped = [], []
    for job, host, tier, instance in targets():
        port = instance.partition(":")[2]
        value = 0.0 if host in down or f"{host}:{port}" in down else 1.0
        up.append(sample(value, "up", job=job, host=host, instance=instance, tier=tier))
        scraped.append(sample(2.5, job=job, host=host, instance=instance))
    metrics = [*agents(down)]
    metrics += [sample(1, "haproxy_process_build_info", host=host, version="2.6.12") for host in ("lb1", "lb2")]
    metrics += [sample(1, "node_exporter_build_info", host=host, version="1.5.0") for host in ADDRESSES]
    servers = [
        sample(1, proxy=f"be_{colour}", server=server, host=balancer, state="UP" if colour == "blue" else "DOWN")
        for colour in ("blue", "green")
        for server in ("app1", "app2", "app3")
        for balancer in ("lb1", "lb2")
    ]
    load = {
        "cpu": [sample(0.05 + 0.4 * (place % 3) / 3, host=host) for place, host in enumerate(ADDRESSES)],
        "memory": [sample(0.3 + 0.05 * place, host=host) for place, host in enumerate(ADDRESSES)],
        "disk": [sample(0.42, host=host) for host in ADDRESSES],
        "clock": [sample(0.0004, host=host) for host in ADDRESSES],
    }
    return pst_console.Seen(
        up=up,
        scraped=scraped,
        units=[*unit_states(down, units or {})],
        metrics=metrics,
        servers=servers,
        requests=[sample(12.4, proxy="be_blue"), sample(0, proxy="be_green")],
        front=[sample(12.4, host="lb1"), sample(0, host="lb2")],
        load=load,
        client={"answers": True, "problem": "", "ms": 8.3, "colour": "blue", "release": "1.4.2", "host": "app2"},
    )


def chart(panel: Mapping[str, Any], end: float = NOW) -> dict[str, Any]:
    """Series for a panel, so that a chart has something to show."""

    def wave(phase: float, height: float) -> list[float | None]:
        return [round(height * (1.2 + math.sin(place / 9 + phase)), 3) for place in range(121)]

    names = ["app1", "app2", "app3"]
    series = [
        {"name": f"{query['legend'].split(' {{')[0]} {name}", "points": wave(place + number, 4 + number)}
        for number, query in enumerate(panel["queries"])
        for place, name in enumerate(names)
    ]
    if panel["kind"] == "stat":
        series = [{"name": name, "points": [1.0] * 121} for name in names]
        series[1]["points"][60:66] = [0.0] * 6
    return {
        "title": panel["title"],
        "unit": panel["unit"],
        "kind": panel["kind"],
        "problem": "",
        "wants": [query["expr"] for query in panel["queries"]],
        "series": series,
    }
