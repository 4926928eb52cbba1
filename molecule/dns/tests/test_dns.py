"""What clients got while servers died, came back, and were frozen; and what a server gives to whom."""

import re
from collections.abc import Iterator

import pytest
from testinfra.host import Host

ZONE = "trading.dns.pst.test"
ONE, TWO = "10.78.25.201", "10.78.25.202"
NS1, NS2 = "10.78.25.11", "10.78.25.12"
KEY = "-y hmac-sha256:pst-dns:%s"

testinfra_hosts = ["ansible://client"]


@pytest.fixture(autouse=True)
def become(host: Host) -> Iterator[None]:
    with host.sudo():
        yield


def name_server(host: Host, name: str) -> Host:
    """A name server, where the tests ask from the client."""
    return host.get_host(f"ansible://{name}?sudo=true", ansible_inventory=host.backend.ansible_inventory)


def answers(host: Host, name: str) -> list[tuple[float, str]]:
    lines = host.check_output(f"cat /root/{name}.log").splitlines()
    return [(float(at), what) for at, what in map(str.split, lines)]


def moment(host: Host, name: str) -> float:
    return float(host.check_output(f"cat /root/{name}"))


def test_the_client_follows_the_names(host: Host) -> None:
    seen, moved, frozen = answers(host, "follow"), moment(host, "moved"), moment(host, "frozen")
    assert ONE in [what for at, what in seen if at < moved]
    # What its resolver keeps for 5 seconds, and the time in which one of two servers is dead.
    meanwhile = [what for at, what in seen if moved + 8 < at < frozen]
    assert TWO in meanwhile
    assert ONE not in meanwhile
    assert [what for _, what in seen if what != "none"][-1] == ONE


def test_the_one_that_came_back_never_gave_the_old_address(host: Host) -> None:
    moved, healed, frozen = (moment(host, name) for name in ("moved", "healed", "frozen"))
    seen = answers(host, "ns1")
    assert ONE in [what for at, what in seen if at < moved]
    back = [what for at, what in seen if moved < at < healed]
    assert set(back) == {"none"}
    assert len(back) > 15
    let_in = [what for at, what in seen if healed < at < frozen]
    assert set(let_in) <= {"none", TWO}
    assert TWO in let_in


def test_the_one_that_was_left_answered_alone_after_its_restart(host: Host) -> None:
    moved, healed = moment(host, "moved"), moment(host, "healed")
    seen = [what for at, what in answers(host, "ns2") if moved < at < healed]
    assert set(seen) <= {"none", TWO}
    assert TWO in seen[-10:]


def test_the_one_that_was_frozen_asks_before_it_answers(host: Host) -> None:
    woken = moment(host, "woken")
    # It wakes up with questions in its hands; then it looks, at the latest after a second and what a busy machine adds.
    later = [what for at, what in answers(host, "ns2") if at > woken + 6]
    assert set(later) <= {"none", ONE}
    assert ONE in later[-10:]


def test_names_are_not_given_for_more_than_a_few_seconds(host: Host) -> None:
    answer = host.check_output(f"kdig @{NS1} +noall +answer api.{ZONE} A")
    assert int(answer.split()[1]) == 5


def test_no_transfer_without_the_key(host: Host) -> None:
    for server in (NS1, NS2):
        refused = host.run(f"kdig @{server} {ZONE} AXFR")
        assert ONE not in refused.stdout
        assert "NOTAUTH" in refused.stdout + refused.stderr


def test_no_update_without_the_key(host: Host) -> None:
    for key in ("", f"key hmac-sha256:pst-dns {'A' * 43}=\n"):
        commands = f"server {NS1}\nzone {ZONE}.\n{key}del {ZONE}. A\nadd {ZONE}. 5 A 192.0.2.66\nsend\n"
        host.run(f"printf %s '{commands}' | knsupdate")
    assert host.check_output(f"kdig @{NS1} +short {ZONE} A") == ONE


def test_no_recursion(host: Host) -> None:
    answer = host.run(f"kdig @{NS1} +recurse example.net A").stdout
    assert "status: REFUSED" in answer
    assert not re.search(r"Flags:.*\bra\b", answer)


def test_the_server_does_not_say_what_it_is(host: Host) -> None:
    assert "Knot" not in host.run(f"kdig @{NS1} CH TXT version.bind").stdout
    assert "ns1" not in host.run(f"kdig @{NS1} CH TXT id.server").stdout


def test_a_flood_by_udp_is_cut_short(host: Host) -> None:
    program = (
        "import socket,sys\n"
        "q=bytes.fromhex('123401000001000000000000')+b''.join(bytes([len(p)])+p.encode() for p in "
        f"'{ZONE}'.split('.'))+bytes.fromhex('0000010001')\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(3)\n"
        f"for _ in range(2000): s.sendto(q,('{NS2}',53))\n"
        "full=cut=0\n"
        "try:\n"
        "  while 1:\n"
        "    a=s.recv(4096); tc=a[2]&2; full+=not tc; cut+=bool(tc)\n"
        "except TimeoutError: print(full, cut)\n"
    )
    full, cut = map(int, host.check_output("python3 -c %s", program).split())
    assert full < 1000
    assert cut > 0


@pytest.mark.parametrize("name", ["ns1", "ns2"])
def test_the_key_is_nobodys_but_the_servers(host: Host, name: str) -> None:
    own = name_server(host, name)
    for path in ("/etc/knot/pst.conf", "/etc/pst/dns/key"):
        file = own.file(path)
        assert (file.user, file.group, file.mode) == ("root", "knot", 0o640)
    secret = own.check_output("cat /etc/pst/dns/key").strip()
    assert secret not in own.check_output("ps axww -o args")
    assert secret not in own.check_output("journalctl --no-pager -u knot -u pst-dns")


@pytest.mark.parametrize("name", ["ns1", "ns2"])
def test_exposure(host: Host, name: str) -> None:
    for unit, most in (("knot.service", 20), ("pst-dns.service", 20)):
        result = name_server(host, name).run(f"systemd-analyze security --threshold={most} --no-pager {unit}")
        assert result.rc == 0, result.stdout[-200:]


def test_a_killed_server_is_back_at_once(host: Host) -> None:
    own = name_server(host, "ns1")
    own.check_output("systemctl kill -s KILL knot.service")
    own.check_output(
        f"for i in $(seq 100); do kdig @127.0.0.1 +short {ZONE} A 2>/dev/null | grep -qx {ONE} && exit 0;"
        " sleep 0.1; done; exit 1"
    )
