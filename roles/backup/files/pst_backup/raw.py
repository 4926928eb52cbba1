"""BSON as bytes: files of documents, and what their content is, whatever their order. Nothing is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SMALLEST, LARGEST = 5, 64 * 1024 * 1024


class DamagedError(Exception):
    """A file does not hold what was written to it."""


@dataclass
class Digest:
    """Of a set of documents: their count, their bytes, and the sum of their hashes, which needs no order."""

    count: int = 0
    size: int = 0
    total: int = 0

    def add(self, document: bytes) -> None:
        self.count += 1
        self.size += len(document)
        self.total = (self.total + int.from_bytes(hashlib.sha256(document).digest(), "big")) % (1 << 256)

    def __str__(self) -> str:
        return f"{self.total:064x}"


class Writer:
    """A file of documents, with its own hash."""

    def __init__(self, path: Path) -> None:
        self.digest = Digest()
        self._sha = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")

    def add(self, document: bytes) -> None:
        self._file.write(document)
        self._sha.update(document)
        self.digest.add(document)

    def close(self) -> str:
        """Close the file; returns its SHA-256."""
        self._file.close()
        return self._sha.hexdigest()


def read(path: Path) -> Iterator[bytes]:
    """Each document of a file."""
    with path.open("rb") as file:
        while head := file.read(4):
            length = int.from_bytes(head, "little")
            if len(head) < 4 or not SMALLEST <= length <= LARGEST:
                raise DamagedError(f"{path.name}: no document at byte {file.tell() - len(head)}")
            body = file.read(length - 4)
            if len(body) != length - 4 or body[-1] != 0:
                raise DamagedError(f"{path.name}: a document is cut short at byte {file.tell()}")
            yield head + body


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
