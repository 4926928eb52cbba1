"""What every test of the scenario shares."""

from collections.abc import Callable, Iterator

import pytest
from testinfra.backend.base import CommandResult
from testinfra.host import Host

PKI = "/etc/pst/pki"


@pytest.fixture(autouse=True)
def become(host: Host) -> Iterator[None]:
    """Ask as root."""
    with host.sudo():
        yield


@pytest.fixture
def fetch(host: Host) -> Callable[[str, str | None], CommandResult]:
    """Ask an address from the host, with one of its certificates or none; by Python, as bare hosts have no curl."""

    def ask(url: str, certificate: str | None) -> CommandResult:
        load = f"c.load_cert_chain('{PKI}/{certificate}/{certificate}.pem');" if certificate else ""
        program = (
            f"import ssl,urllib.request as u;c=ssl.create_default_context(cafile='{PKI}/ca.crt');{load}"
            f"print(u.urlopen('{url}',timeout=30,context=c).read().decode())"
        )
        return host.run("python3 -c %s", program)

    return ask
