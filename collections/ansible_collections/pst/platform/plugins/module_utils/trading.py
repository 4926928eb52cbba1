# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the variables of the role `trading` mean together: the table of processes, and every rule that they must keep.

Plain Python. `validate.yml` asks for the rules with the inventory alone, the role asks for them again before its first
change, with its defaults: the same functions both times.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from ansible_collections.pst.platform.plugins.module_utils.inventory_check import (
    Contract,
    Host,
    Problem,
    Site,
    Unresolved,
    as_bool,
    did_you_mean,
)

ROLE = ("trading", "main")
PREFIX = "trading_"
# The only placement whose holder the gate lets send orders.
ORDERS = "trading"
STACK_HANDLER = "run_stack_handler"
# Their methods are named after the strategies.
STRATEGY_PROCESSES = ("run_systems", "run_strategy_order_generator")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
# Paper accounts of Interactive Brokers.
PAPER = "D"
WEIGHT_TOLERANCE = 1e-9
TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
# A process names a unit, a placement a slice, a strategy a key of pysystemtrade's configuration.
NAME = re.compile(r"[a-z][a-z0-9_]*")
STRATEGY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
ACCOUNT = re.compile(r"[A-Z]{1,3}[0-9]+")

# What pysystemtrade itself has for a strategy.
SYSTEM = "sysproduction.strategy_code.run_system_classic.runSystemClassic"
SYSTEM_METHOD = "system_method"
STRATEGY_REPORT = "sysproduction.strategy_code.report_system_classic.report_system_classic"
ORDER_GENERATOR = "sysexecution.strategies.classic_buffered_positions.orderGeneratorForBufferedPositions"

DIRECTORIES = (
    "trading_parquet_store",
    "trading_backtest_directory",
    "trading_csv_backup_directory",
    "trading_mongo_dump_directory",
    "trading_echo_directory",
    "trading_report_directory",
    "trading_offsystem_backup_directory",
)
# A place on another machine, as rsync names it; pysystemtrade leaves it as it is.
REMOTE = re.compile(r"[^/:@\s]+@[^/:@\s]+:/\S*")

PROCESS: Mapping[str, Any] = {
    "function": "",
    "process_control_name": "",
    "placement": "",
    "kind": "",
    "start": "",
    "stop": "",
    "days": ["Mon", "Tue", "Wed", "Thu", "Fri"],
    "previous": "",
    "rerun": True,
    "arguments": {},
    "environment": {},
    "user": "pst",
    "cpu_percent": 0,
    "memory_mb": 0,
}
"""A process with what is left out; empty numbers stand for the role's own, empty names follow from the name."""

Settings = Mapping[str, Any]


class Finding(NamedTuple):
    """One thing that is wrong with the settings."""

    key: str
    seen: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.key}: seen {self.seen}; wanted {self.wanted}"


@dataclass(frozen=True)
class ClientIds:
    """The range of client ids that pysystemtrade takes its own from."""

    first: int
    size: int

    @property
    def last(self) -> int:
        return self.first + self.size - 1

    def holds(self, number: int) -> bool:
        return self.first <= number <= self.last

    def meets(self, other: ClientIds) -> bool:
        return self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"


# The table ------------------------------------------------------------------------------------------------------------


def process_table(
    processes: Iterable[Mapping[str, Any]], extra: Iterable[Mapping[str, Any]] = (), **usual: Any
) -> list[dict[str, Any]]:
    """The table with every key of every process: `extra` changes keys of the process that it names, or adds one."""
    table: dict[str, dict[str, Any]] = {}
    for given in (*processes, *extra):
        name = str(given["name"])
        table[name] = {**table.get(name, {"name": name, **PROCESS, **usual}), **given}
    for name, process in table.items():
        process["function"] = process["function"] or f"sysproduction.{name}.{name}"
        process["process_control_name"] = process["process_control_name"] or name
    return list(table.values())


def guard_tables(table: Iterable[Mapping[str, Any]], placed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What the guard is told of the table (trading.json)."""
    keys = ("name", "process_control_name", "placement", "kind", "start", "stop", "days", "previous", "rerun")
    return {
        "placements": {name: {"hosts": list(hosts)} for name, hosts in placed.items()},
        "processes": [{key: process[key] for key in keys} for process in table],
    }


def strategy_list(given: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """pysystemtrade's `strategy_list`: how reports load each strategy."""
    return {
        strategy["name"]: {
            "load_backtests": {
                "object": strategy.get("system") or SYSTEM,
                "function": strategy.get("system_method") or SYSTEM_METHOD,
            },
            "reporting_code": {"function": strategy.get("report") or STRATEGY_REPORT},
        }
        for strategy in given
    }


def strategy_methods(given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The methods of the two processes that have one per strategy (`process_configuration_methods`)."""
    systems, generator = STRATEGY_PROCESSES
    return {
        systems: {
            strategy["name"]: {
                "max_executions": 1,
                "object": strategy.get("system") or SYSTEM,
                **({"backtest_config_filename": config} if (config := strategy.get("backtest_config")) else {}),
            }
            for strategy in given
        },
        generator: {
            strategy["name"]: {"max_executions": 1, "object": strategy.get("order_generator") or ORDER_GENERATOR}
            for strategy in given
        },
    }


# The rules ------------------------------------------------------------------------------------------------------------


def findings(
    settings: Settings, *, production: bool, nodes: Sequence[str], reserved_ids: Iterable[tuple[str, int]] = ()
) -> list[Finding]:
    """Everything that is wrong. A setting that is not there is not judged: a part of them may be all that is known."""
    return [
        *account(settings, production=production),
        *directories(settings),
        *strategies(settings),
        *placements(settings, nodes),
        *process_rules(settings),
        *strategy_names(settings),
        *client_ids(settings, reserved_ids),
        *lease(settings),
    ]


def account(settings: Settings, *, production: bool) -> Iterator[Finding]:
    key = "trading_broker_account"
    if key not in settings:
        return
    seen = str(settings[key])
    if not ACCOUNT.fullmatch(seen):
        yield Finding(key, repr(seen), f"the account at the broker, such as U1234567, or {PAPER}U1234567 for paper")
    elif not production and not seen.startswith(PAPER):
        wanted = f"a paper account, which begins with {PAPER}, because site_production is false"
        yield Finding(key, seen, wanted)


def directories(settings: Settings) -> Iterator[Finding]:
    for key in DIRECTORIES:
        path = settings.get(key)
        if path is None or REMOTE.fullmatch(str(path)):
            continue
        if not str(path).startswith("/"):
            yield Finding(key, str(path), "an absolute path")
        elif "." in str(path):
            yield Finding(key, str(path), "a path without a dot, which pysystemtrade takes for a separator of folders")


def strategies(settings: Settings) -> Iterator[Finding]:
    key = "trading_strategies"
    given = settings.get(key)
    if given is None:
        return
    if not given:
        yield Finding(key, "no strategy", "at least one")
        return
    for name, count in Counter(str(strategy["name"]) for strategy in given).items():
        if count > 1:
            yield Finding(f"{key}.name", f"{name} {count} times", "names that differ")
        if not STRATEGY_NAME.fullmatch(name):
            yield Finding(f"{key}.name", name, "letters, digits and _")
    for strategy in given:
        for number in ("capital_weight", "risk_limit"):
            value = float(strategy[number])
            if not 0 < value <= 1:
                yield Finding(f"{key}.{strategy['name']}.{number}", f"{value:g}", "above 0, at most 1")
    total = sum(float(strategy["capital_weight"]) for strategy in given)
    if abs(total - 1) > WEIGHT_TOLERANCE:
        weights = " + ".join(f"{float(strategy['capital_weight']):g}" for strategy in given)
        yield Finding(f"{key}.capital_weight", f"{weights} = {total:.10g}", "weights that add up to 1")


def placements(settings: Settings, nodes: Sequence[str]) -> Iterator[Finding]:
    key = "trading_placements"
    given = settings.get(key)
    if given is None:
        return
    if ORDERS not in given:
        yield Finding(key, ", ".join(given) or "nothing", f"{ORDERS} among them{did_you_mean(ORDERS, given)}")
    for name, hosts in given.items():
        if not NAME.fullmatch(str(name)):
            yield Finding(f"{key}.{name}", str(name), "a name of small letters, digits and _")
        if not hosts:
            yield Finding(f"{key}.{name}", "no host", "the hosts that may run it, the preferred one first")
        for host in hosts:
            if nodes and host not in nodes:
                wanted = f"hosts of the group app_nodes in this site{did_you_mean(str(host), nodes)}"
                yield Finding(f"{key}.{name}", str(host), wanted)
        if len(set(hosts)) < len(hosts):
            yield Finding(f"{key}.{name}", ", ".join(hosts), "each host once")
    hosts = sorted({str(host) for chosen in given.values() for host in chosen})
    if "trading_parquet_shared" in settings and not as_bool(settings["trading_parquet_shared"]) and len(hosts) > 1:
        wanted = (
            "one host for all placements, because trading_parquet_shared is false: a process on another host"
            " would not find the positions and prices"
        )
        yield Finding(key, ", ".join(hosts), wanted)


def process_rules(settings: Settings) -> Iterator[Finding]:
    key = "trading_processes"
    if key not in settings:
        return
    extra = settings.get("trading_processes_extra", ())
    known = {str(process["name"]) for process in settings[key]}
    for process in extra:
        if process["name"] not in known and not process.get("function"):
            wanted = f"a process of {key}{did_you_mean(str(process['name']), known)}, or a new one with its function"
            yield Finding("trading_processes_extra.name", str(process["name"]), wanted)
            return
    table = {process["name"]: process for process in process_table(settings[key], extra)}
    for name, process in table.items():
        yield from (
            Finding(f"{key}.{name}.{field}", seen, wanted)
            for field, seen, wanted in process_problems(process, table, settings.get("trading_placements"))
        )
    for circle in circles({name: str(process["previous"]) for name, process in table.items()}):
        yield Finding(f"{key}.previous", " after ".join(circle), "no circle: none of them would ever start")
    for name, count in Counter(str(process["process_control_name"]) for process in table.values()).items():
        if count > 1:
            yield Finding(f"{key}.process_control_name", f"{name} {count} times", "names that differ")


def process_problems(
    process: Mapping[str, Any], table: Mapping[str, Any], placed: Mapping[str, Any] | None
) -> Iterator[tuple[str, str, str]]:
    name, placement = str(process["name"]), str(process["placement"])
    if not NAME.fullmatch(name):
        yield "name", name, "small letters, digits and _"
    if placed is not None and placement not in placed:
        yield "placement", placement or "nothing", f"one of {', '.join(placed)}{did_you_mean(placement, placed)}"
    if name == STACK_HANDLER and placement != ORDERS:
        yield "placement", placement, f"{ORDERS}: the gate passes orders of its holder only"
    if process["kind"] not in ("service", "daily"):
        yield "kind", str(process["kind"]) or "nothing", "service or daily"
    yield from window_problems(process)
    previous = str(process["previous"])
    if previous and previous not in table:
        yield "previous", previous, f"the name of a process{did_you_mean(previous, table)}"


def window_problems(process: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    times = {field: str(process[field]) for field in ("start", "stop")}
    for field, seen in times.items():
        if not TIME.fullmatch(seen):
            yield field, seen or "nothing", "HH:MM, in quotes"
    if all(TIME.fullmatch(seen) for seen in times.values()) and times["stop"] <= times["start"]:
        yield "stop", times["stop"], f"later than the start {times['start']}: a window does not pass midnight"
    for day in process["days"]:
        if day not in DAYS:
            yield "days", str(day), f"of {', '.join(DAYS)}{did_you_mean(str(day), DAYS)}"
    if not process["days"]:
        yield "days", "no day", f"some of {', '.join(DAYS)}"


def circles(previous: Mapping[str, str]) -> Iterator[list[str]]:
    """Every circle of processes that wait for each other, once, from its first name in the alphabet."""
    for start in sorted(previous):
        path = [start]
        while (following := previous.get(path[-1], "")) and following not in path:
            path.append(following)
        if following == start and start == min(path):
            yield [*path, start]


def strategy_names(settings: Settings) -> Iterator[Finding]:
    """What is said about single processes and strategies is said about ones that exist."""
    if "trading_strategies" not in settings or "trading_processes" not in settings:
        return
    known = {str(strategy["name"]) for strategy in settings["trading_strategies"]}
    table = process_table(settings["trading_processes"], settings.get("trading_processes_extra", ()))
    controlled = {str(process["process_control_name"]) for process in table}
    key = "trading_process_methods"
    for process, methods in settings.get(key, {}).items():
        if process not in controlled:
            wanted = f"a process by its name in process control{did_you_mean(str(process), controlled)}"
            yield Finding(key, str(process), wanted)
        for method in methods if process in STRATEGY_PROCESSES else ():
            if method not in known:
                wanted = f"a strategy of trading_strategies{did_you_mean(str(method), known)}"
                yield Finding(f"{key}.{process}", str(method), wanted)


def client_ids(settings: Settings, reserved: Iterable[tuple[str, int]]) -> Iterator[Finding]:
    ids = range_of(settings)
    if ids is None:
        return
    if ids.first < 1 or ids.size < 1:
        yield Finding("trading_client_id_offset", str(ids), "client ids from 1 on, at least one")
    numbers = sorted(set(reserved))
    if "trading_recover_client_id" in settings:
        numbers.append(("trading_recover_client_id", int(settings["trading_recover_client_id"])))
    for key, number in numbers:
        if ids.holds(number):
            wanted = f"outside the client ids of pysystemtrade, {ids} (trading_client_id_offset, _count)"
            yield Finding(key, str(number), wanted)
    for (one, number), (other, same) in combinations(numbers, 2):
        if number == same and one != other:
            yield Finding(other, str(same), f"another client id than {one}")


def range_of(settings: Settings) -> ClientIds | None:
    keys = ("trading_client_id_offset", "trading_client_id_count")
    return ClientIds(*(int(settings[key]) for key in keys)) if all(key in settings for key in keys) else None


def lease(settings: Settings) -> Iterator[Finding]:
    names = ("ttl", "renew", "margin", "drain_after", "rank_delay")
    keys = {name: f"trading_lease_{name}_seconds" for name in names}
    if not all(key in settings for key in keys.values()):
        return
    ttl, renew, margin, drain_after, rank_delay = (float(settings[keys[name]]) for name in names)
    for name, value, lowest in (("renew", renew, 0.1), ("margin", margin, 1.0), ("rank_delay", rank_delay, 0.0)):
        if value < lowest:
            yield Finding(keys[name], f"{value:g}", f"at least {lowest:g}")
    if renew * 3 > ttl - margin:
        wanted = (
            f"at most a third of {keys['ttl']} - {keys['margin']} ({(ttl - margin) / 3:g}),"
            " so that two renewals may fail"
        )
        yield Finding(keys["renew"], f"{renew:g}", wanted)
    if not renew < drain_after < ttl - margin:
        wanted = (
            f"between {keys['renew']} ({renew:g}) and {keys['ttl']} - {keys['margin']} ({ttl - margin:g}),"
            " when the processes are killed"
        )
        yield Finding(keys["drain_after"], f"{drain_after:g}", wanted)


# A running site -------------------------------------------------------------------------------------------------------


def status_problems(status: str, placed: Iterable[str]) -> list[str]:
    """What `pst-trading status --json` says that is not well: the guard away, a lease that nobody holds."""
    try:
        known = json.loads(status)
    except ValueError:
        return [status.strip() or "pst-trading says nothing"]
    problems = [str(problem) for problem in known["problems"]]
    leases = known["leases"]
    for placement in placed if leases is not None else ():
        lease = leases.get(placement)
        if lease and lease["revoked"]:
            problems.append(f"{placement}: revoked by {lease['revoked']['by']}: {lease['revoked']['reason']}")
        elif not lease or not lease["holder"]:
            problems.append(f"{placement}: held by nobody")
    return problems


# The inventory --------------------------------------------------------------------------------------------------------


def check_sites(sites: Sequence[Site], contract: Contract) -> Iterator[Problem]:
    """The rules for each site, and that sites which are given together do not take each other's client ids."""
    ranges: dict[str, ClientIds] = {}
    for site in sites:
        nodes = site.tier("app_nodes")
        if not nodes:
            continue
        settings = effective(nodes[0], contract, ROLE)
        for key, seen, wanted in findings(
            settings,
            production=as_bool(site.get("site_production", True)),
            nodes=[host.name for host in nodes],
            reserved_ids=gateway_ids(site, contract),
        ):
            origin = nodes[0].origins.get(key.partition(".")[0], "")
            yield Problem(f"app_nodes of {site.group}", key, seen, wanted, origin)
        if ids := range_of(settings):
            ranges[site.group] = ids
    for (one, ids), (other, same) in combinations(ranges.items(), 2):
        if ids.meets(same):
            seen = f"{ids} and {same}"
            wanted = "ranges that do not meet: the gateway refuses a client id that is in use"
            yield Problem(f"{one}, {other}", "trading_client_id_offset", seen, wanted)


def gateway_ids(site: Site, contract: Contract) -> Iterator[tuple[str, int]]:
    """The client ids of the site's gateways that are not pysystemtrade's."""
    options = contract.roles.get(("ib_gateway", "main"), {})
    for key in ("ib_gateway_probe_client_id", "ib_gateway_watch_client_id", "ib_gateway_master_client_id"):
        for host in site.tier("ib_gateways"):
            number = str(host.get(key, options.get(key, {}).get("default", "")))
            if number.isdigit():
                yield key, int(number)


def effective(host: Host, contract: Contract, role: tuple[str, str]) -> dict[str, Any]:
    """The settings of a host as far as the inventory and the role's plain defaults tell them."""
    settings = {}
    for key, option in contract.roles.get(role, {}).items():
        value = host.values.get(key, option.get("default"))
        templated = key not in host.values and "{{" in str(value)
        if value is not None and not templated and not isinstance(value, Unresolved) and fits(option, value):
            settings[key] = value
    return settings


def fits(option: Mapping[str, Any], value: Any) -> bool:
    """Whether a value has the form that the rules expect; a wrong one is told by the check of the options."""
    if option.get("type") in ("int", "float"):
        return re.fullmatch(r"-?\d+(\.\d+)?", str(value)) is not None
    if option.get("type") == "dict":
        return isinstance(value, Mapping)
    if option.get("type") != "list":
        return not isinstance(value, (list, dict))
    inner = option.get("options") or {}
    required = [key for key, found in inner.items() if found.get("required")]
    return isinstance(value, list) and all(
        not inner
        or (
            isinstance(item, Mapping)
            and all(key in item for key in required)
            and all(fits(inner.get(key, {}), found) for key, found in item.items())
        )
        for item in value
    )
