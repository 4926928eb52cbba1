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
from test_9_secrets import secrets

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


def test_a_request_is_found_by_its_id_and_an_order_by_its_number() -> None:
    status, body = lab.ask("/version")
    assert status == 200
    served = json.loads(body)
    balanced = lab.eventually(
        "the balancer's line",
        lambda: [r for r in search("--process", "haproxy", "--since", "1m") if '"path":"/version"' in r["message"]],
        SECONDS,
    )
    assert balanced[-1]["host"] in lab.BALANCERS
    assert served["colour"] in {r.get("colour") for r in search("--unit", "pst-app@*", "--since", "1d")}
    orders = [r for r in search("--process", "run_stack_handler", "--since", "1d") if "order" in r]
    if orders:  # it may have sent none yet
        assert orders[-1] in search("--order", str(orders[-1]["order"]), "--since", "1d")


def test_a_playbook_that_ran_is_found() -> None:
    lab.succeed(lab.playbook("validate"))
    run = lab.playbook("status")
    assert "waits in" not in run.output, run.output[-1000:]
    records = search("--process", "ansible", "--since", "5m", "status.yml")
    assert any(re.search(r"^status\.yml ended well", record["message"]) for record in records), records


def test_the_user_searches_from_the_control_node() -> None:
    run = lab.succeed(lab.playbook("logs", "-e", "log_search='--since 10m --host lab-mongo1 --limit 5'"))
    assert " lab-mongo1 " in run.output


def test_no_secret_is_in_the_logs() -> None:
    """Every secret of the lab, as it is, in all that is stored."""
    patterns = [line for value in secrets().values() for line in value.splitlines() if len(line) >= 6]
    counted = lab.ssh(
        SERVER,
        "cat > /run/secrets-of-the-lab; "
        "find /var/log/private/pst-logs -name '*.jsonl*' | xargs zcat -f > /run/all-logs; "
        "wc -l < /run/all-logs; grep -cFf /run/secrets-of-the-lab /run/all-logs; "
        "rm /run/secrets-of-the-lab /run/all-logs",
        check=False,
        stdin="\n".join(patterns),
        timeout=180,
    )
    lines, leaked = map(int, counted.split())
    assert lines > 1000, "there are no logs: this test would prove nothing"
    assert leaked == 0


def test_the_sender_costs_little() -> None:
    """A quiet lab; `logs` of every host over a minute, in CPU seconds of rsyslog."""
    show = (
        "cat /sys/fs/cgroup/*/$(systemctl show -P ControlGroup rsyslog)/cpuacct.usage 2>/dev/null || "
        "awk '/usage_usec/ {print $2 * 1000}' /sys/fs/cgroup$(systemctl show -P ControlGroup rsyslog)/cpu.stat"
    )
    before = {host: int(float(lab.ssh(host, show).split()[0])) for host in lab.HOSTS}
    time.sleep(30)
    share = {host: (int(float(lab.ssh(host, show).split()[0])) - before[host]) / 30e9 for host in lab.HOSTS}
    worst = max(share, key=lambda host: share[host])
    lab.record("logs_cost", percent_of_a_core={host: round(100 * value, 2) for host, value in share.items()}, bar=1.0)
    assert share[worst] < 0.01 * lab.SLACK, f"{worst}: {share[worst]:.1%}"


def test_a_support_bundle_tells_much_and_no_secret() -> None:
    """A canary among the generated secrets is planted bare, in the journal and in a file that is read."""
    name = lab.STATE / "secrets" / "canary_of_the_support_test"
    canary = f"Canary{uuid.uuid4().hex}"
    planted = "/etc/pst/firewall.d/canary.txt"
    name.write_text(canary)
    try:
        lab.ssh("lab-app1", f"logger --tag canary the word is {canary} here; echo {canary} > {planted}")
        run = lab.succeed(lab.playbook("support-bundle", "-e", "support_reason='the test'"))
        known = secrets()
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
