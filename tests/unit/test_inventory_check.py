"""The rules of an inventory, each broken once: the message names the key, the value seen and the value wanted."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.pst.platform.plugins.action import validate_inventory
from ansible_collections.pst.platform.plugins.module_utils import inventory_check as rules

REPOSITORY = Path(__file__).parents[2]
SHARED = yaml.safe_load((REPOSITORY / "playbooks/site_variables.yml").read_text())["argument_specs"]
CONTRACT = rules.Contract(
    site=SHARED["site"]["options"],
    host=SHARED["host"]["options"],
    roles={
        ("mongodb", "main"): {
            "mongodb_port": {"type": "int", "default": 27017, "description": "TCP port of mongod. More."},
            "mongodb_votes": {"type": "int", "default": 1},
            "mongodb_root_password": {"type": "str", "required": True, "no_log": True, "description": "Password."},
        },
        ("load_balancer", "main"): {
            "load_balancer_priority": {"type": "int", "required": True},
            "load_balancer_virtual_router_id": {"type": "int"},
        },
    },
)
SITE = {
    "site_name": "test",
    "site_group": "site_test",
    "site_domain": "test.example.net",
    "site_network": "192.0.2.0/24",
    "site_vip": "192.0.2.10",
    "site_vip_prefix": 24,
    "site_time_zone": "Europe/London",
    "site_control_addresses": ["192.0.2.250"],
    "site_maintenance_windows": [{"days": ["Sat"], "start": "00:00", "end": "00:00"}],
    "site_state_dir": "/state",
    "site_cache_dir": "/cache",
    "site_secrets_backend": "vars",
}
TIERS = {"load_balancers": 2, "app_nodes": 3, "mongodb": 3, "redis": 3, "ib_gateways": 2, "monitoring": 1}
Inventory = dict[str, rules.Host]


def make_host(name: str, groups: set[str], values: dict[str, Any]) -> rules.Host:
    origins = dict.fromkeys(values, "main.yml:7")
    return rules.Host(name, frozenset(groups), written=values, values=values, origins=origins)


def make_site(group: str = "site_test", network: str = "192.0.2", **site: Any) -> Inventory:
    hosts: Inventory = {}
    prefix = "" if group == "site_test" else f"{group}-"
    counts = [(tier, number) for tier, count in TIERS.items() for number in range(count)]
    names = [f"{prefix}{tier}{number}" for tier, number in counts]
    for last, ((tier, number), name) in enumerate(zip(counts, names, strict=True), 11):
        own: dict[str, Any] = {"ansible_host": f"{network}.{last}", "site_address": f"{network}.{last}"}
        own["site_zone"] = "abc"[number]
        if tier == "load_balancers":
            own["load_balancer_priority"] = 254 - number
        if tier == "mongodb":
            own["mongodb_root_password"] = "secret"
        hosts[name] = make_host(
            name, {"all", tier, group}, {**SITE, "site_group": group, "site_hosts": names, **site, **own}
        )
    return hosts


def change(inventory: Inventory, tier: str, **values: Any) -> None:
    """Sets variables of a tier's first host, of all with a list, or removes them with None."""
    for name, host in inventory.items():
        if tier == "all" or name == tier:
            merged = {key: value for key, value in {**host.values, **values}.items() if value is not None}
            inventory[name] = make_host(name, set(host.groups), merged)


def regroup(
    inventory: Inventory, name: str, add: AbstractSet[str] = frozenset(), remove: AbstractSet[str] = frozenset()
) -> None:
    host = inventory[name]
    inventory[name] = replace(host, groups=(host.groups | add) - remove)


def validate(_name: str, option: rules.Option, value: Any) -> list[str]:
    """Stands in for Ansible's validator, which test_playbook_validate.py uses."""
    wrong = option.get("type") == "int" and not str(value).isdigit()
    return ["not an int"] if wrong else []


def problems_of(inventory: Inventory) -> list[str]:
    return [str(problem) for problem in rules.check(inventory.values(), CONTRACT, validate)]


def test_a_good_site_has_no_problem() -> None:
    assert problems_of(make_site()) == []


def test_two_good_sites_given_together_have_no_problem() -> None:
    other = make_site("site_other", "198.51.100", site_network="198.51.100.0/24", site_vip="198.51.100.10")
    assert problems_of(make_site() | other) == []


def test_two_sites_do_not_take_from_each_other() -> None:
    both = make_site(load_balancer_virtual_router_id=51) | make_site(
        "site_other", "192.0.2", load_balancer_virtual_router_id=51
    )
    told = {problem.partition(":")[0] for problem in problems_of(both)}
    assert {"site_vip [site_other, site_test]", "load_balancer_virtual_router_id [site_other, site_test]"} <= told


BROKEN: dict[str, tuple[Callable[[Inventory], object], str]] = {
    "no host in a tier": (
        lambda i: [i.pop(name) for name in list(i) if name.startswith("redis")] and relist(i),
        "groups.redis [site_test]: seen no host of the site; wanted at least one host",
    ),
    "three balancers": (
        lambda i: regroup(i, "app_nodes2", {"load_balancers"}, {"app_nodes"}),
        "groups.load_balancers [site_test]: seen 3 hosts; wanted 2, a pair",
    ),
    "duplicate priority": (
        lambda i: change(i, "load_balancers1", load_balancer_priority=254),
        "load_balancer_priority [load_balancers0, load_balancers1]: seen 254 on 2 hosts; wanted a number of its own",
    ),
    "priority of VRRP's owner": (
        lambda i: change(i, "load_balancers0", load_balancer_priority=255),
        "load_balancer_priority [load_balancers0]: seen 255; wanted 1 to 254",
    ),
    "router id out of range": (
        lambda i: change(i, "all", load_balancer_virtual_router_id=256),
        "load_balancer_virtual_router_id [load_balancers of site_test]: seen 256; wanted 1 to 255",
    ),
    "virtual address outside the network": (
        lambda i: change(i, "all", site_vip="198.51.100.10"),
        "site_vip [site_test]: seen 198.51.100.10; wanted a host's address inside site_network 192.0.2.0/24 (in main",
    ),
    "virtual address is the broadcast address": (
        lambda i: change(i, "all", site_vip="192.0.2.255"),
        "site_vip [site_test]: seen 192.0.2.255; wanted a host's address inside",
    ),
    "virtual address of a host": (
        lambda i: change(i, "all", site_vip="192.0.2.16"),
        "site_vip [site_test]: seen 192.0.2.16, which is site_address of mongodb0; wanted an address that no host has",
    ),
    "virtual address is none": (
        lambda i: change(i, "all", site_vip="trading"),
        "site_vip [site_test]: seen trading; wanted an IP address",
    ),
    "network with host bits": (
        lambda i: change(i, "all", site_network="192.0.2.1/24"),
        "site_network [site_test]: seen 192.0.2.1/24; wanted a network in CIDR notation",
    ),
    "prefix too long": (
        lambda i: change(i, "all", site_vip_prefix=33),
        "site_vip_prefix [site_test]: seen 33; wanted 1 to 32",
    ),
    "balancer outside the network": (
        lambda i: change(i, "load_balancers0", site_address="198.51.100.1"),
        "site_address [load_balancers0]: seen 198.51.100.1; wanted an address inside site_network 192.0.2.0/24",
    ),
    "host name as address": (
        lambda i: change(i, "redis0", site_address="redis0"),
        "site_address [redis0]: seen redis0; wanted an IP address",
    ),
    "two hosts with one address": (
        lambda i: change(i, "redis1", site_address="192.0.2.19"),
        "site_address [redis0, redis1]: seen 192.0.2.19 on 2 hosts; wanted one of its own for each host",
    ),
    "two hosts reached by one address": (
        lambda i: change(i, "redis1", ansible_host="192.0.2.19"),
        "ansible_host [redis0, redis1]: seen 192.0.2.19 on 2 hosts; wanted one of its own for each host",
    ),
    "two hosts with one name": (
        lambda i: i.update(REDIS0=replace(i["redis0"], name="REDIS0")),
        "name [redis0, REDIS0]: seen redis0.test.example.net on 2 hosts",
    ),
    "even number of MongoDB voters": (
        lambda i: change(i, "mongodb2", mongodb_votes=0),
        "groups.mongodb [site_test]: seen 2 voters (mongodb0, mongodb1); wanted an odd number of voters, at least 3",
    ),
    "even number of sentinels": (
        lambda i: i.pop("redis2") and relist(i),
        "groups.redis [site_test]: seen 2 voters (redis0, redis1); wanted an odd number of voters, at least 3",
    ),
    "one voter in production": (
        lambda i: (i.pop("mongodb1"), i.pop("mongodb2"), relist(i)),
        "groups.mongodb [site_test]: seen 1 voters (mongodb0); wanted an odd number of voters, at least 3",
    ),
    "a tier in one zone": (
        lambda i: change(i, "load_balancers1", site_zone="a"),
        "seen a for all of load_balancers (load_balancers0, load_balancers1); wanted at least 2 zones",
    ),
    "a zone with the majority": (
        lambda i: change(i, "redis1", site_zone="a"),
        "site_zone [site_test]: seen a for 2 of 3 voters of redis; wanted no zone with the majority of the voters",
    ),
    "tiers that may not share a host": (
        lambda i: regroup(i, "mongodb0", {"load_balancers"}),
        "groups [mongodb0]: seen load_balancers and mongodb; wanted one tier per host: these two may not share one",
    ),
    "host in two sites": (
        lambda i: regroup(i, "redis0", {"site_other"}),
        "groups [redis0]: seen site_other, site_test; wanted exactly one group site_<name>",
    ),
    "host in no site": (
        lambda i: regroup(i, "redis0", remove={"site_test"}),
        "groups [redis0]: seen no group site_<name>; wanted exactly one group site_<name>",
    ),
    "host in a tier with a typo": (
        lambda i: regroup(i, "app_nodes0", {"app_node"}, {"app_nodes"}),
        "(did you mean app_nodes?)",
    ),
    "site_group of another site": (
        lambda i: change(i, "redis0", site_group="site_tset"),
        "site_group [redis0]: seen site_tset; wanted site_test, the group that the host is in",
    ),
    "site_hosts lacks a host": (
        lambda i: change(i, "all", site_hosts=[name for name in i if name != "redis2"]),
        "site_hosts [site_test]: seen a list that differs in redis2; wanted {{ groups[site_group] }}",
    ),
    "a site's value differs between hosts": (
        lambda i: change(i, "redis1", site_time_zone="Europe/Paris"),
        "site_time_zone [site_test]: seen Europe/London and Europe/Paris; wanted one value for the whole site",
    ),
    "no control address": (
        lambda i: change(i, "all", site_control_addresses=[]),
        "site_control_addresses [site_test]: seen []; wanted the address or network of the control node",
    ),
    "control address is none": (
        lambda i: change(i, "all", site_control_addresses=["192.0.2.300"]),
        "site_control_addresses [site_test]: seen 192.0.2.300; wanted an IP address, or a network in CIDR notation",
    ),
    "control addresses missing": (
        lambda i: change(i, "all", site_control_addresses=None),
        "site_control_addresses [site_test]: seen nothing; wanted list of str",
    ),
    "time zone misspelt": (
        lambda i: change(i, "all", site_time_zone="Europe/Lodnon"),
        "site_time_zone [site_test]: seen Europe/Lodnon; wanted a name of the IANA database, such as Europe/London (",
    ),
    "secret missing": (
        lambda i: change(i, "mongodb0", mongodb_root_password=None),
        "mongodb_root_password [mongodb0]: seen nothing; wanted str (Password); put it in group_vars/site_test/sec",
    ),
    "secret whose lookup fails": (
        lambda i: change(i, "mongodb0", mongodb_root_password=rules.Unresolved("no secret of that name")),
        "mongodb_root_password [mongodb0]: seen a value that cannot be resolved: no secret of that name; wanted str",
    ),
    "placeholder": (
        lambda i: change(i, "all", site_domain="CHANGE_ME.example.net"),
        "site_domain [site_test]: seen CHANGE_ME.example.net; wanted str (DNS domain) (in main.yml:",
    ),
    "placeholder deep inside": (
        lambda i: change(i, "all", site_secrets={"redis": ["x", "CHANGE_ME"]}),
        "site_secrets.redis[1] [site_test]: seen CHANGE_ME; wanted a value of your own",
    ),
    "wrong type": (
        lambda i: change(i, "mongodb1", mongodb_port="abc"),
        "mongodb_port [mongodb1]: seen abc; wanted int (TCP port of mongod) (in main.yml:",
    ),
    "unknown key": (
        lambda i: change(i, "all", mongodb_prot=27018),
        "mongodb_prot [site_test]: seen an unknown key; wanted a variable of the site or an option of a role (did you",
    ),
}


def relist(inventory: Inventory) -> None:
    change(inventory, "all", site_hosts=list(inventory))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_inventory_is_told(case: str) -> None:
    spoil, message = BROKEN[case]
    inventory = make_site()
    spoil(inventory)
    assert any(message in problem for problem in problems_of(inventory)), problems_of(inventory)


def test_an_empty_inventory_is_told() -> None:
    (problem,) = problems_of({})
    assert problem.startswith("hosts [inventory]: seen no host; wanted at least the groups load_balancers, app_nodes,")


def test_all_problems_come_at_once() -> None:
    inventory = make_site()
    change(inventory, "all", site_vip="198.51.100.10", mongodb_prot=1)
    change(inventory, "load_balancers1", load_balancer_priority=254)
    change(inventory, "mongodb0", mongodb_root_password=None)
    keys = [problem.split()[0] for problem in problems_of(inventory)]
    assert keys == ["load_balancer_priority", "mongodb_prot", "mongodb_root_password", "site_vip"]


def test_one_voter_is_enough_outside_production() -> None:
    inventory = make_site(site_production=False)
    del inventory["mongodb1"], inventory["mongodb2"]
    relist(inventory)
    assert problems_of(inventory) == []


def test_a_member_without_a_vote_does_not_count() -> None:
    inventory = make_site()
    inventory["mongodb3"] = make_host(
        "mongodb3",
        set(inventory["mongodb0"].groups),
        {**inventory["mongodb0"].values, "site_address": "192.0.2.99", "ansible_host": "192.0.2.99"}
        | {"mongodb_votes": 0},
    )
    relist(inventory)
    assert problems_of(inventory) == []


def test_the_value_of_a_secret_is_never_shown() -> None:
    inventory = make_site()
    change(inventory, "mongodb0", mongodb_root_password="canary")
    found = rules.check(inventory.values(), CONTRACT, lambda name, *_: ["wrong"] if "password" in name else [])
    assert [problem.seen for problem in found] == ["(hidden)"]
    assert "canary" not in " ".join(map(str, found))


@pytest.mark.parametrize(
    ("name", "option", "secret"),
    [
        ("app_redis_password", {}, True),
        ("app_key", {"no_log": True}, True),
        ("users", {"options": {"name": {}, "password": {}}}, True),
        ("mongodb_port", {"type": "int"}, False),
    ],
)
def test_a_secret_is_known_by_its_spec_or_its_name(name: str, option: rules.Option, *, secret: bool) -> None:
    assert rules.is_secret(name, option) == secret


@pytest.mark.parametrize(
    ("kind", "value", "accepted"),
    [
        ("str", "no", True),
        ("str", 6.0, True),
        ("str", False, False),
        ("str", ["a"], False),
        ("list", ["a"], True),
        ("list", "a", False),
        ("dict", "a=b", False),
        ("int", "7", True),
    ],
)
def test_a_role_gets_the_type_that_it_reads(kind: str, value: Any, *, accepted: bool) -> None:
    assert (not rules.loose_type({"type": kind}, value)) == accepted


def test_a_value_that_needs_facts_is_not_judged() -> None:
    inventory = make_site()
    change(inventory, "mongodb0", mongodb_port=rules.UNKNOWN)
    assert problems_of(inventory) == []


KEYS = sorted({*CONTRACT.options(), "ansible_host", "ansible_port"})
ANYTHING = st.recursive(
    st.text() | st.integers() | st.booleans() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.from_regex(r"[a-z]*", fullmatch=True), inner),
)


@given(key=st.sampled_from(KEYS), value=ANYTHING)
def test_no_value_breaks_the_check_itself(key: str, value: Any) -> None:
    inventory = make_site()
    change(inventory, "all", **{key: value})
    change(inventory, "redis0", **{key: value})
    assert all(isinstance(problem, str) for problem in problems_of(inventory))


@given(zones=st.lists(st.sampled_from("abc"), min_size=3, max_size=3))
def test_three_voters_are_spread_or_told(zones: list[str]) -> None:
    inventory = make_site()
    for number, zone in enumerate(zones):
        change(inventory, f"redis{number}", site_zone=zone)
    assert bool(problems_of(inventory)) == (len(set(zones)) < 3)


@given(word=st.sampled_from(sorted(CONTRACT.options())), position=st.integers(1, 20))
def test_a_transposed_key_is_recognised(word: str, position: int) -> None:
    at = position % (len(word) - 1)
    typo = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if typo != word:
        assert "did you mean" in rules.did_you_mean(typo, CONTRACT.options())


@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.from_regex(r"[a-z]*", fullmatch=True), inner),
    )
)
def test_placeholders_are_found_however_deep(value: Any) -> None:
    assert bool(list(rules.placeholders(value, "key"))) == (rules.PLACEHOLDER in str(value))


def test_what_sops_puts_into_a_file_is_no_variable_of_the_inventory() -> None:
    class HostVars:
        def raw_get(self, name: str) -> dict[str, Any]:
            found = {"sops": {"mac": "ENC[…]"}, "site_name": "test", "site_nmae": "test", "inventory_hostname": name}
            return {"group_names": ["mongodb", "site_test"], **found}

    host = validate_inventory.read_host(DataLoader(), HostVars(), "m1", CONTRACT, {}, set())
    assert set(host.written) == {"site_name", "site_nmae"}
