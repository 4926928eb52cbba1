"""The wrapper around the release's dashboard: its page of processes harms nobody, and tells no password."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pst_dashboard
import pytest

NOW = datetime(2026, 11, 20, 12, 0)  # noqa: DTZ001 - as pysystemtrade stores it
URI = "mongodb://app:hidden@m1:27017/?tls=true"
DOCUMENTS: list[Mapping[str, Any]] = [
    {"process_name": "run_stack_handler", "status": "GO", "currently_running": 1.0, "process_id": 1.0},
    {"process_name": "run_reports", "status": "GO", "currently_running": 0.0, "recently_crashed": 1.0},
    {"process_name": "run_backups", "status": "STOP", "currently_running": 0.0},
]


class App:
    """The release's application: dangerous on /processes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.traces: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.asked.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        self.traces.append(environ.get("HTTP_TRACEPARENT", ""))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"the release's own"]


def ask(
    app: App, path: str, method: str = "GET", read: Any = lambda: DOCUMENTS, **headers: str
) -> tuple[str, dict[str, str], bytes]:
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, **headers}
    setup_testing_defaults(environ)
    started: list[Any] = []
    body = b"".join(pst_dashboard.Dashboard(app, "1.2.3", read)(environ, lambda *given: started.append(given)))
    [(status, headers)] = started
    return status, dict(headers), body


SPELLINGS = [
    "/processes",
    "/processes/",
    "//processes",
    "/./processes",
    "/x/../processes",
    "/PROCESSES",
    "/processes//",
    "processes",
]


@pytest.mark.parametrize("path", SPELLINGS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
def test_no_spelling_and_no_method_reaches_the_releases_page(path: str, method: str) -> None:
    app = App()
    status, _, body = ask(app, path, method)
    assert app.asked == []
    assert status == ("200 OK" if method in ("GET", "HEAD") else "405 Method Not Allowed")
    assert (body == b"") is (method == "HEAD")


def test_the_page_says_what_is_stored() -> None:
    _, headers, body = ask(App(), "/processes")
    page = json.loads(body)
    assert headers["Content-Type"] == "application/json"
    assert page["running_modes"] == {
        "run_backups": "not running",
        "run_reports": "crashed",
        "run_stack_handler": "running",  # whatever runs under its process id on this host
    }
    assert page["processes"]["run_backups"]["status"] == "STOP"
    assert page["prices_update"] is False


@pytest.mark.parametrize(
    ("start", "end", "finished"),
    [(timedelta(hours=2), timedelta(hours=1), True), (timedelta(hours=1), timedelta(hours=2), False),
     (timedelta(hours=26), timedelta(hours=25), False)],
    ids=["an hour ago", "runs again", "yesterday"],
)  # fmt: skip
def test_prices_are_current_when_their_process_ended_within_a_day(
    start: timedelta, end: timedelta, finished: bool
) -> None:
    document = {"process_name": pst_dashboard.PRICES, "last_start_time": NOW - start, "last_end_time": NOW - end}
    assert pst_dashboard.page([document], NOW)["prices_update"] is finished


def test_an_error_does_not_tell_the_uri() -> None:
    def fails() -> Any:
        raise ValueError(URI)

    status, _, body = ask(App(), "/processes", read=fails)
    assert status.startswith("503")
    assert json.loads(body) == {"error": "process control cannot be read: ValueError"}


@pytest.mark.parametrize("path", ["/", "/strategy", "/rolls", "/process", "/processes2", "/api/processes"])
def test_everything_else_is_the_releases(path: str) -> None:
    app = App()
    assert ask(app, path, "POST")[2] == b"the release's own"
    assert app.asked == [f"POST {path}"]


def test_health_tells_the_release_and_asks_nobody() -> None:
    app = App()
    assert json.loads(ask(app, "/.pst/health")[2]) == {"release": "1.2.3"}
    assert app.asked == []


# --- as a program, with stand-ins for what a release has


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A source tree with a dashboard, and a werkzeug and a pymongo that do what the wrapper needs of them."""
    tree = tmp_path / "source"
    (tree / "dashboard").mkdir(parents=True)
    (tree / "dashboard/neighbour.py").write_text("PAGE = b'page'\n")
    (tree / "dashboard/app.py").write_text(
        "import neighbour\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('X-Forwarded', environ.get('HTTP_X_FORWARDED_FOR', ''))])\n"
        "    return [neighbour.PAGE]\n"
    )
    (tree / "werkzeug").mkdir()
    (tree / "werkzeug/__init__.py").write_text("")
    (tree / "werkzeug/serving.py").write_text(
        "from wsgiref.simple_server import make_server as make\n"
        "def make_server(host, port, app, threaded):\n"
        "    server = make(host, port, app)\n"
        "    open('port', 'w').write(str(server.server_port) + '\\n')\n"
        "    return server\n"
    )
    (tree / "yaml.py").write_text("import json\nsafe_load = json.loads\n")
    (tree / "pymongo").mkdir()
    (tree / "pymongo/errors.py").write_text("class ServerSelectionTimeoutError(Exception): ...\n")
    (tree / "pymongo/__init__.py").write_text(
        "class Found(dict):\n"
        "    def __missing__(self, name):\n"
        "        return self\n"
        "    def find(self, *_, **__):\n"
        "        return iter([{'process_name': 'run_reports', 'currently_running': 0.0}])\n"
        "def MongoClient(host, port, **_):\n"
        "    assert host.startswith('mongodb://') and port == 27017\n"
        "    return Found()\n"
    )
    return tree


def program(release: Path, settings: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, pst_dashboard.__file__, "--port", "0", "--release", "1.2.3"],
        cwd=release / "dashboard",
        env=os.environ | {"PYTHONPATH": str(release), "PYSYS_PRIVATE_CONFIG_DIR": str(settings)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def served(release: Path, tmp_path: Path) -> Iterator[str]:
    (tmp_path / "private_config.yaml").write_text(json.dumps({"mongo_host": URI, "mongo_db": "production"}))
    os.mkfifo(release / "dashboard/port")  # reading it waits until the server listens
    process = program(release, tmp_path)
    try:
        yield f"http://127.0.0.1:{(release / 'dashboard/port').read_text().strip()}"
    finally:
        process.kill()
        process.communicate()


def test_it_serves_the_releases_dashboard_behind_the_safe_page(served: str) -> None:
    request = urllib.request.Request(f"{served}/", headers={"X-Forwarded-For": "10.0.0.9"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.read() == b"page"
        assert answer.headers["X-Forwarded"] == "10.0.0.9"
    with urllib.request.urlopen(f"{served}/processes", timeout=5) as answer:
        text = answer.read().decode()
    assert json.loads(text)["running_modes"] == {"run_reports": "not running"}
    assert "hidden" not in text


def test_without_the_slots_settings_it_does_not_start(release: Path, tmp_path: Path) -> None:
    """pysystemtrade would go on with its defaults: another database."""
    _, error = (process := program(release, tmp_path)).communicate(timeout=20)
    assert process.returncode == 78
    assert f"PYSYS_PRIVATE_CONFIG_DIR is '{tmp_path}', wanted: a folder with private_config.yaml" in error
