"""The journal after a run that was left, refused, broken and resumed, with MongoDB killed under it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://run-app"]

STATE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "state"
CLIENT = """
import json, sys, pymongo
name, user, password = sys.argv[1:]
client = pymongo.MongoClient(
    name, directConnection=True, tls=True, tlsCAFile="/etc/pst/pki/ca.crt", serverSelectionTimeoutMS=5000,
    username=user, password=password, authSource="admin",
)
found = {each: list(client.pst[each].find().sort("number")) for each in ("run_lock", "journal")}
print(json.dumps(found, default=str))
"""


@pytest.fixture
def stored(host: Host) -> dict[str, Any]:
    password = (STATE / "secrets" / "mongodb_guard_password").read_text()
    with host.sudo():
        return json.loads(host.check_output("python3 -c %s run-store.run.pst.test guard %s", CLIENT, password))


def lines(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (STATE / f"reports/journal/{run}.jsonl").read_text().splitlines()]


def test_the_run_that_was_left_is_broken_and_nothing_was_added_to_it(stored: dict[str, Any]) -> None:
    old, new = stored["journal"]
    assert old["outcome"] == "broken"
    assert (old["broken"]["run"], old["broken"]["reason"]) == (new["_id"], "$the machine burnt")
    assert {(step["step"], step["host"]) for step in old["steps"]} == {("first", "run-app"), ("first", "run-store")}


def test_the_next_one_went_on_from_there_through_the_loss_of_the_primary(stored: dict[str, Any]) -> None:
    old, new = stored["journal"]
    assert (new["outcome"], new["resumed_from"]) == ("succeeded", old["_id"])
    assert [step["run"] for step in new["steps"] if step["step"] == "first"] == [old["_id"]] * 2
    assert [step["run"] for step in new["steps"] if step["step"] == "second"] == [new["_id"]]
    assert new["target"] == {"release": "$1.81", "app.nodes": ["run-app"]}


def test_the_lock_is_free(stored: dict[str, Any]) -> None:
    assert stored["run_lock"] == [{"_id": "site", "number": 2, "run": None}]


def test_the_control_node_has_the_same_in_files_and_the_run_that_was_refused(stored: dict[str, Any]) -> None:
    old, new = (lines(page["_id"]) for page in stored["journal"])
    assert [(line["call"], line["done"]) for line in old] == [("begin", True), *[("step", True)] * 2, ("step", False)]
    assert [line["call"] for line in new] == ["begin", "step", "end", "end"]
    names = {path.stem for path in (STATE / "reports/journal").iterdir()} - {page["_id"] for page in stored["journal"]}
    (refused,) = (line for name in names for line in lines(name))
    assert (refused["call"], refused["done"]) == ("begin", False)
    assert "seen run" in refused["error"]
