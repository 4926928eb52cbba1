"""Filters of the certificates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils import pki


def certificate_days_left(listing: str) -> dict[str, float]:
    """Days left by path, from the output of `grep -r . <folder> --include=*.crt`."""
    return pki.days_left(listing, datetime.now(UTC))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"certificate_days_left": certificate_days_left}
