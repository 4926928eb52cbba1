#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host's side of pst.platform.files; the logic is in module_utils/files.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Write all the files of a role, and run its units, in one task
description:
  - Renders templates and reads sources on the control node, and sends one module call to the host.
  - Every file is staged beside its destination; then all O(validate) commands run on the staged files; then all are
    renamed into place, with fsync of file and directory. A failed check leaves every file of the task untouched;
    directories of the task may have been made.
  - A new file without a O(validate) of its own is put in place before the checks, so that a checked file may refer
    to it, and taken back when a check fails.
  - The time of modification changes only when the content does, so M(pst.platform.units) can compare it with the
    start of a service.
  - In check mode owners, groups and directories that do not exist yet are accepted, and the checks run only where
    their program and all the files exist already.
version_added: 0.1.0
author: The pst platform team
options:
  files:
    description:
      - The paths, each with its wanted state. Directories are made first, parents before what is in them; what is
        V(absent) goes last.
    type: list
    elements: dict
    required: true
    suboptions:
      dest:
        description: The absolute path. Its directory must exist, or be a directory entry of the same task.
        type: path
        required: true
      certificate:
        description:
          - For the action plugin only, instead of O(files[].dest). A key of C(pki_certificates) that the role C(pki)
            has issued for this host. The entry stands for the authority's certificate and for C(<name>.crt),
            C(<name>.key) and C(<name>.pem) in C(/etc/pst/pki/<name>), readable by O(files[].group).
        type: str
      state:
        description:
          - What the path is to be. A link is replaced where a file is wanted, and the other way round.
          - V(absent) removes a directory with all it holds.
        type: str
        choices: [file, directory, link, absent]
        default: file
      template:
        description: A template in the role's C(templates/). A file needs this, O(files[].content) or O(files[].src).
        type: str
      content:
        description: The text itself.
        type: str
      src:
        description: A file of the control node, searched in the role's C(files/); text or binary, and small.
        type: str
      secret_content:
        description: For the action plugin only, which sends secrets in this option so that they are never logged.
        type: str
      encoding:
        description: For the action plugin only. How the content travels.
        type: str
        choices: [text, base64]
        default: text
      owner:
        description: The owner, by name or number.
        type: str
        default: root
      group:
        description: The group, by name or number.
        type: str
        default: root
      mode:
        description: The mode as a quoted octal. Required for files and directories.
        type: str
      secret:
        description: The content, and what a checker says about it, never appear in diffs or logs.
        type: bool
        default: false
      validate:
        description: A command with C(%s) where the path of the staged file goes. It runs without a shell.
        type: str
      force:
        description: Where V(false), the file is written only if it is absent, and never touched again.
        type: bool
        default: true
      target:
        description: Where a link points to.
        type: str
      when:
        description: An entry with V(false) is left out.
        type: bool
        default: true
  units:
    description:
      - Units that are brought to their state once all files are in place, with the options and the outcome of
        M(pst.platform.units). One call of a module costs a host a quarter of a second of its processor, so a role whose
        files and units have no step between them says both here.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: See M(pst.platform.units)., type: str, required: true}
      enabled: {description: See M(pst.platform.units)., type: bool, default: true}
      state: {description: See M(pst.platform.units)., type: str, choices: [started, stopped, as_is]}
      masked: {description: See M(pst.platform.units)., type: bool, default: false}
      restart_when_newer: {description: See M(pst.platform.units)., type: list, elements: path, default: []}
      reload_when_newer: {description: See M(pst.platform.units)., type: list, elements: path, default: []}
      on_stale: {description: See M(pst.platform.units)., type: str, choices: [restart, report], default: restart}
"""

EXAMPLES = r"""
- name: Write the configuration
  pst.platform.files:
    files:
      - {certificate: redis, group: redis}
      - dest: /etc/redis/redis.conf
        template: redis.conf.j2
        group: redis
        mode: "0640"
      - dest: /etc/sudoers.d/deploy
        content: "deploy ALL=(ALL) NOPASSWD: ALL\n"
        mode: "0440"
        validate: /usr/sbin/visudo -cf %s
      - {dest: /etc/redis/old.conf, state: absent}
  register: __redis_files
"""

RETURN = r"""
changed_files:
  description: The paths that were changed, or would be in check mode, in the order of the task.
  returned: always
  type: list
  elements: str
  sample: [/etc/redis/redis.conf]
units:
  description: What M(pst.platform.units) returns.
  returned: when O(units) names any
  type: dict
"""

import base64

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils import units
from ansible_collections.pst.platform.plugins.module_utils.files import Entry, FilesError, apply

OPTIONS = {
    "dest": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["file", "directory", "link", "absent"], "default": "file"},
    "content": {"type": "str"},
    "secret_content": {"type": "str", "no_log": True},
    "encoding": {"type": "str", "choices": ["text", "base64"], "default": "text", "no_log": False},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str"},
    "secret": {"type": "bool", "default": False, "no_log": False},
    "validate": {"type": "str"},
    "force": {"type": "bool", "default": True},
    "target": {"type": "str"},
}


def entry_of(option: dict) -> Entry:
    """Return the typed entry of one checked option."""
    raw = option["secret_content"] if option["secret"] else option["content"]
    content = base64.b64decode(raw or "") if option["encoding"] == "base64" else (raw or "").encode()
    return Entry(
        dest=option["dest"],
        state=option["state"],
        owner=option["owner"],
        group=option["group"],
        mode=option["mode"] or "0644",
        content=content,
        secret=option["secret"],
        validate=option["validate"],
        force=option["force"],
        target=option["target"] or "",
    )


class FilesModule(AnsibleModule):
    """The arguments hold whole files: the host's journal gets their names only."""

    def _log_invocation(self) -> None:
        self.log("files: " + " ".join(option["dest"] for option in self.params["files"]))


def main() -> None:
    """Run the module."""
    module = FilesModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": OPTIONS},
            "units": {"type": "list", "elements": "dict", "default": [], "options": units.OPTIONS},
        },
        supports_check_mode=True,
    )
    problems = units.problems_of(module.params["units"])
    if problems:
        module.fail_json(msg="\n".join(problems))
    try:
        outcome = apply([entry_of(option) for option in module.params["files"]], check=module.check_mode)
    except FilesError as error:
        module.fail_json(msg="\n".join(error.problems), problems=error.problems)
    except OSError as error:
        module.fail_json(msg=f"{error.filename or 'files'}: {error.strerror}; run again to go on")
    result = {"changed": bool(outcome.changed_files), "changed_files": outcome.changed_files}
    diff = list(outcome.diff)
    if module.params["units"]:
        try:
            report = units.converge(module.params["units"], check=module.check_mode)
        except units.UnitsError as error:
            module.fail_json(msg=str(error), changed_files=outcome.changed_files)
        result["units"], of_units = report.told()
        result["changed"] = result["changed"] or report.changed
        diff.append(of_units)
    if module._diff:
        result["diff"] = diff
    module.exit_json(**result)


if __name__ == "__main__":
    main()
