"""Debian's chromium, without a window, driven by its DevTools protocol over a pipe. Standard library only."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PROGRAM = "chromium"
# The machine may be busy: a test that wants something soon says how soon.
TIMEOUT_S = 90.0


def program() -> str | None:
    return shutil.which(PROGRAM)


class BrowserError(Exception):
    """The browser, or the script that it was given, failed."""


class Browser:
    """One process, one page."""

    def __init__(self, path: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="pst-browser-", ignore_cleanup_errors=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def hand_over() -> None:
            # The protocol is spoken on descriptors 3 and 4. Copies first: 3 or 4 may be one of the two.
            reads, writes = os.dup(to_browser), os.dup(from_browser)
            os.dup2(reads, 3)
            os.dup2(writes, 4)

        self._process = subprocess.Popen(
            [
                *(path, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"),
                *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
                *("--disable-extensions", "--disable-background-networking", "--disable-component-update"),
                *("--disable-sync", "--disable-default-apps", "--no-proxy-server", "about:blank"),
            ],
            preexec_fn=hand_over,
            close_fds=False,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        (target,) = [
            found
            for found in self._until(lambda: self.call("Target.getTargets")["targetInfos"])
            if found["type"] == "page"
        ]
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return what came of it; what happens meanwhile is kept in `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer.get("result", {})
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 20)
            if not part:
                raise BrowserError("the browser has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def open(self, url: str, user: str = "", password: str = "") -> None:
        """Go to an address and wait until it has been loaded."""
        if user:
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            self.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {token}"})
        self.events.clear()
        found = self.call("Page.navigate", url=url)
        if found.get("errorText"):
            raise BrowserError(f"{url}: {found['errorText']}")
        self.until("document.readyState === 'complete'")

    def trust_everybody(self) -> None:
        """Go on whoever has issued the certificate: the test looks at it by other means."""
        self.call("Security.setIgnoreCertificateErrors", ignore=True)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def dark(self, *, on: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str, *, shift: bool = False) -> None:
        codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "Escape": 27, " ": 32}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
        text = {"Enter": "\r", " ": " "}.get(key)
        down = common | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def until(self, expression: str, seconds: float = TIMEOUT_S) -> float:
        """Wait until an expression is true; return how long that took."""
        started = time.monotonic()
        self._until(lambda: self.evaluate(f"!!({expression})"), seconds, expression)
        return time.monotonic() - started

    def _until(self, ask: Callable[[], T], seconds: float = TIMEOUT_S, what: str = "the browser's page") -> T:
        ends = time.monotonic() + seconds
        while not (found := ask()):
            if time.monotonic() > ends:
                raise BrowserError(f"not within {seconds:g} s: {what}")
            time.sleep(0.05)
        return found

    def picture(self, path: Path, *, whole: bool = True) -> Path:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def complaints(self) -> list[str]:
        """What the browser's console says is wrong: errors of scripts, refused by the policy, not found."""
        self.evaluate("1")
        found = []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(parameters["exceptionDetails"])[:500])
            elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(parameters["entry"]["text"])
        return found

    def close(self) -> None:
        # The whole group: its helpers write into the profile until they have ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for descriptor in (self._out, self._in):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._profile.cleanup()


@contextlib.contextmanager
def running() -> Iterator[Browser]:
    path = program()
    if path is None:
        raise BrowserError(f"no {PROGRAM} on this machine")
    browser = Browser(path)
    try:
        yield browser
    finally:
        browser.close()
