"""RELP against a server that speaks it over TLS, and one that does not."""

from __future__ import annotations

import io
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.pst.platform.plugins.module_utils import relp


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key with its certificate, which is its own authority."""
    path = tmp_path_factory.mktemp("relp") / "pair.pem"
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    name = ["-subj", "/CN=mon.test", "-addext", "subjectAltName=DNS:mon.test", "-keyout", path, "-out", f"{path}.crt"]
    subprocess.run([*new, *name], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


class Fake:
    """A log server for one conversation."""

    def __init__(self, pair: Path, reply: Callable[[str], bytes] = lambda _: b"200 OK") -> None:
        self.taken: list[bytes] = []
        self.reply = reply
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pair)
        self.context.load_verify_locations(pair)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        try:
            plain, _ = self.listener.accept()
            with self.context.wrap_socket(plain, server_side=True) as secure, secure.makefile("rb") as frames:
                while True:
                    number, command, data = relp.answer(frames)
                    if command == "syslog":
                        self.taken.append(data)
                    secure.sendall(relp.frame(number, "rsp", self.reply(command)))
        except (OSError, relp.RelpError):
            pass


@pytest.fixture
def server(pair: Path) -> Iterator[Callable[..., tuple[Fake, relp.Server]]]:
    fakes = []

    def make(**options: Callable[[str], bytes]) -> tuple[Fake, relp.Server]:
        fake = Fake(pair, **options)
        fakes.append(fake)
        return fake, relp.Server("mon.test", "127.0.0.1", fake.port, pair, pair)

    yield make
    for fake in fakes:
        fake.listener.close()


def test_every_line_arrives_in_its_order(server: Callable[..., tuple[Fake, relp.Server]]) -> None:
    fake, target = server()
    lines = [f"<14>1 - - - - - - line {n} ü\nand more".encode() for n in range(500)]
    assert relp.send(target, lines) == 500
    assert fake.taken == lines


def test_nothing_to_say(server: Callable[..., tuple[Fake, relp.Server]]) -> None:
    fake, target = server()
    assert relp.send(target, []) == 0
    assert fake.taken == []


def test_a_refusal_is_an_error(server: Callable[..., tuple[Fake, relp.Server]]) -> None:
    _, target = server(reply=lambda command: b"500 disk full" if command == "syslog" else b"200 OK")
    with pytest.raises(relp.RelpError, match="500 disk full"):
        relp.send(target, [b"x"])


def test_a_server_of_another_name_gets_nothing(server: Callable[..., tuple[Fake, relp.Server]]) -> None:
    fake, target = server()
    with pytest.raises(relp.RelpError, match=r"evil\.test .*[Hh]ostname mismatch"):
        relp.send(relp.Server("evil.test", target.address, target.port, target.ca, target.certificate), [b"x"])
    assert fake.taken == []


def test_a_server_that_is_away_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(relp.RelpError, match=r"mon\.test \(127\.0\.0\.1:\d+\)"):
        relp.send(relp.Server("mon.test", "127.0.0.1", port, Path("/none"), Path("/none")), [b"x"])


@pytest.mark.parametrize("said", [b"", b"1 rsp", b"1 rsp x", b"1 rsp 10 abc", b"HTTP/1.1" + b"x" * 40, b"1 rsp 2 okX"])
def test_an_answer_that_is_none_is_an_error(said: bytes) -> None:
    with pytest.raises(relp.RelpError):
        relp.answer(io.BytesIO(said))
