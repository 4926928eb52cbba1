"""The service's names, as a client gets them from the name server of the lab."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.query
import dns.rcode
import lab
import pytest

SERVER = "10.78.0.61"
ZONE = f"trading.{lab.DOMAIN}"


@pytest.mark.parametrize("name", [ZONE, f"api.{ZONE}"])
def test_a_name_is_the_virtual_address_for_a_few_seconds(name: str) -> None:
    answer = dns.query.udp(dns.message.make_query(name, "A"), SERVER, timeout=5)
    assert answer.flags & dns.flags.AA
    (rrset,) = answer.answer
    assert [item.to_text() for item in rrset] == [lab.VIP]
    assert rrset.ttl <= 10


def test_nobody_copies_or_changes_the_zone_without_the_key() -> None:
    query = dns.message.make_query(ZONE, "AXFR")
    assert dns.query.tcp(query, SERVER, timeout=5).rcode() == dns.rcode.NOTAUTH


def test_a_redirect_to_where_the_names_are_changes_nothing() -> None:
    run = lab.succeed(lab.playbook("dns-redirect", "-e", "dns_redirect_site=lab"))
    assert run.total("changed") == 0, run.changed_tasks()


def test_a_site_that_is_not_known_is_refused_before_anything_changes() -> None:
    run = lab.playbook("dns-redirect", "-e", "dns_redirect_site=elsewhere")
    assert run.code != 0
    assert "seen elsewhere; wanted one of dns_sites, lab" in run.output
