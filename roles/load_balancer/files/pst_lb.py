#!/usr/bin/python3
"""Move the virtual address without failing a request, and keep HAProxy's live state across a reload.

pst-lb state             what this balancer is, as JSON
pst-lb release REASON    give the virtual address away (REASON: maintenance or haproxy) and keep it away
pst-lb restore REASON    take part in the election again
pst-lb finish            carry on what is open here after a move that nobody planned; pst-lb-finish.service runs it
pst-lb prepare           have the kernel carry on connections across a move; keepalived.service runs it when it starts
pst-lb save              write HAProxy's live state to the files that it reads when it starts
pst-lb preview COLOUR NAME   ask this balancer for /version of a slot that need not be live, as a client of NAME would

An address that moves breaks the connections that it leaves. `release` therefore lets clients go first: HAProxy closes
each connection with the answer to its next request. Those that are still open when the address moves are carried on:
this host goes on taking packets for the address, and the other one, which gets them now, sends on to it those of
connections that it does not know (`second-chance.nft`), for as long as this program says that there are any.
So does `finish` when the address has moved because adverts came too late, and this balancer is as well as before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

SETTINGS = Path("/etc/haproxy/pst-lb.json")
RUN = Path("/run/pst")
ADMIN_SOCKET = "/run/haproxy/admin.sock"
HEALTH_SOCKET = "/run/haproxy/health.sock"
ACTIVE_MAP = Path("/etc/haproxy/maps/active.map")
HANDOVER_MAP = "/etc/haproxy/maps/handover.map"
SECOND_CHANCE = "/etc/keepalived/second-chance.nft"
NEIGHBOURS = Path("/proc/sys/net/ipv4/conf")
NEIGHBOUR_SETTINGS = {"arp_ignore": 1, "arp_announce": 2}
"""Not to answer for an address that no interface has, nor to name it as the sender when others are asked for theirs."""
ROUTE_MARK = "250"
"""The `proto` of our entry in the kernel's table of local addresses, so that it is told from the kernel's own."""
AUTHORITY = "/etc/pst/pki/ca.crt"
SERVER_STATE = Path("/var/lib/haproxy/server-state")
REASONS = ("maintenance", "haproxy")
POLL_SECONDS = 0.005
WORD_SECONDS = 0.25
"""How often the other balancer is told; it forgets after 3 s."""
MOVE_SECONDS = 2.0
"""keepalived needs tens of milliseconds; beyond this something is wrong."""

# States of /proc/net/tcp in which the peer may still miss something: all but FIN_WAIT2, TIME_WAIT, CLOSE and LISTEN.
UNFINISHED = frozenset({"01", "03", "04", "08", "09", "0B"})


class PstLbError(Exception):
    """What went wrong, for the operator."""


@dataclass(frozen=True)
class Settings:
    """The part of the role's settings that this program needs."""

    vip: str
    ports: tuple[int, ...]
    close_seconds: float
    finish_seconds: float
    interface: str
    peer: str

    @classmethod
    def read(cls, path: Path = SETTINGS) -> Settings:
        values = json.loads(path.read_text())
        return cls(**values | {"ports": tuple(values["ports"])})


def ask(path: str, request: str, timeout: float = 2.0) -> str:
    """Send one request to a UNIX socket and return the whole answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        connection.sendall(request.encode())
        chunks = iter(lambda: connection.recv(65536), b"")
        return b"".join(chunks).decode()


def execute(command: list[str], given: str = "") -> str:
    """Run a program; return what it printed."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603 fixed programs
    if done.returncode:
        raise PstLbError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def haproxy_answers() -> bool:
    """Ask the front end that keepalived asks as well."""
    try:
        return ask(HEALTH_SOCKET, "GET / HTTP/1.0\r\n\r\n").startswith("HTTP/1.1 200")
    except OSError:
        return False


def holds(vip: str) -> bool:
    """Tell whether the virtual address is on this host."""
    return bool(execute(["/usr/sbin/ip", "-oneline", "address", "show", "to", vip]).strip())


def open_connections(table: Iterable[str], vip: str, ports: Iterable[int]) -> set[str]:
    """Return the peers of connections to the virtual address, from the lines of /proc/net/tcp."""
    address = f"{int.from_bytes(socket.inet_aton(vip), sys.byteorder):08X}"
    local = {f"{address}:{port:04X}" for port in ports}
    fields = (line.split(maxsplit=4) for line in table)
    return {field[2] for field in fields if len(field) > 3 and field[1] in local and field[3] in UNFINISHED}


def connections(settings: Settings) -> set[str]:
    with open("/proc/net/tcp") as table:
        return open_connections(table, settings.vip, settings.ports)


def wait(condition: Callable[[], bool], seconds: float, pause: float = POLL_SECONDS) -> bool:
    """Wait until the condition holds; tell whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


@contextmanager
def closing() -> Iterator[None]:
    """Have HAProxy end every connection with its next answer."""
    ask(ADMIN_SOCKET, f"set map {HANDOVER_MAP} closing yes\n")
    try:
        yield
    finally:
        with suppress(OSError):  # it may be gone: this also runs while HAProxy is stopped
            ask(ADMIN_SOCKET, f"set map {HANDOVER_MAP} closing no\n")


def carried_on(settings: Settings) -> bool:
    """Tell whether this host would go on taking packets for the address after giving it away."""
    shown = ["/usr/sbin/ip", "-oneline", "route", "show", "table", "local", "proto", ROUTE_MARK]
    return settings.vip in execute(shown).split()


def prepare(settings: Settings) -> dict[str, object]:
    """Take packets for the address whether it is held or not, without drawing them here when it is not."""
    execute(["/usr/sbin/ip", "route", "flush", "table", "local", "proto", ROUTE_MARK])
    for setting, wanted in NEIGHBOUR_SETTINGS.items():
        own = NEIGHBOURS / settings.interface / setting
        with suppress(OSError):  # read-only in a container, whose engine may have set it
            own.write_text(f"{wanted}\n")
        value = max(int(path.read_text()) for path in (own, NEIGHBOURS / "all" / setting))  # as the kernel does
        if value != wanted:
            raise PstLbError(
                f"net.ipv4.conf.{settings.interface}.{setting} is {value} and cannot be set, wanted: {wanted}. Without "
                "it both balancers would draw packets for the address; a planned move breaks what is open then"
            )
    execute(["/usr/sbin/nft", "-f", SECOND_CHANCE])
    route = ["local", settings.vip, "dev", "lo", "table", "local", "proto", ROUTE_MARK]
    execute(["/usr/sbin/ip", "route", "append", *route])
    return {"second_chance": True}


def word(settings: Settings, sign: str) -> bytes:
    """Return what the other balancer is told; its kernel reads it (second-chance.nft)."""
    return b"PST" + sign.encode() + socket.inet_aton(settings.vip)


@contextmanager
def draining(settings: Settings) -> Iterator[None]:
    """Have the other balancer send on what it does not know, for as long as this lasts and this program lives."""
    ended = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 112) as raw:
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)

        def tell(sign: str) -> None:
            with suppress(OSError):  # the other one may be gone
                raw.sendto(word(settings, sign), (settings.peer, 0))

        def repeat() -> None:
            while not ended.wait(WORD_SECONDS):
                tell("+")

        tell("+")
        teller = threading.Thread(target=repeat)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()
            tell("-")


def forbid(reason: str, forbidden: bool) -> None:
    """Write the file that keepalived watches."""
    (RUN / f"vip_{reason}").write_text("1\n" if forbidden else "0\n")


def forbidden(reason: str) -> bool:
    return (RUN / f"vip_{reason}").read_text().strip() != "0"


def move(settings: Settings, reason: str) -> None:
    """Forbid this balancer to hold the address and wait until it is gone."""
    forbid(reason, True)
    if not wait(lambda: not holds(settings.vip), MOVE_SECONDS):
        raise PstLbError(
            f"{settings.vip} is still on this host {MOVE_SECONDS:g} s after /run/pst/vip_{reason} was set to 1; "
            "wanted: keepalived takes it away at once. See: systemctl status keepalived"
        )


def release(settings: Settings, reason: str) -> dict[str, object]:
    """Give the virtual address away and let the open connections end; return what was seen."""
    held = holds(settings.vip)
    if not haproxy_answers():  # nobody is served: do not lose time
        if held:
            move(settings, reason)
        forbid(reason, True)
        return {"moved": held, "broken": len(connections(settings))}
    if not held and not connections(settings):
        forbid(reason, True)
        return {"moved": False, "broken": 0}
    told = draining if carried_on(settings) else nullcontext
    with closing():
        if held:
            before = connections(settings)
            wait(lambda: not before & connections(settings), settings.close_seconds)
        with told(settings):
            moved_at, begin = time.time(), time.monotonic()
            move(settings, reason)
            moved = time.monotonic()
            open_then = len(connections(settings))
            if told is draining:
                wait(lambda: holds(settings.vip) or not connections(settings), settings.finish_seconds, WORD_SECONDS)
    return {
        "moved": held,
        "moved_at": round(moved_at, 3),
        "move_ms": round(1000 * (moved - begin)),
        "open": open_then,
        "finish_seconds": round(time.monotonic() - moved, 1),
        "broken": len(connections(settings)),
    }


def finish(settings: Settings) -> dict[str, object]:
    """Let what is open here end after the address has gone unasked; `release` does so itself."""
    planned = any(forbidden(reason) for reason in REASONS)
    open_then = len(connections(settings))
    if planned or holds(settings.vip) or not open_then or not carried_on(settings) or not haproxy_answers():
        return {"open": 0}
    with closing(), draining(settings):
        wait(lambda: holds(settings.vip) or not connections(settings), settings.finish_seconds, WORD_SECONDS)
    return {"open": open_then, "broken": 0 if holds(settings.vip) else len(connections(settings))}


def state(settings: Settings) -> dict[str, object]:
    """Return what this balancer is, and for how many seconds it has had this part in the election."""
    vrrp = RUN / "vrrp_state"
    return {
        "vrrp": vrrp.read_text().strip(),
        "seconds": round(time.time() - vrrp.stat().st_mtime, 1),
        "holder": holds(settings.vip),
        "haproxy": haproxy_answers(),
        "second_chance": carried_on(settings),
        "forbidden": [reason for reason in REASONS if forbidden(reason)],
        "connections": len(connections(settings)),
    }


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, whole."""
    staged = path.with_name(f".{path.name}.new")
    with open(staged, "w") as file:
        os.fchmod(file.fileno(), 0o644)  # whatever the unit's umask is: HAProxy reads it as its own user
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def map_lines(shown: str) -> str:
    """Turn the answer of `show map` (reference, key, value) into the lines of the map's file."""
    entries = (line.split(maxsplit=2) for line in shown.splitlines() if line.startswith("0x"))
    return "".join(f"{key} {value}\n" for _reference, key, value in entries)


def save() -> dict[str, object]:
    """Write the live colour and the live state of the servers to disk."""
    active = map_lines(ask(ADMIN_SOCKET, f"show map {ACTIVE_MAP}\n"))
    servers = ask(ADMIN_SOCKET, "show servers state\n")
    if not active or not servers.startswith("1\n"):
        raise PstLbError(f"HAProxy answered {active!r} and {servers[:80]!r}; wanted: the map and the servers' state")
    replace(ACTIVE_MAP, active)
    replace(SERVER_STATE, servers)
    return {"saved": True}


def preview(colour: str, name: str) -> dict[str, object]:
    """Ask through this host's own HAProxy, TLS verified: the balancer without the virtual address can be asked too."""
    context = ssl.create_default_context()
    context.load_verify_locations(AUTHORITY)
    with (
        socket.create_connection(("127.0.0.1", 443), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=name) as secured,
    ):
        head = f"GET /version HTTP/1.1\r\nHost: {name}\r\nX-Pst-Preview: {colour}\r\nConnection: close\r\n\r\n"
        secured.sendall(head.encode())
        answer = http.client.HTTPResponse(secured)
        answer.begin()
        body = answer.read().decode(errors="replace")
    if answer.status != 200:
        raise PstLbError(f"/version of slot {colour}: HAProxy answered {answer.status} {body[:200]!r}; wanted: 200")
    version: dict[str, object] = json.loads(body)
    return version


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("state", "save", "prepare", "finish"):
        verbs.add_parser(verb)
    for verb in ("release", "restore"):
        verbs.add_parser(verb).add_argument("reason", choices=REASONS)
    previewed = verbs.add_parser("preview")
    previewed.add_argument("colour", choices=("blue", "green"))
    previewed.add_argument("name")
    options = parser.parse_args(arguments)
    try:
        match options.verb:
            case "state":
                result = state(Settings.read())
            case "save":
                result = save()
            case "prepare":
                result = prepare(Settings.read())
            case "finish":
                result = finish(Settings.read())
            case "preview":
                result = preview(options.colour, options.name)
            case "release":
                result = release(Settings.read(), options.reason)
            case _:
                forbid(options.reason, False)
                result = {"restored": options.reason}
    except (OSError, ValueError, http.client.HTTPException, PstLbError) as error:
        sys.stderr.write(f"pst-lb {options.verb}: {error}\n")
        return 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
