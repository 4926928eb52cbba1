"""The guard's socket: one line of JSON in, one out. Root only, by the mode of the socket and of its folder."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOG = logging.getLogger("pst.guard")

SOCKET = Path("/run/pst/trading/guard.sock")
LONGEST_LINE = 1 << 16

Message = dict[str, Any]


class GuardAwayError(Exception):
    """No guard listens on this host."""


class ControlSocket:
    """Serves the socket; each connection in a thread of its own, because a drain takes minutes."""

    def __init__(self, path: Path, answer: Callable[[Message], Message]) -> None:
        self._answer = answer
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(8)

    def turn(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name="control").start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # whoever asked has gone
            line = connection.makefile("rb").readline(LONGEST_LINE)
            try:
                message = json.loads(line)
                answer = self._answer(message)
            except (ValueError, KeyError, TypeError) as error:
                answer = {"error": f"not understood: {error!r}"}
            connection.sendall(json.dumps(answer, default=str).encode() + b"\n")


def ask(message: Message, timeout_s: float, path: Path = SOCKET) -> Message:
    """Ask the guard of this host."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(json.dumps(message).encode() + b"\n")
            line = connection.makefile("rb").readline()
    except OSError as error:
        raise GuardAwayError(f"{path}: {error}, wanted the guard of this host (systemctl status pst-guard)") from error
    if not line:
        raise GuardAwayError(f"{path}: the guard ended before it answered")
    answer: Message = json.loads(line)
    return answer
