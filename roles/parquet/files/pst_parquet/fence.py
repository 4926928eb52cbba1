"""The fence: this host's claim to be clean, and the kernel's rule that lets the others reach the brick.

The rule is a set of addresses, each with a time after which the kernel drops it: a fence that dies, or hangs, or does
not reach MongoDB, closes by itself.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pst_trading.guard import boot_time, notify
from pst_trading.keeper import Files
from pst_trading.store import SERVER_MS, StoreError, connect, majority, translated
from pst_trading.units import Systemd, slice_path, systemd_root

from .membership import Document, Member, Request, Slice, View, good_for, operation
from .settings import FenceSettings, Settings

LOG = logging.getLogger("pst.parquet")

POLL_S = 1.0
NFT_S = 5
GRANTS = Path("/run/pst/trading")
STATE = Path("/run/pst/parquet/fence.json")
TABLE = "pst_parquet"


def rules(fence: FenceSettings) -> str:
    """Return the rule as nft reads it. It keeps the set where it is there: a restart of the fence cuts nobody."""
    return f"""
table inet {TABLE} {{
    set members {{
        type ipv4_addr
        flags timeout
    }}
    counter refused {{ }}
    chain input {{
        type filter hook input priority filter - 10; policy accept;
    }}
}}
flush chain inet {TABLE} input
add rule inet {TABLE} input iif "lo" accept
add rule inet {TABLE} input tcp dport {fence.low_port}-{fence.high_port} ip saddr != @members \
counter name "refused" reject with tcp reset
add rule inet {TABLE} input meta nfproto ipv6 tcp dport {fence.low_port}-{fence.high_port} \
counter name "refused" reject with tcp reset
"""


def admit(times: dict[str, float]) -> str:
    """Return the change of the set: addresses and for how many seconds from now. One transaction, so nobody is cut."""
    lines = []
    for address, seconds in sorted(times.items()):
        element = f"element inet {TABLE} members {{ {address}"
        lines += [f"add {element} }}", f"delete {element} }}"]
        if (milliseconds := int(seconds * 1000)) > 0:
            lines.append(f"add {element} timeout {milliseconds}ms }}")
    return "\n".join(lines)


def nft(text: str) -> None:
    """Load rules; OSError or CalledProcessError where the kernel does not take them."""
    subprocess.run(["/usr/sbin/nft", "-f", "-"], input=text, text=True, check=True, timeout=NFT_S)


class MemberStore(Protocol):
    def execute(self, request: Request) -> Document | None: ...

    def all(self) -> Sequence[Document]: ...


class MongoMembers:
    """The collection `parquet_members` of the database `pst`."""

    def __init__(self, database: Any, host: str, address: str) -> None:
        self._members = majority(database)["parquet_members"]
        self._host, self._address = host, address

    def execute(self, request: Request) -> Document | None:
        from pymongo import ReturnDocument  # noqa: PLC0415

        with translated():
            if request.verb == "read":
                return self._own()
            found: Document | None = self._members.find_one_and_update(
                *operation(request), return_document=ReturnDocument.AFTER, maxTimeMS=SERVER_MS
            )
        return found

    def _own(self) -> Document:
        # A document that was lost begins above where it ended: nobody counts a thousand renewals per second.
        new = {"seq": {"$ifNull": ["$seq", {"$toLong": "$$NOW"}]}, "valid_ms": {"$ifNull": ["$valid_ms", 0]},
               "address": {"$literal": self._address}}  # fmt: skip
        self._members.update_one({"_id": self._host}, [{"$set": new}], upsert=True)
        found: Document = self._members.find_one({"_id": self._host}, max_time_ms=SERVER_MS)
        return found

    def all(self) -> Sequence[Document]:
        with translated():
            return list(self._members.find({}, max_time_ms=SERVER_MS))


class Placements:
    """What runs on this host under a lease, whatever the placements are called."""

    def __init__(self, root: Path | None = None, grants: Path = GRANTS) -> None:
        self._root = root or systemd_root()
        self._grants = grants
        self._units = Systemd(self._root)

    def slices(self) -> Iterator[Slice]:
        for name in sorted(self._names()):
            # Who runs is looked at first: a grant is written before anything starts.
            populated = not self._units.empty(name)
            grant = Files(self._grants, name, -1).read_grant()
            yield Slice(populated, grant.valid_until if grant else None)

    def _names(self) -> set[str]:
        above = (self._root / slice_path("x")).parent
        found = (re.fullmatch(r"pst-trading-(.+)\.slice", path.name) for path in above.glob("pst-trading-*.slice"))
        return {match[1] for match in found if match} | {path.stem for path in self._grants.glob("*.json")}


class Fence:
    """One host's part."""

    def __init__(
        self, settings: Settings, store: MemberStore, slices: Callable[[], Iterator[Slice]],
        load: Callable[[str], None] = nft, clock: Callable[[], float] = boot_time,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._store = store
        self._slices = slices
        self._load = load
        self._clock = clock
        self._member = Member(settings.host, settings.fence.renew_s)
        self.view = View(settings.host)
        self.problem = ""
        self.clean = True

    def step(self) -> None:
        """Renew, and look at the others."""
        try:
            self._renew()
            self._look()
        except StoreError as error:
            self._member.failed(self._clock())
            self._complain(str(error))
        else:
            self._complain("")

    def _renew(self) -> None:
        for _ in range(3):  # reading, joining and the first renewal go together
            now = self._clock()
            seconds = good_for(self._slices(), self._settings.fence.lease_ttl_s, now)
            if self.clean != (clean := seconds > 0):
                self.clean = clean
                LOG.log(
                    logging.INFO if clean else logging.WARNING,
                    "this host is clean again" if clean else
                    "something runs here without a lease that is valid for long enough: the others shut this host out",
                )  # fmt: skip
            request = self._member.next(now, seconds)
            if request is None:
                return
            self._member.answered(request, self._store.execute(request), self._clock())

    def _look(self) -> None:
        began = self._clock()
        changed = self.view.observe(self._store.all(), began)
        now = self._clock()
        if changed:
            self._load(admit({address: until - now for address, until in changed.items()}))

    def _complain(self, problem: str) -> None:
        if problem and not self.problem:
            LOG.warning("%s", problem)
        elif self.problem and not problem:
            LOG.info("MongoDB answers again")
        self.problem = problem

    def state(self) -> dict[str, Any]:
        """What the command line shows."""
        now = self._clock()
        admitted = {address: round(until - now, 1) for address, until in self.view.until.items() if until > now}
        return {"at": now, "clean": self.clean, "admitted": admitted, "problem": self.problem}


def main(settings: Settings) -> int:
    """Run the fence of this host until it is told to stop."""
    nft(rules(settings.fence))
    client = connect(settings.mongodb)
    store = MongoMembers(client[settings.mongodb.database], settings.host, settings.address)
    fence = Fence(settings, store, Placements().slices)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    notify("READY=1")
    while signal.sigtimedwait({signal.SIGTERM}, POLL_S) is None:
        fence.step()
        _write(STATE, json.dumps(fence.state()))
        notify("WATCHDOG=1")
    return 0


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


def read_state(path: Path = STATE) -> dict[str, Any]:
    """Return what the fence wrote last, with its age; empty where there is none."""
    try:
        state: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {**state, "age": boot_time() - float(state["at"])}


def wait_until(condition: Callable[[], str], seconds: float) -> str:
    """Wait until nothing is wrong; return what still is after that time."""
    end = time.monotonic() + seconds
    while problem := condition():
        if time.monotonic() >= end:
            return problem
        time.sleep(0.5)
    return ""
