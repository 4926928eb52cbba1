"""What the log server has after it was away, who may send to it, and that it keeps no secret."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://mon"]
CLIENTS = ("node12", "node13")
client = pytest.mark.parametrize("client", CLIENTS)


@pytest.fixture(autouse=True)
def become(host: Host) -> Iterator[None]:
    with host.sudo():
        yield


def search(host: Host, *arguments: str) -> list[dict[str, Any]]:
    result = host.run("pst-logs --json --since 2h --limit 0 " + shlex.join(arguments))
    assert result.rc in (0, 1), result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def eventually(host: Host, *arguments: str, wanted: int = 1, within: float = 30) -> list[dict[str, Any]]:
    deadline = time.monotonic() + within
    while len(found := search(host, *arguments)) < wanted and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


def say(host: Host, client: str, text: str, *options: str) -> None:
    other = host.get_host(f"ansible://{client}", ansible_inventory=host.backend.ansible_inventory)
    other.check_output(f"printf '%s\\n' {shlex.quote(text)} | logger {shlex.join(options)}")


def numbers(records: list[dict[str, Any]]) -> Counter[int]:
    return Counter(int(re.search(r"n=(\d+)", record["message"])[1]) for record in records)


@client
@pytest.mark.parametrize(("process", "count"), [("outage", 2500), ("stream", 300)])
def test_no_line_of_the_outage_is_lost_or_shown_twice(host: Host, client: str, process: str, count: int) -> None:
    found = numbers(search(host, "--host", client, "--process", process))
    assert sorted(found) == list(range(1, count + 1))
    assert set(found.values()) == {1}


def test_no_line_is_lost_where_the_sender_was_killed(host: Host) -> None:
    found = numbers(eventually(host, "--host", "node13", "--process", "flood", wanted=20000, within=120))
    assert sorted(found) == list(range(1, 20001))
    assert set(found.values()) == {1}


@client
def test_an_order_is_found_by_its_number(host: Host, client: str) -> None:
    found = search(host, "--host", client, "--order", "4711", "n=17")
    assert [record["message"] for record in found if record["message"].endswith("n=17")] == ["order 4711: n=17"]
    assert search(host, "--host", client, "--order", "471") == []


@client
def test_a_line_is_there_within_seconds_and_says_where_it_is_from(host: Host, client: str) -> None:
    mark = f"mark {time.monotonic_ns()}"
    say(host, client, f"WARNING {mark}", "--tag", "probe", "--priority", "user.err")
    (record,) = eventually(host, "--host", client, mark)
    address = {"node12": "10.78.22.12", "node13": "10.78.22.13"}[client]
    wanted = {"from": address, "site": "logs", "host": client, "process": "probe", "level": "error"}
    assert wanted.items() <= record.items()


def test_the_servers_own_lines_are_kept_as_well(host: Host) -> None:
    host.check_output("logger --tag own here")
    assert eventually(host, "--host", "mon", "--process", "own", "here")


@client
def test_a_unit_gives_colour_release_process_and_level(host: Host, client: str) -> None:
    other = host.get_host(f"ansible://{client}?sudo=true", ansible_inventory=host.backend.ansible_inventory)
    # The journal looks at a process once a second, or when it comes to: one that is gone has no command line.
    said = "2026-11-30 10:00:00 ERROR run_stack_handler {contract_order_id: 815} no fill"
    text = f"import time; time.sleep(1.5); print('{said}', flush=True); time.sleep(8)"
    other.check_output(
        "systemd-run --quiet --wait --collect --unit=pst-run@run_stack_handler.service "
        f"sh -c 'exec python3 -c \"$1\" /srv/pst/releases/1.80-abc/green' sh {shlex.quote(text)}"
    )
    # systemd names the command line of what it starts, too.
    search_for = ("--host", client, "--process", "run_stack_handler", "--order", "815", "--level", "error", "no fill")
    record = next(record for record in eventually(host, *search_for, wanted=2) if record["pid"] != 1)
    wanted = {"unit": "pst-run@run_stack_handler.service", "colour": "green", "release": "1.80-abc", "level": "error"}
    assert (wanted | {"order": "815"}).items() <= record.items()


@client
def test_a_span_is_found_as_it_was_written(host: Host, client: str) -> None:
    """Through rsyslog's own JSON: ids, times, fractions and nested values."""
    trace = f"{time.monotonic_ns():032x}"
    said = {
        "level": "info",
        "message": "traced",
        "trace_id": trace,
        "span_id": "00f067aa0ba902b7",
        "span": "GET /api/v1/status",
        "start": datetime.now(UTC).isoformat(timespec="microseconds"),
        "seconds": 0.012345,
        "request_id": f"request-{trace}",
    }
    say(host, client, json.dumps(said), "--tag", "spans")
    (record,) = eventually(host, "--host", client, "--process", "spans", trace)
    assert {key: value for key, value in said.items() if key not in ("level", "message")} == record["data"]
    printed = host.check_output(f"pst-trace request-{trace}")
    assert re.search(rf"GET /api/v1/status +{client} \S+ +\+0\.000 +0\.012 s$", printed), printed
    [resource] = json.loads(host.check_output(f"pst-trace {trace} --otlp -"))["resourceSpans"]
    assert [span["traceId"] for span in resource["scopeSpans"][0]["spans"]] == [trace]


SECRETS = [
    "mongodb://app:canary-uri-1@db1:27017/x and redis://default:canary-uri-2@db2",
    "mongodb+srv://app:canary-srv@db1/x",
    "password=canary-equals token: 'canary-colon'",
    '{"password":"canary-json", "a": 1}',
    '{"message": "login", "level": "info", "api_key": "canary-data"}',
    "Authorization: Bearer canary.bearer-1",
    "MONGODB_PASSWORD=canary-upper",
]


@client
def test_a_secret_does_not_leave_its_host(host: Host, client: str) -> None:
    for text in SECRETS:
        say(host, client, text, "--tag", "secrets")
    say(host, client, "the last one, password_file=/etc/kept", "--tag", "secrets")
    found = eventually(host, "--host", client, "--process", "secrets", wanted=len(SECRETS) + 1)
    assert len(found) == len(SECRETS) + 1
    assert "canary" not in json.dumps(found)
    assert found[-1]["message"].endswith("password_file=/etc/kept")
    assert "canary" not in host.run("grep -rh 'canar[y]-' /var/log/pst-logs/").stdout


def handshake(host: Host, options: str) -> str:
    """What the server answers to RELP's first command over TLS."""
    hello = r"1 open 49 relp_version=0\nrelp_software=test\ncommands=syslog\n"
    result = host.run(
        f"(printf '{hello}'; sleep 1) | timeout 10 openssl s_client -quiet -connect 10.78.22.11:2514 "
        f"-CAfile /etc/pst/pki/ca.crt {options} 2>&1"
    )
    return result.stdout


def test_only_a_host_of_the_site_may_send(host: Host) -> None:
    node = "-cert /etc/pst/pki/node/node.crt -key /etc/pst/pki/node/node.key"
    assert "200 OK" in handshake(host, node)
    assert "200 OK" not in handshake(host, "")
    host.check_output(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=node12.logs.pst.test "
        "-addext subjectAltName=DNS:node12.logs.pst.test -keyout /root/own.key -out /root/own.crt 2>/dev/null"
    )
    assert "200 OK" not in handshake(host, "-cert /root/own.crt -key /root/own.key")
    # Of the site's authority, but of a name that is no host's.
    assert "200 OK" not in handshake(
        host, "-cert /etc/pst/pki/stranger/stranger.crt -key /etc/pst/pki/stranger/stranger.key"
    )


def test_it_listens_on_its_own_address_only(host: Host) -> None:
    listening = [line.split()[3] for line in host.check_output("ss -Hltn").splitlines()]
    assert [address for address in listening if address.endswith(":2514")] == ["10.78.22.11:2514"]


def test_what_is_over_is_compressed_and_still_found(host: Host) -> None:
    at = time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() - 7200))
    folder = f"/var/log/pst-logs/logs/{at[:10]}"
    line = {"time": f"{at}:30:00+00:00", "host": "node12", "message": "two hours ago", "process": "old"}
    host.check_output(f"mkdir -p {folder} && echo {shlex.quote(json.dumps(line))} > {folder}/{at[11:]}.jsonl")
    host.check_output(f"touch --date '-1 hour' {folder}/{at[11:]}.jsonl")
    host.check_output("systemctl start pst-logs-keep.service")
    assert host.file(f"{folder}/{at[11:]}.jsonl.gz").exists
    assert not host.file(f"{folder}/{at[11:]}.jsonl").exists
    assert host.run("pst-logs --since 3h two hours ago").rc == 0
    # rsyslog was told to open its files anew, and did.
    host.check_output("logger --tag own after")
    assert eventually(host, "--host", "mon", "--process", "own", "after")


@pytest.mark.parametrize("where", ["mon", *CLIENTS])
def test_exposure(host: Host, where: str) -> None:
    other = host.get_host(f"ansible://{where}?sudo=true", ansible_inventory=host.backend.ansible_inventory)
    assert other.check_output("ps -o user= -p $(systemctl show -P MainPID rsyslog.service)").strip() != "root"
    for unit, bar in (("rsyslog.service", 20), *([("pst-logs-keep.service", 20)] if where == "mon" else [])):
        result = other.run(f"systemd-analyze security --threshold={bar} --no-pager {unit}")
        assert result.rc == 0, result.stdout[-200:]
