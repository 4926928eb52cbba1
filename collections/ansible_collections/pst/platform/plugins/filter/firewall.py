"""Filters of the firewall."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.pst.platform.plugins.module_utils import firewall


def firewall_rules(
    flows: Sequence[Mapping[str, Any]],
    host: str,
    groups: Mapping[str, Sequence[str]],
    addresses: Mapping[str, str | None],
    site_hosts: Sequence[str],
    control: Sequence[str],
    peers: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The rules (name, statements) of one host, from the table of flows."""
    try:
        rules = firewall.rules(flows, host, firewall.Site.of(groups, addresses, site_hosts, control, peers or {}))
    except firewall.FlowError as error:
        raise AnsibleFilterError(str(error)) from None
    return [{"name": rule.name, "statements": rule.statements} for rule in rules]


def firewall_ssh_rule(ports: Sequence[int], control: Sequence[str], session: str) -> dict[str, Any]:
    """The rule that lets the control node log in."""
    try:
        rule = firewall.ssh_rule(ports, control, session)
    except firewall.FlowError as error:
        raise AnsibleFilterError(str(error)) from None
    return {"name": rule.name, "statements": rule.statements}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "firewall_rules": firewall_rules,
            "firewall_ssh_rule": firewall_ssh_rule,
            "firewall_unknown_groups": firewall.unknown_groups,
        }
