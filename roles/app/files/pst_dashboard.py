"""Run the dashboard of a release on loopback, with a page of processes that is safe on every host.

    pst_dashboard.py --port 5000        in <release>/source/dashboard, with PYTHONPATH=<release>/source

pysystemtrade's own `/processes` looks the stored process ids up in this host's process table. On any other host than
the trader's they are not there: it marks the live trader as crashed, and so frees it to be started a second time. It
also shows the database's URI with the password. Here the page is answered from process control alone; every other
request is the release's own.

Runs with the Python of the release, whatever its version: standard library, and what pysystemtrade needs itself
(PyYAML, pymongo 3.11 or newer). The release is served by waitress where it has it, else by werkzeug.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import posixpath
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]
Read = Callable[[], list[Mapping[str, Any]]]

TRACED = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f][13579bdf]")
HEALTH, PROCESSES = "/.pst/health", "/processes"
PRICES = "run_daily_prices_updates"
THREADS = 8


class Dashboard:
    """The release's application behind the two paths that are not the release's."""

    def __init__(self, app: WsgiApp, release: str, read: Read) -> None:
        self._app, self._release, self._read = app, release, read

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        # The agent has judged the header: where it says that the request is traced, its span is the parent of this one.
        parent = TRACED.fullmatch(environ.get("HTTP_TRACEPARENT", ""))
        if parent is None:
            return self._serve(environ, start_response)
        name = f"{environ['REQUEST_METHOD']} {environ.get('PATH_INFO', '')}"
        with span(parent[1], parent[2], f"dashboard: {name}") as span_id:
            environ["HTTP_TRACEPARENT"] = f"00-{parent[1]}-{span_id}-01"
            return self._serve(environ, start_response)

    def _serve(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = plain(environ.get("PATH_INFO", ""))
        if path == HEALTH:
            return answer(environ, start_response, "200 OK", {"release": self._release})
        if path == PROCESSES or path.startswith(f"{PROCESSES}/"):
            return self._processes(environ, start_response)
        return self._app(environ, start_response)

    def _processes(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return answer(environ, start_response, "405 Method Not Allowed", {"error": "wanted: GET"}, ("Allow", "GET"))
        try:
            documents = self._read()
        except Exception as error:  # noqa: BLE001 - only its type is told: its text may hold the database's URI
            reason = f"process control cannot be read: {type(error).__name__}"
            return answer(environ, start_response, "503 Service Unavailable", {"error": reason})
        return answer(environ, start_response, "200 OK", page(documents, datetime.now()))  # noqa: DTZ005 - as stored


@contextmanager
def span(trace_id: str, parent: str, name: str) -> Iterator[str]:
    """Say in the log how long the release took for an answer, its body left out where it is made as it is sent."""
    span_id, start, clock, failed = os.urandom(8).hex(), datetime.now(timezone.utc), time.perf_counter(), {}  # noqa: UP017 - Python 3.10
    try:
        yield span_id
    except BaseException as error:
        failed = {"error": type(error).__name__}
        raise
    finally:
        line = {
            "level": "info",
            "message": "traced",
            "trace_id": trace_id,
            "span_id": span_id,
            "parent_span_id": parent,
            "span": name,
            "kind": "server",
            "start": start.isoformat(timespec="microseconds"),
            "seconds": round(time.perf_counter() - clock, 6),
            **failed,
        }
        sys.stderr.write(json.dumps(line) + "\n")


def plain(path: str) -> str:
    """Return the path as the strictest router could see it: no doubled slashes, no dots, no end slash, lower case."""
    return posixpath.normpath("/" + path.lstrip("/")).lower()


def answer(
    environ: Environ, start_response: StartResponse, status: str, content: Any, *headers: tuple[str, str]
) -> Iterable[bytes]:
    body = json.dumps(content, default=str).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def page(documents: Iterable[Mapping[str, Any]], now: datetime) -> dict[str, Any]:
    """What pysystemtrade's page shows, from what is stored: nobody's process id is looked up, nothing is changed."""
    found = {str(document["process_name"]): document for document in documents if "process_name" in document}
    return {
        "running_modes": {name: running_mode(document) for name, document in sorted(found.items())},
        "prices_update": finished_within_a_day(found.get(PRICES, {}), now),
        "processes": {
            name: {key: document.get(key) for key in ("status", "last_start_time", "last_end_time")}
            for name, document in sorted(found.items())
        },
    }


def running_mode(document: Mapping[str, Any]) -> str:
    if document.get("currently_running"):
        return "running"
    return "crashed" if document.get("recently_crashed") else "not running"


def finished_within_a_day(document: Mapping[str, Any], now: datetime) -> bool:
    start, end = document.get("last_start_time"), document.get("last_end_time")
    if not isinstance(start, datetime) or not isinstance(end, datetime):
        return False
    return end >= start and now - end < timedelta(days=1)


def process_control(folder: Path) -> Read:
    """Return a function that reads process control from the database that the slot's private_config.yaml names."""
    import yaml  # noqa: PLC0415 - only the release has them
    from pymongo import MongoClient  # noqa: PLC0415
    from pymongo.errors import ServerSelectionTimeoutError  # noqa: PLC0415

    lock = threading.Lock()
    collections: list[Any] = []

    def read() -> list[Mapping[str, Any]]:
        with lock:  # one client, made when it is first asked for: the settings may come after this program
            if not collections:
                settings = yaml.safe_load((folder / "private_config.yaml").read_text())
                client: Any = MongoClient(
                    settings["mongo_host"],
                    int(settings.get("mongo_port", 27017)),
                    serverSelectionTimeoutMS=3000,
                    maxPoolSize=2,
                )
                collections.append(client[settings["mongo_db"]]["process_control"])
            collection = collections[0]
        try:
            return list(collection.find({}, {"_id": 0}, max_time_ms=3000))
        except ServerSelectionTimeoutError:
            with lock:  # a client never finds a set that was made anew after a disaster
                collections.clear()
            collection.database.client.close()
            raise

    return read


def notify_systemd(state: str) -> None:
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def serve(app: WsgiApp, port: int) -> None:
    """Listen on loopback only, say so, and serve until the end."""
    try:
        server_of = importlib.import_module("waitress").create_server
    except ImportError:
        server = importlib.import_module("werkzeug.serving").make_server("127.0.0.1", port, app, threaded=True)
        run = server.serve_forever
    else:
        # The agent is the only client: what it says of the client before it (X-Forwarded-*) is kept.
        options = {"threads": THREADS, "ident": None, "clear_untrusted_proxy_headers": False}
        server = server_of(app, host="127.0.0.1", port=port, **options)
        run = server.run
    notify_systemd("READY=1")
    run()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--release", required=True, help="version of the release, told by " + HEALTH)
    arguments = parser.parse_args()
    folder = os.environ.get("PYSYS_PRIVATE_CONFIG_DIR", "")
    if not Path(folder, "private_config.yaml").is_file():
        # Without it pysystemtrade goes on silently with its defaults: another database.
        print(f"PYSYS_PRIVATE_CONFIG_DIR is {folder!r}, wanted: a folder with private_config.yaml", file=sys.stderr)  # noqa: T201
        return 78
    sys.path[0] = os.getcwd()  # as if app.py had been started here
    app: WsgiApp = importlib.import_module("dashboard.app").app
    serve(Dashboard(app, arguments.release, process_control(Path(folder))), arguments.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
