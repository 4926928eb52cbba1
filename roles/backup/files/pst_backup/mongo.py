"""Reading MongoDB: who is asked, a dump of one operation time, the oplog after it. pymongo 3.11 (Debian 12) and newer.

`find` with `readConcern: snapshot` and `atClusterTime` is sent as a plain command: the driver of Debian 12 has no
snapshot sessions, and what the server answers is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymongo
from bson import json_util
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from pst_backup.catalog import Stamp
from pst_backup.raw import Digest, Writer

Document = dict[str, Any]
RAW: Any = CodecOptions(document_class=RawBSONDocument)
FORMAT = 1
# Made by the server or by the inventory (users), or true of one host only.
INTERNAL = ("admin", "config", "local")
MANIFEST = "manifest.json"
ATTEMPTS = 5
CANONICAL = json_util.CANONICAL_JSON_OPTIONS


class DumpError(Exception):
    """Why there is no dump, in words for the operator."""


@dataclass(frozen=True)
class Account:
    """How MongoDB is reached."""

    hosts: Sequence[str]  # name:port
    replica_set: str
    user: str
    password: str = field(repr=False)
    ca: str

    def client(self, host: str = "", **options: Any) -> Any:
        """One member, asked directly; without a name the set, by its primary."""
        whom = {"host": host, "directConnection": True} if host else {
            "host": list(self.hosts), "replicaSet": self.replica_set}  # fmt: skip
        login = {"username": self.user, "password": self.password, "authSource": "admin"} if self.user else {}
        settings = {"tls": True, "tlsCAFile": self.ca, "connectTimeoutMS": 3000, "serverSelectionTimeoutMS": 10000}
        return pymongo.MongoClient(**{**whom, **login, **settings, "appname": "pst-backup", **options})


def hello(client: Any) -> Document:
    found: Document = client.admin.command("hello")
    return found


def states(account: Account) -> dict[str, Document]:
    """What each member says of itself; those that do not answer are left out."""
    found = {}
    for host in account.hosts:
        client = account.client(host, serverSelectionTimeoutMS=3000)
        try:
            found[host] = hello(client)
        except PyMongoError:
            continue
        finally:
            client.close()
    return found


def elected(said: dict[str, Document]) -> str:
    """The member that is read from: the first of the secondaries, and the primary where there is none."""
    secondaries = sorted(host for host, one in said.items() if one.get("secondary") and not one.get("hidden"))
    primaries = sorted(host for host, one in said.items() if one.get("isWritablePrimary"))
    return (secondaries + primaries + [""])[0]


def stamp(found: Timestamp) -> Stamp:
    return Stamp(found.time, found.inc)


def timestamp(found: Stamp) -> Timestamp:
    return Timestamp(found.seconds, found.ordinal)


def documents(
    client: Any, session: Any, database: str, collection: str, at: Timestamp | None = None
) -> Iterator[bytes]:
    """Every document of a collection, as it was at an operation time."""
    concern = {"level": "snapshot", "atClusterTime": at} if at else {"level": "local"}
    command: Document = {"find": collection, "readConcern": concern, "batchSize": 1000}
    target = client[database]
    answer = target.command(command, session=session, codec_options=RAW)["cursor"]
    batch = answer["firstBatch"]
    while True:
        for document in batch:
            yield bytes(document.raw)
        if not answer["id"]:
            return
        more = {"getMore": answer["id"], "collection": collection}
        answer = target.command(more, session=session, codec_options=RAW)["cursor"]
        batch = answer["nextBatch"]


@dataclass(frozen=True)
class Listing:
    """The collections and views that there are, with what makes them."""

    collections: dict[str, Document]  # namespace: options, indexes, uuid
    views: dict[str, Document]


def databases(client: Any) -> list[str]:
    found = client.admin.command({"listDatabases": 1, "nameOnly": True})["databases"]
    return sorted(one["name"] for one in found if one["name"] not in INTERNAL)


def size_on_disk(client: Any) -> int:
    """What the databases take on the member's disk, compressed."""
    found = client.admin.command("listDatabases")["databases"]
    return sum(int(one["sizeOnDisk"]) for one in found if one["name"] not in INTERNAL)


def listing(client: Any, session: Any = None) -> Listing:
    found = Listing({}, {})
    for database in databases(client):
        for one in client[database].list_collections(session=session):
            namespace = f"{database}.{one['name']}"
            if one.get("type") == "view":
                found.views[namespace] = dict(one["options"])
            elif one.get("type") == "timeseries":
                raise DumpError(f"{namespace} is a time series collection, which this tool does not back up")
            elif one["name"] == "system.views" or one["name"] == "system.profile":
                continue  # the first is made of the views, the second is the server's own log
            elif one["name"].startswith("system."):
                raise DumpError(f"{namespace} is a collection of the server's, which this tool does not back up")
            else:
                indexes = list(client[database][one["name"]].list_indexes(session=session))
                found.collections[namespace] = {
                    "options": dict(one.get("options", {})),
                    "indexes": [{key: value for key, value in dict(index).items() if key != "ns"} for index in indexes],
                    "uuid": one["info"].get("uuid"),
                }
    return found


def file_of(namespace: str) -> str:
    return quote(namespace, safe="") + ".bson"


def split(namespace: str) -> tuple[str, str]:
    database, _, collection = namespace.partition(".")
    return database, collection


def save(path: Path, content: Document) -> None:
    path.write_text(json_util.dumps(content, json_options=CANONICAL, indent=1, sort_keys=False) + "\n")


def load(path: Path) -> Document:
    found: Document = json.loads(path.read_text(), object_pairs_hook=json_util.object_pairs_hook)
    if found.get("format") != FORMAT:
        raise DumpError(f"{path}: format {found.get('format')}; wanted {FORMAT}")
    return found


def dump(client: Any, folder: Path, about: Document) -> Document:
    """Write every database as it was at one operation time that the majority has. Returns the manifest."""
    for _attempt in range(ATTEMPTS):
        # Collections are not listed at an operation time: what was there before it and after it was there at it.
        with client.start_session(causal_consistency=False) as session:
            before = listing(client, session)
            said = hello(client)
            at = said["lastWrite"]["majorityOpTime"]["ts"]
            if listing(client, session) != before:
                continue
            collections = [
                {"namespace": namespace, "options": made["options"], "indexes": made["indexes"],
                 **write(client, session, namespace, folder, at)}
                for namespace, made in sorted(before.collections.items())
            ]  # fmt: skip
        manifest: Document = {
            "format": FORMAT, "at": str(stamp(at)), "member": said.get("me"), "replica_set": said.get("setName"),
            "server": client.server_info()["version"], **about, "collections": collections,
            "views": [{"namespace": namespace, "options": made} for namespace, made in sorted(before.views.items())],
            "documents": sum(one["count"] for one in collections), "bytes": sum(one["bytes"] for one in collections),
        }  # fmt: skip
        save(folder / MANIFEST, manifest)
        return manifest
    raise DumpError(f"collections were made or removed during each of {ATTEMPTS} attempts")


def write(client: Any, session: Any, namespace: str, folder: Path, at: Timestamp) -> Document:
    writer = Writer(folder / file_of(namespace))
    try:
        for document in documents(client, session, *split(namespace), at):
            writer.add(document)
    except OperationFailure as error:
        if error.code in (239, 246):  # SnapshotTooOld, SnapshotUnavailable
            hint = "raise minSnapshotHistoryWindowInSeconds (mongodb_parameters), if it took longer than that"
            raise DumpError(f"{namespace} cannot be read as of {stamp(at).wall()}: {error}; {hint}") from error
        raise
    finally:
        sha = writer.close()
    done = writer.digest
    return {"file": file_of(namespace), "count": done.count, "bytes": done.size, "sha256": sha, "digest": str(done)}


def oldest(client: Any) -> Stamp:
    """The first operation that the oplog still has."""
    found = client.local["oplog.rs"].find_one({}, {"ts": 1}, sort=[("$natural", 1)])
    return stamp(found["ts"])


def follow(client: Any, after: Stamp, folder: Path, about: Document) -> Document | None:
    """Write the operations after `after` that the majority has. None where the oplog no longer has all of them.

    A no-op of the server (every 10 s on an idle set) moves `until` and is not kept.
    """
    concern = ReadConcern("majority")  # what the majority has is never rolled back
    oplog = client.local.get_collection("oplog.rs", read_concern=concern, codec_options=RAW)
    writer, until, first = Writer(folder / "oplog.bson"), after, oldest(client)
    try:
        for entry in oplog.find({"ts": {"$gte": timestamp(after)}}).sort("$natural", 1):
            until = stamp(entry["ts"])
            if until > after and entry["op"] != "n" and is_ours(entry["ns"]):
                writer.add(bytes(entry.raw))
    finally:
        sha = writer.close()
    if first > after or oldest(client) > after:
        return None
    manifest: Document = {
        "format": FORMAT, "after": str(after), "until": str(until), **about,
        "count": writer.digest.count, "bytes": writer.digest.size, "sha256": sha,
    }  # fmt: skip
    save(folder / MANIFEST, manifest)
    return manifest


def is_ours(namespace: str) -> bool:
    """Whether an operation is of a database that is backed up; transactions are logged as `admin.$cmd`."""
    database, name = split(namespace)
    return database not in INTERNAL or (database == "admin" and name == "$cmd")


def digest_of(client: Any, namespace: str, at: Stamp | None = None) -> Digest:
    """What a collection holds now, or what it held at an operation time of the last minutes."""
    found = Digest()
    with client.start_session(causal_consistency=False) as session:
        for document in documents(client, session, *split(namespace), timestamp(at) if at else None):
            found.add(document)
    return found
