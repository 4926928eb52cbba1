"""What the platform and pysystemtrade say about trading: leases, processes, orders, positions. Nothing is changed."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pst_agent.config import Trading
from pst_agent.mongo import Document

log = logging.getLogger(__name__)
T = TypeVar("T")

STACKS = {
    "instrument": "INSTRUMENT_ORDER_STACK",
    "contract": "CONTRACT_ORDER_STACK",
    "broker": "BROKER_ORDER_STACK",
}
# The counter that pysystemtrade keeps among the orders of a stack; and what it stores for True is sometimes a number.
ACTIVE = {"order_id": {"$ne": "_ORDER_ID_STORE_KEY"}, "active": {"$in": [True, 1]}}
MAX_ORDERS = MAX_PROCESSES = 1000
PLATFORM = "pst"  # the database of the leases
POSITIONS_TIMEOUT_S = 20
POSITIONS_READER = Path(__file__).with_name("positions_reader.py")


class StateError(Exception):
    """What was asked for cannot be read; the message says why."""


class Cached(Generic[T]):
    """The last answer for `seconds`, and one question at a time: clients cannot ask more of the source than that."""

    def __init__(
        self, ask: Callable[[], Awaitable[T]], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._seconds, self._clock = ask, seconds, clock
        self._lock = asyncio.Lock()
        self._answer: tuple[float, T] | None = None

    async def __call__(self) -> T:
        async with self._lock:
            if self._answer is None or self._clock() - self._answer[0] >= self._seconds:
                answer = await self._ask()
                self._answer = (self._clock(), answer)
            return self._answer[1]


@dataclass(frozen=True)
class Placements:
    """Which placement each process belongs to, as the guard of this host is told (trading.json)."""

    of: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def read(cls, settings: Path) -> Placements:
        try:
            processes = json.loads(settings.read_bytes())["processes"]
            return cls({item.get("process_control_name") or item["name"]: item["placement"] for item in processes})
        except FileNotFoundError:
            return cls(error=f"{settings}: this host runs no trading")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return cls(error=f"{settings}: {type(error).__name__} {error}")


class Database(Protocol):
    """What is asked of MongoDB."""

    async def find(
        self, database: str, collection: str, query: Document, limit: int, sort: Document
    ) -> list[Document]: ...

    async def aggregate(self, database: str, collection: str, pipeline: list[Document]) -> list[Document]: ...

    async def count(self, database: str, collection: str, query: Document) -> int: ...


class State:
    """The questions of the API; each may raise what the database raises."""

    def __init__(self, mongo: Database, database: str, trading: Trading, python: Path) -> None:
        self._mongo, self._database, self._python = mongo, database, python
        self._settings, self._local, self._private = map(Path, (trading.settings, trading.state, trading.private))
        self.leases = Cached(self._leases, 1)
        self.processes = Cached(self._processes, 1)
        self.orders = Cached(self._orders, 1)
        self.active_orders = Cached(self._active_orders, 1)
        self.positions = Cached(self._positions, 5)

    async def _leases(self) -> list[Document]:
        """Every lease, judged by the server's clock: `held` and `remaining_ms` are its, not this host's."""
        judged = {
            "held": {"$and": [{"$ne": [{"$ifNull": ["$holder", None]}, None]}, {"$gt": ["$expires_at", "$$NOW"]}]},
            "remaining_ms": {"$subtract": ["$expires_at", "$$NOW"]},
        }
        documents = await self._mongo.aggregate(PLATFORM, "leases", [{"$set": judged}, {"$sort": {"_id": 1}}])
        return [{"placement": document.pop("_id"), **document} for document in documents]

    def local_grants(self) -> list[Document]:
        """What the guard of this host says that it holds (/run/pst/trading/<placement>.json)."""
        found = []
        for path in sorted(self._local.glob("*.json")):
            try:
                found.append(json.loads(path.read_bytes()))
            except FileNotFoundError:
                continue  # it was given back meanwhile
            except (OSError, ValueError) as error:
                found.append({"placement": path.stem, "error": f"{type(error).__name__}: {error}"})
        return found

    async def _processes(self) -> Document:
        found = await self._mongo.find(self._database, "process_control", {}, MAX_PROCESSES, {"process_name": 1})
        known = {document.get("process_name", ""): document for document in found}
        placements = Placements.read(self._settings)
        try:
            leases = {lease["placement"]: lease for lease in await self.leases()}
            error = placements.error
        except Exception as failure:  # noqa: BLE001 - processes are told without their holders then
            leases, error = {}, f"leases: {type(failure).__name__}"
        now = datetime.now()  # noqa: DTZ005 - pysystemtrade stores local times without a zone
        return {
            "processes": [
                process(name, known.get(name, {}), placements.of.get(name), leases, now)
                for name in sorted(known.keys() | placements.of.keys())
            ],
            **({"error": error} if error else {}),
        }

    async def _orders(self) -> dict[str, list[Document]]:
        return {
            name: await self._mongo.find(self._database, collection, ACTIVE, MAX_ORDERS, {"order_id": 1})
            for name, collection in STACKS.items()
        }

    async def _active_orders(self) -> dict[str, int]:
        return {
            name: await self._mongo.count(self._database, collection, ACTIVE) for name, collection in STACKS.items()
        }

    async def _positions(self) -> Document:
        return await ask_python("positions", POSITIONS_TIMEOUT_S, self._python, POSITIONS_READER, self._private)


async def ask_python(what: str, limit_s: float, python: Path, reader: Path, *arguments: Path) -> Document:
    """Ask the slot's own Python, which reads Parquet: a process for a second instead of 100 MiB for ever."""
    command = (str(python), "-I", str(reader), *map(str, arguments))
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise StateError(f"{what}: {error}") from error
    try:
        async with asyncio.timeout(limit_s):
            out, err = await process.communicate()
    except TimeoutError as error:
        raise StateError(f"{what}: the reader did not answer within {limit_s} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        reason = err.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise StateError(f"{what}: {reason[0][:300]}")
    answer: Document = json.loads(out)
    return answer


def process(
    name: str, document: Document, placement: str | None, leases: dict[str, Document], now: datetime
) -> Document:
    """What process control says of one process, and where the platform lets it run."""
    methods = document.get("running_methods") or {}
    moments = [moment for pair in methods.values() if isinstance(pair, list | tuple) for moment in pair]
    newest = max((moment for moment in moments if isinstance(moment, datetime)), default=None)
    lease = leases.get(placement or "", {})
    holder = lease.get("holder") if lease.get("held") else None
    return {
        "process": name,
        "status": document.get("status"),
        "running": bool(document.get("currently_running")),
        "crashed": bool(document.get("recently_crashed")),
        "process_id": int(document.get("process_id") or 0) or None,
        "last_start": document.get("last_start_time"),
        "last_end": document.get("last_end_time"),
        "last_activity": newest,
        "idle_seconds": round((now - newest).total_seconds(), 1) if newest else None,
        "placement": placement,
        "holder": f"{holder.get('host')}/{holder.get('colour')}" if holder else None,
    }
