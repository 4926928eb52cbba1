# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs the module, and reads the host's clock over the open connection, which the module itself could not compare."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.pst.platform.plugins.module_utils.host_check import Problem, clock_problem

READINGS = 4


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        result = self._execute_module(task_vars=task_vars)
        if result.get("failed"):
            return result
        limit = float(self._task.args.get("clock_limit", 0.5))
        if samples := [sample for _ in range(READINGS) if (sample := self._read_clock())]:
            clock = clock_problem(samples, limit)
        else:
            clock = Problem("clock", "cannot be read", "the output of date +%s.%N")
        result["problems"] += [dataclasses.asdict(clock)] if clock else []
        return result

    def _read_clock(self) -> tuple[float, float, float] | None:
        before = time.time()
        answer = self._low_level_execute_command("date +%s.%N", sudoable=False)
        after = time.time()
        try:
            return before, float(answer["stdout"]), after
        except ValueError:
            return None
