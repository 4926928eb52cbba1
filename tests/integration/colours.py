"""Who answers while traffic is switched: a few clients that ask for /version without a pause, and what they were told.

The switch is one command on each balancer. What a client can notice of it: somebody has been answered by the new slot,
and somebody who asks after that is still answered by the old one.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

import lab

CLIENTS = 3
PAUSE_S = 0.01


class Answer(NamedTuple):
    """One answer: when it was asked for and when it was there (seconds since the epoch), and from which slot."""

    asked: float
    told: float
    colour: str


def both_live_ms(answers: list[Answer], new: str) -> float:
    """Return for how long clients were still sent to another slot after the first had been answered by the new one."""
    first = min((answer.told for answer in answers if answer.colour == new), default=float("inf"))
    last = max((answer.asked for answer in answers if answer.colour != new), default=0.0)
    return round(1000 * max(0.0, last - first), 1)


def moved_after_s(answers: list[Answer], new: str, decided: float) -> float:
    """Return how long after the decision the last answer of another slot was asked for."""
    return round(max((answer.asked - decided for answer in answers if answer.colour != new), default=0.0), 3)


@dataclass
class Colours:
    """Clients on connections of their own that live as long as this does."""

    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Colours:
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(15)
        self.answers.sort()

    def _ask(self) -> None:
        name = f"trading.{lab.DOMAIN}"
        context = ssl.create_default_context(cafile=str(lab.STATE / "pki" / "ca.crt"))
        connection = http.client.HTTPSConnection(name, context=context, timeout=10)
        while not self._ended.wait(PAUSE_S):
            try:
                if connection.sock is None:
                    plain = socket.create_connection((lab.VIP, 443), timeout=10)
                    connection.sock = context.wrap_socket(plain, server_hostname=name)
                asked = time.time()
                connection.request("GET", "/version")
                answer = json.loads(connection.getresponse().read())
                self.answers.append(Answer(asked, time.time(), answer["colour"]))
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.errors.append(repr(error))
                connection.close()
        connection.close()
