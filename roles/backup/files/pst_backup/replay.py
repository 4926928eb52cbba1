"""The oplog, applied to staged collections. What an entry means is decided here; `Target` does it.

Documents go through as bytes (`RawBSONDocument`), so nothing is changed by decoding and encoding. Indexes are only
noted, and built once at the end: an index that expires documents, or one that is unique, would act on a state that
never was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pst_backup.catalog import Stamp
from pst_backup.mongo import INTERNAL, split

Document = Mapping[str, Any]
CRUD = ("i", "u", "d")
IGNORED_COMMANDS = ("startIndexBuild", "abortIndexBuild")
BATCH_BYTES = 8 * 1024 * 1024  # one command of the driver holds 16 MB
# In the oplog as the operation of the set, and no option of the command that makes a collection.
NOT_OPTIONS = ("create", "idIndex")


class ReplayError(Exception):
    """An entry that cannot be applied, with its time and what to do."""


@dataclass
class Shape:
    """What makes a collection, apart from its documents."""

    options: dict[str, Any] = field(default_factory=dict)
    indexes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Target(Protocol):
    """Where operations are applied: a MongoDB whose collections carry other names."""

    def apply(self, operations: list[dict[str, Any]]) -> None: ...

    def create(self, namespace: str, options: Mapping[str, Any]) -> None: ...

    def drop(self, namespace: str) -> None: ...

    def rename(self, namespace: str, to: str) -> None: ...

    def modify(self, namespace: str, change: Mapping[str, Any]) -> None: ...


@dataclass
class Replay:
    """Applies entries in their order. `selects` says which collections are restored, `staged` names their copies."""

    target: Target
    shapes: dict[str, Shape]
    selects: Callable[[str], bool]
    staged: Callable[[str], str]
    batch: int = 1000
    applied: int = 0
    _waiting: list[dict[str, Any]] = field(default_factory=list)
    _size: int = 0
    _transactions: dict[bytes, list[Document]] = field(default_factory=dict)

    def run(self, entries: Iterable[tuple[Stamp, Document]], after: Stamp, target: int | None) -> Stamp:
        """Apply what came after `after`, up to the end of the second `target`. Returns where it ended."""
        reached = after
        for at, entry in entries:
            if at <= reached:
                continue  # parts may overlap
            if target is not None and at.seconds > target:
                break
            try:
                for operation in self._operations(entry):
                    self._take(operation)
            except ReplayError as error:
                what = f"the operation of {at.wall()} ({at}) on {entry['ns']}"
                raise ReplayError(f"{what}: {error}; restore to a second before it") from error
            reached = at
        self.flush()
        return reached

    def _operations(self, entry: Document) -> Iterator[Document]:
        """The operations of an entry: itself, or those of a transaction, which may have several entries."""
        if entry["op"] != "c" or "applyOps" not in entry["o"]:
            yield entry
            return
        key = (
            bytes(entry["lsid"].raw) + str(entry["txnNumber"]).encode()
            if "lsid" in entry and "txnNumber" in entry
            else b""
        )
        inner = entry["o"]
        earlier = self._transactions.pop(key, [])
        if inner.get("prepare"):
            raise ReplayError("a prepared transaction (of a sharded cluster) cannot be applied")
        if inner.get("partialTxn"):
            self._transactions[key] = [*earlier, *inner["applyOps"]]
            return
        for operation in (*earlier, *inner["applyOps"]):
            yield from self._operations(operation)

    def _take(self, entry: Document) -> None:
        kind, namespace = entry["op"], entry["ns"]
        if kind == "n":
            return
        if kind not in CRUD and kind != "c":
            raise ReplayError(f"is of the unknown kind {kind!r}")
        if kind == "c":
            self._command(namespace, entry["o"])
        elif self._wants(namespace):
            found = {"op": kind, "ns": self.staged(namespace), "o": entry["o"]}
            if kind == "u":
                found["o2"] = entry["o2"]
            size = len(entry["o"].raw)
            if len(self._waiting) >= self.batch or self._size + size > BATCH_BYTES:
                self.flush()
            self._waiting.append(found)
            self._size += size

    def _wants(self, namespace: str) -> bool:
        database, name = split(namespace)
        if database in INTERNAL or name == "system.profile" or not self.selects(namespace):
            return False
        if name.startswith("system."):
            raise ReplayError("changes a view, or a collection of the server's, which cannot be replayed")
        return True

    def flush(self) -> None:
        if self._waiting:
            self.target.apply(self._waiting)
            self.applied += len(self._waiting)
            self._waiting, self._size = [], 0

    def _command(self, namespace: str, what: Document) -> None:
        database = split(namespace)[0]
        if database in INTERNAL:
            return
        name = next(iter(what))
        if name in IGNORED_COMMANDS or name == "dropDatabase":
            return  # each of its collections was dropped by an entry of its own
        if name == "renameCollection":
            self._rename(what)
            return
        collection = f"{database}.{what[name]}"
        if not self._wants(collection):
            return
        self.flush()
        self.applied += 1
        self._change(name, collection, what)

    def _change(self, name: str, collection: str, what: Document) -> None:
        shape = self.shapes.get(collection)
        if name == "create":
            options = {key: value for key, value in what.items() if key not in NOT_OPTIONS}
            if "viewOn" in options:
                raise ReplayError("makes a view, which cannot be replayed")
            self.shapes[collection] = Shape(options)
            self.target.create(self.staged(collection), options)
            return
        if shape is None:
            raise ReplayError(f"{name} on a collection that is not in the backup")
        if name == "drop":
            del self.shapes[collection]
            self.target.drop(self.staged(collection))
        elif name == "createIndexes":
            index = {key: value for key, value in what.items() if key != "createIndexes"}
            shape.indexes[index["name"]] = index
        elif name == "commitIndexBuild":
            shape.indexes.update({index["name"]: dict(index) for index in what["indexes"]})
        elif name in ("dropIndexes", "deleteIndexes"):
            shape.indexes.pop(what["index"], None)
        elif name == "collMod":
            self._modify(collection, shape, what)
        else:
            raise ReplayError(f"{name} cannot be replayed")

    def _modify(self, collection: str, shape: Shape, what: Document) -> None:
        change = {key: value for key, value in what.items() if key not in ("collMod", "index")}
        index = what.get("index")
        if index:
            wanted = {key: value for key, value in index.items() if key not in ("name", "keyPattern")}
            shape.indexes[index["name"]].update(wanted)
        if change:
            shape.options.update(change)
            self.target.modify(self.staged(collection), change)

    def _rename(self, what: Document) -> None:
        before, after = str(what["renameCollection"]), str(what["to"])
        if not (self._wants(before) or self._wants(after)):
            return
        if not (self.selects(before) and self.selects(after)):
            raise ReplayError(f"{before} was renamed to {after}, so one collection alone cannot be restored across it")
        self.flush()
        self.applied += 1
        if before not in self.shapes:
            raise ReplayError(f"renames {before}, which is not in the backup")
        self.target.rename(self.staged(before), self.staged(after))
        self.shapes[after] = self.shapes.pop(before)
