"""The platform's own page, in a real browser: soon there, soon right, for the keyboard and for the phone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import lab
import observed
import pytest

from ansible_collections.pst.platform.plugins.module_utils import dashboards
from tests import browser as browser_
from tests.browser import Browser

URL = observed.PAGE
PICTURES = lab.REPORTS / "page"
LOADED = "document.querySelectorAll('.host').length === 14 && document.querySelectorAll('.panel').length > 4"
# The bars.
LOAD_S, FAULT_S, PHONE = 1.0, 15.0, 390

FOCUSED = """
((one) => one.id || one.hash || one.dataset.panel || one.closest('.host')?.dataset.host || one.tagName)(
  document.activeElement)
"""
BEYOND_THE_EDGE = """
[...document.querySelectorAll('main *')]
  .filter(one => !one.closest('.scroll') && one.getBoundingClientRect().right > innerWidth + 1)
  .map(one => one.outerHTML.slice(0, 200))
"""
SMALL = """
[...document.querySelectorAll('nav a, button, summary')]
  .filter(one => one.getBoundingClientRect().height < 24).map(one => one.outerHTML.slice(0, 200))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if browser_.program() is None:
        install = (
            "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium"
        )
        subprocess.run(["sh", "-c", install], check=True, capture_output=True, timeout=570)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with browser_.running() as found:
        found.trust_everybody()  # its authority is looked at in `get`
        yield found


@pytest.fixture
def page(browser: Browser) -> Browser:
    browser.size(1440, 900)
    browser.dark(on=False)
    browser.open(f"{URL}/", "operator", lab.secret("console_operator_password"))
    browser.until(LOADED)
    return browser


def state() -> dict[str, Any]:
    return json.loads(observed.page("/data/state.json")[1])


def test_a_password_is_wanted() -> None:
    assert observed.page("/", "wrong")[0] == 401
    assert observed.page("/")[0] == 200


def test_it_is_loaded_within_a_second(browser: Browser) -> None:
    """From the request to the state and the charts on the screen; the best of five: the machine is shared."""
    password = lab.secret("console_operator_password")
    seconds = []
    for _ in range(5):
        browser.open("about:blank")
        started = time.monotonic()
        browser.open(f"{URL}/", "operator", password)
        browser.until(LOADED)
        seconds.append(time.monotonic() - started)
    lab.record("page_loads", seconds=[round(one, 2) for one in seconds], bar_s=LOAD_S)
    assert min(seconds) < LOAD_S * lab.SLACK
    assert browser.complaints() == []


def test_it_shows_what_is_so(page: Browser) -> None:
    shown = "document.querySelector('#verdict').dataset.state"
    lab.eventually("the page's verdict", lambda: page.evaluate(shown) == state()["verdict"], 30)
    seen = state()
    holder = lab.vip_holder()
    assert page.evaluate(f"document.querySelector('[data-host={holder}]').innerText").count("virtual address") == 1
    live = json.loads(lab.ask("/version")[1])
    assert live["colour"] in page.evaluate("document.querySelector('[data-key=live]').innerText")
    assert live["release"] in page.evaluate("document.querySelector('[data-key=live]').innerText")
    leases = seen["trading"]["leases"]
    assert leases, "the lab trades"
    for lease in leases:
        (one,) = lease["holders"]
        guard = json.loads(lab.ssh(one["host"], "/usr/local/bin/pst-trading status --json"))
        assert guard["guard"][lease["placement"]]["holds"] is True, (lease, guard)
    assert page.evaluate("document.querySelectorAll('#trading-body tbody tr').length") > len(leases)
    page.picture(PICTURES / "desk.png")
    page.dark(on=True)
    page.picture(PICTURES / "desk-dark.png")


def charts_without_problem() -> dict[str, Any]:
    charts = json.loads(observed.page("/data/charts.json")[1])
    assert {panel["problem"] for panel in charts["panels"]} == {""}
    return charts


def test_every_expression_of_the_boards_is_understood() -> None:
    """By the lab's Prometheus, through the charts that the collector asks it for, and for the boards directly."""
    charts = lab.eventually("charts without a problem", charts_without_problem, 60)
    with_figures = {panel["title"] for panel in charts["panels"] if panel["series"]}
    assert {"Trading System Health", "Requests by slot", "Answers by class"} <= with_figures
    expressions = sorted(
        {query.expr for board in dashboards.BOARDS for panel in board.panels for query in panel.queries}
    )
    program = (
        "import json,ssl,sys,urllib.parse as p,urllib.request as u;"
        'c=ssl.create_default_context(cafile="/etc/pst/pki/ca.crt");'
        'c.load_cert_chain("/etc/pst/pki/monitoring/monitoring.pem");'
        'f=lambda e:len(json.load(u.urlopen("https://10.78.0.61:9090/api/v1/query?query="+p.quote(e),timeout=9,context=c))["data"]["result"]);'
        "print(json.dumps({e:f(e) for e in json.load(sys.stdin)}))"
    )
    found = json.loads(lab.ssh("lab-mon1", f"python3 -c '{program}'", stdin=json.dumps(expressions)))
    assert set(found) == set(expressions)
    lab.record("boards", expressions=len(found), without_series=sorted(e for e, series in found.items() if not series))


@contextlib.contextmanager
def stopped(host: str, unit: str) -> Iterator[None]:
    lab.ssh(host, f"systemctl stop {unit}")
    try:
        yield
    finally:
        lab.ssh(host, f"systemctl start {unit}")


def problem(words: str, where: str) -> str:
    """The question whether the page tells it, whatever else it tells: alerts of the tests before may still fire."""
    texts = "[...document.querySelectorAll('.problem')].map(one => one.innerText.replace(/\\s+/g, ' '))"
    return f"{texts}.some(text => text.includes({words!r}) && text.includes({where!r}))"


def see(page: Browser, words: str, where: str) -> float:
    """Seconds until the page tells it."""
    return page.until(problem(words, where), 3 * FAULT_S)


def gone(page: Browser, words: str, where: str) -> None:
    page.until(f"!({problem(words, where)})", 90)


def test_a_stopped_service_is_shown_within_15_seconds(page: Browser) -> None:
    gone(page, "redis is stopped", "lab-redis3")
    with stopped("lab-redis3", "redis-server.service"):
        seconds = see(page, "redis is stopped", "lab-redis3")
        page.until("document.title.startsWith('■')")
        assert page.evaluate("document.querySelector('[data-host=lab-redis3]').dataset.state") == "critical"
        page.picture(PICTURES / "fault.png")
    lab.record("page_shows_stopped_service", seconds=round(seconds, 1), bar_s=FAULT_S)
    assert seconds < FAULT_S * lab.SLACK
    gone(page, "redis is stopped", "lab-redis3")


def test_a_host_that_hangs_is_shown_within_15_seconds(page: Browser) -> None:
    """Nothing is refused: every question to it has to run into its time-out."""
    gone(page, "none of its services answers", "lab-ibgw2")
    lab.engine("pause", lab.container("lab-ibgw2"))
    try:
        seconds = see(page, "none of its services answers", "lab-ibgw2")
    finally:
        lab.engine("unpause", lab.container("lab-ibgw2"))
    lab.record("page_shows_hung_host", seconds=round(seconds, 1), bar_s=FAULT_S)
    assert seconds < FAULT_S * lab.SLACK
    gone(page, "none of its services answers", "lab-ibgw2")


def test_a_page_that_stands_still_says_so(page: Browser) -> None:
    with stopped("lab-mon1", "pst-console.service"):
        seconds = page.until("!document.querySelector('#stale').hidden", 3 * FAULT_S)
        page.until("document.querySelector('#stale').innerText.includes('collector')", 10)
        page.until("document.querySelector('#verdict').dataset.state === 'unknown'", 10)
    lab.record("page_says_it_stands_still", seconds=round(seconds, 1), bar_s=FAULT_S)
    assert seconds < FAULT_S * lab.SLACK
    page.until("document.querySelector('#stale').hidden", 60)


def test_a_server_that_is_gone_is_told_too(page: Browser) -> None:
    with stopped("lab-mon1", "pst-console-web.service"):
        page.until("document.querySelector('#stale').innerText.includes('server does not answer')", 3 * FAULT_S)
    page.until("document.querySelector('#stale').hidden", 60)


def test_it_works_by_keyboard(page: Browser) -> None:
    order = []
    for _ in range(30):
        page.press("Tab")
        order.append(page.evaluate(FOCUSED))
    # First past everything, then the page's parts in the order in which they are seen.
    assert order[0] == "#now"
    assert order[1] == "theme"
    assert order[2:10] == [
        f"#{name}" for name in ("now", "topology", "trading", "charts", "alerts", "ages", "runs", "versions")
    ]
    hosts = [name for name in order if name.startswith("lab-")]
    assert hosts[:2] == ["lab-lb1", "lab-lb2"]
    assert len(hosts) == 14
    # The focus is seen.
    page.evaluate("document.querySelector('[data-host=lab-app1] summary').focus()")
    page.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    # A host unfolds, and stays so, with the focus on it, while the state goes on.
    page.press("Enter")
    unfolded = "document.activeElement.closest('.host').open"
    page.until(unfolded, 5)
    at = page.evaluate("document.querySelector('#age').innerText")
    page.until(f"document.querySelector('#age').innerText !== {at!r}", 10)
    time.sleep(4)
    assert page.evaluate(unfolded) is True
    # A chart is read by its arrow keys.
    page.evaluate("document.querySelector('svg[data-panel]').focus()")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert page.evaluate("!!document.querySelector('svg[data-panel] .cursor')") is True
    page.press("Escape")
    assert page.evaluate("!!document.querySelector('svg[data-panel] .cursor')") is False


@pytest.mark.parametrize("width", [320, PHONE, 768])
def test_it_fits_a_phone(page: Browser, width: int) -> None:
    page.size(width, 844, phone=True)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(BEYOND_THE_EDGE) == []
    assert page.evaluate(SMALL) == [], "a finger needs 24 pixels (WCAG 2.5.8)"
    if width == PHONE:
        page.picture(PICTURES / "phone.png")


def test_nothing_comes_from_elsewhere(page: Browser) -> None:
    found = page.evaluate("performance.getEntriesByType('resource').map(one => one.name)")
    assert len(found) >= 5
    assert all(name.startswith(f"{URL}/") for name in found), found
    assert page.complaints() == []


def test_no_secret_is_shown() -> None:
    served = observed.pages()
    assert len(served) > 10_000
    assert lab.leaked(served) == []
