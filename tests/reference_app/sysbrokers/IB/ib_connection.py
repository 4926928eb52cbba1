"""Connections to the gateway, each under a client id that is locked in IBClientTracker."""

from __future__ import annotations

import time

from ib_async import IB, Contract, Future, StartupFetch, StartupFetchALL
from pymongo.errors import DuplicateKeyError

from sysdata.config.production_config import get_production_config
from sysdata.mongodb.mongo_connection import keyed_collection
from syslogging.logger import get_logger

LOG = get_logger("ib_connection")
CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 30.0
TAKE_OVER_SECONDS = 30.0
TRY_SECONDS = 2.0  # the client library waits this long where the id is in use
RETRY_SECONDS = 0.2
TO_TRADE = StartupFetchALL & ~StartupFetch.ORDERS_COMPLETE  # the longest list, and executions say more


def lock_client_id() -> int:
    """Take the lowest free id from the offset on. Nobody gives it back, not even on a clean exit: as upstream."""
    locks = keyed_collection("IBClientTracker", "client_id")
    client_id = int(get_production_config().ib_idoffset)
    while True:
        try:
            locks.insert_one({"client_id": client_id})
        except DuplicateKeyError:
            client_id += 1
        else:
            return client_id


def clear_all_client_ids() -> None:
    """Free the ids of every process, wherever it runs: as upstream."""
    keyed_collection("IBClientTracker", "client_id").delete_many({})


def connect(client_id: int | None = None, timeout: float = CONNECT_SECONDS, fetch: StartupFetch = TO_TRADE) -> IB:
    """Return a connection; ConnectionError or TimeoutError where the gateway gives none. There is no second try."""
    config = get_production_config()
    ib = IB()
    ib.RequestTimeout = REQUEST_SECONDS
    number = lock_client_id() if client_id is None else client_id
    account = config.get_element_or_default("broker_account", "")
    if not account:
        LOG.error("broker_account is not set in the private configuration")
    ib.connect(
        config.ib_ipaddress,
        int(config.ib_port),
        number,
        timeout,
        account=account,
        raiseSyncErrors=True,
        fetchFields=fetch,
    )
    LOG.info("connected to %s:%s as client %d", config.ib_ipaddress, config.ib_port, number)
    return ib


def take_over(client_id: int) -> IB:
    """Connect under the id of a client that has died: granted once the gateway has read all that the dead one sent."""
    deadline = time.monotonic() + TAKE_OVER_SECONDS
    while True:
        try:
            return connect(client_id, TRY_SECONDS, StartupFetch.ORDERS_OPEN)
        except (ConnectionError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def nearest_contract(ib: IB, instrument: str) -> Contract:
    """Return the contract that an instrument is traded in."""
    settings = get_production_config().reference_instruments[instrument]
    found = ib.reqContractDetails(Future(settings["symbol"], exchange=settings["exchange"], currency="USD"))
    contracts = [details.contract for details in found if details.contract]
    if not contracts:
        raise LookupError(f"reference_instruments.{instrument} is {settings}, wanted a future that the broker knows")
    return min(contracts, key=lambda contract: contract.lastTradeDateOrContractMonth)
