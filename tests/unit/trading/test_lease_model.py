"""The rules of the lease against everything that may go wrong: a model check of the real lease.py.

Three guards, each with a monotonic clock of its own (rates within 1 %), and a replica set whose members' clocks differ
and jump. Requests are delayed, lost before or after they took effect, done twice, or done long after their sender gave
up. Guards are killed, come back and adopt, are frozen and thawed. What must hold at every moment of true time:

- at most one guard believes that it holds the lease, dead and frozen ones counted with what they left behind;
- epochs only grow, and nobody takes or renews a lease that is revoked;
- when the faults stop, somebody holds it within TTL + 5 s.

That the test can fail is tested as well: `test_a_broken_rule_is_found` breaks one rule at a time.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from mongo_rules import Document, matches, updated
from pst_trading import lease as rules
from pst_trading.lease import Contender, Grant, Holder, Request, Timing

TIMING = Timing(ttl_s=15, renew_s=2, margin_s=3, rank_delay_s=1)
LIVENESS_S = TIMING.ttl_s + 5
GUARDS = 3
WANTED_STEPS = 10_000
RATES = (1.01, 0.99, 1.0)  # of the monotonic clocks: the first in rank is the fastest, its rival the slowest

HOLDER = GUARDS  # in place of a guard's number: who holds the lease now, which is where a fault tells most
guards = st.sampled_from([*range(GUARDS), *[HOLDER] * GUARDS])
members = st.integers(0, 2)


class Server:
    """The replica set: one document that a majority has, and the clock of whoever is primary. Times in ms, as dates."""

    operation = staticmethod(rules.operation)

    def __init__(self) -> None:
        self.lease = rules.unheld("trading")
        self.offset_s = [0.0, 0.0, 0.0]
        self.primary = 0
        self.log: list[str] = []

    def now_ms(self, true_time: float) -> float:
        return 1.7e12 + 1000 * (true_time + self.offset_s[self.primary])

    def execute(self, request: Request, true_time: float) -> Document | None:
        if request.verb == "read":
            return dict(self.lease)
        only_if, change = self.operation(request)
        now = self.now_ms(true_time)
        if not matches(only_if, self.lease, now):
            return None
        before, self.lease = self.lease, updated(change, self.lease, now)
        if request.verb != "release":
            assert before["revoked"] is None, f"{request.verb} of a lease that is revoked"
        assert self.lease["epoch"] >= before["epoch"]
        assert self.lease["renewals"] >= before["renewals"]
        taken_from = before["holder"] and self.lease["holder"] and before["holder"] != self.lease["holder"]
        assert not taken_from or self.lease["ended"] == "expired", "who follows a dead holder has to clean up"
        return dict(self.lease)


class Guard:
    """A contender with a clock, and what survives its death: the file in /run."""

    contender_class: type[Contender] = Contender
    instances = itertools.count()

    def __init__(self, number: int, rate: float, offset: float) -> None:
        self.number = number
        self.rate = rate
        self.offset = offset
        self.file: Grant | None = None
        self.reachable = True
        self.frozen = False
        self.contender: Contender | None = None
        self.asked: Request | None = None
        self.answer: list[Document | None] = []
        self.start(0)

    def clock(self, true_time: float) -> float:
        return self.offset + self.rate * true_time

    def start(self, true_time: float) -> None:
        now = self.clock(true_time)
        me = Holder(f"app{self.number}", "blue", self.instance(), "10.0.0.1")
        self.contender = self.contender_class("trading", me, TIMING, self.number, self.instance)
        if self.file:
            self.contender.adopt(self.file, now)
            if now >= self.file.deadline:
                self.give_up("killed", true_time)

    def instance(self) -> str:
        return f"i{next(self.instances)}"

    def crash(self) -> None:
        self.contender, self.asked, self.answer = None, None, []

    def give_up(self, ended: rules.Ended, true_time: float) -> None:
        assert self.contender
        self.contender.abandon(ended, self.clock(true_time))
        self.file = None

    @property
    def able(self) -> bool:
        return self.contender is not None and not self.frozen

    def believes(self, true_time: float) -> bool:
        grant = self.contender.grant if self.contender else self.file
        return grant is not None and self.clock(true_time) < grant.valid_until

    def ask(self, true_time: float) -> bool:
        """Do what the guard's loop does before it asks the store."""
        if not self.able or self.asked:
            return False
        assert self.contender
        now = self.clock(true_time)
        if self.contender.grant and now >= self.contender.grant.deadline:
            self.give_up("killed", true_time)
        self.asked = self.contender.next(now)
        return self.asked is not None

    def take(self, true_time: float, *, dies_before_writing: bool = False) -> None:
        """Take the answer that waits; the file in /run is written after."""
        assert self.contender
        assert self.asked
        (answer,) = self.answer
        request, self.asked, self.answer = self.asked, None, []
        self.contender.answered(request, answer, self.clock(true_time))
        if dies_before_writing:
            self.crash()
        elif self.contender.grant:
            self.file = self.contender.grant

    def miss(self, true_time: float) -> Request | None:
        """Hear nothing; what may still be on its way is returned."""
        assert self.contender
        assert self.asked
        request, self.asked = self.asked, None
        delivered, self.answer = bool(self.answer), []
        self.contender.failed(request, self.clock(true_time))
        return None if delivered else request


class LeaseModel(RuleBasedStateMachine):
    """The world."""

    guard_class: type[Guard] = Guard
    server_class: type[Server] = Server
    steps = 0
    grants = 0

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.server = self.server_class()
        self.guards = [self.guard_class(n, RATES[n], 1000.0 * n) for n in range(GUARDS)]
        self.on_the_way: list[Request] = []

    def guard(self, n: int) -> Guard:
        holding = [guard for guard in self.guards if guard.believes(self.time)]
        return self.guards[n % GUARDS] if n != HOLDER or not holding else holding[0]

    # The world moves ----

    @rule(seconds=st.floats(0.05, 20), latency=st.sampled_from([0.0, 0.01, 0.3]))
    def run(self, seconds: float, latency: float) -> None:
        """All goes well for a while."""
        type(self).steps += 1
        end = self.time + seconds
        while self.time < end:
            for guard in self.guards:
                if guard.able and guard.reachable and guard.asked is None and guard.ask(self.time):
                    assert guard.asked
                    guard.answer = [self.server.execute(guard.asked, self.time)]
                    self.check()
            self.time += latency
            for guard in self.guards:
                if guard.able and guard.reachable and guard.answer:
                    guard.take(self.time)
                    self.check()
            self.time += self.until_next()
            self.check()

    def until_next(self) -> float:
        """Time to the moment at which the next guard has something to do, so that the tightest moment is hit."""
        waits = [
            (guard.contender.due() - guard.clock(self.time)) / guard.rate
            for guard in self.guards
            if guard.contender and guard.able and guard.asked is None and guard.reachable
        ]
        return min(max(min(waits, default=0.5), 0.001), 0.5)

    @rule(n=guards, before=st.floats(0, 4), after=st.floats(0, 12), cut=st.booleans())
    def answer_slowly(self, n: int, before: float, after: float, cut: bool) -> None:
        """One request takes long to arrive, and its answer to come back, while all the others are quick."""
        type(self).steps += 1
        guard = self.guard(n)
        if not guard.ask(self.time):
            return
        guard.reachable = False
        self.run(before, 0.01)
        assert guard.asked
        guard.answer = [self.server.execute(guard.asked, self.time)]
        self.run(after, 0.01)
        guard.take(self.time)
        guard.reachable = not cut
        if cut:  # now it has to stop believing before another one begins
            self.run(TIMING.ttl_s + 2, 0.0)

    @rule(seconds=st.floats(0.01, 16))
    def nothing_happens(self, seconds: float) -> None:
        type(self).steps += 1
        self.time += seconds

    # One request, step by step ----

    @rule(n=guards)
    def ask(self, n: int) -> None:
        type(self).steps += 1
        self.guard(n).ask(self.time)

    @rule(n=guards, twice=st.booleans())
    def deliver(self, n: int, twice: bool) -> None:
        type(self).steps += 1
        guard = self.guard(n)
        if guard.asked and not guard.answer:
            guard.answer = [self.server.execute(guard.asked, self.time)]
            if twice:
                self.on_the_way.append(guard.asked)

    @rule(n=guards, dies_before_writing=st.booleans())
    def answer(self, n: int, dies_before_writing: bool) -> None:
        type(self).steps += 1
        guard = self.guard(n)
        if guard.able and guard.answer:
            guard.take(self.time, dies_before_writing=dies_before_writing)

    @rule(n=guards)
    def lose(self, n: int) -> None:
        type(self).steps += 1
        guard = self.guard(n)
        if guard.able and guard.asked and (late := guard.miss(self.time)):
            self.on_the_way.append(late)

    @precondition(lambda self: self.on_the_way)
    @rule(pick=st.integers(0, 5))
    def arrive_late(self, pick: int) -> None:
        type(self).steps += 1
        self.server.execute(self.on_the_way.pop(pick % len(self.on_the_way)), self.time)

    # Faults ----

    @rule(n=guards)
    def crash(self, n: int) -> None:
        type(self).steps += 1
        guard = self.guard(n)
        if guard.asked and not guard.answer:
            self.on_the_way.append(guard.asked)
        guard.crash()
        guard.frozen = False

    @rule(n=guards)
    def restart(self, n: int) -> None:
        type(self).steps += 1
        if self.guard(n).contender is None:
            self.guard(n).start(self.time)

    @rule(n=guards, frozen=st.booleans())
    def freeze_or_thaw(self, n: int, frozen: bool) -> None:
        type(self).steps += 1
        self.guard(n).frozen = frozen

    @rule(n=guards, reachable=st.booleans())
    def cut_or_mend(self, n: int, reachable: bool) -> None:
        type(self).steps += 1
        self.guard(n).reachable = reachable

    @rule(member=members)
    def elect(self, member: int) -> None:
        type(self).steps += 1
        self.server.primary = member

    @rule(primary=st.booleans(), member=members, seconds=st.sampled_from([-3600, -60, -10, -1, 1, 10, 60, 3600]))
    def jump_clock(self, primary: bool, member: int, seconds: float) -> None:
        type(self).steps += 1
        self.server.offset_s[self.server.primary if primary else member] += seconds

    @rule(seconds=st.floats(0.05, 20))
    def end_all_faults(self, seconds: float = 0.0) -> None:
        type(self).steps += 1
        self.server.lease.update(revoked=None, wanted=None)
        for guard in self.guards:
            guard.frozen, guard.reachable = False, True
            if guard.contender is None:
                guard.start(self.time)
            elif guard.answer:
                guard.take(self.time)
            elif guard.asked:
                guard.miss(self.time)
        self.run(seconds, 0.01)

    # People ----

    @rule(n=guards)
    def leave(self, n: int) -> None:
        type(self).steps += 1
        guard = self.guard(n)
        if guard.able and not guard.asked and guard.contender and guard.contender.grant:
            guard.give_up("released", self.time)

    @rule(revoked=st.sampled_from([None, None, None, {"by": "me"}]))
    def revoke_or_reinstate(self, revoked: Document | None) -> None:
        type(self).steps += 1
        self.server.lease["revoked"] = revoked

    @rule(host=st.sampled_from([None, None, None, None, "app0", "app1", "app2", "nobody"]))
    def want(self, host: str | None) -> None:
        type(self).steps += 1
        self.server.lease["wanted"] = host and {"host": host, "colour": "blue"}

    # What must hold ----

    @invariant()
    def check(self) -> None:
        believers = [guard.number for guard in self.guards if guard.believes(self.time)]
        assert len(believers) <= 1, f"{believers} believe at {self.time}"

    def teardown(self) -> None:
        """All faults end, but for one: the holder's host is gone. Now another one has to hold the lease in time."""
        self.end_all_faults()
        for guard in self.guards:
            if guard.believes(self.time):
                guard.crash()
                guard.file = None  # nothing runs there any more
        self.run(LIVENESS_S, 0.01)
        holders = [guard for guard in self.guards if guard.contender and guard.contender.grant]
        assert len(holders) == 1, f"{len(holders)} hold the lease {LIVENESS_S} s after the last fault"
        type(self).grants += self.server.lease["epoch"]


def budget(examples: int, **more: Any) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )


def test_at_most_one_guard_believes_that_it_holds_the_lease():
    LeaseModel.steps = LeaseModel.grants = 0
    run_state_machine_as_test(LeaseModel, settings=budget(400))
    assert LeaseModel.steps >= WANTED_STEPS
    assert LeaseModel.grants >= 400, "too few grants for a test of grants"


# --- that the test can fail -----------------------------------------------------------------------------------------


class CountsFromTheAnswer(Contender):
    """Believes for a ttl from when the answer came."""

    def _take(self, request: Request, lease: Document, now: float) -> None:
        super()._take(replace(request, sent_at=now), lease, now)


class TrustsTheServersClock(Contender):
    """Takes a lease as soon as the server calls it expired."""

    def _may_take_at(self, seen: rules.Seen) -> float:
        return seen.since


class TrustsItsOwnClock(Contender):
    """Takes a lease that has expired by the wall clock of its host, which is a minute ahead on one of them."""

    def _may_take_at(self, seen: rules.Seen) -> float:
        true_time = (self._now - 1000 * self.rank) / RATES[self.rank]
        wall_ms = 1.7e12 + 1000 * (true_time + (60 if self.rank == 2 else 0))
        expires = (self.lease or {}).get("expires_at") or 0
        return self._now if wall_ms >= expires else self._now + 1

    def _claim(self, seen: rules.Seen, now: float) -> Document:
        return {**super()._claim(seen, now), "clock_is_right": False}

    def answered(self, request: Request, lease: Document | None, now: float) -> None:
        self._now = now
        super().answered(request, lease, now)


class TrustsAnOldSight(Server):
    """Lets a contender take a lease whose holder has renewed since."""

    @staticmethod
    def operation(request: Request) -> tuple[Document, list[Document]]:
        only_if, change = rules.operation(request)
        if request.verb == "acquire":
            only_if = {key: value for key, value in only_if.items() if key not in ("epoch", "renewals")}
        return only_if, change


class RenewsRevoked(Server):
    @staticmethod
    def operation(request: Request) -> tuple[Document, list[Document]]:
        only_if, change = rules.operation(request)
        return {key: value for key, value in only_if.items() if key != "revoked"}, change


class WaitsForAClockThatWasSetBack(Contender):
    """Never outvotes the server's clock."""

    def _claim(self, seen: rules.Seen, now: float) -> Document:
        return {**super()._claim(seen, now), "clock_is_right": True}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (CountsFromTheAnswer, "believe at"),
        (TrustsTheServersClock, "believe at"),
        (TrustsItsOwnClock, "believe at"),
        (TrustsAnOldSight, "believe at"),
        (RenewsRevoked, "of a lease that is revoked"),
        (WaitsForAClockThatWasSetBack, "0 hold the lease"),
    ],
)
def test_a_broken_rule_is_found(broken, message):
    class BrokenGuard(Guard):
        contender_class = broken if issubclass(broken, Contender) else Contender

    class BrokenModel(LeaseModel):
        guard_class = BrokenGuard
        server_class = broken if issubclass(broken, Server) else Server

    with pytest.raises(AssertionError, match=message):
        run_state_machine_as_test(
            BrokenModel, settings=budget(5000, phases=[Phase.generate], database=None, print_blob=False)
        )
