# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the variables of the role `ib_gateway` mean together: every rule that they must keep.

Plain Python. `validate.yml` asks for the rules with the inventory alone, the role asks for them again before its first
change, with its defaults: the same functions both times.
"""

from __future__ import annotations

import datetime
import re
import zoneinfo
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils.inventory_check import (
    Contract,
    Host,
    Problem,
    Site,
    as_bool,
)
from ansible_collections.pst.platform.plugins.module_utils.trading import DAYS, PAPER, Finding, effective

ROLE = ("ib_gateway", "main")
PREFIX = "ib_gateway_"
CLOCK_24 = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
CLOCK_12 = re.compile(r"(0?[1-9]|1[0-2]):([0-5][0-9]) ([AP])M")
SHA256 = re.compile(r"[0-9a-f]{64}")
# The broker's servers end every session of the week then; a full login before that is lost again.
BROKER_ZONE, BROKER_WEEK_ENDS = "America/New_York", datetime.time(1, 0)
A_SUNDAY = datetime.date(2026, 1, 4)

Settings = Mapping[str, Any]


def findings(settings: Settings, *, production: bool, time_zone: str = "") -> list[Finding]:
    """All that is wrong with the settings of one host, as far as they are known."""
    return [
        *program(settings),
        *numbers(settings),
        *account(settings, production=production),
        *window(settings),
        *restart_times(settings, time_zone),
    ]


def program(settings: Settings) -> Iterator[Finding]:
    kind = settings.get("ib_gateway_program", "ibgateway")
    needs = {
        "simulator": ("ib_gateway_simulator_source",),
        "ibgateway": ("ib_gateway_version", "ib_gateway_installer_url", "ib_gateway_installer_sha256"),
    }
    for key in needs.get(kind, ()):
        if settings.get(key, None) == "":
            yield Finding(key, "nothing", f"a value, since ib_gateway_program is {kind}")
    for key in ("ib_gateway_installer_sha256", "ib_gateway_ibc_sha256"):
        seen = str(settings.get(key, ""))
        if seen and not SHA256.fullmatch(seen):
            yield Finding(key, seen, "a SHA-256: 64 digits of 0-9 and a-f")


def numbers(settings: Settings) -> Iterator[Finding]:
    """Ports and client ids that must differ do."""
    groups = (
        ("ib_gateway_port", "ib_gateway_api_port", "ib_gateway_command_port"),
        ("ib_gateway_probe_client_id", "ib_gateway_watch_client_id", "ib_gateway_master_client_id"),
    )
    for keys in groups:
        taken: dict[str, str] = {}
        for key in keys:
            number = str(settings.get(key, ""))
            if number and number in taken:
                yield Finding(key, f"{number}, which is {taken[number]}", "a number of its own")
            taken.setdefault(number, key)


def account(settings: Settings, *, production: bool) -> Iterator[Finding]:
    mode = settings.get("ib_gateway_trading_mode")
    if mode == "live" and not production:
        yield Finding("ib_gateway_trading_mode", "live", "paper, because site_production is false")
    for seen in map(str, settings.get("ib_gateway_accounts", ())):
        if not production and not seen.startswith(PAPER):
            wanted = f"paper accounts, which begin with {PAPER}, because site_production is false"
            yield Finding("ib_gateway_accounts", seen, wanted)
        elif mode is not None and seen.startswith(PAPER) != (mode == "paper"):
            wanted = f"{mode} accounts, because of ib_gateway_trading_mode; paper accounts begin with {PAPER}"
            yield Finding("ib_gateway_accounts", seen, wanted)


def window(settings: Settings) -> Iterator[Finding]:
    key = "ib_gateway_trading_window"
    given = settings.get(key)
    if not isinstance(given, Mapping):
        return
    for name in ("start", "stop"):
        if not CLOCK_24.fullmatch(str(given.get(name))):
            yield Finding(f"{key}.{name}", str(given.get(name)), 'a time of day such as "19:45"')
    if wrong := [str(day) for day in given.get("days", ()) if day not in DAYS]:
        yield Finding(f"{key}.days", ", ".join(wrong), f"some of {', '.join(DAYS)}")
    if str(given.get("start")) >= str(given.get("stop")):
        yield Finding(f"{key}.stop", str(given.get("stop")), f"a time after its start {given.get('start')}")


def restart_times(settings: Settings, time_zone: str) -> Iterator[Finding]:
    """The program ends its sessions only while nobody trades."""
    restart, logoff = (f"ib_gateway_auto_{name}_time" for name in ("restart", "logoff"))
    if settings.get(restart) and settings.get(logoff):
        yield Finding(logoff, f"{settings[logoff]}, beside {restart} {settings[restart]}", "one of them")
    for key in (restart, logoff):
        seen = str(settings.get(key, ""))
        if not seen:
            continue
        if (clock := clock_of(seen)) is None:
            yield Finding(key, seen, "a time of day such as 11:45 PM")
        elif inside(settings, clock):
            yield Finding(key, seen, outside(settings))
    key = "ib_gateway_cold_restart_time"
    seen = str(settings.get(key, ""))
    if not seen:
        return
    if not CLOCK_24.fullmatch(seen):
        yield Finding(key, seen, 'a time of day such as "07:05"')
        return
    if inside(settings, seen, "Sun"):
        yield Finding(key, f"{seen} on Sundays", outside(settings))
    if before_the_week_ends(seen, time_zone):
        yield Finding(key, f"{seen} on Sundays in {time_zone}", f"a time after 01:00 in {BROKER_ZONE}")


def clock_of(seen: str) -> str | None:
    """`11:45 PM` as `23:45`."""
    match = CLOCK_12.fullmatch(seen)
    if match is None:
        return None
    hour = int(match[1]) % 12 + (12 if match[3] == "P" else 0)
    return f"{hour:02}:{match[2]}"


def inside(settings: Settings, clock: str, day: str = "") -> bool:
    """Whether a time of day lies in the trading window: of that day, or of any."""
    given = settings.get("ib_gateway_trading_window")
    if not isinstance(given, Mapping) or list(window(settings)):
        return False
    days = given.get("days", DAYS[:5])
    return bool(days) and (not day or day in days) and str(given["start"]) <= clock < str(given["stop"])


def outside(settings: Settings) -> str:
    given = settings["ib_gateway_trading_window"]
    days = given.get("days", DAYS[:5])
    return f"a time outside ib_gateway_trading_window, {given['start']} to {given['stop']} on {', '.join(days)}"


def before_the_week_ends(clock: str, time_zone: str) -> bool:
    """Whether a time on Sunday comes before the broker has ended the week's sessions."""
    try:
        zone = zoneinfo.ZoneInfo(time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    hour, minute = map(int, clock.split(":"))
    there = datetime.datetime.combine(A_SUNDAY, datetime.time(hour, minute), zone).astimezone(
        zoneinfo.ZoneInfo(BROKER_ZONE)
    )
    return there.date() < A_SUNDAY or (there.date() == A_SUNDAY and there.time() < BROKER_WEEK_ENDS)


# The inventory --------------------------------------------------------------------------------------------------------


def check_sites(sites: Sequence[Site], contract: Contract) -> Iterator[Problem]:
    """The rules for each gateway host, and that no user name has two active gateways, in all the sites given."""
    active: defaultdict[str, list[Host]] = defaultdict(list)
    for site in sites:
        gateways = sorted(site.tier("ib_gateways"), key=lambda host: host.name)
        for host in gateways:
            settings = effective(host, contract, ROLE)
            found = findings(
                settings,
                production=as_bool(site.get("site_production", True)),
                time_zone=str(site.get("site_time_zone", "")),
            )
            for key, seen, wanted in found:
                yield Problem(host.name, key, seen, wanted, host.origins.get(key.partition(".")[0], ""))
            username = host.get("ib_gateway_username")
            # The role's default: the first of the tier.
            if username and as_bool(host.get("ib_gateway_active", host is gateways[0])):
                active[str(username)].append(host)
    for hosts in active.values():
        if len(hosts) > 1:
            where = ", ".join(host.name for host in hosts)
            seen = f"true on {len(hosts)} hosts with one ib_gateway_username"
            origin = hosts[-1].origins.get("ib_gateway_active", "")
            yield Problem(where, "ib_gateway_active", seen, "true on one host: the broker allows one session", origin)
