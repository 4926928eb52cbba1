#!/usr/bin/env python3
"""Measure what the platform's own programs cost an app node: the agent and the guard, on a lab that is up.

Sends 100 requests to the agent, then watches both for a minute in their steady state: the balancers check, the guard
renews. Memory is told twice. Resident (RSS) counts each page that a process has in memory; proportional (PSS) shares
those that several processes have in common, such as the interpreter's: only these can be added up to what the node
really has. Writes reports/bench-agent.json. Exit status 1 where the sum is above the bar.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

import lab

HOST = "lab-app2"
UNITS = ("pst-app@blue.service", "pst-guard.service")
SECONDS = 60
MAX_RESIDENT_MIB, MAX_CPU_PERCENT = 60, 1.0

# Runs on the host, with the standard library of its own Python.
PROGRAM = """
import http.client, json, os, ssl, subprocess, time

pki = "/etc/pst/pki"
context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
context.load_cert_chain(f"{pki}/app/app.crt", f"{pki}/app/app.key")
token = open("/etc/pst/credentials/agent_token").read().strip()
connection = http.client.HTTPSConnection("localhost", 8080, context=context, timeout=10)
for number in range(100):
    path = ("/ready", "/metrics", "/api/v1/status", "/")[number % 4]
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, (path, answer.status)
connection.close()

def pid_of(unit):
    show = ["systemctl", "show", "--property=MainPID", "--value", unit]
    return int(subprocess.run(show, capture_output=True, text=True, check=True).stdout)

def ticks(pid):
    return sum(map(int, open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[11:13]))

def memory(pid):
    lines = dict(line.split(":", 1) for line in open(f"/proc/{pid}/smaps_rollup") if ":" in line.split()[0])
    return {name.lower(): int(lines[name].split()[0]) / 1024 for name in ("Rss", "Pss")}

pids = {unit: pid_of(unit) for unit in UNITS}
assert all(pids.values()), pids
before, started = {unit: ticks(pid) for unit, pid in pids.items()}, time.monotonic()
time.sleep(SECONDS)
seconds, hertz = time.monotonic() - started, os.sysconf("SC_CLK_TCK")
print(json.dumps({
    unit: memory(pid) | {"cpu_percent": 100 * (ticks(pid) - before[unit]) / hertz / seconds}
    for unit, pid in pids.items()
}))
"""


def main() -> int:
    program = f"UNITS, SECONDS = {UNITS!r}, {SECONDS}\n{PROGRAM}"
    found = json.loads(lab.ssh(HOST, "python3 -", stdin=program, timeout=SECONDS + 60))
    total = {name: sum(unit[name] for unit in found.values()) for name in ("rss", "pss", "cpu_percent")}
    print(f"{HOST:24} {'RSS MiB':>8} {'PSS MiB':>8} {'CPU % of a core':>16}")
    for unit, figures in (found | {"together": total}).items():
        print(f"{unit:24} {figures['rss']:8.1f} {figures['pss']:8.1f} {figures['cpu_percent']:16.2f}")
    print(f"{'bar':24} {MAX_RESIDENT_MIB:8.1f} {'':8} {MAX_CPU_PERCENT:16.2f}")
    lab.REPORTS.mkdir(exist_ok=True)
    report = {"host": HOST, "seconds": SECONDS, "units": found, "together": total}
    (lab.REPORTS / "bench-agent.json").write_text(json.dumps(report, indent=2) + "\n")
    return int(total["rss"] > MAX_RESIDENT_MIB or total["cpu_percent"] > MAX_CPU_PERCENT)


if __name__ == "__main__":
    sys.exit(main())
