"""The reader of the settings: strict, and all errors at once."""

from __future__ import annotations

import copy
import json

import pytest
from fakes import DOCUMENT
from pst_trading import settings
from pst_trading.settings import SettingsError

TRADER = "processes.run_stack_handler"


@pytest.fixture
def read(tmp_path):
    """Read the document after a change to it."""

    def change_and_read(change):
        document = copy.deepcopy(DOCUMENT)
        change(document)
        path = tmp_path / "trading.json"
        path.write_text(json.dumps(document))
        return settings.load(path)

    return change_and_read


def problems_of(read, change):
    with pytest.raises(SettingsError) as caught:
        read(change)
    return [problem.split("trading.json: ", 1)[1] for problem in caught.value.problems]


def test_a_right_file_is_read(read):
    got = read(lambda document: None)
    assert got.lease.ttl_s == 15
    assert got.placements_here() == {"trading": 0, "strategies": 1}
    assert [process.name for process in got.processes_of("trading")] == ["run_stack_handler"]
    assert got.process("run_systems").unit == "pst-run@run_systems.service"
    assert got.gateway.client_ids == range(100, 1000)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda d: d.update(x=1), "x: is not a setting, wanted one of site, host"),
        (lambda d: d.pop("host"), "host: is missing"),
        (lambda d: d.update(colour="red"), 'colour: seen "red", wanted blue or green'),
        (lambda d: d["lease"].update(ttl_s="15"), 'lease.ttl_s: seen "15", wanted a number from 5 to 300'),
        (lambda d: d["lease"].update(ttl_s=True), "lease.ttl_s: seen true, wanted a number from 5 to 300"),
        (lambda d: d["lease"].update(ttl_s=4), "lease.ttl_s: seen 4, wanted a number from 5 to 300"),
        (lambda d: d["gateway"].update(port=1.5), "gateway.port: seen 1.5, wanted a number from 1 to 65535"),
        (lambda d: d["gateway"].update(account=""), 'gateway.account: seen "", wanted an account of Interactive'),
        (lambda d: d.update(lease=[]), "lease: seen [], wanted an object"),
        (lambda d: d["link"].update(gateways=[]), "link.gateways: seen [], wanted a list that is not empty"),
        (lambda d: d["link"].update(gateways=["a"]), 'link.gateways.0: seen "a", wanted host:port'),
        (lambda d: d["processes"][0].update(stop="24:00"), f'{TRADER}.stop: seen "24:00", wanted HH:MM'),
        (lambda d: d["processes"][0].update(days=["Monday"]), f"{TRADER}.days.0: seen"),
        (lambda d: d["processes"][0].update(rerun=1), f"{TRADER}.rerun: seen 1, wanted bool"),
        (lambda d: d["placements"].update({"A B": {"hosts": ["x"]}}), 'placements: seen "A B", wanted a name'),
        (lambda d: d["lease"].update(renew_s=5), "lease.renew_s: seen 5, wanted at most a third of ttl_s - margin_s"),
        (lambda d: d["lease"].update(drain_after_s=10), "lease.drain_after_s: seen 10, wanted less than"),
        (lambda d: d["processes"][0].update(start="20:00"), f"{TRADER}.stop: seen 19:45, wanted a time"),
        (lambda d: d["processes"][0].update(placement="x"), f"{TRADER}.placement: seen 'x', wanted one"),
        (lambda d: d["processes"][0].update(previous="x"), f"{TRADER}.previous: seen 'x', wanted one"),
        (lambda d: d["processes"].append(d["processes"][0]), "processes: run_stack_handler is there 2 times"),
        (lambda d: d["gateway"].update(recover_client_id=999), "gateway.recover_client_id: seen 999, wanted one"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_wanted(read, change, wanted):
    (problem,) = problems_of(read, change)
    assert problem.startswith(wanted)


def test_processes_that_wait_for_each_other_are_named(read):
    problems = problems_of(read, lambda d: d["processes"][1].update(previous="run_strategy_order_generator"))
    assert (
        "processes.run_systems.previous: waits for itself: run_systems -> run_strategy_order_generator -> run_systems"
    ) in problems


def test_all_that_is_wrong_is_told_at_once(read):
    def change(document):
        document["colour"] = "red"
        document["drain"]["timeout_s"] = 0
        del document["link"]["listen"]

    assert len(problems_of(read, change)) == 3


def test_a_long_value_is_not_repeated(read):
    (problem,) = problems_of(read, lambda document: document.update(colour="x" * 500))
    assert len(problem) < 150


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_file_that_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "trading.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"trading\.json"):
        settings.load(path)


def test_the_password_is_read_from_its_file_and_is_no_part_of_the_settings(read, tmp_path):
    secret = tmp_path / "password"
    got = read(lambda d: d["mongodb"].update(password_file=str(secret)))
    with pytest.raises(SettingsError, match=r"mongodb\.password_file"):
        got.mongodb.password()
    secret.write_text("open sesame\n")
    assert got.mongodb.password() == "open sesame"
    assert "sesame" not in repr(got)
