"""The certificates that the services show now, which need not be those on their disks."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .settings import Endpoint, Tls
from .text import Page

TIMEOUT_S = 3


@dataclass(frozen=True)
class Seen:
    """What an endpoint has shown: when it expires, or why it is not accepted."""

    expires: float | None
    problem: str = ""


Look = Callable[[Endpoint], Seen | None]


def look(tls: Tls) -> Look:
    """Return a function that shakes hands with an endpoint; None where nobody answers, which others tell."""

    def ask(endpoint: Endpoint) -> Seen | None:
        context = ssl.create_default_context(cafile=tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
        try:
            with (
                socket.create_connection((endpoint.address, endpoint.port), timeout=TIMEOUT_S) as connection,
                context.wrap_socket(connection, server_hostname=endpoint.name) as secured,
            ):
                shown = secured.getpeercert() or {}
        except ssl.SSLCertVerificationError as error:
            return Seen(None, error.verify_message)
        except OSError:
            return None
        return Seen(ssl.cert_time_to_seconds(str(shown["notAfter"])))

    return ask


class Watch:
    """Looks at every endpoint, again and again, in a thread of its own; a scrape reads what was seen last."""

    def __init__(self, endpoints: Sequence[Endpoint], ask: Look, every_s: float) -> None:
        self._endpoints, self._ask, self._every_s = endpoints, ask, every_s
        self._seen: dict[Endpoint, Seen] = {}
        self._end = threading.Event()

    def step(self) -> None:
        for endpoint in self._endpoints:
            seen = self._ask(endpoint)
            if seen is None:
                self._seen.pop(endpoint, None)
            else:
                self._seen[endpoint] = seen

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self.step()
            if self._end.wait(self._every_s):
                return

    def render(self) -> str:
        page = Page()
        expiry = page.gauge("pst_certificate_expiry_timestamp_seconds", "When the certificate that is shown expires")
        valid = page.gauge("pst_certificate_valid", "1 when it is the site's, for this name, and of today")
        for endpoint, seen in list(self._seen.items()):
            labels = {"host": endpoint.host, "service": endpoint.service}
            if seen.expires is not None:
                expiry.add(seen.expires, **labels)
            valid.add(seen.expires is not None, **labels, problem=seen.problem)
        return page.render()
