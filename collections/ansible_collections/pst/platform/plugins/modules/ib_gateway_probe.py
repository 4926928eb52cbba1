#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""pst.platform.ib_gateway_probe; the logic is in module_utils/ib_api.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ib_gateway_probe
short_description: Ask IB Gateway through its API whether it is healthy
description:
  - Fails where the gateway does not answer, within a bound, as a healthy one does. A connection alone proves nothing.
  - Changes nothing on the host and at the broker; runs in check mode as well.
version_added: 0.1.0
author: The pst platform team
options:
  host:
    description: Address of the API.
    type: str
    default: 127.0.0.1
  port:
    description: Port of the API.
    type: int
    required: true
  level:
    description:
      - V(handshake) asks for the version, and takes no client slot. It proves that the gateway answers.
      - V(session) also starts the API as O(client_id). It proves that the gateway is logged in.
    type: str
    choices: [handshake, session]
    default: handshake
  client_id:
    description: Client id of the session, one that nobody else uses.
    type: int
    default: 999
  trading_mode:
    description: Mode that the accounts of the session must be of.
    type: str
    choices: [paper, live]
  accounts:
    description: Accounts that the session must have.
    type: list
    elements: str
    default: []
  timeout:
    description: Bound of one attempt, in seconds.
    type: float
    default: 5
  wait:
    description: How long to ask again, in seconds. V(0) asks once.
    type: float
    default: 0
  state_file:
    description:
      - File with the gateway's state that the watch on this host keeps. Where it says that the second factor
        is waited for, an unhealthy gateway is no failure, since somebody has to act; RV(state) says so.
    type: path
  second_factor_wait:
    description:
      - How long to ask again while the second factor is waited for, in seconds, in place of O(wait). V(0) asks
        once, so that somebody can be told.
    type: float
    default: 0
"""

EXAMPLES = r"""
- name: Ask the gateway
  pst.platform.ib_gateway_probe:
    port: 4101
    level: session
    trading_mode: paper
    wait: 60
"""

RETURN = r"""
state: {description: V(ready) or V(second_factor_pending)., returned: success, type: str, sample: ready}
server_version: {description: Version of the API that was agreed on., returned: success, type: int, sample: 176}
connection_time: {description: The gateway's clock., returned: success, type: str}
accounts: {description: Accounts of the session., returned: success, type: list, elements: str}
next_order_id: {description: Lowest order id for the client., returned: success with O(level=session), type: int}
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.ib_api import (
    SECOND_FACTOR_PENDING,
    ProbeError,
    Target,
    second_factor_pending,
    wait_healthy,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "required": True},
            "level": {"type": "str", "choices": ["handshake", "session"], "default": "handshake"},
            "client_id": {"type": "int", "default": 999},
            "trading_mode": {"type": "str", "choices": ["paper", "live"]},
            "accounts": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 5},
            "wait": {"type": "float", "default": 0},
            "state_file": {"type": "path"},
            "second_factor_wait": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    options = module.params
    target = Target(
        host=options["host"],
        port=options["port"],
        client_id=options["client_id"] if options["level"] == "session" else None,
        trading_mode=options["trading_mode"],
        accounts=tuple(options["accounts"]),
    )

    def pending() -> bool:
        return second_factor_pending(options["state_file"])

    try:
        health = wait_healthy(
            target, options["timeout"], options["wait"], pending=pending, pending_wait=options["second_factor_wait"]
        )
    except ProbeError as error:
        if pending():
            module.exit_json(changed=False, state=SECOND_FACTOR_PENDING, msg=str(error))
        module.fail_json(msg=f"IB Gateway is not healthy: {error}")
    module.exit_json(changed=False, **asdict(health))


if __name__ == "__main__":
    main()
