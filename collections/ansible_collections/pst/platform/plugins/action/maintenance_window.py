# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hands the inventory's windows to `maintenance`, where the rules are, and refuses, lets through or reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from ansible.plugins.action import ActionBase

from ansible_collections.pst.platform.plugins.module_utils import maintenance


class ActionModule(ActionBase):
    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "zone": {"type": "str", "required": True},
                "windows": {
                    "type": "list",
                    "elements": "dict",
                    "required": True,
                    "options": {
                        "days": {"type": "list", "elements": "str", "required": True},
                        "start": {"type": "str", "required": True},
                        "end": {"type": "str", "required": True},
                        "zone": {"type": "str"},
                    },
                },
                "calendars": {"type": "list", "elements": "str", "default": []},
                "processes": {"type": "list", "elements": "dict", "default": []},
                "open_orders": {"type": "int", "default": 0},
                "minimum_minutes": {"type": "int", "default": 0},
                "override": {"type": "str", "default": ""},
                "now": {"type": "str"},
            }
        )
        zone, override = arguments["zone"], arguments["override"].strip()
        verdict = judged(arguments)
        if wrong := [str(finding) for finding in maintenance.override_findings(override)]:
            verdict = dataclasses.replace(verdict, allowed=False, reasons=[*verdict.reasons, *wrong])
        overridden = bool(override) and not wrong and not verdict.allowed
        text = maintenance.message(verdict, override if overridden else "", zone)
        refused = not (verdict.allowed or overridden)
        if refused and self._task.check_mode:
            text = f"Without --check: {text}"
        if overridden or (refused and self._task.check_mode):
            self._display.warning(text)
        return {
            "changed": False,
            "failed": refused and not self._task.check_mode,
            "msg": text,
            "allowed": verdict.allowed,
            "overridden": overridden,
            "override": override,
            "reasons": verdict.reasons,
            "next_allowed": iso(verdict.next_allowed, zone),
            "until": iso(verdict.until, zone),
        }


def judged(arguments: Mapping[str, Any]) -> maintenance.Verdict:
    """The verdict; what cannot be judged is not allowed, which an override can still set aside."""
    keys = ("zone", "windows", "calendars", "processes", "open_orders", "minimum_minutes")
    try:
        return maintenance.judge(maintenance.parsed_now(arguments["now"]), **{key: arguments[key] for key in keys})
    except maintenance.MaintenanceError as error:
        return maintenance.Verdict(allowed=False, reasons=[str(finding) for finding in error.findings])


def iso(instant: datetime | None, zone: str) -> str | None:
    return instant.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") if instant else None
