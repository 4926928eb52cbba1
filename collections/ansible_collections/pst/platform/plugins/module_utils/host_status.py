# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What runs on a host: each service of its tiers, asked in the way a client would, from the host itself.

Read-only. A probe takes what the host has anyway (the node certificate, the sentinel's login), bounded by a time-out,
and its answer holds no secret. `report` then looks at all hosts together: one virtual address, one primary, one master.
"""

from __future__ import annotations

import datetime
import http.client
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils import dns_zone, ib_api, mongodb, redis_cluster
from ansible_collections.pst.platform.plugins.module_utils.host_check import reason

CA = Path("/etc/pst/pki/ca.crt")
NODE_CERTIFICATE, NODE_KEY = Path("/etc/pst/pki/node/node.crt"), Path("/etc/pst/pki/node/node.key")
CONSOLE_STATE = Path("/run/pst-console/state.json")
CONSOLE_LATE_S = 30
SENTINEL_CONFIG = Path("/var/lib/redis/sentinel.conf")
GUARD_SOCKET = "/run/pst/trading/guard.sock"
HOLDS = "holds"
EVERY_HOST = "every host"


class ProbeError(Exception):
    """The service does not answer as it should; the message says what was seen."""


@dataclass(frozen=True)
class Context:
    """What the inventory says about this host."""

    address: str
    vip: str = ""
    ports: Mapping[str, int] | None = None
    timeout: float = 3.0

    def port(self, name: str) -> int:
        return (self.ports or {}).get(name) or PORTS[name]


@dataclass(frozen=True)
class Answer:
    """What a healthy service said of itself."""

    text: str = ""
    version: str = ""


@dataclass(frozen=True)
class Service:
    """A systemd unit that a tier expects on its hosts. `package` tells its version, `probe` whether it really works."""

    tier: str
    name: str
    unit: str
    package: str = ""
    probe: Callable[[Context], Answer] | None = None
    # May be stopped on purpose: the standby of a pair, an empty slot. Told by the unit being disabled.
    optional: bool = False
    # Goes up and down with this one of the host's units, whose being enabled is told.
    follows: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    host: str
    tier: str
    service: str
    state: str
    version: str = ""
    since: str = ""
    ok: bool = True


PORTS: Mapping[str, int] = {
    "load_balancer": 8404,
    "blue": 8080,
    "green": 8081,
    "mongodb": 27017,
    "redis": 6379,
    "sentinel": 26379,
    "ib_gateway": 4001,
    "prometheus": 9090,
    "node_exporter": 9100,
    "backup": 8000,
    "console": 8443,
}


# Probes ---------------------------------------------------------------------------------------------------------------


def tls() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(CA))
    context.load_cert_chain(NODE_CERTIFICATE, NODE_KEY)
    return context


def get(context: Context, port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(context.address, port, timeout=context.timeout, context=tls())
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def expect_ok(context: Context, port: int, path: str) -> bytes:
    status, body = get(context, port, path)
    if status != http.client.OK:
        raise ProbeError(f"{path} answers {status}: {body[:120].decode(errors='replace')}".rstrip(": \n"))
    return body


def probe_haproxy(context: Context) -> Answer:
    expect_ok(context, context.port("load_balancer"), "/healthz")
    return Answer("answers")


def probe_keepalived(context: Context) -> Answer:
    held = any(address["local"] == context.vip for link in addresses() for address in link.get("addr_info", ()))
    return Answer(f"holds {context.vip}" if held else "backup")


def probe_app(colour: str) -> Callable[[Context], Answer]:
    def probe(context: Context) -> Answer:
        port = context.port(colour)
        version = json.loads(expect_ok(context, port, "/version"))
        expect_ok(context, port, "/ready")
        return Answer("ready", str(version["release"]))

    return probe


def probe_guard(context: Context) -> Answer:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(context.timeout)
        connection.connect(GUARD_SOCKET)
        connection.sendall(b'{"command": "status"}\n')
        with connection.makefile("rb") as answer:
            placements = json.loads(answer.readline())["placements"]
    return Answer(guard_state(placements))


def guard_state(placements: Mapping[str, Mapping[str, Any]]) -> str:
    """What the guard holds, waits for, and stays out of."""
    problems = [f"{name}: {state['problem']}" for name, state in placements.items() if state["problem"]]
    if problems:
        raise ProbeError("; ".join(problems))
    held = [f"{name} (epoch {state['epoch']})" for name, state in placements.items() if state["holds"]]
    out = [name for name, state in placements.items() if not state["holds"] and state["stays_out"]]
    waits = [name for name, state in placements.items() if not state["holds"] and not state["stays_out"]]
    said = ((HOLDS, held), ("stays out of", out), ("standby for", waits))
    return "; ".join(f"{words} {', '.join(names)}" for words, names in said if names)


def held_by(state: str) -> dict[str, bool]:
    """The placements in what `guard_state` says, and whether they are held."""
    return {
        name.partition(" ")[0]: part.startswith(HOLDS)
        for part in state.split("; ")
        for words in (HOLDS, "stays out of", "standby for")
        if part.startswith(words)
        for name in part.removeprefix(words).strip().split(", ")
    }


def probe_link(context: Context) -> Answer:
    """The whole way: the link of this host, the gate, the gateway."""
    return probe_gateway(replace(context, address="127.0.0.1"))


def probe_mongod(context: Context) -> Answer:
    server = mongodb.connector(str(CA), context.timeout)(f"{context.address}:{context.port('mongodb')}", None)
    try:
        hello = server.command({"hello": 1})
        build = server.command({"buildInfo": 1})
    except mongodb.MongoError as error:
        raise ProbeError(str(error)) from error
    finally:
        server.close()
    state = mongod_state(hello)
    if state is None:
        raise ProbeError("neither primary nor secondary")
    return Answer(state, str(build.get("version", "")))


def mongod_state(hello: Mapping[str, Any]) -> str | None:
    if hello.get("isWritablePrimary"):
        return "primary"
    if hello.get("secondary"):
        return f"secondary of {str(hello.get('primary', 'no primary')).partition(':')[0].partition('.')[0]}"
    return "arbiter" if hello.get("arbiterOnly") else None


def probe_redis(context: Context) -> Answer:
    try:
        client = redis_cluster.Connection(context.address, context.port("redis"), sentinel_login(context))
    except redis_cluster.CommandError as error:
        raise ProbeError(str(error)) from error
    try:
        replication = redis_cluster.info(client.call("INFO", "replication"))
        server = redis_cluster.info(client.call("INFO", "server"))
    finally:
        client.close()
    return Answer(redis_state(replication), server.get("redis_version", ""))


def redis_state(replication: Mapping[str, str]) -> str:
    if replication.get("role") == "master":
        return f"master of {replication.get('connected_slaves', '0')}"
    if replication.get("master_link_status") != "up":
        raise ProbeError(f"replica whose link to {replication.get('master_host', 'the master')} is down")
    return f"replica of {replication.get('master_host', '').partition('.')[0]}"


def sentinel_login(context: Context) -> redis_cluster.Access:
    """The login that the sentinel of this host uses itself, from its own file."""
    text = SENTINEL_CONFIG.read_text(encoding="utf-8")
    login = dict(re.findall(r"^sentinel (auth-user|auth-pass) \S+ \"?([^\"\n]+)\"?$", text, re.MULTILINE))
    if not login:
        raise ProbeError(f"no auth-user in {SENTINEL_CONFIG}")
    access = redis_cluster.Access(login.get("auth-user", "default"), (login.get("auth-pass", ""),), str(CA))
    return replace(access, timeout=context.timeout)


def probe_gateway(context: Context) -> Answer:
    try:
        health = ib_api.probe(ib_api.Target(context.address, context.port("ib_gateway")), context.timeout)
    except ib_api.ProbeError as error:
        raise ProbeError(str(error)) from error
    return Answer("answers", f"API {health.server_version}")


def scraped_host(target: Mapping[str, Any]) -> tuple[str, str]:
    """The job and the address of a target, without its port."""
    return target["labels"]["job"], target["labels"]["instance"].rpartition(":")[0]


def probe_prometheus(context: Context) -> Answer:
    expect_ok(context, context.port("prometheus"), "/-/ready")
    answer = json.loads(expect_ok(context, context.port("prometheus"), "/api/v1/targets?state=active"))
    targets = answer["data"]["activeTargets"]
    answering = [target for target in targets if target["health"] == "up"]
    up = {scraped_host(target) for target in answering}
    # One slot of an application node may be empty: its host answers from the other one.
    down = [
        target["labels"]["instance"]
        for target in targets
        if target["health"] != "up" and not ("colour" in target["labels"] and scraped_host(target) in up)
    ]
    if down:
        raise ProbeError(f"{len(down)} of {len(targets)} targets down: {', '.join(sorted(down))}")
    return Answer(f"{len(answering)} targets up")


def probe_dns(_context: Context) -> Answer:
    settings = dns_zone.Settings.read(dns_zone.SETTINGS)
    state = dns_zone.read(settings)
    if not state["answers"] or state["serial"] is None:
        raise ProbeError(state["problem"] or "no zone")
    if not state["open"]:
        raise ProbeError("refuses clients until it has heard the other servers")
    return Answer(f"{settings.zone} at {', '.join(sorted(set(state['addresses'].values())))}, serial {state['serial']}")


def probe_backup(context: Context) -> Answer:
    """It lets the site's certificates in, and asks for a password."""
    status, _ = get(context, context.port("backup"), "/")
    if status != http.client.UNAUTHORIZED:
        raise ProbeError(f"answers {status} to a client without a password; wanted 401")
    return Answer("answers")


def probe_page(context: Context) -> Answer:
    status, _ = get(context, context.port("console"), "/")
    if status != http.client.UNAUTHORIZED:
        raise ProbeError(f"/ answers {status} without a password; wanted 401")
    return Answer("asks for a password")


def probe_collector(_context: Context) -> Answer:
    age = time.time() - CONSOLE_STATE.stat().st_mtime
    if age > CONSOLE_LATE_S:
        raise ProbeError(f"the page's state is {age:.0f} s old")
    return Answer("fresh")


SERVICES: Sequence[Service] = (
    Service(EVERY_HOST, "ssh", "ssh.service", "openssh-server"),
    Service(EVERY_HOST, "time", "chrony.service", "chrony"),
    Service(EVERY_HOST, "firewall", "pst-firewall.service", "nftables"),
    Service(EVERY_HOST, "node exporter", "prometheus-node-exporter.service", "prometheus-node-exporter"),
    Service("load_balancers", "haproxy", "haproxy.service", "haproxy", probe_haproxy),
    Service("load_balancers", "keepalived", "keepalived.service", "keepalived", probe_keepalived),
    Service("app_nodes", "app blue", "pst-app@blue.service", probe=probe_app("blue"), optional=True),
    Service("app_nodes", "app green", "pst-app@green.service", probe=probe_app("green"), optional=True),
    Service("app_nodes", "link", "pst-gateway-link.service", probe=probe_link),
    Service("app_nodes", "guard", "pst-guard.service", probe=probe_guard),
    Service("mongodb", "mongod", "mongod.service", probe=probe_mongod),
    Service("redis", "redis", "redis-server.service", "redis-server", probe_redis),
    Service("redis", "sentinel", "redis-sentinel.service", "redis-sentinel"),
    Service("ib_gateways", "gateway", "ib-gateway.service", probe=probe_gateway, optional=True),
    Service("ib_gateways", "gate", "pst-gate.service", optional=True, follows="ib-gateway.service"),
    Service("monitoring", "prometheus", "prometheus.service", "prometheus", probe_prometheus),
    Service("dns", "name server", "knot.service", "knot", probe_dns),
    Service("dns", "keeper", "pst-dns.service"),
    Service("backup", "repositories", "pst-backup-server.service", "rclone", probe_backup),
    Service("monitoring", "page", "pst-console-web.service", "nginx", probe_page),
    Service("monitoring", "collector", "pst-console.service", probe=probe_collector),
)


# One host -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """What systemd says of a unit."""

    load: str
    active: str
    sub: str
    enabled: str
    since: str


def look(host: str, tiers: Collection[str], context: Context) -> list[Row]:
    """A row per service of the host's tiers; of the services that every host has only those that are not well."""
    services = [service for service in SERVICES if service.tier == EVERY_HOST or service.tier in tiers]
    units = show_units([service.unit for service in services])
    versions = package_versions([service.package for service in services if service.package])
    with ThreadPoolExecutor(max_workers=8) as pool:
        rows = list(
            pool.map(lambda service: row_of(host, service, unit_of(service, units), versions, context), services)
        )
    return summarised(with_slots(rows))


def with_slots(rows: Sequence[Row]) -> list[Row]:
    """Without any service in its slots a host serves nothing, though each of them may be empty."""
    idle = [row for row in rows if row.service in SLOTS.get(row.tier, ()) and row.state in ("standby", "not installed")]
    empty = {row.tier for row in idle if len(idle) == len(SLOTS[row.tier])}
    return [replace(row, ok=row.ok and row.tier not in empty) for row in rows]


def unit_of(service: Service, units: Mapping[str, Unit]) -> Unit:
    """The unit of a service, enabled or disabled as the one that it follows."""
    unit = units[service.unit]
    return replace(unit, enabled=units[service.follows].enabled) if service.follows else unit


def row_of(host: str, service: Service, unit: Unit, versions: Mapping[str, str], context: Context) -> Row:
    row = Row(host, service.tier, service.name, unit.active, versions.get(service.package, ""), unit.since)
    if unit.load == "not-found":
        return replace(row, state="not installed", ok=service.optional, since="")
    if unit.active != "active":
        standby = service.optional and unit.active == "inactive" and not unit.enabled.startswith("enabled")
        return replace(row, state="standby" if standby else f"{unit.active} ({unit.sub})", ok=standby, since="")
    if service.probe is None:
        return row
    try:
        answer = service.probe(context)
    except (ProbeError, OSError, ValueError, KeyError, redis_cluster.CommandError, dns_zone.ZoneError) as error:
        return replace(row, state=f"active, but {error}", ok=False)
    return replace(row, state=answer.text or row.state, version=answer.version or row.version)


def summarised(rows: Iterable[Row]) -> list[Row]:
    rows = list(rows)
    basics = [row for row in rows if row.tier == EVERY_HOST]
    return [row for row in rows if row.tier != EVERY_HOST] + [row for row in basics if not row.ok]


def show_units(names: Sequence[str]) -> dict[str, Unit]:
    properties = "LoadState,ActiveState,SubState,UnitFileState,ActiveEnterTimestamp"
    output = run(["systemctl", "show", "--timestamp=unix", f"--property={properties}", *names])
    units = parse_units(output)
    if len(units) != len(names):
        raise ProbeError("systemctl tells no unit: systemd does not answer on this host")
    return dict(zip(names, units, strict=True))


def parse_units(output: str) -> list[Unit]:
    """The units in the order in which they were asked for (their names may be aliases)."""
    units = []
    for block in output.strip().split("\n\n"):
        found = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        entered = found.get("ActiveEnterTimestamp", "").lstrip("@")
        if found:
            units.append(
                Unit(
                    load=found.get("LoadState", ""),
                    active=found.get("ActiveState", ""),
                    sub=found.get("SubState", ""),
                    enabled=found.get("UnitFileState", ""),
                    since=local_time(int(entered)) if entered.isdigit() else "",
                )
            )
    return units


def local_time(seconds: int) -> str:
    """In the host's zone, which is the site's."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def package_versions(names: Sequence[str]) -> dict[str, str]:
    output = run(["dpkg-query", "--show", "--showformat=${Package} ${Version} ${db:Status-Status}\n", *names])
    words = (line.split() for line in output.splitlines())
    return {found[0]: upstream(found[1]) for found in words if len(found) == 3 and found[2] == "installed"}


def upstream(version: str) -> str:
    """A Debian version without epoch and Debian's revision: `5:7.0.15-1~deb12u5` is 7.0.15."""
    return version.partition(":")[2].partition("-")[0] if ":" in version else version.partition("-")[0]


def addresses() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(["ip", "-json", "address"]))
    return found


def run(command: Sequence[str]) -> str:
    """The output; an unknown package or unit is no failure, it is told by its absence."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=15).stdout  # noqa: S603 - ours


# All hosts ------------------------------------------------------------------------------------------------------------

# Of each of these there is exactly one in a site: tier, service, how its state begins, what it is.
SINGLETONS = (
    ("load_balancers", "keepalived", "holds ", "virtual address held by"),
    ("mongodb", "mongod", "primary", "primary is"),
    ("redis", "redis", "master of ", "master is"),
    ("ib_gateways", "gateway", "answers", "active gateway is"),
)
SINGLETONS_STANDBY = tuple(found for found in SINGLETONS if found[0] in ("load_balancers", "redis"))
# Of these one at least runs on each host of the tier.
SLOTS = {"app_nodes": ("app blue", "app green")}


def report(results: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Collection[str]]) -> list[dict[str, Any]]:
    """All rows of all hosts, in the order of the tiers, with those that only the hosts together can tell.

    `results` are the module's results by host (an unreachable host has no `services`), `groups` the inventory's. A tier
    of which only some hosts were asked (`--limit`) is not judged as a whole.
    """
    order = list(dict.fromkeys(service.tier for service in SERVICES))
    rows: list[Row] = []
    for host, result in results.items():
        if "services" in result:
            rows += [Row(**row) for row in result["services"]]
        else:
            tier = next((tier for tier in order if host in groups.get(tier, ())), EVERY_HOST)
            rows.append(Row(host, tier, "-", f"no answer: {reason(result)}", ok=False))
    for site in (group for group in groups if group.startswith("site_")):
        if stands_by(rows, site, groups):
            rows = [without_gateway(row) if row.host in groups[site] else row for row in rows]
            rows += judge(rows, site, set(results), groups, SINGLETONS_STANDBY)
        else:
            rows += judge(rows, site, set(results), groups)
            rows += judge_leases(rows, site, set(results), groups)
    rows.sort(key=lambda row: (order.index(row.tier), row.host))
    return [asdict(row) for row in rows]


def stands_by(rows: Sequence[Row], site: str, groups: Mapping[str, Collection[str]]) -> bool:
    """Whether the members of a site follow a primary that is not in it: the other site leads."""
    states = [row.state for row in rows if row.host in groups[site] and row.service == "mongod"]
    leaders = {state.removeprefix("secondary of ") for state in states if state.startswith("secondary of ")}
    return bool(leaders - {"no primary"}) and not (leaders | {"no primary"}) & {*groups[site]}


def without_gateway(row: Row) -> Row:
    """Where a site stands by no gateway is logged in, so that the links of its application nodes end nowhere."""
    return replace(row, state="standby", ok=True) if row.service == "link" and row.state.startswith("active") else row


def judge(
    rows: Sequence[Row],
    site: str,
    asked: Collection[str],
    groups: Mapping[str, Collection[str]],
    singletons: Sequence[tuple[str, str, str, str]] = SINGLETONS,
) -> Iterator[Row]:
    """A row for each thing of which a site has to have exactly one, and has not."""
    for tier, service, beginning, what in singletons:
        members = set(groups.get(tier, ())) & set(groups[site])
        if not members or not members <= set(asked):
            continue
        found = [
            row.host
            for row in rows
            if row.host in members and row.service == service and row.state.startswith(beginning)
        ]
        if len(found) != 1:
            yield Row(site, tier, service, f"{what} {', '.join(found) or 'nobody'}; wanted exactly one", ok=False)


def judge_leases(
    rows: Sequence[Row], site: str, asked: Collection[str], groups: Mapping[str, Collection[str]]
) -> Iterator[Row]:
    """A row for each lease that not exactly one host of the site holds."""
    members = set(groups.get("app_nodes", ())) & set(groups[site])
    if not members <= set(asked):
        return
    guards = {row.host: held_by(row.state) for row in rows if row.host in members and row.service == "guard"}
    for placement in sorted({name for placements in guards.values() for name in placements}):
        holders = sorted(host for host, placements in guards.items() if placements.get(placement))
        if len(holders) != 1:
            state = f"held by {', '.join(holders) or 'nobody'}; wanted exactly one"
            yield Row(site, "app_nodes", f"lease {placement}", state, ok=False)
