"""Writes what the page shows: the state of the site, its charts and its last runs, as JSON, each file in one piece.

    pst_console.py /etc/pst/console/site.json

Asks Prometheus on this host, and the virtual address as a client would. Standard library only; Python 3.11 or newer.
`state.json` is written every `period` seconds whatever happens: where nothing answers, it says so.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import re
import signal
import socket
import ssl
import sys
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Labels = Mapping[str, str]
Document = dict[str, Any]

OK, STANDBY, UNKNOWN, WARNING, CRITICAL = "ok", "standby", "unknown", "warning", "critical"
WORST = (CRITICAL, WARNING, UNKNOWN, OK, STANDBY)
# A connection is made anew now and then, so that a renewed certificate is used.
CONNECTION_S = 300.0
TIMEOUT_S = 4.0
ANSWER_LIMIT = 8_000_000
# Failures of a question: the answer, the way, or what was in it.
ASK_ERRORS = (OSError, http.client.HTTPException, ValueError, KeyError, TypeError)

METRICS = (
    "pst_lease_holder|pst_lease_epoch|pst_process_running|pst_orders_active|pst_state_up|pst_ready|pst_draining|"
    "pst_build_info|pst_lease_held|pst_lease_holder_info|pst_lease_granted_epoch|pst_lease_revoked|"
    "pst_run_lock_age_seconds|pst:vip_held|mongodb_up|redis_up|mongodb_replset_my_state|mongodb_version_info|redis_instance_info|"
    "haproxy_process_build_info|prometheus_build_info|alertmanager_build_info|node_exporter_build_info"
)
# Series that tell a version, by the label that has it.
VERSIONS = {
    "pst_build_info": ("release", "version"),
    "haproxy_process_build_info": ("haproxy", "version"),
    "prometheus_build_info": ("prometheus", "version"),
    "alertmanager_build_info": ("alertmanager", "version"),
    "node_exporter_build_info": ("node exporter", "version"),
    "mongodb_version_info": ("mongodb", "version"),
    "redis_instance_info": ("redis", "redis_version"),
}
PRIMARY = 1
# Jobs that an exporter on the monitoring host answers, and what it says of the member itself.
THROUGH_EXPORTER = {"mongodb": "mongodb_up", "redis": "redis_up", "sentinel": "redis_up"}


class AskError(Exception):
    """The question was not answered; the message says why."""


# Settings -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """A systemd unit that hosts of a tier have. An `optional` one may be stopped on purpose."""

    tier: str
    service: str
    unit: str
    optional: bool = False


@dataclass(frozen=True)
class Host:
    name: str
    tier: str
    zone: str
    address: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Age:
    """A figure that grows old: an expression, and from what value on it is worth a warning."""

    title: str
    expression: str
    unit: str
    warning: float
    critical: float


@dataclass(frozen=True)
class Settings:
    """The settings file: what Ansible knows of the site."""

    site: str
    prometheus: str
    vip: str
    names: tuple[str, ...]
    ca: str
    certificate: str
    output: Path
    runs: Path
    period: float
    chart_period: float
    chart_hours: float
    scrape_interval: float
    tiers: Mapping[str, str]
    hosts: tuple[Host, ...]
    units: tuple[Unit, ...]
    ages: tuple[Age, ...] = ()
    panels: tuple[Document, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Settings:
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            **{key: found[key] for key in ("site", "prometheus", "vip", "ca", "certificate", "tiers", "links")},
            period=float(found["period"]),
            chart_period=float(found["chart_period"]),
            chart_hours=float(found["chart_hours"]),
            scrape_interval=float(found["scrape_interval"]),
            names=tuple(found["names"]),
            output=Path(found["output"]),
            runs=Path(found["runs"]),
            hosts=tuple(Host(**host | {"groups": tuple(host["groups"])}) for host in found["hosts"]),
            units=tuple(Unit(**unit) for unit in found["units"]),
            ages=tuple(Age(**age) for age in found["ages"]),
            panels=tuple(found["panels"]),
        )

    def units_of(self, host: Host) -> list[Unit]:
        return [unit for unit in self.units if unit.tier in host.groups]


# Asking ---------------------------------------------------------------------------------------------------------------


def of_the_site(ca: str, certificate: str) -> ssl.SSLContext:
    """Mutual TLS: only the site's authority, and its certificate for us."""
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate)
    return context


def of_a_client(ca: str) -> ssl.SSLContext:
    """What a client trusts: the authorities of this host, and the site's."""
    context = ssl.create_default_context()
    context.load_verify_locations(ca)
    return context


class Connection(http.client.HTTPSConnection):
    """Goes to an address and wants the certificate of a name, as a client does whose name service knows it."""

    def __init__(self, host: str, port: int, name: str, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S, context=context)
        self._name, self._tls = name, context

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), TIMEOUT_S)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self._name)
        except BaseException:
            plain.close()
            raise


class Client:
    """One kept connection to a server by TLS."""

    def __init__(self, url: str, context: Callable[[], ssl.SSLContext], name: str = "") -> None:
        parts = urllib.parse.urlsplit(url)
        self.url, self.host, self.port = url, parts.hostname or "", parts.port or 443
        self.name = name or self.host
        self._context = context
        self._connection: Connection | None = None
        self._since = 0.0

    def get(self, path: str) -> tuple[int, bytes]:
        """Ask; a kept connection that the server has closed meanwhile is made anew once."""
        fresh = self._connection is None or time.monotonic() - self._since > CONNECTION_S
        try:
            return self._get(path, fresh=fresh)
        except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLError):
            if fresh:
                raise
            return self._get(path, fresh=True)

    def _get(self, path: str, *, fresh: bool) -> tuple[int, bytes]:
        if fresh or self._connection is None:
            self.close()
            self._connection = Connection(self.host, self.port, self.name, self._context())
            self._since = time.monotonic()
        try:
            self._connection.request("GET", path, headers={"Host": self.name, "User-Agent": "pst-console"})
            answer = self._connection.getresponse()
            body = answer.read(ANSWER_LIMIT)
        except BaseException:
            self.close()
            raise
        return answer.status, body

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass(frozen=True)
class Sample:
    labels: Labels
    value: float

    def label(self, name: str) -> str:
        return self.labels.get(name, "")


class Prometheus:
    """The API of Prometheus, as far as the page needs it."""

    def __init__(self, get: Callable[[str], tuple[int, bytes]]) -> None:
        self._get = get

    def query(self, expression: str) -> list[Sample]:
        data = self._ask("/api/v1/query", query=expression)
        return [Sample(item["metric"], float(item["value"][1])) for item in data["result"]]

    def range(self, expression: str, start: float, end: float, step: float) -> list[Document]:
        data = self._ask("/api/v1/query_range", query=expression, start=start, end=end, step=step)
        found: list[Document] = data["result"]
        return found

    def alerts(self) -> list[Document]:
        found: list[Document] = self._ask("/api/v1/alerts")["alerts"]
        return found

    def _ask(self, path: str, **parameters: object) -> Document:
        try:
            status, body = self._get(f"{path}?{urllib.parse.urlencode(parameters)}" if parameters else path)
            answer = json.loads(body)
            if answer["status"] != "success":
                raise AskError(f"{path}: {status}: {answer.get('error', 'no success')}")
            data: Document = answer["data"]
        except ASK_ERRORS as error:
            raise AskError(f"{path}: {told(error)}") from error
        return data


def told(error: BaseException) -> str:
    return str(error) or type(error).__name__


# The state of the site ------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """The answers that one picture of the site is made of."""

    up: Sequence[Sample] = ()
    scraped: Sequence[Sample] = ()
    units: Sequence[Sample] = ()
    metrics: Sequence[Sample] = ()
    servers: Sequence[Sample] = ()
    requests: Sequence[Sample] = ()
    front: Sequence[Sample] = ()
    load: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    ages: Sequence[tuple[Age, Sequence[Sample]]] = ()
    alerts: Sequence[Document] = ()
    client: Document = field(default_factory=dict)
    problem: str = ""


def unit_query(settings: Settings) -> str:
    names = "|".join(sorted({re.escape(unit.unit) for unit in settings.units}))
    # In a PromQL string a backslash is written twice.
    return 'node_systemd_unit_state{name=~"' + names.replace("\\", "\\\\") + '"} == 1'


# The fullest of a host's disks: what can fill up.
DISKS = 'fstype!~"tmpfs|ramfs|squashfs|iso9660|vfat"'


def load_queries() -> Mapping[str, str]:
    """What a host is busy with, as shares of 1 (the clock in seconds), by host."""
    return {
        "cpu": '1 - avg by (host) (rate(node_cpu_seconds_total{mode="idle"}[1m]))',
        "memory": "1 - min by (host) (node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)",
        "disk": f"1 - min by (host) (node_filesystem_avail_bytes{{{DISKS}}} / node_filesystem_size_bytes{{{DISKS}}})",
        "clock": "max by (host) (abs(node_timex_offset_seconds))",
    }


def queries(settings: Settings) -> Mapping[str, str]:
    """The expressions that are asked at every turn, by field of `Seen`."""
    window = f"{max(20, math.ceil(4 * settings.scrape_interval))}s"
    return {
        "up": "up",
        "scraped": "time() - timestamp(up)",
        "units": unit_query(settings),
        "metrics": f'{{__name__=~"{METRICS}"}}',
        "servers": 'haproxy_server_status{proxy=~"be_.+"} == 1',
        "requests": f'sum by (proxy) (irate(haproxy_backend_http_requests_total{{proxy=~"be_.+"}}[{window}]))',
        "front": f'irate(haproxy_frontend_http_requests_total{{proxy="public"}}[{window}])',
    }


class Picture:
    """One picture of the site."""

    def __init__(self, settings: Settings, seen: Seen, now: float) -> None:
        self.settings, self.seen, self.now = settings, seen, now
        self.problems: list[Document] = []
        self._unit_states = {(item.label("host"), item.label("name")): item.label("state") for item in seen.units}
        self._by_name: dict[str, list[Sample]] = defaultdict(list)
        for item in seen.metrics:
            self._by_name[item.label("__name__")].append(item)
        self._members = {
            (item.label("job"), item.label("instance")): item.value
            for name in set(THROUGH_EXPORTER.values())
            for item in self._by_name[name]
        }

    def document(self) -> Document:
        slots = self.slots()
        document: Document = {
            "site": self.settings.site,
            "at": round(self.now, 3),
            "period": self.settings.period,
            "source": self.source(),
            "traffic": self.traffic(),
            "trading": self.trading(),
            "slots": slots,
            "tiers": self.tiers(),
            "ages": self.ages(),
            "alerts": self.alerts(),
            "versions": self.versions(),
            "links": dict(self.settings.links),
        }
        document["problems"] = sorted(self.problems, key=lambda problem: WORST.index(problem["state"]))
        document["verdict"] = worst([problem["state"] for problem in self.problems])
        return document

    def note(self, state: str, where: str, what: str, section: str) -> None:
        self.problems.append({"state": state, "where": where, "what": what, "section": section})

    # Prometheus -------------------------------------------------------------------------------------------------------

    def source(self) -> Document:
        """How old the newest figures are; without any, nothing else of the picture means much."""
        ages = [item.value for item in self.seen.scraped if item.value >= 0]
        newest = min(ages, default=None)
        if self.seen.problem:
            self.note(CRITICAL, "Prometheus", f"does not answer: {self.seen.problem}", "top")
        elif newest is None or newest > 3 * self.settings.scrape_interval + 5:
            self.note(CRITICAL, "Prometheus", "has no fresh figures of any host", "top")
        return {"problem": self.seen.problem, "age": None if newest is None else round(newest, 1)}

    # Traffic ----------------------------------------------------------------------------------------------------------

    def traffic(self) -> Document:
        client = dict(self.seen.client)
        if client and not client.get("answers"):
            self.note(CRITICAL, self.settings.vip, f"does not serve clients: {client.get('problem', '')}", "traffic")
        rates = {item.label("proxy").removeprefix("be_"): round(finite(item.value), 2) for item in self.seen.requests}
        return {
            "vip": self.settings.vip,
            "names": list(self.settings.names),
            "client": client,
            "holder": self._vip_holder(),
            "rates": rates,
            "servers": self.servers(),
        }

    def _vip_holder(self) -> str:
        """By the addresses of the balancers; where nobody tells them, by who gets the requests."""
        told_ = self._by_name["pst:vip_held"]
        held = sorted({item.label("host") for item in told_ if item.value == 1})
        if told_:
            return ", ".join(held)
        busiest = max(self.seen.front, key=lambda item: finite(item.value), default=None)
        return busiest.label("host") if busiest and finite(busiest.value) > 0 else ""

    def servers(self) -> list[Document]:
        """The application's servers as each balancer sees them."""
        found: dict[tuple[str, str], Document] = {}
        for item in self.seen.servers:
            key = (item.label("proxy").removeprefix("be_"), item.label("server"))
            entry = found.setdefault(key, {"colour": key[0], "server": key[1], "states": {}})
            entry["states"][item.label("host")] = item.label("state")
        live = self.seen.client.get("colour", "")
        for (colour, server), entry in sorted(found.items()):
            down = sorted(name for name, state in entry["states"].items() if state not in ("UP", "DRAIN", "MAINT"))
            if colour == live and down:
                states = ", ".join(f"{entry['states'][name]} at {name}" for name in down)
                self.note(WARNING, server, f"gets no requests in the live slot {colour}: {states}", "traffic")
        return [found[key] for key in sorted(found)]

    # Trading ----------------------------------------------------------------------------------------------------------

    def trading(self) -> Document:
        leases = self._leases_by_exporter() or self._leases_by_agents()
        for name, lease in sorted(leases.items()):
            self._judge(name, lease)
        return {
            "known": bool(leases),
            "leases": [{"placement": name, **lease} for name, lease in sorted(leases.items())],
            "processes": self._widest("pst_process_running", "process"),
            "orders": self._widest("pst_orders_active", "stack"),
            "run": self._run(),
        }

    def _leases_by_exporter(self) -> dict[str, Document]:
        """As they stand in the database, where the exporter of the site's state reads them."""
        leases: dict[str, Document] = {}
        for item in self._by_name["pst_lease_held"]:
            leases[item.label("placement")] = {"holders": [], "epoch": None, "revoked": False, "asked": []}
        for item in self._by_name["pst_lease_holder_info"]:
            holder = {"host": item.label("holder"), "colour": item.label("colour")}
            lease = leases.get(item.label("placement"))
            if lease and holder not in lease["holders"]:
                lease["holders"].append(holder)
        for metric, key in (("pst_lease_granted_epoch", "epoch"), ("pst_lease_revoked", "revoked")):
            for item in self._by_name[metric]:
                if lease := leases.get(item.label("placement")):
                    lease[key] = max(lease[key] or 0, int(item.value))
        return leases

    def _leases_by_agents(self) -> dict[str, Document]:
        """As each agent tells of its own slot: without a holder, one that cannot be asked may be it."""
        colours = self._colours()
        silent = self._silent_agents()
        leases: dict[str, Document] = defaultdict(lambda: {"holders": [], "epoch": None, "revoked": 0, "asked": silent})
        for item in self._by_name["pst_lease_holder"]:
            lease = leases[item.label("placement")]
            if item.value == 1:
                lease["holders"].append({"host": item.label("host"), "colour": colours.get(item.label("instance"), "")})
        for item in self._by_name["pst_lease_epoch"]:
            lease = leases[item.label("placement")]
            lease["epoch"] = max(lease["epoch"] or 0, int(item.value))
        return leases

    def _judge(self, name: str, lease: Document) -> None:
        silent, lease["state"] = lease.pop("asked"), OK
        holders = {(holder["host"], holder["colour"]) for holder in lease["holders"]}
        if lease["revoked"]:
            lease["state"] = WARNING
            self.note(
                WARNING, name, "the kill switch has revoked the lease: nothing of this placement trades", "trading"
            )
        elif not holders and silent:
            lease["state"] = UNKNOWN
            what = f"no agent that answers holds the lease; {', '.join(silent)} cannot be asked"
            self.note(UNKNOWN, name, what, "trading")
        elif not holders:
            lease["state"] = CRITICAL
            self.note(CRITICAL, name, "nobody holds the lease: nothing of this placement trades", "trading")
        # Two hosts are asked one after the other, so a lease that has just moved may be seen twice for one scrape.
        elif len(holders) > 1:
            lease["state"] = WARNING
            self.note(WARNING, name, "two hosts say that they hold the lease", "trading")

    def _run(self) -> Document | None:
        """The run that has the run lock, if any: a fault during a change is looked at differently."""
        for item in self._by_name["pst_run_lock_age_seconds"]:
            return {key: item.label(key) for key in ("playbook", "by", "run")} | {"age": round(finite(item.value))}
        return None

    def _silent_agents(self) -> list[str]:
        """The application nodes of which no agent tells the state of trading: one of them may hold a lease."""
        telling = {item.label("host") for item in self._by_name["pst_state_up"] if item.value == 1}
        return sorted(
            host.name for host in self.settings.hosts if host.tier == "app_nodes" and host.name not in telling
        )

    def _widest(self, metric: str, label: str) -> list[Document]:
        """The same database is read by every node: the largest of what they say."""
        found: dict[str, float] = {}
        for item in self._by_name[metric]:
            name = item.label(label)
            found[name] = max(found.get(name, 0), item.value)
        return [{"name": name, "value": int(value)} for name, value in sorted(found.items())]

    def _colours(self) -> dict[str, str]:
        return {item.label("instance"): item.label("colour") for item in self._by_name["pst_build_info"]}

    def slots(self) -> list[Document]:
        ready = {item.label("instance"): item.value == 1 for item in self._by_name["pst_ready"]}
        draining = {item.label("instance"): item.value == 1 for item in self._by_name["pst_draining"]}
        slots = []
        for item in self._by_name["pst_build_info"]:
            instance, colour = item.label("instance"), item.label("colour")
            state = "draining" if draining.get(instance) else "ready" if ready.get(instance) else "not ready"
            if state == "not ready":
                self.note(CRITICAL, item.label("host"), f"slot {colour} is not ready", "application")
            slots.append(
                {
                    "host": item.label("host"),
                    "colour": colour,
                    "release": item.label("version"),
                    "revision": item.label("revision"),
                    "state": state,
                }
            )
        return sorted(slots, key=lambda slot: (slot["host"], slot["colour"]))

    # Hosts ------------------------------------------------------------------------------------------------------------

    def tiers(self) -> list[Document]:
        load = {name: {item.label("host"): item.value for item in found} for name, found in self.seen.load.items()}
        tiers = []
        for tier, title in self.settings.tiers.items():
            hosts = [self._host(host, load) for host in self.settings.hosts if host.tier == tier]
            if hosts:
                tiers.append({"name": tier, "title": title, "hosts": hosts})
        return tiers

    def _host(self, host: Host, load: Mapping[str, Mapping[str, float]]) -> Document:
        scraped = [item for item in self.seen.up if item.label("host") == host.name]
        reachable = any(item.value == 1 for item in scraped if item.label("job") not in THROUGH_EXPORTER)
        units = [self._unit(host, unit) for unit in self.settings.units_of(host)]
        if not reachable:
            units = [unit | {"state": UNKNOWN, "what": "not known"} for unit in units]
        targets = [self._target(item, units) for item in scraped]
        targets.sort(key=lambda target: (target["job"], target["instance"]))
        if self.seen.up:  # otherwise it is told once, by source()
            self._report(host, units, targets, reachable=reachable)
        return {
            "name": host.name,
            "zone": host.zone,
            "address": host.address,
            "state": CRITICAL if scraped and not reachable else worst([item["state"] for item in (*units, *targets)]),
            "units": units,
            "targets": targets,
            "load": {name: rounded(found.get(host.name)) for name, found in load.items()},
            "leads": self._leads(host.name),
        }

    def _leads(self, host: str) -> str:
        """Whether a member of a cluster leads it."""
        primary = {item.label("host") for item in self._by_name["mongodb_replset_my_state"] if item.value == PRIMARY}
        masters = {
            item.label("host") for item in self._by_name["redis_instance_info"] if item.label("role") == "master"
        }
        return "primary" if host in primary else "master" if host in masters else ""

    def _report(self, host: Host, units: Sequence[Document], targets: Sequence[Document], *, reachable: bool) -> None:
        if not targets:
            self.note(UNKNOWN, host.name, "Prometheus does not scrape it", host.tier)
            return
        if not reachable:
            self.note(CRITICAL, host.name, "none of its services answers: the host is down, or cut off", host.tier)
            return
        for unit in units:
            if unit["state"] in (CRITICAL, WARNING):
                self.note(
                    unit["state"], host.name, f"{unit['service']} {WORDS.get(unit['what'], unit['what'])}", host.tier
                )
        for target in targets:
            if target["state"] == CRITICAL:
                port = target["instance"].rpartition(":")[2]
                self.note(CRITICAL, host.name, f"{target['job']} does not answer on port {port}", host.tier)

    def _unit(self, host: Host, unit: Unit) -> Document:
        found = self._unit_states.get((host.name, unit.unit), "")
        document = {"service": unit.service, "unit": unit.unit, "what": found or "not known"}
        if found in ("active", "reloading"):
            state = OK
        elif found == "activating":
            state = WARNING
        elif not found:
            # systemd forgets a unit that is stopped and that nothing wants: the node exporter then has no series of it.
            state = STANDBY if unit.optional else UNKNOWN
            document["what"] = "stopped" if unit.optional else "not known"
        else:
            state = STANDBY if unit.optional and found == "inactive" else CRITICAL
        return {**document, "state": state}

    def _target(self, item: Sample, units: Sequence[Document]) -> Document:
        instance = item.label("instance")
        member = self._members.get((item.label("job"), instance), 1)
        state = OK if item.value == 1 and member == 1 else CRITICAL
        slot = SLOT_PORTS.get(instance.rpartition(":")[2])
        if state == CRITICAL and slot:
            own = next((unit for unit in units if unit["unit"] == f"pst-app@{slot}.service"), None)
            if own and own["state"] == STANDBY:
                state = STANDBY
        return {"job": item.label("job"), "instance": instance, "state": state}

    # The rest ---------------------------------------------------------------------------------------------------------

    def ages(self) -> list[Document]:
        rows = []
        for age, samples in self.seen.ages:
            for item in samples:
                value = finite(item.value)
                state = CRITICAL if value >= age.critical else WARNING if value >= age.warning else OK
                names = (item.label(name) for name in ("member", "exported_job", "host", "instance"))
                where = next((name for name in names if name), self.settings.site)
                rows.append(
                    {"title": age.title, "where": where, "value": round(value, 3), "unit": age.unit, "state": state}
                )
                if state != OK:
                    self.note(state, where, f"{age.title}: {value:g} {age.unit}", "ages")
        return sorted(rows, key=lambda row: (row["title"], row["where"]))

    def alerts(self) -> list[Document]:
        found = []
        for alert in self.seen.alerts:
            labels, texts = alert.get("labels", {}), alert.get("annotations", {})
            severity = labels.get("severity", WARNING)
            entry = {
                "name": labels.get("alertname", ""),
                "severity": severity,
                "state": alert.get("state", ""),
                "since": alert.get("activeAt", ""),
                "where": labels.get("host") or labels.get("instance") or labels.get("tier") or "",
                "summary": texts.get("summary", ""),
                "description": texts.get("description", ""),
                "runbook": texts.get("runbook_url") or texts.get("runbook", ""),
            }
            found.append(entry)
            if entry["state"] == "firing" and severity in (CRITICAL, WARNING):
                where = entry["where"] or self.settings.site
                self.note(severity, where, f"alert {entry['name']}: {entry['summary']}", "alerts")
        order = {"firing": 0, "pending": 1}
        return sorted(found, key=lambda alert: (order.get(alert["state"], 2), alert["severity"], alert["name"]))

    def versions(self) -> list[Document]:
        """What runs in which version, and where: a version that differs between hosts of one kind is seen at once."""
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for name, (what, label) in VERSIONS.items():
            for item in self._by_name[name]:
                found[what, item.label(label)].add(item.label("host"))
        return [
            {"what": what, "version": version, "hosts": sorted(hosts)}
            for (what, version), hosts in sorted(found.items())
        ]


WORDS = {"failed": "has failed", "inactive": "is stopped", "activating": "is starting", "deactivating": "is stopping"}
SLOT_PORTS = {"8080": "blue", "8081": "green"}


def worst(states: Iterable[str]) -> str:
    found = set(states)
    return next((state for state in WORST if state in found), OK)


def finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else None


# Charts ---------------------------------------------------------------------------------------------------------------

POINTS = 120


def charts(settings: Settings, prometheus: Prometheus, now: float) -> Document:
    """The panels with their series. A panel that cannot be asked says why; the others are there."""
    seconds = 3600 * settings.chart_hours
    step = max(settings.scrape_interval, seconds / POINTS)
    end = now - now % step  # the same grid at each turn, so that a chart moves and does not flicker
    start = end - seconds
    panels = []
    for panel in settings.panels:
        series: list[Document] = []
        problem = ""
        for query in panel["queries"]:
            try:
                found = prometheus.range(query["expr"], start, end, step)
            except AskError as error:
                problem = str(error)
                continue
            series += [
                {"name": legend(query["legend"], item["metric"]), "points": points(item["values"], start, end, step)}
                for item in found
            ]
        panels.append(
            {
                "title": panel["title"],
                "unit": panel["unit"],
                "kind": panel["kind"],
                "problem": problem,
                "wants": [query["expr"] for query in panel["queries"]],
                "series": sorted(series, key=lambda one: one["name"])[: panel.get("most", 12)],
            }
        )
    return {"site": settings.site, "at": round(now, 3), "start": start, "end": end, "step": step, "panels": panels}


def legend(template: str, labels: Labels) -> str:
    """Grafana's way: `{{host}}` is the label."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), template).strip() or "value"


def points(values: Sequence[Sequence[Any]], start: float, end: float, step: float) -> list[float | None]:
    """One value for each step, None where there is none: a gap stays a gap."""
    grid: list[float | None] = [None] * (round((end - start) / step) + 1)
    for at, text in values:
        place, value = round((float(at) - start) / step), float(text)
        if 0 <= place < len(grid) and math.isfinite(value):
            grid[place] = float(f"{value:.6g}")
    return grid


# Runs -----------------------------------------------------------------------------------------------------------------

RUNS_SHOWN, RUNS_KEPT = 30, 200


def runs(folder: Path) -> list[Document]:
    """The newest runs that playbooks have left here; what cannot be read is left out, and what is too old removed."""
    found = []
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[RUNS_KEPT:]:
        path.unlink(missing_ok=True)
    for path in files[:RUNS_KEPT]:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            found.append((str(run["started"]), run))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [run for _, run in sorted(found, key=lambda item: item[0], reverse=True)[:RUNS_SHOWN]]


def newest_change(folder: Path) -> tuple[int, float]:
    """Changes with the folder: how many files, and the newest."""
    times = [path.stat().st_mtime for path in folder.glob("*.json")]
    return len(times), max(times, default=0.0)


# The process ----------------------------------------------------------------------------------------------------------


def write(path: Path, document: object) -> None:
    """In one piece: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(document, separators=(",", ":"), allow_nan=False), encoding="utf-8")
    temporary.chmod(0o640)
    temporary.replace(path)


def notify(state: str) -> None:
    """Send one sd_notify message; nothing listens when the program was started by hand."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


class Collector:
    def __init__(self, settings: Settings, prometheus: Prometheus, client: Client | None) -> None:
        self.settings, self.prometheus, self.client = settings, prometheus, client
        self._slow: tuple[Mapping[str, Sequence[Sample]], Sequence[tuple[Age, Sequence[Sample]]]] = ({}, ())
        self._slow_at = self._charts_at = -math.inf
        self._runs_of: tuple[int, float] | None = None

    def turn(self, now: float) -> None:
        """Write what is due. The state comes first, and whatever the other two meet."""
        write(self.settings.output / "state.json", Picture(self.settings, self.look(now), now).document())
        if now - self._charts_at >= self.settings.chart_period:
            self._charts_at = now
            write(self.settings.output / "charts.json", charts(self.settings, self.prometheus, now))
        changed = newest_change(self.settings.runs)
        if changed != self._runs_of:
            self._runs_of = changed
            write(self.settings.output / "runs.json", {"site": self.settings.site, "runs": runs(self.settings.runs)})

    def look(self, now: float) -> Seen:
        seen = Seen(client=self.ask_as_a_client())
        try:
            for name, expression in queries(self.settings).items():
                setattr(seen, name, self.prometheus.query(expression))
            seen.alerts = self.prometheus.alerts()
            if now - self._slow_at >= SLOW_S:
                self._slow = (
                    {name: self.prometheus.query(expression) for name, expression in load_queries().items()},
                    [(age, self.prometheus.query(age.expression)) for age in self.settings.ages],
                )
                self._slow_at = now
            seen.load, seen.ages = self._slow
        except AskError as error:
            return Seen(client=seen.client, problem=str(error))
        return seen

    def ask_as_a_client(self) -> Document:
        """One request through the virtual address: whether it serves, and from which slot."""
        if self.client is None:
            return {}
        started = time.monotonic()
        try:
            status, body = self.client.get("/version")
            told_ = json.loads(body) if status == http.client.OK else {}
            answer = {key: str(told_.get(key, "")) for key in ("colour", "release", "host")}
        except ASK_ERRORS as error:
            return {"answers": False, "problem": told(error)}
        ms = round(1000 * (time.monotonic() - started), 1)
        problem = "" if status == http.client.OK else f"HTTP {status}"
        return {"answers": not problem, "problem": problem, "ms": ms, **answer}


SLOW_S = 10.0


def ticks(period: float, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Yield every `period` seconds; a turn that was late is not made up for."""
    due = clock()
    while True:
        yield
        due = max(due + period, clock())
        time.sleep(max(0.0, due - clock()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("settings", type=Path)
    parser.add_argument("--once", action="store_true", help="write each file once, and end")
    given = parser.parse_args(arguments)
    settings = Settings.read(given.settings)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    prometheus = Client(settings.prometheus, lambda: of_the_site(settings.ca, settings.certificate))
    address = f"[{settings.vip}]" if ":" in settings.vip else settings.vip
    client = (
        Client(f"https://{address}", lambda: of_a_client(settings.ca), settings.names[0])
        if settings.vip and settings.names
        else None
    )
    collector = Collector(settings, Prometheus(prometheus.get), client)
    for _ in ticks(settings.period):
        collector.turn(time.time())
        notify("READY=1\nWATCHDOG=1")
        if given.once:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
