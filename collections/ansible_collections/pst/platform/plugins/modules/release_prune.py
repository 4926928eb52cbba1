#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""pst.platform.release_prune; the logic is in module_utils/release_store.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_prune
short_description: Remove old release artefacts from the control node
description:
  - Removes artefacts with their bill of materials and their audit, together, beyond the newest and those in use.
  - In check mode it only lists them.
version_added: 0.1.0
author: The pst platform team
options:
  directory:
    description: Where artefacts are kept.
    type: path
    required: true
  keep:
    description: How many to keep, the newest first (1 or more).
    type: int
    required: true
  in_use:
    description: Versions, or names of folders below C(releases/) of a host, to keep whatever their age.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Remove old artefacts
  pst.platform.release_prune:
    directory: "{{ site_cache_dir }}/releases"
    keep: 10
    in_use: [1.0.0, 1-1-0]
  delegate_to: localhost
  become: false
  run_once: true
"""

RETURN = r"""
removed: {description: The versions that were removed., returned: always, type: list, elements: str, sample: [0.9.0]}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.release_store import artefacts, remove, surplus, version_of


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "keep": {"type": "int", "required": True},
            "in_use": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    directory, keep = Path(module.params["directory"]), module.params["keep"]
    if keep < 1:
        module.fail_json(msg=f"keep: {keep}, wanted: 1 or more")
    before = artefacts(directory)
    surplus_ones = surplus(directory, keep, module.params["in_use"])
    if not module.check_mode:
        for artefact in surplus_ones:
            remove(artefact)
    after = [artefact for artefact in before if artefact not in surplus_ones]
    module.exit_json(
        changed=bool(surplus_ones),
        removed=[version_of(artefact) for artefact in surplus_ones],
        diff={
            "before_header": str(directory),
            "after_header": str(directory),
            "before": "".join(f"{artefact.name}\n" for artefact in before),
            "after": "".join(f"{artefact.name}\n" for artefact in after),
        },
    )


if __name__ == "__main__":
    main()
