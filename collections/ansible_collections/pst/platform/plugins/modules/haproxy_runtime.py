#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: change a running HAProxy on one command line, keep it on disk, and prove that traffic has left."""

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_runtime
short_description: Switch maps and servers of a running HAProxy, and prove that a server is drained
description:
  - Sets entries of maps, and state and weight of servers, through HAProxy's admin socket. All changes of a call go out
    on one command line, servers that are opened first, then maps, then servers that are closed.
  - What was set is read back. Where HAProxy refused a part, or does not have it, the old values are put back and the
    module fails.
  - Then it is kept on disk, so that a reload has it too. A disk that disagrees with what is wanted is a change.
  - Without changes it only reads. In check mode it only reads and says what would change.
  - Runs on the balancer as a user that may write to the socket and the files. One call at a time on a host.
version_added: 0.1.0
options:
  socket:
    description: HAProxy's admin socket (level admin).
    type: path
    default: /run/haproxy/admin.sock
  master_socket:
    description:
      - Socket of HAProxy's master process. With it O(drained) also sees the sessions of workers that a reload has
        replaced. Where there is no such file, they are not seen, and a reload during the wait is an error.
    type: path
    default: /run/haproxy/master.sock
  state_file:
    description: File of the servers' state that HAProxy reads when it starts; written where O(servers) needs it.
    type: path
    default: /var/lib/haproxy/server-state
  maps:
    description: Maps that are to have certain entries, and are returned. Other entries and comments stay.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The map's file, as haproxy.cfg names it.
        type: path
        required: true
      entries:
        description:
          - Keys and their values. Strings or whole numbers without blanks, line ends, quotes, C(;), C(\\) or C(<); none
            starts with C(#). Empty only reads.
        type: dict
        default: {}
  servers:
    description: Servers that are to have a certain state or weight.
    type: list
    elements: dict
    default: []
    suboptions:
      backend:
        description: The backend's name.
        type: str
        required: true
      name:
        description: The server's name.
        type: str
        required: true
      state:
        description: C(ready) ends both C(drain) (no new session but persistent ones) and C(maint) (none, no checks).
        type: str
        choices: [ready, drain, maint]
      weight:
        description:
          - 0 to 256, or a percentage of the initial weight in haproxy.cfg, rounded down. A percentage above 0 that
            comes to 0 is refused, as it would take the server out (50% of the initial weight 1, HAProxy's default).
          - Needs an algorithm with dynamic weights (roundrobin, leastconn, or C(hash-type consistent)).
        type: str
  drained:
    description:
      - After the change, wait for the proof that traffic has left these servers, no session (C(scur) and C(qcur) 0)
        and no new one (C(stot) unchanged). Asked every 50 ms. Not awaited in check mode.
    type: dict
    suboptions:
      servers:
        description: The servers.
        type: list
        elements: dict
        required: true
        suboptions:
          backend:
            description: The backend's name.
            type: str
            required: true
          name:
            description: The server's name.
            type: str
            required: true
      quiet_seconds:
        description: For how many seconds it has to stay so (0 or more, less than RV(ignore:timeout_seconds)).
        type: float
        default: 0.5
      timeout_seconds:
        description: After how many seconds to fail, with the figures seen. The change stays.
        type: int
        default: 30
  backends:
    description: Return only the servers of these backends; all where empty.
    type: list
    elements: str
    default: []
author: The pst platform team
"""

EXAMPLES = r"""
- name: Switch to green
  pst.platform.haproxy_runtime:
    maps:
      - path: /etc/haproxy/maps/active.map
        entries: {active: be_green}
    drained:
      servers: [{backend: be_blue, name: app1}, {backend: be_blue, name: app2}]
      timeout_seconds: 60

- name: Take a server out and see its traffic leave
  pst.platform.haproxy_runtime:
    servers: [{backend: be_green, name: app1, state: drain}]
    drained: {servers: [{backend: be_green, name: app1}]}

- name: Read the counters
  pst.platform.haproxy_runtime:
    maps: [{path: /etc/haproxy/maps/active.map}]
    backends: [be_blue, be_green]
  register: __balancer
"""

RETURN = r"""
maps:
  description: The live entries of the maps named, by path (in check mode, as they are now).
  returned: success
  type: dict
servers:
  description:
    - The servers, each with C(backend), C(name), C(state) (what was set; ready, drain or maint), C(weight),
      C(initial_weight), C(status) and C(check_status) (what HAProxy makes of it), and HAProxy's figures C(scur),
      C(qcur), C(stot), C(econ), C(eresp), C(wretr), C(wredis), C(hrsp_1xx) to C(hrsp_5xx), C(hrsp_other),
      C(rtime) and C(qtime) (averages in ms over the last 1024 requests).
    - Counters begin at zero with each reload. Answers that HAProxy made itself are in no C(hrsp_) of a server, but in
      C(econ) or C(eresp).
  returned: success
  type: list
  elements: dict
pid:
  description: The process that answered. Another one has counters of its own.
  returned: success
  type: int
switch_ms:
  description: Milliseconds that the one command line took; null where none was sent.
  returned: success
  type: float
drained_seconds:
  description: Seconds from the change to the proof, O(drained.quiet_seconds) included; null where none was asked for.
  returned: success
  type: float
"""

import os
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils import haproxy


def main() -> None:
    """Run the module."""
    named = {"backend": {"type": "str", "required": True}, "name": {"type": "str", "required": True}}
    change = {"state": {"type": "str", "choices": list(haproxy.STATES)}, "weight": {"type": "str"}}
    entry = {"path": {"type": "path", "required": True}, "entries": {"type": "dict", "default": {}, "no_log": False}}
    drained = {
        "servers": {"type": "list", "elements": "dict", "required": True, "options": named},
        "quiet_seconds": {"type": "float", "default": 0.5},
        "timeout_seconds": {"type": "int", "default": 30},
    }
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "master_socket": {"type": "path", "default": "/run/haproxy/master.sock"},
            "state_file": {"type": "path", "default": "/var/lib/haproxy/server-state"},
            "maps": {"type": "list", "elements": "dict", "default": [], "options": entry},
            "servers": {"type": "list", "elements": "dict", "default": [], "options": {**named, **change}},
            "drained": {"type": "dict", "options": drained},
            "backends": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    p = module.params
    master = haproxy.AdminSocket(p["master_socket"], master=True) if os.path.exists(p["master_socket"]) else None
    try:
        request = haproxy.Request.of(p)
        result = haproxy.apply(
            request, haproxy.AdminSocket(p["socket"]), p["state_file"], master=master, check=module.check_mode
        )
    except haproxy.HAProxyError as error:
        module.fail_json(msg=str(error))
    values = asdict(result)
    module.exit_json(**values, diff={"before": values.pop("before"), "after": values.pop("after")})


if __name__ == "__main__":
    main()
