"""Which hosts the fence lets in: never one whose processes may have lost their lease, whatever is late or frozen."""

from __future__ import annotations

import random
from typing import Any

import pytest
from mongo_rules import matches, updated
from pst_parquet.membership import DELAY_S, Member, Request, Slice, View, good_for, longest, operation

TTL = 15.0


class Server:
    """One document, and a clock. Times in ms, as dates."""

    def __init__(self, rule: Any = operation) -> None:
        self.rule = rule
        self.document: dict[str, Any] = {"_id": "a", "address": "10.0.0.1", "seq": 5, "valid_ms": 0, "renewed_at": 0.0}

    def execute(self, request: Request, now: float) -> dict[str, Any] | None:
        if request.verb == "read":
            return dict(self.document)
        only_if, change = self.rule(request)
        if not matches(only_if, self.document, 1000 * now):
            return None
        self.document = updated(change, self.document, 1000 * now)
        return dict(self.document)


def test_a_host_that_runs_nothing_is_good_for_less_than_a_lease_that_it_gets_next():
    assert good_for([], TTL, 100.0) == longest(TTL) == 10.0
    assert good_for([Slice(populated=False, valid_until=None)], TTL, 100.0) == 10.0


def test_what_runs_bounds_it_by_its_grant():
    assert good_for([Slice(populated=True, valid_until=110.0)], TTL, 100.0) == 6.0
    assert (
        good_for([Slice(populated=True, valid_until=114.5), Slice(populated=True, valid_until=109.0)], TTL, 100.0)
        == 5.0
    )


def test_a_grant_under_which_nothing_runs_yet_bounds_it_too():
    assert good_for([Slice(populated=False, valid_until=108.0)], TTL, 100.0) == 4.0


@pytest.mark.parametrize("valid_until", [None, 99.0, 100.0, 104.4])
def test_what_runs_without_a_grant_that_lasts_is_not_clean(valid_until):
    slices = [Slice(populated=False, valid_until=None), Slice(populated=True, valid_until=valid_until)]
    assert good_for(slices, TTL, 100.0) == 0.0


def test_an_old_grant_of_what_has_ended_is_nothing():
    assert good_for([Slice(populated=False, valid_until=99.0)], TTL, 100.0) == 10.0


def converse(member: Member, server: Server, now: float, seconds: float = 10.0) -> list[str]:
    verbs = []
    while (request := member.next(now, seconds)) and len(verbs) < 5:
        verbs.append(request.verb)
        member.answered(request, server.execute(request, now), now)
    return verbs


def test_a_host_reads_joins_and_renews():
    member, server = Member("a", 2.0), Server()
    assert converse(member, server, 1.0) == ["read", "join", "renew"]
    assert (server.document["seq"], server.document["valid_ms"]) == (7, 10_000)
    assert converse(member, server, 2.9) == []
    assert converse(member, server, 3.0) == ["renew"]


def test_a_join_allows_nothing_and_a_host_that_is_not_clean_does_not_renew():
    member, server = Member("a", 2.0), Server()
    assert converse(member, server, 1.0, 0.0) == ["read", "join"]
    assert server.document["valid_ms"] == 0


def test_a_renewal_that_comes_late_is_refused_and_the_host_joins_again():
    member, server = Member("a", 2.0), Server()
    converse(member, server, 1.0)
    request = member.next(3.0, 10.0)
    assert request is not None
    answer = server.execute(request, 1.0 + DELAY_S + 0.1)
    assert answer is None
    member.answered(request, answer, 5.2)
    assert member.next(5.3, 10.0) is None
    assert converse(member, server, 5.8) == ["read", "join", "renew"]


def test_a_lost_answer_makes_the_host_look_first():
    member, server = Member("a", 2.0), Server()
    converse(member, server, 1.0)
    request = member.next(3.0, 10.0)
    assert request is not None
    server.execute(request, 3.0)
    member.failed(3.5)
    assert converse(member, server, 4.0) == ["read", "join", "renew"]


def document(seq: int, valid_ms: int = 9000, host: str = "a") -> dict[str, Any]:
    return {"_id": host, "address": f"10.0.0.{host}", "seq": seq, "valid_ms": valid_ms}


def test_the_time_of_a_renewal_counts_from_the_read_before():
    view = View("b")
    assert view.observe([document(7)], 100.0) == {}, "how old it is cannot be told"
    assert view.observe([document(7)], 101.0) == {}
    assert view.observe([document(8)], 102.0) == {"10.0.0.a": 110.0}
    assert view.observe([document(8)], 103.0) == {}
    assert view.observe([document(7)], 104.0) == {}, "an old state"
    assert view.observe([document(8)], 105.0) == {}
    assert view.observe([document(11, 3000)], 109.0) == {}, "shorter than what was allowed already"


def test_a_host_does_not_let_itself_in():
    view = View("a")
    view.observe([document(7)], 100.0)
    assert view.observe([document(8)], 101.0) == {}


def judge(valid_until: float, now: float) -> float:
    return good_for([Slice(populated=True, valid_until=valid_until)], TTL, now)


def world(seed: int, rule: Any = operation, view_class: type[View] = View, judge: Any = judge) -> int:
    """Let one host write and another one watch through random trouble; return how often it was let in."""
    luck = random.Random(seed)
    server, member, view = Server(rule), Member("a", 2.0), view_class("b")
    now, valid_until, admitted = 0.0, TTL, 0
    asked: Request | None = None  # judged, and not sent yet: here a host is frozen
    on_the_way: list[Request] = []
    reading: tuple[float, dict[str, Any]] | None = None
    for _ in range(200):
        now += luck.choice([0.0, 0.01, 0.05, 0.1, 0.5, luck.uniform(0, 3)])
        act = luck.random()
        if act < 0.15 and now < valid_until:
            valid_until = max(valid_until, now - luck.uniform(0, 2) + TTL)  # what is lost is not renewed again
        elif act < 0.6 and asked is None:
            asked = member.next(now, judge(valid_until, now))
        elif act < 0.5 and asked is not None:
            if luck.random() < 0.8:
                member.answered(asked, server.execute(asked, now), now)
            else:  # no answer; it arrives later, if ever
                member.failed(now)
                on_the_way.append(asked)
            asked = None
        elif act < 0.6 and on_the_way:
            server.execute(on_the_way.pop(luck.randrange(len(on_the_way))), now)
        elif reading is None:
            began = now
            now += luck.uniform(0, 0.5)
            reading = (began, dict(server.document))
        else:
            view.observe([reading[1]], reading[0])
            reading = None
        until = view.until.get("10.0.0.1", 0.0)
        admitted += until > now
        assert until <= valid_until + 0.002, (
            f"let in until {until}, and the lease ends at {valid_until}"
        )  # whole milliseconds
    return admitted


def test_no_host_is_let_in_after_its_lease():
    assert sum(world(seed) for seed in range(300)) > 1000, "it has to let somebody in at all"


def lax(request: Request) -> Any:
    only_if, change = operation(request)
    return {key: value for key, value in only_if.items() if key != "$expr"}, change


class Hasty(View):
    """Counts from the read that shows the renewal, not from the one before."""

    def observe(self, documents: Any, began: float) -> dict[str, float]:
        self._began = began
        return super().observe(documents, began)


@pytest.mark.parametrize(
    "broken",
    [
        {"rule": lax},
        {"view_class": Hasty},
        {"judge": lambda valid_until, now: judge(valid_until, now) and valid_until - now},
    ],
    ids=["late renewals", "counting from the wrong read", "no allowance for a delay"],
)
def test_a_broken_rule_is_found(broken):
    with pytest.raises(AssertionError, match="let in until"):
        sum(world(seed, **broken) for seed in range(1000))
