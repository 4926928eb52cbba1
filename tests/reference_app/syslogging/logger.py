"""Logging to standard error, which systemd takes to the journal."""

from __future__ import annotations

import logging


def get_logger(name: str) -> logging.Logger:
    """Return a logger; the first call configures the process."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    for noisy in ("ib_async", "pymongo"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return logging.getLogger(name)
