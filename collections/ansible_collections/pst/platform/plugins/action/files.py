# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The control node's side of pst.platform.files: renders, reads, and sends all of it in one module call."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

from ansible_collections.pst.platform.plugins.module_utils import pki
from ansible_collections.pst.platform.plugins.module_utils.files import SOURCES, problems_of

# For templates of files that have braces of their own.
BRACKETS = {"variable_start_string": "[[", "variable_end_string": "]]"}
MANAGED = "Managed by Ansible ({}): a change made here is overwritten."


class ActionModule(ActionBase):
    """Build the content of every entry, then run the module once."""

    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        unknown = sorted(set(self._task.args) - {"files", "units"})
        if unknown:
            raise AnsibleActionFail(f"{', '.join(unknown)}: is not an option of pst.platform.files")
        files = self._task.args.get("files")
        if isinstance(files, list):
            files = [entry for entry in files if not isinstance(entry, dict) or boolean(entry.get("when", True))]
            files = self._with_certificates(files, task_vars or {})
        problems = problems_of(files)
        if problems:
            raise AnsibleActionFail("\n".join(problems))
        sent = [self._sent(entry, task_vars or {}) for entry in files]
        arguments = {"files": sent, "units": self._task.args.get("units", [])}
        result = self._execute_module(module_name="pst.platform.files", module_args=arguments, task_vars=task_vars)
        result.pop("invocation", None)  # whole files, and secrets
        return result

    def _with_certificates(self, files: list[Any], task_vars: dict[str, Any]) -> list[Any]:
        """Put the files of each `certificate` in its place, but for those that the task lists itself."""
        certificates = [entry for entry in files if isinstance(entry, dict) and "certificate" in entry]
        if not certificates:
            return files
        problems = [problem for entry in certificates for problem in pki.entry_problems(entry)]
        if problems:
            raise AnsibleActionFail("\n".join(problems))
        directory = Path(str(self._templar.resolve_variable_expression("site_state_dir")), "pki")
        taken = {entry.get("dest") for entry in files if isinstance(entry, dict)}
        expanded: list[Any] = []
        for entry in files:
            if entry not in certificates:
                expanded.append(entry)
                continue
            try:
                own = pki.host_files(directory, str(task_vars["inventory_hostname"]), entry)
            except pki.PkiError as error:
                if self._task.check_mode:  # a real run issues it first
                    continue
                raise AnsibleActionFail(str(error)) from error
            expanded += [file for file in own if file["dest"] not in taken]
            taken |= {file["dest"] for file in own}
        return expanded

    def _sent(self, entry: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return the entry as the module wants it: with its content instead of a source."""
        sent = {key: value for key, value in entry.items() if key not in (*SOURCES, "brackets", "when")}
        if entry.get("state", "file") != "file":
            return sent
        content = self._content(entry, task_vars)
        if boolean(entry.get("secret", False)):
            return {**sent, "encoding": "base64", "secret_content": base64.b64encode(content).decode()}
        try:
            return {**sent, "encoding": "text", "content": content.decode()}
        except UnicodeDecodeError:
            return {**sent, "encoding": "base64", "content": base64.b64encode(content).decode()}

    def _content(self, entry: dict[str, Any], task_vars: dict[str, Any]) -> bytes:
        if entry.get("content") is not None:
            return str(entry["content"]).encode()
        try:
            if entry.get("src") is not None:
                return Path(self._loader.get_real_file(self._find_needle("files", entry["src"]))).read_bytes()
            return self._rendered(entry, self._find_needle("templates", entry["template"]), task_vars).encode()
        except AnsibleError as error:
            raise AnsibleActionFail(f"{entry['dest']}: {error}") from error

    def _rendered(self, entry: dict[str, Any], path: str, task_vars: dict[str, Any]) -> str:
        """Return the rendered template, as the builtin template action does it."""
        search = [*task_vars.get("ansible_search_path", []), self._loader.get_basedir(), os.path.dirname(path)]
        variables = {
            "ansible_managed": MANAGED.format(entry["template"]),
            **task_vars,
            "template_path": entry["template"],
            "template_destpath": entry["dest"],
        }
        templar = self._templar.copy_with_new_env(
            searchpath=[folder for place in search for folder in (os.path.join(place, "templates"), place)],
            available_variables=variables,
        )
        brackets = boolean(entry.get("brackets", False))
        rendered = templar.template(
            trust_as_template(self._loader.get_text_file_contents(path)),
            escape_backslashes=False,
            overrides={"trim_blocks": True, "lstrip_blocks": False, **(BRACKETS if brackets else {})},
        )
        return "" if rendered is None else str(rendered)
