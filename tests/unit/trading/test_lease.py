"""The rules of the lease, one by one; what they do together is in test_lease_model.py."""

from __future__ import annotations

import itertools

import pytest
from mongo_rules import matches, updated
from pst_trading import lease
from pst_trading.lease import CLOCK_DRIFT, CLOCK_SET_BACK, POLL_S, Contender, Holder, Sites, Timing

TIMING = Timing(ttl_s=15, renew_s=2, margin_s=3, rank_delay_s=1)


class Server:
    """One document, and a clock that is right."""

    def __init__(self) -> None:
        self.lease = lease.unheld("trading")
        self.now = 0.0

    def do(self, request):
        if request.verb == "read":
            return dict(self.lease)
        only_if, change = lease.operation(request)
        if not matches(only_if, self.lease, self.now * 1000):
            return None
        self.lease = updated(change, self.lease, self.now * 1000)
        return dict(self.lease)


@pytest.fixture
def server():
    return Server()


def contender(host="app1", rank=0):
    numbers = itertools.count()
    me = Holder(host, "blue", f"{host}-first", "10.0.0.1")
    return Contender("trading", me, TIMING, rank, lambda: f"{host}-{next(numbers)}")


def drive(server, one, until, **options):
    """Let a contender do what it wants to do until a time, with answers that come at once."""
    while True:
        server.now = max(server.now, min(one.due(**options), until))
        request = one.next(server.now, **options)
        if request:
            one.answered(request, server.do(request), server.now)
        elif server.now >= until:
            return


def test_a_free_lease_is_taken_at_once_by_the_first_and_later_by_the_others(server):
    second = contender("app2", rank=1)
    drive(server, second, 0.9)
    assert second.grant is None
    drive(server, second, 1)
    assert second.grant.epoch == 1
    first = contender()
    drive(Server(), first, 0)
    assert first.grant.epoch == 1


def test_validity_counts_from_before_the_request_was_sent(server):
    one = contender()
    read = one.next(0)
    one.answered(read, server.do(read), 0.5)
    acquire = one.next(0.5)
    one.answered(acquire, server.do(acquire), 4.0)
    assert (one.grant.sent_at, one.grant.valid_until, one.grant.deadline) == (0.5, 15.5, 12.5)


def test_the_wait_covers_two_clocks_that_are_1_percent_off_in_opposite_directions():
    """The tightest case: the contender sees the last renewal at the moment at which it was sent."""
    slow, fast = 0.99, 1.01
    believed_until = TIMING.ttl_s / slow
    taken_at = TIMING.ttl_s * CLOCK_DRIFT / fast
    assert taken_at > believed_until
    assert taken_at + POLL_S + 2 * TIMING.rank_delay_s < TIMING.ttl_s + 5


def test_a_dead_holder_is_followed_when_it_was_silent_for_a_ttl(server):
    drive(server, contender("app0"), 4)
    one = contender()
    drive(server, one, 4 + TIMING.ttl_s * CLOCK_DRIFT - 0.1)
    assert one.grant is None
    drive(server, one, 4 + TIMING.ttl_s * CLOCK_DRIFT + 0.1)
    assert (one.grant.epoch, one.grant.previous_ended) == (2, "expired")


def test_a_server_clock_that_was_set_back_delays_but_does_not_block(server):
    drive(server, contender("app0"), 4)
    server.lease["expires_at"] = 1e9
    one = contender()
    drive(server, one, 4 + TIMING.ttl_s * CLOCK_SET_BACK - 0.1)
    assert one.grant is None
    drive(server, one, 4 + TIMING.ttl_s + 5)
    assert one.grant.epoch == 2


def test_a_server_clock_that_was_set_forward_neither_ends_nor_moves_a_lease(server):
    holder, one = contender("app0"), contender()
    drive(server, holder, 4)
    drive(server, one, 5)
    server.lease["expires_at"] = 0.0
    drive(server, one, 8)
    assert one.grant is None
    drive(server, holder, 8)
    assert holder.grant.sent_at >= 6
    assert server.lease["epoch"] == 1


def test_the_longer_ttl_counts_while_a_change_of_it_is_rolled_out(server):
    drive(server, contender("app0"), 4)
    server.lease["ttl_ms"] = 30_000
    one = contender()
    drive(server, one, 4 + 30)
    assert one.grant is None
    drive(server, one, 4 + 32)
    assert one.grant.epoch == 2


def test_a_lost_answer_is_resolved_by_reading_and_a_renewal(server):
    one = contender()
    read = one.next(0)
    one.answered(read, server.do(read), 0)
    acquire = one.next(0)
    server.do(acquire)
    one.failed(acquire, 2)
    assert one.grant is None
    drive(server, one, 3)
    assert one.grant.epoch == 1
    assert one.grant.sent_at >= 2, "validity counts from a request whose answer came"


def test_an_answer_after_the_deadline_prolongs_nothing(server):
    one = contender()
    drive(server, one, 0)
    renew = one.next(2)
    assert renew.verb == "renew"
    one.answered(renew, server.do(renew), one.grant.deadline)
    assert one.grant.sent_at == 0


def test_who_is_replaced_loses_the_grant_at_once(server):
    one = contender()
    drive(server, one, 0)
    server.lease.update(epoch=2, holder={"host": "app2", "colour": "blue", "instance": "x", "address": "y"})
    drive(server, one, 2.5)
    assert one.grant.deadline == one.grant.valid_until == 2


def test_a_revoked_lease_is_neither_renewed_nor_taken_but_can_be_given_back(server):
    one = contender()
    drive(server, one, 0)
    server.lease["revoked"] = {"by": "me"}
    drive(server, one, 10)
    assert one.revoked
    assert one.grant.sent_at == 0
    one.abandon("released", 10)
    drive(server, one, 30)
    assert server.lease["holder"] is None
    assert server.lease["ended"] == "released"
    assert one.grant is None
    assert one.settled


def test_only_the_wanted_takes_a_reserved_lease_and_without_delay(server):
    server.lease["wanted"] = {"host": "app2", "colour": "blue"}
    first, second = contender(), contender("app2", rank=1)
    drive(server, first, 5)
    assert first.grant is None
    drive(server, second, 5)
    assert second.grant.epoch == 1
    assert server.lease["wanted"] is None


def test_who_does_not_contend_only_watches(server):
    one = contender()
    drive(server, one, 5, contend=False)
    assert one.grant is None
    assert one.due(contend=False) > 5, "and does so at its usual pace"
    drive(server, one, 5)
    assert one.grant.epoch == 1


def test_each_life_has_a_name_of_its_own(server):
    one = contender()
    drive(server, one, 0)
    before = one.grant.holder.instance
    one.abandon("killed", 1)
    drive(server, one, 5)
    assert one.grant.holder.instance != before
    assert one.grant.previous_ended == "killed"


def test_no_text_of_a_host_is_taken_for_an_expression():
    request = contender("$epoch")._request("acquire", 0.0)
    (stage,) = lease.operation(request)[1]
    assert stage["$set"]["holder"]["$literal"]["host"] == "$epoch"


FIRST, SECOND = Sites("one", "two", standby=False), Sites("two", "one", standby=True)


def at_site(sites, host):
    numbers = itertools.count()
    me = Holder(host, "blue", f"{host}-first", "10.0.0.1")
    return Contender("trading", me, TIMING, 0, lambda: f"{host}-{next(numbers)}", sites)


def test_the_second_site_takes_no_lease_until_it_was_moved(server):
    second = at_site(SECOND, "dr1")
    drive(server, second, 60)
    assert second.grant is None
    first = at_site(FIRST, "app1")
    drive(server, first, 61)
    assert (first.grant.epoch, server.lease["site"]) == (1, "one")
    server.now = 200  # the first site is lost, and the lease has expired long ago
    drive(server, second, 300)
    assert second.grant is None
    assert second.at_other_site


def test_a_lease_that_was_moved_is_the_other_sites(server):
    first, second = at_site(FIRST, "app1"), at_site(SECOND, "dr1")
    drive(server, first, 1)
    only_if, _ = lease.moved("two", force=False)
    assert not matches(only_if, server.lease, 0), "a lease that is held is not moved"
    first.abandon("released", 1)
    request = first.next(1)
    first.answered(request, server.do(request), 1)
    only_if, change = lease.moved("two", force=False)
    assert matches(only_if, server.lease, 0)
    server.lease = updated(change, server.lease, 0)
    drive(server, first, 60)
    drive(server, second, 62)
    assert first.grant is None
    assert second.grant.epoch == 2
    assert second.grant.previous_ended == "released"


def test_a_lease_that_was_forced_away_is_neither_renewed_nor_taken_again(server):
    first, second = at_site(FIRST, "app1"), at_site(SECOND, "dr1")
    drive(server, first, 1)
    _, change = lease.moved("two", force=True)
    server.lease = updated(change, server.lease, 1000)
    drive(server, first, 5)
    assert first.grant.deadline <= 5
    drive(server, second, 8)
    assert (second.grant.epoch, second.grant.previous_ended) == (3, "expired")
