#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: what a host knows of its cluster before its services are set up."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_seed
short_description: Say whether a host has Redis state, and whom the Sentinels name as master
description:
  - Read only. A host that has state needs nothing else; a host without asks the Sentinels of all members.
  - Where the Sentinels name the host itself, they are about to move on, and the module waits for that.
version_added: 0.1.0
extends_documentation_fragment: pst.platform.redis
options:
  own_name:
    description: This host's name among the members.
    type: str
    required: true
  state_file:
    description: The file that Redis keeps its replication state in.
    type: path
    required: true
  timeout:
    description: Seconds to wait for the Sentinels to move the master away from this host.
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: Look for state and a live master
  pst.platform.redis_seed:
    cluster: "{{ redis_cluster }}"
    own_name: redis1.example.net
    state_file: /var/lib/redis/node.conf
"""

RETURN = r"""
seeded:
  description: The host has replication state of its own.
  returned: always
  type: bool
master:
  description: The master recorded in that state.
  returned: always
  type: str
has_data:
  description: There is a data set beside it.
  returned: always
  type: bool
named:
  description: The master that the Sentinels name; empty where none answers, or where it was not asked for.
  returned: always
  type: str
"""

import time
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.redis_cluster import (
    CLUSTER_ARGUMENT,
    Cluster,
    Seed,
    newest_master,
    recorded_master,
)


def look(cluster: Cluster, own_name: str, state_file: Path, timeout: float) -> Seed:
    has_data = any((state_file.parent / name).exists() for name in ("appendonlydir", "dump.rdb"))
    if state_file.exists():
        return Seed(True, recorded_master(state_file.read_text(), own_name), has_data)
    deadline = time.monotonic() + timeout
    named = newest_master(cluster.watches())
    while named == own_name and time.monotonic() < deadline:
        time.sleep(0.5)
        named = newest_master(cluster.watches())
    return Seed(False, "", has_data, named)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "cluster": CLUSTER_ARGUMENT,
            "own_name": {"type": "str", "required": True},
            "state_file": {"type": "path", "required": True},
            "timeout": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    given = module.params
    seed = look(Cluster.of(given["cluster"]), given["own_name"], Path(given["state_file"]), given["timeout"])
    module.exit_json(changed=False, **asdict(seed))


if __name__ == "__main__":
    main()
