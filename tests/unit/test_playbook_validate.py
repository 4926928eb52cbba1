"""validate.yml as a user runs it: on the examples, filled and not, on broken inventories, under --limit."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = ("staging", "production", "dr")
PEERS = {"production": "dr", "dr": "production", "lab": "lab_dr", "lab_dr": "lab"}
PLACEHOLDER = "CHANGE_ME"
CANARY = "canary7f3a9c"
# What a user puts in place of a placeholder, by key; a made-up word for all others.
FILL = {
    "site_domain": "trading.example.net",
    "domain": "trading.example.net",  # of site_peer
    "site_time_zone": "America/New_York",
    "site_control_addresses": "198.51.100.250",
    "ib_gateway_installer_sha256": "0f" * 32,
}
LIVE = {"trading_broker_account": "U1234567", "ib_gateway_accounts": "U1234567"}
PAPER = {"trading_broker_account": "DU1234567", "ib_gateway_accounts": "DU1234567"}


def fill(folder: Path) -> None:
    values = FILL | (PAPER if folder.name == "staging" else LIVE)
    for path in folder.rglob("*.yml"):
        lines = path.read_text().splitlines(keepends=True)
        for number, line in enumerate(lines):
            key = line.partition(":")[0].strip()
            if PLACEHOLDER in line and not line.lstrip().startswith("#"):
                lines[number] = re.sub(rf"{PLACEHOLDER}[\w.]*", values.get(key, f"{CANARY}filled"), line)
        path.write_text("".join(lines))


def copy(name: str, to: Path, *, filled: bool = True) -> Path:
    folder = to / name
    source = REPOSITORY / "inventories"
    shutil.copytree(source / name, folder, ignore=shutil.ignore_patterns(".state"), dirs_exist_ok=True)
    if (peer := PEERS.get(name)) and not (to / peer).exists():
        (to / peer).mkdir()
        shutil.copy(source / peer / "hosts.yml", to / peer)
    if filled:
        fill(folder)
    return folder


def add(folder: Path, **values: object) -> None:
    """Writes a file of variables beside the site's others, which it wins over."""
    (site,) = (folder / "group_vars").iterdir()
    (site / "zz_test.yml").write_text(yaml.safe_dump(values))


def run(*inventories: Path, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "playbooks/validate.yml", *arguments]
    for inventory in inventories:
        command += ["-i", str(inventory)]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def cpu_seconds() -> float:
    """Of all the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def problems(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line[2:] for line in result.stdout.splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("names", [*((name,) for name in EXAMPLES), ("production", "dr")], ids="+".join)
def test_an_example_passes_once_it_is_filled(names: tuple[str, ...], tmp_path: Path) -> None:
    result = run(*(copy(name, tmp_path) for name in names))
    assert problems(result) == []
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_names_every_placeholder_until_it_is_filled(name: str, tmp_path: Path) -> None:
    folder = copy(name, tmp_path, filled=False)
    wanted = {
        (str(path.relative_to(folder)), line.partition(":")[0].strip())
        for path in folder.rglob("*.yml")
        for line in path.read_text().splitlines()
        if PLACEHOLDER in line and not line.lstrip().startswith("#")
    }
    result = run(folder)
    told = problems(result)
    assert result.returncode != 0
    assert len(wanted) >= 20
    for path, key in wanted:
        named = [line for line in told if re.search(rf"(^|\.){key}(\[\d+\])? \[", line) and path in line]
        assert len(named) == 1, f"{path}: {key} in {told}"
    assert len(told) == len(wanted), told


def test_the_examples_have_the_same_keys() -> None:
    keys = {}
    for name in EXAMPLES:
        folder = REPOSITORY / "inventories" / name / "group_vars" / f"site_{name}"
        keys[name] = {(path.name, key) for path in folder.iterdir() for key in yaml.safe_load(path.read_text())}
    assert keys["production"] == keys["dr"] == keys["staging"] - {("main.yml", "site_production")}


def test_the_lab_passes_and_quickly(tmp_path: Path) -> None:
    lab = copy("lab", tmp_path, filled=False)  # a copy, since its secrets are made on first use
    before = cpu_seconds()
    subprocess.run(
        [Path(sys.executable).parent / "ansible-inventory", "--list", "-i", lab], check=True, stdout=subprocess.DEVNULL
    )
    listed = cpu_seconds()
    result = run(lab)
    validated = cpu_seconds()
    assert problems(result) == []
    assert result.returncode == 0, result.stdout + result.stderr
    # Against what it takes to read the inventory alone (4.5 times that, measured): the machine is shared.
    assert validated - listed < 8 * (listed - before)


def test_all_errors_are_told_at_once_with_their_place(tmp_path: Path) -> None:
    folder = copy("production", tmp_path)
    add(
        folder,
        site_vip="203.0.113.10",
        mongodb_prot=27018,
        mongodb_election_timeout_ms="soon",
        redis_app_password="{{ lookup('pst.platform.secret', 'redis_appp_password') }}",
        app_cpu_quota_percent="{{ no_such_variable }}",
    )
    result = run(folder)
    told = {line.partition(" [")[0]: line for line in problems(result)}
    assert result.returncode != 0
    place = "group_vars/site_production/zz_test.yml:"
    for key, *texts in (
        ("site_vip", "seen 203.0.113.10; wanted a host's address inside site_network 192.0.2.0/24"),
        ("mongodb_prot", "seen an unknown key", "did you mean mongodb_port?", place),
        ("mongodb_election_timeout_ms", "[mongodb of site_production]: seen soon; wanted int", place),
        (
            "redis_app_password",
            "[redis of site_production]: seen a value that cannot be resolved",
            "redis_appp_password",
        ),
        ("app_cpu_quota_percent", "[app_nodes of site_production]", "'no_such_variable' is undefined"),
    ):
        assert all(text in told[key] for text in texts), told[key]
    # The application's copy of the password cannot be resolved either.
    assert set(told) == {
        *("site_vip", "mongodb_prot", "mongodb_election_timeout_ms", "redis_app_password"),
        *("app_cpu_quota_percent", "app_redis_password"),
    }


def test_trading_that_would_go_wrong_is_refused(tmp_path: Path) -> None:
    folder = copy("staging", tmp_path)
    add(
        folder,
        trading_broker_account="U1234567",
        trading_strategies=[{"name": "one", "capital_weight": weight, "risk_limit": 0.02} for weight in (0.6, 0.5)],
        trading_parquet_store="/srv/pst.d/parquet",
        trading_processes_extra=[{"name": "run_system", "memory_mb": 1}],
    )
    result = run(folder)
    told = {line.partition(" [")[0]: line for line in problems(result)}
    assert result.returncode != 0
    for key, *texts in (
        (
            "trading_broker_account",
            "[app_nodes of site_staging]: seen U1234567; wanted a paper account",
            "zz_test.yml:",
        ),
        ("trading_strategies.capital_weight", "seen 0.6 + 0.5 = 1.1; wanted weights that add up to 1", "zz_test.yml:"),
        ("trading_strategies.name", "seen one 2 times"),
        ("trading_parquet_store", "seen /srv/pst.d/parquet; wanted a path without a dot", "zz_test.yml:"),
        ("trading_processes_extra.name", "seen run_system; wanted", "did you mean run_systems?"),
    ):
        assert all(text in told[key] for text in texts), told[key]
    assert {key for key in told if key.startswith("trading_")} == set(told)


def test_a_limit_does_not_leave_the_check_out(tmp_path: Path) -> None:
    folder = copy("production", tmp_path)
    add(folder, site_vip="203.0.113.10")
    result = run(folder, arguments=("--limit", "prd-mongo1"))
    assert result.returncode != 0
    assert [line.partition(" [")[0] for line in problems(result)] == ["site_vip"]


def test_no_secret_is_shown_even_where_it_is_wrong(tmp_path: Path) -> None:
    folder = copy("production", tmp_path)
    add(folder, mongodb_root_password=[CANARY], redis_app_password={"is": CANARY}, mongodb_keys=CANARY)
    result = run(folder, arguments=("-vvv", "--diff"))
    told = {line.partition(" [")[0]: line for line in problems(result)}
    assert result.returncode != 0
    assert "seen (hidden)" in told["mongodb_root_password"]
    assert CANARY not in result.stdout + result.stderr


def test_a_run_for_one_setting_of_a_playbook_is_no_unknown_key(tmp_path: Path) -> None:
    result = run(copy("production", tmp_path), arguments=("-e", "status_format=json"))
    assert problems(result) == []
    assert result.returncode == 0


def test_the_lab_passes_with_its_second_site_and_without_the_first(tmp_path: Path) -> None:
    lab, second = copy("lab", tmp_path, filled=False), copy("lab_dr", tmp_path, filled=False)
    for inventories in ((lab, second), (second,)):
        result = run(*inventories)
        assert problems(result) == []
        assert result.returncode == 0, result.stdout + result.stderr


def test_two_sites_that_know_each_other_wrongly_are_refused(tmp_path: Path) -> None:
    lab, second = copy("lab", tmp_path, filled=False), copy("lab_dr", tmp_path, filled=False)
    hosts = yaml.safe_load((second / "hosts.yml").read_text())
    peer = {"name": "lab_dr", "domain": "elsewhere.test", "hosts": {}}
    peer["hosts"] = {name: {"address": "10.78.1.99", "groups": []} for name in hosts["site_lab_dr"]["hosts"]}
    add(lab, site_peer=peer)
    add(second, site_standby_of="elsewhere")
    told = problems(run(lab, second))
    assert len(told) == 3, told
    assert any(line.startswith("site_peer.domain [site_lab]: seen elsewhere.test; wanted") for line in told)
    assert any(line.startswith("site_peer.hosts [site_lab]: seen a difference in dr-app1,") for line in told)
    assert any(line.startswith("site_standby_of [site_lab_dr]: seen elsewhere; wanted site_peer.name") for line in told)
