"""What a site knows of the other one, from that one's hosts.yml."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from conftest import ROOT

from ansible_collections.pst.platform.plugins.module_utils import firewall, site_peer

INVENTORY: dict[str, Any] = {
    "site_two": {
        "hosts": {"db": {"ansible_host": "192.0.2.1"}, "app": {"ansible_host": "x", "site_address": "192.0.2.2"}}
    },
    "mongodb": {"hosts": {"db": None}},
    "app_nodes": {"hosts": {"app": {}}},
}


def test_hosts_have_the_address_that_others_use_and_their_tiers() -> None:
    hosts = site_peer.peer_hosts(INVENTORY)
    assert hosts == {
        "db": {"address": "192.0.2.1", "groups": ["mongodb"]},
        "app": {"address": "192.0.2.2", "groups": ["app_nodes"]},
    }
    assert site_peer.peer_members(hosts, "mongodb", "two.test", 27017) == ["db.two.test:27017"]


@pytest.mark.parametrize("lab", ["lab", "lab_dr"])
def test_the_labs_know_each_other(lab: str) -> None:
    hosts = site_peer.peer_hosts(yaml.safe_load((ROOT / f"inventories/{lab}/hosts.yml").read_text()))
    assert all(host["groups"] for host in hosts.values())


@pytest.mark.parametrize(
    ("inventory", "message"),
    [
        ([], "wanted a mapping"),
        ({"mongodb": {"hosts": {}}}, "no site, wanted one group"),
        ({"site_a": {}, "site_b": {}}, "site_a, site_b, wanted one group"),
        ({"site_a": {"hosts": {"db": {"ansible_host": "{{ address }}"}}}}, "wanted an address in hosts.yml"),
    ],
)
def test_what_is_no_inventory_of_a_site_is_refused(inventory: Any, message: str) -> None:
    with pytest.raises(site_peer.PeerError, match=message):
        site_peer.peer_hosts(inventory)


def test_the_firewall_comes_to_the_same_rules_with_one_inventory_and_with_both() -> None:
    flows = [{"name": "db", "from": ["mongodb"], "to": ["mongodb"], "ports": [27017], "sites": "all"}]
    peers = site_peer.peer_hosts(INVENTORY)
    own = {"db1": "198.51.100.1"}
    alone = firewall.Site.of({"mongodb": ["db1"]}, own, ["db1"], [], peers)
    both = firewall.Site.of({"mongodb": ["db1", "db"]}, own | {"db": "192.0.2.1"}, ["db1"], [], peers)
    rules = [firewall.rules(flows, "db1", found) for found in (alone, both)]
    assert rules[0] == rules[1]
    assert rules[0][0].ipv4 == ("192.0.2.1", "198.51.100.1")
