"""The gate's own reader of the lease."""

from __future__ import annotations

from typing import Any

import pymongo
import pytest
from pst_trading.gate_settings import MongoSettings
from pst_trading.watch import LeaseReadError, MongoLease
from pymongo.errors import NetworkTimeout, PyMongoError, ServerSelectionTimeoutError

SETTINGS = MongoSettings(("m:27017",), "rs", "gate", "/etc/hostname", "pst", "")
LEASE = {"epoch": 3, "renewals": 1, "holder": None, "ttl_ms": 15000, "remaining_ms": 0}


class Client:
    """A client that fails as long as it lives, or answers."""

    def __init__(self, answer: dict[str, Any] | PyMongoError) -> None:
        self.answer = answer
        self.closed = False

    def get_database(self, _name: str, **_options: Any) -> Client:
        return self

    def __getitem__(self, _name: str) -> Client:
        return self

    def aggregate(self, _pipeline: list[Any], **_options: Any) -> list[dict[str, Any]]:
        if isinstance(self.answer, PyMongoError):
            raise self.answer
        return [self.answer]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch) -> list[Client]:
    """The clients that are made, the next one last."""
    clients = [Client(LEASE), Client(LEASE)]
    waiting = iter(clients)
    monkeypatch.setattr(pymongo, "MongoClient", lambda *_arguments, **_options: next(waiting))
    return clients


def test_a_client_that_finds_no_primary_is_replaced(made) -> None:
    """It never would: the primary of a set that was made anew has lower terms than the one that it remembers."""
    made[0].answer = ServerSelectionTimeoutError("no primary")
    reader = MongoLease(SETTINGS, "trading")
    with pytest.raises(LeaseReadError, match="no primary"):
        reader.read()
    assert made[0].closed
    assert reader.read().epoch == 3


def test_a_client_whose_read_failed_is_kept(made) -> None:
    made[0].answer = NetworkTimeout("late")
    reader = MongoLease(SETTINGS, "trading")
    with pytest.raises(LeaseReadError, match="late"):
        reader.read()
    assert not made[0].closed
