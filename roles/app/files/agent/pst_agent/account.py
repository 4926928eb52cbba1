"""What the account has earned and what it risks, for Prometheus. Definitions: docs/account-figures.md.

The slot that holds the lease of the orders tells it. While nobody holds it (the kill switch was used) every slot of the
hosts that may does: the positions are there still.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pst_agent import metrics
from pst_agent.mongo import Document
from pst_agent.state import StateError

log = logging.getLogger(__name__)

PLACEMENT = "trading"  # its holder alone changes positions
EVERY_S, LIMIT_S = 300.0, 60.0
# Older answers are not told: nobody has asked for a while, or another slot had the lease meanwhile.
OLDEST_S = 2 * EVERY_S
READER = Path(__file__).with_name("account_reader.py")


def runs_here(settings: Path) -> bool:
    """Whether this host may hold the lease of the orders. Others may have a folder of positions that nobody keeps."""
    try:
        found = json.loads(settings.read_bytes())
        return found["host"] in found["placements"][PLACEMENT]["hosts"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Account:
    """The last answer of the reader. A scrape that finds it old starts the next read, and does not wait for it."""

    def __init__(
        self,
        settings: Path,
        read: Callable[[], Awaitable[Document]],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._read, self._clock, self._now = settings, read, clock, now
        self._task: asyncio.Task[None] | None = None
        self._began: float | None = None
        self._answer: tuple[float, str] | None = None

    def tell(self, *, mine: bool) -> str:
        """Return the figures where they are this slot's to tell: `mine`, no other slot holds the lease."""
        if not mine or not runs_here(self._settings):
            return ""
        now = self._clock()
        if self._began is None or (now - self._began >= EVERY_S and (self._task is None or self._task.done())):
            self._began = now
            self._task = asyncio.create_task(self._refresh())
        if self._answer is None or now - self._answer[0] > OLDEST_S:
            return ""
        return self._answer[1]

    async def _refresh(self) -> None:
        try:
            told = render(await self._read(), self._now())
        except StateError as error:
            log.warning("no figures of the account", extra={"error": str(error)})
            told = failed(str(error).partition(": ")[2])
        except Exception as error:  # noqa: BLE001 - of a task that nobody awaits it would be lost, and the next one too
            log.warning("no figures of the account", extra={"error": f"{type(error).__name__}: {error}"[:300]})
            told = failed(type(error).__name__)
        self._answer = (self._clock(), told)


UP = ("pst_account_up", "1 when positions, orders and prices could be read")


def failed(reason: str) -> str:
    why = [({"error": reason}, 1.0)]
    return metrics.gauge(*UP, 0) + metrics.family(
        "pst_account_last_error_info", "gauge", "Always 1; why they could not be read", why
    )


def render(found: Document, now: float) -> str:
    family, currency = metrics.family, found["currency"]
    pnl: dict[str, Any] = found["pnl"]
    labels = {"confidence": "0.99", "days": "1", "currency": currency}
    return "".join(
        (
            metrics.gauge(*UP, 1),
            metrics.gauge("pst_account_read_timestamp_seconds", "When they were read", now),
            family(
                "pysystemtrade_position_pnl_total",
                "gauge",
                "Earned with an instrument since its first fill, open positions included, before commissions",
                [({"instrument": one, "currency": currency}, values["total"]) for one, values in pnl.items()],
            ),
            family(
                "pysystemtrade_position_pnl_unrealized",
                "gauge",
                "The part of the total that is of open positions",
                [({"instrument": one, "currency": currency}, values["unrealized"]) for one, values in pnl.items()],
            ),
            family(
                "pysystemtrade_portfolio_var",
                "gauge",
                "Loss of a day that the positions of now would have exceeded on one day in a hundred",
                [(labels, found["var"])] if "var" in found else [],
            ),
            family(
                "pysystemtrade_position_concentration",
                "gauge",
                "Share of an instrument in the sum of the risks of all, each taken alone; 0 to 1",
                [({"instrument": one}, share) for one, share in found.get("concentration", {}).items()],
            ),
            family(
                "pst_account_price_timestamp_seconds",
                "gauge",
                "When the oldest price was made that an instrument's open positions are valued at",
                [({"instrument": one}, at) for one, at in found["prices"].items()],
            ),
            family(
                "pst_account_missing_info",
                "gauge",
                "Always 1; which figure is not told for want of what",
                [(item, 1.0) for item in found["missing"]],
            ),
        )
    )
