"""What the mail server and the webhook got."""

import json
from typing import Any

from testinfra.host import Host

testinfra_hosts = ["ansible://sink"]


def taken(host: Host, kind: str) -> list[dict[str, Any]]:
    with host.sudo():
        lines = host.check_output(f"for f in $(ls /var/lib/sink/*-{kind}.json); do cat $f; echo; done")
    return [json.loads(line) for line in lines.splitlines() if line]


def test_people_are_told_by_a_login_over_tls(host: Host) -> None:
    (mail,) = taken(host, "mail")
    assert (mail["tls"], mail["login"]) == (True, "pst")
    assert mail["to"] == ["ops@example.net", "desk@example.net"]
    assert mail["headers"]["Subject"] == "[notify] Unplanned promotion of two has started"
    assert mail["headers"]["X-Pst-Event"] == "promotion_started"
    assert "from one to two: the site is gone" in mail["body"]


def test_what_somebody_writes_is_no_header(host: Host) -> None:
    (mail,) = taken(host, "mail")
    assert "Bcc" not in mail["headers"]


def test_programs_get_the_fields_signed(host: Host) -> None:
    events = taken(host, "hook")
    assert [event["event"] for event in events] == ["promotion_started", "promotion_failed"]
    assert all(event["right"] for event in events)
    assert events[0]["fields"]["to_site"] == "two"
    assert events[1]["fields"]["step"] == "redirect"
    assert events[1]["site"] == "notify"
