"""What every unit test shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[2]

settings.register_profile("repository", deadline=None, print_blob=True)  # the machine may be busy
settings.load_profile("repository")


def pytest_configure(config: pytest.Config) -> None:
    """Take every warning of our code for an error."""
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository's root."""
    return ROOT
