# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every check that an inventory must pass before a host is contacted.

Plain Python: the action plugin `validate_inventory` reads the inventory, resolves the templates and hands over `Host`s.
A check yields a `Problem` for each thing that is wrong and never raises, so that all of them are reported at once.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

SITE_PREFIX = "site_"
PLACEHOLDER = "CHANGE_ME"
EVERY_HOST = "*"
# Ansible's markup in descriptions, such as C(code) and O(option).
MARKUP = re.compile(r"\b[A-Z]\(([^()]*)\)")
SECRET_NAME = re.compile(r"passw|passphrase|secret|token|credential", re.IGNORECASE)

# Which roles (and entry points) run on the hosts of a group. The one place that says so for validation.
ROLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    EVERY_HOST: (("base", "main"), ("pki", "main"), ("firewall", "main"), ("monitoring", "node"), ("notify", "main")),
    "load_balancers": (("load_balancer", "main"),),
    "app_nodes": (("app", "main"), ("trading", "main"), ("backup", "main")),
    "mongodb": (("mongodb", "main"), ("backup", "main")),
    "redis": (("redis", "main"),),
    "ib_gateways": (("ib_gateway", "main"),),
    "dns": (("dns", "main"),),
    "backup": (("backup", "main"), ("mongodb", "program")),
    "monitoring": (("monitoring", "main"), ("console", "main")),
}
REQUIRED_TIERS = ("load_balancers", "app_nodes", "mongodb", "redis", "ib_gateways", "monitoring")
OPTIONAL_TIERS = ("backup", "dns")
TIERS = REQUIRED_TIERS + OPTIONAL_TIERS

# A host serves one tier, so that losing it costs one member. These pairs are harmless and save machines.
MAY_SHARE = {frozenset(pair) for pair in combinations(("monitoring", "backup", "dns"), 2)}

# Tiers that survive the loss of a host, and so must be spread over zones.
CLUSTERED_TIERS = ("load_balancers", "app_nodes", "mongodb", "redis", "ib_gateways")
BALANCERS = 2
MIN_VOTERS = 3
MIN_ZONES = 2

Option = Mapping[str, Any]
Options = Mapping[str, Option]
# Returns what is wrong with the value of one option, in words that hold no secret.
OptionValidator = Callable[[str, Option, Any], list[str]]
# The rules of a role's own, or of another part, over all sites.
RoleRules = Callable[[Sequence["Site"], "Contract"], Iterator["Problem"]]


@dataclass(frozen=True)
class Unresolved:
    """Stands for a value whose template cannot be resolved."""

    reason: str


# A value that cannot be judged here: it needs facts of the host, or is a placeholder (a problem of its own).
UNKNOWN = Unresolved("not known")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: where, the inventory key, the value seen, the value wanted."""

    where: str
    key: str
    seen: str
    wanted: str
    origin: str = ""

    def __str__(self) -> str:
        at = f" (in {self.origin})" if self.origin else ""
        return f"{self.key} [{self.where}]: seen {self.seen}; wanted {self.wanted}{at}"


@dataclass(frozen=True)
class Host:
    """A host with its variables.

    `written` holds the variables as they stand in the inventory's files, `values` those that this host's roles or the
    site read, with their templates resolved, `origins` the file and line of each.
    """

    name: str
    groups: frozenset[str]
    written: Mapping[str, Any]
    values: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key, default)
        return default if isinstance(value, Unresolved) else value

    def problem(self, key: str, seen: object, wanted: str) -> Problem:
        return Problem(self.name, key, show(seen), wanted, self.origins.get(key, ""))


@dataclass(frozen=True)
class Site:
    """The hosts of one site of the inventory."""

    group: str
    hosts: tuple[Host, ...]

    def tier(self, group: str) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if group in host.groups)

    def get(self, key: str, default: Any = None) -> Any:
        return self.hosts[0].get(key, default)

    def problem(self, key: str, seen: object, wanted: str) -> Problem:
        return Problem(self.group, key, show(seen), wanted, self.hosts[0].origins.get(key, ""))


@dataclass(frozen=True)
class Contract:
    """What variables there are: of a site, of a host, of each role's entry point."""

    site: Options
    host: Options
    roles: Mapping[tuple[str, str], Options]

    def of_host(self, groups: Collection[str]) -> dict[str, Option]:
        """The options that the roles of a host in these groups read, with the site's and the host's own."""
        options: dict[str, Option] = {**self.site, **self.host}
        for role in entry_points(groups):
            options |= self.roles.get(role, {})
        return options

    def options(self) -> dict[str, Option]:
        """Every variable that something reads."""
        return {
            name: option for options in (*self.roles.values(), self.site, self.host) for name, option in options.items()
        }


def entry_points(groups: Collection[str]) -> list[tuple[str, str]]:
    """The roles, with their entry points, that run on a host in these groups."""
    return [role for group, roles in ROLES.items() if group == EVERY_HOST or group in groups for role in roles]


def check(
    hosts: Iterable[Host], contract: Contract, validate: OptionValidator, role_rules: Sequence[RoleRules] = ()
) -> list[Problem]:
    """All the problems of an inventory, in a stable order, the same one of many hosts told once."""
    hosts = tuple(hosts)
    problems = list(check_membership(hosts))
    problems += (found for host in hosts for found in check_options(host, contract, validate))
    problems += check_written(hosts, contract)
    problems += check_duplicate_hosts(hosts)
    problems += check_sites(sites_of(hosts))
    problems += check_peers(sites_of(hosts))
    for site in sites_of(hosts):
        problems += (found for check_site in SITE_CHECKS for found in check_site(site))
    for rules in role_rules:
        problems += rules(sites_of(hosts), contract)
    return merged(problems, hosts)


def sites_of(hosts: Iterable[Host]) -> list[Site]:
    members: defaultdict[str, list[Host]] = defaultdict(list)
    for host in hosts:
        for group in site_groups(host):
            members[group].append(host)
    return [Site(group, tuple(found)) for group, found in sorted(members.items())]


def site_groups(host: Host) -> list[str]:
    return sorted(group for group in host.groups if group.startswith(SITE_PREFIX))


# Checks of the whole inventory ----------------------------------------------------------------------------------------


def check_membership(hosts: tuple[Host, ...]) -> Iterator[Problem]:
    """Every host is in one site and serves one tier (or tiers that may share a host)."""
    if not hosts:
        yield Problem("inventory", "hosts", "no host", "at least the groups " + ", ".join(REQUIRED_TIERS))
    for host in hosts:
        sites = site_groups(host)
        if len(sites) != 1:
            yield host.problem("groups", ", ".join(sites) or "no group site_<name>", "exactly one group site_<name>")
        tiers = [tier for tier in TIERS if tier in host.groups]
        if not tiers:
            others = sorted(host.groups - set(sites))
            hint = next((text for group in others if (text := did_you_mean(group, TIERS))), "")
            yield host.problem("groups", ", ".join(others) or "no tier", f"one of {', '.join(TIERS)}{hint}")
        for one, other in combinations(tiers, 2):
            if frozenset((one, other)) not in MAY_SHARE:
                yield host.problem("groups", f"{one} and {other}", "one tier per host: these two may not share one")


def check_options(host: Host, contract: Contract, validate: OptionValidator) -> Iterator[Problem]:
    """Every option that a role of this host reads is there where required, resolves, and fits its spec."""
    for name, option in contract.of_host(host.groups).items():
        secret = is_secret(name, option)
        if name not in host.values:
            if option.get("required"):
                hint = f"; put it in group_vars/{''.join(site_groups(host)[:1])}/secrets.yml" if secret else ""
                yield host.problem(name, "nothing", describe(option) + hint)
            continue
        value = host.values[name]
        if value is UNKNOWN:
            continue
        if isinstance(value, Unresolved):
            yield host.problem(name, f"a value that cannot be resolved: {value.reason}", describe(option))
        elif errors := loose_type(option, value) or validate(name, option, value):
            wanted = "; ".join(errors) if option.get("options") and not secret else describe(option)
            yield host.problem(name, "(hidden)" if secret else value, wanted)


def check_written(hosts: tuple[Host, ...], contract: Contract) -> Iterator[Problem]:
    """Every variable of the inventory's files is one that something reads, and none still is a placeholder."""
    known = contract.options()
    for host in hosts:
        for key, value in host.written.items():
            origin = host.origins.get(key, "")
            if key not in known and not key.startswith("ansible_"):
                wanted = f"a variable of the site or an option of a role{did_you_mean(key, known)}"
                yield Problem(host.name, key, "an unknown key", wanted, origin)
            for name, text in placeholders(value, key):
                wanted = "a value of your own" if "." in name else describe(known.get(key, {}))
                yield Problem(host.name, name, text, wanted, origin)


def check_duplicate_hosts(hosts: tuple[Host, ...]) -> Iterator[Problem]:
    """No two hosts of all the sites given have one address or one name."""
    identities: tuple[tuple[str, Callable[[Host], Any]], ...] = (
        ("ansible_host", reached_by),
        ("site_address", lambda host: as_address(host.get("site_address"))),
        ("name", lambda host: f"{host.name}.{host.get('site_domain', '')}".lower()),
    )
    for key, identity in identities:
        for value, names in duplicates((identity(host), host.name) for host in hosts):
            yield Problem(
                ", ".join(names), key, f"{show(str(value))} on {len(names)} hosts", "one of its own for each host"
            )


def check_sites(sites: Sequence[Site]) -> Iterator[Problem]:
    """Sites that are given together do not take each other's virtual address or VRRP id."""
    wanted = "one of its own for each site"
    for value, groups in duplicates((as_address(site.get("site_vip")), site.group) for site in sites):
        yield Problem(", ".join(groups), "site_vip", f"{value} in {len(groups)} sites", wanted)
    ids = ((router_id(site), site.group) for site in sites)
    for (network, number), groups in duplicates(ids):
        seen = f"{number} in {len(groups)} sites of the network {network}"
        yield Problem(", ".join(groups), "load_balancer_virtual_router_id", seen, wanted)


def check_peers(sites: Sequence[Site]) -> Iterator[Problem]:
    """Two sites of one platform know each other, by what both say, and one of them stands by for the other."""
    by_name = {str(site.get("site_name")): site for site in sites}
    for site in sites:
        peer, standby_of = _peer(site), site.get("site_standby_of") or ""
        if peer is None:
            continue  # not a dictionary, or a value in it is missing: told elsewhere
        name = str(peer.get("name", ""))
        if peer and (lacking := [key for key in ("name", "domain", "hosts") if not peer.get(key)]):
            yield site.problem(f"site_peer.{lacking[0]}", "nothing", "name, domain and hosts of the other site, or {}")
            continue
        if standby_of and standby_of != name:
            yield site.problem("site_standby_of", standby_of, f"site_peer.name, which is {name or 'not set'}")
        if name and name == site.get("site_name"):
            yield site.problem("site_peer.name", name, "the other site")
        elif name in by_name:
            yield from _agree(site, peer, by_name[name])


def _peer(site: Site) -> Mapping[str, Any] | None:
    """What a site says of the other one: {} where there is none, None where it cannot be told."""
    value = site.hosts[0].values.get("site_peer") or {}
    return value if isinstance(value, Mapping) else None


def _agree(site: Site, peer: Mapping[str, Any], other: Site) -> Iterator[Problem]:
    """What a site says of the other one is what that one says of itself; both inventories are given."""
    known = (_peer(other) or {}).get("name")
    if known != site.get("site_name"):
        yield other.problem("site_peer.name", known or "nothing", f"{site.get('site_name')}, which names this site")
    if bool(site.get("site_standby_of")) == bool(other.get("site_standby_of")) and site.group < other.group:
        both = f"{site.get('site_standby_of') or 'nothing'} and {other.get('site_standby_of') or 'nothing'}"
        yield Problem(
            f"{site.group}, {other.group}", "site_standby_of", both, "the name of the first site on the second"
        )
    if peer.get("domain") != other.get("site_domain"):
        yield site.problem(
            "site_peer.domain", peer.get("domain"), f"site_domain of the other, {other.get('site_domain')}"
        )
    said = {str(name): str(host.get("address")) for name, host in (peer.get("hosts") or {}).items()}
    found = {host.name: str(host.get("site_address")) for host in other.hosts}
    if differing := sorted(name for name in said.keys() | found.keys() if said.get(name) != found.get(name)):
        yield site.problem("site_peer.hosts", f"a difference in {', '.join(differing)}", "the other site's hosts")


# Checks of one site ---------------------------------------------------------------------------------------------------


def check_site_keys(site: Site) -> Iterator[Problem]:
    """The site's variables name the group that holds them and are the same on every host."""
    for host in site.hosts:
        if (group := host.get("site_group")) not in (None, site.group):
            yield host.problem("site_group", group, f"{site.group}, the group that the host is in")
    members = {host.name for host in site.hosts}
    listed = site.get("site_hosts")
    if isinstance(listed, list) and (lost := members ^ {str(name) for name in listed}):
        yield site.problem(
            "site_hosts", f"a list that differs in {', '.join(sorted(lost))}", "{{ groups[site_group] }}"
        )
    maintenance = ("site_maintenance_windows", "site_maintenance_calendars", "site_maintenance_respect_processes")
    for key in ("site_name", "site_domain", "site_vip", "site_network", "site_time_zone", *maintenance):
        values = {str(host.get(key)) for host in site.hosts}
        if len(values) > 1:
            yield site.problem(key, " and ".join(sorted(values)), "one value for the whole site")


def check_tiers(site: Site) -> Iterator[Problem]:
    for tier in REQUIRED_TIERS:
        if not site.tier(tier):
            yield site.problem(f"groups.{tier}", "no host of the site", "at least one host")
    balancers = len(site.tier("load_balancers"))
    if balancers not in (0, BALANCERS):
        yield site.problem(
            "groups.load_balancers", f"{balancers} hosts", f"{BALANCERS}, a pair that shares the virtual address"
        )


def check_addresses(site: Site) -> Iterator[Problem]:
    """What has to be an address or a network is one."""
    for host in site.hosts:
        address = host.get("site_address")
        if address is not None and as_address(address) is None:
            yield host.problem("site_address", address, "an IP address")
    control = site.get("site_control_addresses")
    if control == []:
        yield site.problem("site_control_addresses", control, "the address or network of the control node")
    for item in control if isinstance(control, list) else ():
        if as_network(item) is None:
            yield site.problem("site_control_addresses", item, "an IP address, or a network in CIDR notation")
    if (vip := site.get("site_vip")) is not None and as_address(vip) is None:
        yield site.problem("site_vip", vip, "an IP address")
    if (network := site.get("site_network")) is not None and as_network(network) is None:
        yield site.problem("site_network", network, "a network in CIDR notation, such as 192.0.2.0/24")


def check_virtual_address(site: Site) -> Iterator[Problem]:
    """The virtual address is free, and on the network that the balancers are on."""
    network, vip = as_network(site.get("site_network")), as_address(site.get("site_vip"))
    for host in site.hosts:
        for key in ("site_address", "ansible_host"):
            if vip is not None and as_address(host.get(key)) == vip:
                yield site.problem("site_vip", f"{vip}, which is {key} of {host.name}", "an address that no host has")
    if network is None:
        return
    if vip is not None and (vip not in network or vip in (network.network_address, network.broadcast_address)):
        yield site.problem("site_vip", vip, f"a host's address inside site_network {network}")
    prefix = site.get("site_vip_prefix")
    if str(prefix).isdigit() and not 1 <= int(prefix) <= network.max_prefixlen:
        yield site.problem("site_vip_prefix", prefix, f"1 to {network.max_prefixlen}")
    for host in site.tier("load_balancers"):
        address = as_address(host.get("site_address"))
        if address is not None and address not in network:
            yield host.problem(
                "site_address", address, f"an address inside site_network {network}, like any balancer's"
            )


def check_time_zone(site: Site) -> Iterator[Problem]:
    name = site.get("site_time_zone")
    if name is None:
        return
    try:
        zoneinfo.ZoneInfo(str(name))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        hint = did_you_mean(str(name), zoneinfo.available_timezones())
        yield site.problem("site_time_zone", name, f"a name of the IANA database, such as Europe/London{hint}")


def check_voters(site: Site) -> Iterator[Problem]:
    """MongoDB's members and Redis's sentinels can form a majority, and lose one where it matters."""
    fewest = MIN_VOTERS if as_bool(site.get("site_production", True)) else 1
    for tier in ("mongodb", "redis"):
        if tier == "mongodb" and site.get("site_standby_of"):
            continue  # none of them has a vote until the site has taken over, and then each of them
        voters = voters_of(site, tier)
        count = len(voters)
        if site.tier(tier) and (count % 2 == 0 or count < fewest):
            names = ", ".join(host.name for host in voters) or "none"
            yield site.problem(
                f"groups.{tier}", f"{count} voters ({names})", f"an odd number of voters, at least {fewest}"
            )


def check_zones(site: Site) -> Iterator[Problem]:
    """Losing one zone takes neither all of a tier nor the majority of its voters."""
    site_zones = {str(host.get("site_zone")) for host in site.hosts if host.get("site_zone") is not None}
    for tier in CLUSTERED_TIERS:
        members = [host for host in site.tier(tier) if host.get("site_zone") is not None]
        zones = Counter(str(host.get("site_zone")) for host in members)
        if len(members) > 1 and len(zones) < MIN_ZONES:
            names = ", ".join(host.name for host in members)
            yield site.problem(
                "site_zone", f"{next(iter(zones))} for all of {tier} ({names})", f"at least {MIN_ZONES} zones"
            )
        if tier in ("mongodb", "redis") and len(site_zones) > MIN_ZONES and len(zones) >= MIN_ZONES:
            voters = Counter(str(host.get("site_zone")) for host in voters_of(site, tier) if host.get("site_zone"))
            zone, count = max(voters.items(), key=lambda item: item[1], default=("", 0))
            if count * 2 > sum(voters.values()) > 1:
                seen = f"{zone} for {count} of {sum(voters.values())} voters of {tier}"
                yield site.problem("site_zone", seen, "no zone with the majority of the voters")


def check_numbers(site: Site) -> Iterator[Problem]:
    """VRRP's numbers are in its range, and the balancers' priorities differ."""
    for key, highest in (("load_balancer_priority", 254), ("load_balancer_virtual_router_id", 255)):
        for host in site.tier("load_balancers"):
            number = host.get(key)
            if str(number).lstrip("-").isdigit() and not 1 <= int(number) <= highest:
                yield host.problem(key, number, f"1 to {highest}")
    priorities = ((host.get("load_balancer_priority"), host.name) for host in site.tier("load_balancers"))
    for value, names in duplicates(priorities):
        where = ", ".join(names)
        yield Problem(where, "load_balancer_priority", f"{value} on {len(names)} hosts", "a number of its own for each")


SITE_CHECKS: tuple[Callable[[Site], Iterator[Problem]], ...] = (
    check_site_keys,
    check_tiers,
    check_addresses,
    check_virtual_address,
    check_time_zone,
    check_voters,
    check_zones,
    check_numbers,
)


# Small helpers --------------------------------------------------------------------------------------------------------


def reached_by(host: Host) -> str | None:
    """Address and port that the control node reaches a host by, where they are set."""
    address, port = host.get("ansible_host"), host.get("ansible_port")
    return None if address is None else f"{address} port {port}" if port else str(address)


def router_id(site: Site) -> tuple[str, str] | None:
    """Network and VRRP id of a site's pair, where both are set."""
    ids = [host.get("load_balancer_virtual_router_id") for host in site.tier("load_balancers")]
    network = site.get("site_network")
    return (str(network), str(ids[0])) if network is not None and ids and ids[0] is not None else None


def voters_of(site: Site, tier: str) -> tuple[Host, ...]:
    """The members of a tier that vote. Every Redis host runs a sentinel; a MongoDB member may have no vote."""
    return tuple(host for host in site.tier(tier) if tier != "mongodb" or str(host.get("mongodb_votes", 1)) != "0")


def merged(problems: Iterable[Problem], hosts: Iterable[Host]) -> list[Problem]:
    """Sorted, and a problem that many hosts share told once: for the site or the tier, where it is all of it."""
    sets: dict[frozenset[str], str] = {}
    for site in sites_of(hosts):
        for tier in TIERS:
            sets.setdefault(frozenset(host.name for host in site.tier(tier)), f"{tier} of {site.group}")
        sets[frozenset(host.name for host in site.hosts)] = site.group
    places: defaultdict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for problem in problems:
        places[problem.key, problem.seen, problem.wanted, problem.origin].append(problem.where)
    result = []
    for (key, seen, wanted, origin), names in places.items():
        where = (
            sets[frozenset(names)] if len(names) > 1 and frozenset(names) in sets else ", ".join(dict.fromkeys(names))
        )
        result.append(Problem(where, key, seen, wanted, origin))
    return sorted(result, key=lambda problem: (problem.key, problem.where, problem.seen))


def duplicates(pairs: Iterable[tuple[Any, str]]) -> Iterator[tuple[Any, list[str]]]:
    """The values that more than one name has; `None` is no value."""
    names: defaultdict[Any, list[str]] = defaultdict(list)
    for value, name in pairs:
        if isinstance(value, Hashable) and value is not None:
            names[value].append(name)
    return ((value, found) for value, found in names.items() if len(found) > 1)


def placeholders(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Key and text of each value that still is a placeholder, however deep."""
    if isinstance(value, str):
        if PLACEHOLDER in value:
            yield key, next(word for word in value.split() if PLACEHOLDER in word)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from placeholders(item, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from placeholders(item, f"{key}[{index}]")


def loose_type(option: Option, value: Any) -> list[str]:
    """What Ansible's check lets pass because it would convert it, while a role reads the value as it was written."""
    kind = option.get("type", "str")
    accepted: dict[str, Callable[[Any], bool]] = {
        "str": lambda found: not isinstance(found, (bool, list, dict)),  # `no` without quotes is false
        "list": lambda found: isinstance(found, list),
        "dict": lambda found: isinstance(found, dict),
    }
    return [] if kind not in accepted or accepted[kind](value) else [f"not a {kind} but a {type(value).__name__}"]


def is_secret(name: str, option: Option) -> bool:
    """Whether a value must not be shown: its spec, its name or its description says so, or it holds such values."""
    inner: Options = option.get("options") or {}
    return (
        bool(option.get("no_log"))
        or SECRET_NAME.search(name) is not None
        or "secret" in str(option.get("description")).lower()
        or any(is_secret(key, found) for key, found in inner.items())
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""


def describe(option: Option) -> str:
    """Type, choices and first sentence of an option's description."""
    kind = str(option.get("type", "str"))
    if option.get("elements"):
        kind += f" of {option['elements']}"
    if option.get("choices"):
        kind = "one of " + ", ".join(str(choice) for choice in option["choices"])
    text = option.get("description", "")
    text = text[0] if isinstance(text, (list, tuple)) and text else text
    sentence = MARKUP.sub(r"\1", str(text).split(". ")[0].rstrip("."))
    return f"{kind} ({sentence})" if sentence else kind


def show(value: object, limit: int = 80) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def as_address(value: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(str(value))
    except ValueError:
        return None


def as_network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(str(value))
    except ValueError:
        return None


def as_bool(value: object) -> bool:
    return str(value).lower() in ("true", "yes", "1", "on")
