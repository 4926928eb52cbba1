#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: run_journal
short_description: Take the run lock of a site, note the steps of a run, end it, read the journal
description:
  - One run changes a site at a time. Who did what, when, with what outcome and evidence is kept in MongoDB; the action
    plugin of the same name adds a line for each call to a file on the control node.
  - Runs on a host that reaches the replica set. Waits out an election; every call may be repeated.
  - In check mode it reads only. V(begin) then fails where it would be refused.
options:
  state:
    description:
      - V(begin) takes the lock. Fails, naming the holder, where another run has it.
      - V(step) notes the state of a step. Fails where the lock is no longer this run's; the run must not go on.
      - V(end) ends the run and frees the lock.
      - V(free) fails, naming the holder, where a run has the lock; for what changes the site without a run of its own.
        It passes where MongoDB does not answer or is not there yet, because it may be what has to be made or repaired.
      - V(read) returns the last runs.
    type: str
    choices: [begin, step, end, free, read]
    required: true
  run:
    description: Id of the run. The action plugin makes one for V(begin). With V(read), the one run to return.
    type: str
  playbook:
    description: What runs; needed by V(begin).
    type: str
  target:
    description:
      - What was asked for, such as the release. Runs of the same playbook for the same target are one undertaking.
    type: dict
    default: {}
  by:
    description: Who. The action plugin takes C(SUDO_USER), else the login name.
    type: str
  from:
    description: Name of the control node; from the action plugin.
    type: str
  pid:
    description: Process of C(ansible-playbook) there; from the action plugin.
    type: int
    default: 0
  site:
    description: Name of the site, kept with the run.
    type: str
    default: ""
  reason:
    description: Why a rule was overridden, such as the maintenance window; kept with the run.
    type: str
    default: ""
  break_lock:
    description: Why the lock of a run that is dead is broken. Its outcome becomes C(broken). Empty breaks nothing.
    type: str
    default: ""
  resume_hours:
    description:
      - Hours after the start of a run that has not succeeded in which the same undertaking resumes it.
    type: float
    default: 24
  step:
    description: Name of the step; needed by V(step).
    type: str
  host:
    description: Host that the step was taken on; needed by V(step). Any word where it was not taken on one host.
    type: str
  step_state:
    description: How far the step is.
    type: str
    choices: [begun, proven, failed]
    default: proven
  outcome:
    description: How the run ended.
    type: str
    choices: [succeeded, failed]
    default: succeeded
  evidence:
    description: What proves it; kept with the step or the run.
    type: dict
    default: {}
  limit:
    description: Number of runs that V(read) returns, 1 to 1000.
    type: int
    default: 20
  reports:
    description: Folder on the control node; the lines go to C(journal/<run>.jsonl) below it. For the action plugin.
    type: path
  mongodb:
    description: Where the lock and the journal are.
    type: dict
    required: true
    suboptions:
      hosts:
        description: Members of the replica set, C(host:port).
        type: list
        elements: str
        required: true
      login_user:
        description: User with C(readWrite) on the database.
        type: str
        required: true
      login_password:
        description: Its password.
        type: str
        required: true
      database:
        description: Database of the lock and the journal.
        type: str
        default: pst
      ca_file:
        description: Authority of the members' certificates.
        type: path
      timeout:
        description: Seconds to wait for a primary and its majority.
        type: int
        default: 30
requirements: [pymongo]
author: The pst platform team
"""

EXAMPLES = r"""
- name: Take the run lock
  pst.platform.run_journal:
    state: begin
    playbook: upgrade.yml
    target: {release: 1.81.0}
    mongodb:
      hosts: [mongo1.example.net:27017, mongo2.example.net:27017]
      login_user: guard
      login_password: "{{ trading_guard_password }}"
      ca_file: /etc/pst/pki/ca.crt
  register: __begun
"""

RETURN = r"""
run:
  description: Id of the run.
  returned: with V(begin), V(step) and V(end)
  type: str
proven:
  description: Steps that earlier runs of the same undertaking have proven, each with C(step) and C(host).
  returned: with V(begin)
  type: list
  elements: dict
resumed_from:
  description: Id of the run that this one resumes; empty where it starts anew.
  returned: with V(begin)
  type: str
broken:
  description: Id of the run whose lock was broken; empty where none was.
  returned: with V(begin)
  type: str
holder:
  description: The run that has the lock.
  returned: where V(begin) or V(free) was refused, and with V(read)
  type: dict
unknown:
  description: Why it could not be asked who has the lock; empty where it was.
  returned: with V(free)
  type: str
rows:
  description: The runs, the newest first, each with all that is known of it.
  returned: with V(read)
  type: list
  elements: dict
steps:
  description: The steps of the run that was named.
  returned: with V(read) and O(run)
  type: list
  elements: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.pst.platform.plugins.module_utils.mongodb import (
    Credentials,
    MongoError,
    connector,
    have_pymongo,
)
from ansible_collections.pst.platform.plugins.module_utils.run_journal import (
    OUTCOMES,
    SOCKET_SECONDS,
    STATES,
    HeldError,
    Journal,
    Run,
    plain,
    run_rows,
    step_rows,
)


def begin(journal: Journal, p: dict[str, Any], check: bool) -> dict[str, Any]:
    """Take the lock."""
    run = Run(p["run"], p["playbook"], p["by"], p["from"], p["pid"], p["target"], p["site"], p["reason"])
    begun = journal.begin(run, break_reason=p["break_lock"].strip(), resume_hours=p["resume_hours"], check=check)
    after = f"run lock: {run.id}\n" + (f"breaks the lock of {begun.broken}\n" if begun.broken else "")
    return {
        "changed": True,
        "run": run.id,
        "proven": begun.proven,
        "resumed_from": begun.resumed_from,
        "broken": begun.broken,
        "diff": {"before": "", "after": after},
    }


def step(journal: Journal, p: dict[str, Any], check: bool) -> dict[str, Any]:
    """Note a step."""
    if not check:
        journal.step(p["run"], p["step"], p["host"], p["step_state"], p["evidence"])
    after = f"{p['step']} on {p['host']}: {p['step_state']}\n"
    return {"changed": True, "run": p["run"], "diff": {"before": "", "after": after}}


def end(journal: Journal, p: dict[str, Any], check: bool) -> dict[str, Any]:
    """End the run."""
    changed = check or journal.end(p["run"], p["outcome"], p["evidence"])[1]
    diff = {"before": "", "after": f"run {p['run']}: {p['outcome']}\n"} if changed else {}
    return {"changed": changed, "run": p["run"], "diff": diff}


def free(journal: Journal, _p: dict[str, Any], _check: bool) -> dict[str, Any]:
    """See that nobody has the lock, as far as that can be seen."""
    try:
        journal.free()
    except HeldError:
        raise
    except MongoError as error:
        return {"changed": False, "unknown": str(error)}
    return {"changed": False, "unknown": ""}


def read(journal: Journal, p: dict[str, Any], _check: bool) -> dict[str, Any]:
    """Read the last runs, or one with its steps."""
    lock, pages = journal.read(p["limit"], p["run"] or "")
    if p["run"] and not pages:
        raise MongoError(
            f"run: seen {p['run']}; wanted one that is in the journal (playbooks/journal.yml lists the last)"
        )
    result = {"changed": False, "rows": run_rows(lock, pages), "holder": plain(lock) if lock.get("run") else {}}
    return result | ({"steps": step_rows(pages[0])} if p["run"] else {})


def main() -> None:
    """Run the module."""
    mongodb = {
        "hosts": {"type": "list", "elements": "str", "required": True},
        "login_user": {"type": "str", "required": True},
        "login_password": {"type": "str", "required": True, "no_log": True},
        "database": {"type": "str", "default": "pst"},
        "ca_file": {"type": "path"},
        "timeout": {"type": "int", "default": 30},
    }
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["begin", "step", "end", "free", "read"], "required": True},
            "run": {"type": "str"},
            "playbook": {"type": "str"},
            "target": {"type": "dict", "default": {}},
            "by": {"type": "str"},
            "from": {"type": "str"},
            "pid": {"type": "int", "default": 0},
            "site": {"type": "str", "default": ""},
            "reason": {"type": "str", "default": ""},
            "break_lock": {"type": "str", "default": ""},
            "resume_hours": {"type": "float", "default": 24.0},
            "step": {"type": "str"},
            "host": {"type": "str"},
            "step_state": {"type": "str", "choices": list(STATES), "default": "proven"},
            "outcome": {"type": "str", "choices": list(OUTCOMES), "default": "succeeded"},
            "evidence": {"type": "dict", "default": {}},
            "limit": {"type": "int", "default": 20},
            "reports": {"type": "path"},
            "mongodb": {"type": "dict", "required": True, "options": mongodb},
        },
        required_if=[
            ("state", "begin", ["run", "playbook", "by", "from"]),
            ("state", "step", ["run", "step", "host"]),
            ("state", "end", ["run"]),
        ],
        supports_check_mode=True,
    )
    p = module.params
    if not have_pymongo():
        if p["state"] == "free":
            module.exit_json(changed=False, unknown="this host has no pymongo yet")
        if module.check_mode:  # a bare host, on which a real run installs it first
            module.exit_json(changed=False, run=p["run"], proven=[], resumed_from="", broken="", rows=[], holder={})
        module.fail_json(msg=missing_required_lib("pymongo"))
    given = p["mongodb"]
    user = Credentials(given["login_user"], given["login_password"])
    connect = connector(given["ca_file"] or "", SOCKET_SECONDS)
    journal = Journal(connect, given["hosts"], user, given["database"], given["timeout"])
    verb = {"begin": begin, "step": step, "end": end, "free": free, "read": read}[p["state"]]
    try:
        result = verb(journal, p, module.check_mode)
    except HeldError as error:
        module.fail_json(msg=str(error), holder=error.holder)
    except MongoError as error:
        module.fail_json(msg=str(error))
    finally:
        journal.close()
    module.exit_json(**result)


if __name__ == "__main__":
    main()
