"""Print the positions in pysystemtrade's Parquet files as JSON. Run by the slot's Python, which has PyYAML and pyarrow.

    python -I positions_reader.py <folder with private_config.yaml>

Each file is a history; its last row is the position. pysystemtrade does not replace its files atomically: one that is
caught half written is told as such, beside the others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KINDS = ("strategy_positions", "contract_positions")


def store(folder: Path) -> Path:
    import yaml  # noqa: PLC0415 - the agent itself has none, and imports this module in no way

    path = folder / "private_config.yaml"
    settings = yaml.safe_load(path.read_text()) or {}
    found = settings.get("parquet_store")
    if not isinstance(found, str) or not found.startswith("/"):
        raise SystemExit(f"{path}: parquet_store is {found!r}, wanted: an absolute path")
    return Path(found)


def last_row(path: Path) -> dict[str, Any]:
    """The last row of a history, by column; `at` is its index. Only the last group of rows is read."""
    import pyarrow.parquet as parquet  # noqa: PLC0415

    with parquet.ParquetFile(path) as file:
        if not file.metadata.num_rows:
            return {"position": None, "at": None}
        table = file.read_row_group(file.num_row_groups - 1)
        described = file.schema_arrow.pandas_metadata or {}
    row = table.slice(table.num_rows - 1).to_pylist()[0]
    index = [name for name in described.get("index_columns", []) if isinstance(name, str)]
    at: Any = row.pop(index[0], None) if index else None
    values = list(row.values())
    return {
        "position": values[0] if len(values) == 1 else row,
        "at": at.isoformat() if hasattr(at, "isoformat") else at,
    }


def positions(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.rglob("*.parquet")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            found.append({"name": name, **last_row(path)})
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one file is told, the others are read
            found.append({"name": name, "error": f"{type(error).__name__}: {error}"[:200]})
    return found


def main() -> int:
    root = store(Path(sys.argv[1]))
    json.dump({kind: positions(root / kind) for kind in KINDS}, sys.stdout, default=str)
    return 0


if __name__ == "__main__":
    sys.exit(main())
