"""The rules of the lease: who may take it, renew it, and until when its holder may believe in it. No I/O.

The server's half of a rule is a filter and an update that MongoDB evaluates in one atomic step. The other half is
`Contender`: what one guard asks for next, and what it concludes from an answer, a lost answer, or none.

Why two hosts never believe at once, with clocks whose rates differ by up to 1 %:

- A holder believes until `ttl` after it *sent* the last request that was confirmed.
- A request that changes the document changes (`epoch`, `renewals`) to a pair that was never there before. A contender
  takes the lease only by naming a pair that it has seen unchanged for 1.03 `ttl`, counted from when the answer came.
  So whatever the holder had confirmed was sent more than a `ttl` ago by the holder's own clock.
- The server's clock has to say so too (`expires_at`), but it alone moves nothing: a clock may be set, and the next
  primary has another one. One that was set back is outvoted after 1.1 `ttl`.
- Every renewal changes the pair, so a request that was delayed in the network names one that is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Document = dict[str, Any]
Ended = Literal["released", "killed", "expired"]

CLOCK_DRIFT = 1.03  # both clocks may be 1 % off, in opposite directions, and a bit
CLOCK_SET_BACK = 1.1  # of a ttl: from here on a server's clock that still says "not expired" was set back
RETRY_S = 0.5
POLL_S = 1.0  # how late a renewal is seen at most: it adds to a takeover


@dataclass(frozen=True)
class Holder:
    """Who holds a lease. The instance is one life of one guard, so that an old one is never taken for a new one."""

    host: str
    colour: str
    instance: str
    address: str


@dataclass(frozen=True)
class Sites:
    """Which of two sites a host is in. The lease itself says at which one it may be taken: `site` in its document."""

    name: str
    peer: str
    standby: bool  # the second site: a lease that says nothing yet is the first one's

    def rule(self) -> Document:
        """Return the filter of the leases that may be taken here."""
        return {"site": self.name} if self.standby else {"site": {"$ne": self.peer}}

    def may_take(self, lease: Document) -> bool:
        return lease.get("site") == self.name if self.standby else lease.get("site") != self.peer


@dataclass(frozen=True)
class Timing:
    ttl_s: float
    renew_s: float
    margin_s: float
    rank_delay_s: float


@dataclass(frozen=True)
class Seen:
    """A state of the document that a contender has been looking at since `since`, by its own monotonic clock."""

    epoch: int
    renewals: int
    free: bool
    ttl_s: float
    since: float


@dataclass(frozen=True)
class Grant:
    """What a holder knows of its lease. `sent_at` is when the last confirmed request was sent."""

    epoch: int
    holder: Holder
    sent_at: float
    valid_until: float
    deadline: float  # everything that runs under the lease has to be dead by `valid_until`: the killing begins here
    previous_ended: Ended | None
    confirmed: bool = True  # an adopted one is not, until its first renewal


@dataclass(frozen=True)
class Request:
    """What a contender asks of the store."""

    verb: Literal["read", "acquire", "renew", "release"]
    placement: str
    holder: Holder
    sent_at: float
    ttl_s: float
    epoch: int = 0
    renewals: int = 0
    clock_is_right: bool = True
    ended: Ended = "killed"
    sites: Sites | None = None


# --- the server's half ------------------------------------------------------------------------------------------------


_NOTHING = ("holder", "granted_at", "renewed_at", "expires_at", "ended", "wanted", "revoked", "site")


def unheld(placement: str) -> Document:
    """Return the document of a lease that nobody has held yet."""
    nothing = dict.fromkeys(_NOTHING)
    return {"_id": placement, "epoch": 0, "renewals": 0, "ttl_ms": 0, **nothing}


def operation(request: Request) -> tuple[Document, list[Document]]:
    """Return filter and update pipeline of a request that changes the lease."""
    rules = {"acquire": _acquire, "renew": _renew, "release": _release}
    return rules[request.verb](request)


def _validity(request: Request) -> Document:
    ttl_ms = round(request.ttl_s * 1000)
    return {"renewed_at": "$$NOW", "expires_at": {"$add": ["$$NOW", ttl_ms]}, "ttl_ms": ttl_ms}


def _acquire(request: Request) -> tuple[Document, list[Document]]:
    me = request.holder
    expired = [{"$expr": {"$lte": ["$expires_at", "$$NOW"]}}] if request.clock_is_right else [{}]
    only_if = {
        "_id": request.placement,
        "epoch": request.epoch,
        "renewals": request.renewals,
        "revoked": None,
        **(request.sites.rule() if request.sites else {}),
        "$and": [
            {"$or": [{"wanted": None}, {"wanted.host": me.host, "wanted.colour": me.colour}]},
            {"$or": [{"holder": None}, *expired]},
        ],
    }
    change = {
        "holder": {"$literal": asdict(me)},
        "epoch": {"$add": ["$epoch", 1]},
        # A lease that was free says itself how it became so.
        "ended": {"$cond": [{"$eq": ["$holder", None]}, "$ended", "expired"]},
        "wanted": None,  # who was wanted is here now; from now on anybody may follow
        "granted_at": "$$NOW",
        **({"site": {"$literal": request.sites.name}} if request.sites else {}),
        **_validity(request),
    }
    return only_if, [{"$set": change}]


def _mine(request: Request) -> Document:
    return {"_id": request.placement, "holder.instance": request.holder.instance, "epoch": request.epoch}


def _renew(request: Request) -> tuple[Document, list[Document]]:
    # Not `expires_at > $$NOW`: while nobody else has taken it, a server's clock that was set forward ends no lease.
    change = {"renewals": {"$add": ["$renewals", 1]}, **_validity(request)}
    return {**_mine(request), "revoked": None}, [{"$set": change}]


def _release(request: Request) -> tuple[Document, list[Document]]:
    change = {"holder": None, "ended": request.ended, "renewals": {"$add": ["$renewals", 1]}, "expires_at": "$$NOW"}
    return _mine(request), [{"$set": change}]


def moved(site: str, *, force: bool) -> tuple[Document, list[Document]]:
    """Return filter and update that have a lease taken at another site from now on.

    A lease that is held is not moved, except by force: that ends it, as if it had expired. The one who held it may
    believe in it for as long as it was valid; whoever forces it has seen to that.
    """
    if not force:
        return {"holder": None}, [{"$set": {"site": {"$literal": site}}}]
    ended: Document = {
        "site": {"$literal": site},
        "ended": {"$cond": [{"$eq": ["$holder", None]}, "$ended", "expired"]},
        "holder": None,
        "wanted": None,
        "epoch": {"$add": ["$epoch", 1]},
        "renewals": {"$add": ["$renewals", 1]},
        "expires_at": "$$NOW",
    }
    return {}, [{"$set": ended}]


# --- the guard's half -------------------------------------------------------------------------------------------------


class Contender:
    """One guard and one lease. Whoever drives it asks `next`, has the store execute it, and tells what came back."""

    def __init__(
        self,
        placement: str,
        me: Holder,
        timing: Timing,
        rank: int,
        new_instance: Callable[[], str],
        sites: Sites | None = None,
    ) -> None:
        self.placement = placement
        self.me = me
        self.timing = timing
        self.rank = rank
        self.new_instance = new_instance
        self.grant: Grant | None = None
        self.lease: Document | None = None  # as last seen
        self.sites = sites
        self.revoked = False
        self.at_other_site = False
        self.wanted_elsewhere: Document | None = None
        self._home = me
        self._seen: Seen | None = None
        self._look = True  # read before anything else
        self._next_at = 0.0
        self._take_at: float | None = None
        self._unconfirmed: int | None = None  # the epoch of a grant whose answer was lost
        self._release: tuple[Holder, int, Ended] | None = None

    # What to ask ------------------------------------------------------------------------------------------------------

    def next(self, now: float, *, contend: bool = True) -> Request | None:
        """Return what to ask the store now, if anything. Without `contend` it only watches, or keeps what it has."""
        if contend and self._take_at is not None and self._seen and now >= self._take_at:
            return self._request("acquire", now, **self._claim(self._seen, now))
        if now < self._next_at:
            return None
        if self._release:
            holder, epoch, ended = self._release
            return self._request("release", now, holder=holder, epoch=epoch, ended=ended)
        if self._look:
            return self._request("read", now)
        if self.grant and now < self.grant.deadline and not self.revoked:
            return self._request("renew", now, epoch=self.grant.epoch)
        if self._unconfirmed is not None:
            return self._request("renew", now, epoch=self._unconfirmed)
        return self._request("read", now)

    @property
    def settled(self) -> bool:
        """Whether nothing is held, and what was held is known to be given back."""
        return self.grant is None and self._release is None

    def due(self, *, contend: bool = True) -> float:
        """When `next` will have something to ask."""
        return min(self._next_at, self._take_at) if contend and self._take_at is not None else self._next_at

    def _request(self, verb: Literal["read", "acquire", "renew", "release"], now: float, **more: Any) -> Request:
        given = {"holder": self.me, "ttl_s": self.timing.ttl_s, "sites": self.sites, **more}
        return Request(verb=verb, placement=self.placement, sent_at=now, **given)

    def _claim(self, seen: Seen, now: float) -> Document:
        believe = now < seen.since + seen.ttl_s * CLOCK_SET_BACK
        return {"epoch": seen.epoch, "renewals": seen.renewals, "clock_is_right": believe}

    # What came back ---------------------------------------------------------------------------------------------------

    def answered(self, request: Request, lease: Document | None, now: float) -> None:
        """Take an answer: the document after the change, or None where the rule refused it."""
        if request.verb == "release":
            self._release, self._look, self._next_at = None, True, now
        elif request.verb == "read":
            if lease is None:
                self._next_at = now + RETRY_S
            else:
                self._observed(lease, now)
        elif request.verb == "renew":
            self._renewed(request, lease, now)
        else:
            self._acquired(request, lease, now)

    def failed(self, request: Request, now: float) -> None:
        """Take it that no answer came: the store may have done it, may yet do it, or not."""
        self._next_at = now + RETRY_S
        if request.verb == "acquire":
            self._look, self._take_at = True, None  # the document says whether it was me

    def _observed(self, lease: Document, now: float) -> None:
        self._note(lease)
        self._look, self._next_at, self._take_at = False, now + POLL_S, None
        holder = lease["holder"]
        mine = holder is not None and holder["instance"] == self.me.instance
        if self.grant:
            if not mine or lease["epoch"] != self.grant.epoch:
                over = min(now, self.grant.deadline)
                self.grant = replace(self.grant, valid_until=over, deadline=over)
            elif not self.revoked:
                self._next_at = now
            return
        state = (lease["epoch"], lease["renewals"], holder is None)
        if self._seen is None or state != (self._seen.epoch, self._seen.renewals, self._seen.free):
            # The holder's ttl: it may be another one than mine while a change of it is being rolled out.
            self._seen = Seen(*state, max(lease["ttl_ms"] / 1000, self.timing.ttl_s), now)
        self._unconfirmed = None
        if self.revoked or self.wanted_elsewhere or self.at_other_site:
            if holder is None:
                self._seen = None  # it is free from when it may be taken, so that the ranks count then
            return
        if mine:
            self._unconfirmed, self._next_at = lease["epoch"], now
        else:
            self._take_at = self._may_take_at(self._seen)

    def _may_take_at(self, seen: Seen) -> float:
        silence = 0.0 if seen.free else seen.ttl_s * CLOCK_DRIFT
        invited = self.lease is not None and self.lease["wanted"] is not None
        return seen.since + silence + (0.0 if invited else self.rank * self.timing.rank_delay_s)

    def _acquired(self, request: Request, lease: Document | None, now: float) -> None:
        self._take_at = None
        if lease is None:  # somebody was faster, or the server's clock says that it is too early
            self._look, self._next_at = True, now + RETRY_S
        else:
            self._take(request, lease, now)

    def _renewed(self, request: Request, lease: Document | None, now: float) -> None:
        self._unconfirmed = None
        if lease is None:
            self._look, self._next_at = True, now
        elif self.grant and now >= self.grant.deadline:
            self._next_at = now + POLL_S  # it comes too late: what ran under the grant is being killed
        else:
            self._take(request, lease, now)

    def _take(self, request: Request, lease: Document, now: float) -> None:
        self._note(lease)
        self._next_at = max(now, request.sent_at + self.timing.renew_s)
        # Counted from before the request was sent: who watches begins to count when it was done, which is later.
        valid_until = request.sent_at + request.ttl_s
        deadline = valid_until - self.timing.margin_s
        self.grant = Grant(lease["epoch"], request.holder, request.sent_at, valid_until, deadline, lease["ended"])

    def _note(self, lease: Document) -> None:
        self.lease = lease
        self.revoked = lease["revoked"] is not None
        self.at_other_site = self.sites is not None and not self.sites.may_take(lease)
        wanted = lease["wanted"]
        me = (self.me.host, self.me.colour)
        self.wanted_elsewhere = wanted if wanted and (wanted["host"], wanted["colour"]) != me else None

    # What its guard decides -------------------------------------------------------------------------------------------

    def adopt(self, grant: Grant, now: float) -> None:
        """Go on with the grant of the guard that was here before, once a renewal has confirmed it."""
        self.me = grant.holder
        self.grant = replace(grant, confirmed=False)
        self._look, self._next_at = False, now

    def abandon(self, ended: Ended, now: float) -> None:
        """Give the lease back. Nothing runs under it any more, and from now on this is somebody else."""
        if self.grant:
            self._release = (self.grant.holder, self.grant.epoch, ended)
        self.grant = None
        self.me = replace(self._home, instance=self.new_instance())
        self._seen = self._take_at = self._unconfirmed = None
        self._look, self._next_at = True, now
