"""pst.platform.units against a systemd in memory: what is done, what is only reported, and what is never forgotten."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.pst.platform.plugins.module_utils import units
from ansible_collections.pst.platform.plugins.module_utils.units import (
    Completed,
    Report,
    Status,
    Systemd,
    UnitsError,
    Wanted,
    is_stale,
    newest_ns,
    problems_of,
)

SECOND = 10**9


class FakeSystemd:
    """Answers `systemctl` as systemd 252 does, for the verbs and properties that the module uses."""

    def __init__(self, **services: str) -> None:
        """Take the ActiveState of each service; `not_found` for one that does not exist."""
        self.commands: list[str] = []
        self.questions = 0
        self.broken: set[str] = set()
        self.units = {
            f"{name}.service": {
                "LoadState": "loaded",
                "ActiveState": state,
                "SubState": "running" if state == "active" else "dead",
                "UnitFileState": "enabled",
                "FragmentPath": "",
                "NeedDaemonReload": "no",
                "CanReload": "yes",
                "Type": "notify",
                "Result": "success",
                "ExecMainStartTimestampMonotonic": str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
                if state == "active"
                else "0",
            }
            for name, state in services.items()
        }
        for name, state in services.items():
            if state == "not_found":
                self.units[f"{name}.service"] |= {
                    "LoadState": "not-found",
                    "ActiveState": "inactive",
                    "UnitFileState": "",
                }

    def __call__(self, command: Sequence[str], _timeout: float | None = None) -> Completed:
        if command[0] == "journalctl":
            return Completed(0, f"last words of {command[-1]}\n", "")
        _, verb, *rest = command
        names = [word for word in rest if not word.startswith("--")]
        if verb == "show":
            self.questions += 1
            blocks = ["\n".join(f"{key}={value}" for key, value in self.units[name].items()) for name in names]
            return Completed(0, "\n\n".join(blocks) + "\n", "")
        self.commands.append(" ".join([verb, *names]))
        return getattr(self, verb.replace("-", "_"))(names)

    def daemon_reload(self, _names: list[str]) -> Completed:
        for unit in self.units.values():
            unit["NeedDaemonReload"] = "no"
        return Completed(0, "", "")

    def start(self, names: list[str]) -> Completed:
        for name in names:
            if name in self.broken:
                self.units[name] |= {"ActiveState": "failed", "Result": "exit-code"}
                return Completed(1, "", f"Job for {name} failed.")
            stamp = str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
            self.units[name] |= {"ActiveState": "active", "ExecMainStartTimestampMonotonic": stamp}
        return Completed(0, "", "")

    restart = start

    def stop(self, names: list[str]) -> Completed:
        return self._set(names, ActiveState="inactive")

    def reset_failed(self, names: list[str]) -> Completed:
        return self._set(names, ActiveState="inactive")

    def enable(self, names: list[str]) -> Completed:
        return self._set(names, UnitFileState="enabled")

    def disable(self, names: list[str]) -> Completed:
        return self._set(names, UnitFileState="disabled")

    def mask(self, names: list[str]) -> Completed:
        return self._set(names, LoadState="masked", UnitFileState="masked", FragmentPath="/dev/null")

    def unmask(self, names: list[str]) -> Completed:
        return self._set(names, LoadState="loaded", UnitFileState="disabled", FragmentPath="")

    def reload(self, names: list[str]) -> Completed:
        return self._set(names)

    def _set(self, names: list[str], **values: str) -> Completed:
        for name in names:
            self.units[name] |= values
        return Completed(0, "", "")


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A settings file as old as the machine."""
    path = tmp_path / "a.conf"
    path.touch()
    os.utime(path, (1, 1))
    return path


@pytest.fixture
def converge(tmp_path: Path):
    def converge(systemd: FakeSystemd, *wanted: Wanted, check: bool = False) -> Report:
        systemd.commands.clear()
        places = {"markers": tmp_path / "markers", "drop_ins": tmp_path}
        return Systemd(wanted, check=check, run=systemd, **places).converge()

    return converge


def touch(path: Path, seconds: float = 0) -> None:
    """Write the file `seconds` from now."""
    moment = time.time_ns() + int(seconds * SECOND)
    os.utime(path, ns=(moment, moment))


def test_a_running_unit_is_left_alone(converge, conf):
    systemd = FakeSystemd(a="active")
    report = converge(systemd, Wanted("a.service", restart_when_newer=(str(conf),)))
    assert not report.changed
    assert report.before == report.after
    assert systemd.commands == []


def test_a_first_start(converge):
    systemd = FakeSystemd(a="inactive", b="inactive")
    systemd.units["a.service"]["UnitFileState"] = "disabled"
    report = converge(systemd, Wanted("a.service"), Wanted("b.service"))
    assert systemd.commands == ["enable a.service", "start a.service b.service"]
    assert report.started == ["a.service", "b.service"]
    assert not converge(systemd, Wanted("a.service"), Wanted("b.service")).changed


def test_a_changed_file_restarts_once(converge, conf):
    systemd = FakeSystemd(a="active")
    wanted = Wanted("a.service", restart_when_newer=(str(conf),))
    touch(conf)
    assert converge(systemd, wanted).restarted == ["a.service"]
    assert not converge(systemd, wanted).changed


def test_a_cluster_member_is_reported_until_it_is_restarted(converge, conf):
    systemd = FakeSystemd(a="active")
    wanted = Wanted("a.service", restart_when_newer=(str(conf),), restart_on_stale=False)
    touch(conf)
    for _ in range(2):  # a run that was killed after the report finds the same again
        report = converge(systemd, wanted)
        assert (report.stale, report.changed, systemd.commands) == (["a.service"], False, [])
    systemd.restart(["a.service"])
    assert converge(systemd, wanted).stale == []


def test_a_stopped_cluster_member_is_started_and_not_stale(converge, conf):
    systemd = FakeSystemd(a="inactive")
    touch(conf)
    report = converge(systemd, Wanted("a.service", restart_when_newer=(str(conf),), restart_on_stale=False))
    assert (report.started, report.stale) == (["a.service"], [])


def test_its_own_unit_file_makes_a_unit_stale_but_a_generated_one_does_not(converge, conf):
    systemd = FakeSystemd(a="active")
    systemd.units["a.service"] |= {"FragmentPath": str(conf), "DropInPaths": "/run/systemd/generator/x.conf /dev/null"}
    assert not converge(systemd, Wanted("a.service")).changed
    touch(conf)
    systemd.units["a.service"]["NeedDaemonReload"] = "yes"
    report = converge(systemd, Wanted("a.service"))
    assert systemd.commands == ["daemon-reload", "restart a.service"]
    assert report.daemon_reloaded


def test_what_systemd_makes_itself_at_every_daemon_reload_does_not_count():
    status = Status({"FragmentPath": "/run/systemd/generator/a.service", "DropInPaths": "/dev/null /etc/a.conf"})
    assert status.files == ["/etc/a.conf"]


def test_a_new_folder_of_drop_ins_is_found_though_systemd_does_not_say_so(converge, tmp_path):
    """Version 252 reports NeedDaemonReload=no for it."""
    systemd = FakeSystemd(a="active")
    folder = tmp_path / "a.service.d"
    folder.mkdir()
    (folder / "limits.conf").write_text("[Service]\n")
    (folder / "off.conf").symlink_to("/dev/null")
    assert converge(systemd, Wanted("a.service")).daemon_reloaded
    assert systemd.commands == ["daemon-reload"]
    systemd.units["a.service"]["DropInPaths"] = str(folder / "limits.conf")
    assert not converge(systemd, Wanted("a.service", restart_on_stale=False)).changed


def test_a_unit_whose_conditions_do_not_hold_here_is_told_and_no_failure(converge, monkeypatch):
    systemd = FakeSystemd(a="inactive")
    condition = {"ConditionResult": "no", "ConditionTimestampMonotonic": "5"}
    monkeypatch.setattr(systemd, "start", lambda names: systemd._set(names, **condition))
    assert converge(systemd, Wanted("a.service")).left_out == ["a.service"]
    report = converge(systemd, Wanted("a.service"))
    assert (report.left_out, report.changed) == (["a.service"], False)


def test_a_stopped_unit_can_be_enabled(converge):
    systemd = FakeSystemd(a="inactive")
    systemd.units["a.service"]["UnitFileState"] = "disabled"
    assert converge(systemd, Wanted("a.service", started=False)).enabled == ["a.service"]


def test_a_reload_is_done_once_for_each_change(converge, conf):
    systemd = FakeSystemd(a="active")
    wanted = Wanted("a.service", reload_when_newer=(str(conf),))
    for seconds in (1, 2):
        touch(conf, seconds)
        assert converge(systemd, wanted).reloaded == ["a.service"]
        assert not converge(systemd, wanted).changed


def test_a_restart_makes_the_reload_needless(converge, conf):
    systemd = FakeSystemd(a="active")
    touch(conf)
    report = converge(systemd, Wanted("a.service", restart_when_newer=(str(conf),), reload_when_newer=(str(conf),)))
    assert (report.restarted, report.reloaded) == (["a.service"], [])


def test_a_unit_without_a_way_to_reload_is_named(converge, conf):
    systemd = FakeSystemd(a="active")
    systemd.units["a.service"]["CanReload"] = "no"
    touch(conf)
    with pytest.raises(UnitsError, match=r"a\.service: has no way to reload"):
        converge(systemd, Wanted("a.service", reload_when_newer=(str(conf),)))


def test_a_failed_unit_gets_another_chance(converge):
    systemd = FakeSystemd(a="failed")
    assert converge(systemd, Wanted("a.service")).started == ["a.service"]
    assert systemd.commands == ["reset-failed a.service", "start a.service"]


def test_a_start_that_fails_shows_the_journal(converge):
    systemd = FakeSystemd(a="inactive")
    systemd.broken = {"a.service"}
    with pytest.raises(
        UnitsError, match=r"(?s)Job for a\.service failed.*a\.service is failed.*last words of a\.service"
    ):
        converge(systemd, Wanted("a.service"))


def test_a_start_that_says_it_worked_is_not_believed(converge, monkeypatch):
    systemd = FakeSystemd(a="inactive")
    monkeypatch.setattr(
        systemd, "start", lambda names: systemd._set(names, ActiveState="activating", SubState="auto-restart")
    )
    with pytest.raises(UnitsError, match=r"a\.service is activating \(auto-restart\), wanted active"):
        converge(systemd, Wanted("a.service"))


def test_a_unit_that_a_package_is_starting_is_waited_for_and_no_change(converge):
    systemd = FakeSystemd(a="activating")
    report = converge(systemd, Wanted("a.service"))
    assert systemd.commands == ["start a.service"]
    assert not report.changed


def test_a_unit_of_another_service_is_left_as_it_is_and_told_of_when_stale(converge, conf):
    systemd = FakeSystemd(a="active", b="inactive")
    wanted = [Wanted(f"{name}.service", started=None, restart_when_newer=(str(conf),)) for name in "ab"]
    touch(conf)
    systemd.units["a.service"]["NeedDaemonReload"] = "yes"
    report = converge(systemd, *wanted)
    assert report.stale == ["a.service"]
    assert systemd.commands == ["daemon-reload"], "systemd reads its files, and that is all"
    assert not converge(systemd, *wanted).changed


def test_stop_disable_mask_and_back(converge):
    systemd = FakeSystemd(a="active", b="active")
    away = (Wanted("a.service", enabled=False, started=False), Wanted("b.service", started=False, masked=True))
    report = converge(systemd, *away)
    assert (report.disabled, report.masked, report.stopped) == (
        ["a.service"],
        ["b.service"],
        ["a.service", "b.service"],
    )
    assert not converge(systemd, *away).changed
    report = converge(systemd, Wanted("a.service"), Wanted("b.service"))
    assert (report.unmasked, report.enabled) == (["b.service"], ["a.service", "b.service"])
    assert report.started == ["a.service", "b.service"]


def test_what_is_not_installed_can_be_stopped_and_masked_but_not_started(converge):
    systemd = FakeSystemd(a="not_found")
    assert not converge(systemd, Wanted("a.service", started=False)).changed
    with pytest.raises(UnitsError, match=r"a\.service: systemd knows no such unit"):
        converge(systemd, Wanted("a.service"))
    assert converge(systemd, Wanted("a.service", started=False, masked=True)).masked == ["a.service"]


def test_check_mode_predicts_and_touches_nothing(converge, conf):
    systemd = FakeSystemd(a="not_found", b="active", c="active", d="failed")
    touch(conf)
    wanted = (
        Wanted("a.service"),
        Wanted("b.service", restart_when_newer=(str(conf),)),
        Wanted("c.service", reload_when_newer=(str(conf),)),
        Wanted("d.service"),
    )
    report = converge(systemd, *wanted, check=True)
    assert systemd.commands == []
    assert (report.enabled, report.started) == (["a.service"], ["a.service", "d.service"])
    assert (report.restarted, report.reloaded) == (["b.service"], ["c.service"])
    assert "restarted: b.service" in report.after


def test_a_job_that_succeeded_counts_as_started_and_runs_again_when_stale(converge, conf):
    systemd = FakeSystemd(job="inactive")
    stamp = str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
    systemd.units["job.service"] |= {
        "Type": "oneshot",
        "RemainAfterExit": "no",
        "ExecMainStartTimestampMonotonic": stamp,
        "ExecMainExitTimestampMonotonic": stamp,
    }
    wanted = Wanted("job.service", restart_when_newer=(str(conf),))
    assert not converge(systemd, wanted).changed
    touch(conf)
    assert converge(systemd, wanted).restarted == ["job.service"]


def test_a_unit_without_a_process_counts_from_when_it_became_active(conf):
    now = time.time_ns()
    timer = Status({"ActiveState": "active", "ActiveEnterTimestampMonotonic": "1000000"})
    touch(conf)
    wanted = Wanted("a.timer", restart_when_newer=(str(conf),))
    assert is_stale(wanted, timer, now - 60 * SECOND)
    assert not is_stale(wanted, timer, now + 60 * SECOND)


def test_problems_are_found_all_at_once():
    given = [
        {"name": "a"},
        {"name": "b.service"},
        {"name": "b.service"},
        {"name": "c.service", "masked": True, "state": "started"},
    ]
    assert len(problems_of(given)) == 3
    assert problems_of([{"name": r"srv-data\x2d1.mount"}, {"name": "pst@blue.service"}]) == []


def test_a_command_that_hangs_is_a_failure():
    done = units.run(["sleep", "5"], 0.05)
    assert done.code == 124
    assert "not finished after 0.05 s" in done.err


def test_a_link_counts_with_its_own_time(tmp_path: Path, conf: Path):
    link = tmp_path / "link"
    link.symlink_to(conf)
    assert newest_ns([str(conf), str(tmp_path / "absent")]) == SECOND
    assert newest_ns([str(link)]) == link.lstat().st_mtime_ns


@given(
    start=st.integers(1, 10**12),
    offset=st.integers(0, 2 * 10**18),
    written=st.lists(st.integers(0, 2 * 10**18), max_size=4),
    reloaded=st.booleans(),
)
def test_stale_means_that_some_file_is_newer_than_the_process(start, offset, written, reloaded):
    """Whatever the clocks say, and whichever of the files it is."""
    status = Status(
        {"ActiveState": "reloading" if reloaded else "active", "ExecMainStartTimestampMonotonic": str(start)}
    )
    times = iter(written)
    wanted = Wanted("a.service", restart_when_newer=tuple(str(number) for number in range(len(written))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "newest_ns", lambda paths: max((next(times) for _ in paths), default=0))
        assert is_stale(wanted, status, offset) == any(moment > start * 1000 + offset for moment in written)


@given(st.lists(st.sampled_from(["write", "run", "report", "restart"]), max_size=12))
def test_no_order_of_events_loses_a_change(events: list[str]):
    """Writes, whole runs, reporting runs and restarts in any order: no run forgets a change."""
    systemd = FakeSystemd(a="active")
    moment = [time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000]

    def restart(names: list[str]) -> Completed:
        moment[0] += 1
        return systemd._set(names, ActiveState="active", ExecMainStartTimestampMonotonic=str(moment[0]))

    systemd.restart = restart
    file_time = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "clock_offset_ns", lambda: 0)
        patch.setattr(units, "newest_ns", lambda paths: file_time if "/conf" in list(paths) else 0)
        for event in events:
            if event == "write":
                moment[0] += 1
                file_time = moment[0] * 1000
            elif event == "restart":
                restart(["a.service"])
            else:
                wanted = Wanted("a.service", restart_when_newer=("/conf",), restart_on_stale=event == "run")
                report = Systemd([wanted], run=systemd, drop_ins=Path("/nonexistent")).converge()
                old = int(systemd.units["a.service"]["ExecMainStartTimestampMonotonic"]) * 1000 < file_time
                assert old == (report.stale == ["a.service"])
                assert not (old and event == "run")


def test_what_needs_nothing_is_asked_once(converge, conf):
    systemd = FakeSystemd(a="active", b="active")
    wanted = Wanted("a.service", restart_when_newer=(str(conf),)), Wanted("b.service")
    assert not converge(systemd, *wanted).changed
    assert systemd.questions == 1
    touch(conf)
    assert converge(systemd, *wanted).restarted == ["a.service"]
    assert systemd.questions == 3, "before, and after the restart that has to be proved"
