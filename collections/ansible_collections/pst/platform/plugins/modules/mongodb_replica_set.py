#!/usr/bin/python
"""Bring a MongoDB replica set, its users and its settings to the state that the inventory describes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mongodb_replica_set
short_description: Bring a MongoDB replica set to the state that the inventory describes
description:
  - Runs on one member and reaches the others over the network. Makes the set where no member has one, makes and adjusts
    users, sets the default read and write concern, and adds, re-prioritises and removes members one at a time.
  - A member joins without a vote and gets it when it is SECONDARY. No step is taken that would leave the set without a
    majority of healthy voters. The primary hands over before it is removed or demoted.
  - Every run looks at the live set and takes the next step, so a run that was killed is resumed by running again.
requirements: [pymongo >= 3.11]
options:
  name:
    description: Name of the replica set.
    type: str
    required: true
  local:
    description: The member that runs on this host, C(name:port) as in O(members). A new set begins here.
    type: str
    required: true
  members:
    description: All the members that the set is to have, in any order. Not only those of the current play.
    type: list
    elements: dict
    required: true
    suboptions:
      host: {description: "C(name:port), resolvable by every member and client.", type: str, required: true}
      votes: {description: Votes in elections., type: int, choices: [0, 1], default: 1}
      priority: {description: Rank in elections; 0 never becomes primary., type: float, default: 1}
      hidden: {description: Keep clients from reading here., type: bool, default: false}
      tags: {description: Tags for read preferences and write concerns., type: dict, default: {}}
  peers:
    description:
      - Members of the other site, C(name:port), where the set has two. They are left as they are. While one of them has
        a vote and none of O(members) has, the members of this site are kept without one, and users and settings are
        left to the other site. While both sites have votes, nobody's vote is changed.
    type: list
    elements: str
    default: []
  standby:
    description: Whether this site only ever joins the set of O(peers), and never makes one of its own.
    type: bool
    default: false
  settings:
    description: Replica set settings such as C(electionTimeoutMillis). Others are left as they are.
    type: dict
    default: {}
  users:
    description: Users of the C(admin) database. The first one is the administrator that this module logs in as.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: User name., type: str, required: true}
      password: {description: Password., type: str, required: true}
      roles: {description: "Roles, each a dictionary of C(role) and C(db).", type: list, elements: dict, default: []}
      state: {description: Whether the user exists., type: str, choices: [present, absent], default: present}
  previous_password:
    description: The password that the administrator has until now, for changing it.
    type: str
  remove_members:
    description: Remove members that O(members) does not name. When false they are reported as a warning.
    type: bool
    default: false
  feature_compatibility_version:
    description: Feature compatibility version to set, such as C(6.0). Left as it is when empty.
    type: str
    default: ""
  ca_file:
    description: CA certificates that the servers' certificates are checked with. Without it, no TLS.
    type: path
  timeout:
    description: Seconds to wait for an answer, an election or a reconfiguration.
    type: int
    default: 60
  join_timeout:
    description: Seconds that a new member may take to copy the data.
    type: int
    default: 600
attributes:
  check_mode: {support: full, description: Says what would be done.}
  diff_mode: {support: full, description: Shows members and settings.}
author: [pst]
"""

EXAMPLES = r"""
- name: Bring the replica set to the inventory's state
  pst.platform.mongodb_replica_set:
    name: rs0
    local: db1.example.test:27017
    members:
      - {host: "db1.example.test:27017"}
      - {host: "db2.example.test:27017"}
      - {host: "db3.example.test:27017", priority: 0.5}
    users: [{name: root, password: "{{ mongodb_root_password }}", roles: [{role: root, db: admin}]}]
    settings: {electionTimeoutMillis: 2000}
    ca_file: /etc/pst/pki/ca.crt
"""

RETURN = r"""
changes:
  description: What was done, or would be done in check mode, in order.
  returned: always
  type: list
  elements: str
primary: {description: "The primary, C(name:port); empty when there is no set yet.", returned: always, type: str}
pending:
  description: Wanted members that did not answer and so are not yet what they should be.
  returned: always
  type: list
  elements: str
members: {description: "Members with votes, priority, hidden and tags, as they are now.", returned: always, type: dict}
"""

import json

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.pst.platform.plugins.module_utils.mongodb import (
    Member,
    MongoError,
    Reconciler,
    ReplicaSet,
    Spec,
    User,
    connector,
    have_pymongo,
)


def argument_spec() -> dict[str, dict[str, object]]:
    return {
        "name": {"type": "str", "required": True},
        "local": {"type": "str", "required": True},
        "members": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {
                "host": {"type": "str", "required": True},
                "votes": {"type": "int", "choices": [0, 1], "default": 1},
                "priority": {"type": "float", "default": 1},
                "hidden": {"type": "bool", "default": False},
                "tags": {"type": "dict", "default": {}},
            },
        },
        "peers": {"type": "list", "elements": "str", "default": []},
        "standby": {"type": "bool", "default": False},
        "settings": {"type": "dict", "default": {}},
        "users": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {
                "name": {"type": "str", "required": True},
                "password": {"type": "str", "required": True, "no_log": True},
                "roles": {"type": "list", "elements": "dict", "default": []},
                "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            },
        },
        "previous_password": {"type": "str", "no_log": True},
        "remove_members": {"type": "bool", "default": False},
        "feature_compatibility_version": {"type": "str", "default": ""},
        "ca_file": {"type": "path"},
        "timeout": {"type": "int", "default": 60},
        "join_timeout": {"type": "int", "default": 600},
    }


def user_from(parameters: dict[str, object]) -> User:
    roles = frozenset((role["role"], role["db"]) for role in parameters["roles"])
    return User(parameters["name"], parameters["password"], roles, present=parameters["state"] == "present")


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    p = module.params
    if not have_pymongo() and not module.check_mode:
        module.fail_json(msg=missing_required_lib("pymongo"))
    connect = connector(p["ca_file"] or "", p["timeout"])
    try:
        spec = Spec(
            name=p["name"],
            members=[Member(**member) for member in p["members"]],
            users=[user_from(user) for user in p["users"]],
            peers=p["peers"],
            standby=p["standby"],
            settings=p["settings"],
            previous_password=p["previous_password"] or "",
            remove_members=p["remove_members"],
            feature_compatibility_version=p["feature_compatibility_version"],
        )
        replica_set = ReplicaSet(connect, timeout=p["timeout"])
        result = Reconciler(
            spec, p["local"], replica_set, check=module.check_mode, join_timeout=p["join_timeout"]
        ).run()
    except MongoError as error:
        module.fail_json(msg=str(error))
    for warning in result.warnings:
        module.warn(warning)
    module.exit_json(
        changed=bool(result.changes),
        changes=result.changes,
        primary=result.primary,
        pending=result.pending,
        members=result.after.get("members", {}),
        diff={
            "prepared": "".join(f"{change}\n" for change in result.changes),
            "before": json.dumps(result.before, indent=2, sort_keys=True) + "\n",
            "after": json.dumps(result.after, indent=2, sort_keys=True) + "\n",
        },
    )


if __name__ == "__main__":
    main()
