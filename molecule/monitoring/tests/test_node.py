"""What a scraped host shows, and to whom."""

import re
from collections.abc import Callable

from testinfra.backend.base import CommandResult
from testinfra.host import Host

URL = "https://10.78.19.11:9090"
PKI = "/etc/pst/pki"

Fetch = Callable[[str, str | None], CommandResult]

testinfra_hosts = ["ansible://node12"]


def test_no_answer_without_a_certificate(fetch: Fetch) -> None:
    for url in (f"{URL}/-/healthy", "https://10.78.19.13:9100/metrics"):
        refused = fetch(url, None)
        assert refused.rc != 0
        assert re.search("certificate.required|bad.certificate", refused.stderr, re.IGNORECASE), refused.stderr


def test_answer_with_a_certificate_of_the_site(fetch: Fetch) -> None:
    assert "node_load1" in fetch("https://10.78.19.13:9100/metrics", "node").stdout


def test_new_certificate_is_served_without_a_restart(host: Host) -> None:
    show = "openssl s_client -connect 10.78.19.12:9100 </dev/null 2>/dev/null | openssl x509 -noout -subject"
    pid = host.check_output("systemctl show -P MainPID prometheus-node-exporter.service")
    folder = f"{PKI}/node"
    assert "CN = node12" in host.check_output(show).replace("CN=", "CN = ")
    host.check_output(f"cp -a {folder} /root/node.kept")
    try:
        host.check_output(
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=renewed "
            f"-keyout {folder}/node.key -out {folder}/node.crt 2>/dev/null"
        )
        assert "renewed" in host.check_output(show)
    finally:
        host.check_output(f"rm -r {folder} && mv /root/node.kept {folder}")
    assert "node12" in host.check_output(show)
    assert host.check_output("systemctl show -P MainPID prometheus-node-exporter.service") == pid
