# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell people and programs of an event: by e-mail and by webhook, each tried on its own, and never an exception.

The standard library alone: `community.general.mail` does not verify certificates, and Ansible's `uri` cannot sign.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from http.client import HTTPException
from typing import Any

SUBJECT_LENGTH = 200
PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Event:
    """What is told: the first line of the text is the subject."""

    name: str
    site: str
    text: str
    fields: Mapping[str, Any]
    at: datetime

    @property
    def subject(self) -> str:
        return " ".join(self.text.strip().partition("\n")[0].split())[:SUBJECT_LENGTH]

    @property
    def body(self) -> str:
        return self.text.strip().partition("\n")[2].strip() + "\n"

    def message(self, sender: str, recipients: Sequence[str]) -> EmailMessage:
        message = EmailMessage()
        message["From"], message["To"] = sender, ", ".join(recipients)
        message["Subject"] = self.subject
        message["Date"] = format_datetime(self.at)
        message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2].strip("> ") or None)
        message["X-Pst-Event"], message["X-Pst-Site"] = self.name, self.site
        # No answer of an absent person's program.
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(self.body)
        return message

    def payload(self) -> bytes:
        values = {
            "event": self.name,
            "site": self.site,
            "at": self.at.isoformat(timespec="seconds"),
            "subject": self.subject,
            "text": self.body,
            "fields": dict(self.fields),
        }
        return json.dumps(values, sort_keys=True).encode()


def signature(secret: str, timestamp: str, payload: bytes) -> str:
    """Of the time and the text, so that an old one cannot be sent again."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + payload, hashlib.sha256).hexdigest()


def send_mail(mail: Mapping[str, Any], event: Event, timeout: float) -> None:
    """Give the message to the server, over a verified connection where there is a password."""
    context = ssl.create_default_context(cafile=mail.get("ca_file") or None)
    security = mail.get("security") or "starttls"
    host, port = mail["host"], mail.get("port") or 587
    if security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=timeout, context=context)
    else:
        server = smtplib.SMTP(host, port, timeout=timeout)
    with server:
        if security == "starttls":
            server.starttls(context=context)
        if mail.get("username"):
            server.login(mail["username"], mail.get("password") or "")
        refused = server.send_message(event.message(mail["sender"], mail["recipients"]))
    if refused:
        reasons = (f"{who}: {code} {text.decode(errors='replace')}" for who, (code, text) in refused.items())
        raise OSError(f"refused recipients: {', '.join(sorted(reasons))}")


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is told goes where the inventory says, and nowhere else."""

    def redirect_request(self, *_args: Any, **_options: Any) -> None:
        return None


def post(webhook: Mapping[str, Any], event: Event, timeout: float) -> None:
    """Send the event as JSON, signed."""
    payload, timestamp = event.payload(), str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "pst-notify",
        "X-Pst-Event": event.name,
        "X-Pst-Timestamp": timestamp,
        "X-Pst-Signature": signature(webhook["secret"], timestamp, payload),
    }
    context = ssl.create_default_context(cafile=webhook.get("ca_file") or None)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), NoRedirect)
    request = urllib.request.Request(webhook["url"], payload, headers)  # noqa: S310
    if request.type != "https":
        raise ValueError(f"url: seen {request.type}://, wanted https://")
    with opener.open(request, timeout=timeout):
        pass  # 2xx; anything else is raised


def deliver(
    event: Event,
    mail: Mapping[str, Any],
    webhooks: Sequence[Mapping[str, Any]],
    *,
    timeout: float,
    attempts: int,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[str], list[str]]:
    """Try every way. Returns those that took it, and what was wrong with the others, without a secret."""
    ways: list[tuple[str, Callable[[], None]]] = []
    if mail:
        ways.append((f"e-mail to {', '.join(mail['recipients'])}", lambda: send_mail(mail, event, timeout)))
    ways += [(f"webhook {hook['name']}", lambda hook=hook: post(hook, event, timeout)) for hook in webhooks]  # type: ignore[misc]
    sent, problems = [], []
    for name, send in ways:
        problem = ""
        for attempt in range(max(1, attempts)):
            if attempt:
                sleep(PAUSE_SECONDS)
            try:
                send()
            except (OSError, smtplib.SMTPException, HTTPException, ValueError, KeyError) as error:
                problem = hidden(f"{type(error).__name__}: {reason(error)}", mail, webhooks)
                if isinstance(error, ValueError | KeyError):
                    break  # trying again does not help
            else:
                problem = ""
                break
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            sent.append(name)
    return sent, problems


def reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        return f"{error.smtp_code} {text}"
    return str(error)


def hidden(text: str, mail: Mapping[str, Any], webhooks: Sequence[Mapping[str, Any]]) -> str:
    """The text without secrets: a server may send back what it was sent, and a webhook's address may hold a token."""
    secrets = [
        mail.get("password"),
        *(hook.get("secret") for hook in webhooks),
        *(hook.get("url") for hook in webhooks),
    ]
    for secret in filter(None, secrets):
        text = text.replace(str(secret), "(hidden)")
    return text


def now() -> datetime:
    return datetime.now(UTC)
