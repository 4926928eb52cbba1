#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# The action plugin of the same name does the work, on the control node.

DOCUMENTATION = r"""
module: validate_inventory
short_description: Check an inventory before any host is contacted
description:
  - Reads every host's variables of all the inventories given and reports all that is wrong at once, each with the
    inventory key, the value seen, the value wanted and, where known, the file and line.
  - Runs on the control node alone. Contacts no host and changes nothing, except that reading a secret of the backend
    C(generated) makes it.
  - Values of options with C(no_log) are never shown.
options:
  site_variables:
    description: File with the argument specs C(site) and C(host), the variables that all roles share.
    type: path
    required: true
  roles:
    description: Folder with the roles, whose C(meta/argument_specs.yml) say which variables there are.
    type: path
    required: true
author: The pst platform team
"""

EXAMPLES = r"""
- name: Check the inventory
  pst.platform.validate_inventory:
    site_variables: "{{ playbook_dir }}/site_variables.yml"
    roles: "{{ playbook_dir }}/../roles"
"""

RETURN = r"""
hosts:
  description: Number of hosts checked.
  returned: success
  type: int
"""
