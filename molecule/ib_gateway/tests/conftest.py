"""What every test of the scenario shares."""

from collections.abc import Iterator

import pytest
from testinfra.host import Host


@pytest.fixture(autouse=True)
def become(host: Host) -> Iterator[None]:
    """Ask as root."""
    with host.sudo():
        yield
