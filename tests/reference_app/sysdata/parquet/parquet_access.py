"""Time series in Parquet files: <store>/<type>/<identifier>.parquet, rewritten whole.

By a rename, unlike upstream, whose files a kill can leave torn: this application has to go on after each fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from sysdata.config.production_config import get_production_config, resolve_path

INDEX = "__index_level_0__"  # what pandas calls an index without a name


class ParquetAccess:
    """The store of the configuration."""

    def __init__(self, store: str | None = None) -> None:
        self.store = resolve_path(store or get_production_config().parquet_store)

    def _path(self, data_type: str, identifier: str) -> Path:
        folder = self.store / data_type
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{identifier}.parquet"

    def identifiers(self, data_type: str) -> list[str]:
        """Return the names of the series of a type."""
        return sorted(path.stem for path in (self.store / data_type).glob("*.parquet"))

    def read(self, data_type: str, identifier: str) -> list[dict[str, Any]]:
        """Return the rows of a series; none where there is no file."""
        path = self._path(data_type, identifier)
        return parquet.ParquetFile(path).read().to_pylist() if path.is_file() else []

    def append(self, data_type: str, identifier: str, row: Mapping[str, Any]) -> None:
        """Add a row with the present time."""
        rows = [*self.read(data_type, identifier), {INDEX: datetime.now(), **row}]
        path = self._path(data_type, identifier)
        temporary = path.with_suffix(".new")
        table = pa.Table.from_pylist(rows)
        # For those who read with pandas: which column is the index.
        columns = [{"name": None if name == INDEX else name, "field_name": name} for name in table.column_names]
        kinds = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
        description = {
            "index_columns": [INDEX],
            "column_indexes": [],
            "columns": [{**column, **kinds} for column in columns],
        }
        table = table.replace_schema_metadata({"pandas": json.dumps(description)})
        parquet.write_table(table, temporary, coerce_timestamps="us")
        temporary.replace(path)
