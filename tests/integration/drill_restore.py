"""make drill-restore: all members of MongoDB lose their disks; the backups bring back every write up to a named second.

A ledger notes the operation time of each of its writes. It is backed up, the members are wiped, and `restore.yml`
restores to a second in the middle: every write up to it has to be there, and none after. Then a repository with a
flipped bit, a wrong key and a full disk have to give a clear error and leave the live data alone. The lab is started
where it is not up, and trades again at the end. About 10 minutes. Writes `reports/restore-<UTC>.json`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import lab
import pytest

KEEPER = "lab-mon1"
HOME = "/run/restore-drill"
REASON = "kill_switch_reason=drill-restore"
LEDGER = (
    f"python3 {HOME}/restore_ledger.py --password-file={HOME}/password"
    f" --hosts={','.join(f'{host}.{lab.DOMAIN}:27017' for host in lab.MONGODB)}"
)
FIRST, LAST = 1000, 300  # writes before the dump, and between it and the second
REPORT: dict[str, Any] = {"kind": "restore"}
# One bit of every pack, whichever a restore needs; the second time back again, and only where it was flipped.
FLIP = """
import pathlib
packs = pathlib.Path('/var/lib/pst-backup-repositories/lab-mongodb/data')
told = pathlib.Path('/run/flipped')
files = told.read_text().splitlines() if told.exists() else [str(p) for p in packs.rglob('*') if p.is_file()]
told.unlink() if told.exists() else told.write_text('\\n'.join(files))
for path in map(pathlib.Path, files):
    content = bytearray(path.read_bytes()); content[len(content) // 2] ^= 1
    path.chmod(0o600); path.write_bytes(content)
"""


def restore(*arguments: str, confirm: str = "lab") -> lab.Run:
    given = ("-e", f"confirm={confirm}") if confirm else ()
    return lab.playbook("restore", *arguments, *given)


def ledger(command: str) -> Any:
    return json.loads(lab.ssh(lab.MONGODB[0], f"{LEDGER} {command}", timeout=300))


@pytest.fixture(scope="module", autouse=True)
def stopped(platform: None) -> Iterator[None]:
    """Nobody trades meanwhile, and the lab is as it was afterwards."""
    lab.succeed(lab.playbook("kill-switch", "-e", REASON))
    script = (lab.TOOLS / "restore_ledger.py").read_text()
    lab.ssh(lab.MONGODB[0], f"install -d -m 0700 {HOME} && cat > {HOME}/restore_ledger.py", stdin=script)
    lab.ssh(lab.MONGODB[0], f"umask 077; cat > {HOME}/password", stdin=lab.secret("mongodb_app_password"))
    try:
        yield
    finally:
        for host in lab.APPS:
            lab.ssh(host, "systemctl start pst-guard.service", check=False)
        lab.ssh(lab.MONGODB[0], f"rm -rf {HOME}", check=False)
        lab.succeed(lab.playbook("site"))
        lab.succeed(lab.playbook("kill-switch", "-e", "kill_switch_undo=true", "-e", REASON))
        # Also with what was connected to the set that was lost, such as the gates.
        lab.wait_until_all_serve(300)
        path = lab.REPORTS / f"restore-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(REPORT, indent=1) + "\n")
        print(f"\n{path.name}: {json.dumps(REPORT)}")


@pytest.fixture(scope="module")
def written(stopped: None) -> dict[str, Any]:
    """The ledger, in the backups: its writes with their operation times, and the second that it is restored to."""
    before = ledger(f"write 1 {FIRST}")
    backed_up = lab.succeed(lab.playbook("backup"))
    after = ledger(f"write {FIRST + 1} {FIRST + LAST}")
    time.sleep(1.2)
    second = int(lab.ssh(lab.MONGODB[0], "date +%s"))
    time.sleep(1.2)
    later = ledger(f"write {FIRST + LAST + 1} {FIRST + LAST + 50}")
    time.sleep(12)  # an idle set writes a no-op every 10 s: the last second of the ledger ends
    for host in lab.MONGODB:  # the one whose turn it is does it
        lab.ssh(host, "systemctl start pst-backup@oplog-mongodb.service", timeout=300)
    REPORT["backup_s"] = round(backed_up.seconds, 1)
    return {"writes": before + after + later, "second": second}


@pytest.fixture(scope="module")
def restored(written: dict[str, Any]) -> dict[str, Any]:
    """Every member lost its disk, an empty set was made, and the ledger was restored into it."""
    for host in lab.APPS:
        lab.ssh(host, "systemctl stop pst-guard.service", timeout=420)
    for host in lab.MONGODB:
        lab.ssh(host, "systemctl stop mongod.service", timeout=180)
    for host in lab.MONGODB:
        lab.ssh(host, 'rm -rf /var/lib/mongodb/* && [ -z "$(ls -A /var/lib/mongodb)" ]')
    lost = time.monotonic()
    lab.succeed(lab.playbook("site", "--tags", "mongodb"))
    to = ("-e", f"restore_to={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(written['second']))}")
    asked = restore(*to, confirm="")
    assert asked.code != 0
    assert "Nothing was changed. To go on, add: -e confirm=lab" in asked.output
    assert ledger("read") == {}
    done = lab.succeed(restore(*to))
    REPORT["restore_s"] = round(done.seconds, 1)
    REPORT["lost_to_restored_s"] = round(time.monotonic() - lost, 1)
    return {"ledger": ledger("read"), "output": done.output}


def wanted(written: dict[str, Any]) -> dict[str, int]:
    state: dict[str, int] = {}
    for write in written["writes"]:
        number = str(write["number"])
        if write["at"][0] > written["second"]:
            continue
        if not write["change"]:
            state[number] = 0
        elif number in state:
            state[number] += 1
    return state


def test_every_write_up_to_the_second_is_there_and_none_after(
    written: dict[str, Any], restored: dict[str, Any]
) -> None:
    want, have = wanted(written), restored["ledger"]
    REPORT["writes"] = len(written["writes"])
    REPORT["writes_up_to_the_second"] = sum(1 for one in written["writes"] if one["at"][0] <= written["second"])
    REPORT["writes_missing"] = sum(1 for number, changed in want.items() if have.get(number) != changed)
    REPORT["writes_too_many"] = sum(1 for number in have if number not in want)
    assert len(want) == FIRST + LAST
    assert len(written["writes"]) > REPORT["writes_up_to_the_second"]
    assert have == want


def test_nobody_trades_on_what_was_restored(restored: dict[str, Any]) -> None:
    assert "leases are revoked" in restored["output"]


def test_the_restore_test_proves_the_repository(restored: dict[str, Any]) -> None:
    lab.ssh(KEEPER, "systemctl start pst-backup@test-lab-mongodb.service", timeout=300)
    text = lab.ssh(KEEPER, "cat /var/lib/prometheus/node-exporter/pst_backup_test-lab-mongodb.prom")
    figures = {line.partition("{")[0]: float(line.split()[-1]) for line in text.splitlines() if line[0] != "#"}
    assert figures["pst_backup_success"] == 1
    assert figures["pst_backup_documents"] >= FIRST + LAST
    REPORT["restore_test_s"] = figures["pst_backup_duration_seconds"]


@contextlib.contextmanager
def flipped_bit() -> Iterator[None]:
    lab.ssh(KEEPER, "python3 -", stdin=FLIP)
    lab.ssh(lab.MONGODB[0], "rm -rf /var/cache/pst-backup/*")
    try:
        yield
    finally:
        lab.ssh(KEEPER, "python3 -", stdin=FLIP)


@contextlib.contextmanager
def wrong_key() -> Iterator[None]:
    key = "/etc/pst/backup/secrets/lab-mongodb.key"
    lab.ssh(lab.MONGODB[0], f"cp -p {key} {key}.right && echo wrong > {key}")
    try:
        yield
    finally:
        lab.ssh(lab.MONGODB[0], f"mv {key}.right {key}")


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    folder = "/var/lib/pst-backup/restore"
    lab.ssh(lab.MONGODB[0], f"mkdir -p {folder} && mount -t tmpfs -o size=64k,mode=0777 tmpfs {folder}")
    try:
        yield
    finally:
        lab.ssh(lab.MONGODB[0], f"umount {folder} && rmdir {folder}")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (flipped_bit, "the repository is damaged"),
        (wrong_key, "the key (backup_secrets) does not open this repository"),
        (full_disk, "MB free; wanted"),
    ],
    ids=["flipped-bit", "wrong-key", "full-disk"],
)
def test_a_bad_repository_is_told_and_the_live_data_left_alone(
    restored: dict[str, Any], fault: Any, words: str
) -> None:
    before = ledger("read")
    with fault():
        run = restore("-e", "restore_to=latest")
    assert run.code != 0
    assert words in " ".join(run.output.split()), run.output[-3000:]
    assert ledger("read") == before
    REPORT.setdefault("refused", []).append(fault.__name__)
