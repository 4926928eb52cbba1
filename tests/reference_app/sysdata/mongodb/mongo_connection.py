"""MongoDB: one client per process, to the host or URI of the configuration and nowhere else."""

from __future__ import annotations

from functools import cache
from typing import Any

from pymongo import MongoClient, ReadPreference
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from sysdata.config.production_config import get_production_config

Document = dict[str, Any]
# Time-outs measured for failover: a small socketTimeout loses writes that a slow election would have saved.
TIMEOUTS: dict[str, Any] = {
    "heartbeatFrequencyMS": 1000,
    "connectTimeoutMS": 1000,
    "socketTimeoutMS": 20000,
    "serverSelectionTimeoutMS": 30000,
}


@cache
def get_database() -> Database[Document]:
    """Return the trading database; an intent to trade must not be rolled back, so all is written by a majority."""
    config = get_production_config()
    is_uri = "://" in config.mongo_host
    client: MongoClient[Document] = MongoClient(
        config.mongo_host, None if is_uri else int(config.mongo_port), appname="pysystemtrade", **TIMEOUTS
    )
    return client.get_database(
        config.mongo_db,
        read_preference=ReadPreference.PRIMARY,
        read_concern=ReadConcern("majority"),
        write_concern=WriteConcern("majority", wtimeout=20000),
    )


def keyed_collection(name: str, key: str) -> Collection[Document]:
    """Return a collection with its unique key."""
    collection = get_database()[name]
    collection.create_index(key, unique=True)
    return collection
