#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: wait until a Redis cluster is healthy, or say what is wrong with it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_health
short_description: Wait until the members are a working cluster
description:
  - "Read only. Healthy is: a majority of Sentinels names one master; that node says so too; the others follow it with
    their link up; every Sentinel asked names it and has its quorum; where all members are asked, each Sentinel knows
    all of them."
version_added: 0.1.0
extends_documentation_fragment: pst.platform.redis
options:
  subject:
    description: Members that have to be healthy. Without it, all.
    type: list
    elements: str
    default: []
  min_replicas:
    description: Replicas that the master must have in time.
    type: int
    default: 0
  timeout:
    description: Seconds to wait.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Wait until the cluster is healthy
  pst.platform.redis_health:
    cluster: "{{ redis_cluster }}"
"""

RETURN = r"""
master:
  description: The master.
  returned: success
  type: str
nodes:
  description: What each Redis says of itself.
  returned: success
  type: dict
sentinels:
  description: What each Sentinel says of the cluster.
  returned: success
  type: dict
"""

import time
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.redis_cluster import (
    CLUSTER_ARGUMENT,
    Cluster,
    ClusterError,
    agreed_master,
    await_health,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "cluster": CLUSTER_ARGUMENT,
            "subject": {"type": "list", "elements": "str", "default": []},
            "min_replicas": {"type": "int", "default": 0},
            "timeout": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    given = module.params
    subject = given["subject"] or given["cluster"]["members"]
    try:
        state = await_health(
            Cluster.of(given["cluster"]), subject, time.monotonic() + given["timeout"], given["min_replicas"]
        )
    except ClusterError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        master=agreed_master(state.watches),
        nodes={name: asdict(node) for name, node in state.nodes.items()},
        sentinels={name: asdict(watch) for name, watch in state.watches.items()},
    )


if __name__ == "__main__":
    main()
