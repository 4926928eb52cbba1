# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter of the zone of the service names; the logic is in module_utils/dns_zone.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.pst.platform.plugins.module_utils import dns_zone


def dns_plan(
    reads: Mapping[str, Mapping[str, Any]],
    servers: Mapping[str, str],
    names: Sequence[str],
    ttl: int,
    address: str,
    move: bool = False,
) -> dict[str, Any]:
    """Return the C(zone) that is wanted, its C(writers) and the servers that were C(unreached).

    C(reads) is host to result of the module dns_zone. With C(move) the names go to C(address); else that is for a zone
    that does not exist yet.
    """
    try:
        plan = dns_zone.plan(reads, servers, names, int(ttl), time.time(), address=address, move=move)
    except dns_zone.ZoneError as error:
        raise AnsibleFilterError(str(error)) from error
    return {
        "zone": dns_zone.described(plan.zone),
        "writers": list(plan.writers),
        "unreached": list(plan.unreached),
    }


def dns_servers(
    hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], peers: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Name to address of the name servers: the site's own hosts, and those of the other site."""
    own = {host: str(hostvars[host]["site_address"]) for host in hosts}
    return {**own, **{name: str(peer["address"]) for name, peer in peers.items() if "dns" in peer["groups"]}}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"dns_plan": dns_plan, "dns_servers": dns_servers}
