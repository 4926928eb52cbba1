"""HAProxy's runtime API: one line for all changes, what is put back, what stays on disk, and when a server is drained.

Against a fake on a real socket, and against HAProxy itself where it is installed.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import socketserver
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.pst.platform.plugins.module_utils import haproxy as hp

PROGRAM = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SECONDS = 10
STATE_HEADER = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight"
COLOURS = [("be_blue", "app1"), ("be_blue", "app2"), ("be_green", "app1"), ("be_green", "app2")]


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.01)
    return value


@dataclass
class Fake:
    """Enough of HAProxy: maps, servers and their figures, and the lines that it was given."""

    folder: Path
    maps: dict[str, dict[str, str]] = field(default_factory=dict)
    servers: dict[str, list[int]] = field(default_factory=dict)  # admin bits, weight, initial weight
    figures: dict[str, dict[str, int]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    ignores: str = ""
    refuses: str = ""
    pid: int = 7
    proc: str = ""
    old: dict[str, dict[str, int]] = field(default_factory=dict)
    on_statistics: Callable[[], None] = lambda: None

    def answer(self, line: str) -> str:
        self.lines.append(line)
        return "".join(f"{self.command(one.strip())}\n" for one in line.split(";"))

    def command(self, text: str) -> str:  # noqa: C901 one case a command
        if self.ignores and re.search(self.ignores, text):
            return ""
        if self.refuses and re.search(self.refuses, text):
            return "Permission denied\n"
        match text.split():
            case ["show", "map", path]:
                if path not in self.maps:
                    return "Unknown map identifier. Please use #<id> or <file>.\n"
                return "".join(f"0x55 {key} {value}\n" for key, value in self.maps[path].items())
            case ["set", "map", path, key, value]:
                if key not in self.maps[path]:
                    return "entry not found.\n"
                self.maps[path][key] = value
            case ["add", "map", path, key, value]:
                self.maps[path][key] = value
            case ["del", "map", path, key]:
                del self.maps[path][key]
            case ["show", "servers", "state"]:
                rows = (
                    "3 {} 1 {} 127.0.0.1 2 {} {} {}\n".format(*name.split("/"), *values)
                    for name, values in self.servers.items()
                )
                return f"1\n{STATE_HEADER}\n{''.join(rows)}"
            case ["set", "server", name, "state", state]:
                kept = self.servers[name][0] & ~(hp.FMAINT | hp.FDRAIN)
                self.servers[name][0] = kept | {"ready": 0, "drain": hp.FDRAIN, "maint": hp.FMAINT}[state]
            case ["set", "server", name, "weight", weight]:
                self.servers[name][1] = int(weight)
            case ["show", "info"]:
                self.on_statistics()
                return f"Name: HAProxy\nPid: {self.pid}\n"
            case ["show", "stat", *_]:
                return self.table(self.figures)
            case ["show", "proc"]:
                return self.proc
            case [at, "show", "stat", *_]:
                return self.table(self.old) if at in self.proc.replace("old-", "@!") else "Can't find the target PID\n"
            case _:
                return "Unknown command\n"
        return ""

    def table(self, figures: dict[str, dict[str, int]]) -> str:
        columns = ("status", *hp.COUNTERS)
        rows = (
            ",".join([*name.split("/"), "UP", *(str(figures.get(name, {}).get(key, 0)) for key in hp.COUNTERS)])
            for name in self.servers
        )
        return "# pxname,svname," + ",".join(columns) + "\n" + "".join(f"{row}\n" for row in rows)

    @property
    def changes(self) -> list[str]:
        return [line for line in self.lines if not line.startswith(("show", "@"))]

    @property
    def path(self) -> str:
        return str(self.folder / "s")

    @property
    def active(self) -> str:
        return str(self.folder / "active.map")

    @property
    def state_file(self) -> Path:
        return self.folder / "server-state"

    def apply(self, check: bool = False, master: bool = False, **given: Any) -> hp.Result:
        return hp.apply(
            hp.Request.of(given),
            hp.AdminSocket(self.path),
            str(self.state_file),
            master=hp.AdminSocket(self.path, master=True) if master else None,
            check=check,
        )

    def to(self, colour: str) -> list[dict[str, Any]]:
        return [{"path": self.active, "entries": {"active": colour}}]

    def live(self) -> Any:
        return {path: dict(entries) for path, entries in self.maps.items()}, {
            name: list(values) for name, values in self.servers.items()
        }


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    fake = Fake(tmp_path)
    fake.maps[fake.active] = {"active": "be_blue", "other": "kept"}
    fake.servers = {f"{backend}/{name}": [0, 16, 16] for backend, name in COLOURS}
    Path(fake.active).write_text("# which one\nactive be_blue\nother kept\n")
    fake.state_file.write_text(fake.command("show servers state"))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(fake.answer(self.rfile.readline().decode().rstrip("\n")).encode())

    with socketserver.ThreadingUnixStreamServer(fake.path, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        server.shutdown()
        thread.join()


def server(name: str, **values: Any) -> dict[str, Any]:
    backend, short = name.split("/")
    return {"backend": backend, "name": short, **values}


def drained(*names: str, quiet: float = 0.1, timeout: float = 10) -> dict[str, Any]:
    return {"servers": [server(name) for name in names], "quiet_seconds": quiet, "timeout_seconds": timeout}


def test_all_changes_go_out_on_one_line_opened_first_closed_last(fake: Fake) -> None:
    fake.servers["be_green/app1"][0] = hp.FMAINT | 0x20
    fake.state_file.write_text(fake.command("show servers state"))
    result = fake.apply(
        maps=[{"path": fake.active, "entries": {"active": "be_green", "canary": 5}}],
        servers=[server("be_blue/app1", state="drain", weight="50%"), server("be_green/app1", state="ready")],
    )
    assert "; ".join(fake.changes).split("; ") == [
        "set server be_green/app1 state ready",
        f"set map {fake.active} active be_green",
        f"add map {fake.active} canary 5",
        "set server be_blue/app1 state drain",
        "set server be_blue/app1 weight 8",
    ]
    assert len(fake.changes) == 1
    assert result.changed
    assert result.switch_ms is not None
    assert result.maps == {fake.active: {"active": "be_green", "other": "kept", "canary": "5"}}
    assert Path(fake.active).read_text() == "# which one\nactive be_green\nother kept\ncanary 5\n"
    saved = hp.servers_of(fake.state_file.read_text())
    assert saved["be_blue/app1"] == ("drain", 8, 16)
    assert saved["be_green/app1"].state == "ready"
    for path in (fake.active, fake.state_file):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    again = fake.apply(maps=fake.to("be_green"), servers=[server("be_blue/app1", state="drain", weight="50%")])
    assert not again.changed
    assert again.switch_ms is None
    assert (again.before, again.after) == ("", "")
    assert len(fake.changes) == 1


def test_the_diff_has_what_changes_live_and_on_disk(fake: Fake) -> None:
    result = fake.apply(check=True, maps=fake.to("be_green"), servers=[server("be_blue/app1", state="maint")])
    assert result.before == (
        f"{fake.active}:\n  active: be_blue\nbe_blue/app1:\n  state: ready\n"
        f"{fake.active} (on disk):\n  active: be_blue\nbe_blue/app1 (on disk):\n  state: ready\n"
    )
    assert result.after == result.before.replace("active: be_blue", "active: be_green").replace("ready", "maint")


def test_check_mode_changes_nothing_and_awaits_nothing(fake: Fake) -> None:
    before, files = fake.live(), {path: path.read_bytes() for path in fake.folder.iterdir() if path.is_file()}
    fake.figures = {"be_blue/app1": {"scur": 1}}
    result = fake.apply(
        check=True,
        maps=fake.to("be_green"),
        servers=[server("be_blue/app1", state="drain")],
        drained=drained("be_blue/app1"),
    )
    assert result.changed
    assert (result.switch_ms, result.drained_seconds) == (None, None)
    assert fake.live() == before
    assert {path: path.read_bytes() for path in fake.folder.iterdir() if path.is_file()} == files
    assert fake.changes == []


def test_without_changes_it_reads_and_returns_the_backends_asked_for(fake: Fake) -> None:
    fake.figures = {"be_blue/app2": {"scur": 2, "hrsp_2xx": 9, "rtime": 12}}
    fake.servers["be_blue/app2"][:2] = [hp.FDRAIN, 4]
    result = fake.apply(maps=[{"path": fake.active}], backends=["be_blue"])
    assert not result.changed
    assert result.pid == 7
    assert [one["name"] for one in result.servers] == ["app1", "app2"]
    seen = {"state": "drain", "weight": 4, "initial_weight": 16, "status": "UP", "scur": 2, "hrsp_2xx": 9, "rtime": 12}
    assert result.servers[1].items() >= seen.items()
    assert fake.changes == []


@pytest.mark.parametrize(
    "text",
    ["active be_green\n", "", "active be_blue\nactive be_green\n", None],
    ids=["other", "empty", "twice", "gone"],
)
def test_a_disk_that_disagrees_is_repaired(fake: Fake, text: str | None) -> None:
    Path(fake.active).unlink() if text is None else Path(fake.active).write_text(text)
    result = fake.apply(maps=fake.to("be_blue"))
    assert result.changed
    assert fake.changes == []
    assert Path(fake.active).read_text() == "active be_blue\n"
    assert not fake.apply(maps=fake.to("be_blue")).changed


@pytest.mark.parametrize("text", ["1\n", "", "spoilt"])
def test_a_saved_state_that_disagrees_is_repaired(fake: Fake, text: str) -> None:
    fake.servers["be_blue/app1"][0] = hp.FDRAIN
    fake.state_file.write_text(text)
    assert fake.apply(servers=[server("be_blue/app1", state="drain")]).changed
    assert fake.changes == []
    assert hp.servers_of(fake.state_file.read_text())["be_blue/app1"].state == "drain"
    assert not fake.apply(servers=[server("be_blue/app1", state="drain")]).changed


@pytest.mark.parametrize("fault", ["ignores", "refuses"])
@pytest.mark.parametrize("command", ["^set map", "state drain", "weight 4"])
def test_what_does_not_come_true_is_put_back(fake: Fake, fault: str, command: str) -> None:
    setattr(fake, fault, command)
    before, files = fake.live(), sorted(path.name for path in fake.folder.iterdir())
    with pytest.raises(hp.HAProxyError, match="the old values were put back") as caught:
        fake.apply(
            maps=[{"path": fake.active, "entries": {"active": "be_green", "new": "x"}}],
            servers=[server("be_blue/app1", state="drain", weight="4")],
        )
    assert ("Permission denied" if fault == "refuses" else "seen") in str(caught.value)
    assert "set map" in str(caught.value)
    assert fake.live() == before
    assert Path(fake.active).read_text() == "# which one\nactive be_blue\nother kept\n"
    assert sorted(path.name for path in fake.folder.iterdir()) == files


def test_it_says_where_nothing_could_be_put_back(fake: Fake) -> None:
    fake.refuses = "drain|active be_blue"
    with pytest.raises(hp.HAProxyError, match=r"could not be put back: .* seen be_green, wanted be_blue"):
        fake.apply(maps=fake.to("be_green"), servers=[server("be_blue/app1", state="drain")])


def test_a_disk_that_cannot_be_written_is_found_before_the_change(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> tuple[int, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hp.tempfile, "mkstemp", full)
    with pytest.raises(hp.HAProxyError, match=r"nothing was changed: .*No space left"):
        fake.apply(maps=fake.to("be_green"))
    assert fake.changes == []


def test_a_file_that_cannot_be_read_is_found_before_the_change(fake: Fake) -> None:
    fake.state_file.unlink()
    fake.state_file.mkdir()
    with pytest.raises(hp.HAProxyError, match="cannot be read"):
        fake.apply(servers=[server("be_blue/app1", state="drain")])
    assert fake.changes == []


def test_a_state_that_cannot_be_saved_is_said_and_saved_by_the_next_run(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain = [server("be_blue/app1", state="drain")]
    with monkeypatch.context() as patch:
        patch.setattr(hp.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(hp.HAProxyError, match=r"the disk has not .*Input/output error.*Run it again"):
            fake.apply(servers=drain)
    assert fake.apply(servers=drain).changed
    assert hp.servers_of(fake.state_file.read_text())["be_blue/app1"].state == "drain"
    assert len(fake.changes) == 1


def test_all_bad_input_is_named_at_once() -> None:
    maps = [
        {"path": "a.map", "entries": {"a b": "x", "ok": "x;y", "quoted": True, "#c": "x", "line": "x\ny"}},
        {"path": "/m"},
        {"path": "/m"},
    ]
    servers = [
        server("be blue/app1"),
        server("be/app", weight="257"),
        server("be/app", weight="-1"),
        server("be/x", state="up"),
    ]
    with pytest.raises(hp.HAProxyError) as caught:
        hp.Request.of(
            {
                "maps": maps,
                "servers": servers,
                "drained": {"servers": [], "quiet_seconds": 2.0, "timeout_seconds": 1},
                "backends": ["a/b"],
            }
        )
    text = str(caught.value)
    for part in (
        "'a.map'", "'a b'", "'x;y'", "True", "'#c'", r"'x\ny'", "/m is listed twice", "'be blue'", "'257'", "'-1'",
        "'up'", "be/app is listed twice", "drained.servers: seen none", "quiet_seconds 2", "'a/b'",
    ):  # fmt: skip
        assert part in text


def test_all_that_haproxy_does_not_know_is_named_at_once(fake: Fake) -> None:
    fake.servers["be_blue/app1"][1:] = [1, 1]
    with pytest.raises(hp.HAProxyError) as caught:
        fake.apply(
            maps=[{"path": "/no.map", "entries": {"a": "b"}}, *fake.to("be_green")],
            servers=[server("be_blue/app9", state="drain"), server("be_blue/app1", weight="50%")],
            drained=drained("be_red/app1"),
            backends=["be_red"],
        )
    text = str(caught.value)
    assert "'show map /no.map': HAProxy answered 'Unknown map identifier" in text
    assert "be_blue/app9 is no server" in text
    assert "weight 50% of its initial weight 1 is 0" in text
    assert "be_red/app1 is no server" in text
    assert "be_red is no backend" in text
    assert fake.changes == []


def test_a_line_that_haproxy_cannot_take_is_refused(fake: Fake) -> None:
    with pytest.raises(hp.HAProxyError, match="seen 999 changes"):
        fake.apply(maps=[{"path": fake.active, "entries": {f"key{n}": "x" for n in range(999)}}])
    assert fake.changes == []


def test_a_socket_that_is_absent_or_refuses_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(hp.HAProxyError, match=f"socket {path}: No such file"):
        hp.apply(hp.Request.of({}), hp.AdminSocket(path), "/none")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(path)
        with pytest.raises(hp.HAProxyError, match=f"socket {path}: Connection refused"):
            hp.apply(hp.Request.of({}), hp.AdminSocket(path), "/none")
        listener.listen()
        with pytest.raises(hp.HAProxyError, match=f"socket {path}: timed out"):
            hp.apply(hp.Request.of({}), hp.AdminSocket(path, timeout=0.05), "/none")


def test_a_key_with_two_values_is_an_error() -> None:
    with pytest.raises(hp.HAProxyError, match="active is there twice"):
        hp.entries_of("0x1 active a\n0x2 active b\n\n", "/m")


def test_drained_is_awaited_until_no_session_is_left_and_none_comes(fake: Fake) -> None:
    polls = iter([{"scur": 1, "stot": 5}, {"scur": 0, "stot": 6}, {"qcur": 1, "stot": 6}])

    def next_poll() -> None:
        fake.figures["be_blue/app1"] = next(polls, {"stot": 7})

    fake.on_statistics = next_poll
    result = fake.apply(maps=fake.to("be_green"), drained=drained("be_blue/app1", quiet=0.2))
    assert result.drained_seconds is not None
    assert result.drained_seconds >= 0.3
    assert next(polls, None) is None, "a session was left when it took the server for drained"


@pytest.mark.parametrize("figures", [{"scur": 1, "stot": 4}, {"qcur": 2, "stot": 4}])
def test_what_is_not_drained_fails_with_the_figures(fake: Fake, figures: dict[str, int]) -> None:
    fake.figures["be_blue/app1"] = figures
    with pytest.raises(hp.HAProxyError) as caught:
        fake.apply(maps=fake.to("be_green"), drained=drained("be_blue/app1", "be_blue/app2", timeout=0.2))
    assert f"scur {figures.get('scur', 0)}, qcur {figures.get('qcur', 0)}, stot 4 -> 4" in str(caught.value)
    assert "The change stays" in str(caught.value)
    assert fake.maps[fake.active]["active"] == "be_green"


def test_new_sessions_are_no_drain(fake: Fake) -> None:
    def one_more() -> None:
        fake.figures["be_blue/app1"] = {"stot": fake.figures.get("be_blue/app1", {"stot": 0})["stot"] + 1}

    fake.on_statistics = one_more
    with pytest.raises(hp.HAProxyError, match=r"stot 1 -> \d"):
        fake.apply(drained=drained("be_blue/app1", timeout=0.3))


def test_a_reload_that_hides_sessions_is_no_proof(fake: Fake) -> None:
    def reloaded() -> None:
        fake.pid += 1

    fake.on_statistics = reloaded
    with pytest.raises(hp.HAProxyError, match=r"reloaded meanwhile \(process 8, then 9\)"):
        fake.apply(drained=drained("be_blue/app1"))


def test_the_sessions_of_a_replaced_process_count(fake: Fake) -> None:
    fake.proc = (
        "#<PID> <type>\n1 master\n# workers\n7 worker\n# old workers\n5 old-5 worker\n6 old-6 worker\n# programs\n"
    )
    fake.old = {"be_blue/app1": {"scur": 1, "stot": 3}}
    with pytest.raises(hp.HAProxyError, match=r"be_blue/app1 \(process 5\): scur 1"):
        fake.apply(master=True, drained=drained("be_blue/app1", timeout=0.2))
    fake.old = {}
    assert fake.apply(master=True, drained=drained("be_blue/app1")).drained_seconds
    fake.proc = "Unknown command"
    with pytest.raises(hp.HAProxyError, match="master answered 'Unknown command'"):
        fake.apply(master=True, drained=drained("be_blue/app1", timeout=0.3))


def test_a_socket_that_is_closed_for_a_moment_starts_the_quiet_time_anew(fake: Fake) -> None:
    fake.proc = "Connection refused"

    def back_again() -> None:
        if len(fake.lines) > 8:
            fake.proc = "#<PID>\n# workers\n7 worker\n# old workers\n# programs\n"

    fake.on_statistics = back_again
    assert fake.apply(master=True, drained=drained("be_blue/app1")).drained_seconds > 0.2


# --- HAProxy itself


CONFIG = """
global
    stats socket {folder}/admin.sock level admin
    server-state-file {folder}/server-state
defaults
    mode http
    timeout connect 1s
    timeout client 9s
    timeout server 9s
    load-server-state-from-file global
frontend public
    bind 127.0.0.1:{port}
    use_backend %[str(active),map({folder}/active.map,be_blue)]
backend be_blue
    server app1 127.0.0.1:{blue} weight 16
backend be_green
    server app1 127.0.0.1:{green} weight 16
    server app2 127.0.0.1:{green}
backend be_static
    balance static-rr
    server app1 127.0.0.1:{green}
"""


@dataclass
class Application:
    """Answers with its name; a request to /slow waits for `go`."""

    name: str
    go: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)

    def serve(self) -> socketserver.ThreadingTCPServer:
        application = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                path = self.rfile.readline().split()[1]
                while self.rfile.readline().strip():
                    pass
                if path == b"/slow":
                    application.began.set()
                    application.go.wait(SECONDS)
                body = application.name.encode()
                self.wfile.write(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )

        return socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)


@dataclass
class Real:
    folder: Path
    port: int
    blue: Application
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> str:
        return f"{self.folder}/admin.sock"

    @property
    def master(self) -> hp.AdminSocket:
        return hp.AdminSocket(f"{self.folder}/master.sock", master=True)

    @property
    def active(self) -> str:
        return f"{self.folder}/active.map"

    def apply(self, check: bool = False, **given: Any) -> hp.Result:
        state_file, ask = f"{self.folder}/server-state", hp.AdminSocket(self.socket)
        return hp.apply(hp.Request.of(given), ask, state_file, master=self.master, check=check)

    def get(self, path: str = "/") -> str:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def reload(self) -> None:
        pid = self.apply().pid
        self.process.send_signal(signal.SIGUSR2)
        wait_for(lambda: self.pid_now() not in (0, pid))

    def ready(self) -> bool:
        """Tell whether HAProxy serves and its master hears signals: one that comes earlier is lost."""
        try:
            return bool(self.pid_now() and self.master("show proc"))
        except hp.HAProxyError:
            return False

    def pid_now(self) -> int:
        try:
            return self.apply().pid
        except hp.HAProxyError:
            return 0


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    if not PROGRAM:
        pytest.skip("haproxy is not installed")
    with ExitStack() as stack:
        blue, green = Application("blue"), Application("green")
        ports = {}
        for application in (blue, green):
            listener = stack.enter_context(application.serve())
            listener.daemon_threads = True
            thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.shutdown)
            ports[application.name] = listener.server_address[1]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (tmp_path / "cfg").write_text(CONFIG.format(folder=tmp_path, port=port, **ports))
        (tmp_path / "active.map").write_text("# which one\nactive be_blue\n")
        (tmp_path / "server-state").write_text("1\n")
        command = [PROGRAM, "-W", "-S", f"{tmp_path}/master.sock", "-f", str(tmp_path / "cfg")]
        log = stack.enter_context((tmp_path / "log").open("w"))
        process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        real = Real(tmp_path, port, blue, process)
        stack.callback(blue.go.set)
        try:
            wait_for(real.ready)
        except AssertionError:
            pytest.fail((tmp_path / "log").read_text())
        yield real


def test_haproxy_switches_on_one_line_and_keeps_it_over_a_reload(real: Real) -> None:
    assert real.get() == "blue"
    wanted: dict[str, Any] = {
        "maps": [{"path": real.active, "entries": {"active": "be_green", "new": "1"}}],
        "servers": [server("be_green/app1", weight="50%"), server("be_green/app2", state="drain")],
        "drained": drained("be_blue/app1"),
    }
    assert real.apply(check=True, **wanted).changed
    assert real.get() == "blue"
    result = real.apply(**wanted)
    assert result.changed
    assert result.switch_ms
    assert result.drained_seconds
    assert real.get() == "green"
    real.reload()
    assert real.get() == "green"
    again = real.apply(**wanted)
    assert not again.changed
    states = {f"{one['backend']}/{one['name']}": (one["state"], one["weight"]) for one in again.servers}
    assert states["be_green/app1"] == ("ready", 8)
    assert states["be_green/app2"] == ("drain", 1)
    assert real.apply(servers=[server("be_green/app2", state="maint")]).changed
    back = real.apply(servers=[server("be_green/app2", state="ready"), server("be_green/app1", weight="100%")])
    assert {(one["state"], one["weight"]) for one in back.servers if one["backend"] == "be_green"} == {
        ("ready", 16),
        ("ready", 1),
    }
    assert back.servers[1]["hrsp_2xx"] == 1


def test_haproxy_refuses_a_part_and_has_the_old_values(real: Real) -> None:
    with pytest.raises(hp.HAProxyError, match=r"static LB algorithm.*the old values were put back"):
        real.apply(
            maps=[{"path": real.active, "entries": {"active": "be_green", "new": "1"}}],
            servers=[server("be_static/app1", weight="7"), server("be_green/app1", state="drain")],
        )
    result = real.apply(maps=[{"path": real.active}], backends=["be_green"])
    assert result.maps == {real.active: {"active": "be_blue"}}
    assert result.servers[0]["state"] == "ready"
    assert Path(real.active).read_text() == "# which one\nactive be_blue\n"


@pytest.mark.parametrize("reloaded", [False, True], ids=["same process", "replaced process"])
def test_haproxy_is_drained_when_the_session_in_flight_has_ended(real: Real, reloaded: bool) -> None:
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(real.get, "/slow")
        assert real.blue.began.wait(SECONDS)
        if reloaded:
            real.reload()
        to_green = [{"path": real.active, "entries": {"active": "be_green"}}]
        with pytest.raises(hp.HAProxyError, match=r"be_blue/app1 \(process \d+\): scur 1, qcur 0, stot 1 -> 1"):
            real.apply(maps=to_green, drained=drained("be_blue/app1", timeout=0.3))
        assert real.get() == "green"
        proof = pool.submit(real.apply, maps=to_green, drained=drained("be_blue/app1", timeout=SECONDS))
        with pytest.raises(TimeoutError):
            proof.result(timeout=0.3)
        real.blue.go.set()
        assert slow.result(timeout=SECONDS) == "blue"
        result = proof.result(timeout=SECONDS)
        assert not result.changed
        assert result.drained_seconds > 0.2
