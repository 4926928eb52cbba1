# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.pst.platform.plugins.module_utils.table import joined, render

COLOURS = {True: "green", False: "red"}


class ActionModule(ActionBase):
    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "columns": {"type": "list", "elements": "str", "required": True},
                "rows": {"type": "list", "elements": "dict", "required": True},
                "format": {"type": "str", "choices": ["table", "json"], "default": "table"},
                "failure": {"type": "str", "default": "rows are not well"},
                "join": {"type": "str", "default": ""},
                "heading": {"type": "bool", "default": True},
            }
        )
        rows = arguments["rows"]
        bad = [row for row in rows if row.get("ok") is False]
        if arguments["format"] == "json":
            self._display.display(json.dumps(rows, default=str))
        elif rows:
            if arguments["join"]:
                rows = joined(arguments["columns"], arguments["join"], rows)
            heading, *lines = render(arguments["columns"], rows)
            if arguments["heading"]:
                self._display.display(heading)
            for row, line in zip(rows, lines, strict=True):
                self._display.display(line, color=COLOURS.get(row.get("ok")))
        if bad:
            return {"failed": True, "msg": f"{len(bad)} {arguments['failure']}", "failed_rows": len(bad)}
        return {"changed": False, "failed_rows": 0}
