# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The log of each run of a playbook, on the site's log servers beside those of its hosts."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

from ansible_collections.pst.platform.plugins.module_utils import trace
from ansible_collections.pst.platform.plugins.module_utils.relp import Server
from ansible_collections.pst.platform.plugins.module_utils.run_log import RunLog, Tally, Target, deliver

DOCUMENTATION = r"""
name: run_log
type: notification
short_description: Sends the log of a run to the site's log servers
description:
  - Notes plays, tasks with what became of them on how many hosts, and every change and failure with its host and
    message. Arguments of tasks and values of extra variables are not noted.
  - The lines at the end of a task, of a play and of the run are spans of one trace, which is that of C(TRACEPARENT) in
    the environment where it is set (docs/tracing.md).
  - At the end it is sent as the hosts send theirs, with the certificate C(control) of the site. Where no server takes
    it, it waits in C(run-logs) of C(site_state_dir) for the next run.
  - A site's variables switch it off (C(logs_playbooks=false)).
requirements: [enabled in C(callbacks_enabled)]
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "pst.platform.run_log"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.playbook = ""
        self.logs: list[RunLog] | None = None
        self.tally: Tally | None = None
        self.trace: trace.Part | None = None
        self.play: trace.Part | None = None
        self.journal = ""

    # --- What Ansible tells

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self.playbook = os.path.basename(playbook._file_name)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        if self.logs is None:
            self._begin(play)
        self._end_play()
        name = play.get_name().strip()
        self._add("info", f"play: {name}", play=name)
        self.play = self.trace.part(f"play: {name}") if self.trace else None

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002
        self._flush()
        name = task.get_name().strip()
        self.tally = Tally(name, self.play.part(name)) if self.play else None

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, is_conditional=False)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:  # noqa: ARG002
        if self.tally:
            self.tally.span.begin(host.get_name())

    def v2_runner_on_ok(self, result: Any) -> None:
        changed = bool(result.result.get("changed"))
        self._count("changed" if changed else "ok", result)
        if result.task.action == "pst.platform.run_journal":
            self.journal = result.result.get("run") or self.journal
        if changed:
            self._about(result, "notice", "changed")

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._count("skipped", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._count("failed", result)
        self._about(result, "warning" if ignore_errors else "error", "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._count("unreachable", result)
        self._about(result, "error", "unreachable")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._end_play()
        if not self.logs or not self.trace:
            return
        hosts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        bad = sorted(host for host, seen in hosts.items() if seen["failures"] or seen["unreachable"])
        changed = sum(seen["changed"] for seen in hosts.values())
        ended = f"failed on {', '.join(bad)}" if bad else "ended well"
        level = "error" if bad else "notice"
        span = self.trace.fields(ended if bad else "") | ({"journal": self.journal} if self.journal else {})
        self._add(level, f"{self.playbook} {ended}; {changed} changes on {len(hosts)} hosts", hosts=hosts, **span)
        for log in self.logs:
            log.close()
            if problem := deliver(log.target, log.path):
                self._display.warning(f"The log of this run waits in {log.target.folder} for the next one: {problem}")

    # --- What is noted

    def _begin(self, play: Any) -> None:
        options = context.CLIARGS
        given = {
            name: options.get(name) for name in ("inventory", "subset", "tags", "skip_tags", "check", "start_at_task")
        }
        facts = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value}
        self.logs = [RunLog(target, self.playbook, os.uname().nodename) for target in targets(play)]
        self.trace = trace.begin(self.logs[0].run, self.playbook) if self.logs else None
        self._add("notice", f"{self.playbook} begins, run by {getpass.getuser()}", by=getpass.getuser(), **facts)

    def _add(self, level: str, message: str, host: str = "", **data: Any) -> None:
        for log in self.logs or ():
            log.add(level, message, host, **data)

    def _count(self, what: str, result: Any) -> None:
        if self.tally:
            self.tally.count(what, result.host.get_name())

    def _flush(self) -> None:
        if self.tally and self.logs:
            data = self.tally.data()
            self._add("info", f"task: {self.tally.name}", **data)
        self.tally = None

    def _end_play(self) -> None:
        self._flush()
        if self.play:
            self._add("info", f"end of {self.play.name}", **self.play.fields())
        self.play = None

    def _about(self, result: Any, level: str, what: str) -> None:
        task = self.tally.name if self.tally else ""
        said = str(result.result.get("msg") or result.result.get("stderr") or "") if level != "notice" else ""
        self._add(level, f"{what}: {task}{': ' if said else ''}{said}", result.host.get_name(), task=task)


def targets(play: Any) -> list[Target]:
    """The sites of the inventory that keep the logs of playbooks."""
    hostvars = play.get_variable_manager().get_vars(play=play)["hostvars"]
    found: dict[str, Target] = {}
    for host in sorted(hostvars):
        variables = hostvars[host]
        if "site_name" not in variables or "site_state_dir" not in variables or variables["site_name"] in found:
            continue
        if "logs_playbooks" in variables and not variables["logs_playbooks"]:
            continue
        state = Path(variables["site_state_dir"])
        servers = tuple(servers_of(variables, hostvars, state))
        if servers:
            found[variables["site_name"]] = Target(variables["site_name"], state / "run-logs", servers)
    return list(found.values())


def servers_of(variables: Any, hostvars: Any, state: Path) -> Iterator[Server]:
    names = variables.get("logs_servers")
    if names is None:
        names = sorted(set(variables["groups"].get("monitoring", ())) & set(variables["site_hosts"]))
    for name in names:
        yield Server(
            f"{name}.{variables['site_domain']}",
            hostvars[name]["site_address"],
            int(variables.get("logs_port", 2514)),
            state / "pki/ca.crt",
            state / "pki/_shared/control.pem",
        )
