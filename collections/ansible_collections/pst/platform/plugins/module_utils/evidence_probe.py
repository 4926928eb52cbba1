# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The probe of a planned operation, as a process of its own on the control node, and the folder that it leaves.

A site has one run at a time, in `<reports>/.evidence/<site>/`, so the begin and the end of an operation find each other
without a variable between the plays, and what a killed run has left is found by the next one. The files:

  run.json        what was asked for                     headers         the token, 0600
  progress.json   the probe's totals so far, its pid     account.json    the probe's account, when it has ended
  events.jsonl    what happened meanwhile                probe.log       what the probe had to complain about
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ansible_collections.pst.platform.plugins.module_utils.evidence import iso

T = TypeVar("T")
POLL_S = 0.05
# Longer than the agent tries to have a write taken (5 s), and than the balancers wait in a queue.
REQUEST_TIMEOUT_S = 10
# The last request may take its time-out; the account of hours takes some seconds.
STOP_S = REQUEST_TIMEOUT_S + 60
ASK_S = 15


class EvidenceError(Exception):
    """There is no evidence to be had, and why."""


@dataclass(frozen=True)
class Settings:
    """What to send where. `rate` in requests a second, `max_seconds` after which the probe ends by itself.

    `post_share` of the requests are POSTs, `new_share` have a connection of their own (0 to 1).
    """

    operation: str
    site: str
    url: str
    post_url: str
    address: str
    ca_file: str
    rate: float
    max_seconds: int
    post_share: float = 0.2
    new_share: float = 0.5
    run: str = ""


class Run:
    """The run of a site that is under way, or has ended without its report."""

    def __init__(self, reports: Path, site: str) -> None:
        self.folder = (reports / ".evidence" / site).absolute()

    @property
    def exists(self) -> bool:
        return (self.folder / "run.json").exists()

    @property
    def settings(self) -> Settings:
        return Settings(**self._read("run.json"))

    def begin(self, settings: Settings, token: str, probe: Path, first: int, patience_s: float) -> Settings:
        """Start the probe and return when `first` requests have succeeded. Raises EvidenceError; nothing runs then."""
        settings = Settings(**asdict(settings) | {"run": uuid.uuid4().hex[:12]})
        self.clear()
        self.folder.mkdir(mode=0o700, parents=True)
        headers = os.open(self.folder / "headers", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(headers, "w", encoding="ascii") as file:
            file.write(f"Authorization: Bearer {token}\n" if token else "")
        self._write("run.json", asdict(settings))
        # A session of its own: the end of the playbook, or of the terminal, is not its end.
        with open(self.folder / "probe.log", "wb") as log:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", str(probe), *self._options(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                start_new_session=True,
            )

        def enough() -> bool:
            return process.poll() is not None or self.progress().get("ok", 0) >= first

        reached = wait(enough, patience_s)
        if process.poll() is not None:
            complaint = self._complaint()
            self.clear()
            raise EvidenceError(f"the probe did not start: {complaint}")
        if not reached:
            seen = self.progress()
            process.kill()
            process.wait()
            self.clear()
            raise EvidenceError(
                f"{settings.url}: seen {seen.get('ok', 0)} successes and the failures {seen.get('failed', {})} within "
                f"{patience_s:g} s; wanted {first} successes before the operation begins"
            )
        process.returncode = 0  # from here on it is nobody's child, and Popen shall not wait for it or complain
        return settings

    def _options(self, settings: Settings) -> Iterator[str]:
        yield settings.url
        yield from ("--connect", settings.address, "--rate", str(settings.rate))
        yield from ("--post-share", str(settings.post_share), "--new-share", str(settings.new_share))
        yield from ("--duration", str(settings.max_seconds), "--timeout", str(REQUEST_TIMEOUT_S))
        yield from ("--run", settings.run, "--header-file", str(self.folder / "headers"))
        yield from ("--progress", str(self.folder / "progress.json"), "--output", str(self.folder / "account.json"))
        if settings.ca_file:
            yield from ("--ca", settings.ca_file)
        if settings.post_url:
            yield from ("--post", settings.post_url)

    def note(self, what: str, host: str) -> bool:
        """Append an event; False where no run is under way. One write, so that forks do not mix their lines."""
        if not self.exists:
            return False
        line = json.dumps({"at": iso(time.time()), "what": what, "host": host}) + "\n"
        with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(line)
        return True

    def events(self) -> list[dict[str, Any]]:
        """Return the events in the order of their time."""
        try:
            lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return sorted((json.loads(line) for line in lines), key=lambda event: str(event["at"]))

    def progress(self) -> dict[str, Any]:
        """Return the probe's totals so far; empty before its first second is over."""
        try:
            return self._read("progress.json")
        except FileNotFoundError:
            return {}

    def stop(self) -> dict[str, Any]:
        """End the probe and return its account. Raises EvidenceError where it has left none."""
        account = self.folder / "account.json"
        pid = self.progress().get("pid", 0)
        if self._alive(pid):
            os.kill(pid, signal.SIGTERM)
        if not wait(lambda: not self._alive(pid), STOP_S):
            os.kill(pid, signal.SIGKILL)
        if not account.exists():
            seen = self.progress()
            raise EvidenceError(
                f"the probe has left no account: {self._complaint()}; the last that it told were "
                f"{seen.get('ok', 0)} successes and the failures {seen.get('failed', {})}"
            )
        return self._read("account.json")

    def _alive(self, pid: int) -> bool:
        """Tell whether the process is this run's probe: the number may be another's by now, or a zombie's."""
        try:
            return str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def posts(self) -> dict[str, Any] | None:
        """Ask the agent how often each post of the run was carried out; None where it cannot be asked."""
        settings = self.settings
        if not settings.post_url:
            return None
        headers = dict(line.split(": ", 1) for line in (self.folder / "headers").read_text().splitlines())
        found: list[dict[str, Any]] = []

        def asked() -> bool:
            try:
                found.append(ask(f"{settings.post_url}/{settings.run}", settings.address, settings.ca_file, headers))
            except (OSError, http.client.HTTPException, ValueError):
                return False
            return True

        return found[0] if wait(asked, ASK_S) else None

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _complaint(self) -> str:
        try:
            lines = (self.folder / "probe.log").read_text(errors="replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        return lines[-1] if lines else "it said nothing"

    def _read(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        return content

    def _write(self, name: str, content: dict[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content) + "\n", encoding="utf-8")


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until the condition holds; False where it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


@contextmanager
def connected(host: str, port: int, address: str, ca_file: str) -> Iterator[http.client.HTTPSConnection]:
    """Open a connection to an address, with TLS verified for a name."""
    context = ssl.create_default_context(cafile=ca_file or None)
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=5)
    plain = http.client.HTTPConnection(address or host, port, timeout=5)
    try:
        plain.connect()
        connection.sock = context.wrap_socket(plain.sock, server_hostname=host)
        yield connection
    finally:
        connection.close()
        plain.close()


def ask(url: str, address: str, ca_file: str, headers: dict[str, str]) -> dict[str, Any]:
    """GET a JSON object. Raises OSError, HTTPException, or ValueError where the answer is another."""
    parts = urlsplit(url)
    with connected(parts.hostname or "", parts.port or 443, address, ca_file) as connection:
        connection.request("GET", parts.path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != 200:
        raise ValueError(f"{url}: seen status {answer.status}; wanted 200")
    content: dict[str, Any] = json.loads(body)
    return content
