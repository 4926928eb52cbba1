# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Collects a support bundle when a playbook that changes a site has failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: support_bundle
type: notification
short_description: Collects a support bundle when a playbook has failed
description:
  - Runs C(support-bundle.yml) of the same folder with the same inventories, for at most five minutes. Its result does
    not change that of the run.
  - Not after a dry run, not after a playbook that changes nothing (those fail to tell what they found), and not where
    only the control node has failed (a wrong inventory).
requirements: [enabled in C(callbacks_enabled)]
options:
  enabled:
    description: Whether it does.
    type: bool
    default: true
    env: [{name: PST_SUPPORT_BUNDLE}]
    ini: [{section: support_bundle, key: enabled}]
"""

READS_ONLY = {
    "validate",
    "status",
    "preflight",
    "journal",
    "logs",
    "trace",
    "support-bundle",
    "lab-down",
    "lab-dr-down",
    "dr-status",
    "notify-test",
}
SECONDS = 300


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "pst.platform.support_bundle"
    CALLBACK_NEEDS_ENABLED = True

    playbook = Path()

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self.playbook = Path(playbook._file_name).absolute()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        failed = sorted({*stats.failures, *stats.dark})
        collect = self.playbook.with_name("support-bundle.yml")
        if (
            not failed
            or set(failed) <= {"localhost"}
            or not wanted(self.playbook, check=bool(context.CLIARGS.get("check")))
        ):
            return
        if not self.get_option("enabled") or not collect.exists():
            return
        inventories = [word for path in context.CLIARGS.get("inventory") or () for word in ("-i", path)]
        reason = f"{self.playbook.name} failed on {', '.join(failed)}"
        command = [sys.argv[0], str(collect), *inventories, "-e", f"support_reason='{reason}'"]
        environment = {**os.environ, "PST_SUPPORT_BUNDLE": "false", "ANSIBLE_STDOUT_CALLBACK": "pst.platform.plain"}
        self._display.display("\nCollecting a support bundle (docs/runbooks/support-bundle.md) ...")
        try:
            done = subprocess.run(  # noqa: S603 (own words)
                command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self._display.warning(f"No support bundle: {error}")
            return
        if done.returncode == 0:
            self._display.display(done.stdout.strip())
        else:
            self._display.warning(f"No support bundle: {(done.stderr or done.stdout).strip()[-500:]}")


def wanted(playbook: Path, *, check: bool) -> bool:
    """Whether this playbook changes a site."""
    return not check and playbook.parent.name == "playbooks" and playbook.stem not in READS_ONLY
