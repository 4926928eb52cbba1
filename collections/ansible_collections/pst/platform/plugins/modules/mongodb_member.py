#!/usr/bin/python
"""pst.platform.mongodb_member; the logic is in module_utils/mongodb.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mongodb_member
short_description: Wait for a MongoDB member's health, make it hand over, give it a new certificate
description:
  - Waits until this member, or with O(others) all the other members, are PRIMARY or SECONDARY, close behind the primary
    and part of a healthy majority; fails with everything that is not so after O(timeout).
  - With O(hand_over), a primary steps down once the others are healthy, and the module waits for the next primary. Who
    copies the oplog of this member copies the primary's from then on, so that no write waits when this member goes.
  - With O(certificate), a server that shows another certificate reads its files again, without a restart.
requirements: [pymongo >= 3.11]
options:
  member:
    description: The member on this host, C(name:port) as the set knows it.
    type: str
    required: true
  others:
    description: Ask for the health of all other members instead of this one's. Before a restart.
    type: bool
    default: false
  peers:
    description: Members of the other site, C(name:port), where there are two. O(others) leaves them out.
    type: list
    elements: str
    default: []
  hand_over:
    description: Step down if this member is the primary, and have nobody copy from it. Before it goes away.
    type: bool
    default: false
  max_lag:
    description: Seconds that a member may be behind the primary.
    type: float
    default: 10
  certificate:
    description: PEM file with the certificate that the server should show.
    type: path
  login_user:
    description: A user that may read the status and, for O(hand_over) and O(certificate), manage the cluster.
    type: str
    required: true
  login_password:
    description: Its password.
    type: str
    required: true
  ca_file:
    description: CA certificates that the servers' certificates are checked with. Without it, no TLS.
    type: path
  timeout:
    description: Seconds to wait. 0 looks once.
    type: int
    default: 60
attributes:
  check_mode: {support: full, description: Looks once and changes nothing; an unhealthy member is a warning.}
  diff_mode: {support: none}
author: [pst]
"""

EXAMPLES = r"""
- name: Hand over before a restart
  pst.platform.mongodb_member:
    member: db1.example.test:27017
    others: true
    hand_over: true
    max_lag: 2
    login_user: root
    login_password: "{{ mongodb_root_password }}"
    ca_file: /etc/pst/pki/ca.crt
"""

RETURN = r"""
primary: {description: The primary., returned: always, type: str}
is_primary: {description: Whether this member is the primary., returned: always, type: bool}
states: {description: State of every member., returned: always, type: dict}
lags: {description: Seconds that each member is behind the primary., returned: always, type: dict}
feature_compatibility_version: {description: Format of the data., returned: always, type: str}
rotated: {description: Whether the server took a new certificate., returned: always, type: bool}
handed_over: {description: Whether this member stepped down., returned: always, type: bool}
unchained: {description: Members that had copied from this one., returned: always, type: list, elements: str}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.pst.platform.plugins.module_utils.mongodb import (
    Credentials,
    MemberVerbs,
    MongoError,
    ReplicaSet,
    connector,
    feature_compatibility_version,
    have_pymongo,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "member": {"type": "str", "required": True},
            "others": {"type": "bool", "default": False},
            "peers": {"type": "list", "elements": "str", "default": []},
            "hand_over": {"type": "bool", "default": False},
            "max_lag": {"type": "float", "default": 10},
            "certificate": {"type": "path"},
            "login_user": {"type": "str", "required": True},
            "login_password": {"type": "str", "required": True, "no_log": True},
            "ca_file": {"type": "path"},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    p = module.params
    check = module.check_mode
    if not have_pymongo() and not check:
        module.fail_json(msg=missing_required_lib("pymongo"))
    replica_set = ReplicaSet(connector(p["ca_file"] or "", 60), timeout=0 if check else p["timeout"])
    verbs = MemberVerbs(p["member"], Credentials(p["login_user"], p["login_password"]), replica_set, p["peers"])
    health = verbs.await_health(others=p["others"], max_lag=p["max_lag"])
    if health.problems:
        problem = "; ".join(health.problems)
        if not check:
            module.fail_json(
                msg=f"not healthy within {p['timeout']} s: {problem}", states=health.states, lags=health.lags
            )
        module.warn(problem)
    primary, rotated, handed_over, feature_version = health.primary, False, False, ""
    unchained: list[str] = []
    try:
        if primary:
            feature_version = feature_compatibility_version(replica_set, primary, verbs.admin)
        if p["certificate"] and primary:
            rotated = verbs.rotate_certificate(Path(p["certificate"]).read_text(encoding="ascii"), check=check)
        if p["hand_over"] and primary == p["member"]:
            handed_over = True
            if not check:
                primary = replica_set.hand_over(primary, list(health.states), verbs.admin)
        if p["hand_over"] and primary and not check:
            unchained = replica_set.unchain(p["member"], primary, verbs.admin)
    except (MongoError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(rotated or handed_over or unchained),
        primary=primary,
        is_primary=primary == p["member"],
        states=health.states,
        lags=health.lags,
        feature_compatibility_version=feature_version,
        rotated=rotated,
        handed_over=handed_over,
        unchained=unchained,
    )


if __name__ == "__main__":
    main()
