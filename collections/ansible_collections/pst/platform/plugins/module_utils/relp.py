# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sends lines to a log server by RELP (https://www.rsyslog.com/doc/relp.html): each one is answered when it is kept."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

WINDOW = 128  # as rsyslog has it: so many may be without an answer
OFFER = b"relp_version=0\nrelp_software=pst\ncommands=syslog"


class RelpError(Exception):
    """The lines may not have arrived; they can be sent again."""


@dataclass(frozen=True)
class Server:
    """A log server, and the certificate that the sender shows it (a file with key and certificate)."""

    name: str  # as in its certificate
    address: str
    port: int
    ca: Path
    certificate: Path
    timeout: float = 5.0


def send(server: Server, lines: Iterable[bytes]) -> int:
    """Send syslog messages; returns how many, all of them taken by the server."""
    try:
        context = ssl.create_default_context(cafile=server.ca)
        context.load_cert_chain(server.certificate)
        with (
            socket.create_connection((server.address, server.port), server.timeout) as plain,
            context.wrap_socket(plain, server_hostname=server.name) as secure,
            secure.makefile("rb") as answers,
        ):
            return _converse(secure, answers, lines)
    except (OSError, ValueError) as error:
        raise RelpError(f"{server.name} ({server.address}:{server.port}): {error}") from error


def frame(number: int, command: str, data: bytes = b"") -> bytes:
    return b"%d %s %d%s\n" % (number, command.encode(), len(data), b" " + data if data else b"")


def answer(answers: BinaryIO) -> tuple[int, str, bytes]:
    """The number, the command and the data of the next frame."""
    words = [_word(answers) for _ in range(2)]
    digits = b""
    while (byte := answers.read(1)).isdigit():
        digits += byte
    if not digits or byte not in (b" ", b"\n"):
        raise RelpError("the server has ended the conversation")
    data = answers.read(int(digits)) if byte == b" " else b""
    if byte == b" " and answers.read(1) != b"\n":
        raise RelpError("the server's answer has no end")
    return int(words[0]), words[1].decode(), data


def _word(answers: BinaryIO) -> bytes:
    word = b""
    while (byte := answers.read(1)) not in (b" ", b""):
        word += byte
        if len(word) > 32:
            raise RelpError(f"the server does not speak RELP: {word!r}")
    if not byte:
        raise RelpError("the server has ended the conversation")
    return word


def _converse(connection: ssl.SSLSocket, answers: BinaryIO, lines: Iterable[bytes]) -> int:
    connection.sendall(frame(1, "open", OFFER))
    _expect(answers)
    number, waiting = 1, 0
    for line in lines:
        number += 1
        connection.sendall(frame(number, "syslog", line))
        waiting += 1
        if waiting >= WINDOW:
            _expect(answers)
            waiting -= 1
    for _ in range(waiting):
        _expect(answers)
    connection.sendall(frame(number + 1, "close"))
    return number - 1


def _expect(answers: BinaryIO) -> None:
    _, command, data = answer(answers)
    if command != "rsp" or not data.startswith(b"200"):
        raise RelpError(f"the server has refused: {command} {data.decode(errors='replace')[:200]}")
