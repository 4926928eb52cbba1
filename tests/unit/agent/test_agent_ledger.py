"""The probe's ledger: what is acknowledged is there, what was carried out twice is seen, and a burst is one write."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pst_agent.config import Instance
from pst_agent.ledger import INDEXES, Ledger
from pst_agent.mongo import MongoError

Document = dict[str, Any]
RUN = "0123456789ab"


class Store:
    """A MongoDB that keeps what is inserted; `errors` are raised first."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.inserts, self.indexes = list(errors), list[list[Document]](), list[list[Document]]()
        self.found: Document = {"totals": [], "twice": []}

    async def create_indexes(self, database: str, collection: str, indexes: list[Document]) -> None:
        assert (database, collection) == ("production", "pst_probe")
        self.indexes.append(indexes)

    async def insert(self, database: str, collection: str, documents: list[Document]) -> None:
        assert (database, collection) == ("production", "pst_probe")
        await asyncio.sleep(0.01)
        if self.errors:
            raise self.errors.pop()
        self.inserts.append(documents)

    async def aggregate(self, database: str, collection: str, pipeline: list[Document]) -> list[Document]:
        assert pipeline[0] == {"$match": {"run": RUN}}
        return [self.found]


def ledger(store: Store) -> Ledger:
    return Ledger(store, "production", Instance(site="lab", host="app1", colour="blue"))  # type: ignore[arg-type]


def test_what_comes_during_a_write_goes_with_the_next_one() -> None:
    store = Store()

    async def scenario() -> None:
        made = ledger(store)
        first = asyncio.create_task(made.add(f"{RUN}-0"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.gather(first, *(made.add(f"{RUN}-{number}") for number in range(1, 50)))
        await made.add(f"{RUN}-50")

    asyncio.run(scenario())
    assert [len(documents) for documents in store.inserts] == [1, 49, 1]
    [document] = store.inserts[0]
    assert document.pop("at").tzinfo
    assert document == {"key": f"{RUN}-0", "run": RUN, "host": "app1", "colour": "blue"}


def test_the_indexes_are_made_once_and_none_is_unique() -> None:
    store = Store()

    async def scenario() -> None:
        made = ledger(store)
        await made.add(f"{RUN}-1")
        await made.add(f"{RUN}-1")

    asyncio.run(scenario())
    assert store.indexes == [INDEXES]
    assert not any(index.get("unique") for index in INDEXES)
    assert INDEXES[0] == {"key": {"at": 1}, "name": "expiry", "expireAfterSeconds": 86400}
    assert len(store.inserts) == 2


def test_a_write_that_failed_is_told_to_all_who_wait_and_the_next_one_is_tried() -> None:
    store = Store(MongoError("away"))

    async def scenario() -> list[Any]:
        made = ledger(store)
        failed = await asyncio.gather(*(made.add(f"{RUN}-{number}") for number in range(2)), return_exceptions=True)
        await made.add(f"{RUN}-2")
        return failed

    assert [str(error) for error in asyncio.run(scenario())] == ["away", "away"]
    assert [document["key"] for documents in store.inserts for document in documents] == [f"{RUN}-2"]


def test_a_client_that_left_does_not_disturb_the_others() -> None:
    store = Store()

    async def scenario() -> None:
        made = ledger(store)
        leaves, stays = (asyncio.create_task(made.add(f"{RUN}-{number}")) for number in range(2))
        await asyncio.sleep(0)
        leaves.cancel()
        await stays
        with pytest.raises(asyncio.CancelledError):
            await leaves

    asyncio.run(scenario())
    assert len(store.inserts[0]) == 2


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"totals": [], "twice": []}, {"posts": 0, "distinct": 0, "duplicates": []}),
        (
            {"totals": [{"_id": None, "posts": 5, "distinct": 4}], "twice": [{"_id": f"{RUN}-3", "times": 2}]},
            {"posts": 5, "distinct": 4, "duplicates": [f"{RUN}-3"]},
        ),
    ],
)
def test_a_run_is_counted(found: Document, told: Document) -> None:
    store = Store()
    store.found = found
    assert asyncio.run(ledger(store).count(RUN)) == told
