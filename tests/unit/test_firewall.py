"""From the table of flows to the rules of a host."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.pst.platform.plugins.module_utils import firewall

SITE = firewall.Site(
    groups={
        "all": ["app1", "db1", "db2", "db-dr", "old"],
        "app": ["app1"],
        "db": ["db1", "db2", "db-dr"],
        "old": ["old"],
    },
    addresses={"app1": "192.0.2.1", "db1": "192.0.2.2", "db2": "192.0.2.3", "db-dr": "198.51.100.1", "old": None},
    hosts=["app1", "db1", "db2"],
    control=["203.0.113.0/24"],
)


def flow(**changes: Any) -> dict[str, Any]:
    return {"name": "db", "from": ["app"], "to": ["db"], "ports": [27017], **changes}


def statements(host: str, *flows: dict[str, Any]) -> list[str]:
    return [statement for rule in firewall.rules(flows, host, SITE) for statement in rule.statements]


def test_a_flow_is_accepted_where_it_ends_and_nowhere_else() -> None:
    assert statements("db1", flow()) == ["ip saddr { 192.0.2.1 } tcp dport { 27017 }"]
    assert statements("app1", flow()) == []


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"from": ["db"]}, "ip saddr { 192.0.2.2, 192.0.2.3 } tcp dport { 27017 }"),
        ({"from": ["db"], "sites": "all"}, "ip saddr { 192.0.2.2, 192.0.2.3, 198.51.100.1 } tcp dport { 27017 }"),
        ({"from": ["control", "app"]}, "ip saddr { 192.0.2.1, 203.0.113.0/24 } tcp dport { 27017 }"),
        ({"from": ["any", "app"], "ports": [80, 443]}, "tcp dport { 80, 443 }"),
        ({"from": ["site"], "to": ["site"]}, "ip saddr { 192.0.2.1, 192.0.2.2, 192.0.2.3 } tcp dport { 27017 }"),
        ({"from": ["2001:db8::/32"], "proto": "udp"}, "ip6 saddr { 2001:db8::/32 } udp dport { 27017 }"),
        ({"from": ["192.0.2.0/24", "app"]}, "ip saddr { 192.0.2.0/24 } tcp dport { 27017 }"),
    ],
)
def test_sources(changes: dict[str, Any], wanted: str) -> None:
    assert statements("db1", flow(**changes)) == [wanted]


def test_both_address_families_get_a_line() -> None:
    assert statements("db1", flow(**{"from": ["app", "2001:db8::1"]})) == [
        "ip saddr { 192.0.2.1 } tcp dport { 27017 }",
        "ip6 saddr { 2001:db8::1 } tcp dport { 27017 }",
    ]


def test_vrrp_has_no_ports() -> None:
    vrrp = {"name": "vrrp", "from": ["db"], "to": ["db"], "proto": "vrrp"}
    assert statements("db1", vrrp) == ["ip saddr { 192.0.2.2, 192.0.2.3 } meta l4proto 112"]


def test_a_flow_from_nobody_is_left_out() -> None:
    assert statements("db1", flow(**{"from": ["no_such_tier"]})) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "Web server"}, "name, wanted"),
        ({"from": "app"}, "from is 'app'"),
        ({"to": []}, r"to is \[\]"),
        ({"ports": [0]}, r"ports is \[0\]"),
        ({"ports": None}, "ports is None"),
        ({"proto": "sctp"}, "proto is 'sctp'"),
        ({"proto": "vrrp"}, "vrrp has no ports"),
        ({"sites": "some"}, "sites is 'some'"),
        ({"port": 1}, "port is unknown"),
        ({"from": ["old"], "sites": "all"}, "old: site_address is None"),
    ],
)
def test_problems_name_the_key_and_the_value(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(firewall.FlowError, match=problem):
        statements("db1", flow(**changes))


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(firewall.FlowError) as caught:
        statements("db1", flow(ports=[0]), flow(proto="sctp"))
    for problem in ("ports is [0]", "proto is 'sctp'", "'db': the name is used twice"):
        assert problem in str(caught.value)


@given(st.lists(st.ip_addresses(v=4).map(str) | st.just("192.0.2.0/24"), min_size=1, max_size=20))
def test_sources_never_overlap_and_none_is_lost(sources: list[str]) -> None:
    """Overlapping intervals in a set are an error for nft."""
    (rule,) = firewall.rules([flow(**{"from": sources})], "db1", SITE)
    networks = [ipaddress.ip_network(source) for source in rule.ipv4]
    assert not any(a.overlaps(b) for a in networks for b in networks if a is not b)
    for source in sources:
        assert any(ipaddress.ip_network(source).subnet_of(network) for network in networks)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("session", "wanted"),
    [
        ("203.0.113.7 50000 192.0.2.1 22", ["ip saddr { 203.0.113.0/24 } tcp dport { 22 }"]),
        ("198.51.100.9 50000 192.0.2.1 2222", ["ip saddr { 198.51.100.9, 203.0.113.0/24 } tcp dport { 22, 2222 }"]),
        (
            "fe80::1%eth0 50000 fe80::2%eth0 22",
            ["ip saddr { 203.0.113.0/24 } tcp dport { 22 }", "ip6 saddr { fe80::1 } tcp dport { 22 }"],
        ),
        ("", ["ip saddr { 203.0.113.0/24 } tcp dport { 22 }"]),
    ],
)
def test_whoever_runs_ansible_may_log_in(session: str, wanted: list[str]) -> None:
    assert firewall.ssh_rule([22], SITE.control, session).statements == wanted


def test_nobody_may_log_in_is_refused() -> None:
    with pytest.raises(firewall.FlowError, match="site_control_addresses: empty"):
        firewall.ssh_rule([22], [], "")


def test_unknown_words_of_own_flows_are_found() -> None:
    flows = [flow(**{"from": ["app", "ap", "any", "192.0.2.0/24"]}), flow(to=["site", "database"])]
    assert firewall.unknown_groups(flows, SITE.groups) == ["ap", "database"]


def test_the_platforms_own_table_is_valid_and_covers_every_tier() -> None:
    tiers = ["load_balancers", "app_nodes", "mongodb", "redis", "ib_gateways", "monitoring", "dns"]
    site = firewall.Site(
        groups={tier: [tier] for tier in tiers},
        addresses={tier: f"192.0.2.{number}" for number, tier in enumerate(tiers, 1)},
        hosts=tiers,
        control=["203.0.113.1"],
    )
    table = Path("roles/firewall/defaults/main.yml").read_text()
    table = table.replace("\"{{ dns_clients | default(['any']) }}\"", "[any]")  # what it is by default
    flows = yaml.safe_load(table)["firewall_flows"]
    accepted = {tier: {rule.name for rule in firewall.rules(flows, tier, site)} for tier in tiers}
    assert accepted == {
        "load_balancers": {"web", "vrrp", "haproxy_peers", "haproxy_status", "node_exporter"},
        "app_nodes": {"app", "node_exporter"},
        "mongodb": {"mongodb", "mongodb_drill", "node_exporter"},
        "redis": {"redis", "node_exporter"},
        "ib_gateways": {"ib_gateway", "node_exporter"},
        "monitoring": {"prometheus", "node_exporter", "logs", "console", "alertmanager", "alertmanager_peers"},
        "dns": {"dns_udp", "dns_tcp", "dns_peers_udp", "dns_peers_tcp", "node_exporter"},
    }
