# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters for what a site knows of the other one; the logic is in module_utils/site_peer.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.pst.platform.plugins.module_utils import site_peer


def site_peer_hosts(inventory: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The hosts of the other site, from what its hosts.yml holds."""
    try:
        return site_peer.peer_hosts(inventory)
    except site_peer.PeerError as error:
        raise AnsibleFilterError(f"site_peer: {error}") from None


def site_peer_members(peer: Mapping[str, Any] | None, tier: str, port: int | str) -> list[str]:
    """The other site's hosts of a tier, `name.domain:port`; none where there is no other site."""
    return site_peer.peer_members(peer["hosts"], tier, str(peer["domain"]), port) if peer else []


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"site_peer_hosts": site_peer_hosts, "site_peer_members": site_peer_members}
