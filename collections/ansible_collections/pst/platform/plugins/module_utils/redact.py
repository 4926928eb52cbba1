# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Takes out of a text what looks like a secret, and what is known to be one.

The hosts do the same with what they log (roles/logs/templates/rsyslog.conf.j2). Names and values are known by their
look; values that the caller knows are taken out wherever they are, as they are or as JSON, YAML and URLs write them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

MASK = "***"
SHORTEST = 6  # of a known secret: a shorter one would be found in words
# Bounded everywhere: a long line must not take a long time.
WORD = r"(?:passw(?:or)?d|passphrase|(?-i:(?<![A-Za-z])pwd)|secret|token|api[_-]?key|authorization|private[_-]?key)"
PATTERNS = (
    # A private key, whole or cut off.
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    # user:password@ in an address.
    re.compile(
        r"(?P<head>\b[a-z][a-z0-9+.-]{1,20}://[^:/@\s\"']{0,80}:)(?!\*\*\*@)[^@/\s\"']{1,200}(?=@)", re.IGNORECASE
    ),
    # password=value, "token": "value", Authorization: Bearer value; not the name of a file that holds one.
    re.compile(
        rf"(?P<head>{WORD}\\?[\"']?\s{{0,3}}[=:]\s{{0,3}}(?:\\?[\"'])?(?:(?:Bearer|Basic)\s+)?)"
        r"(?!\*\*\*|Bearer |Basic )[^\s\"'\\,;&}\])]+",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<head>\b(?:Bearer|Basic)\s+)(?!\*\*\*)[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE),
)


def redact(text: str, known: Iterable[str] = ()) -> str:
    """The text without what looks like a secret, and without the known ones."""
    for form in sorted(forms(known), key=len, reverse=True):
        text = text.replace(form, MASK)
    for pattern in PATTERNS:
        text = pattern.sub(lambda match: f"{match.groupdict().get('head') or ''}{MASK}", text)
    return text


def forms(known: Iterable[str]) -> set[str]:
    """The known secrets as they may be written: as they are, by line, in JSON, in a URL, in base64."""
    found = set()
    for secret in known:
        for value in (secret, secret.strip(), *secret.strip().splitlines()):
            if len(value.strip()) >= SHORTEST:
                found |= {value, json.dumps(value)[1:-1], quote(value, safe=""), quote_plus(value)}
                found.add(base64.b64encode(value.encode()).decode())
    return found


def leaks(text: str, known: Iterable[str]) -> bool:
    """Whether one of the known secrets is in the text."""
    return any(form in text for form in forms(known))
