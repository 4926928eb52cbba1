"""The command line: what it does, what it refuses and why, and its exit codes."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from fakes import DOCUMENT, MONDAY_MORNING
from mongo_rules import Database
from pst_trading import cli, store
from pst_trading.control import GuardAwayError
from pst_trading.keeper import Files
from pst_trading.lease import Grant, Holder
from pst_trading.processes import ORDER_SENDER, MongoProcessControl

HOLDER = Holder("app1", "blue", "x", "10.0.0.1")
TODAY = MONDAY_MORNING.date().isoformat()


class Units:
    def __init__(self):
        self.living = set()
        self.killed = []

    def alive(self, placement, unit):
        return unit in self.living

    def kill(self, placement, give_up_at):
        self.killed.append(placement)
        return True


class Host:
    """This host: its settings, its folder in /run, MongoDB, the guard."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.settings = folder / "settings"
        self.settings.write_text(json.dumps(DOCUMENT))
        self.now = 100.0
        self.up = True
        self.units = Units()
        self.asked = []
        self.answer = None
        self.later = []
        self.databases = {
            name: Database(now=self.server_time, reachable=lambda: self.up) for name in ("pst", "production")
        }
        self.control = MongoProcessControl(self.databases["production"])
        self.leases = store.MongoLeases(self.databases["pst"])
        self.runs = store.MongoRuns(self.databases["pst"])
        monkeypatch.setattr(cli, "connect", lambda _settings: self.databases)
        monkeypatch.setattr(cli, "RUN", folder)
        monkeypatch.setattr(cli, "boot_time", lambda: self.now)
        monkeypatch.setattr(cli, "local_time", lambda: MONDAY_MORNING)
        monkeypatch.setattr(cli, "Systemd", lambda clock: self.units)
        monkeypatch.setattr(cli, "ask", self.ask)
        monkeypatch.setattr(cli.time, "sleep", self.sleep)

    def server_time(self):
        return MONDAY_MORNING + timedelta(seconds=self.now)

    def sleep(self, seconds):
        self.now += seconds
        if self.later:
            self.later.pop(0)()

    def ask(self, message, timeout_s):
        self.asked.append(message)
        if self.answer is None:
            raise GuardAwayError("no guard")
        return self.answer

    def hold(self, placement="trading", *, ready=True):
        grant = Grant(1, HOLDER, self.now, self.now + 15, self.now + 12, "released")
        files = Files(self.folder, placement, -1)
        files.write_grant(placement, grant)
        if ready:
            files.write_environment(placement, grant)

    def lease(self, **fields):
        self.leases.create("trading")
        (stored,) = self.databases["pst"].stored["leases"].documents
        stored.update(expires_at=self.server_time() + timedelta(seconds=9), **fields)
        return stored


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


@pytest.fixture
def run(host, capsys):
    """Run a command; returns exit code, output, complaints."""

    def command(*words):
        code = cli.main(["--settings", str(host.settings), *words])
        said = capsys.readouterr()
        return code, said.out.strip(), said.err.strip()

    return command


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_right_file_passes_the_check_without_a_word(host, run):
    assert run("--check-config", str(host.settings)) == (0, "", "")


def test_a_wrong_file_is_exit_code_78_with_all_that_is_wrong(host, run):
    host.settings.write_text(json.dumps({**DOCUMENT, "colour": "red", "x": 1}))
    code, _, complaint = run("--check-config", str(host.settings))
    assert code == 78
    assert len(complaint.splitlines()) == 2


def test_a_guard_that_cannot_read_its_settings_leaves_nothing_running(host, run):
    host.hold()
    host.settings.write_text("{")
    code, _, _ = run("guard")
    assert code == 78
    assert host.units.killed == ["trading"]
    assert not list(host.folder.glob("trading.*"))


def test_no_command_is_a_wrong_call(run):
    code, _, complaint = run()
    assert code == 2
    assert "usage" in complaint


# --- the check before a start -----------------------------------------------------------------------------------------


def test_with_the_lease_a_process_may_start(host, run):
    host.hold()
    assert run("check", ORDER_SENDER) == (0, "", "")


def test_without_the_lease_it_says_who_holds_it(host, run):
    host.lease(holder={"host": "app2", "colour": "green"}, epoch=7)
    code, _, complaint = run("check", ORDER_SENDER)
    assert code == 1
    assert complaint == (
        "run_stack_handler: this host does not hold the lease of trading: held by app2/green, epoch 7, 9 s to live"
    )


def test_a_lease_that_is_about_to_end_is_none(host, run):
    host.hold()
    host.now += 12
    assert run("check", ORDER_SENDER)[0] == 1


def test_without_mongodb_it_refuses_all_the_same(host, run):
    host.up = False
    code, _, complaint = run("check", ORDER_SENDER)
    assert code == 1
    assert "who does is not known" in complaint


def test_nothing_starts_before_the_recovery_is_done(host, run):
    host.hold(ready=False)
    code, _, complaint = run("check", ORDER_SENDER)
    assert code == 1
    assert "still cleans up after the last holder" in complaint


@pytest.mark.parametrize(
    ("claim", "state", "code", "complaint"),
    [
        (None, None, 1, "its run of today is not claimed"),
        ({"epoch": 1, "host": "app1"}, "running", 0, ""),
        ({"epoch": 2, "host": "app2"}, "running", 1, "its run of today is running on app2"),
        ({"epoch": 1, "host": "app1"}, "succeeded", 1, "its run of today is succeeded on app1"),
    ],
)
def test_a_daily_process_starts_for_the_run_that_the_guard_has_claimed(host, run, claim, state, code, complaint):
    host.hold("strategies")
    if claim:
        host.runs.claim("run_systems", TODAY, claim, take_over=True)
        host.runs.finish("run_systems", TODAY, state, ["running"])
    seen, _, said = run("check", "run_systems")
    assert seen == code
    assert complaint in said


def test_an_unknown_process_is_named_with_those_that_are_known(run):
    code, _, complaint = run("check", "run_stack")
    assert code == 1
    assert "wanted one of: run_stack_handler, run_systems" in complaint


# --- stopping and starting --------------------------------------------------------------------------------------------


@pytest.fixture
def trader(host):
    """This host with a trader that runs."""
    host.hold()
    process = cli.configuration.load(host.settings).process(ORDER_SENDER)
    host.units.living = {process.unit}
    entry = {"process_name": ORDER_SENDER, "status": "GO", "currently_running": 1.0}
    host.databases["production"]["process_control"].insert_one(entry)
    return host


def end(host):
    host.units.living.clear()
    host.databases["production"]["process_control"].update_one(
        {"process_name": ORDER_SENDER}, {"$set": {"currently_running": 0.0}}
    )


def status_of_trader(host):
    return host.control.states([ORDER_SENDER])[ORDER_SENDER].status


def test_a_planned_stop_stays_until_start(trader, run):
    trader.later = [lambda: end(trader)]
    code, said, _ = run("stop", ORDER_SENDER)
    assert code == 0
    assert "stays stopped until `pst-trading start run_stack_handler`" in said
    assert status_of_trader(trader) == "STOP"
    assert run("start", ORDER_SENDER)[0] == 0
    assert status_of_trader(trader) == "GO"


def test_a_stop_that_cannot_drain_says_which_orders_remain_and_changes_nothing(trader, run):
    trader.databases["production"]["BROKER_ORDER_STACK"].insert_one({"order_id": 7, "active": 1.0, "key": "s/i/1"})
    code, _, complaint = run("stop", ORDER_SENDER)
    assert code == 1
    assert "not stopped, and nothing is changed" in complaint
    assert "BROKER_ORDER_STACK 7: s/i/1" in complaint
    assert status_of_trader(trader) == "GO"
    assert trader.now == 100 + DOCUMENT["drain"]["timeout_s"]


def test_stop_on_the_wrong_host_says_where(host, run):
    host.lease(holder={"host": "app2", "colour": "blue"})
    code, _, complaint = run("stop", ORDER_SENDER)
    assert code == 1
    assert "does not run on this host: held by app2/blue" in complaint


def test_the_drain_of_systemd_has_nothing_to_do_once_the_process_has_ended(trader, run, monkeypatch):
    monkeypatch.delenv("MAINPID", raising=False)
    assert run("drain", ORDER_SENDER) == (0, "", "")
    monkeypatch.setenv("MAINPID", "999999999")
    assert run("drain", ORDER_SENDER)[0] == 0
    assert status_of_trader(trader) == "GO"


def test_rerun_is_for_daily_runs_that_are_over(host, run):
    assert "wanted a daily process" in run("rerun", ORDER_SENDER)[2]
    host.runs.claim("run_systems", TODAY, {"epoch": 1}, take_over=True)
    assert "is not over" in run("rerun", "run_systems")[2]
    host.runs.finish("run_systems", TODAY, "failed", ["running"])
    assert run("rerun", "run_systems")[0] == 0
    assert host.runs.of_day("run_systems", TODAY)["state"] == "again"


# --- the guard and the lease ------------------------------------------------------------------------------------------


def test_leave_and_join_ask_the_guard(host, run):
    assert run("leave", "trading")[0] == 69
    host.answer = {"error": "not drained"}
    assert run("leave", "trading") == (1, "", "not drained")
    host.answer = {"ok": "left"}
    assert run("leave", "trading") == (0, "left", "")
    assert run("join", "trading") == (0, "left", "")
    assert [message["command"] for message in host.asked] == ["leave"] * 3 + ["join"]
    assert "wanted one of: trading, strategies" in run("leave", "x")[2]


def test_the_kill_switch_needs_no_guard_and_no_reason_but_its_undo_does(host, run):
    code, said, _ = run("lease", "revoke", "--reason", "wrong prices")
    assert code == 0
    assert "wrong prices" in said
    assert host.leases.read("trading")["revoked"]["by"].endswith(cli.socket.gethostname())
    assert run("lease", "revoke")[0] == 0
    code, _, complaint = run("lease", "reinstate", "--reason", " ")
    assert code == 1
    assert "wanted why trading may go on" in complaint
    assert run("lease", "reinstate", "--reason", "prices are right")[0] == 0
    assert host.leases.read("trading")["revoked"] is None


def test_a_hand_over_waits_for_the_wanted_holder(host, run):
    host.later = [lambda: None, lambda: host.lease(holder={"host": "app2", "colour": "blue"}, wanted=None)]
    code, said, _ = run("lease", "want", "app2/blue", "--wait", "10")
    assert code == 0
    assert "held by app2/blue" in said
    assert host.now == 101


def test_a_hand_over_that_does_not_come_says_who_holds(host, run):
    host.lease(holder={"host": "app1", "colour": "blue"}, epoch=3)
    code, _, complaint = run("lease", "want", "nobody", "--wait", "10")
    assert code == 1
    assert "held by app1/blue, epoch 3, expired 1 s ago, reserved for nobody, wanted nobody within 10 s" in complaint
    code, said, _ = run("lease", "clear-want")
    assert code == 0
    assert "reserved" not in said


def test_several_placements_are_done_in_the_order_given(host, run):
    code, said, _ = run("lease", "want", "nobody", "--placement", "strategies", "trading")
    assert code == 0
    assert [line.partition(":")[0] for line in said.splitlines()] == ["strategies", "trading"]
    code, said, complaint = run("lease", "clear-want", "--placement", "trading", "nothing", "strategies")
    assert code == 1
    assert "nothing" in complaint
    assert said.startswith("trading: ")


@pytest.mark.parametrize("who", ["app9/blue", "app1", "app1/red", "nobody/blue"])
def test_a_hand_over_to_nobody_that_there_is_is_refused(run, who):
    code, _, complaint = run("lease", "want", who)
    assert code == 1
    assert "with one of app1, app2" in complaint


def test_the_lease_is_shown_in_words_and_as_json(host, run):
    host.lease(epoch=4)
    assert run("lease", "show")[1] == "trading: held by nobody"
    assert json.loads(run("lease", "show", "--json")[1])["epoch"] == 4
    host.up = False
    assert run("lease", "show")[0] == 69


def test_status_says_what_it_can(host, run):
    host.lease(holder={"host": "app2", "colour": "blue"}, epoch=2)
    code, said, complaint = run("status")
    assert code == 69
    assert "trading: held by app2/blue, epoch 2, 9 s to live" in said
    assert complaint == "no guard"
    placement = {"holds": True, "stays_out": True, "problem": "oh", "processes": {"run_systems": "runs"}}
    host.answer = {"placements": {"strategies": placement}}
    code, said, complaint = run("status")
    assert (code, complaint) == (0, "")
    assert said.splitlines() == [
        "app1, blue",
        "strategies: its lease is not known",
        "  this host stays out until `pst-trading join strategies`",
        "  oh",
        "  run_systems: runs",
        "trading: held by app2/blue, epoch 2, 9 s to live",
    ]
    known = json.loads(run("status", "--json")[1])
    assert known["leases"]["trading"]["expires_at"] == "2026-11-23T08:01:49Z"
    assert known["guard"] == host.answer["placements"]
    assert known["leases"]["trading"]["holder"]["host"] == "app2"


def test_the_database_is_prepared_once(run):
    assert "created process_control.process_name_1" in run("prepare-database")[1]
    assert run("prepare-database") == (0, "", "")
