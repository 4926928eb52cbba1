# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a person who helps from afar needs to know of a host and of a run; bounded, and without secrets.

On a host, `gather` runs commands that read, and reads configuration. What looks like a secret is taken out there.
On the control node, `bundle` takes out what is known to be one, makes one file, and refuses where one is left.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils.redact import leaks, redact

COMMAND_S = 10.0
TEXT_BYTES = 256_000  # of one command or file
HOST_BYTES = 1_500_000  # of a host, before compression
UNITS = (
    *("pst-*", "mongod.service", "redis-server.service", "redis-sentinel.service", "haproxy.service"),
    *("keepalived.service", "ib-gateway*", "prometheus*", "rsyslog.service", "chrony.service", "ssh.service"),
)
# Name, command, and whether its end is worth more than its beginning. A program that is not there is left out.
COMMANDS: tuple[tuple[str, Sequence[str], bool], ...] = (
    ("system", ("systemctl", "--no-pager", "status", "--lines=0"), False),
    ("failed-units", ("systemctl", "--no-pager", "list-units", "--failed"), False),
    ("units", ("systemctl", "--no-pager", "--full", "--lines=3", "status", *UNITS), False),
    ("timers", ("systemctl", "--no-pager", "list-timers", "--all"), False),
    ("journal", ("journalctl", "--no-pager", "--quiet", "--lines=1500", "--output=short-iso-precise"), True),
    ("warnings", ("journalctl", "--no-pager", "--quiet", "--lines=500", "--priority=4", "--output=short-iso"), True),
    ("kernel", ("journalctl", "--no-pager", "--quiet", "--dmesg", "--lines=200"), True),
    ("processes", ("ps", "-eo", "pid,user,etimes,rss,pcpu,args", "--sort=-rss"), False),
    ("memory", ("free", "-m"), False),
    ("load", ("cat", "/proc/loadavg", "/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory"), False),
    ("disks", ("df", "-h"), False),
    ("inodes", ("df", "-i"), False),
    ("addresses", ("ip", "-brief", "address"), False),
    ("routes", ("ip", "route"), False),
    ("sockets", ("ss", "-Htanp"), False),
    ("firewall", ("nft", "list", "table", "inet", "pst"), False),
    ("clock", ("chronyc", "-n", "tracking"), False),
    ("packages", ("dpkg-query", "--show"), False),
    ("trading", ("/usr/local/bin/pst-trading", "status"), False),
    ("os", ("cat", "/etc/os-release", "/proc/version"), False),
)
FILES = (
    *("/etc/pst/*.json", "/etc/pst/*/*.json", "/etc/pst/*.conf", "/etc/pst/*.nft", "/etc/pst/firewall.d/*"),
    *("/etc/pst/*/*.y*ml", "/etc/haproxy/haproxy.cfg", "/etc/keepalived/keepalived.conf", "/etc/mongod.conf"),
    *("/etc/redis/pst*.conf", "/etc/prometheus/*.yml", "/etc/systemd/system/pst-*.service"),
    *(
        "/etc/systemd/system/*.d/*.conf",
        "/etc/chrony/chrony.conf",
        "/etc/sysctl.d/60-pst.conf",
        "/var/lib/haproxy/*.map",
    ),
)
# Nothing in them but secrets.
NEVER = ("/pki/", "/credentials/", "acl", ".key", ".pem", "keyfile")

Run = Callable[[Sequence[str]], str]


class BundleError(Exception):
    """No bundle was made; the message says why."""


# --- on a host --------------------------------------------------------------------------------------------------------


def run(command: Sequence[str]) -> str:
    """What a command says, with its exit status where that is not 0."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMMAND_S, check=False)  # noqa: S603 (own words)
    except FileNotFoundError:
        return ""
    except subprocess.TimeoutExpired:
        return f"no answer after {COMMAND_S:g} s\n"
    text = (done.stdout + done.stderr).decode(errors="replace")
    return text if done.returncode == 0 else f"{text}exit status {done.returncode}\n"


def cut(text: str, limit: int, *, end: bool) -> str:
    """At most so many characters, of the beginning or of the end, and how many are left out."""
    if len(text) <= limit:
        return text
    note = f"[{len(text) - limit} characters are left out]\n"
    return note + text[-limit:] if end else text[:limit] + "\n" + note


def gather(root: Path = Path("/"), command: Run = run, limit: int = HOST_BYTES) -> dict[str, str]:
    """Texts by name."""
    texts: dict[str, str] = {}
    for name, words, end in COMMANDS:
        if text := command(words):
            texts[f"{name}.txt"] = cut(redact(text), TEXT_BYTES, end=end)
    for pattern in FILES:
        for path in sorted(root.glob(pattern.lstrip("/"))):
            name = str(path.relative_to(root))
            if path.is_file() and not any(word in f"/{name}" for word in NEVER):
                texts[f"files/{name}"] = cut(redact(path.read_text(errors="replace")), TEXT_BYTES, end=False)
    return bounded(texts, limit)


def bounded(texts: Mapping[str, str], limit: int) -> dict[str, str]:
    """All of them while they fit; the longest are cut to the same length where they do not."""
    longest = limit
    while sum(min(len(text), longest) for text in texts.values()) > limit and longest > 1000:
        longest = longest * 3 // 4
    return {name: cut(text, longest, end=name == "journal.txt") for name, text in texts.items()}


def packed(texts: Mapping[str, str]) -> str:
    return base64.b64encode(gzip.compress(json.dumps(texts).encode(), 6)).decode()


def unpacked(blob: str) -> dict[str, str]:
    texts: dict[str, str] = json.loads(gzip.decompress(base64.b64decode(blob)))
    return texts


# --- on the control node ----------------------------------------------------------------------------------------------


def recent(folders: Iterable[Path], limit: int, each: int = TEXT_BYTES) -> dict[str, str]:
    """The newest files of some folders, at most so many characters in all."""
    texts: dict[str, str] = {}
    paths = [path for folder in folders for path in folder.glob("*") if path.suffix in (".json", ".jsonl", ".log")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        text = cut(path.read_text(errors="replace"), each, end=True)
        if sum(map(len, texts.values())) + len(text) > limit:
            break
        texts[f"{path.parent.name}/{path.name}"] = text
    return texts


def bundle(
    path: Path, parts: Mapping[str, Mapping[str, str]], known: Sequence[str], limit: int, facts: Mapping[str, Any]
) -> int:
    """Write one compressed archive of at most so many bytes, readable by its owner only; returns its size.

    `parts` are texts by host (or `control`). Where all do not fit, each text is cut shorter until they do.
    """
    longest = max((len(text) for texts in parts.values() for text in texts.values()), default=0)
    clean = {part: {name: redact(text, known) for name, text in texts.items()} for part, texts in parts.items()}
    left = sorted(
        f"{part}/{name}" for part, texts in clean.items() for name, text in texts.items() if leaks(text, known)
    )
    if left:
        raise BundleError(f"a secret is left in {', '.join(left)}: no bundle was written")
    while True:
        contents = archive(path.name.removesuffix(".tar.gz"), clean, longest, facts)
        if len(contents) <= limit:
            break
        if longest < 500:
            raise BundleError(f"{len(contents)} bytes, however short the texts are; wanted at most {limit}")
        longest = longest * 2 // 3
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(contents)
    return len(contents)


def archive(top: str, parts: Mapping[str, Mapping[str, str]], longest: int, facts: Mapping[str, Any]) -> bytes:
    cut_texts = [
        (f"{part}/{name}", cut(text, longest, end=name.startswith("journal")))
        for part, texts in sorted(parts.items())
        for name, text in sorted(texts.items())
    ]
    manifest = {**facts, "longest_text": longest, "texts": {name: len(text) for name, text in cut_texts}}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for name, text in [("MANIFEST.json", json.dumps(manifest, indent=2, default=str) + "\n"), *cut_texts]:
            data = text.encode(errors="replace")
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
