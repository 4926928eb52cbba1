#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: read, write and prove the zone of the service names on one name server."""

from __future__ import annotations

DOCUMENTATION = r"""
module: dns_zone
short_description: Read, write and prove the zone of the service names on one name server
description:
  - Runs on a name server that the role C(dns) has set up, and changes the zone of this one server by a dynamic update
    with TSIG that fails where the zone was changed meanwhile. What the zone is to say is found over all servers, by the
    filter P(pst.platform.dns_plan#filter).
  - A serial is never taken back.
version_added: 0.3.0
options:
  state:
    description:
      - V(read) returns what this server has, and the serials of the others that it hears. It does not fail.
      - V(written) makes it say O(zone).
      - V(proven) waits until clients get from it what O(zone) says, and the servers that it hears have the same serial.
        Without O(zone), until all servers are there and say the same.
    type: str
    choices: [read, written, proven]
    default: read
  zone:
    description: The zone, as P(pst.platform.dns_plan#filter) returns it.
    type: dict
  seconds:
    description: How long to wait with O(state=proven).
    type: float
    default: 20
  settings:
    description: Settings of the server, written by the role.
    type: path
    default: /etc/pst/dns/settings.json
requirements: [dnspython]
author: The pst platform team
"""

EXAMPLES = r"""
- name: Read what this server has
  pst.platform.dns_zone: {state: read}
  register: __dns_read
"""

RETURN = r"""
answers:
  description: With O(state=read), whether the server answers.
  returned: O(state=read)
  type: bool
problem:
  description: Why it does not.
  returned: O(state=read)
  type: str
serial:
  description: Serial of its zone; null where it has none. Beside it C(ttl), C(addresses), C(members) and C(extra).
  returned: O(state=read)
  type: int
serials:
  description: Serials of the other servers that answer it.
  returned: O(state=read)
  type: dict
open:
  description: Whether clients get an answer.
  returned: O(state=read)
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.pst.platform.plugins.module_utils import dns_zone


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "written", "proven"], "default": "read"},
            "zone": {"type": "dict"},
            "seconds": {"type": "float", "default": 20},
            "settings": {"type": "path", "default": dns_zone.SETTINGS},
        },
        supports_check_mode=True,
        required_if=[("state", "written", ["zone"])],
    )
    p = module.params
    if not dns_zone.HAS_DNSPYTHON and p["state"] != "read":
        module.fail_json(msg=missing_required_lib("dnspython"))
    try:
        if p["state"] == "read":
            module.exit_json(**reading(p["settings"]))
        settings = dns_zone.Settings.read(p["settings"])
        wanted = dns_zone.zone_of(p["zone"]) if p["zone"] else None
        if p["state"] == "proven":
            # In check mode nothing was moved that could be proven.
            if problems := [] if module.check_mode else dns_zone.prove(settings, wanted, p["seconds"]):
                module.fail_json(msg="; ".join(problems))
            module.exit_json()
        old, new = dns_zone.write(settings, wanted, check=module.check_mode)
    except dns_zone.ZoneError as error:
        module.fail_json(msg=str(error))
    diff = {"before": old.text(settings.zone) if old else "", "after": new.text(settings.zone)}
    module.exit_json(changed=old != new, diff=diff)


def reading(path: str) -> dict:
    """Read; on a host without the role's files there is nothing yet."""
    nothing = {"answers": False, "serial": None, "serials": {}, "open": None}
    if not dns_zone.HAS_DNSPYTHON:
        return {**nothing, "problem": "the role dns was not run here yet"}
    try:
        return dns_zone.read(dns_zone.Settings.read(path))
    except dns_zone.ZoneError as error:
        return {**nothing, "problem": str(error)}


if __name__ == "__main__":
    main()
