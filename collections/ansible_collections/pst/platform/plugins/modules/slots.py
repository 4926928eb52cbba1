#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the slots of a host hold; the logic is in module_utils/release.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slots
short_description: Tell what the slots of a host hold, and which of them trades
description:
  - Reads the links and the manifests below O(root), and the colour in the settings of trading. Changes nothing.
  - What a slot holds is state of the host, made by the deployment playbooks. The inventory says how a new site begins.
version_added: 0.1.0
author: The pst platform team
options:
  root:
    description: The folder that holds C(releases/) and the slots.
    type: path
    default: /srv/pst
  trading_settings:
    description: The settings of trading; absent on a new host.
    type: path
    default: /etc/pst/trading/trading.json
"""

EXAMPLES = r"""
- name: Ask what the slots hold
  pst.platform.slots:
  register: __app_host
"""

RETURN = r"""
slots:
  description: The filled slots by colour, each with C(version), C(content), C(path) and C(whole).
  returned: always
  type: dict
  sample: {blue: {version: 1.0.0, content: 3f2a, path: /srv/pst/releases/1-0-0, whole: true}}
releases: {description: "The complete releases of the host by version, the same way.", returned: always, type: dict}
trading: {description: The colour that trades here; empty on a new host., returned: always, type: str, sample: blue}
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.release import filled_slots, installed


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/srv/pst"},
            "trading_settings": {"type": "path", "default": "/etc/pst/trading/trading.json"},
        },
        supports_check_mode=True,
    )
    root, settings = Path(module.params["root"]), Path(module.params["trading_settings"])
    try:
        trading = json.loads(settings.read_text())["colour"] if settings.exists() else ""
        module.exit_json(changed=False, slots=filled_slots(root), releases=installed(root), trading=trading)
    except (OSError, ValueError, KeyError) as error:
        module.fail_json(msg=f"{root} or {settings} cannot be read: {error!r}")


if __name__ == "__main__":
    main()
