"""Both sites after a kill, a wiped host, new certificates and a planned switch."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

STATE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "state"
SITES = {
    "site_a": {f"a{n}": f"10.78.15.1{n}" for n in (1, 2, 3)},
    "site_b": {f"b{n}": f"10.78.15.2{n}" for n in (1, 2, 3)},
}
ADDRESSES = [address for members in SITES.values() for address in members.values()]
testinfra_hosts = ["ansible://a1"]

site = pytest.mark.parametrize("site", SITES)
every_host = pytest.mark.parametrize("address", ADDRESSES)


def client(address: str, user: str = "admin", port: int = 6379) -> Redis:
    return Redis(
        host=address,
        port=port,
        username=user,
        password=f"scenario-{user}",
        ssl=True,
        ssl_ca_certs=str(STATE / "pki/ca.crt"),
        ssl_check_hostname=True,
        socket_timeout=20,
        decode_responses=True,
    )


def master_of(members: dict[str, str]) -> tuple[str, str]:
    """Name and address of the node that says it is the master; there must be one."""
    masters = [name for name, address in members.items() if client(address).info("replication")["role"] == "master"]
    assert len(masters) == 1
    return masters[0], members[masters[0]]


def ledger(name: str) -> dict[str, Any]:
    return json.loads((STATE / f"{name}.json").read_text())


@site
def test_there_is_one_master_and_all_sentinels_name_it(site: str) -> None:
    name, _ = master_of(SITES[site])
    for address in SITES[site].values():
        sentinel = client(address, "app", 26379)
        assert sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "pst")[0] == f"{name}.redis.pst.test"
        assert "OK 3 usable Sentinels" in str(sentinel.execute_command("SENTINEL", "CKQUORUM", "pst"))


@site
def test_a_write_reaches_both_replicas(site: str) -> None:
    _, address = master_of(SITES[site])
    with client(address, "app").client() as connection:
        connection.set("app:verify", site)
        assert connection.wait(2, 5000) == 2
    for address in SITES[site].values():
        assert client(address, "app").get("app:verify") == site


def test_no_acknowledged_write_was_lost_when_the_master_died() -> None:
    seen = ledger("kill-site_a")
    assert seen["acked"] > 100
    assert seen["lost"] == 0
    # Held for down 2 s after its last answer, up to 1 s before its end; the rest is for a busy machine.
    assert seen["longest_gap_s"] > 1
    assert seen["longest_outage_s"] < 8


@site
def test_the_planned_switch_failed_no_write(site: str) -> None:
    seen = ledger(f"handover-{site}")
    assert seen["acked"] > 30
    assert (seen["lost"], seen["failed"]) == (0, 0)
    assert seen["retried"] > 0, "the client was not moved: it did not write while the master changed"
    assert seen["longest_outage_s"] < 10


@every_host
@pytest.mark.parametrize("port", [6379, 26379])
def test_plain_text_is_refused(address: str, port: int) -> None:
    with socket.create_connection((address, port), timeout=20) as plain:
        plain.sendall(b"PING\r\n")
        try:
            answer = plain.recv(100)
        except ConnectionResetError:
            answer = b""
    assert b"PONG" not in answer


@every_host
@pytest.mark.parametrize("port", [6379, 26379])
def test_without_a_user_nothing_is_said(address: str, port: int) -> None:
    context = ssl.create_default_context(cafile=str(STATE / "pki/ca.crt"))
    with (
        socket.create_connection((address, port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=address) as secure,
    ):
        secure.sendall(b"INFO\r\n")
        assert secure.recv(100).startswith(b"-NOAUTH")


@every_host
@pytest.mark.parametrize("port", [6379, 26379])
def test_the_renewed_certificate_is_in_use(address: str, port: int) -> None:
    name = next(name for members in SITES.values() for name, known in members.items() if known == address)
    issued = ssl.PEM_cert_to_DER_cert(certificate((STATE / f"pki/{name}/redis.pem").read_text()))
    context = ssl.create_default_context(cafile=str(STATE / "pki/ca.crt"))
    with (
        socket.create_connection((address, port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=address) as secure,
    ):
        assert secure.getpeercert(binary_form=True) == issued


def certificate(pem: str) -> str:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return pem[pem.index(begin) : pem.index(end) + len(end)]


@site
@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("app", ["SET", "other:key", "x"]),
        ("app", ["PUBLISH", "other", "x"]),
        ("app", ["FLUSHALL"]),
        ("app", ["KEYS", "*"]),
        ("app", ["CONFIG", "GET", "masterauth"]),
        ("app", ["ACL", "LIST"]),
        ("monitor", ["GET", "app:verify"]),
        ("monitor", ["CONFIG", "SET", "maxmemory", "0"]),
        ("replica", ["GET", "app:verify"]),
        ("sentinel", ["GET", "app:verify"]),
    ],
)
def test_a_user_may_do_only_its_own(site: str, user: str, command: list[str]) -> None:
    _, address = master_of(SITES[site])
    with pytest.raises(NoPermissionError):
        client(address, user).execute_command(*command)


@site
@pytest.mark.parametrize("user", ["app", "monitor"])
def test_a_reader_of_sentinel_cannot_give_orders(site: str, user: str) -> None:
    sentinel = client(next(iter(SITES[site].values())), user, 26379)
    for order in (["FAILOVER", "pst"], ["SET", "pst", "quorum", "1"], ["RESET", "*"]):
        with pytest.raises(NoPermissionError):
            sentinel.execute_command("SENTINEL", *order)


@site
def test_a_monitor_reads_figures(site: str) -> None:
    _, address = master_of(SITES[site])
    assert client(address, "monitor").info("memory")["maxmemory"] == 64 * 1024 * 1024


def test_an_isolated_master_stops_taking_writes(host: Any) -> None:
    members = SITES["site_b"]
    name, address = master_of(members)
    replicas = [
        host.get_host(f"ansible://{other}?sudo=true", ansible_inventory=inventory())
        for other in members
        if other != name
    ]
    try:
        for replica in replicas:
            replica.check_output("systemctl kill --signal=STOP redis-server.service")
        deadline = time.monotonic() + 30
        refusal = ""
        while "NOREPLICAS" not in refusal and time.monotonic() < deadline:
            try:
                client(address, "app").set("app:isolated", "x")
            except RedisError as error:
                refusal = str(error)
            time.sleep(0.2)
        assert "NOREPLICAS" in refusal
    finally:
        for replica in replicas:
            replica.check_output("systemctl kill --signal=CONT redis-server.service")
    deadline = time.monotonic() + 60
    while not writable(members) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert writable(members)


def inventory() -> str:
    return os.environ["ANSIBLE_INVENTORY"]


def writable(members: dict[str, str]) -> bool:
    try:
        _, address = master_of(members)
        return bool(client(address, "app").set("app:isolated", "y"))
    except (RedisError, AssertionError):
        return False
