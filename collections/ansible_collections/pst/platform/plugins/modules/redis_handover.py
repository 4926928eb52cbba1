#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: move the master away from a member without losing a write."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_handover
short_description: Move the master to another member, by plan and without loss
description:
  - Holds writes (clients wait, they get no error), waits until every replica has all of them, orders the Sentinels to
    switch, makes the old master a replica, and lets the clients go to the new one.
  - Does nothing when the member is not the master. Refuses when the cluster is not healthy.
version_added: 0.1.0
extends_documentation_fragment: pst.platform.redis
options:
  member:
    description: The member that must not be master afterwards.
    type: str
    required: true
  failover_timeout:
    description: Seconds after which the Sentinels give up a switch (their C(failover-timeout)).
    type: float
    required: true
  timeout:
    description: Seconds to wait for the cluster to be healthy after the switch.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Move the master away
  pst.platform.redis_handover:
    cluster: "{{ redis_cluster }}"
    member: redis1.example.net
    failover_timeout: 10
"""

RETURN = r"""
old:
  description: The master before.
  returned: changed
  type: str
new:
  description: The master now.
  returned: changed
  type: str
held_s:
  description: Seconds for which writes were held.
  returned: changed
  type: float
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.redis_cluster import (
    CLUSTER_ARGUMENT,
    Cluster,
    ClusterError,
    CommandError,
    agreed_master,
    hand_over,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "cluster": CLUSTER_ARGUMENT,
            "member": {"type": "str", "required": True},
            "failover_timeout": {"type": "float", "required": True},
            "timeout": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    given = module.params
    cluster = Cluster.of(given["cluster"])
    if module.check_mode:
        module.exit_json(changed=agreed_master(cluster.watches()) == given["member"])
    try:
        switch = hand_over(cluster, given["member"], given["failover_timeout"], given["timeout"])
    except (ClusterError, CommandError, OSError) as error:
        module.fail_json(msg=f"{given['member']} keeps or kept the master: {error}")
    module.exit_json(changed=switch is not None, **(asdict(switch) if switch else {}))


if __name__ == "__main__":
    main()
