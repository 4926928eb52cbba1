# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The collection's plugins, loaded once for a run."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: preload
type: notification
short_description: Loads the collection's plugins once for a run instead of once for each task and host
description:
  - Ansible forks a process for each task and host. Each compiles the plugins that its parent has not loaded, and one
    filter in a condition makes it look through all filters of the collection. Measured, that was two fifths of the
    control node's time (docs/performance.md).
  - A plugin that does not load here is left to the task that needs it, which says why.
requirements: [enabled in C(callbacks_enabled)]
"""

KINDS = ("action", "filter", "lookup")


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "pst.platform.preload"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook: object) -> None:  # noqa: ARG002
        for kind in KINDS:
            package = importlib.import_module(f"ansible_collections.pst.platform.plugins.{kind}")
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                with contextlib.suppress(ImportError):
                    importlib.import_module(module.name)
