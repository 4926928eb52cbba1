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

from ansible_collections.pst.platform.plugins.module_utils.relp import Server
from ansible_collections.pst.platform.plugins.module_utils.run_log import RunLog, Tally, Target, deliver

DOCUMENTATION = r"""
name: run_log
type: notification
short_description: Sends the log of a run to the site's log servers
description:
  - Notes plays, tasks with what became of them on how many hosts, and every change and failure with its host and
    message. Arguments of tasks and values of extra variables are not noted.
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

    # --- What Ansible tells

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self.playbook = os.path.basename(playbook._file_name)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        if self.logs is None:
            self._begin(play)
        self._flush()
        self._add("info", f"play: {play.get_name().strip()}", play=play.get_name().strip())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002
        self._flush()
        self.tally = Tally(task.get_name().strip())

    def v2_runner_on_ok(self, result: Any) -> None:
        changed = bool(result.result.get("changed"))
        self._count("changed" if changed else "ok")
        if changed:
            self._about(result, "notice", "changed")

    def v2_runner_on_skipped(self, result: Any) -> None:  # noqa: ARG002
        self._count("skipped")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._count("failed")
        self._about(result, "warning" if ignore_errors else "error", "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._count("unreachable")
        self._about(result, "error", "unreachable")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._flush()
        if not self.logs:
            return
        hosts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        bad = sorted(host for host, seen in hosts.items() if seen["failures"] or seen["unreachable"])
        changed = sum(seen["changed"] for seen in hosts.values())
        ended = f"failed on {', '.join(bad)}" if bad else "ended well"
        level = "error" if bad else "notice"
        self._add(level, f"{self.playbook} {ended}; {changed} changes on {len(hosts)} hosts", hosts=hosts)
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
        self._add("notice", f"{self.playbook} begins, run by {getpass.getuser()}", by=getpass.getuser(), **facts)

    def _add(self, level: str, message: str, host: str = "", **data: Any) -> None:
        for log in self.logs or ():
            log.add(level, message, host, **data)

    def _count(self, what: str) -> None:
        if self.tally:
            self.tally.count(what)

    def _flush(self) -> None:
        if self.tally and self.logs:
            data = self.tally.data()
            self._add("info", f"task: {self.tally.name}", **data)
        self.tally = None

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
