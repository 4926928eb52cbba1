"""Real faults, each with a load or a writer running; the verdict is the client's.

The bars are those of the issue; the machine is slow and shared, so the figures measured are kept in reports/lab.json.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import lab

from tests.stalls import Stalls

PROBE = ("https://" + f"trading.{lab.DOMAIN}/version", "--connect", lab.VIP, "--ca", str(lab.STATE / "pki" / "ca.crt"))


@contextlib.contextmanager
def load(seconds: int, timeout: int = 2) -> Iterator[lab.Probe]:
    with lab.tool(lab.PROBE, *PROBE, "--rate=50", f"--duration={seconds}", f"--timeout={timeout}") as probe:
        lab.eventually("the probe's first request", lambda: probe.process.poll() is None, 5)
        yield probe


def mongodb_writer(seconds: int, *options: str) -> contextlib.AbstractContextManager[lab.Probe]:
    hosts = ",".join(f"{host}.{lab.DOMAIN}:27017" for host in lab.MONGODB)
    return lab.writer(
        "mongo_writer.py",
        *("--hosts", hosts, "--replica-set", "pysystemtrade-rs", "--user", "app", "--database", "production"),
        *("--password-file", "/etc/pst/credentials/mongodb_password", "--ca-file", "/etc/pst/pki/ca.crt"),
        *("--seconds", str(seconds), "--rate", "50", *options),
    )


def redis_writer(seconds: int, *options: str) -> contextlib.AbstractContextManager[lab.Probe]:
    return lab.writer(
        "redis_writer.py",
        *("--sentinels", *(f"{host}.{lab.DOMAIN}:26379" for host in lab.REDIS)),
        *("--password-file", "/etc/pst/credentials/redis_password", "--ca", "/etc/pst/pki/ca.crt"),
        *("--seconds", str(seconds), "--rate", "50", *options),
    )


def mongodb_primary() -> str:
    """Ask the members themselves; `hello` needs no login."""
    ask = (
        'import pymongo; print(pymongo.MongoClient("localhost", directConnection=True, tls=True, '
        'tlsCAFile="/etc/pst/pki/ca.crt", serverSelectionTimeoutMS=3000).admin.command("isMaster").get("ismaster"))'
    )
    command = f"python3 -c '{ask}'"
    primaries = [host for host in lab.MONGODB if lab.running(host) and lab.ssh(host, command, check=False) == "True"]
    assert len(primaries) == 1, f"primaries: {primaries}, wanted exactly one"
    return primaries[0]


def redis_master() -> str:
    password = lab.secret("redis_monitor_password")
    ask = (
        "REDISCLI_AUTH=$(cat) redis-cli --no-auth-warning --user monitor --tls --cacert /etc/pst/pki/ca.crt"
        " -h localhost info replication | grep -o role:master"
    )
    masters = [
        host
        for host in lab.REDIS
        if lab.running(host) and lab.ssh(host, ask, check=False, stdin=password) == "role:master"
    ]
    assert len(masters) == 1, f"masters: {masters}, wanted exactly one"
    return masters[0]


def sentinels_in_tilt() -> list[str]:
    ask = (
        "REDISCLI_AUTH=$(cat) redis-cli --no-auth-warning --user monitor --tls --cacert /etc/pst/pki/ca.crt"
        " -h localhost -p 26379 info sentinel"
    )
    password = lab.secret("redis_monitor_password")
    return [host for host in lab.REDIS if "sentinel_tilt:0" not in lab.ssh(host, ask, check=False, stdin=password)]


def short(result: dict[str, Any]) -> dict[str, Any]:
    wanted = ("sent", "ok", "acked", "failed", "lost", "longest_gap_s", "longest_outage_s", "late_ms")
    return {key: result[key] for key in wanted if key in result}


def test_haproxy_killed_on_the_holder_of_the_virtual_address() -> None:
    holder = lab.vip_holder()
    with load(20) as probe:
        lab.ssh(holder, "systemctl kill -s KILL haproxy")
        result = probe.finish()
    lab.record("haproxy_killed", **short(result))
    assert result["longest_gap_s"] <= 2.1 + result["late_ms"] / 1000
    lab.wait_until_all_serve()


def test_balancer_that_holds_the_virtual_address_loses_its_power() -> None:
    holder = lab.vip_holder()
    with load(20) as probe:
        lab.engine("kill", lab.container(holder))
        result = probe.finish()
    lab.engine("start", lab.container(holder))
    lab.record("balancer_lost", bar_s=0.5, **short(result))
    assert result["longest_gap_s"] <= 0.5 * lab.SLACK + result["late_ms"] / 1000
    lab.wait_until_all_serve()


def test_a_balancer_that_a_killed_run_has_drained_takes_part_again() -> None:
    """What a run of site.yml leaves that is killed after a balancer's restart, before it gives the balancer back."""
    (left,) = {*lab.BALANCERS} - {lab.vip_holder()}
    lab.ssh(left, "touch /run/pst/drained_by_run && pst-lb release maintenance")
    lab.succeed(lab.playbook("site", "--tags", "load_balancer"))
    assert json.loads(lab.ssh(left, "pst-lb state"))["forbidden"] == []
    again = lab.succeed(lab.playbook("site", "--tags", "load_balancer"))
    assert again.total("changed") == 0, again.changed_tasks()


def test_trading_that_a_killed_run_has_held_for_a_gateway_is_given_back() -> None:
    """What a hand-over leaves that is killed after trading was drained; the mark may be on either gateway's host."""
    lab.ssh("lab-app1", "pst-trading lease want nobody --wait 330", timeout=360)
    lab.ssh("lab-ibgw2", "touch /etc/pst/ib-gateway/paused")
    lab.succeed(lab.playbook("site", "--tags", "ib_gateway"))
    lab.ssh("lab-ibgw2", "test ! -e /etc/pst/ib-gateway/paused")
    lab.eventually("trading again", lambda: "held by lab-" in lab.ssh("lab-app1", "pst-trading lease show"))
    again = lab.succeed(lab.playbook("site", "--tags", "ib_gateway"))
    assert again.total("changed") == 0, again.changed_tasks()


def test_app_node_loses_its_power() -> None:
    with load(25) as probe:
        lab.engine("kill", lab.container("lab-app2"))
        result = probe.finish()
    lab.engine("start", lab.container("lab-app2"))
    lab.record("app_node_lost", **short(result))
    assert result["longest_gap_s"] <= 3 + result["late_ms"] / 1000
    lab.wait_until_all_serve()


def test_mongodb_primary_is_killed_and_nothing_acknowledged_is_lost() -> None:
    primary = lab.eventually("one primary", mongodb_primary)
    with Stalls() as stalls, mongodb_writer(30) as writer:
        time.sleep(5)  # a load before the fault, so that the gap has two sides
        lab.ssh(primary, "systemctl kill -s KILL mongod")
        result = writer.finish()
    lab.record("mongodb_primary_killed", bar_s=4, **short(result))
    assert result["lost"] == 0
    assert result["acked"] > 500
    assert result["longest_gap_s"] <= 4 * lab.SLACK + stalls.seconds  # the lab elects after 2 s, as production does
    lab.wait_until_all_serve()


def test_mongodb_primary_host_loses_its_power_and_nothing_acknowledged_is_lost() -> None:
    primary = lab.eventually("one primary", mongodb_primary)
    with mongodb_writer(40) as writer, load(40) as probe:
        time.sleep(5)
        lab.engine("kill", lab.container(primary))
        result = writer.finish()
        probe.finish()
    lab.engine("start", lab.container(primary))
    lab.record("mongodb_host_lost", bar_s=12, **short(result))
    assert result["lost"] == 0
    assert result["longest_gap_s"] <= 12 * lab.SLACK
    lab.wait_until_all_serve()


def test_redis_master_is_killed_and_nothing_acknowledged_is_lost() -> None:
    """The process is killed and stays down, so that the Sentinels have to elect another master."""
    master = lab.eventually("one master", redis_master)
    down_after = 2  # seconds, the role's default
    stays_down = "/run/systemd/system/redis-server.service.d"
    lab.ssh(master, f"mkdir -p {stays_down} && printf '[Service]\\nRestart=no\\n' >{stays_down}/test.conf")
    lab.ssh(master, "systemctl daemon-reload")
    # A Sentinel whose timer came too late does nothing for 30 s, by design.
    lab.eventually("no Sentinel in TILT", lambda: sentinels_in_tilt() == [], 60, 2)
    with redis_writer(30) as writer:
        time.sleep(5)
        lab.ssh(master, "systemctl kill -s KILL redis-server")
        result = writer.finish()
    lab.ssh(master, f"rm -r {stays_down} && systemctl daemon-reload && systemctl start redis-server")
    lab.record("redis_master_killed", bar_s=down_after + 1, **short(result))
    assert result["lost"] == 0
    assert result["longest_outage_s"] <= (down_after + 1) * lab.SLACK
    lab.wait_until_all_serve()


def test_a_changed_mongodb_option_is_rolled_primary_last_and_loses_nothing() -> None:
    primary = lab.eventually("one primary", mongodb_primary)
    # A request that is slow is served; one that is not answered within 10 s is not.
    with mongodb_writer(600, "--connect-ms=5000") as writer, load(600, timeout=10) as probe:
        run = lab.succeed(lab.playbook("site", "--tags", "mongodb", "-e", "mongodb_slow_operation_ms=150"))
        # Both end at SIGTERM with their account; the writer is on the app node.
        lab.ssh("lab-app1", 'pkill -TERM -f "replica-se[t] pysystemtrade-rs"')
        probe.process.terminate()
        result, served = writer.finish(), probe.finish()
    lab.record("mongodb_option_rolled", seconds=round(run.seconds, 1), served=short(served), **short(result))
    print("failed requests:", served["failures"][:40])
    assert result["lost"] == 0
    assert result["failed"] == 0
    assert not served["failed"]
    show = "systemctl show mongod -p ExecMainStartTimestampMonotonic --value"  # the hosts share one monotonic clock
    starts = {host: int(lab.ssh(host, show)) for host in lab.MONGODB}
    assert max(starts, key=starts.__getitem__) == primary, f"{primary} was the primary and has to be the last: {starts}"
    lab.succeed(lab.playbook("site", "--tags", "mongodb"))  # back to the inventory's setting
