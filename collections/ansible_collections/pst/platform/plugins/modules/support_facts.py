#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: support_facts
short_description: Read what support needs to know of a host
description:
  - Runs commands that read (units, journal, disks, network, firewall, clock) and reads configuration files, no keys
    and no credentials.
  - What looks like a secret is taken out on the host. All of it is bounded, and returned compressed.
author: The pst platform team
"""

EXAMPLES = r"""
- name: Read what support needs
  pst.platform.support_facts:
  register: __support
"""

RETURN = r"""
blob:
  description: The texts by name, as JSON, compressed, in base64.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.support import gather, packed


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, blob=packed(gather()))


if __name__ == "__main__":
    main()
