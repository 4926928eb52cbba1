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
  - Beside it is the bill of materials in CycloneDX 1.6, C(<version>.sbom.cdx.json), whose sha256 the manifest has.
    Where it is lost it is made again from the artefact.
  - And the audit of the lock by C(pip-audit), C(<version>.audit.json), made before the build and again on request.
    "Clean" means that a database knew every package. It takes 60 s at most.
  - Files are read on each run; wheels are downloaded once per lock and Python.
  - In check mode nothing is written, downloaded or audited, and the version is known all the same.
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
  name:
    description: What the release is, for its bill of materials.
    type: str
    default: pysystemtrade
  audit:
    description:
      - C(report) says what is known, C(require) builds no release that is not clean, nor one that no database could
        tell about, C(off) does not ask.
    type: str
    choices: ["off", report, require]
    default: "off"
  audit_again:
    description:
      - Audit also a release that is built already. Else what is recorded of it holds, with O(audit=require) where it is
        clean.
    type: bool
    default: false
  audit_ignore:
    description: Advisories (PYSEC, CVE or GHSA ids) that do not count. The result names them as ignored.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Build the release
  pst.platform.release_build:
    source: "{{ playbook_dir }}/../tests/reference_app"
    version: 1.0.0
    python_versions: ["3.11", "3.13"]
    directory: "{{ site_cache_dir }}/releases"
    cache: "{{ site_cache_dir }}/wheels"
    audit: report
  delegate_to: localhost
  become: false
  run_once: true
  register: __app_build
"""

RETURN = r"""
version: {description: The version., returned: always, type: str, sample: 1.0.0}
content: {description: The sha256 over source, lock and Python versions., returned: always, type: str}
artefact: {description: The path of the artefact., returned: always, type: str}
sbom: {description: The path of its bill of materials., returned: always, type: str}
audit:
  description: The result of the audit and C(line), the same in one line; empty where it was not audited.
  returned: always
  type: dict
  sample: {status: clean, database: pypi, packages: 42, line: clean (42 packages)}
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.release import ReleaseError
from ansible_collections.pst.platform.plugins.module_utils.release_audit import Audit, audit, gate, pip_audit, recorded
from ansible_collections.pst.platform.plugins.module_utils.release_build import (
    Plan,
    Recipe,
    build,
    has_bill,
    is_built,
    plan,
    restore_bill,
)
from ansible_collections.pst.platform.plugins.module_utils.release_store import audit_of, sbom_of


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
            "name": {"type": "str", "default": "pysystemtrade"},
            "audit": {"type": "str", "choices": ["off", "report", "require"], "default": "off"},
            "audit_again": {"type": "bool", "default": False},
            "audit_ignore": {"type": "list", "elements": "str", "default": []},
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
                name=options["name"],
            )
        )
        artefact = planned.artefact(directory)
        built = is_built(planned, directory)
        changed = not built or not has_bill(artefact)
        if module.check_mode:
            found = recorded(audit_of(artefact), planned.content)
        else:
            found = _audit(module, planned, built=built)
            if not built:
                build(planned, directory, Path(options["cache"]))
            elif changed and not restore_bill(planned, artefact):
                changed = False
                module.warn(f"{sbom_of(artefact)}: lost, and what is made now has another sha256 than the manifest's")
    except ReleaseError as error:
        module.fail_json(msg="\n".join(error.problems))
    module.exit_json(
        changed=changed,
        version=planned.version,
        content=planned.content,
        artefact=str(artefact),
        sbom=str(sbom_of(artefact)),
        audit=asdict(found) | {"line": found.line()} if found else {},
    )


def _audit(module: AnsibleModule, planned: Plan, *, built: bool) -> Audit | None:
    """Audit before the build: what is refused is neither downloaded nor stored."""
    options = module.params

    def audit_it() -> Audit:
        pins = [target.pins for target in planned.targets()]
        ask = pip_audit(pins, Path(options["cache"]) / "audit")
        return audit(pins, planned.content, options["audit_ignore"], ask)

    path = audit_of(planned.artefact(Path(options["directory"])))
    due = not built or options["audit_again"]
    return gate(path, planned.content, options["audit"], audit_it, due=due)


if __name__ == "__main__":
    main()
