"""One store on three hosts: written under the lease alone, whole after a loss, shut to a host that may have lost it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

SCENARIO = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
INVENTORY = AnsibleRunner(os.environ["ANSIBLE_INVENTORY"])
NODES = ["pq1", "pq2", "pq3"]
PUBLIC = "/var/lib/pst/parquet"
STORE = "/srv/parquet/store"
WAIT_S = 90


def on(name: str) -> Host:
    return INVENTORY.get_host(name, ssh_config=f"{SCENARIO}/state/ssh/config")


def root(name: str, command: str) -> str:
    host = on(name)
    with host.sudo():
        return str(host.check_output(command))


def refused(name: str, command: str, user: str = "root") -> str:
    """Run what has to fail; return what it says."""
    host = on(name)
    with host.sudo():
        done = host.run(f"timeout 30 setpriv --reuid={user} --regid={user} --clear-groups sh -c '{command}'")
    assert done.rc != 0, f"{command} on {name} as {user} was not refused"
    return str(done.stderr)


def wait_for(condition: Callable[[], Any], what: str, within: float = WAIT_S) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within, f"not {what} within {within} s"
        time.sleep(0.5)
    return time.monotonic() - started


def history(name: str) -> list[tuple[int, str, int]]:
    lines = root(name, f"cat {PUBLIC}/ledger/history").splitlines()
    return [(int(epoch), host, int(number)) for epoch, host, number in (line.split() for line in lines)]


def log(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in root(name, "cat /var/log/pst/writer.log 2>/dev/null || true").splitlines()]


def holder() -> str:
    for name in NODES:
        if docker("inspect", "--format", "{{.State.Paused}}", f"pst-parquet-{name}").stdout.strip() == "false":
            document = json.loads(root(name, "pst-trading lease show --placement strategies --json"))
            return str((document["holder"] or {}).get("host", ""))
    raise AssertionError("no host answers")


def docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


def freeze(name: str) -> None:
    """Freeze a host; with a write under way it refuses: under cgroup v1 what waits for FUSE cannot be frozen."""
    for _ in range(100):
        if docker("pause", f"pst-parquet-{name}").returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} cannot be frozen")


def admitted(name: str) -> str:
    return root(name, "nft list set inet pst_parquet members")


def address(name: str) -> str:
    return {"pq1": "10.78.23.11", "pq2": "10.78.23.12", "pq3": "10.78.23.13"}[name]


def writes(name: str, more: int = 5) -> None:
    """Wait until that host has written a few times more."""
    seen = len([line for line in history(name) if line[1] == name])
    wait_for(
        lambda: len([line for line in history(name) if line[1] == name]) >= seen + more, f"{more} writes of {name}"
    )


def healthy() -> None:
    for name in NODES:
        wait_for(lambda name=name: on(name).run("sudo pst-parquet status").rc == 0, f"{name} in health", 120)


def test_no_acknowledged_write_was_lost_with_its_host() -> None:
    """side_effect.yml has killed pq1 in mid-write, and then thrown away the disk of pq3."""
    healthy()
    there = set(history("pq2"))
    acknowledged = [line for line in log("pq1") if line["outcome"] == "ok"]
    assert len(acknowledged) > 10
    assert [line for line in acknowledged if (line["epoch"], "pq1", line["n"]) not in there] == []
    epochs = [epoch for epoch, _, _ in history("pq2")]
    assert epochs == sorted(epochs)
    assert len(set(epochs)) > 1, "another host went on"


def test_every_file_is_whole_and_the_same_on_every_host() -> None:
    def whole(name: str, file: str) -> bool:
        head, _, body = root(name, f"cat {PUBLIC}/ledger/{file}").partition("\n")
        try:
            return json.loads(head)["sha256"] == hashlib.sha256(body.encode()).hexdigest()
        except ValueError:
            return False  # it is being rewritten

    for name in NODES:
        for number in range(5):
            wait_for(lambda name=name, number=number: whole(name, f"f{number}"), f"f{number} whole on {name}", 20)
    root(holder(), f"head -c 300000 /dev/urandom > {STORE}/still && sync {STORE}/still")
    assert len({root(name, "sha256sum /srv/parquet/brick/still") for name in NODES}) == 1


@pytest.mark.parametrize("name", NODES)
def test_who_has_no_lease_finds_the_store_read_only(name: str) -> None:
    assert "Read-only file system" in refused(name, f"touch {PUBLIC}/x", "pst")
    assert "Read-only file system" in refused(name, f"touch {PUBLIC}/x")
    assert "Permission denied" in refused(name, f"touch {STORE}/x", "pst")
    assert root(name, f"stat --format '%U %a' {PUBLIC}").strip() == "pst 750"


def test_nothing_is_written_under_an_empty_mount_point() -> None:
    """What would be found where the volume is not mounted: a folder that the writers cannot use."""
    seen = root("pq1", f"unshare -m sh -c 'umount -l {PUBLIC}; umount -l {STORE}; stat --format %U:%a {STORE}'")
    assert seen.strip() == "root:0"


def test_a_host_that_may_have_lost_its_lease_is_shut_out() -> None:
    """A process runs in the slice of a placement without a lease: its host cannot write, not as root either."""
    writer = holder()
    other, third = (name for name in NODES if name != writer)
    wait_for(lambda: address(other) in admitted(writer), f"{other} admitted")
    root(other, f"touch {STORE}/by-root && rm {STORE}/by-root")
    root(other, "systemctl stop pst-guard.service")
    root(other, "systemd-run --unit=stray --slice=pst-trading-strategies.slice sleep 300")
    took = wait_for(lambda: address(other) not in admitted(writer) + admitted(third), f"{other} shut out", 20)
    said = refused(other, f"echo late > {STORE}/late")
    writes(writer)
    assert root(writer, f"ls {STORE}").split() == root(third, f"ls {PUBLIC}").split()
    assert "late" not in root(writer, f"ls {STORE}").split()
    print(f"shut out after {took:.1f} s: {said.strip()}")
    root(other, "systemctl stop stray.service; systemctl start pst-guard.service")
    wait_for(lambda: address(other) in admitted(writer), f"{other} admitted again", 20)
    wait_for(lambda: on(other).run(f"sudo timeout 5 touch {STORE}/by-root").rc == 0, f"{other} writes again", 30)
    root(other, f"rm {STORE}/by-root")
    healthy()


def test_a_holder_that_was_frozen_writes_nothing_after_the_next_one() -> None:
    old = holder()
    writes(old)
    freeze(old)
    began = time.monotonic()
    try:
        wait_for(lambda: holder() not in ("", old), "another holder", 60)
        new = holder()
        writes(new, 20)
        print(f"frozen holder: {new} had written 20 times after {time.monotonic() - began:.1f} s")
        thawed = time.time()
    finally:
        docker("unpause", f"pst-parquet-{old}")
    wait_for(lambda: on(old).run("true").rc == 0, "back")
    writes(new, 20)
    lines = history(new)
    epochs = [epoch for epoch, _, _ in lines]
    assert epochs == sorted(epochs), "a line of an old epoch after one of a new one"
    late = [
        line
        for line in log(old)
        if line["at"] + line["took"] > thawed and line["outcome"] == "ok" and line["epoch"] < epochs[-1]
    ]
    assert late == [], "the frozen host was told that its write is done"
    healthy()


def test_a_dead_client_is_started_again_and_the_store_is_back() -> None:
    name = next(name for name in NODES if name != holder())
    pid = root(name, "systemctl show --property=MainPID --value pst-parquet.service").strip()
    root(name, f"kill -9 {pid}")
    wait_for(lambda: on(name).run("sudo pst-parquet check --wait 1").rc == 0, "mounted again", 30)
    assert history(name)


@pytest.mark.parametrize(("unit", "most"), [("pst-parquet-fence", 2.0)])
def test_units_are_confined(unit: str, most: float) -> None:
    said = root("pq1", f"systemd-analyze security --no-pager {unit}").strip().splitlines()[-1]
    assert float(said.split(":")[1].split()[0]) <= most, said


@pytest.mark.parametrize(("shown", "end"), [("", "unexpected eof"), ("-cert s.crt -key s.key", "alert unknown ca")])
def test_a_stranger_is_turned_away(shown: str, end: str) -> None:
    """Without a certificate the daemon hangs up after the handshake; another authority's it refuses."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout s.key -out s.crt -subj /CN=pq1.parquet.pst.test -days 1"
    ask = f"sleep 3 | timeout 10 openssl s_client -connect {address('pq1')}:24007 {shown}"
    assert end in on("pq-db").run(f"cd /tmp && {make} 2>/dev/null; {ask} 2>&1").stdout
