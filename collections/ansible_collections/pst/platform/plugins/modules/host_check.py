#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: host_check
short_description: Find everything that keeps a host from taking its role
description:
  - Checks the operating system, disk, memory, CPU flags, time zone data, name resolution, the clock against the control
    node's, and the way to every peer that the host has to reach. One run on the host, plus a few readings of its clock.
  - Changes nothing and does not fail by itself; returns the problems, so that a play can show those of all hosts.
options:
  tiers:
    description: Groups of the host; those with a row in the table of C(module_utils/host_check.py) are checked.
    type: list
    elements: str
    required: true
  minimums:
    description: Least C(disk_gb) and C(memory_mb) by group, over the table.
    type: dict
    default: {}
  time_zone:
    description: Name in the IANA database whose data must be on the host.
    type: str
    required: true
  peers:
    description: Ports of other hosts to reach. To refuse counts as reached, since nothing may listen there yet.
    type: list
    elements: dict
    default: []
    suboptions:
      host:
        description: Inventory name, for the message.
        type: str
        required: true
      address:
        description: IP address.
        type: str
        required: true
      port:
        description: TCP port.
        type: int
        required: true
      flow:
        description: Name of the flow, for the message.
        type: str
        required: true
  timeout:
    description: Seconds to wait for a peer's answer.
    type: float
    default: 2.0
  clock_limit:
    description: Largest difference between the host's clock and the control node's, in seconds.
    type: float
    default: 0.5
author: The pst platform team
"""

EXAMPLES = r"""
- name: Check the host
  pst.platform.host_check:
    tiers: "{{ group_names }}"
    time_zone: "{{ site_time_zone }}"
"""

RETURN = r"""
problems:
  description: What is wrong, each with C(what), C(seen) and C(wanted).
  returned: always
  type: list
  elements: dict
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.host_check import Peer, check_host


def main() -> None:
    peer = {
        "host": {"type": "str", "required": True},
        "address": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        "flow": {"type": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "tiers": {"type": "list", "elements": "str", "required": True},
            "minimums": {"type": "dict", "default": {}},
            "time_zone": {"type": "str", "required": True},
            "peers": {"type": "list", "elements": "dict", "default": [], "options": peer},
            "timeout": {"type": "float", "default": 2.0},
            "clock_limit": {"type": "float", "default": 0.5},
        },
        supports_check_mode=True,
    )
    problems = check_host(
        tiers=module.params["tiers"],
        minimums=module.params["minimums"],
        time_zone=module.params["time_zone"],
        peers=[Peer(**found) for found in module.params["peers"]],
        timeout=module.params["timeout"],
    )
    module.exit_json(changed=False, problems=[dataclasses.asdict(problem) for problem in problems])


if __name__ == "__main__":
    main()
