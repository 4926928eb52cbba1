"""The page in a real browser, over states that a lab does not have at hand. Skipped where there is no chromium."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pst_console
import pytest
import site_of_the_page as site
from conftest import ROOT
from test_console import REPORT

from ansible_collections.pst.platform.plugins.module_utils import console
from tests import browser as browser_
from tests.browser import Browser

PAGE = ROOT / "roles/console/files/page"
# The server's, as in the configuration of nginx.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NASTY = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

pytestmark = pytest.mark.skipif(browser_.program() is None, reason="no chromium here")


class Server(http.server.ThreadingHTTPServer):
    """The page's files and documents that a test may change."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(PAGE)))


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/data/").removesuffix(".json")
        if name not in self.server.documents:
            super().do_GET()
            return
        document = self.server.documents[name]
        body = json.dumps(document() if callable(document) else document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browser_.running() as found:
        yield found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    settings = site.settings(tmp_path)
    show(found, settings, site.seen())
    found.documents["charts"] = {
        "site": "lab",
        "at": time.time(),
        "start": site.NOW - 3600,
        "end": site.NOW,
        "step": 30,
        "panels": [site.chart(panel) for panel in settings.panels],
    }
    found.documents["runs"] = {"site": "lab", "runs": []}
    found.settings = settings  # type: ignore[attr-defined]
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def show(server: Server, settings: pst_console.Settings, seen: pst_console.Seen) -> None:
    server.documents["state"] = lambda: pst_console.Picture(settings, seen, time.time()).document()


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    browser.size(1440, 900)
    browser.open(f"http://127.0.0.1:{server.server_port}/")
    browser.until("document.querySelectorAll('.host').length === 14 && document.querySelectorAll('.panel').length > 4")
    return browser


def text(page: Browser, selector: str) -> str:
    return page.evaluate(f"document.querySelector({selector!r}).innerText")


def test_a_site_that_is_well(page: Browser) -> None:
    page.until("document.querySelector('#verdict').innerText === 'All is well' && document.title === 'lab'")
    assert text(page, "#problems") == "Nothing is wrong."
    assert page.complaints() == []


def test_a_fault_comes_and_goes_without_a_reload(page: Browser, server: Server) -> None:
    page.evaluate("window.kept = document.querySelector('[data-host=app1]'); kept.open = true")
    show(server, server.settings, site.seen(down=("mongo2",)))
    page.until("document.querySelector('.problem') && document.title === '■ lab: 1 problem'")
    assert "mongo2" in text(page, ".problem")
    assert page.evaluate("document.querySelector('#icon').href").endswith("icon-critical.svg")
    show(server, server.settings, site.seen())
    page.until("!document.querySelector('.problem')")
    assert page.evaluate("kept === document.querySelector('[data-host=app1]') && kept.open"), "it was drawn anew"


def test_text_stays_text(page: Browser, server: Server) -> None:
    seen = site.seen()
    labels = {"alertname": NASTY, "severity": "critical", "host": NASTY}
    seen.alerts = [
        {"labels": labels, "annotations": {"summary": NASTY, "runbook_url": "javascript:1"}, "state": "firing"}
    ]
    show(server, server.settings, seen)
    run = {"id": NASTY, "operation": NASTY, "outcome": NASTY, "started": NASTY, "problems": [NASTY], "second": 1}
    run |= {"duration_s": 1, "requests": 1, "failed": 1, "longest_gap_ms": 1, "gap": None, "seconds": [[1, 0, 2]]}
    server.documents["runs"] = {"runs": [run | {"events": [{"s": 1, "host": NASTY, "what": NASTY}]}]}
    page.open(f"http://127.0.0.1:{server.server_port}/")
    page.until("document.querySelector('.problem') && document.querySelector('.run')")
    assert NASTY in text(page, ".problem")
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert "owned" not in page.evaluate("document.title").replace(NASTY, "")
    assert page.complaints() == []


def test_an_old_state_is_not_shown_as_a_new_one(page: Browser, server: Server) -> None:
    old = pst_console.Picture(server.settings, site.seen(), time.time() - 60).document()
    server.documents["state"] = old
    page.until("!document.querySelector('#stale').hidden")
    page.until("document.querySelector('#stale').innerText.includes('collector')")
    page.until("document.querySelector('#verdict').innerText === 'Not known' && document.title.startsWith('?')")


def test_a_server_that_is_gone(page: Browser, server: Server) -> None:
    del server.documents["state"]
    page.until("!document.querySelector('#stale').hidden")
    page.until("document.querySelector('#stale').innerText.includes('server does not answer: HTTP 404')")


def test_a_run_unfolds_into_its_timeline(page: Browser, server: Server) -> None:
    server.documents["runs"] = {"runs": [console.run(REPORT)]}
    page.open(f"http://127.0.0.1:{server.server_port}/")
    page.until("document.querySelector('.run')")
    page.evaluate("document.querySelector('.run summary').click()")
    page.until("document.querySelector('.run').open")
    assert page.evaluate("document.querySelectorAll('.timeline .bar').length") == 167
    assert "fills the slot" in text(page, ".run .more")


def test_a_chart_without_series_names_what_it_wants(page: Browser, server: Server) -> None:
    server.documents["charts"]["panels"][2]["series"] = []
    server.documents["charts"]["panels"][3] |= {"series": [], "problem": "timed out"}
    page.open(f"http://127.0.0.1:{server.server_port}/")
    page.until("document.querySelectorAll('.panel').length > 4")
    texts = page.evaluate("[...document.querySelectorAll('.panel')].map(one => one.innerText)")
    assert "pysystemtrade_position_pnl_total" in texts[2]
    assert "Prometheus does not answer: timed out" in texts[3]


# Of each text in view: its colour, the colour that it stands on, its words.
PAIRS = """
[...document.querySelectorAll('body *')]
  .filter(one => !one.matches('script, noscript, noscript *') && one.getClientRects().length)
  .filter(one => [...one.childNodes].some(node => node.nodeType === 3 && node.nodeValue.trim()))
  .map(one => {
    let at = one;
    while (getComputedStyle(at).backgroundColor === 'rgba(0, 0, 0, 0)') at = at.parentElement;
    const own = getComputedStyle(one);
    const back = getComputedStyle(at).backgroundColor;
    return [one.closest('svg') ? own.fill : own.color, back, one.textContent.slice(0, 40)];
  })
"""


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(page: Browser, server: Server, dark: bool) -> None:
    """WCAG AA: 4.5 to 1, for each text against what it stands on."""
    show(server, server.settings, site.seen(down=("mongo2",), units={("redis1", "redis-server.service"): "activating"}))
    page.dark(on=dark)
    page.until("document.querySelectorAll('.problem').length === 2")
    time.sleep(0.5)  # the borders change slowly
    pairs = page.evaluate(PAIRS)
    assert len(pairs) > 100
    poor = []
    for front, back, words in pairs:
        lighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
        if (lighter + 0.05) / (darker + 0.05) < 4.5:
            poor.append((words, front, back))
    assert poor == []


def test_states_are_told_by_form_as_well(page: Browser) -> None:
    """With all colours taken away, each mark still differs from the others."""
    forms = page.evaluate(
        "['ok', 'standby', 'warning', 'critical', 'unknown'].map(state => {"
        " const own = getComputedStyle(document.querySelector(`.key .mark[data-state=${state}]`));"
        " return [own.borderRadius, own.clipPath, own.borderTopStyle, own.width].join(' '); })"
    )
    assert len(set(forms)) == 5
    assert page.evaluate("[...document.querySelectorAll('.mark')].every(one => one.closest('.key') || one.ariaLabel)")


def test_the_theme_is_kept(page: Browser, server: Server) -> None:
    page.evaluate("document.querySelector('#theme').click(); document.querySelector('#theme').click()")
    assert text(page, "#theme") == "Theme: dark"
    page.open(f"http://127.0.0.1:{server.server_port}/")
    assert text(page, "#theme") == "Theme: dark"
    page.evaluate("document.querySelector('#theme').click()")
    assert text(page, "#theme") == "Theme: system"
