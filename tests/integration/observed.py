"""What the platform lets others see of itself, searched for the lab's secrets; and what watching a host costs it."""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from typing import Any

import lab

MONITORING = "lab-mon1"
PROMETHEUS, PAGE = "https://10.78.0.61:9090", "https://10.78.0.61:8443"
# All lines that the log server has, as JSON.
STORED = "find /var/log/private/pst-logs -name '*.jsonl*' | xargs zcat -f"
# Who watches, on the hosts that are watched. Prometheus and what it asks centrally are the monitoring host's own work.
WATCHERS = ("prometheus-node-exporter.service", "rsyslog.service")


def ask(path: str) -> Any:
    """Ask Prometheus."""
    context = ssl.create_default_context(cafile=str(lab.STATE / "pki" / "ca.crt"))
    context.load_cert_chain(lab.STATE / "pki" / MONITORING / "monitoring.pem")
    with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/{path}", timeout=30, context=context) as answer:
        return json.loads(answer.read())["data"]


def query(expression: str) -> Any:
    return ask("query?query=" + urllib.parse.quote(expression))["result"]


def page(path: str, password: str | None = None) -> tuple[int, bytes]:
    """Ask for a part of the page, as a program, with the certificate verified against the lab's authority."""
    context = ssl.create_default_context(cafile=str(lab.STATE / "pki" / "ca.crt"))
    login = base64.b64encode(f"operator:{password or lab.secret('console_operator_password')}".encode()).decode()
    request = urllib.request.Request(PAGE + path, headers={"Authorization": f"Basic {login}"})
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def logged(words: Iterable[str]) -> tuple[int, int]:
    """How many lines are stored on the log server, those of traces among them, and how many of them have a word."""
    counted = lab.ssh(
        MONITORING,
        f"cat > /run/words-of-the-lab; {STORED} | wc -l; {STORED} | grep -cFf /run/words-of-the-lab; "
        "rm /run/words-of-the-lab",
        check=False,
        stdin="\n".join(word for word in words if len(word) >= 6),
        timeout=300,
    )
    lines, found = map(int, counted.split())
    return lines, found


def metrics() -> str:
    """Every series with all of its labels, and what Prometheus tells of its targets, rules and settings."""
    told = [query('{__name__=~".+"}'), *(ask(path) for path in ("targets", "rules", "status/config", "alerts"))]
    return json.dumps(told)


def pages() -> str:
    """All that the platform's own page is made of."""
    paths = ("/", "/console.js", "/data/state.json", "/data/charts.json", "/data/runs.json")
    parts = [page(path) for path in paths]
    assert {status for status, _ in parts} == {200}
    return "\n".join(body.decode() for _, body in parts)


def reports() -> str:
    """All that was written on the control node: reports, their pages, what playbooks printed."""
    paths = (path for path in lab.REPORTS.rglob("*") if path.suffix in {".json", ".html", ".log", ".txt", ".jsonl"})
    return "\n".join(path.read_text(errors="replace") for path in paths)


def costs(units: Iterable[str], hosts: Iterable[str], seconds: float) -> dict[str, float]:
    """What the units cost each host in that time, in percent of a core: CPU seconds of those that went by."""
    each = "; ".join(f"cat /proc/$(systemctl show -P MainPID {unit})/stat" for unit in units)

    def ticks(host: str) -> int:
        """Of the processes and of the children that they have waited for, in hundredths of a second."""
        stats = [line.rpartition(")")[2].split() for line in lab.ssh(host, each).splitlines()]
        return sum(int(field) for stat in stats for field in stat[11:15])

    before = {host: (time.monotonic(), ticks(host)) for host in hosts}
    time.sleep(seconds)
    return {host: round((ticks(host) - used) / (time.monotonic() - since), 2) for host, (since, used) in before.items()}
