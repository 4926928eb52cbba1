# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prints what tasks themselves print, and failures; no banners. For `status.yml` in a pipe or a Makefile."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = r"""
name: plain
type: stdout
short_description: Only what tasks print, and failures
description:
  - Leaves out banners, recap, and tasks that succeed. Take it with C(ANSIBLE_STDOUT_CALLBACK=pst.platform.plain).
extends_documentation_fragment: [default_callback]
"""


class CallbackModule(Default):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "pst.platform.plain"

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            self._display.error(f"{result.host.get_name()}: {result.result.get('msg', 'failed')}", wrap_text=False)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Told in the table of hosts by the play that ignores it."""

    def quiet(self, *_args: Any, **_kwargs: Any) -> None:
        """Says nothing."""

    v2_playbook_on_start = v2_playbook_on_play_start = v2_playbook_on_task_start = quiet
    v2_playbook_on_handler_task_start = v2_playbook_on_cleanup_task_start = v2_playbook_on_include = quiet
    v2_playbook_on_no_hosts_matched = v2_playbook_on_stats = quiet
    v2_runner_on_ok = v2_runner_on_skipped = v2_runner_on_start = v2_on_file_diff = quiet
    v2_runner_item_on_ok = v2_runner_item_on_skipped = v2_runner_retry = quiet
