# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The control node's side of pst.platform.release_install: sends the artefact only to a host that lacks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.pst.platform.plugins.module_utils.release import ReleaseError, read_manifest, release_id
from ansible_collections.pst.platform.plugins.module_utils.release_store import artefacts, version_of

MODULE = "pst.platform.release_install"


class ActionModule(ActionBase):
    """Ask the host first, then send."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args = dict(self._task.args)
        unknown = sorted(set(args) - {"artefact", "root", "keep", "slot"})
        if unknown or not args.get("artefact"):
            raise AnsibleActionFail(
                f"unknown options: {unknown}; wanted: artefact, and root, keep and slot where needed"
            )
        artefact = Path(args.pop("artefact"))
        if self._task.check_mode and not artefact.exists():
            root, version = args.get("root", "/srv/pst"), artefact.name.removesuffix(".tar.gz")
            path = f"{root}/releases/{release_id(version)}"
            return {"changed": True, "version": version, "path": path, "removed": [], "msg": "would be built first"}
        if not artefact.exists():
            stored = ", ".join(map(version_of, artefacts(artefact.parent))) or "none"
            raise AnsibleActionFail(f"{artefact} does not exist; versions in that folder: {stored}")
        try:
            manifest, manifest_sha256 = read_manifest(artefact)
        except ReleaseError as error:
            raise AnsibleActionFail("\n".join(error.problems)) from error
        args |= {"version": manifest.version, "manifest_sha256": manifest_sha256}
        result = self._execute_module(module_name=MODULE, module_args=args, task_vars=task_vars)
        if not result.pop("artefact_wanted", False):
            return result
        folder = self._make_tmp_path()
        try:
            remote = self._connection._shell.join_path(folder, "release.tar.gz")
            self._transfer_file(str(artefact), remote)
            self._fixup_perms2((folder, remote))
            return self._execute_module(
                module_name=MODULE, module_args={**args, "artefact": remote}, task_vars=task_vars
            )
        finally:
            self._remove_tmp_path(folder)
