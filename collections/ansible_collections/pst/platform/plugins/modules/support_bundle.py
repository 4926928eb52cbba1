#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# The action plugin of the same name does the work, on the control node.

DOCUMENTATION = r"""
module: support_bundle
short_description: Write one file for support, without secrets
description:
  - Puts together what M(pst.platform.support_facts) has returned on each host, the states of services, and the newest
    reports and journals of the control node.
  - Every secret that the inventory's roles know (options with C(no_log)), every generated one, and every private key of
    the site is taken out wherever it is; where one is left, no file is written.
options:
  path:
    description: The file, C(.tar.gz). Readable by its owner only.
    type: path
    required: true
  hosts:
    description: >-
      The hosts, on which the results of M(pst.platform.support_facts) and M(pst.platform.host_status) are registered as
      C(__support) and C(__support_status).
    type: list
    elements: str
    required: true
  roles:
    description: Folder of the roles, whose argument specs say which options are secret.
    type: path
    required: true
  state_dirs:
    description: Folders with generated secrets and private keys, C(site_state_dir) of each site.
    type: list
    elements: path
    default: []
  reports:
    description: Folders on the control node whose newest files go in.
    type: list
    elements: path
    default: []
  max_mb:
    description: Size of the file in MB (1 to 1000); texts are cut shorter until it fits.
    type: int
    default: 20
  reason:
    description: Why it was made; in its manifest.
    type: str
    default: ""
author: The pst platform team
"""

EXAMPLES = r"""
- name: Write the bundle
  pst.platform.support_bundle:
    path: reports/support.tar.gz
    hosts: "{{ ansible_play_hosts_all }}"
    roles: "{{ playbook_dir }}/../roles"
"""

RETURN = r"""
size:
  description: Bytes of the file.
  returned: success
  type: int
"""
