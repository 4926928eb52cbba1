"""Telling people and programs: what they get, what is not told, and that no secret is in it."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import smtplib
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default

import jinja2
import pytest
import yaml
from conftest import ROOT

from ansible_collections.pst.platform.plugins.module_utils import notify

ROLE = ROOT / "roles/notify"
SPECS = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
OPTIONS = SPECS["send"]["options"]
MAIL = {"host": "mail", "sender": "pst@example.net", "recipients": ["ops@example.net"], "password": "hunter2"}
HOOK = {"name": "pager", "url": "https://example.net/?token=abc", "secret": "shh"}


def event(text="Subject\n\nBody", **fields):
    return notify.Event("test", "lab", text, fields, datetime(2026, 1, 2, tzinfo=UTC))


def test_a_message_has_a_subject_of_one_line():
    message = message_from_bytes(bytes(event("One\nTo: all\n\nTwo").message("a@b", ["c@d"])), policy=default)
    assert (message["Subject"], message["To"], message["From"]) == ("One", "c@d", "a@b")
    assert message.get_content() == "To: all\n\nTwo\n"


def test_a_long_subject_is_cut():
    assert len(event("x" * 1000).subject) == notify.SUBJECT_LENGTH


def test_a_signature_is_of_the_time_and_the_text():
    payload = event(step="redirect").payload()
    wanted = hmac.new(b"shh", b"1700000000." + payload, hashlib.sha256).hexdigest()
    assert notify.signature("shh", "1700000000", payload) == f"sha256={wanted}"
    assert notify.signature("shh", "1700000001", payload) != f"sha256={wanted}"
    assert json.loads(payload)["fields"] == {"step": "redirect"}


def told(monkeypatch, *, mail=None, hook=None, attempts=2):
    calls = []

    def way(name, errors):
        def send(*_args):
            calls.append(name)
            if errors and (error := errors.pop(0)):
                raise error

        return send

    monkeypatch.setattr(notify, "send_mail", way("mail", mail or []))
    monkeypatch.setattr(notify, "post", way("hook", hook or []))
    sent, problems = notify.deliver(event(), MAIL, [HOOK], timeout=1, attempts=attempts, sleep=lambda _s: None)
    return calls, sent, problems


def test_every_way_is_tried_though_another_one_fails(monkeypatch):
    calls, sent, problems = told(monkeypatch, mail=[OSError("down"), OSError("down")])
    assert calls == ["mail", "mail", "hook"]
    assert sent == ["webhook pager"]
    assert problems == ["e-mail to ops@example.net: OSError: down"]


def test_a_second_attempt_counts(monkeypatch):
    calls, sent, problems = told(monkeypatch, hook=[TimeoutError("slow"), None])
    assert (calls, len(sent), problems) == (["mail", "hook", "hook"], 2, [])


def test_what_cannot_be_right_is_not_tried_again(monkeypatch):
    calls, _, problems = told(monkeypatch, hook=[ValueError("url")])
    assert (calls, len(problems)) == (["mail", "hook"], 1)


def test_no_secret_is_in_a_problem(monkeypatch):
    error = smtplib.SMTPAuthenticationError(535, b"hunter2 is wrong for https://example.net/?token=abc, shh")
    _, _, problems = told(monkeypatch, mail=[error, error])
    assert problems == [
        "e-mail to ops@example.net: SMTPAuthenticationError: 535 (hidden) is wrong for (hidden), (hidden)"
    ]


def test_a_plain_address_is_refused():
    with pytest.raises(ValueError, match="wanted https"):
        notify.post({**HOOK, "url": "http://127.0.0.1:9/"}, event(), 1)


def test_every_event_has_a_template_and_every_template_an_event():
    assert {path.stem for path in (ROLE / "templates").glob("*.j2")} == set(OPTIONS["notify_event"]["choices"])


@pytest.mark.parametrize("name", OPTIONS["notify_event"]["choices"])
def test_a_template_knows_its_fields(name):
    """Every variable is an option of `send`, and the text has a subject and a body."""
    source = (ROLE / f"templates/{name}.j2").read_text()
    known = {"site_name", *OPTIONS}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    assert set(re.findall(r"\b(?:notify|site)_[a-z_]+", source)) <= known
    values = {key: option.get("default", "") for key, option in OPTIONS.items()} | {"site_name": "lab"}
    empty = environment.from_string(source).render(values)
    full = environment.from_string(source).render(
        values
        | {key: "words" for key, option in OPTIONS.items() if option["type"] == "str"}
        | {"notify_lost_writes": 3}
    )
    for text in (empty, full):
        subject, _, body = text.partition("\n")
        assert subject.startswith("[lab] ")
        assert body.strip()


def test_every_field_goes_to_programs():
    fields = yaml.safe_load((ROLE / "vars/main.yml").read_text())["_notify_fields"]
    settings = set(SPECS["main"]["options"]) | {"notify_event"}
    assert {f"notify_{name}" for name in fields} == set(OPTIONS) - settings
