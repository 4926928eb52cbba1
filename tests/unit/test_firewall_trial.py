"""pst-firewall against a kernel, a timer and a control node that may die at any step."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roles.firewall.files import pst_firewall
from roles.firewall.files.pst_firewall import Firewall, FirewallError


class Killed(BaseException):
    """The process ended here."""


class Machine:
    """What pst-firewall talks to: nft, and systemd's timer. `dies_after` ends the process after so many commands."""

    def __init__(self) -> None:
        self.table = ""
        self.armed = False
        self.dies_after: int | None = None

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        if self.dies_after == 0:
            raise Killed
        if self.dies_after:
            self.dies_after -= 1
        output = ""
        match command:
            case ("nft", "--stateless", "--terse", "list", *_):
                output = self.table
            case ("nft", "--check", "--file", path):
                if "syntax error" in Path(path).read_text():
                    raise FirewallError("syntax error")
            case ("nft", "--file", path):
                self.table = Path(path).read_text()
            case ("nft", "add" | "delete", *_):
                self.table = ""
            case ("systemd-run", *_) | ("systemctl", "stop", *_):
                self.armed = command[0] == "systemd-run"
            case _:
                raise AssertionError(command)
        return subprocess.CompletedProcess(command, 0, output, "")


class Host:
    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine()
        self.firewall = Firewall(root)
        self.firewall.additions.mkdir(parents=True)
        monkeypatch.setattr(pst_firewall, "run", self.machine.run)

    def want(self, rules: str) -> None:
        self.firewall.rules.write_text(rules)

    def keep(self, rules: str) -> None:
        self.want(rules)
        assert self.firewall.apply(60)
        self.firewall.confirm()

    def time_passes(self) -> None:
        """The timer fires where it is armed."""
        self.machine.dies_after = None
        if self.machine.armed:
            self.machine.armed = False
            self.firewall.rollback()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_confirmed_rules_stay(host: Host) -> None:
    host.keep("one\n")
    host.time_passes()
    assert host.machine.table == "one\n"
    assert host.firewall.is_current()
    assert not host.firewall.apply(60)


def test_rules_that_nobody_confirms_go_away(host: Host) -> None:
    host.want("one\n")
    host.firewall.apply(60)
    assert host.machine.table == "one\n"
    host.time_passes()
    assert host.machine.table == ""
    assert host.firewall.apply(60), "the next run tries again"


def test_the_confirmed_rules_come_back(host: Host) -> None:
    host.keep("one\n")
    host.want("two\n")
    host.firewall.apply(60)
    host.time_passes()
    assert host.machine.table == "one\n"
    with pytest.raises(FirewallError, match="the trial has ended"):
        host.firewall.confirm()
    assert host.firewall.confirmed.read_text() == "one\n"


def test_invalid_rules_are_never_loaded(host: Host) -> None:
    host.keep("one\n")
    host.want("syntax error\n")
    with pytest.raises(FirewallError):
        host.firewall.apply(60)
    assert host.machine.table == "one\n"
    assert not host.machine.armed


def test_a_changed_or_flushed_table_is_noticed(host: Host) -> None:
    host.keep("one\n")
    for table in ("one and more\n", ""):
        host.machine.table = table
        assert not host.firewall.is_current()
        assert host.firewall.apply(60)
        host.firewall.confirm()
        assert host.machine.table == "one\n"


def test_additions_take_the_place_of_the_include(host: Host) -> None:
    host.want('before\n    include "/etc/pst/firewall.d/*.nft"\nafter\n')
    (host.firewall.additions / "20.nft").write_text("second\n")
    (host.firewall.additions / "10.nft").write_text("first")
    (host.firewall.additions / "note.txt").write_text("not a rule\n")
    lines = [line for line in host.firewall.wanted().splitlines() if not line.startswith("#")]
    assert lines == ["before", "first", "second", "after"]


def test_an_addition_is_a_change(host: Host) -> None:
    host.keep('include "/etc/pst/firewall.d/*.nft"\n')
    (host.firewall.additions / "10.nft").write_text("first")
    assert not host.firewall.is_current()


@given(
    first=st.sampled_from(["apply", "confirm", "rollback"]),
    steps=st.integers(min_value=0, max_value=6),
    second=st.sampled_from(["apply", "confirm", "rollback", "nothing"]),
)
def test_killed_at_any_step_never_leaves_unproven_rules(
    tmp_path_factory: pytest.TempPathFactory, first: str, steps: int, second: str
) -> None:
    """Whatever is killed, whatever comes next: rules that no login has proven are neither kept nor loaded at boot."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        host = Host(tmp_path_factory.mktemp("host"), monkeypatch)
        host.keep("one\n")
        host.want("two\n")
        proven = first == "confirm"
        if first != "apply":
            host.firewall.apply(60)
        host.machine.dies_after = steps
        _try(host, first)
        host.machine.dies_after = None
        if second == "confirm":
            proven = host.machine.table == "two\n"  # a confirm comes through a login that the live rules allow
        _try(host, second)
        host.time_passes()
        kept = host.firewall.confirmed.read_text()
        assert kept == "one\n" or proven
        assert host.machine.table in ({kept} if second != "nothing" or first != "confirm" else {"one\n", "two\n"})

        host.want("three\n")
        assert host.firewall.apply(60), "the next run goes on"
        host.firewall.confirm()
        assert host.firewall.is_current()


def _try(host: Host, verb: str) -> None:
    try:
        if verb == "apply":
            host.firewall.apply(60)
        elif verb != "nothing":
            getattr(host.firewall, verb)()
    except (Killed, FirewallError):
        pass
