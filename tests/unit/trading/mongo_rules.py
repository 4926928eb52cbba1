"""What MongoDB does with our filters and updates: as much of its language as they use, and no more.

Compared with a real mongod 6.0.5 by hand, on random documents: docs/trading.md says how.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from pymongo.errors import AutoReconnect, DuplicateKeyError

Document = dict[str, Any]


# --- filters, expressions and updates ---------------------------------------------------------------------------------


def matches(rule: Document, document: Document, now: float) -> bool:
    """Say whether a filter finds a document."""
    return all(_holds(key, wanted, document, now) for key, wanted in rule.items())


def _holds(key: str, wanted: Any, document: Document, now: float) -> bool:
    if key == "$and":
        return all(matches(rule, document, now) for rule in wanted)
    if key == "$or":
        return any(matches(rule, document, now) for rule in wanted)
    if key == "$expr":
        return bool(evaluate(wanted, document, now))
    assert not key.startswith("$"), key
    value = value_at(key, document)
    if isinstance(wanted, dict) and any(name.startswith("$") for name in wanted):
        return all(_compares(operator, value, operand) for operator, operand in wanted.items())
    return same(value, wanted)


def _compares(operator: str, value: Any, operand: Any) -> bool:
    if operator == "$in":
        return any(same(value, one) for one in operand)
    if operator == "$nin":
        return not any(same(value, one) for one in operand)
    if operator == "$ne":
        return not same(value, operand)
    if operator == "$lt":
        return value is not None and value < operand
    if operator == "$gte":
        return value is not None and value >= operand
    raise AssertionError(operator)


def same(value: Any, wanted: Any) -> bool:
    """Compare as MongoDB does: a boolean is no number."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def value_at(path: str, document: Document) -> Any:
    value: Any = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def evaluate(expression: Any, document: Document, now: float) -> Any:
    if expression == "$$NOW":
        return now
    if isinstance(expression, str) and expression.startswith("$"):
        return value_at(expression[1:], document)
    if isinstance(expression, list):
        return [evaluate(item, document, now) for item in expression]
    if not isinstance(expression, dict):
        return expression
    if not any(key.startswith("$") for key in expression):
        return {key: evaluate(value, document, now) for key, value in expression.items()}
    ((operator, operands),) = expression.items()
    if operator == "$literal":
        return operands
    return OPERATORS[operator](*(evaluate(operand, document, now) for operand in operands))


def add(first: Any, *more: float) -> Any:
    return first + (timedelta(milliseconds=sum(more)) if isinstance(first, datetime) else sum(more))


OPERATORS: dict[str, Callable[..., Any]] = {
    "$add": add,
    "$eq": lambda one, other: one == other,
    "$lte": lambda one, other: one is None or one <= other,  # null is less than any date
    "$cond": lambda condition, yes, no: yes if condition else no,
    "$ifNull": lambda value, instead: instead if value is None else value,
}


def updated(change: Any, document: Document, now: float, *, inserted: bool = False) -> Document:
    """Return the document after an update: a pipeline, or operators."""
    if isinstance(change, dict):
        return _operated(change, document, now, inserted)
    for stage in change:  # all expressions of a stage see the document before it
        ((name, fields),) = stage.items()
        assert name == "$set", name
        document = {**document, **{key: evaluate(value, document, now) for key, value in fields.items()}}
    return document


def _operated(change: Document, document: Document, now: float, inserted: bool) -> Document:
    document = dict(document)
    for operator, fields in change.items():
        for key, value in fields.items():
            assert "." not in key, key
            if operator == "$set" or (operator == "$setOnInsert" and inserted):
                document[key] = value
            elif operator == "$inc":
                document[key] = document.get(key, 0) + value
            elif operator == "$currentDate":
                document[key] = now
            else:
                assert operator == "$setOnInsert", operator
    return document


# --- a database -------------------------------------------------------------------------------------------------------


@dataclass
class Stored:
    """What the members of the replica set have of a collection."""

    documents: list[Document] = field(default_factory=list)
    unique: list[tuple[str, ...]] = field(default_factory=lambda: [("_id",)])


@dataclass
class Collection:
    """A collection, with the methods of pymongo that we use."""

    database: Database
    stored: Stored

    def with_options(self, **_options: Any) -> Collection:
        return self

    def _found(self, rule: Document) -> Iterator[Document]:
        self.database.reach()
        return (document for document in self.stored.documents if matches(rule, document, self.database.now()))

    def find(self, rule: Document) -> list[Document]:
        return copy.deepcopy(list(self._found(rule)))

    def find_one(self, rule: Document) -> Document | None:
        return copy.deepcopy(next(self._found(rule), None))

    def aggregate(self, stages: list[Document], **_options: Any) -> list[Document]:
        match, add, sort = stages
        assert sort == {"$sort": {"_id": 1}}
        found = [updated([add], document, self.database.now()) for document in self._found(match["$match"])]
        return sorted(copy.deepcopy(found), key=lambda document: document["_id"])

    def insert_one(self, document: Document) -> None:
        self.database.reach()
        document = copy.deepcopy(document)
        document.setdefault("_id", object())
        for keys in self.stored.unique:
            if any(all(other.get(key) == document.get(key) for key in keys) for other in self.stored.documents):
                raise DuplicateKeyError(f"{keys}")
        self.stored.documents.append(document)

    def find_one_and_update(
        self, rule: Document, change: Any, *, upsert: bool = False, return_document: bool = False, **_options: Any
    ) -> Document | None:
        assert return_document is True
        before = next(self._found(rule), None)
        if before is None:
            if not upsert:
                return None
            self.insert_one(updated(change, dict(rule), self.database.now(), inserted=True))
            return copy.deepcopy(self.stored.documents[-1])
        after = updated(copy.deepcopy(change), before, self.database.now())
        self.stored.documents[self.stored.documents.index(before)] = after
        return copy.deepcopy(after)

    def update_one(self, rule: Document, change: Any, *, upsert: bool = False) -> Any:
        there = next(self._found(rule), None) is not None
        self.find_one_and_update(rule, change, upsert=upsert, return_document=True)
        return SimpleNamespace(matched_count=int(there))

    def delete_one(self, rule: Document) -> Any:
        return self._delete(list(self._found(rule))[:1])

    def delete_many(self, rule: Document) -> Any:
        return self._delete(list(self._found(rule)))

    def _delete(self, doomed: list[Document]) -> Any:
        self.stored.documents = [document for document in self.stored.documents if document not in doomed]
        return SimpleNamespace(deleted_count=len(doomed))

    def create_index(self, keys: list[tuple[str, int]], *, unique: bool) -> str:
        assert unique
        names = tuple(name for name, _ in keys)
        if names not in self.stored.unique:
            self.stored.unique.append(names)
        return self._index_name(names)

    def index_information(self) -> Document:
        return {self._index_name(names): {} for names in self.stored.unique}

    @staticmethod
    def _index_name(names: tuple[str, ...]) -> str:
        return "_id_" if names == ("_id",) else "_".join(f"{name}_1" for name in names)


@dataclass
class Database:
    """A database, as one host reaches it; hosts share what is stored."""

    stored: dict[str, Stored] = field(default_factory=dict)
    now: Callable[[], Any] = lambda: 0.0  # a date, or a number of ms in its place
    reachable: Callable[[], bool] = lambda: True

    def with_options(self, **_options: Any) -> Database:
        return self

    def __getitem__(self, name: str) -> Collection:
        return Collection(self, self.stored.setdefault(name, Stored()))

    def reach(self) -> None:
        if not self.reachable():
            raise AutoReconnect("no primary")
