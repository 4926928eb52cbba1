"""A support bundle: what is in it, that it is bounded, and that no secret is."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.pst.platform.plugins.action import support_bundle as action
from ansible_collections.pst.platform.plugins.callback import support_bundle as callback
from ansible_collections.pst.platform.plugins.module_utils import support

CANARY = "canary-9f3b2c71"


def says(command: Sequence[str]) -> str:
    return f"{command[0]} says password={CANARY} and more\n" if command[0] != "pst-trading" else ""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's files, with a secret in each, and some that are only secrets."""
    for name in (
        "etc/haproxy/haproxy.cfg",
        "etc/pst/app.json",
        "etc/pst/blue/private_config.yaml",
        "etc/pst/pki/node/node.key",
        "etc/pst/credentials/mongodb.json",
        "etc/redis/pst-users.acl",
        "etc/redis/pst.conf",
        "etc/mongod.conf",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\nsecret: {CANARY}\n")
    return tmp_path


def test_a_host_tells_its_state_and_its_configuration(host: Path) -> None:
    texts = support.gather(host, says)
    assert {"journal.txt", "units.txt", "disks.txt", "firewall.txt"} <= set(texts)
    configuration = {name for name in texts if name.startswith("files/")}
    assert configuration == {
        "files/etc/haproxy/haproxy.cfg",
        "files/etc/pst/app.json",
        "files/etc/pst/blue/private_config.yaml",
        "files/etc/redis/pst.conf",
        "files/etc/mongod.conf",
    }
    assert CANARY not in json.dumps(texts)
    assert "more" in texts["journal.txt"]


def test_a_command_that_is_not_there_hangs_or_fails_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "COMMAND_S", 0.2)
    assert support.run(["no-such-program"]) == ""
    assert support.run(["sh", "-c", "echo a; echo b >&2; exit 3"]) == "a\nb\nexit status 3\n"
    assert support.run(["sleep", "5"]) == "no answer after 0.2 s\n"


def test_what_a_host_sends_is_bound_and_the_end_of_its_journal_is_there() -> None:
    texts = {"journal.txt": "x" * 900_000 + "end", "a.txt": "begin" + "y" * 900_000, "short.txt": "short"}
    cut = support.bounded(texts, 500_000)
    assert sum(map(len, cut.values())) < 500_200
    assert cut["journal.txt"].endswith("end")
    assert cut["a.txt"].startswith("begin")
    assert cut["short.txt"] == "short"
    assert support.unpacked(support.packed(cut)) == cut


def made(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        return {m.name.partition("/")[2]: tar.extractfile(m).read().decode() for m in tar.getmembers()}


def bundle(path: Path, parts: Mapping[str, Mapping[str, str]], known: Sequence[str] = (), limit: int = 10**6) -> int:
    return support.bundle(path, parts, known, limit, {"reason": "a test"})


def test_known_secrets_are_taken_out_wherever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "reports/support.tar.gz"
    bundle(path, {"app1": {"journal.txt": f"the app said {CANARY} without any word before it"}}, [CANARY])
    contents = made(path)
    assert contents["app1/journal.txt"] == "the app said *** without any word before it"
    assert json.loads(contents["MANIFEST.json"])["reason"] == "a test"
    assert CANARY not in json.dumps(contents)
    assert path.stat().st_mode & 0o777 == 0o600


def test_where_a_secret_is_left_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "redact", lambda text, _known=(): text)
    with pytest.raises(support.BundleError, match=r"a secret is left in app1/x\.txt: no bundle was written"):
        bundle(tmp_path / "x.tar.gz", {"app1": {"x.txt": CANARY}}, [CANARY])
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_bound(tmp_path: Path) -> None:
    noise = "".join(f"{(n * 2654435761) % 2**32:08x}" for n in range(60_000))
    size = bundle(tmp_path / "x.tar.gz", {"a": {"a.txt": noise}, "b": {"journal.txt": noise + "end"}}, limit=200_000)
    assert size == (tmp_path / "x.tar.gz").stat().st_size <= 200_000
    assert made(tmp_path / "x.tar.gz")["b/journal.txt"].endswith("end")
    with pytest.raises(support.BundleError, match="however short"):
        bundle(tmp_path / "y.tar.gz", {str(n): {"a.txt": "a"} for n in range(2000)}, limit=1000)


def test_the_newest_reports_come_first_and_are_bound(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.json").write_text(str(n) * 100)
        os.utime(tmp_path / f"{n}.json", (n, n))
    (tmp_path / "page.html").write_text("x")
    assert [name.rpartition("/")[2] for name in support.recent([tmp_path], 250)] == ["4.json", "3.json"]


def test_the_secrets_of_an_inventory_are_known() -> None:
    users = {
        "type": "list",
        "options": {"name": {"type": "str"}, "password": {"type": "str", "no_log": True}},
    }
    options = {"a_password": {"no_log": True}, "a_keys": {"no_log": True, "type": "list"}, "a_users": users}
    variables: dict[str, Any] = {
        "a_password": "one",
        "a_keys": ["two", {"x": "three"}],
        "a_users": [{"name": "app", "password": "four"}, {"name": "none"}],
        "other": "five",
    }
    assert set(action.values_of(variables, options)) == {"one", "two", "three", "four"}
    assert [name for name, option in options.items() if action.has_secret(option)] == list(options)


def test_generated_secrets_and_private_keys_are_known(tmp_path: Path) -> None:
    for name, text in {
        "secrets/a": "generated",
        "pki/app1/node.pem": "-----BEGIN PRIVATE KEY-----\nkey1\nkey2\n-----END PRIVATE KEY-----\n-----BEGIN CERT",
        "ssh/id_ed25519": "-----BEGIN OPENSSH PRIVATE KEY-----\nkey3\n-----END OPENSSH PRIVATE KEY-----\n",
        "pki/ca.crt": "-----BEGIN CERTIFICATE-----\npublic\n-----END CERTIFICATE-----\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert set(action.stored(tmp_path)) == {"generated", "key1", "key2", "key3"}


@pytest.mark.parametrize(
    ("playbook", "check", "wanted"),
    [
        ("playbooks/site.yml", False, True),
        ("playbooks/blue-green.yml", False, True),
        ("playbooks/site.yml", True, False),
        ("playbooks/status.yml", False, False),
        ("playbooks/support-bundle.yml", False, False),
        ("molecule/app/converge.yml", False, False),
    ],
)
def test_a_bundle_is_made_where_a_change_has_failed(playbook: str, check: bool, wanted: bool) -> None:
    assert callback.wanted(Path("/x") / playbook, check=check) is wanted
