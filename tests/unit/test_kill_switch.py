"""The verdict of the kill switch: one proof is enough, none is a failure, and who did not answer is named."""

from __future__ import annotations

from typing import Any

import yaml
from conftest import ROOT

from ansible_collections.pst.platform.plugins.module_utils import kill_switch

(TASK,) = [
    task
    for play in yaml.safe_load((ROOT / "playbooks/kill-switch.yml").read_text())
    for task in play.get("tasks", ())
    if "__kill_switch_registers" in task.get("vars", {}) and "ansible.builtin.assert" in task
]
REGISTERED = TASK["vars"]["__kill_switch_registers"]
UNREACHABLE = {"unreachable": True, "msg": "Connection timed out"}
SKIPPED = {"skipped": True, "changed": False}
REVOKED = {"leases": [{"placement": "trading"}], "changed": True}
NO_PRIMARY = {"msg": "no primary: m1: no answer", "failed_when_result": False}


def proof(hosts: list[dict[str, Any]], stops: bool) -> dict[str, Any]:
    return kill_switch.proof(hosts, REGISTERED, stops)


def rows(hosts: list[dict[str, Any]], stops: bool) -> list[dict[str, Any]]:
    return kill_switch.rows(hosts, REGISTERED, stops)


def host(name: str, group: str, **results: Any) -> dict[str, Any]:
    given = {REGISTERED[key]: result for key, result in results.items()}
    return {"inventory_hostname": name, "group_names": ["site_t", group], **given}


def app(name: str, lease: Any, processes: Any) -> dict[str, Any]:
    return host(name, "app_nodes", lease=lease, processes=processes, gate=SKIPPED)


def gateway(name: str, gate: Any) -> dict[str, Any]:
    return host(name, "ib_gateways", lease=SKIPPED, gate=gate)


QUIET = {"stdout": ""}
CLOSED = {"stdout": "done"}


def test_all_is_stopped() -> None:
    hosts = [app("a1", REVOKED, QUIET), host("m1", "mongodb", lease=REVOKED), gateway("g1", CLOSED)]
    assert proof(hosts, True) == {
        "proven": True,
        "message": "Stopped: a majority of MongoDB has the leases revoked (through a1).",
    }
    assert [row["what"] for row in rows(hosts, True)] == [
        "leases revoked; nothing runs",
        "leases revoked",
        "gate closed",
    ]


def test_one_member_of_mongodb_is_enough() -> None:
    hosts = [app("a1", UNREACHABLE, SKIPPED), host("m1", "mongodb", lease=REVOKED), gateway("g1", UNREACHABLE)]
    verdict = proof(hosts, True)
    assert verdict["proven"]
    assert "though they obey the lease: g1" in verdict["message"]
    assert verdict["message"].endswith("No answer from a1, g1.")
    assert rows(hosts, True)[0] == {"host": "a1", "what": "no answer"}


def test_without_mongodb_every_gate_has_to_be_closed() -> None:
    away = [app("a1", NO_PRIMARY, {"stdout": "pst-run@run_stack_handler.service loaded active"})]
    verdict = proof([*away, gateway("g1", CLOSED), gateway("g2", CLOSED)], True)
    assert verdict["proven"]
    assert "The leases are NOT revoked: run this again" in verdict["message"]
    assert "Trading processes may still run on a1; they reach no gateway." in verdict["message"]
    verdict = proof([*away, gateway("g1", CLOSED), gateway("g2", UNREACHABLE)], True)
    assert not verdict["proven"]
    assert verdict["message"].startswith("NOT STOPPED")
    assert rows(away, True)[0]["what"] == (
        "leases NOT revoked: no primary: m1: no answer; STILL RUNS: pst-run@run_stack_handler.service loaded active"
    )


def test_without_any_gateway_a_gate_is_no_proof() -> None:
    verdict = proof([app("a1", NO_PRIMARY, QUIET)], True)
    assert not verdict["proven"]
    assert verdict["message"].startswith("NOT STOPPED")
    assert not proof([app("a1", UNREACHABLE, SKIPPED)], True)["proven"]


def test_the_undo_needs_the_leases() -> None:
    opened = gateway("g1", {"stdout": "done"})
    assert proof([host("a1", "app_nodes", lease=REVOKED), opened], False) == {
        "proven": True,
        "message": "Undone: the leases are valid, and the guards take them again.",
    }
    verdict = proof([host("a1", "app_nodes", lease=NO_PRIMARY), gateway("g1", UNREACHABLE)], False)
    assert not verdict["proven"]
    assert "Gates that may still be closed: g1." in verdict["message"]


def test_the_playbook_registers_what_is_judged() -> None:
    text = (ROOT / "playbooks/kill-switch.yml").read_text()
    assert {name for name in REGISTERED.values() if f"register: {name}\n" not in text} == set()
