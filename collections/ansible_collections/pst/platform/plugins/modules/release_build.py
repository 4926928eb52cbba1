#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""pst.platform.release_build; the logic is in module_utils/release_build.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_build
short_description: Build a release artefact on the control node
description:
  - Packs a source tree, the wheels of its hash-locked requirements for each Python, and a manifest with the sha256 of
    every file into C(<directory>/<version>.tar.gz), whole or not at all.
  - The same version with the same content is not built again. The same version with another content is refused.
  - Files are read on each run; wheels are downloaded once per lock and Python.
  - In check mode nothing is written or downloaded, and the version is known all the same.
version_added: 0.1.0
author: The pst platform team
options:
  source:
    description: The source tree. Its files become C(source/) of the release.
    type: path
    required: true
  version:
    description: The version. Where empty it is C(0.0.0+) and the start of the content's sha256, for development.
    type: str
    default: ""
  requirements:
    description:
      - The lock, in pip's format with hashes. It must lock C(pip), which hosts install with.
      - A path below O(source), or an absolute one for a lock that does not come with the source.
    type: str
    default: requirements.txt
  python_versions:
    description: The Python versions (X.Y) of the hosts.
    type: list
    elements: str
    required: true
  architecture:
    description: The machine type of the hosts.
    type: str
    default: x86_64
  exclude:
    description: Names of files and folders that are left out, with wildcards.
    type: list
    elements: str
    default: []
  directory:
    description: Where artefacts are kept.
    type: path
    required: true
  cache:
    description: Where wheels are kept.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Build the release
  pst.platform.release_build:
    source: "{{ playbook_dir }}/../tests/reference_app"
    version: 1.0.0
    python_versions: ["3.11", "3.13"]
    directory: "{{ site_cache_dir }}/releases"
    cache: "{{ site_cache_dir }}/wheels"
  delegate_to: localhost
  become: false
  run_once: true
  register: __app_build
"""

RETURN = r"""
version: {description: The version., returned: always, type: str, sample: 1.0.0}
content: {description: The sha256 over source, lock and Python versions., returned: always, type: str}
artefact: {description: The path of the artefact., returned: always, type: str}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.release import ReleaseError
from ansible_collections.pst.platform.plugins.module_utils.release_build import Recipe, build, is_built, plan


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "version": {"type": "str", "default": ""},
            "requirements": {"type": "str", "default": "requirements.txt"},
            "python_versions": {"type": "list", "elements": "str", "required": True},
            "architecture": {"type": "str", "default": "x86_64"},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "directory": {"type": "path", "required": True},
            "cache": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    directory = Path(options["directory"])
    try:
        planned = plan(
            Recipe(
                source=Path(options["source"]),
                version=options["version"],
                requirements=options["requirements"],
                python_versions=options["python_versions"],
                architecture=options["architecture"],
                exclude=options["exclude"],
            )
        )
        changed = not is_built(planned, directory)
        if changed and not module.check_mode:
            build(planned, directory, Path(options["cache"]))
    except ReleaseError as error:
        module.fail_json(msg="\n".join(error.problems))
    module.exit_json(
        changed=changed,
        version=planned.version,
        content=planned.content,
        artefact=str(planned.artefact(directory)),
    )


if __name__ == "__main__":
    main()
