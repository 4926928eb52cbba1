#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: trading_lease
short_description: Revoke the leases of trading, or reinstate them
description:
  - While a lease is revoked nobody can take or renew it, and the gates pass no order.
  - Speaks to MongoDB directly, so it works on any host that reaches the replica set, with every guard dead.
  - Succeeds only where a majority of the members has confirmed it. Safe to repeat, from many hosts at once.
options:
  state:
    description: What all leases have to be.
    type: str
    choices: [revoked, reinstated]
    required: true
  placements:
    description: Leases that have to be there in order to be revoked, also where nobody has held them yet.
    type: list
    elements: str
    default: [trading]
  reason:
    description: Why; kept with the lease.
    type: str
    required: true
  by:
    description: Who; kept with the lease.
    type: str
    required: true
  hosts:
    description: Members of the replica set, C(host:port).
    type: list
    elements: str
    required: true
  login_user:
    description: User that may write the leases.
    type: str
    required: true
  login_password:
    description: Its password.
    type: str
    required: true
  database:
    description: Database of the leases.
    type: str
    default: pst
  ca_file:
    description: Authority of the members' certificates.
    type: path
  timeout:
    description: Seconds to wait for a primary, and for the majority.
    type: int
    default: 10
requirements: [pymongo]
author: The pst platform team
"""

EXAMPLES = r"""
- name: Let nobody trade
  pst.platform.trading_lease:
    state: revoked
    by: the operator
    reason: the broker reports strange fills
    hosts: [mongo1.example.net:27017, mongo2.example.net:27017]
    login_user: guard
    login_password: "{{ trading_guard_password }}"
    ca_file: /etc/pst/pki/ca.crt
"""

RETURN = r"""
leases:
  description: Every lease, with C(placement), C(holder), C(epoch) and C(revoked).
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.pst.platform.plugins.module_utils.mongodb import (
    Credentials,
    MongoError,
    connector,
    have_pymongo,
)
from ansible_collections.pst.platform.plugins.module_utils.trading_lease import Leases, Switch, shown


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["revoked", "reinstated"], "required": True},
            "placements": {"type": "list", "elements": "str", "default": ["trading"]},
            "reason": {"type": "str", "required": True},
            "by": {"type": "str", "required": True},
            "hosts": {"type": "list", "elements": "str", "required": True},
            "login_user": {"type": "str", "required": True},
            "login_password": {"type": "str", "required": True, "no_log": True},
            "database": {"type": "str", "default": "pst"},
            "ca_file": {"type": "path"},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    p = module.params
    if not have_pymongo():
        module.fail_json(msg=missing_required_lib("pymongo"))
    admin = Credentials(p["login_user"], p["login_password"])
    leases = Leases(connector(p["ca_file"] or "", p["timeout"] + 2), p["hosts"], admin, p["database"], p["timeout"])
    wanted = Switch(p["state"] == "revoked", p["by"], p["reason"])
    try:
        found, changed = leases.switch(wanted, p["placements"], check=module.check_mode)
    except MongoError as error:
        module.fail_json(msg=str(error))
    result = [shown(lease) for lease in found]
    words = "revoked" if wanted.revoked else "valid"
    diff = {"before": "", "after": f"leases: {words}\n"} if changed else {}
    module.exit_json(changed=changed, leases=result, diff=diff)


if __name__ == "__main__":
    main()
