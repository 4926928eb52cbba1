#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: host_status
short_description: Tell the state of every service of a host
description:
  - Asks each service that the host's tiers expect in the way a client would, from the host itself, all in one run.
  - Read-only. Needs root, for the node certificate's key and for the login of the host's own sentinel.
  - Returns no secret.
options:
  host:
    description: Inventory name, for the rows.
    type: str
    required: true
  tiers:
    description: Groups of the host; the services of each are in the table of C(module_utils/host_status.py).
    type: list
    elements: str
    required: true
  address:
    description: The host's own address, on which its services are asked.
    type: str
    required: true
  vip:
    description: Virtual address of the site.
    type: str
    default: ""
  ports:
    description: Ports by service, where they are not the usual ones.
    type: dict
    default: {}
  timeout:
    description: Seconds to wait for the answer of a service.
    type: float
    default: 3.0
author: The pst platform team
"""

EXAMPLES = r"""
- name: Ask the services
  pst.platform.host_status:
    host: "{{ inventory_hostname }}"
    tiers: "{{ group_names }}"
    address: "{{ site_address }}"
    vip: "{{ site_vip }}"
"""

RETURN = r"""
services:
  description: A row per service, with C(host), C(tier), C(service), C(state), C(version), C(since) and C(ok).
  returned: always
  type: list
  elements: dict
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.host_status import Context, ProbeError, look


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "tiers": {"type": "list", "elements": "str", "required": True},
            "address": {"type": "str", "required": True},
            "vip": {"type": "str", "default": ""},
            "ports": {"type": "dict", "default": {}},
            "timeout": {"type": "float", "default": 3.0},
        },
        supports_check_mode=True,
    )
    ports = {name: int(port) for name, port in module.params["ports"].items() if port}
    context = Context(module.params["address"], module.params["vip"], ports, module.params["timeout"])
    try:
        rows = look(module.params["host"], module.params["tiers"], context)
    except ProbeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, services=[dataclasses.asdict(row) for row in rows])


if __name__ == "__main__":
    main()
