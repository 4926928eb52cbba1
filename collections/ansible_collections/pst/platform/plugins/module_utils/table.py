# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rows of text in aligned columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def render(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line of headings and one per row."""
    cells = [[one_line(row.get(column, "")) for column in columns] for row in rows]
    headings = [column.replace("_", " ").upper() for column in columns]
    widths = [max(len(line[index]) for line in (headings, *cells)) for index in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (headings, *cells)
    ]


def joined(columns: Sequence[str], key: str, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ by `key` only are one, with all its values; what is not well stays a row of its own."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, row in enumerate(rows):
        alike = (*(one_line(row.get(column)) for column in columns if column != key), row.get("ok"))
        identity = (number,) if row.get("ok") is False else alike
        if identity in found:
            found[identity][key] = f"{found[identity][key]} {row.get(key)}"
        else:
            found[identity] = dict(row)
    return list(found.values())


def one_line(value: Any) -> str:
    text = str("" if value is None else value)
    return text if text.isprintable() else " ".join(text.split())  # a line that is one keeps its spaces
