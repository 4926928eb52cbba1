#!/usr/bin/python3
"""What the units of pysystemtrade use, under the names that a container's figures have, for the textfile collector.

pst_figures.py <seconds between two looks> <file>

The alerts of the deployment architecture are about the container `pysystemtrade`; here it is several units, each in a
control group of its own. systemd knows their figures, whichever version of control groups the host has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

UNITS = ("pst-app@*.service", "pst-dashboard@*.service", "pst-run@*.service", "pst-guard.service")
PROPERTIES = ("Id", "ActiveState", "MemoryCurrent", "MemoryMax", "CPUUsageNSec", "ControlGroup")
# Where the kernel lists the processes of a control group, in its second and in its first version.
GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd"))
TICKS = os.sysconf("SC_CLK_TCK")
UNKNOWN = ("", "[not set]", "infinity", str(2**64 - 1))
METRICS = (
    ("container_memory_usage_bytes", "gauge", "Memory of a unit of pysystemtrade", "MemoryCurrent", 1),
    ("container_spec_memory_limit_bytes", "gauge", "Memory at which the kernel ends the unit", "MemoryMax", 1),
    ("container_cpu_usage_seconds_total", "counter", "Processor time of a unit of pysystemtrade", "CPUUsageNSec", 1e-9),
)


def units(shown: str) -> Iterator[dict[str, str]]:
    """Read what `systemctl show` prints: a block of properties for each unit."""
    for block in shown.split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if unit.get("ActiveState") == "active":
            yield unit


def processor_ns(group: str, roots: Sequence[Path] = GROUPS, proc: Path = Path("/proc")) -> str:
    """The processor time of the processes of a control group and of their ended children, where systemd counts none."""
    for root in roots:
        path = root / group.lstrip("/") / "cgroup.procs"
        if group and path.is_file():
            ticks = sum(ticks_of(proc / pid / "stat") for pid in path.read_text().split())
            return str(ticks * 1_000_000_000 // TICKS)
    return ""


def ticks_of(stat: Path) -> int:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return 0  # it has ended meanwhile
    return sum(map(int, fields[11:15]))  # utime, stime, and those of children; see proc(5)


def text(shown: str) -> str:
    """Return the figures; what nobody counts is left out."""
    found = list(units(shown))
    for unit in found:
        if unit.get("CPUUsageNSec", "") in UNKNOWN:
            unit["CPUUsageNSec"] = processor_ns(unit.get("ControlGroup", ""))
    lines = []
    for name, kind, about, key, scale in METRICS:
        values = [(unit["Id"], unit[key]) for unit in found if unit.get(key, "") not in UNKNOWN]
        if values:
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            lines += [f'{name}{{name="pysystemtrade",unit="{unit}"}} {int(value) * scale!r}' for unit, value in values]
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> int:
    seconds, path = float(arguments[0]), Path(arguments[1])
    show = ["/usr/bin/systemctl", "show", "--no-pager", f"--property={','.join(PROPERTIES)}", *UNITS]
    while True:
        done = subprocess.run(show, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
        if done.returncode:
            sys.stderr.write(f"<3>systemctl show: {done.stderr.strip()}\n")
            path.unlink(missing_ok=True)  # old figures would be taken for new ones
        else:
            new = path.with_suffix(".new")
            new.write_text(text(done.stdout))
            new.replace(path)
        time.sleep(seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
