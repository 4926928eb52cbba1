"""What the gate and the link share: addresses, sockets that notice a dead peer, and the word to systemd."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

# A host that lost its power is noticed after about 30 s; until then the gateway thinks its client id in use.
_IDLE_S, _INTERVAL_S, _PROBES = 15, 5, 3


@dataclass(frozen=True)
class Endpoint:
    """An address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read ``host:port``, or raise ValueError."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ValueError(f"{text!r}; wanted: address:port")
        return cls(host, int(port))


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the kernel hang up on a peer that has vanished, or takes nothing any more."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (_IDLE_S + _INTERVAL_S * _PROBES) * 1000)


def tell_systemd(state: str) -> None:
    """Say READY=1 or WATCHDOG=1 where systemd listens."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(state.encode(), f"\0{path[1:]}" if path.startswith("@") else path)


def on_stop(stop: Callable[[], None]) -> None:
    """Call it when the service is to end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
