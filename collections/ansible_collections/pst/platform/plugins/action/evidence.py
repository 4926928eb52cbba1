# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Begins and ends the evidence of a planned operation, and notes what happens meanwhile, all on the control node."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

from ansible_collections.pst.platform.plugins.module_utils import evidence
from ansible_collections.pst.platform.plugins.module_utils.evidence_probe import EvidenceError, Run, Settings

# What a task that only notes an event need not say.
OF_THE_SITE = {
    "enabled": "{{ evidence_enabled | default(false) }}",
    "directory": "{{ evidence_directory | default(playbook_dir.removesuffix('/parts') ~ '/../reports') }}",
    "site": "{{ site_name }}",
    "host": "{{ inventory_hostname }}",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "state": {"type": "str", "choices": ["begun", "event", "ended"], "required": True},
    **{name: {"type": "str"} for name in OF_THE_SITE},
    "what": {"type": "str"},
    "operation": {"type": "str"},
    "url": {"type": "str"},
    "post_url": {"type": "str", "default": ""},
    "address": {"type": "str", "default": ""},
    "ca_file": {"type": "str", "default": ""},
    "token": {"type": "str", "default": "", "no_log": True},
    "rate": {"type": "float", "default": 20.0},
    "post_share": {"type": "float", "default": 0.2},
    "new_share": {"type": "float", "default": 0.5},
    "max_seconds": {"type": "int", "default": 3600},
    "probe": {"type": "str"},
    "first": {"type": "int", "default": 50},
    "first_seconds": {"type": "float", "default": 30.0},
    "require": {"type": "dict"},
}
WANTED = {"begun": ("operation", "url", "probe"), "event": ("what",), "ended": ()}
NAME = "[A-Za-z0-9][A-Za-z0-9_.-]*"


class ActionModule(ActionBase):
    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        if not boolean(self._of_the_site("enabled")):
            return {"changed": False, "skipped": True, "skip_reason": "evidence_enabled is false"}
        self._task.args |= {name: self._of_the_site(name) for name in OF_THE_SITE}
        _, args = self.validate_argument_spec(OPTIONS)
        problems = [*self._problems(args)]
        if problems:
            raise AnsibleActionFail("\n".join(problems))
        if self._task.check_mode:
            return {"changed": False, "msg": f"check mode: no evidence is {args['state']}"}
        run = Run(Path(args["directory"]), args["site"])
        try:
            return {"begun": self._begin, "event": self._event, "ended": self._end}[args["state"]](run, args)
        except EvidenceError as error:
            raise AnsibleActionFail(f"evidence: {error}") from error

    def _of_the_site(self, name: str) -> Any:
        given = self._task.args.get(name)
        return self._templar.template(trust_as_template(OF_THE_SITE[name])) if given is None else given

    def _problems(self, args: dict[str, Any]) -> list[str]:
        """Return all that is wrong with the options, before anything is started."""
        missing = [name for name in WANTED[args["state"]] if not args[name]]
        problems = [f"{name}: seen nothing; wanted with state={args['state']}" for name in missing]
        if args["state"] == "event":
            return problems
        names = {"site_name": args["site"], "evidence_operation": args["operation"]}
        for key, value in names.items():
            if value and not re.fullmatch(NAME, value):
                problems.append(f"{key}: seen {value!r}; wanted a name for a file: {NAME}")
        if not 0 < args["rate"] <= 2000:
            problems.append(f"evidence_rate: seen {args['rate']:g}; wanted more than 0, and 2000 at most")
        problems += [
            f"evidence_{name}: seen {args[name]:g}; wanted 0 to 1"
            for name in ("post_share", "new_share")
            if not 0 <= args[name] <= 1
        ]
        if not 0 < args["max_seconds"] <= 14400:
            problems.append(f"evidence_max_seconds: seen {args['max_seconds']}; wanted 1 to 14400")
        return problems + list(evidence.bar_problems(evidence.BARS if args["require"] is None else args["require"]))

    def _begin(self, run: Run, args: dict[str, Any]) -> dict[str, Any]:
        if run.exists:
            self._reap(run, args)
        settings = Settings(**{name: args[name] for name in Settings.__dataclass_fields__ if name != "run"})
        settings = run.begin(settings, args["token"], Path(args["probe"]), args["first"], args["first_seconds"])
        return {"changed": False, "run": settings.run, "folder": str(run.folder)}

    def _reap(self, run: Run, args: dict[str, Any]) -> None:
        """End what a killed playbook has left running, and keep what it saw."""
        try:
            account = run.stop()
            ended = account["started"] + account["duration_s"]
            report = self._report(run, account, {}, ended) | {"outcome": "abandoned"}
            self._display.warning(
                f"A run without an end was found: {evidence.summary(report)}; {self._keep(report, args)}"
            )
        except (EvidenceError, OSError, ValueError, KeyError, TypeError) as error:
            self._display.warning(
                f"A run without an end was found in {run.folder}, and nothing is known of it: {error}"
            )

    def _event(self, run: Run, args: dict[str, Any]) -> dict[str, Any]:
        return {"changed": False, "noted": run.note(args["what"], args["host"])}

    def _end(self, run: Run, args: dict[str, Any]) -> dict[str, Any]:
        if not run.exists:
            raise EvidenceError(f"seen no run in {run.folder}; wanted one that `begin` has started")
        ended = time.time()
        account = run.stop()
        bars = evidence.BARS if args["require"] is None else args["require"]
        report = self._report(run, account, bars, ended)
        page = self._keep(report, args)
        run.clear()
        self._display.display(f"{evidence.summary(report)}; {page}", color="red" if report["problems"] else None)
        told = {name: report[name] for name in (*evidence.KNOWN_BARS, "operation", "run", "requests", "outcome")}
        result = {"changed": False, "report": str(Path(page).with_suffix(".json")), "evidence": told}
        if report["problems"]:
            return result | {"failed": True, "msg": "\n".join([*report["problems"], f"See {page}"])}
        return result

    def _report(self, run: Run, account: dict[str, Any], bars: Any, ended: float) -> evidence.Report:
        asked = {name: getattr(run.settings, name) for name in ("run", "operation", "site", "rate")}
        return evidence.build(asked, account, run.events(), run.posts(), bars, ended)

    def _keep(self, report: evidence.Report, args: dict[str, Any]) -> str:
        """Write the report and its page; return the page's path."""
        folder = Path(args["directory"]).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{evidence.file_name(report)}.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        page = path.with_suffix(".html")
        page.write_text(evidence.page(report), encoding="utf-8")
        return str(page)
