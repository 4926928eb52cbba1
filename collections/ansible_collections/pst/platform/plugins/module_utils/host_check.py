# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host must be before anything is installed on it. Runs on the host, in one module run."""

from __future__ import annotations

import errno
import platform
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SYSTEMS: Mapping[str, tuple[str, ...]] = {"debian": ("12", "13")}
MACHINES = ("x86_64",)


@dataclass(frozen=True)
class Needs:
    """The least that a tier wants of its hosts."""

    disk_gb: float = 10
    memory_mb: int = 1024
    path: str = "/"
    cpu_flags: tuple[str, ...] = ()


TIERS: Mapping[str, Needs] = {
    "load_balancers": Needs(),
    "app_nodes": Needs(disk_gb=20, memory_mb=4096, path="/srv"),
    # MongoDB 5.0 and newer dies with "illegal instruction" on a CPU without AVX.
    "mongodb": Needs(disk_gb=50, memory_mb=4096, path="/var/lib/mongodb", cpu_flags=("avx",)),
    "redis": Needs(memory_mb=2048, path="/var/lib/redis"),
    "ib_gateways": Needs(memory_mb=2048),
    "monitoring": Needs(disk_gb=50, memory_mb=2048, path="/var/lib/prometheus"),
}


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with a host: what, the value seen, the value wanted."""

    what: str
    seen: str
    wanted: str


@dataclass(frozen=True)
class Peer:
    """A port of another host that this one has to reach."""

    host: str
    address: str
    port: int
    flow: str


def needs_of(tiers: Iterable[str], minimums: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Needs]]:
    """The table above for these tiers, with the site's own minimums over it."""
    found = []
    for tier in tiers:
        if tier in TIERS:
            own = minimums.get(tier) or {}
            base = TIERS[tier]
            disk, memory = own.get("disk_gb", base.disk_gb), own.get("memory_mb", base.memory_mb)
            found.append((tier, replace(base, disk_gb=float(disk), memory_mb=int(memory))))
    return found


def check_host(
    tiers: Iterable[str],
    minimums: Mapping[str, Mapping[str, Any]],
    time_zone: str,
    peers: Iterable[Peer],
    timeout: float,
    root: Path = Path("/"),
) -> list[Problem]:
    problems = [*check_system(root), *check_time_zone(time_zone, root)]
    for tier, needs in needs_of(tiers, minimums):
        problems += check_needs(tier, needs, root)
    problems += check_own_name(socket.gethostname())
    problems += check_peers(peers, timeout)
    return sorted(set(problems))


def check_system(root: Path) -> Iterator[Problem]:
    release = os_release(root)
    name, version = release.get("ID", "unknown"), release.get("VERSION_ID", "")
    if version not in SYSTEMS.get(name, ()):
        wanted = " or ".join(f"{system} {' or '.join(versions)}" for system, versions in SYSTEMS.items())
        yield Problem("operating system", f"{name} {version}".strip(), wanted)
    if platform.machine() not in MACHINES:
        yield Problem("machine", platform.machine(), " or ".join(MACHINES))
    if not (root / "run/systemd/system").is_dir():
        yield Problem("init", "no systemd", "systemd as process 1")


def check_time_zone(name: str, root: Path) -> Iterator[Problem]:
    if not (root / "usr/share/zoneinfo" / name).is_file():
        yield Problem(
            "time zone data", f"no /usr/share/zoneinfo/{name}", f"{name} (site_time_zone), from the package tzdata"
        )


def check_needs(tier: str, needs: Needs, root: Path) -> Iterator[Problem]:
    # A tier that is installed already has used some of its space: what counts is what the file system has in all.
    path = existing(root / needs.path.lstrip("/"))
    size = shutil.disk_usage(path).total / 1e9
    if size < needs.disk_gb:
        yield Problem(f"disk for {tier}", f"{size:.1f} GB at {path}", f"at least {needs.disk_gb:g} GB")
    free = shutil.disk_usage(path).free / 1e9
    if free < 1:
        yield Problem(f"free disk for {tier}", f"{free:.2f} GB at {path}", "at least 1 GB free")
    memory = memory_mb(root)
    # The kernel keeps some for itself: a "4 GB" machine shows 3.8.
    if memory < needs.memory_mb * 0.9:
        yield Problem(f"memory for {tier}", f"{memory} MB", f"at least {needs.memory_mb} MB")
    if missing := [flag for flag in needs.cpu_flags if flag not in cpu_flags(root)]:
        yield Problem(f"CPU for {tier}", f"no {', '.join(missing)}", f"a CPU with {', '.join(needs.cpu_flags)}")


def check_own_name(name: str) -> Iterator[Problem]:
    """A host that cannot resolve its own name makes sudo and many daemons wait for a time-out."""
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        yield Problem("name resolution", f"{name}: {error.strerror or error}", "the host's own name resolves")


def check_peers(peers: Iterable[Peer], timeout: float) -> list[Problem]:
    """All at once, in threads: the slowest connection is the time that the check takes."""
    peers = list(peers)
    if not peers:
        return []
    with ThreadPoolExecutor(max_workers=min(len(peers), 32)) as pool:
        results = list(pool.map(lambda peer: reach(peer, timeout), peers))
    return [
        Problem(f"flow {peer.flow}", f"{peer.host} ({peer.address}) port {peer.port}: {failure}", "a way to the peer")
        for peer, failure in zip(peers, results, strict=True)
        if failure
    ]


def reach(peer: Peer, timeout: float) -> str:
    """Why the peer cannot be reached; empty where it can. To refuse is an answer too: nothing listens there yet."""
    try:
        with socket.create_connection((peer.address, peer.port), timeout=timeout):
            return ""
    except ConnectionRefusedError:
        return ""
    except TimeoutError:
        return f"no answer in {timeout:g} s"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def os_release(root: Path) -> dict[str, str]:
    try:
        text = (root / "etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return {}
    return {key: value.strip("\"'") for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)}


def memory_mb(root: Path) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB", (root / "proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    return int(found.group(1)) // 1024 if found else 0


def cpu_flags(root: Path) -> set[str]:
    found = re.search(r"^flags\s*:(.*)$", (root / "proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def existing(path: Path) -> Path:
    """The path itself, or its nearest parent that is there: the file system it will be on."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def clock_problem(samples: Iterable[tuple[float, float, float]], limit: float) -> Problem | None:
    """Judges samples of (own clock before, host's clock, own clock after), all in seconds.

    The host's clock was read somewhere between the other two, so the quickest sample tells most, and no sample tells
    more than its own duration. The host is wrong only where no moment in between would make it right.
    """
    before, there, after = min(samples, key=lambda sample: sample[2] - sample[0])
    offset, unsure = there - (before + after) / 2, (after - before) / 2
    if abs(offset) - unsure <= limit:
        return None
    seen = f"{offset:+.3f} s from the control node's (known to ±{unsure:.3f} s)"
    return Problem("clock", seen, f"within {limit:g} s; run a time service on both (chrony)")


def peers_of(
    flows: Iterable[Mapping[str, Any]],
    host: str,
    hostvars: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """The TCP ports of other hosts that a host has to reach: the flows that the firewall of the platform lets pass."""
    site = groups[hostvars[host]["site_group"]]
    members = {**groups, "site": site}
    found = []
    for flow in flows:
        if flow.get("proto", "tcp") != "tcp" or not any(host in members.get(group, ()) for group in flow["from"]):
            continue
        for peer in dict.fromkeys(peer for group in flow["to"] for peer in members.get(group, ())):
            if peer != host and (peer in site or flow.get("sites") == "all"):
                address = hostvars[peer]["site_address"]
                ports = flow["ports"]
                found += [{"host": peer, "address": address, "port": int(port), "flow": flow["name"]} for port in ports]
    return found


def reason(result: Mapping[str, Any]) -> str:
    """Why a host has no result, without Ansible's words around it."""
    text = " ".join(str(result.get("msg", "no answer")).split())
    return re.sub(r"^Task failed: (Module failed: |Data could not be sent .*? over ssh: )?", "", text)


def report(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The problems of all hosts as rows; a host that could not be asked is one."""
    rows = []
    for host, result in results.items():
        problems = result.get("problems")
        if problems is None:
            problems = [
                {"what": "connection", "seen": reason(result), "wanted": "ssh, Python 3 and sudo without a password"}
            ]
        rows += [{"host": host, **problem, "ok": False} for problem in problems]
    return rows
