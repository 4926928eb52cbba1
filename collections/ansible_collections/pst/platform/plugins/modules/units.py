#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""pst.platform.units; the logic is in module_utils/units.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: Bring systemd units to their state, and say which of them run on old settings
description:
  - A unit is stale when one of O(units[].restart_when_newer), or one of its own files, was modified after its main
    process started (after it became active, where it has none). That is read from the host, so nothing is lost when a
    run is killed between writing a file and restarting.
  - Runs C(systemctl daemon-reload) first where systemd asks for it, or does not know a unit.
  - A unit that has to start and does not, within O(timeout), fails the task with the last lines of its journal.
  - In check mode predicts, and accepts units that do not exist yet.
version_added: 0.1.0
author: The pst platform team
options:
  units:
    description: The units, each with its wanted state.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The full name of one unit, such as V(mongod.service).
        type: str
        required: true
      enabled:
        description: Whether it starts at boot. Units without an [Install] section are left as they are.
        type: bool
        default: true
      state:
        description:
          - Whether it runs now. V(started) by default, V(stopped) where O(units[].masked).
          - V(as_is) for a unit that another service starts and stops. RV(stale) tells of it all the same.
          - A C(oneshot) without C(RemainAfterExit) counts as started once it has succeeded since boot.
        type: str
        choices: [started, stopped, as_is]
      masked:
        description: Whether it is masked, so that nothing can start it. Also works before its package is installed.
        type: bool
        default: false
      restart_when_newer:
        description:
          - Files whose change needs a restart. A link counts with its own time and its target's, a directory with the
            time when something in it was made, renamed or removed.
        type: list
        elements: path
        default: []
      reload_when_newer:
        description:
          - Files whose change needs C(systemctl reload) only. What a reload has covered is kept in C(/run/pst-units).
        type: list
        elements: path
        default: []
      on_stale:
        description: V(restart) a stale unit at once, or only V(report) it in RV(stale) (members of a cluster).
        type: str
        choices: [restart, report]
        default: restart
  timeout:
    description: How long one step (start, restart, reload, stop) of all units together may take, in seconds.
    type: int
    default: 90
"""

EXAMPLES = r"""
- name: Run the service
  pst.platform.units:
    units:
      - name: mongod.service
        restart_when_newer: [/etc/mongod.conf]
        reload_when_newer: [/etc/pst/pki/mongodb/mongodb.pem]
        on_stale: report
      - {name: mongod-backup.timer}
      - {name: apt-daily.timer, masked: true}
  register: __mongodb_units
"""

RETURN = r"""
stale:
  description: Units that run on old settings and were not restarted.
  returned: always
  type: list
  elements: str
left_out:
  description:
    - Units that were to start and that systemd left out, because their own conditions do not hold on this host. That
      is no failure; a role for which it is one asserts that its unit is not listed.
  returned: always
  type: list
  elements: str
started: {description: Units that were started., returned: always, type: list, elements: str}
stopped: {description: Units that were stopped., returned: always, type: list, elements: str}
restarted: {description: Units that were restarted., returned: always, type: list, elements: str}
reloaded: {description: Units that were reloaded., returned: always, type: list, elements: str}
enabled: {description: Units that were enabled., returned: always, type: list, elements: str}
disabled: {description: Units that were disabled., returned: always, type: list, elements: str}
masked: {description: Units that were masked., returned: always, type: list, elements: str}
unmasked: {description: Units that were unmasked., returned: always, type: list, elements: str}
daemon_reloaded: {description: Whether systemd had to read changed unit files again., returned: always, type: bool}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.units import OPTIONS, UnitsError, converge, problems_of


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "required": True, "options": OPTIONS},
            "timeout": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    problems = problems_of(module.params["units"])
    if problems:
        module.fail_json(msg="\n".join(problems))
    try:
        report = converge(module.params["units"], check=module.check_mode, timeout=module.params["timeout"])
    except UnitsError as error:
        module.fail_json(msg=str(error))
    result, diff = report.told()
    module.exit_json(changed=report.changed, diff=diff, **result)


if __name__ == "__main__":
    main()
