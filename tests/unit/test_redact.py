"""Secrets are taken out of texts; what only looks a little like one stays."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest

from ansible_collections.pst.platform.plugins.module_utils.redact import leaks, redact


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mongodb://app:s3cret@db1:27017/x", "mongodb://app:***@db1:27017/x"),
        ("mongodb+srv://app:s3cret@db1/x", "mongodb+srv://app:***@db1/x"),
        ("redis://:s3cret@a, redis://u:other@b", "redis://:***@a, redis://u:***@b"),
        ("password=s3cret rest", "password=*** rest"),
        ('"token": "s3cret", "a": 1', '"token": "***", "a": 1'),
        (r"{\"api_key\": \"s3cret\"}", r"{\"api_key\": \"***\"}"),
        ("MONGODB_APP_PASSWORD: 's3cret'", "MONGODB_APP_PASSWORD: '***'"),
        ("Authorization: Bearer s3cret.x", "Authorization: Bearer ***"),
        ("curl -H bearer 0123456789abcdef0123", "curl -H bearer ***"),
        ("x_pwd=s3cret", "x_pwd=***"),
        ("private-key: s3cret", "private-key: ***"),
        ("a\n-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----\nb", "a\n***\nb"),
        ("a\n-----BEGIN PRIVATE KEY-----\nabc cut", "a\n***"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, wanted: str) -> None:
    assert redact(text) == wanted
    assert redact(redact(text)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "password_file=/etc/pst/credentials/mongodb_password",
        "https://host:8080/path",
        "mail to user@example.org: see http://x/",
        "no password was given",
        "sudo: deploy : PWD=/home/deploy ; USER=root",
        "secrets are in /etc/x",
        "order 12: token ring",
        "Basic settings",
        "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
    ],
)
def test_the_rest_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("secret", ["Zq9+/=x y", 'quo"te\\d1', "line-one-1\nline-two-2\n"])
def test_a_known_secret_is_taken_out_however_it_is_written(secret: str) -> None:
    for form in (secret, json.dumps(secret), quote(secret, safe=""), base64.b64encode(secret.encode()).decode()):
        text = f"before {form} after"
        assert leaks(text, [secret])
        assert not leaks(redact(text, [secret]), [secret])
        assert redact(text, [secret]).startswith("before ")


def test_a_short_one_is_not_looked_for() -> None:
    assert redact("a word and a word", ["word"]) == "a word and a word"


@pytest.mark.parametrize(
    "text", ["x" * 200_000, "a://" * 50_000, "password=" * 20_000, "token " * 30_000, "Bearer " * 30_000]
)
def test_a_long_text_takes_no_time(text: str) -> None:
    started = time.process_time()
    redact(text)
    assert time.process_time() - started < 1
