"""From the platform's table of flows to the rules of one host."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANY, CONTROL, SITE = "any", "control", "site"
KEYS = {"name", "from", "to", "ports", "proto", "sites"}
PROTOCOLS = ("tcp", "udp", "vrrp")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class FlowError(Exception):
    """Everything that is wrong, one line each."""


@dataclass(frozen=True)
class Site:
    """What the rules need from the inventory."""

    groups: Mapping[str, Sequence[str]]  # of all inventories that were given
    addresses: Mapping[str, str | None]  # of all their hosts
    hosts: Sequence[str]  # of this site
    control: Sequence[str]

    @classmethod
    def of(
        cls,
        groups: Mapping[str, Sequence[str]],
        addresses: Mapping[str, str | None],
        hosts: Sequence[str],
        control: Sequence[str],
        peers: Mapping[str, Mapping[str, Any]],
    ) -> Site:
        """Take the other site's hosts too, which a run over this site alone has not in its inventory."""
        known = {name: list(members) for name, members in groups.items()}
        for name, peer in peers.items():
            for group in peer["groups"]:
                known[group] = [*known.get(group, ()), *([name] if name not in known.get(group, ()) else [])]
        return cls(known, {**{name: str(peer["address"]) for name, peer in peers.items()}, **addresses}, hosts, control)

    def members(self, group: str, *, all_sites: bool) -> list[str]:
        if group == SITE:
            return list(self.hosts)
        return [host for host in self.groups.get(group, ()) if all_sites or host in self.hosts]


@dataclass(frozen=True)
class Rule:
    """One accepted flow; the template writes it as one line per address family."""

    name: str
    match: str  # protocol and ports, in the words of nft
    any_source: bool
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]

    @property
    def statements(self) -> list[str]:
        if self.any_source:
            return [self.match]
        families = (("ip", self.ipv4), ("ip6", self.ipv6))
        return [f"{family} saddr {{ {', '.join(a)} }} {self.match}" for family, a in families if a]


def rules(flows: Sequence[Mapping[str, Any]], host: str, site: Site) -> list[Rule]:
    """The flows that end at this host. One that nobody may use is left out."""
    problems = [problem for flow in flows for problem in _problems(flow, site)]
    names = [str(flow.get("name")) for flow in flows]
    problems += [
        f"firewall flow {name!r}: the name is used twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if problems:
        raise FlowError("\n".join(problems))
    result = [_rule(flow, site) for flow in flows if any(host in site.members(g, all_sites=False) for g in flow["to"])]
    return [rule for rule in result if rule.statements]


def ssh_rule(ports: Sequence[int], control: Sequence[str], session: str) -> Rule:
    """Who may log in: the control addresses, and whoever runs Ansible now (`SSH_CONNECTION`, empty without ssh)."""
    client, _, _, port = session.split() if session else ("", "", "", "")
    sources = [*control, *([client.partition("%")[0]] if client else [])]
    if not sources:
        raise FlowError("site_control_addresses: empty, wanted: the addresses or networks that may log in by ssh")
    ipv4, ipv6 = _families(_network(source) for source in sources)
    return Rule("ssh", _ports("tcp", sorted({*ports, *([int(port)] if port else [])})), False, ipv4, ipv6)


def unknown_groups(flows: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Words of the user's own flows that are neither groups, keywords nor addresses."""
    words = {word for flow in flows for word in (*flow.get("from", ()), *flow.get("to", ()))}
    return sorted(w for w in words if w not in groups and w not in (ANY, CONTROL, SITE) and not _is_network(w))


def _rule(flow: Mapping[str, Any], site: Site) -> Rule:
    protocol = flow.get("proto", "tcp")
    match = "meta l4proto 112" if protocol == "vrrp" else _ports(protocol, flow["ports"])
    if ANY in flow["from"]:
        return Rule(flow["name"], match, True, (), ())
    ipv4, ipv6 = _families(_sources(flow, site))
    return Rule(flow["name"], match, False, ipv4, ipv6)


def _ports(protocol: str, ports: Sequence[int]) -> str:
    return f"{protocol} dport {{ {', '.join(str(port) for port in ports)} }}"


def _sources(flow: Mapping[str, Any], site: Site) -> Iterator[Network]:
    for source in flow["from"]:
        if source == CONTROL:
            yield from map(_network, site.control)
        elif _is_network(source):
            yield _network(source)
        else:
            for host in site.members(source, all_sites=flow.get("sites") == "all"):
                yield _network(str(site.addresses[host]))


def _families(networks: Iterable[Network]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sorted, and without those that another one contains: nft refuses overlapping intervals."""
    found = set(networks)
    ipv4 = {n for n in found if isinstance(n, ipaddress.IPv4Network)}
    ipv6 = {n for n in found if isinstance(n, ipaddress.IPv6Network)}
    outer4 = sorted(n for n in ipv4 if ipv4.isdisjoint(_larger(n)))
    outer6 = sorted(n for n in ipv6 if ipv6.isdisjoint(_larger(n)))
    return tuple(map(_text, outer4)), tuple(map(_text, outer6))


def _larger(network: Network) -> Iterator[Network]:
    """Every network that contains this one."""
    return (network.supernet(new_prefix=prefix) for prefix in range(network.prefixlen))


def _text(network: Network) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise FlowError(f"{text!r} is no address or network (site_address, site_control_addresses)") from None


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _problems(flow: Mapping[str, Any], site: Site) -> Iterator[str]:
    label = f"firewall flow {flow.get('name')!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", str(flow.get("name"))):
        yield f"{label}: name, wanted: lower case letters, digits and _"
    for key in sorted(set(flow) - KEYS):
        yield f"{label}: {key} is unknown, wanted: one of {', '.join(sorted(KEYS))}"
    if flow.get("sites", "own") not in ("own", "all"):
        yield f"{label}: sites is {flow['sites']!r}, wanted: own or all"
    for problem in (*_protocol_problems(flow), *_end_problems(flow)):
        yield f"{label}: {problem}"
    for host in _source_hosts(flow, site):
        if not _is_network(str(site.addresses.get(host))):
            yield f"{host}: site_address is {site.addresses.get(host)!r}, wanted: an IP address"


def _protocol_problems(flow: Mapping[str, Any]) -> Iterator[str]:
    protocol, ports = flow.get("proto", "tcp"), flow.get("ports")
    if protocol not in PROTOCOLS:
        yield f"proto is {protocol!r}, wanted: one of {', '.join(PROTOCOLS)}"
    elif protocol == "vrrp" and ports is not None:
        yield f"ports is {ports!r}, wanted: none (vrrp has no ports)"
    elif protocol != "vrrp" and not _is_list_of(ports, int, lambda port: 0 < port < 65536):
        yield f"ports is {ports!r}, wanted: a list of numbers from 1 to 65535"


def _end_problems(flow: Mapping[str, Any]) -> Iterator[str]:
    for key in ("from", "to"):
        if not _is_list_of(flow.get(key), str, bool):
            yield f"{key} is {flow.get(key)!r}, wanted: a list of groups"


def _is_list_of(value: Any, kind: type, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) and holds(item) for item in value)


def _source_hosts(flow: Mapping[str, Any], site: Site) -> list[str]:
    sources = flow["from"] if _is_list_of(flow.get("from"), str, bool) else []
    return [host for source in sources for host in site.members(source, all_sites=flow.get("sites") == "all")]
