"""What the units of pysystemtrade use, from what systemd says."""

from __future__ import annotations

import pst_figures
from test_exporter_site import samples

SHOWN = """\
MemoryCurrent=90177536
MemoryMax=536870912
CPUUsageNSec=1500000000
Id=pst-app@blue.service
ActiveState=active

MemoryCurrent=[not set]
MemoryMax=infinity
CPUUsageNSec=18446744073709551615
Id=pst-guard.service
ActiveState=active

MemoryCurrent=1
MemoryMax=2
CPUUsageNSec=3
Id=pst-run@run_systems.service
ActiveState=inactive
"""


def test_what_is_counted_is_told_and_nothing_else():
    labels = 'name="pysystemtrade",unit="pst-app@blue.service"'
    assert samples(pst_figures.text(SHOWN)) == {
        ("container_memory_usage_bytes", labels): 90177536,
        ("container_spec_memory_limit_bytes", labels): 536870912,
        ("container_cpu_usage_seconds_total", labels): 1.5,
    }
    assert pst_figures.text("") == ""


def test_processor_time_is_added_up_where_systemd_counts_none(tmp_path):
    group = tmp_path / "systemd/system.slice/pst-guard.service"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("11\n12\n13\n")
    for pid, times in (("11", "100 20 3 4"), ("12", "50 0 0 0")):  # 13 has ended
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "stat").write_text(f"{pid} (a (b) c) S 1 2 3 4 5 6 7 8 9 10 {times} 20 0\n")
    roots = (tmp_path / "unified", tmp_path / "systemd")
    told = pst_figures.processor_ns("/system.slice/pst-guard.service", roots, tmp_path)
    assert int(told) == 177 * 1_000_000_000 // pst_figures.TICKS
    assert pst_figures.processor_ns("", roots, tmp_path) == ""
