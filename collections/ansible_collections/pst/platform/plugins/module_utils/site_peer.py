# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a site knows of the other site: its hosts with their addresses and tiers, whichever inventories are given.

A run over one site alone must come to the same files as a run over both. So a site does not find the other one in the
inventory of the run but in the variable `site_peer`, whose hosts are read from the other site's own hosts.yml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SITE_PREFIX = "site_"


class PeerError(Exception):
    """The other site's inventory cannot be read as one."""


def peer_hosts(inventory: Any) -> dict[str, dict[str, Any]]:
    """Name to address and tiers, from a hosts.yml whose site group lists every host."""
    groups = {name: group for name, group in _mapping(inventory, "the inventory").items() if name != "all"}
    sites = [name for name in groups if str(name).startswith(SITE_PREFIX)]
    if len(sites) != 1:
        raise PeerError(f"groups: seen {', '.join(sites) or 'no site'}, wanted one group site_<name> with every host")
    hosts: dict[str, dict[str, Any]] = {}
    for name, variables in _hosts(groups[sites[0]]).items():
        address = variables.get("site_address", variables.get("ansible_host"))
        if not isinstance(address, str) or "{{" in address:
            raise PeerError(f"{name}: site_address and ansible_host give {address!r}, wanted an address in hosts.yml")
        tiers = sorted(group for group in groups if group != sites[0] and name in _hosts(groups[group]))
        hosts[str(name)] = {"address": address, "groups": tiers}
    return hosts


def peer_members(hosts: Mapping[str, Mapping[str, Any]], tier: str, domain: str, port: int | str) -> list[str]:
    """The hosts of a tier as `name.domain:port`."""
    return [f"{name}.{domain}:{port}" for name in sorted(hosts) if tier in hosts[name]["groups"]]


def addresses_of(hosts: Mapping[str, Mapping[str, Any]], tiers: Sequence[str]) -> dict[str, str]:
    """Addresses of the hosts of any of the tiers."""
    return {name: str(host["address"]) for name, host in sorted(hosts.items()) if set(tiers) & set(host["groups"])}


def _hosts(group: Any) -> dict[str, dict[str, Any]]:
    listed = _mapping(_mapping(group or {}, "a group").get("hosts") or {}, "hosts")
    return {str(name): _mapping(variables or {}, str(name)) for name, variables in listed.items()}


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise PeerError(f"{what}: seen {type(value).__name__}, wanted a mapping")
    return dict(value)
