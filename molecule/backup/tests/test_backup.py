"""Backups as whoever needs them meets them: restored to a second, and not fooled by what is broken."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://db"]

STATE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "state"
ASK = (Path(__file__).parents[1] / "files" / "ask.py").read_text()
METRICS = "/var/lib/prometheus/node-exporter"
LEDGER = "python3 /run/ledger/restore_ledger.py --hosts=db.backup.pst.test:27017 --password-file=/run/ledger/password"


@pytest.fixture
def ledger() -> dict[str, Any]:
    return json.loads((STATE / "ledger.json").read_text())


@pytest.fixture
def keeper(host: Host) -> Host:
    return Host.get_host("ansible://keeper", ansible_inventory=host.backend.ansible_inventory)


def told(host: Host, case: str) -> str:
    with host.sudo():
        return host.file(f"/run/ledger/{case}").content_string


def metrics(host: Host, job: str) -> dict[str, float]:
    text = host.file(f"{METRICS}/pst_backup_{job}.prom").content_string
    return {name: float(value) for name, value in re.findall(r"^pst_backup_(\w+)\{.*\} (\S+)$", text, re.MULTILINE)}


def expected(ledger: dict[str, Any]) -> dict[str, int]:
    """What the writes up to the end of the second make, by their operation times."""
    state: dict[str, int] = {}
    for write in ledger["writes"]:
        if write["at"][0] <= ledger["second"]:
            number = str(write["number"])
            if not write["change"]:
                state[number] = 0
            elif number in state:
                state[number] += 1
    return state


def test_every_write_up_to_the_second_is_there_and_none_after(ledger: dict[str, Any]) -> None:
    restored = json.loads((STATE / "restored.json").read_text())
    assert restored == expected(ledger)
    assert len(restored) == 1100
    assert len(ledger["writes"]) > 2 * len(restored) > 0, "nothing was written after the second"


def test_nothing_changes_without_the_typed_confirmation() -> None:
    said = (STATE / "unconfirmed").read_text()
    assert "Nothing was changed. To go on, add: -e confirm=backup" in said
    assert "1001 documents" in said, said  # a thousand and the lease


def test_a_lease_comes_back_revoked_with_an_epoch_that_nobody_had(host: Host) -> None:
    script = (
        "import json,pymongo,sys; c=pymongo.MongoClient('db.backup.pst.test',directConnection=True,tls=True,"
        "tlsCAFile='/etc/pst/pki/ca.crt',username='root',authSource='admin',password=sys.argv[1]);"
        "print(json.dumps(c.pst.leases.find_one(),default=str))"
    )
    password = (STATE / "secrets" / "mongodb_root_password").read_text()
    lease = json.loads(host.check_output("python3 -c %s %s", script, password))
    assert lease["holder"] is None
    assert lease["epoch"] >= 1005
    assert lease["revoked"]["by"] == "pst-backup restore"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("wrong-key", "the key (backup_secrets) does not open this repository"),
        ("full-disk", "MB free; wanted"),
        ("damaged", "the repository is damaged"),
    ],
)
def test_a_bad_repository_is_told_and_the_live_data_left_alone(host: Host, case: str, words: str) -> None:
    said = told(host, case)
    assert words in said, said
    assert "status 1" in said, said
    with host.sudo():
        now = json.loads(host.check_output(f"{LEDGER} read"))
    kept = json.loads((STATE / "restored.json").read_text())
    assert {number: now[number] for number in kept} == kept


def ask(host: Host, method: str, path: str, *with_what: str) -> tuple[str, str]:
    """Ask the repositories' server from the member, past restic; returns the status and what it said."""
    with host.sudo():
        answer = host.check_output(
            "python3 -c %s " + " ".join(["%s"] * (2 + len(with_what))), ASK, method, path, *with_what
        )
    status, _, said = answer.partition(" ")
    return status, said


def test_the_site_can_neither_delete_nor_overwrite(host: Host) -> None:
    both = ("certificate", "password")
    status, said = ask(host, "GET", "/backup-mongodb/snapshots/", *both)
    names = json.loads(said)
    assert status == "200"
    assert names
    path = f"/backup-mongodb/snapshots/{names[0]['name']}"
    assert ask(host, "DELETE", path, *both)[0] == "403"
    assert ask(host, "POST", path, *both)[0] == "403"
    assert ask(host, "DELETE", "/backup-mongodb/config", *both)[0] in ("403", "405")
    assert ask(host, "GET", path, *both)[0] == "200"


def test_a_client_reaches_its_own_repository_only(host: Host) -> None:
    assert ask(host, "GET", "/backup-control/config", "certificate", "password")[0] == "403"


def test_who_has_no_certificate_or_no_password_is_refused(host: Host) -> None:
    assert ask(host, "GET", "/backup-mongodb/config", "certificate")[0] == "401"
    assert ask(host, "GET", "/backup-mongodb/config", "password")[0] == "refused"


def test_a_lost_repository_host_is_told_and_costs_no_second(host: Host) -> None:
    said = told(host, "server-gone")
    assert "the repository cannot be reached" in said, said
    assert "status 0" not in said, said
    assert 'pst_backup_success{site="backup",job="oplog-mongodb"} 0' in said, said
    assert metrics(host, "oplog-mongodb")["success"] == 1
    with host.sudo():
        plan = host.check_output("pst-backup restore mongodb --to latest --plan")
    # The dump after the restore, and one part from there over the outage.
    assert "restores to the end" in plan
    assert time.time() - metrics(host, "oplog-mongodb")["point_in_time_timestamp_seconds"] < 600


def test_the_restore_test_proves_a_good_repository_and_notices_a_bad_one(keeper: Host) -> None:
    found = metrics(keeper, "test-backup-mongodb")
    assert found["success"] == 0, "the last run met the flipped byte"
    assert found["last_success_timestamp_seconds"] < found["last_run_timestamp_seconds"]
    # The thousand and one of the dump, and what the ledger had at its end.
    assert found["documents"] >= 1101
    assert metrics(keeper, "prune")["success"] == 1


def test_monitoring_sees_size_and_age_of_each_repository(keeper: Host) -> None:
    text = keeper.file(f"{METRICS}/pst_backup_look.prom").content_string
    for name in ("backup-mongodb", "backup-etc", "backup-control"):
        assert f'pst_backup_repository_bytes{{site="backup",repository="{name}"}}' in text
        assert f'pst_backup_repository_newest_timestamp_seconds{{site="backup",repository="{name}"}}' in text


def test_what_a_timer_starts_often_is_started_each_time(keeper: Host) -> None:
    """A limit of starts that suits a job of once a day ended those of every five minutes after 50 of them."""
    with keeper.sudo():
        for _ in range(12):
            assert keeper.run("systemctl start pst-backup@look.service").rc == 0


def test_the_state_of_the_control_node_is_encrypted_and_comes_back(keeper: Host, tmp_path: Path) -> None:
    with keeper.sudo():
        keeper.check_output("pst-backup fetch control --to latest")
        path = "/var/lib/pst-backup/fetched/control/var/lib/pst-control-state/state.tar.gz.vault"
        archive = keeper.file(path).content_string
        kept = keeper.check_output("find /etc/pst/backup/secrets -type f -printf '%f '")
    assert archive.startswith("$ANSIBLE_VAULT;")
    secret = (STATE / "secrets" / "backup_control_password").read_text()
    assert "control_password" not in kept
    (tmp_path / "state").write_text(archive)
    (tmp_path / "password").write_text(secret)
    subprocess.run(
        ["ansible-vault", "decrypt", "--vault-password-file", "password", "--output", "state.tar.gz", "state"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    names = subprocess.run(
        ["tar", "--list", "--gzip", "--absolute-names", "--file", "state.tar.gz"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert str(STATE / "secrets" / "mongodb_root_password") in names
    assert str(STATE / "pki" / "ca.crt") in names


def test_folders_come_back(host: Host) -> None:
    with host.sudo():
        host.check_output("pst-backup fetch etc --to latest")
        want = host.check_output("sha256sum < /etc/mongodb/keyfile")
        assert host.check_output("sha256sum < /var/lib/pst-backup/fetched/etc/etc/mongodb/keyfile") == want


def test_no_secret_is_on_a_command_line_or_readable(host: Host, keeper: Host) -> None:
    for one in (host, keeper):
        with one.sudo():
            readable = one.check_output("find /etc/pst/backup -type f -perm /o+r -not -name backup.json")
        assert readable == ""
    arguments = keeper.check_output("ps -C rclone -o args=")
    assert (STATE / "secrets" / "backup_mongodb_password").read_text() not in arguments


@pytest.mark.parametrize(
    ("name", "unit"), [("keeper", "pst-backup-server.service"), ("db", "pst-backup@full-mongodb.service")]
)
def test_units_are_confined(host: Host, name: str, unit: str) -> None:
    one = Host.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)
    exposure = one.run(f"systemd-analyze security --no-pager --threshold=20 {unit}")
    assert exposure.rc == 0, exposure.stdout.splitlines()[-1]
