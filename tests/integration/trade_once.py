"""The judge of `make drill-trade-once`: from the broker's order log, the history of the lease, the platform's books and
the list of faults to a verdict. Pure, so that unit tests can show that it finds each kind of violation.

Whom it believes: the broker (its log is written before anybody hears of an event) and a change stream of the lease,
which has every state that a majority had. The platform's own words are used for one question only: does it know what
the broker knows?

Orders carry `pst:<epoch>:<broker order>:<instrument order>`: who held the lease when it was sent, the platform's own
number of it, and the unit of work that it belongs to.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

Record = Mapping[str, Any]
REFERENCE = re.compile(r"pst:(\d+):(\d+):(\d+)")
TOLERANCE = 1e-9
DELIVERY = timedelta(seconds=5)  # for a gateway that has thawed to deliver what it had been sent
WITHDRAWAL = timedelta(seconds=5)  # for a holder whose lease is revoked to learn of it; nobody else gets it meanwhile


class Expect(StrEnum):
    """What a fault may do to the lease."""

    STAYS = "stays"  # same holder, same epoch
    TAKEN = "taken"  # another host takes it over: counted in takeover_seconds
    MOVES = "moves"  # another host gets it, handed over in order
    ANY = "any"


@dataclass
class Fault:
    """One fault, and what was seen of it."""

    kind: str
    expect: Expect
    target: str = ""
    at: datetime | None = None  # when it began
    undone_at: datetime | None = None
    trading_at: datetime | None = None  # when trading had gone on again
    detail: str = ""
    problem: str = ""
    holds_orders: bool = False  # the gateway keeps what it was sent and delivers it when it is thawed


@dataclass
class Term:
    """One grant of the lease: from when until when the server would have called it valid."""

    epoch: int
    host: str
    began: datetime
    until: datetime
    ended: str = ""  # released, killed, revoked; empty: expired, or still going on


@dataclass(frozen=True)
class Placed:
    """An order that the broker has accepted."""

    key: tuple[int, int]
    at: datetime
    reference: str
    epoch: int | None  # of the lease, by its reference; None where it has none of ours
    number: int | None
    origin: int | None
    quantity: float  # signed


@dataclass(frozen=True)
class Books:
    """What the platform knows at the end: its broker orders (stack and history), and what it has locked."""

    orders: Mapping[int, Mapping[str, Any]]  # number -> {"fill": float, "active": bool}
    unfinished: Sequence[str] = ()  # active orders on any stack
    locks: Sequence[str] = ()  # instruments whose position differs from the broker's

    @classmethod
    def read(cls, told: Mapping[str, Any], before: Mapping[str, Any]) -> Books:
        """Read what `trading_ledger.py books` printed at the end, without what was done already at the beginning."""
        done = {number for number, order in before["orders"].items() if not order["active"]}
        # JSON has texts for numbers in keys.
        orders = {int(number): order for number, order in told["orders"].items() if number not in done}
        return cls(orders, told["unfinished"], told["locks"])


@dataclass(frozen=True)
class Wanted:
    """What makes a drill count."""

    faults: int
    minutes: float
    kinds: Sequence[str]
    takeover_s: float


@dataclass
class Verdict:
    """The report. Counts first, then what they count."""

    passed: bool = False
    faults: int = 0
    orders_sent: int = 0
    duplicate_orders: int = 0
    orders_without_lease: int = 0
    max_holders_at_once: int = 0
    unmatched_broker_orders: int = 0
    takeover_seconds: dict[str, float] = field(default_factory=dict)
    takeover_bar_seconds: float = 0.0
    handover_seconds: dict[str, float] = field(default_factory=dict)
    trading_again_seconds: dict[str, float] = field(default_factory=dict)
    orders_late_from_gateway: int = 0
    orders_filled: int = 0
    epochs: int = 0
    minutes: float = 0.0
    faults_by_kind: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    violations: dict[str, list[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def intents_of(told: Mapping[str, Any], put: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Return what was wanted, by instrument order: as the books have it, and as those who put it there remember it."""
    known = {int(number): trade for number, trade in told["intents"].items()}
    return known | {intent["order_id"]: intent["trade"] for intent in put}


# The plan -------------------------------------------------------------------------------------------------------------


def schedule(seed: int, kinds: Mapping[str, int], count: int) -> Iterator[str]:
    """Yield kinds of faults without end (kind -> weight). The first `count` have every kind, where there is room."""
    chance, names = random.Random(seed), sorted(kinds)
    weights = [kinds[name] for name in names]
    first = list(names) if count >= len(names) else chance.sample(names, count)
    first += chance.choices(names, weights, k=count - len(first))
    chance.shuffle(first)
    return itertools.chain(first, (chance.choices(names, weights)[0] for _ in itertools.count()))


# The lease ------------------------------------------------------------------------------------------------------------


def terms_of(states: Iterable[Record]) -> tuple[list[Term], list[str]]:
    """Read the history of one lease (its documents, in their order) into terms; and say what is wrong with it."""
    terms: list[Term] = []
    problems = []
    epoch = 0
    for lease in states:
        if lease["epoch"] < epoch:
            problems.append(f"the epoch of the lease went back from {epoch} to {lease['epoch']}")
        known = bool(terms) and terms[-1].epoch == lease["epoch"]
        epoch, holder = max(epoch, lease["epoch"]), lease["holder"]
        if holder and not known:
            terms.append(Term(epoch, holder["host"], _time(lease["granted_at"]), _time(lease["expires_at"])))
        elif holder and terms[-1].host != holder["host"]:
            problems.append(f"epoch {epoch} of the lease has two holders: {terms[-1].host} and {holder['host']}")
        elif holder and not terms[-1].ended:
            terms[-1].until = max(terms[-1].until, _time(lease["expires_at"]))
        elif known and not terms[-1].ended:
            _end(terms[-1], _time(lease["expires_at"]), lease["ended"] or "released")
        if lease.get("revoked") and terms and not terms[-1].ended:
            _end(terms[-1], _time(lease["revoked"]["at"]) + WITHDRAWAL, "revoked")
    return terms, problems


def _end(term: Term, at: datetime, how: str) -> None:
    term.until, term.ended = min(term.until, at), how


def holders_at_once(terms: Sequence[Term]) -> int:
    """Return how many terms were valid at the same time, at most."""
    # An end comes before a beginning of the same moment.
    edges = sorted([(term.until, -1) for term in terms] + [(term.began, 1) for term in terms])
    return max(itertools.accumulate(step for _, step in edges), default=0)


# The orders -----------------------------------------------------------------------------------------------------------


def placements(records: Sequence[Record]) -> list[Placed]:
    """Return the orders that the broker has accepted."""
    return [_placed(record) for record in records if record["event"] == "placed"]


def _placed(record: Record) -> Placed:
    match = REFERENCE.fullmatch(record["reference"])
    epoch, number, origin = map(int, match.groups()) if match else (None, None, None)
    sign = 1 if record["action"] == "BUY" else -1
    return Placed(
        key=_key(record),
        at=_time(record["at"]),
        reference=record["reference"],
        epoch=epoch,
        number=number,
        origin=origin,
        quantity=sign * record["quantity"],
    )


def filled(records: Sequence[Record]) -> dict[tuple[int, int], float]:
    """Return what the broker has filled of each order, signed."""
    sums: defaultdict[tuple[int, int], float] = defaultdict(float)
    for record in records:
        if record["event"] == "filled":
            sums[_key(record)] += record["shares"] * (1 if record["action"] == "BUY" else -1)
    return dict(sums)


def open_at_broker(records: Sequence[Record]) -> list[Placed]:
    """Return the orders that may still fill."""
    done, sums = {_key(record) for record in records if record["event"] in ("cancelled", "rejected")}, filled(records)
    # The last word on the quantity is that of a modification.
    sizes = {_key(record): record["quantity"] for record in records if record["event"] in ("placed", "modified")}
    return [
        order
        for order in placements(records)
        if order.key not in done and abs(sums.get(order.key, 0.0)) < sizes[order.key] - TOLERANCE
    ]


def duplicates(records: Sequence[Record], intents: Mapping[int, float]) -> dict[tuple[int, int], str]:
    """Return the orders that do a work a second time: by number, by unit of work, or by more filled than was wanted."""
    ours = [order for order in placements(records) if order.epoch is not None]
    numbers, origins = Counter(order.number for order in ours), Counter(order.origin for order in ours)
    found = {}
    first: set[tuple[str, int | None]] = set()
    for order in ours:
        again = [
            f"{what} {value} was sent {count} times"
            for what, value, count in (
                ("broker order", order.number, numbers[order.number]),
                ("instrument order", order.origin, origins[order.origin]),
            )
            if count > 1 and (what, value) in first
        ]
        first |= {("broker order", order.number), ("instrument order", order.origin)}
        if again:
            found[order.key] = f"{order.reference} at {order.at.isoformat()}: {', '.join(again)}"
    return found | _overfilled(records, ours, intents)


def _overfilled(
    records: Sequence[Record], ours: Sequence[Placed], intents: Mapping[int, float]
) -> dict[tuple[int, int], str]:
    """Independent of how often something was sent: what was filled has to lie between nothing and the intent."""
    sums, by_origin = filled(records), defaultdict(list)
    for order in ours:
        by_origin[order.origin].append(order)
    found = {}
    for origin, orders in by_origin.items():
        intent, total = intents.get(origin or 0), sum(sums.get(order.key, 0.0) for order in orders)
        if intent is not None and not min(0.0, intent) - TOLERANCE <= total <= max(0.0, intent) + TOLERANCE:
            last = orders[-1]
            found[last.key] = f"{last.reference}: instrument order {origin} wanted {intent:+g}, filled {total:+g}"
    return found


def without_lease(
    records: Sequence[Record], terms: Sequence[Term], faults: Sequence[Fault]
) -> tuple[dict[tuple[int, int], str], list[str]]:
    """Return the orders that the broker accepted while their epoch was not live; and those that only came late.

    Late is an order that was with the gateway when it was frozen, in a term that was valid then, delivered when the
    gateway was thawed, and before any order of a later epoch: no fence can call back what has left the platform.
    """
    by_epoch = {term.epoch: term for term in terms}
    wrong, late, newest = {}, [], -1
    for order in placements(records):
        term = by_epoch.get(order.epoch) if order.epoch is not None else None
        if order.epoch is None:
            problem = "has no epoch"
        elif order.epoch < newest:
            problem = f"came after an order of epoch {newest}"
        elif term is None:
            problem = "is of an epoch that the lease never had"
        elif not term.began <= order.at < term.until:
            where = f"{term.host} held epoch {term.epoch} from {term.began.isoformat()} to {term.until.isoformat()}"
            if any(_kept_back(order, term, fault) for fault in faults):
                late.append(f"{order.reference} at {order.at.isoformat()}: {where}")
                continue
            problem = where
        else:
            problem = ""
        newest = max(newest, order.epoch or -1)
        if problem:
            wrong[order.key] = f"{order.reference} at {order.at.isoformat()}: {problem}"
    return wrong, late


def _kept_back(order: Placed, term: Term, fault: Fault) -> bool:
    if not (fault.holds_orders and fault.at and fault.undone_at):
        return False
    return term.began <= fault.at < term.until and fault.at <= order.at <= fault.undone_at + DELIVERY


def unmatched(records: Sequence[Record], books: Books) -> list[str]:
    """Return what the broker and the platform's books do not agree on, now that all has settled."""
    sums, found = filled(records), []
    for order in open_at_broker(records):
        known = books.orders.get(order.number) if order.number is not None else None
        if not (known and known["active"]):
            found.append(f"{order.reference} is open at the broker, and not in the books")
    at_broker: defaultdict[int, float] = defaultdict(float)
    for order in placements(records):
        got = sums.get(order.key, 0.0)
        if order.number is not None and order.number in books.orders:
            at_broker[order.number] += got
        elif got:
            found.append(f"{order.reference} has filled {got:+g}, and is not in the books")
    for number, known in books.orders.items():
        if abs(at_broker[number] - known["fill"]) > TOLERANCE:
            found.append(f"broker order {number} has filled {at_broker[number]:+g}, in the books {known['fill']:+g}")
    return found


# The verdict ----------------------------------------------------------------------------------------------------------


def judge(
    records: Sequence[Record],
    leases: Iterable[Record],
    faults: Sequence[Fault],
    books: Books,
    intents: Mapping[int, float],
    wanted: Wanted,
    began: datetime,
    ended: datetime,
) -> Verdict:
    """Judge what the broker was sent since `began`. `intents`: instrument order -> signed quantity wanted."""
    terms, problems = terms_of(leases)
    orders = [order for order in placements(records) if order.at >= began]
    mine = {order.key for order in orders}
    twice = {key: text for key, text in duplicates(records, intents).items() if key in mine}
    wrong, late = without_lease([record for record in records if _time(record["at"]) >= began], terms, faults)
    # An order from before that was still active is in the books that were read, and in the log as well.
    strangers = unmatched(
        [record for record in records if _key(record) in mine or _number(record) in books.orders], books
    )
    times = takeovers(faults, terms, Expect.TAKEN)
    again = [(fault.trading_at - fault.at).total_seconds() for fault in faults if fault.at and fault.trading_at]
    verdict = Verdict(
        faults=len(faults),
        orders_sent=len(orders),
        duplicate_orders=len(twice),
        orders_without_lease=len(wrong),
        max_holders_at_once=holders_at_once(terms),
        unmatched_broker_orders=len(strangers),
        takeover_seconds=summary(times),
        takeover_bar_seconds=wanted.takeover_s,
        handover_seconds=summary(takeovers(faults, terms, Expect.MOVES)),
        trading_again_seconds=summary(again),
        orders_late_from_gateway=len(late),
        orders_filled=sum(bool(filled(records).get(order.key)) for order in orders),
        epochs=len({order.epoch for order in orders} - {None}),
        minutes=round((ended - began).total_seconds() / 60, 1),
        faults_by_kind=dict(sorted(Counter(fault.kind for fault in faults).items())),
        violations={
            "duplicate_orders": [*twice.values()],
            "orders_without_lease": [*wrong.values()],
            "unmatched_broker_orders": strangers,
            "orders_late_from_gateway": late,
        },
    )
    verdict.problems = [
        *problems,
        *_violated(verdict),
        *_not_enough(verdict, wanted),
        *itertools.chain.from_iterable(_unexpected(fault, terms) for fault in faults),
        *(f"not settled at the end: {order}" for order in books.unfinished),
        *(f"locked, because books and broker differ: {name}" for name in books.locks),
    ]
    verdict.passed = not verdict.problems
    return verdict


def takeovers(faults: Sequence[Fault], terms: Sequence[Term], expect: Expect) -> list[float]:
    """Return the seconds from each fault of a sort to the first grant to another host after it."""
    moves = ((fault, _next_holder(fault, terms)) for fault in faults if fault.expect is expect and fault.at)
    return [(term.began - fault.at).total_seconds() for fault, term in moves if term and fault.at]


def _next_holder(fault: Fault, terms: Sequence[Term]) -> Term | None:
    assert fault.at
    before = [term for term in terms if term.began <= fault.at]
    host = before[-1].host if before else ""
    limit = fault.trading_at or datetime.max.replace(tzinfo=fault.at.tzinfo)
    return next((term for term in terms if fault.at < term.began <= limit and term.host != host), None)


def _violated(verdict: Verdict) -> Iterator[str]:
    for what in ("duplicate_orders", "orders_without_lease", "unmatched_broker_orders"):
        if count := getattr(verdict, what):
            yield f"{what}: {count}, wanted 0"
    if verdict.max_holders_at_once != 1:
        yield f"max_holders_at_once: {verdict.max_holders_at_once}, wanted 1"


def _not_enough(verdict: Verdict, wanted: Wanted) -> Iterator[str]:
    if not verdict.orders_sent:
        yield "orders_sent: 0: without orders the drill shows nothing"
    if not verdict.orders_filled:
        yield "orders_filled: 0: without fills the drill shows nothing"
    if verdict.faults < wanted.faults:
        yield f"faults: {verdict.faults}, wanted {wanted.faults}"
    if verdict.minutes < wanted.minutes:
        yield f"minutes: {verdict.minutes:g}, wanted {wanted.minutes:g}"
    if never := sorted(set(wanted.kinds) - verdict.faults_by_kind.keys()):
        yield f"never ran: {', '.join(never)}"
    p95 = verdict.takeover_seconds.get("p95")
    if p95 is not None and p95 > wanted.takeover_s:
        yield f"takeover_seconds: p95 {p95:g}, wanted at most {wanted.takeover_s:g}"


def _unexpected(fault: Fault, terms: Sequence[Term]) -> Iterator[str]:
    where = f"{fault.kind} on {fault.target or 'the site'}"
    if fault.problem:
        yield f"{where}: {fault.problem}"
    if fault.at is None:
        yield f"{where}: was never done"
        return
    if fault.trading_at is None:
        yield f"{where}: trading did not go on again"
        return
    if fault.expect in (Expect.TAKEN, Expect.MOVES) and _next_holder(fault, terms) is None:
        yield f"{where}: no other host got the lease"
    if fault.expect is Expect.STAYS:
        new = [term for term in terms if fault.at < term.began <= fault.trading_at]
        yield from (f"{where}: the lease went to {term.host} (epoch {term.epoch}), wanted: it stays" for term in new)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return count, median, p95 (nearest rank) and maximum."""
    if not values:
        return {"count": 0}
    ranked = sorted(values)

    def rank(share: float) -> float:
        return round(ranked[max(0, math.ceil(share * len(ranked)) - 1)], 2)

    return {"count": len(ranked), "median": rank(0.5), "p95": rank(0.95), "max": rank(1)}


def _key(record: Record) -> tuple[int, int]:
    return record["client_id"], record["order_id"]


def _number(record: Record) -> int | None:
    match = REFERENCE.fullmatch(record["reference"])
    return int(match[2]) if match else None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
