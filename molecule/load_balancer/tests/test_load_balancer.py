"""What a client of the virtual address sees, in peace and while balancers and applications fail.

Bounds are twice the figures of the role's README: this machine may be busy.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from ansible_collections.pst.platform.plugins.module_utils import evidence

STATE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "state"
INVENTORY = f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/inventory"
CA = str(STATE / "pki/ca.crt")
PROBE = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "roles/evidence/files/pst_probe.py"
VIP = "10.78.16.10"
DOMAIN = "load-balancer.pst.test"
API = f"api.trading.{DOMAIN}"
BALANCERS = {"lb1": "10.78.16.11", "lb2": "10.78.16.12"}
APPS = {"app1": "10.78.16.21", "app2": "10.78.16.22"}

testinfra_hosts = ["ansible://client"]


def on(name: str) -> Host:
    return testinfra.get_host(f"ansible://{name}?ansible_inventory={INVENTORY}", sudo=True)


@pytest.fixture(scope="module")
def client() -> Host:
    return on("client")


@pytest.fixture(scope="module")
def balancers() -> dict[str, Host]:
    return {name: on(name) for name in BALANCERS}


@pytest.fixture(scope="module")
def apps() -> dict[str, Host]:
    return {name: on(name) for name in APPS}


def eventually(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Return the condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "not within the bound"
        time.sleep(0.2)
    return value


def state(host: Host) -> dict[str, Any]:
    return json.loads(host.check_output("pst-lb state"))


def holders(balancers: dict[str, Host]) -> list[str]:
    return [name for name, host in balancers.items() if state(host)["holder"]]


def settled(balancers: dict[str, Host]) -> bool:
    states = [state(host) for host in balancers.values()]
    return sorted(one["vrrp"] for one in states) == ["BACKUP", "MASTER"] and all(one["haproxy"] for one in states)


@pytest.fixture
def holder(balancers: dict[str, Host]) -> Iterator[Host]:
    """The balancer that has the address, with the other one ready; both are ready again afterwards."""
    eventually(lambda: settled(balancers))
    yield balancers[holders(balancers)[0]]
    eventually(lambda: settled(balancers), 40)


def ask(host: Host, request: str) -> str:
    """Ask HAProxy's admin socket."""
    code = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); "
        "s.sendall(sys.argv[1].encode()+b'\\n'); print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    return host.check_output("python3 -c %s %s", code, request)


@contextmanager
def probing(client: Host, name: str, *options: str) -> Iterator[dict[str, Any]]:
    """Run a probe around the body; its account is in the dictionary afterwards."""
    account: dict[str, Any] = {}
    command = (
        f"systemd-run --unit=probe-{name} --collect --wait --quiet /usr/local/bin/probe https://{API}/ --connect={VIP} "
        f"--ca=/etc/pst/pki/ca.crt --post=https://{API}/orders --rate=60 --duration=60 --output=/var/tmp/{name}.json "
        f"--ledger=/var/tmp/{name}.ledger {' '.join(options)}"
    )
    thread = threading.Thread(target=client.run, args=(command,))
    thread.start()
    try:
        eventually(lambda: client.run(f"systemctl is-active probe-{name}").rc == 0)
        time.sleep(1.5)  # some requests before the fault, so that the gap is measured against them
        yield account
        time.sleep(1.5)  # and after it
    finally:
        client.run(f"systemctl stop probe-{name}")
        thread.join()
    account |= json.loads(client.file(f"/var/tmp/{name}.json").content_string)
    print(name, {key: value for key, value in account.items() if key != "failures"}, account["failures"][:5])


def longest_outage(account: dict[str, Any]) -> float:
    """Return the longest gap in seconds, less what the probe itself was held up by."""
    return max(evidence.outage(gap) for gap in account["gaps"])


Answer = tuple[int, dict[str, str], bytes]


def get(
    name: str,
    address: str,
    port: int,
    path: str,
    context: ssl.SSLContext,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    timeout: float = 10,
) -> Answer:
    """One request to an address, with TLS verified for a name."""
    connection = http.client.HTTPSConnection(name, context=context, timeout=timeout)
    plain = socket.create_connection((address, port), timeout=timeout)
    connection.sock = context.wrap_socket(plain, server_hostname=name)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def call(
    method: str = "GET",
    path: str = "/",
    *,
    name: str = API,
    headers: dict[str, str] | None = None,
    timeout: float = 10,
) -> Answer:
    """One request through the virtual address."""
    return get(name, VIP, 443, path, ssl.create_default_context(cafile=CA), method, headers, timeout)


# What side_effect.yml did, with a probe running.


@pytest.mark.parametrize("operation", ["rolling-restart", "reload"])
def test_planned_operation_fails_no_request(client: Host, operation: str) -> None:
    account = json.loads(client.file(f"/var/tmp/{operation}.json").content_string)
    print(operation, account)
    assert account["ok"] > 100
    assert account["failed"] == {}
    assert longest_outage(account) < 2


def test_lost_host_is_replaced_within_a_second(client: Host) -> None:
    account = json.loads(client.file("/var/tmp/lost-host.json").content_string)
    print(account)
    assert longest_outage(account) < 1.0
    assert sum(account["failed"].values()) < 60


# What the client is served.


@pytest.mark.parametrize("name", [f"trading.{DOMAIN}", API])
def test_both_names_are_served_with_security_headers(name: str) -> None:
    status, headers, _ = call(name=name)
    assert status == 200
    assert headers["strict-transport-security"].startswith("max-age=31536000")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert len(headers["x-request-id"]) == 36
    assert "server" not in headers


def test_other_name_is_misdirected() -> None:
    assert call(headers={"Host": "evil.example"})[0] == 421


def test_plain_http_is_redirected() -> None:
    connection = http.client.HTTPConnection(VIP, timeout=10)
    connection.request("POST", "/orders?a=1", headers={"Host": API, "Content-Length": "0"})
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Location")) == (308, f"https://{API}/orders?a=1")


def test_application_sees_the_client_not_what_it_claims() -> None:
    claims = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "http", "X-Request-Id": "mine"}
    status, headers, body = call(headers=claims)
    seen = {key.lower(): value for key, value in json.loads(body)["headers"].items()}
    assert status == 200
    assert seen["x-forwarded-for"] == "10.78.16.1"
    assert seen["x-forwarded-proto"] == "https"
    assert seen["x-request-id"] == headers["x-request-id"] != "mine"


def test_a_trace_goes_on_unchanged() -> None:
    """W3C's header, and the one of the vendors, reach the application as they were sent."""
    sent = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "vendor=1"}
    status, _, body = call(headers=sent)
    seen = {key.lower(): value for key, value in json.loads(body)["headers"].items()}
    assert status == 200
    assert sent.items() <= seen.items()


def test_old_tls_is_refused() -> None:
    context = ssl.create_default_context(cafile=CA)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((VIP, 443), timeout=10) as raw,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(raw, server_hostname=API)


def test_large_body_is_refused_before_it_is_sent() -> None:
    assert call("POST", "/orders", headers={"Content-Length": str(10 * 2**20 + 1)})[0] == 413
    assert call("POST", "/orders", headers={"Transfer-Encoding": "chunked"})[0] == 411


def test_application_refuses_a_client_without_certificate() -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        get(f"app1.{DOMAIN}", APPS["app1"], 8080, "/", ssl.create_default_context(cafile=CA))


def test_metrics_need_a_certificate_of_the_site() -> None:
    where = (f"lb1.{DOMAIN}", BALANCERS["lb1"], 8404, "/metrics")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        get(*where, ssl.create_default_context(cafile=CA))
    known = ssl.create_default_context(cafile=CA)
    known.load_cert_chain(STATE / "pki/client/node.pem")
    status, _, body = get(*where, known)
    assert status == 200
    assert b"haproxy_backend_active_servers" in body
    status, _, body = get(f"lb1.{DOMAIN}", BALANCERS["lb1"], 8404, "/live", known)
    assert (status, body) in {
        (200, f'pst_live_colour{{colour="{colour}"}} 1\n'.encode()) for colour in ("blue", "green")
    }


def test_client_over_the_limit_gets_429() -> None:
    """100 a second after a burst of 200, whatever is offered; then again served when it has calmed down."""
    # From here: the client is exempt.
    command = [sys.executable, str(PROBE), f"https://{API}/", f"--connect={VIP}", f"--ca={CA}"]
    command += ["--new-share=0", "--timeout=30"]

    def probe(rate: int, duration: int) -> dict[str, Any]:
        options = [f"--rate={rate}", f"--duration={duration}"]
        return json.loads(subprocess.run([*command, *options], capture_output=True, check=False).stdout)

    account = probe(300, 4)
    print(account)
    assert set(account["failed"]) == {"status-429"}
    assert 200 + 100 * 4 * 0.4 < account["ok"] < 200 + 100 * (4 * 1.2 + account["late_ms"] / 1000)
    eventually(lambda: probe(5, 1)["ok"] == 5)


def test_limit_is_counted_on_both_balancers(balancers: dict[str, Host]) -> None:
    for host in balancers.values():
        assert "last_status=ESTA" in ask(host, "show peers")


@pytest.mark.parametrize(("unit", "exposure"), [("haproxy", 1.5), ("keepalived", 2.5)])
def test_units_are_confined(balancers: dict[str, Host], unit: str, exposure: float) -> None:
    for host in balancers.values():
        assert host.run(f"systemd-analyze security --threshold={int(10 * exposure)} {unit}.service").rc == 0
    assert host.check_output("ps -o user= -C haproxy | sort -u") == "haproxy"


# What happens when something changes or breaks.


def test_colour_and_drained_server_survive_a_reload(balancers: dict[str, Host], client: Host, holder: Host) -> None:
    active = "/etc/haproxy/maps/active.map active"
    try:
        with probing(client, "switch") as account:
            for colour in ("green", "blue", "green"):
                for host in balancers.values():
                    ask(host, f"set map {active} be_{colour}")
            ask(holder, "set server be_green/app1 state drain")
            holder.check_output("systemctl reload haproxy")
        assert account["failed"] == {}
        seen = {(answer["slot"], answer["host"]) for answer in (json.loads(call()[2]) for _ in range(6))}
        assert seen == {("green", "app2")}
    finally:
        ask(holder, "set server be_green/app1 state ready")
        for host in balancers.values():
            ask(host, f"set map {active} be_blue")


def test_draining_application_keeps_its_requests(apps: dict[str, Host]) -> None:
    """404 from the health check: what it has is finished, nothing new comes."""
    slow: list[tuple[int, str]] = []

    def wait_for_answer() -> None:
        status, _, body = call(path="/slow/6")
        slow.append((status, json.loads(body)["host"]))

    threads = [threading.Thread(target=wait_for_answer) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        apps["app1"].check_output("echo 404 >/run/stand-in/blue.ready")
        eventually(lambda: {json.loads(call()[2])["host"] for _ in range(6)} == {"app2"})
    finally:
        for thread in threads:
            thread.join()
        apps["app1"].check_output("rm -f /run/stand-in/blue.ready")
    assert sorted(slow) == [(200, "app1"), (200, "app2")]
    eventually(lambda: {json.loads(call()[2])["host"] for _ in range(6)} == {"app1", "app2"})


def test_order_is_carried_out_once_when_an_application_dies(client: Host, apps: dict[str, Host]) -> None:
    with probing(client, "appkill", "--post-share=0.5") as account:
        apps["app1"].check_output("systemctl kill -s KILL stand-in@blue")
    apps["app1"].check_output("systemctl start stand-in@blue")
    orders = [key for host in apps.values() for key in host.check_output("cat /var/lib/stand-in/orders").split()]
    ledger = [json.loads(line) for line in client.check_output("cat /var/tmp/appkill.ledger").splitlines()]
    acknowledged = {line["key"] for line in ledger if line["method"] == "POST" and line["kind"] == "ok"}
    assert len(orders) == len(set(orders))
    assert acknowledged <= set(orders)
    assert longest_outage(account) < 1
    assert sum(account["failed"].values()) <= 5
    eventually(lambda: {json.loads(call()[2])["host"] for _ in range(6)} == {"app1", "app2"})


def test_broken_application_is_taken_out(apps: dict[str, Host], holder: Host) -> None:
    """Ten errors in a row open the circuit although the health check is green; it closes again by itself."""
    ask(holder, "set server be_blue/app2 state maint")
    try:
        statuses: list[int] = []
        while 503 not in statuses and len(statuses) < 60:
            statuses.append(call(path="/error")[0])
        assert statuses[:10] == [500] * 10
        assert statuses[-1] == 503
    finally:
        ask(holder, "set server be_blue/app2 state ready")
    eventually(lambda: {json.loads(call()[2])["host"] for _ in range(6)} == {"app1", "app2"})


@pytest.mark.parametrize(
    ("name", "kill"),
    [
        ("haproxy-master", "kill -9 $(systemctl show -P MainPID haproxy)"),
        ("haproxy-worker", "kill -9 $(pgrep -P $(systemctl show -P MainPID haproxy))"),
        ("keepalived", "kill -9 $(systemctl show -P MainPID keepalived)"),
    ],
)
def test_killed_daemon_costs_less_than_a_second(
    client: Host, balancers: dict[str, Host], holder: Host, name: str, kill: str
) -> None:
    with probing(client, f"kill-{name}") as account:
        holder.check_output(kill)
    assert longest_outage(account) < 1
    assert sum(account["failed"].values()) < 60
    assert len(eventually(lambda: holders(balancers))) == 1


def test_stopped_haproxy_hands_over_without_a_failed_request(client: Host, holder: Host) -> None:
    """An upgrade of the package or a reboot does this, without Ansible."""
    with probing(client, "stop") as account:
        holder.check_output("systemctl stop haproxy")
    holder.check_output("systemctl start haproxy")
    assert account["failed"] == {}


def forwarded(host: Host) -> int:
    """Packets that were sent on to the other balancer since keepalived started."""
    shown = json.loads(host.check_output("nft -j list counter ip pst_second_chance forwarded"))
    return next(item["counter"]["packets"] for item in shown["nftables"] if "counter" in item)


def draining(host: Host) -> list[int]:
    """For how many seconds more the other balancer is believed to have connections still; empty where it is not."""
    shown = json.loads(host.check_output("nft -j list set ip pst_second_chance draining"))
    elements = [one["elem"] for item in shown["nftables"] if "set" in item for one in item["set"].get("elem", [])]
    return [element.get("expires", 0) for element in elements]


def reached(host: Host) -> bool:
    """Tell whether a host that has lost its power is back."""
    try:
        return state(host)["vrrp"] == "BACKUP"
    except (RuntimeError, AssertionError, json.JSONDecodeError):
        return False


class Slow:
    """A request that takes so long."""

    def __init__(self, seconds: float) -> None:
        self.answer: list[Answer | Exception] = []
        self.seconds = seconds
        self.thread = threading.Thread(target=self.ask)

    def ask(self) -> None:
        try:
            self.answer.append(call(path=f"/slow/{self.seconds:g}", timeout=self.seconds + 10))
        except OSError as error:
            self.answer.append(error)

    def outcome(self) -> list[int | Exception]:
        """The status of the answer, or what became of the request instead."""
        return [answer[0] if isinstance(answer, tuple) else answer for answer in self.answer]

    def __enter__(self) -> Slow:
        self.thread.start()
        time.sleep(1)  # it is with the application
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join()


@pytest.mark.parametrize("number", [1, 2])
def test_planned_move_breaks_nothing(client: Host, balancers: dict[str, Host], holder: Host, number: int) -> None:
    """Twice: there and back. A request that is older than the move is answered after it, by way of the new holder."""
    other = next(host for name, host in balancers.items() if name not in holders(balancers))
    assert all(state(host)["second_chance"] for host in balancers.values())
    before = forwarded(other)
    with probing(client, f"move-{number}", "--new-share=0.3") as account, Slow(14) as slow:
        moved = json.loads(holder.check_output("pst-lb release maintenance"))
    holder.check_output("pst-lb restore maintenance")
    print(moved)
    assert slow.outcome() == [200]
    assert account["failed"] == {}
    assert moved["moved"]
    assert moved["open"] >= 1
    assert moved["broken"] == 0
    assert moved["finish_seconds"] > 1, "the slow request has to have been open after the move"
    assert forwarded(other) > before, "or nothing was tested"
    assert not draining(other)
    # The gaps about the move, of the longest ones, less what the client itself was held up by: other tests run beside.
    moment = moved["moved_at"] - account["started"]
    about = [gap for gap in account["gaps"] if gap["at"] < moment + 0.5 and gap["at"] + gap["seconds"] > moment]
    print("gaps at the move:", about)
    assert max((gap["seconds"] - gap["own"] for gap in about), default=0) < 0.3


PAUSE = """
import os, signal, sys, time
began = time.monotonic()
for process in sys.argv[2:]:
    os.kill(int(process), signal.SIGSTOP)
time.sleep(float(sys.argv[1]))
for process in sys.argv[2:]:
    os.kill(int(process), signal.SIGCONT)
print(time.monotonic() - began)
"""


@pytest.mark.usefixtures("holder")
@pytest.mark.parametrize("seconds", [0.6, 0.8])
def test_late_adverts_break_nothing(client: Host, balancers: dict[str, Host], seconds: float) -> None:
    """A starved host: its keepalived does not run for a moment, its kernel and HAProxy do.

    The other one takes the address after 0.3 s, and one of the two gives it up when both run again. Requests that began
    before, between and after are answered.
    """
    for _ in range(5):
        eventually(lambda: settled(balancers), 40)
        holding = holders(balancers)[0]
        other = next(host for name, host in balancers.items() if name != holding)
        before = forwarded(other)
        processes = balancers[holding].check_output("pgrep -x keepalived").split()
        with probing(client, f"late-{seconds}", "--new-share=0.3") as account, Slow(6) as slow:
            paused = float(
                balancers[holding].check_output("python3 -c %s %s " + " ".join(processes), PAUSE, str(seconds))
            )
        sent_on = forwarded(other) - before
        print(f"paused for {paused:.2f} s, sent on: {sent_on}")
        # A stall stretches the pause; a second after the last advert, which is up to 0.1 s older, nothing is sent on.
        if paused < 0.9 and sent_on > 0:
            break
    else:
        pytest.fail("the other one has to have taken the address within the second, or nothing was tested")
    assert slow.outcome() == [200]
    assert account["failed"] == {}
    assert len(eventually(lambda: holders(balancers))) == 1


def test_request_begun_on_the_other_one_is_answered(balancers: dict[str, Host], holder: Host) -> None:
    """It began where the address was for a moment; the holder, which has the address again, knows nothing of it."""
    other = next(host for name, host in balancers.items() if name not in holders(balancers))
    processes = " ".join(holder.check_output("pgrep -x keepalived").split())
    holder.check_output(f"kill -STOP {processes}")
    try:
        eventually(lambda: state(other)["holder"])
        with Slow(6) as slow:
            holder.check_output(f"kill -CONT {processes}")
            eventually(lambda: not state(other)["holder"])
    finally:
        holder.check_output(f"kill -CONT {processes}")
    assert slow.outcome() == [200]
    assert forwarded(holder) > 0, "or nothing was tested"


def test_dead_balancer_gets_no_packets_for_long(balancers: dict[str, Host], holder: Host) -> None:
    """It dies while it has connections that are carried on; the other one must not believe in it any more after 3 s."""
    name = holders(balancers)[0]
    other = next(host for one, host in balancers.items() if one != name)
    with Slow(25) as slow:
        holder.run("systemd-run --collect --unit=release pst-lb release maintenance")
        eventually(lambda: state(other)["holder"] and draining(other))
        subprocess.run(["docker", "kill", f"pst-load-balancer-{name}"], check=True, capture_output=True)
        try:
            left: list[int] = []
            while (more := draining(other)) and len(left) < 100:
                left += more
        finally:
            subprocess.run(["docker", "start", f"pst-load-balancer-{name}"], check=True, capture_output=True)
    print("believed in for so many seconds more:", left)
    assert not more
    # By the kernel's clock, not by when it was asked: at most 3 s since the death, and not once renewed.
    assert left == sorted(left, reverse=True)
    assert max(left, default=0) <= 3
    assert isinstance(slow.answer[0], OSError)
    assert call()[0] == 200
    eventually(lambda: reached(holder), 60)  # what it was forbidden, it has forgotten with its power


def test_hung_haproxy_loses_the_address(client: Host, balancers: dict[str, Host], holder: Host) -> None:
    with probing(client, "hang") as account:
        holder.check_output("pkill -STOP -x haproxy")
        eventually(lambda: len(holders(balancers)) == 1 and not state(holder)["holder"])
    holder.check_output("pkill -CONT -x haproxy")
    assert longest_outage(account) < 12
