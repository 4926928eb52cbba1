"""pst-lb: what it reads from the kernel and from HAProxy, and in which order it moves the address."""

import importlib.util
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SCRIPT = Path(__file__).parents[2] / "roles/load_balancer/files/pst_lb.py"
VIP = "10.78.16.10"
TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000   104        0 1 1
   1: 0A104E0A:01BB 1F104E0A:C001 01 00000000:00000000 00:00000000 00000000   104        0 1 1
   2: 0A104E0A:01BB 1F104E0A:C002 05 00000000:00000000 00:00000000 00000000   104        0 1 1
   3: 0A104E0A:01BB 1F104E0A:C003 04 00000000:00000000 00:00000000 00000000   104        0 1 1
   4: 0A104E0A:0050 1F104E0A:C004 03 00000000:00000000 00:00000000 00000000   104        0 1 1
   5: 0A104E0A:0016 1F104E0A:C005 01 00000000:00000000 00:00000000 00000000   104        0 1 1
   6: 0B104E0A:01BB 1F104E0A:C006 01 00000000:00000000 00:00000000 00000000   104        0 1 1
"""


@pytest.fixture
def pst_lb(tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("pst_lb", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pst_lb"] = module
    spec.loader.exec_module(module)
    module.RUN = tmp_path
    return module


@pytest.fixture
def settings(pst_lb: ModuleType):
    peer = "10.78.16.12"
    return pst_lb.Settings(VIP, (80, 443), close_seconds=0.05, finish_seconds=0.05, interface="eth0", peer=peer)


def test_connections_are_those_of_the_address_that_are_not_finished(pst_lb: ModuleType) -> None:
    assert pst_lb.open_connections(TABLE.splitlines(), VIP, (80, 443)) == {
        "1F104E0A:C001",
        "1F104E0A:C003",
        "1F104E0A:C004",
    }


def test_map_is_written_as_haproxy_shows_it(pst_lb: ModuleType) -> None:
    assert pst_lb.map_lines("0x55d5f8 active be_green\n0x55d600 canary 5\n\n") == "active be_green\ncanary 5\n"


def test_save_refuses_an_answer_that_is_no_state(pst_lb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pst_lb, "ask", lambda *_: "Unknown command\n")
    monkeypatch.setattr(pst_lb, "replace", lambda *_: pytest.fail("wrote what HAProxy did not say"))
    with pytest.raises(pst_lb.PstLbError, match="Unknown command"):
        pst_lb.save()


def test_replace_is_readable_whatever_the_umask(pst_lb: ModuleType, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        pst_lb.replace(tmp_path / "active.map", "active be_blue\n")
    finally:
        os.umask(old)
    assert (tmp_path / "active.map").read_text() == "active be_blue\n"
    assert (tmp_path / "active.map").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["active.map"]


class Balancer:
    """A balancer that has the address until it is forbidden, with connections that close step by step."""

    def __init__(self, pst_lb: ModuleType, monkeypatch: pytest.MonkeyPatch, steps: list[set[str]]) -> None:
        self.module = pst_lb
        self.events: list[str] = []
        self.steps = steps
        self.obeys = True
        self.prepared = True
        monkeypatch.setattr(pst_lb, "WORD_SECONDS", 0.001)
        monkeypatch.setattr(pst_lb, "carried_on", lambda _settings: self.prepared)
        monkeypatch.setattr(pst_lb, "holds", lambda _vip: not self.obeys or "forbid" not in self.events)
        monkeypatch.setattr(pst_lb, "haproxy_answers", lambda: True)
        monkeypatch.setattr(pst_lb, "connections", lambda _settings: self.step())
        monkeypatch.setattr(pst_lb, "forbid", lambda _reason, _on: self.events.append("forbid"))
        monkeypatch.setattr(pst_lb, "closing", lambda: self.phase("closing"))
        monkeypatch.setattr(pst_lb, "draining", lambda _settings: self.phase("draining"))

    def step(self) -> set[str]:
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.events.append(name)
        yield
        self.events.append(f"end of {name}")


def test_release_lets_clients_go_then_moves_then_lets_the_rest_end(pst_lb, settings, monkeypatch) -> None:
    balancer = Balancer(pst_lb, monkeypatch, [{"a", "b"}, {"b", "c"}, {"c"}, {"c"}, {"c"}, set()])
    result = pst_lb.release(settings, "maintenance")
    assert balancer.events == ["closing", "draining", "forbid", "end of draining", "end of closing"]
    assert result["moved"]
    assert result["open"] == 1
    assert result["broken"] == 0


def test_release_is_bounded_and_says_what_it_broke(pst_lb, settings, monkeypatch) -> None:
    Balancer(pst_lb, monkeypatch, [{"idle"}])
    assert pst_lb.release(settings, "maintenance")["broken"] == 1


def test_release_of_a_host_that_cannot_carry_on_does_not_wait(pst_lb, settings, monkeypatch) -> None:
    balancer = Balancer(pst_lb, monkeypatch, [{"a"}, set(), {"b"}])
    balancer.prepared = False
    result = pst_lb.release(settings, "maintenance")
    assert balancer.events == ["closing", "forbid", "end of closing"]
    assert result["broken"] == 1


def test_release_ends_when_the_address_comes_back(pst_lb, settings, monkeypatch) -> None:
    """The other one died: what is open here is answered here again."""
    balancer = Balancer(pst_lb, monkeypatch, [{"a"}])
    away = iter([True, False, True])
    monkeypatch.setattr(pst_lb, "holds", lambda _vip: next(away))
    slow = pst_lb.Settings(VIP, (80, 443), close_seconds=0.01, finish_seconds=60, interface="eth0", peer="10.78.16.12")
    assert pst_lb.release(slow, "maintenance")["finish_seconds"] < 5
    assert balancer.events[-1] == "end of closing"


def test_release_without_the_address_only_forbids_it(pst_lb, settings, monkeypatch) -> None:
    balancer = Balancer(pst_lb, monkeypatch, [set()])
    monkeypatch.setattr(pst_lb, "holds", lambda _vip: False)
    assert pst_lb.release(settings, "maintenance") == {"moved": False, "broken": 0}
    assert balancer.events == ["forbid"]


def test_release_that_was_killed_is_taken_up(pst_lb, settings, monkeypatch) -> None:
    """The address has gone, connections have not: they are carried on."""
    balancer = Balancer(pst_lb, monkeypatch, [{"a"}, {"a"}, set()])
    monkeypatch.setattr(pst_lb, "holds", lambda _vip: False)
    result = pst_lb.release(settings, "maintenance")
    assert balancer.events == ["closing", "draining", "forbid", "end of draining", "end of closing"]
    assert not result["moved"]
    assert result["broken"] == 0


def test_release_of_a_dead_haproxy_loses_no_time(pst_lb, settings, monkeypatch) -> None:
    balancer = Balancer(pst_lb, monkeypatch, [{"a"}])
    monkeypatch.setattr(pst_lb, "haproxy_answers", lambda: False)
    assert pst_lb.release(settings, "haproxy") == {"moved": True, "broken": 1}
    assert set(balancer.events) == {"forbid"}


def test_what_an_unplanned_move_left_is_carried_on(pst_lb, settings, monkeypatch) -> None:
    balancer = Balancer(pst_lb, monkeypatch, [{"a", "b"}, {"a", "b"}, {"b"}, set()])
    monkeypatch.setattr(pst_lb, "holds", lambda _vip: False)
    monkeypatch.setattr(pst_lb, "forbidden", lambda _reason: False)
    assert pst_lb.finish(settings) == {"open": 2, "broken": 0}
    assert balancer.events == ["closing", "draining", "end of draining", "end of closing"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("holds", True),  # the transition was to MASTER
        ("forbidden", True),  # `release` does it
        ("haproxy_answers", False),  # its clients are better told to connect again
        ("carried_on", False),
        ("connections", set()),
    ],
)
def test_an_unplanned_move_leaves_nothing_to_do(pst_lb, settings, monkeypatch, name: str, value: object) -> None:
    balancer = Balancer(pst_lb, monkeypatch, [{"a"}])
    for other, usual in {"holds": False, "forbidden": False}.items():
        monkeypatch.setattr(pst_lb, other, lambda _argument, usual=usual: usual)
    monkeypatch.setattr(pst_lb, name, lambda *_arguments: value)
    assert pst_lb.finish(settings) == {"open": 0}
    assert balancer.events == []


def test_an_address_that_comes_back_ends_it(pst_lb, settings, monkeypatch) -> None:
    balancer = Balancer(pst_lb, monkeypatch, [{"a"}])
    monkeypatch.setattr(pst_lb, "forbidden", lambda _reason: False)
    away = iter([False, False, True, True])
    monkeypatch.setattr(pst_lb, "holds", lambda _vip: next(away))
    slow = pst_lb.Settings(VIP, (80, 443), close_seconds=0.01, finish_seconds=60, interface="eth0", peer="10.78.16.12")
    assert pst_lb.finish(slow) == {"open": 1, "broken": 0}
    assert balancer.events[-1] == "end of closing"


class Raw:
    """A raw socket that keeps what it sends."""

    sent: list[tuple[bytes, tuple[str, int]]]

    def __init__(self, *_: int) -> None:
        Raw.sent = []

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None: ...

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option, value) == (socket.IPPROTO_IP, socket.IP_TTL, 255)  # what the other one's kernel wants

    def sendto(self, data: bytes, where: tuple[str, int]) -> None:
        self.sent.append((data, where))


def test_the_other_balancer_is_told_for_as_long_as_it_lasts(pst_lb, settings, monkeypatch) -> None:
    monkeypatch.setattr(pst_lb.socket, "socket", Raw)
    monkeypatch.setattr(pst_lb, "WORD_SECONDS", 0.005)
    with pst_lb.draining(settings):
        assert Raw.sent, "the first word is out before the address moves"
        deadline = time.monotonic() + 10
        while len(Raw.sent) <= 3 and time.monotonic() < deadline:
            time.sleep(0.005)
    said = [data for data, where in Raw.sent if where == ("10.78.16.12", 0)]
    assert len(said) == len(Raw.sent) > 3
    assert set(said[:-1]) == {b"PST+" + socket.inet_aton(VIP)}
    assert said[-1] == b"PST-" + socket.inet_aton(VIP)


@pytest.mark.parametrize(("own", "overall", "good"), [(0, 0, True), (0, 2, True), (2, 0, True), (1, 0, False)])
def test_prepare_takes_packets_only_where_the_host_does_not_answer_for_the_address(
    pst_lb, settings, monkeypatch, tmp_path, own: int, overall: int, good: bool
) -> None:
    commands: list[list[str]] = []
    for name, value in (("eth0", own), ("all", overall)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "arp_ignore").write_text("1\n")
        (tmp_path / name / "arp_announce").write_text(f"{value}\n")
    if overall or own:  # a container's: read-only, whatever the engine has set
        write = Path.write_text
        monkeypatch.setattr(
            Path,
            "write_text",
            lambda path, text: (_ for _ in ()).throw(OSError()) if path.name.startswith("arp") else write(path, text),
        )
    monkeypatch.setattr(pst_lb, "NEIGHBOURS", tmp_path)
    monkeypatch.setattr(pst_lb, "execute", lambda command: commands.append(command) or "")
    if good:
        assert pst_lb.prepare(settings) == {"second_chance": True}
        assert [command[1] for command in commands] == ["route", "-f", "route"]
        assert {"append", VIP, "lo"} <= set(commands[-1])
    else:
        with pytest.raises(pst_lb.PstLbError, match="arp_announce is 1"):
            pst_lb.prepare(settings)
        assert [command[2] for command in commands] == ["flush"]


def test_release_fails_when_keepalived_does_not_obey(pst_lb, settings, monkeypatch) -> None:
    balancer = Balancer(pst_lb, monkeypatch, [set()])
    balancer.obeys = False
    monkeypatch.setattr(pst_lb, "MOVE_SECONDS", 0.02)
    with pytest.raises(pst_lb.PstLbError, match=f"{VIP} is still on this host"):
        pst_lb.release(settings, "maintenance")
    assert balancer.events[-1] == "end of closing" or balancer.events[-1] == "forbid"


def test_reasons_are_independent(pst_lb: ModuleType) -> None:
    for reason in pst_lb.REASONS:
        pst_lb.forbid(reason, False)
    pst_lb.forbid("maintenance", True)
    assert [reason for reason in pst_lb.REASONS if pst_lb.forbidden(reason)] == ["maintenance"]


def test_a_preview_is_asked_as_a_client_would(
    pst_lb: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A TLS server of the standard library in place of HAProxy; port 443 is turned to its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trading.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("trading.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "pair.pem").write_bytes(secret + pem)
    (tmp_path / "ca.crt").write_bytes(pem)

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["X-Pst-Preview"] == "green" and self.headers["Host"] == "trading.test"
            self.send_response(200 if known else 503)
            self.end_headers()
            self.wfile.write(b'{"colour": "green", "release": "1.1"}')

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Server)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connect = socket.create_connection
    monkeypatch.setattr(pst_lb, "AUTHORITY", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(
        pst_lb.socket, "create_connection", lambda _where, timeout: connect(server.server_address, timeout)
    )
    try:
        assert pst_lb.preview("green", "trading.test") == {"colour": "green", "release": "1.1"}
        with pytest.raises(pst_lb.PstLbError, match="503"):
            pst_lb.preview("blue", "trading.test")
        with pytest.raises(OSError, match="trading"):
            pst_lb.preview("green", "trading.other")
    finally:
        server.shutdown()
        server.server_close()
