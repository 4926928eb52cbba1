"""Logs of every host and of playbooks are on the log server within seconds, and hold no secret."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tarfile
import time
import uuid
from typing import Any

import lab
import observed

SERVER = "lab-mon1"
SECONDS = 10


def search(*arguments: str) -> list[dict[str, Any]]:
    found = lab.ssh(SERVER, f"pst-logs --json --limit 0 {shlex.join(arguments)}", check=False)
    return [json.loads(line) for line in found.splitlines()]


def test_a_line_of_every_host_is_found_within_seconds() -> None:
    mark = uuid.uuid4().hex
    started = time.monotonic()
    for host in lab.HOSTS:
        lab.ssh(host, f"logger --tag test-logs {mark}")

    def missing() -> set[str]:
        return set(lab.HOSTS) - {record["host"] for record in search("--process", "test-logs", mark)}

    lab.eventually("a line of every host", lambda: not missing(), SECONDS)
    lab.record("logs_arrive", seconds=round(time.monotonic() - started, 1), bar_s=SECONDS, hosts=len(lab.HOSTS))


def test_a_request_and_an_order_are_found() -> None:
    status, body = lab.ask("/version")
    assert status == 200
    colour = json.loads(body)["colour"]
    balanced = lab.eventually(
        "the balancer's line",
        lambda: [r for r in search("--process", "haproxy", "--since", "2m", "version") if r["host"] in lab.BALANCERS],
        SECONDS,
    )
    assert balanced[-1]["unit"] == "haproxy.service"
    assert search("--unit", f"pst-app@{colour}", "--colour", colour, "--since", "1d", "--limit", "1")
    orders = [r for r in search("--process", "run_stack_handler", "--since", "30m") if "order" in r]
    if orders:  # it may have sent none yet
        assert orders[-1] in search("--order", str(orders[-1]["order"]), "--since", "30m")


def traced(*arguments: str) -> str:
    return lab.ssh(SERVER, f"pst-trace {shlex.join(arguments)}", check=False)


def test_a_request_is_one_trace_from_the_balancer_to_the_dashboard() -> None:
    """The client's trace goes on; the user prints it from the control node."""
    trace, span = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    with lab.answer_to("/strategy", traceparent=f"00-{trace}-{span}-01") as answer:
        request_id = answer.headers["X-Request-Id"]
    lab.eventually("all spans", lambda: traced(trace).count("GET /strategy") == 3, SECONDS)
    run = lab.succeed(lab.playbook("trace", "-e", f"trace_search={request_id}"))
    lines = [line for line in run.output.splitlines() if "GET /strategy" in line]
    names = ["balancer: GET /strategy", "└─ GET /strategy", "   └─ dashboard: GET /strategy"]
    assert all(f"{name}  " in line for name, line in zip(names, lines, strict=True)), run.output
    assert f"part of {span}, which is not in the logs" in lines[0]


def test_an_order_is_one_trace_from_its_generation_to_its_fill() -> None:
    def filled() -> list[Any]:
        done = search("--process", "run_stack_handler", "--since", "10m", "order", "filled")
        wholes = [r for r in done if r.get("data", {}).get("filled") and "parent_span_id" not in r["data"]]
        return [r for r in wholes if not r["data"]["key"].startswith("drill ")]  # those nobody has generated

    wholes = lab.eventually("an order that was filled", filled, 180, 5)  # in the lab orders flow day and night
    order = wholes[-1]["order"]

    def missing() -> list[str]:
        text = traced(order)
        parts = ("generate", "choose a contract", "send", "gate: placeOrder", "fill")
        return [part for part in parts if f"─ {part} " not in text]

    lab.eventually(f"all of the trace of {order}", lambda: missing() == [], SECONDS)


def test_a_playbook_is_one_trace() -> None:
    assert "waits in" not in lab.playbook("status").output
    ended = [r for r in search("--process", "ansible", "--since", "5m", "status.yml") if "span" in r.get("data", {})]
    text = traced(ended[-1]["data"]["run"])
    assert text.splitlines()[1].startswith("status.yml "), text
    assert "─ play: " in text
    assert all(f"─ {host} " in text for host in lab.HOSTS), text


def test_a_playbook_that_ran_is_found() -> None:
    lab.succeed(lab.playbook("validate"))
    run = lab.playbook("status")
    assert "waits in" not in run.output, run.output[-1000:]
    records = search("--process", "ansible", "--since", "5m", "status.yml")
    assert any(re.search(r"^status\.yml (ended well|failed on)", record["message"]) for record in records), records


def test_the_user_searches_from_the_control_node() -> None:
    run = lab.succeed(lab.playbook("logs", "-e", "log_search='--since 10m --host lab-mongo1 --limit 5'"))
    assert " lab-mongo1 " in run.output


def test_no_secret_is_in_the_logs() -> None:
    """Every secret of the lab, as it is, in all that is stored."""
    lines, leaked = observed.logged(line for value in lab.secrets().values() for line in value.splitlines())
    assert lines > 1000, "there are no logs: this test would prove nothing"
    assert leaked == 0


def test_rsyslog_costs_little() -> None:
    """CPU seconds of rsyslog on every host, of those that went by. Somebody trades meanwhile, and probes ask."""
    share = observed.costs(["rsyslog.service"], lab.HOSTS, 30)
    lab.record("logs_cost", percent_of_a_core=share, bar=1.0)
    # One shared machine: what waits for the processor is not counted, what its caches lose is.
    assert max(share.values()) <= 3.0, share


def test_a_support_bundle_tells_much_and_no_secret() -> None:
    """A canary among the generated secrets is planted bare, in the journal and in a file that is read."""
    name = lab.STATE / "secrets" / "canary_of_the_support_test"
    canary = f"Canary{uuid.uuid4().hex}"
    planted = "/etc/pst/firewall.d/canary.txt"
    name.write_text(canary)
    try:
        lab.ssh("lab-app1", f"logger --tag canary the word is {canary} here; echo {canary} > {planted}")
        run = lab.succeed(lab.playbook("support-bundle", "-e", "support_reason='the test'"))
        known = lab.secrets()
    finally:
        lab.ssh("lab-app1", f"rm -f {planted}")
        name.unlink()
    path = max(lab.REPORTS.glob("support-*.tar.gz"))
    size = path.stat().st_size
    lab.record("support_bundle", seconds=round(run.seconds, 1), bytes=size, hosts=len(lab.HOSTS))
    assert size <= 20_000_000
    with tarfile.open(path) as tar:
        texts = {m.name.partition("/")[2]: tar.extractfile(m).read().decode() for m in tar.getmembers()}
    path.unlink()
    assert {host for host in lab.HOSTS if f"{host}/journal.txt" in texts} == set(lab.HOSTS)
    assert "the word is *** here" in texts["lab-app1/journal.txt"]
    assert texts["lab-app1/files/etc/pst/firewall.d/canary.txt"].strip() == "***"
    assert json.loads(texts["MANIFEST.json"])["missing"] == {}
    assert canary in known.values()
    keys = [file.read_text().splitlines()[1] for file in (lab.STATE / "pki").rglob("*.pem")]
    whole = "\n".join(texts.values())
    assert [secret for secret, value in known.items() if value in whole] == []
    assert [key for key in keys if key in whole] == []


def test_a_change_that_fails_leaves_a_bundle() -> None:
    """The callback itself, with a playbook that fails on one host."""
    failing = lab.ROOT / "playbooks" / "test-that-fails.yml"
    failing.write_text(
        "- {hosts: lab-redis3, gather_facts: false, tasks: [{ansible.builtin.fail: {msg: on purpose}}]}\n"
    )
    before = set(lab.REPORTS.glob("support-*.tar.gz"))
    try:
        done = subprocess.run(
            ["ansible-playbook", str(failing), "-i", "inventories/lab"],
            cwd=lab.ROOT,
            env=lab.environment() | {"PST_SUPPORT_BUNDLE": "true"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        failing.unlink()
    assert done.returncode == 2, done.stdout
    (path,) = set(lab.REPORTS.glob("support-*.tar.gz")) - before
    with tarfile.open(path) as tar:
        (manifest,) = (m for m in tar.getmembers() if m.name.endswith("/MANIFEST.json"))
        facts = json.loads(tar.extractfile(manifest).read())
    path.unlink()
    assert facts["reason"] == "test-that-fails.yml failed on lab-redis3"
    assert path.name in done.stdout
