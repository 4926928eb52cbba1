"""Restore: everything is read, checked, loaded and replayed beside the live data, and only then takes its place.

A staged collection is in the database of the live one, so that it takes its place by a rename, which is atomic and
moves no data. What a killed run has left behind is removed by the next one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from pst_backup import mongo, raw
from pst_backup.catalog import Plan, Stamp, wall
from pst_backup.mongo import MANIFEST, RAW, Document, file_of, split
from pst_backup.replay import Replay, Shape
from pst_backup.restic import Restic

STAGED = "__restore__."
CHUNK_DOCUMENTS, CHUNK_BYTES = 1000, 8 * 1024 * 1024
MAJORITY = WriteConcern("majority")
# A dump, its copy in MongoDB, and what the indexes and the journal take: what has to be free for a byte of the dump.
DISK_FACTOR = 1.2
# So much above the highest that is known: those that were granted after the backup's moment must not come again.
EPOCH_STEP = 1000


class RestoreError(Exception):
    """Why nothing was restored, or how far it is."""


@dataclass(frozen=True)
class Fetched:
    """A backup that lies on this host, checked."""

    full: Path
    chunks: list[Path]
    manifest: Document
    plan: Plan


def fetch(restic: Restic, plan: Plan, folder: Path, say: Callable[[str], None]) -> Fetched:
    """Bring what the plan needs into a folder, and check every byte of it against its manifest."""
    parts = [(plan.full, folder / "full"), *((c, folder / f"chunk-{n:06d}") for n, c in enumerate(plan.chunks))]
    for snapshot, place in parts:
        shutil.rmtree(place, ignore_errors=True)
        try:
            restic.restore(snapshot.id, place)
        except OSError as error:
            raise RestoreError(f"{place}: {error.strerror}") from error
    say(f"{len(parts)} backups were read from the repository")
    found = [_inside(place) for _, place in parts]
    for place in found:
        check(place)
    manifest = mongo.load(found[0] / MANIFEST)
    if manifest["at"] != str(plan.full.until):
        raise RestoreError(f"the full dump is of {manifest['at']}; wanted {plan.full.until}, as its entry says")
    for place, chunk in zip(found[1:], plan.chunks, strict=True):
        told = mongo.load(place / MANIFEST)
        if (told["after"], told["until"]) != (str(chunk.after), str(chunk.until)):
            raise RestoreError(f"a part of the oplog is of {told['after']} to {told['until']}; wanted {chunk.tags}")
    say("every file is what was written to the repository")
    return Fetched(found[0], found[1:], manifest, plan)


def _inside(place: Path) -> Path:
    manifests = sorted(place.rglob(MANIFEST))
    if len(manifests) != 1:
        raise RestoreError(f"{place}: {len(manifests)} manifests; wanted one")
    return manifests[0].parent


def check(folder: Path) -> None:
    """Every file of a dump or a chunk has the hash and the count of its manifest."""
    manifest = mongo.load(folder / MANIFEST)
    for entry in manifest.get("collections", [{**manifest, "file": "oplog.bson"}]):
        path = folder / entry["file"]
        if not path.is_file():
            raise RestoreError(f"{entry['file']} is not in the backup")
        if raw.sha256(path) != entry["sha256"]:
            raise RestoreError(f"{entry['file']} does not hold what was backed up (SHA-256 differs)")
        seen = sum(1 for _ in raw.read(path))
        if seen != entry["count"]:
            raise RestoreError(f"{entry['file']} has {seen} documents; wanted {entry['count']}")


def room(folder: Path, size: int, what: str) -> None:
    """Refuse before anything is changed where the disk is too small."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size * DISK_FACTOR:
        raise RestoreError(f"{folder}: {free >> 20} MB free; wanted {int(size * DISK_FACTOR) >> 20} MB for {what}")


class Live:
    """A MongoDB that collections are staged in."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def collection(self, namespace: str) -> Any:
        database, name = split(namespace)
        return self.client[database].get_collection(name, codec_options=RAW, write_concern=MAJORITY)

    def apply(self, operations: list[dict[str, Any]]) -> None:
        answer = self.client.admin.command({"applyOps": operations, "allowAtomic": False})
        if not all(answer["results"]) or answer["applied"] != len(operations):
            raise RestoreError(f"MongoDB applied {answer['applied']} of {len(operations)} operations: {answer}")

    def create(self, namespace: str, options: Mapping[str, Any]) -> None:
        database, name = split(namespace)
        self.client[database].command({"create": name, **options})

    def drop(self, namespace: str) -> None:
        database, name = split(namespace)
        self.client[database].drop_collection(name)

    def rename(self, namespace: str, to: str) -> None:
        concern = {"w": "majority"}
        self.client.admin.command(
            {"renameCollection": namespace, "to": to, "dropTarget": True, "writeConcern": concern}
        )

    def modify(self, namespace: str, change: Mapping[str, Any]) -> None:
        database, name = split(namespace)
        self.client[database].command({"collMod": name, **change})

    def insert(self, namespace: str, documents: Iterable[bytes]) -> None:
        collection = self.collection(namespace)
        for chunk in chunked(documents):
            collection.insert_many(chunk, ordered=False, bypass_document_validation=True)

    def index(self, namespace: str, indexes: Iterable[Mapping[str, Any]]) -> None:
        database, name = split(namespace)
        wanted = [dict(index) for index in indexes if index["name"] != "_id_"]
        if wanted:
            self.client[database].command({"createIndexes": name, "indexes": wanted})

    def namespaces(self) -> list[str]:
        """Every collection and view of the databases that are backed up."""
        return sorted(
            f"{database}.{one['name']}"
            for database in mongo.databases(self.client)
            for one in self.client[database].list_collections()
            if not one["name"].startswith("system.")
        )


def chunked(documents: Iterable[bytes]) -> Iterator[list[RawBSONDocument]]:
    found, size = [], 0
    for document in documents:
        found.append(RawBSONDocument(document))
        size += len(document)
        if len(found) >= CHUNK_DOCUMENTS or size >= CHUNK_BYTES:
            yield found
            found, size = [], 0
    if found:
        yield found


def staged(namespace: str) -> str:
    database, name = split(namespace)
    return f"{database}.{STAGED}{name}"


def is_staged(namespace: str) -> bool:
    return split(namespace)[1].startswith(STAGED)


def clear(live: Live) -> list[str]:
    """Remove what a killed run has left."""
    left = [namespace for namespace in live.namespaces() if is_staged(namespace)]
    for namespace in left:
        live.drop(namespace)
    return left


def entries(chunks: Iterable[Path]) -> Iterator[tuple[Stamp, RawBSONDocument]]:
    for chunk in chunks:
        for document in raw.read(chunk / "oplog.bson"):
            entry = RawBSONDocument(document, RAW)
            yield mongo.stamp(entry["ts"]), entry


@dataclass(frozen=True)
class Staged:
    """What stands beside the live data, complete."""

    shapes: dict[str, Shape]
    views: dict[str, Document]
    reached: Stamp
    applied: int
    documents: int


def stage(live: Live, fetched: Fetched, selects: Callable[[str], bool], name: Callable[[str], str],
          say: Callable[[str], None]) -> Staged:  # fmt: skip
    """Load the dump, prove that it is there, apply the oplog, build the indexes."""
    shapes: dict[str, Shape] = {}
    total = 0
    for one in fetched.manifest["collections"]:
        namespace = one["namespace"]
        if not selects(namespace) or is_staged(namespace):
            continue
        shapes[namespace] = Shape(one["options"], {index["name"]: index for index in one["indexes"]})
        live.create(name(namespace), one["options"])
        live.insert(name(namespace), raw.read(fetched.full / file_of(namespace)))
        found = mongo.digest_of(live.client, name(namespace))
        if (found.count, str(found)) != (one["count"], one["digest"]):
            raise RestoreError(
                f"{namespace}: loaded {found.count} documents; wanted {one['count']} of the same content"
            )
        total += found.count
    say(f"{len(shapes)} collections with {total} documents are loaded, and are as they were at the dump")
    replay = Replay(live, shapes, selects, name)
    plan = fetched.plan
    reached = replay.run(entries(fetched.chunks), plan.full.until, plan.target)
    until = "the end" if plan.target is None else wall(plan.target)
    say(f"{replay.applied} operations of the oplog are applied, up to {until}")
    for namespace, shape in shapes.items():
        live.index(name(namespace), shape.indexes.values())
    views = {one["namespace"]: one["options"] for one in fetched.manifest["views"] if selects(one["namespace"])}
    return Staged(shapes, views, reached, replay.applied, total)


def require(namespace: str, shapes: Mapping[str, Shape]) -> None:
    """Refuse to replace a collection by nothing."""
    if namespace and namespace not in shapes:
        raise RestoreError(f"{namespace} was not there at that time")


def swap(live: Live, found: Staged, selects: Callable[[str], bool], keep: Iterable[str],
         say: Callable[[str], None]) -> list[str]:  # fmt: skip
    """Put what was staged in its place. Returns what is gone because the restored state does not have it."""
    there = [namespace for namespace in live.namespaces() if selects(namespace) and not is_staged(namespace)]
    for namespace in sorted(found.shapes):
        live.rename(staged(namespace), namespace)
    gone = [namespace for namespace in there if namespace not in found.shapes and namespace not in keep]
    for namespace in gone:
        live.drop(namespace)
    for namespace, options in found.views.items():
        live.create(namespace, options)
    say(f"{len(found.shapes)} collections took their place, {len(gone)} others are gone")
    return gone


def disarm(live: Live, leases: str, locks: str, shapes: Mapping[str, Shape], why: str) -> int:
    """Nobody trades on a restored state before a person has compared it with the broker: the leases come back revoked,
    and with epochs that no holder can have had. The lock of a run that is over is free. Returns how many leases."""
    if locks in shapes:
        live.collection(staged(locks)).delete_many({})
    if leases not in shapes:
        return 0
    now = {str(one["_id"]): int(one["epoch"]) for one in live.collection(leases).find({}, {"epoch": 1})}
    collection = live.collection(staged(leases))
    names = [str(one["_id"]) for one in collection.find({}, {"_id": 1})]
    for lease in names:
        mark = {"by": {"$literal": "pst-backup restore"}, "reason": {"$literal": why}, "at": "$$NOW"}
        epoch = {"$add": [{"$max": ["$epoch", now.get(lease, 0)]}, EPOCH_STEP]}
        collection.update_one(
            {"_id": lease},
            [{"$set": {"holder": None, "expires_at": None, "wanted": None, "revoked": mark, "epoch": epoch}}],
        )
    return len(names)


def held(client: Any, leases: str) -> list[str]:
    """The leases that somebody holds, by the server's clock."""
    database, name = split(leases)
    server = client.admin.command("hello")["localTime"]
    return [
        f"{one['_id']} by {one['holder'].get('host')}"
        for one in client[database][name].find({"holder": {"$ne": None}, "revoked": None})
        if one.get("expires_at") is None or one["expires_at"] > server
    ]


def reason(error: Exception) -> str:
    return str(error) if not isinstance(error, PyMongoError) else f"MongoDB: {error}"[:600]
