"""Control groups of version 1 and 2, made of files, and systemctl."""

from __future__ import annotations

import subprocess

import pytest
from pst_trading import units
from pst_trading.units import Systemd, UnitsError, UnitState

UNIT = "pst-run@run_stack_handler.service"


@pytest.fixture
def root(tmp_path):
    (tmp_path / units.slice_path("trading") / UNIT / "sub").mkdir(parents=True)
    return tmp_path


def group(root, *names):
    return root.joinpath(units.slice_path("trading"), *names)


def test_systemd_nests_slices_by_their_names():
    assert str(units.slice_path("trading")) == "pst.slice/pst-trading.slice/pst-trading-trading.slice"


@pytest.mark.parametrize(
    ("own", "mount", "wanted"),
    [
        ("0::/init.scope\n", "", "."),
        ("0::/lxc/a/init.scope\n", "", "lxc/a"),
        ("4:memory:/docker/x\n1:name=systemd:/docker/x/init.scope\n0::/docker/x\n", "systemd", "systemd/docker/x"),
        ("1:name=systemd:/init.scope\n0::/init.scope\n", "systemd", "systemd"),
    ],
)
def test_the_root_of_systemd_is_found_in_both_versions_and_in_containers(tmp_path, own, mount, wanted):
    (tmp_path / mount).mkdir(exist_ok=True)
    (tmp_path / mount / "cgroup.procs").touch()
    (tmp_path / "self").write_text(own)
    assert units.systemd_root(tmp_path, tmp_path / "self") == tmp_path / wanted


def test_without_control_groups_it_says_so(tmp_path):
    (tmp_path / "self").write_text("0::/init.scope\n")
    with pytest.raises(UnitsError, match="no control groups"):
        units.systemd_root(tmp_path / "nowhere", tmp_path / "self")


def test_version_1_is_alive_while_a_process_is_anywhere_below(root):
    systemd = Systemd(root)
    assert systemd.empty("trading")
    assert systemd.empty("operations"), "a slice that was never made"
    group(root, UNIT, "sub", "cgroup.procs").write_text("41\n42\n")
    assert not systemd.empty("trading")
    assert systemd.alive("trading", UNIT)
    assert not systemd.alive("trading", "pst-run@other.service")


@pytest.mark.parametrize(("populated", "alive"), [(0, False), (1, True)])
def test_version_2_says_it_itself(root, populated, alive):
    group(root, UNIT, "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    assert Systemd(root).alive("trading", UNIT) is alive


def test_version_1_kills_until_nothing_is_left(root, monkeypatch):
    """The process forks while it is being killed."""
    procs = group(root, UNIT, "sub", "cgroup.procs")
    procs.write_text("41\n42\n")
    killed = []

    def kill(pid):
        killed.append(pid)
        procs.write_text("43\n" if pid == 42 else "" if pid == 43 else procs.read_text())

    monkeypatch.setattr(units, "_kill", kill)
    assert Systemd(root, clock=lambda: 0.0).kill("trading", give_up_at=1)
    assert killed == [41, 42, 43]


def test_version_2_kills_at_once(root, monkeypatch):
    events, at_once = group(root, "cgroup.events"), group(root, "cgroup.kill")
    events.write_text("populated 1\n")
    at_once.touch()

    def kernel(_seconds):
        assert at_once.read_text() == "1"
        events.write_text("populated 0\n")

    monkeypatch.setattr(units.time, "sleep", kernel)
    assert Systemd(root, clock=lambda: 0.0).kill("trading", give_up_at=1)


def test_what_does_not_die_is_not_waited_for(root, monkeypatch):
    group(root, UNIT, "cgroup.procs").write_text("41\n")
    monkeypatch.setattr(units, "_kill", lambda pid: None)
    times = iter([0.0, 0.5, 1.0])
    assert not Systemd(root, clock=lambda: next(times)).kill("trading", give_up_at=1)


def test_a_process_that_is_gone_is_killed_without_complaint():
    gone = subprocess.Popen(["true"])
    gone.wait()
    units._kill(gone.pid)


@pytest.fixture
def systemctl(monkeypatch, root):
    """Answer instead of systemctl; returns what was asked."""
    asked = []
    answer = {"returncode": 0, "stdout": "", "stderr": ""}

    def run(command, **_options):
        asked.append(command[1:])
        if answer.get("hangs"):
            raise subprocess.TimeoutExpired(command, 1)
        return subprocess.CompletedProcess(command, answer["returncode"], answer["stdout"], answer["stderr"])

    monkeypatch.setattr(units.subprocess, "run", run)
    return asked, answer, Systemd(root)


def test_a_start_is_queued(systemctl):
    asked, answer, systemd = systemctl
    systemd.start(UNIT)
    assert asked == [["start", "--no-block", UNIT]]
    answer.update(returncode=1, stderr="Transaction is destructive.\n")
    with pytest.raises(UnitsError, match="Transaction is destructive"):
        systemd.start(UNIT)
    answer["hangs"] = True
    with pytest.raises(UnitsError, match="not finished after 10 s"):
        systemd.start(UNIT)


def test_a_failure_is_forgotten(systemctl):
    asked, answer, systemd = systemctl
    systemd.forget_failure(UNIT)
    assert asked == [["reset-failed", UNIT]]
    answer.update(returncode=1, stderr="Access denied\n")
    with pytest.raises(UnitsError, match="Access denied"):
        systemd.forget_failure(UNIT)


@pytest.mark.parametrize(
    ("shown", "state", "over"),
    [
        ("ActiveState=inactive\nResult=success\nJob=17\n", UnitState("inactive", "success", job=True), False),
        ("ActiveState=inactive\nResult=success\nJob=0\n", UnitState("inactive", "success", job=False), True),
        ("ActiveState=failed\nResult=signal\n", UnitState("failed", "signal", job=False), True),
        ("ActiveState=deactivating\nResult=success\n", UnitState("deactivating", "success", job=False), False),
    ],
)
def test_a_unit_is_over_when_nothing_is_queued_for_it(systemctl, shown, state, over):
    _, answer, systemd = systemctl
    answer["stdout"] = shown
    assert systemd.state(UNIT) == state
    assert state.over is over
