"""The run lock and the journal, against a primary in memory: races, crashes at every command, lost answers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.pst.platform.plugins.module_utils.mongodb import (
    CommandError,
    Credentials,
    MongoError,
    UnreachableError,
)
from ansible_collections.pst.platform.plugins.module_utils.run_journal import (
    HeldError,
    Journal,
    LostError,
    Run,
    age,
    append_line,
    in_words,
    new_run_id,
    run_rows,
    step_rows,
)
from ansible_collections.pst.platform.plugins.modules import run_journal

TARGET = {"release": "$1.81", "tiers": ["app", "mongodb"], "a.b": 1}
Fault = Callable[[int], None]


class Clock:
    """The time of this machine and of the server; it passes when somebody waits."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 2, 9, 30)  # noqa: DTZ001  the driver's dates have no zone

    def monotonic(self) -> float:
        return self.now.timestamp()

    def sleep(self, seconds: float, /) -> None:
        self.now += timedelta(seconds=seconds)


class Primary:
    """As much of MongoDB as is asked of it. `before` and `after` are called with the number of each command."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.data: dict[str, list[dict[str, Any]]] = {}
        self.asked = 0
        self.commands: list[Mapping[str, Any]] = []
        self.before: Fault = lambda _number: None
        self.after: Fault = lambda _number: None
        self.majority = True

    def __call__(self, host: str, credentials: Credentials | None) -> Primary:
        if host == "down:1":
            raise UnreachableError(host)
        return self

    def close(self) -> None: ...

    def command(self, command: Mapping[str, Any], database: str = "admin") -> dict[str, Any]:
        if "hello" in command:
            return {"isWritablePrimary": True, "primary": "up:1", "localTime": self.clock.now}
        assert database == "pst"
        assert command["maxTimeMS"] == 5000
        self.asked += 1
        number = self.asked
        self.before(number)
        self.commands.append(command)
        answer = self.find(command) if "find" in command else self.find_and_modify(command)
        self.after(number)
        return copy.deepcopy(answer)

    def find(self, command: Mapping[str, Any]) -> dict[str, Any]:
        found = [d for d in self.data.get(command["find"], []) if matches(command["filter"], d)]
        found.sort(key=lambda document: -document.get("number", 0))
        assert command["sort"] == {"number": -1}
        return {"cursor": {"firstBatch": found[: command["limit"]]}}

    def find_and_modify(self, command: Mapping[str, Any]) -> dict[str, Any]:
        assert command["writeConcern"]["w"] == "majority"
        documents = self.data.setdefault(command["findAndModify"], [])
        place = next((n for n, document in enumerate(documents) if matches(command["query"], document)), None)
        if place is not None:
            documents[place] = after = updated(command["update"], documents[place], self.clock.now, inserted=False)
        elif command["upsert"]:
            if any(document["_id"] == command["query"]["_id"] for document in documents):
                raise CommandError("E11000 duplicate key error", 11000)
            after = updated(command["update"], dict(command["query"]), self.clock.now, inserted=True)
            documents.append(after)
        else:
            after = None
        concern = {} if self.majority else {"writeConcernError": {"errmsg": "waiting for replication timed out"}}
        return {"value": after, **concern}

    @property
    def lock(self) -> dict[str, Any]:
        return self.data["run_lock"][0]

    def page(self, run: str) -> dict[str, Any]:
        return next(page for page in self.data["journal"] if page["_id"] == run)


def matches(rule: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    return all(
        key in document and document[key] < wanted["$lt"] if isinstance(wanted, dict) else document.get(key) == wanted
        for key, wanted in rule.items()
    )


def updated(update: Any, document: dict[str, Any], now: datetime, *, inserted: bool) -> dict[str, Any]:
    if isinstance(update, dict):
        return {**document, **copy.deepcopy(update["$setOnInsert"])} if inserted else document
    for stage in update:
        ((name, value),) = stage.items()
        if name == "$unset":
            document = {key: item for key, item in document.items() if key != value}
        else:
            change = evaluate(value, {"NOW": now}, document)
            document = {**document, **change} if name == "$set" else change
    return document


def evaluate(expression: Any, names: Mapping[str, Any], document: Any) -> Any:
    def value(item: Any) -> Any:
        return evaluate(item, names, document)

    if isinstance(expression, str) and expression.startswith("$"):
        path = expression.lstrip("$").split(".")
        found = names if expression.startswith("$$") else document
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found
    if isinstance(expression, list):
        return [value(item) for item in expression]
    if not isinstance(expression, dict):
        return expression
    if not any(key.startswith("$") for key in expression):
        return {key: value(item) for key, item in expression.items()}
    ((operator, operand),) = expression.items()
    if operator == "$literal":
        return copy.deepcopy(operand)
    if operator == "$filter":
        held = [(item, {**names, operand["as"]: item}) for item in value(operand["input"])]
        return [item for item, inside in held if evaluate(operand["cond"], inside, document)]
    return OPERATORS[operator](value(operand))


OPERATORS: dict[str, Callable[[Any], Any]] = {
    "$add": lambda values: sum(values),
    "$subtract": lambda values: (values[0] - values[1]) / timedelta(milliseconds=1),
    "$divide": lambda values: values[0] / values[1],
    "$ifNull": lambda values: values[1] if values[0] is None else values[0],
    "$eq": lambda values: values[0] == values[1],
    "$and": all,
    "$not": lambda values: not values[0],
    "$first": lambda values: values[0] if values else None,
    "$concatArrays": lambda values: [item for part in values for item in part],
}


@pytest.fixture
def primary() -> Primary:
    return Primary()


def journal_of(primary: Primary, timeout: float = 30) -> Journal:
    return Journal(primary, ["down:1", "up:1"], Credentials("guard", "secret"), "pst", timeout, primary.clock)


def run(name: str, target: Mapping[str, Any] = TARGET, **more: Any) -> Run:
    return Run(name, "upgrade.yml", f"$by {name}", "control", 17, target, "lab", **more)


def steps_of(page: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    return [(step["step"], step["host"], step["state"], step["run"]) for step in page["steps"]]


APP1, APP2 = ({"step": "app", "host": host} for host in ("app1", "app2"))


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_from_begin_to_end(primary: Primary) -> None:
    journal = journal_of(primary)
    begun = journal.begin(run("a", reason="the window is closed"))
    assert (begun.proven, begun.resumed_from, begun.broken) == ([], "", "")
    journal.step("a", "app", "app1", "begun")
    primary.clock.sleep(12.5)
    journal.step("a", "app", "app1", "proven", {"$probe": {"app1.lab": 0}})
    page, changed = journal.end("a", "succeeded", {"dropped": 0})
    assert changed
    assert page["target"] == TARGET
    assert (page["by"], page["from"], page["pid"], page["reason"]) == ("$by a", "control", 17, "the window is closed")
    assert (page["outcome"], page["number"], page["evidence"]) == ("succeeded", 1, {"dropped": 0})
    assert steps_of(page) == [("app", "app1", "proven", "a")]
    assert page["steps"][0]["seconds"] == 12.5
    assert page["steps"][0]["evidence"] == {"$probe": {"app1.lab": 0}}
    assert primary.lock == {"_id": "site", "number": 1, "run": None}
    assert journal.begin(run("b")).resumed_from == ""  # the same undertaking again is a new one once it has succeeded
    assert primary.lock["number"] == 2


def test_everything_that_decides_is_confirmed_by_a_majority(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a"))
    with pytest.raises(HeldError):
        journal.begin(run("b"))
    journal.step("a", "app", "app1", "proven")
    levels = [c["readConcern"]["level"] for c in primary.commands if "find" in c and "_id" in c["filter"]]
    assert set(levels) == {"linearizable"}


def test_the_key_is_what_is_undertaken_whatever_the_order_of_its_words() -> None:
    assert run("a", {"x": 1, "y": 2}).key == run("b", {"y": 2, "x": 1}).key != run("c", {"x": 1}).key


# --- a second run -----------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_told_who_has_the_lock(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a"))
    primary.clock.sleep(3723)
    with pytest.raises(HeldError) as refused:
        journal.begin(run("b", {}))
    text = str(refused.value)
    for words in (
        "run a of upgrade.yml (release=$1.81 tiers=app,mongodb a.b=1) by $by a, process 17 on control",
        "since 2026-03-02T09:30:00Z (1 h 2 min ago, last sign of it 1 h 2 min ago)",
        "-e run_break_lock='<why>'",
    ):
        assert words in text
    assert refused.value.holder["from"] == "control"
    assert [page["_id"] for page in primary.data["journal"]] == ["a"]


def test_who_takes_no_lock_is_refused_while_a_run_has_it(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.free()
    journal.begin(run("a"))
    with pytest.raises(HeldError, match=r"run a of upgrade.yml .* since 2026-03-02T09:30:00Z"):
        journal.free()
    with pytest.raises(HeldError):
        run_journal.free(journal, {}, False)
    journal.end("a", "failed")
    assert run_journal.free(journal, {}, False) == {"changed": False, "unknown": ""}


def test_who_takes_no_lock_may_repair_a_database_that_does_not_answer(primary: Primary) -> None:
    journal = Journal(primary, ["down:1"], Credentials("guard", "secret"), "pst", 5, primary.clock)
    assert "down:1" in run_journal.free(journal, {}, False)["unknown"]


@pytest.mark.parametrize("held", ["", "old"])
@pytest.mark.parametrize("other_breaks", [False, True])
def test_of_two_that_begin_together_one_wins_wherever_they_meet(held: str, other_breaks: bool) -> None:
    """The other one begins, and ends beginning, before the n-th command of the first: for every n."""
    for meeting in range(1, 40):
        primary = Primary()
        if held:
            journal_of(primary).begin(run(held))
        outcomes: dict[str, Any] = {}

        def begin(name: str, breaks: str, primary: Primary = primary, outcomes: dict[str, Any] = outcomes) -> None:
            try:
                outcomes[name] = journal_of(primary).begin(run(name), break_reason=breaks)
            except HeldError as error:
                outcomes[name] = error

        def meet(number: int, at: int = primary.asked + meeting, primary: Primary = primary) -> None:
            if number == at:
                primary.before = lambda _number: None
                begin("other", "dead" if held or other_breaks else "")

        primary.before = meet
        begin("first", "dead" if held else "")
        if "other" not in outcomes:
            assert meeting > 3
            break
        holder = primary.lock["run"]
        assert not isinstance(outcomes[holder], HeldError)
        assert primary.page(holder)["outcome"] == "running"
        running = [page["_id"] for page in primary.data["journal"] if page["outcome"] == "running"]
        # A run that lost the lock before its page was written is found out at its first step.
        for name in {"first", "other"} - {holder}:
            with pytest.raises(LostError):
                journal_of(primary).step(name, "app", "app1", "proven")
        assert holder in running
        both = [name for name, outcome in outcomes.items() if not isinstance(outcome, HeldError)]
        assert len(both) == 1 or other_breaks or held
    else:
        pytest.fail("never ended")


# --- a lock that is broken --------------------------------------------------------------------------------------------


def test_a_broken_lock_stops_the_old_run_and_says_who_did_it(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a"))
    journal.step("a", "app", "app1", "proven")
    begun = journal.begin(run("b"), break_reason="$its host burnt")
    assert (begun.broken, begun.resumed_from, begun.proven) == ("a", "a", [APP1])
    page = copy.deepcopy(primary.page("a"))
    assert page["outcome"] == "broken"
    assert page["broken"] == {"by": "$by b", "run": "b", "reason": "$its host burnt"}
    with pytest.raises(LostError, match=r"\$by b broke it at .*: \$its host burnt; run b by \$by b has it"):
        journal.step("a", "app", "app2", "proven")
    with pytest.raises(LostError, match="must not go on"):
        journal.end("a", "succeeded")
    assert primary.page("a") == page
    assert primary.lock["run"] == "b"


def test_of_two_that_break_the_same_lock_the_slower_one_is_refused(primary: Primary) -> None:
    journal_of(primary).begin(run("old"))
    hand_on_it = primary.asked + 6  # it has tried, looked at the lock and its holder, and written the holder's page

    def meet(number: int) -> None:
        if number == hand_on_it:
            primary.before = lambda _number: None
            journal_of(primary).begin(run("faster"), break_reason="dead")

    primary.before = meet
    with pytest.raises(HeldError, match="seen run faster"):
        journal_of(primary).begin(run("slower"), break_reason="dead")
    assert primary.lock["run"] == "faster"
    assert [page["outcome"] for page in primary.data["journal"]] == ["broken", "running"]


def test_a_lost_lock_is_noticed_before_the_journal_says_so(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a"))
    primary.lock["run"] = "b"  # which has got no further yet
    for call in (lambda: journal.step("a", "app", "app1", "proven"), lambda: journal.end("a", "succeeded")):
        with pytest.raises(LostError, match="must not go on"):
            call()
    assert (primary.page("a")["outcome"], primary.page("a")["steps"]) == ("running", [])


def test_a_reason_to_break_is_not_needed_where_nobody_has_the_lock(primary: Primary) -> None:
    assert journal_of(primary).begin(run("a"), break_reason="sure").broken == ""


def test_a_run_that_was_never_there_changes_nothing(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a"))
    before = copy.deepcopy(primary.page("a"))
    for call in (lambda: journal.end("x", "failed"), lambda: journal.step("x", "app", "app1", "begun")):
        with pytest.raises(LostError, match="not in the journal; run a by"):
            call()
    assert primary.page("a") == before
    assert primary.lock["run"] == "a"


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_run_resumes_what_the_runs_before_it_have_proven(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a"))
    journal.step("a", "app", "app1", "proven")
    journal.step("a", "app", "app2", "failed")
    journal.end("a", "failed")
    assert journal.begin(run("b")).proven == [APP1]
    journal.step("b", "app", "app2", "proven")
    journal.step("b", "mongodb", "mongo1", "begun")
    journal.end("b", "failed")
    begun = journal.begin(run("c"))
    assert begun.resumed_from == "b"
    assert begun.proven == [APP1, APP2]
    assert steps_of(begun.run) == [("app", "app1", "proven", "a"), ("app", "app2", "proven", "b")]
    journal.step("c", "app", "app1", "failed")  # it was found wanting: nobody takes it over again
    journal.end("c", "failed")
    assert journal.begin(run("d")).proven == [APP2]


def test_another_target_is_another_undertaking(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a"))
    journal.step("a", "app", "app1", "proven")
    journal.end("a", "failed")
    assert journal.begin(run("b", {"release": "2"})).resumed_from == ""
    journal.end("b", "succeeded")
    assert journal.begin(run("c")).resumed_from == "a"


def test_a_proof_does_not_hold_for_ever(primary: Primary) -> None:
    journal, hour = journal_of(primary), 3600
    journal.begin(run("a"))
    journal.step("a", "app", "app1", "proven")
    journal.end("a", "failed")
    primary.clock.sleep(20 * hour)
    assert journal.begin(run("b")).proven == [APP1]
    journal.step("b", "app", "app2", "proven")
    journal.end("b", "failed")
    primary.clock.sleep(20 * hour)
    begun = journal.begin(run("c"))
    assert (begun.resumed_from, begun.proven) == ("b", [APP2])
    journal.end("c", "failed")
    primary.clock.sleep(2 * hour)
    assert journal.begin(run("d"), resume_hours=1).resumed_from == ""


class KilledError(Exception):
    """The control process is gone."""


def kill(_number: int) -> None:
    raise KilledError


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_is_killed_at_any_command_is_resumed_when_its_lock_was_broken(when: str) -> None:
    for at in range(1, 40):
        primary = Primary()
        journal = journal_of(primary)
        journal.begin(run("first"))
        journal.step("first", "app", "app1", "proven")
        start = primary.asked

        def fault(number: int, last: int = start + at) -> None:
            if number == last:
                kill(number)

        setattr(primary, when, fault)
        try:
            journal = journal_of(primary)
            journal.begin(run("second"), break_reason="first is dead")
            journal.step("second", "app", "app2", "proven")
            journal.end("second", "failed")
            killed = False
        except KilledError:
            killed = True
        setattr(primary, when, lambda _number: None)
        begun = journal_of(primary).begin(run("third"), break_reason="they are dead")
        assert APP1 in begun.proven
        if primary.data["journal"] and any(
            step["host"] == "app2" for page in primary.data["journal"] for step in page["steps"]
        ):
            assert APP2 in begun.proven
        states = {page["_id"]: page["outcome"] for page in primary.data["journal"]}
        assert states.pop("third") == "running"
        assert "running" not in states.values()
        assert primary.lock["run"] == "third"
        assert primary.lock["number"] == len(primary.data["journal"]), "who had the lock is in the journal"
        if not killed:
            assert states == {"first": "broken", "second": "failed"}
            return
    pytest.fail("never ended")


def test_a_run_that_was_killed_at_its_very_end_holds_up_nobody(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a"))
    primary.before = lambda number: kill(number) if number == primary.asked and primary.asked == last else None
    last = primary.asked + 3  # the lock is proved, the page is closed, the lock is freed
    with pytest.raises(KilledError):
        journal.end("a", "succeeded")
    primary.before = lambda _number: None
    assert (primary.page("a")["outcome"], primary.lock["run"]) == ("succeeded", "a")
    begun = journal_of(primary).begin(run("b"))
    assert (begun.broken, begun.resumed_from, primary.lock["run"]) == ("", "", "b")
    assert primary.page("a")["outcome"] == "succeeded"


# --- elections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [UnreachableError("gone"), CommandError("not the primary", 10107)])
def test_an_answer_that_was_lost_at_any_command_changes_nothing(when: str, error: MongoError) -> None:
    def whole(primary: Primary) -> list[dict[str, Any]]:
        journal = journal_of(primary)
        journal.begin(run("a"))
        journal.begin(run("b"), break_reason="dead")
        journal.step("b", "app", "app1", "begun")
        journal.step("b", "app", "app1", "proven", {"x": 1})
        assert journal.end("b", "failed")[0]["outcome"] == "failed"
        assert journal.begin(run("c")).proven == [APP1]
        journal.end("c", "succeeded")
        return [
            {key: value for key, value in page.items() if key not in ("started", "ended", "steps")}
            | {"steps": steps_of(page)}
            for page in primary.data["journal"]
        ]

    quiet = Primary()
    wanted = whole(quiet)
    for lost in range(1, quiet.asked + 1):
        primary = Primary()

        def fault(number: int, last: int = lost) -> None:
            if number == last:
                raise error

        setattr(primary, when, fault)
        assert whole(primary) == wanted
        assert primary.lock == {"_id": "site", "number": 3, "run": None}


def test_a_call_that_is_repeated_as_a_whole_is_no_other_run(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a"))
    journal.begin(run("a"))
    for _ in range(2):
        journal.step("a", "app", "app1", "proven")
    assert journal.end("a", "succeeded")[1] is True
    assert journal.end("a", "succeeded")[1] is False
    assert primary.lock["number"] == 1
    assert steps_of(primary.page("a")) == [("app", "app1", "proven", "a")]
    with pytest.raises(LostError, match="its outcome is succeeded; nobody has it"):
        journal.end("a", "failed")


def test_without_a_majority_nothing_is_claimed(primary: Primary) -> None:
    primary.majority = False
    began = primary.clock.monotonic()
    with pytest.raises(MongoError, match="not confirmed by a majority of MongoDB within 30 s: waiting for replication"):
        journal_of(primary).begin(run("a"))
    assert 30 <= primary.clock.monotonic() - began <= 31


def test_without_a_primary_it_says_who_was_asked(primary: Primary) -> None:
    journal = Journal(primary, ["down:1"], Credentials("guard", ""), timeout=0, clock=primary.clock)
    with pytest.raises(MongoError, match="within 0 s: no primary: down:1: no answer"):
        journal.begin(run("a"))


def test_a_user_without_rights_is_told_at_once(primary: Primary) -> None:
    def refuse(_number: int) -> None:
        raise CommandError("not authorized on pst", 13)

    primary.before = refuse
    began = primary.clock.monotonic()
    with pytest.raises(MongoError, match="not authorized on pst"):
        journal_of(primary).begin(run("a"))
    assert primary.clock.monotonic() == began


# --- looking ----------------------------------------------------------------------------------------------------------


def test_check_mode_says_what_would_be_and_writes_nothing(primary: Primary) -> None:
    journal = journal_of(primary)
    assert journal.begin(run("x"), check=True).proven == []
    journal.begin(run("a"))
    journal.step("a", "app", "app1", "proven")
    before = copy.deepcopy(primary.data)
    with pytest.raises(HeldError):
        journal.begin(run("x"), check=True)
    begun = journal.begin(run("x"), break_reason="dead", check=True)
    assert (begun.proven, begun.resumed_from, begun.broken) == ([APP1], "a", "a")
    assert primary.data == before


def test_the_journal_in_rows(primary: Primary) -> None:
    journal = journal_of(primary)
    journal.begin(run("a", reason="agreed"))
    journal.step("a", "app", "app1", "proven", {"pid": 7})
    primary.clock.sleep(90)
    journal.begin(run("b"), break_reason="dead")
    lock, pages = journal.read(limit=1)
    assert (lock["run"], [page["_id"] for page in pages]) == ("b", ["b"])
    rows = run_rows(*journal.read())
    assert [(row["run"], row["outcome"], row["seconds"], row["resumed_from"]) for row in rows] == [
        ("b", "running", "", "a"),
        ("a", "broken", 90.0, ""),
    ]
    assert rows[1]["why"] == "agreed; broken by $by b: dead"
    assert json.loads(json.dumps(rows))[0]["started"] == "2026-03-02T09:31:30Z"
    _, (page,) = journal.read(run="b")
    (row,) = step_rows(page)
    assert (row["step"], row["host"], row["proven_by"], row["evidence"]) == ("app", "app1", "a", '{"pid": 7}')
    primary.lock["run"] = None
    assert run_rows(*journal.read())[0]["outcome"] == "lost its lock"


def test_words() -> None:
    assert [age(timedelta(seconds=s)) for s in (-1, 59, 61, 7300)] == ["0 s", "59 s", "1 min 1 s", "2 h 1 min"]
    assert in_words({}) == "no target"
    assert new_run_id()[:8] == f"{datetime.now(UTC):%Y%m%d}"
    assert new_run_id() != new_run_id()


def test_the_file_on_the_control_node_says_what_was_asked_for_and_what_came_of_it(tmp_path: Path) -> None:
    asked = {
        "run": "r",
        "state": "step",
        "step": "app",
        "host": "app1",
        "login_password": "s3cret",
        "evidence": {"n": 1},
    }
    append_line(tmp_path / "journal", asked, {"changed": True})
    append_line(tmp_path / "journal", {**asked, "state": "end"}, {"failed": True, "msg": "lost"})
    text = (tmp_path / "journal/r.jsonl").read_text()
    first, second = map(json.loads, text.splitlines())
    assert (first["call"], first["done"], first["step"], first["evidence"]) == ("step", True, "app", {"n": 1})
    assert (second["done"], second["error"]) == (False, "lost")
    assert "s3cret" not in text
