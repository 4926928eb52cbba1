#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host's side of pst.platform.release_install; the logic is in module_utils/release.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_install
short_description: Install a release artefact on a host
description:
  - Unpacks the artefact to C(<root>/releases/<id>), proves the sha256 of every file against the manifest, and makes a
    virtual environment from the wheels inside. The host needs C(python3) and no network.
  - A release that was interrupted on the way does not count and is made again.
  - The artefact travels only where the release is missing.
  - Removes old releases, but none that a slot (a symbolic link in O(root)) points to, none that O(slot) held before
    (C(<root>/previous/<slot>), for the way back), and none that a process was started from.
version_added: 0.1.0
author: The pst platform team
options:
  artefact:
    description: The artefact on the control node.
    type: path
    required: true
  root:
    description: The folder that holds C(releases/) and the slots.
    type: path
    default: /srv/pst
  keep:
    description: How many releases to keep, the newest first.
    type: int
    default: 3
  slot:
    description: The slot that will hold the release. What it holds until then is linked as C(<root>/previous/<slot>).
    type: str
    default: ""
  version:
    description: For the action plugin only.
    type: str
  manifest_sha256:
    description: For the action plugin only.
    type: str
"""

EXAMPLES = r"""
- name: Install the release
  pst.platform.release_install:
    artefact: "{{ site_cache_dir }}/releases/1.0.0.tar.gz"
    slot: blue
  register: __app_release
"""

RETURN = r"""
version: {description: The version., returned: always, type: str, sample: 1.0.0}
path:
  description: The folder of the release on the host.
  returned: always
  type: str
  sample: /srv/pst/releases/1-0-0
removed: {description: The folders of old releases that were removed., returned: always, type: list, elements: str}
"""

import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.release import (
    ReleaseError,
    install,
    is_installed,
    note_previous,
    outgoing,
    release_id,
    running,
    surplus,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "artefact": {"type": "path"},
            "root": {"type": "path", "default": "/srv/pst"},
            "keep": {"type": "int", "default": 3},
            "slot": {"type": "str", "default": ""},
            "version": {"type": "str", "required": True},
            "manifest_sha256": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    root, identity = Path(options["root"]), release_id(options["version"])
    result = {"version": options["version"], "path": str(root / "releases" / identity)}
    missing = not is_installed(root, options["version"], options["manifest_sha256"])
    os.umask(0o022)
    if missing and not module.check_mode:
        if not options["artefact"]:
            module.exit_json(changed=False, artefact_wanted=True, removed=[], **result)
        try:
            install(Path(options["artefact"]), root)
        except ReleaseError as error:
            module.fail_json(msg="\n".join(error.problems))
    replaced = outgoing(root, options["slot"], identity) if options["slot"] else ""
    if replaced and not module.check_mode:
        note_previous(root, options["slot"], replaced)
    removed = surplus(root, options["keep"], {identity, replaced} | running(root))
    if not module.check_mode:
        for release in removed:
            shutil.rmtree(release)
    changed = missing or bool(replaced or removed)
    module.exit_json(changed=changed, removed=[str(release) for release in removed], **result)


if __name__ == "__main__":
    main()
