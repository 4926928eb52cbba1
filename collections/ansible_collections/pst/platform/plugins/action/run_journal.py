# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The control node's side of pst.platform.run_journal: says who runs it, and keeps the journal as files as well."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.pst.platform.plugins.module_utils.run_journal import append_line, new_run_id


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        reports = args.pop("reports", None) or os.path.join(variables.get("playbook_dir", "."), "..", "reports")
        args = {**args, "by": args.get("by") or os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name}
        args |= {"from": os.uname().nodename, "pid": os.getppid()}  # this is a worker of ansible-playbook
        if args.get("state") == "begin":
            args["run"] = args.get("run") or new_run_id()
        result = self._execute_module(module_args=args, task_vars=variables)
        if result.get("failed") and (hint := self._hint(result.get("holder") or {})):
            result["msg"] += hint
        if args.get("state") != "read" and args.get("run") and not self._task.check_mode:
            try:
                append_line(Path(reports) / "journal", args, result)
            except OSError as error:  # MongoDB has it: no reason to stop half way
                result["warnings"] = [*result.get("warnings", ()), f"no line for run {args['run']}: {error}"]
        return result

    def _hint(self, holder: dict[str, Any]) -> str:
        """What this control node knows of the process that holds the lock."""
        if holder.get("from") != os.uname().nodename or not holder.get("pid"):
            return ""
        alive = Path(f"/proc/{holder['pid']}").exists()
        return f". On this control node process {holder['pid']} {'is alive' if alive else 'does not exist any more'}"
