#!/usr/bin/python
"""pst.platform.mongodb_site; the logic is in module_utils/mongodb_site.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mongodb_site
short_description: Which of two sites leads a MongoDB replica set, and move the lead
description:
  - Runs on a member of a site and reaches all the members over the network.
  - C(look) tells what this host sees of the set. C(leads) gives this site the votes and the primary, one proven step at
    a time, with the other site answering; it loses no write. C(forced) goes on with this site's members alone, and may
    lose what had not come here. C(alone) takes the other site, which must have no vote, out of the set.
  - What is done already is found in the set, so a run that was killed is resumed by running again, and C(leads) on the
    other site is the way back.
requirements: [pymongo >= 3.11]
options:
  name:
    description: Name of the replica set.
    type: str
    required: true
  members:
    description: The members of this site as they are to be when it leads, each with C(host), C(votes), C(priority)…
    type: list
    elements: dict
    required: true
  peers:
    description: The members of the other site, C(name:port).
    type: list
    elements: str
    required: true
  state:
    description: What is wanted.
    type: str
    choices: [look, leads, forced, alone]
    default: look
  login_user:
    description: The administrator.
    type: str
    required: true
  login_password:
    description: Its password.
    type: str
    required: true
  ca_file:
    description: CA certificates that the servers' certificates are checked with.
    type: path
  timeout:
    description: Seconds to wait for an answer, an election or a reconfiguration.
    type: int
    default: 60
attributes:
  check_mode: {support: full, description: Says the first change that would be made.}
  diff_mode: {support: none}
author: [pst]
"""

EXAMPLES = r"""
- name: Have this site lead
  pst.platform.mongodb_site:
    name: rs0
    members: [{host: "dr1.example.test:27017", votes: 1, priority: 2}]
    peers: ["db1.example.test:27017", "db2.example.test:27017", "db3.example.test:27017"]
    state: leads
    login_user: root
    login_password: "{{ mongodb_root_password }}"
    ca_file: /etc/pst/pki/ca.crt
"""

RETURN = r"""
changes: {description: What was done, in order., returned: always, type: list, elements: str}
leads_here: {description: Whether members of this site have votes., returned: always, type: bool}
leads_there: {description: Whether members of the other site have votes., returned: always, type: bool}
primaries: {description: Members that say of themselves that they are primary., returned: always, type: list}
seen: {description: Every member with C(answers) and C(primary)., returned: always, type: list}
heard: {description: What the set's heartbeats tell of the other members., returned: always, type: list}
applied: {description: Time of the newest operation at this site (UTC)., returned: always, type: str}
lags: {description: Seconds that each member of this site is behind., returned: always, type: dict}
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.pst.platform.plugins.module_utils.mongodb import (
    Credentials,
    Member,
    MongoError,
    ReplicaSet,
    connector,
    have_pymongo,
)
from ansible_collections.pst.platform.plugins.module_utils.mongodb_site import TwoSites


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "members": {"type": "list", "elements": "dict", "required": True},
            "peers": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["look", "leads", "forced", "alone"], "default": "look"},
            "login_user": {"type": "str", "required": True},
            "login_password": {"type": "str", "required": True, "no_log": True},
            "ca_file": {"type": "path"},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    p = module.params
    if not have_pymongo():
        module.fail_json(msg=missing_required_lib("pymongo"))
    try:
        sites = TwoSites(
            p["name"],
            [Member(**member) for member in p["members"]],
            p["peers"],
            Credentials(p["login_user"], p["login_password"]),
            ReplicaSet(connector(p["ca_file"] or "", p["timeout"]), timeout=p["timeout"]),
            check=module.check_mode,
        )
        verbs = {"look": sites.look, "leads": sites.take_lead, "forced": sites.force, "alone": sites.remove_peers}
        outlook = verbs[p["state"]]()
    except MongoError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(sites.changes), changes=sites.changes, **outlook.document())


if __name__ == "__main__":
    main()
