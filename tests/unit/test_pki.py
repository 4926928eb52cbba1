"""The authority and the certificates of a site, in a folder of the test."""

from __future__ import annotations

import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.pst.platform.plugins.module_utils import pki

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
POLICY = pki.Policy(validity=90 * DAY, renew_before=30 * DAY)
TABLE = {
    "node": {"groups": ["all"]},
    "redis": {"groups": ["redis"], "names": ["cache.example.org"]},
    "app": {"groups": ["absent"]},
    "public": {"groups": ["redis"], "names": ["trading.example.org"], "addresses": ["192.0.2.10"], "shared": True},
}
GROUPS = {"all": ["r1", "r2", "elsewhere"], "redis": ["r1", "r2"]}
ADDRESSES = {"r1": "192.0.2.1", "r2": "192.0.2.2"}
REQUESTS = pki.site_requests(TABLE, GROUPS, ADDRESSES, "example.org")
LABELS = ["r1/node", "r2/node", "r1/redis", "r2/redis", "_shared/public"]


def authorities(folder: Path, issuer: str = "ca-1", *also_trusted: str, **own: Any) -> pki.Authorities:
    return pki.Authorities(folder, issuer, also_trusted, 3650 * DAY, **own)


def ensure(
    folder: Path,
    *,
    by: pki.Authorities | None = None,
    policy: pki.Policy = POLICY,
    now: datetime = NOW,
    write: bool = True,
    requests: list[pki.Request] = REQUESTS,
) -> pki.Result:
    return pki.ensure(pki.Store(folder, write=write), by or authorities(folder), requests, policy, now)


def labels(result: pki.Result) -> list[str]:
    return [change.label for change in result.changes]


@pytest.fixture
def issued(tmp_path: Path) -> Path:
    ensure(tmp_path)
    return tmp_path


def test_every_host_of_the_site_gets_its_certificates() -> None:
    assert [request.label for request in REQUESTS] == LABELS
    redis = REQUESTS[2]
    assert redis.dns == ("r1.example.org", "r1", "localhost", "cache.example.org")
    assert redis.addresses == ("192.0.2.1", "127.0.0.1")


def test_all_problems_of_the_table_are_told_at_once() -> None:
    table = {
        "public": {"groups": ["all"], "shared": True},
        "node": {"groups": ["all"]},
        "mine": {"groups": ["all"], "certificate": "/x.crt", "private_key": "/x.key"},
    }
    with pytest.raises(pki.PkiError) as caught:
        pki.site_requests(table, GROUPS, {"r1": "not-an-address", "r2": "192.0.2.2"}, "d" * 63)
    text = str(caught.value)
    for problem in ("pki_certificates.public.names", "pki_certificates.mine", "'not-an-address'", "64 characters"):
        assert problem in text


def test_first_run_issues_all_and_second_none(tmp_path: Path) -> None:
    first = ensure(tmp_path)
    assert labels(first) == ["authority ca-1", "trusted authorities", *LABELS]
    second = ensure(tmp_path)
    assert second.changes == []
    assert second.certificates == first.certificates


def test_files_are_private(issued: Path) -> None:
    public = {"ca.crt", "ca-1.crt", ".lock"}
    for path in issued.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o644 if path.name in public else 0o600
        assert path.stat().st_mode & 0o777 == wanted, path


def test_check_mode_says_what_would_be_issued_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    assert labels(ensure(folder, write=False)) == ["authority ca-1", "trusted authorities", *LABELS]
    assert not folder.exists()


def _handshake(folder: Path, *, name: str) -> str | None:
    """A mutual handshake in memory with Python's strict checks; both sides use r1's redis certificate."""
    contexts = [ssl.create_default_context(purpose, cafile=folder / "ca.crt") for purpose in ssl.Purpose]
    for context in contexts:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_cert_chain(folder / "r1/redis.pem")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts[0].wrap_bio(to_client, to_server, server_hostname=name)
    server = contexts[1].wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client.version()


@pytest.mark.parametrize("name", ["r1.example.org", "r1", "localhost", "cache.example.org", "192.0.2.1", "127.0.0.1"])
def test_certificates_pass_strict_verification(issued: Path, name: str) -> None:
    assert _handshake(issued, name=name) == "TLSv1.3"


def test_another_name_fails_verification(issued: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _handshake(issued, name="r2.example.org")


@given(cut=st.integers(min_value=0, max_value=1500))
def test_a_file_cut_anywhere_is_issued_again(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("pki")
    before = ensure(folder, requests=REQUESTS[:2])
    path = folder / "r1/node.pem"
    path.write_bytes(path.read_bytes().rstrip()[: min(cut, path.stat().st_size - 2)])
    after = ensure(folder, requests=REQUESTS[:2])
    assert labels(after) == ["r1/node"]
    assert after.changes[0].reason.startswith("the file is damaged")
    assert after.certificates["r2/node"] == before.certificates["r2/node"]


def test_key_of_another_certificate_is_found(issued: Path) -> None:
    path, other = issued / "r1/node.pem", issued / "r2/node.pem"
    path.write_bytes(pki.split_pem(other.read_bytes())[0] + pki.split_pem(path.read_bytes())[1])
    assert labels(ensure(issued)) == ["r1/node"]


@pytest.mark.parametrize(("days", "renewed"), [(59.9, 0), (60.1, 5)])
def test_certificates_are_renewed_before_they_end(issued: Path, days: float, renewed: int) -> None:
    assert len(ensure(issued, now=NOW + days * DAY).changes) == renewed


def test_another_address_replaces_only_that_hosts_certificates(issued: Path) -> None:
    moved = pki.site_requests(TABLE, GROUPS, {**ADDRESSES, "r2": "192.0.2.9"}, "example.org")
    result = ensure(issued, requests=moved)
    assert labels(result) == ["r2/node", "r2/redis"]
    assert "192.0.2.2" in result.changes[0].reason


def test_force_matches_patterns_and_refuses_unknown_ones(issued: Path) -> None:
    force = pki.Policy(validity=90 * DAY, renew_before=30 * DAY, force=("*/redis",))
    assert labels(ensure(issued, policy=force)) == ["r1/redis", "r2/redis"]
    unknown = pki.Policy(validity=90 * DAY, renew_before=30 * DAY, force=("r3/redis",))
    with pytest.raises(pki.PkiError, match="r3/redis"):
        ensure(issued, policy=unknown)


@pytest.mark.parametrize("survivor", range(1, 8))
def test_a_killed_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survivor: int) -> None:
    """The run dies after its n-th file; the next one issues the rest and keeps what was written."""
    replace, written = pki.Store.replace, []

    def replace_until_killed(self: pki.Store, name: str, content: bytes, mode: int = 0o600) -> None:
        if len(written) == survivor:
            raise KeyboardInterrupt
        replace(self, name, content, mode)
        written.append((tmp_path / name, content))

    with monkeypatch.context() as patch:
        patch.setattr(pki.Store, "replace", replace_until_killed)
        with pytest.raises(KeyboardInterrupt):
            ensure(tmp_path)
    ensure(tmp_path)
    assert all(path.read_bytes() == content for path, content in written)
    assert ensure(tmp_path).changes == []


def test_two_runs_at_once_agree(tmp_path: Path) -> None:
    results: list[pki.Result] = []
    threads = [threading.Thread(target=lambda: results.append(ensure(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(bool(result.changes) for result in results) == 1
    assert all(result.certificates == results[0].certificates for result in results)


def test_roll_over_keeps_every_pair_of_hosts_talking(issued: Path) -> None:
    """Trust the next authority first, then issue with it, then forget the old one: each step changes one thing."""
    trust_next = authorities(issued, "ca-1", "ca-2")
    assert labels(ensure(issued, by=trust_next)) == ["authority ca-2", "trusted authorities"]
    bundle = (issued / "ca.crt").read_bytes()

    result = ensure(issued, by=authorities(issued, "ca-2", "ca-1"))
    assert labels(result) == ["trusted authorities", *LABELS]
    assert result.changes[1].reason == "another authority issued it"
    both = set(x509.load_pem_x509_certificates(bundle))
    assert set(x509.load_pem_x509_certificates((issued / "ca.crt").read_bytes())) == both

    assert labels(ensure(issued, by=authorities(issued, "ca-2"))) == ["trusted authorities"]
    assert _handshake(issued, name="r1") == "TLSv1.3"


def test_two_sites_share_an_authority_and_issue_at_once(tmp_path: Path) -> None:
    """Hosts of two sites talk to each other; each site keeps its certificates to itself."""
    sites = [tmp_path / "production", tmp_path / "dr"]
    threads = [threading.Thread(target=lambda s=s: ensure(s, by=authorities(sites[0]))) for s in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sites[0] / "ca.crt").read_bytes() == (sites[1] / "ca.crt").read_bytes()
    assert not (sites[1] / "ca-1.key").exists()
    assert _handshake(sites[1], name="r1") == "TLSv1.3"


def test_an_authority_without_its_key_is_never_replaced_silently(issued: Path) -> None:
    (issued / "ca-1.key").unlink()
    with pytest.raises(pki.PkiError, match="has lost its key"):
        ensure(issued)


def test_an_authority_near_its_end_warns_and_then_refuses(issued: Path) -> None:
    last = NOW + 3650 * DAY
    result = ensure(issued, now=last - 60 * DAY)
    assert "ends in 60 days" in result.warnings[0]
    with pytest.raises(pki.PkiError, match="roll it over"):
        ensure(issued, now=last - 20 * DAY)


def _write_pair(folder: Path, authority: pki.Authority, passphrase: bytes | None = None) -> tuple[Path, Path]:
    certificate, key = folder / "own.crt", folder / "own.key"
    chain = [authority.certificate, *authority.chain]
    certificate.write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    key.write_bytes(
        authority.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return certificate, key


def test_own_authority_with_passphrase_issues(tmp_path: Path) -> None:
    pair = _write_pair(tmp_path, pki.Authority.create("corporate", 3650 * DAY, NOW), b"open sesame")
    folder = tmp_path / "pki"
    own = authorities(folder, supplied=pair, passphrase="open sesame")
    assert labels(ensure(folder, by=own)) == ["trusted authorities", *LABELS]
    assert not (folder / "ca-1.key").exists()
    assert _handshake(folder, name="r1") == "TLSv1.3"
    with pytest.raises(pki.PkiError, match="cannot be read"):
        ensure(folder, by=authorities(folder, supplied=pair, passphrase="wrong"))


def test_supplied_certificate_is_copied_and_checked(tmp_path: Path) -> None:
    authority = pki.Authority.create("public", 3650 * DAY, NOW)
    pem = authority.sign(REQUESTS[-1], 90 * DAY, NOW)
    key, certificate = tmp_path / "site.key", tmp_path / "site.crt"
    key.write_bytes(pki.split_pem(pem)[0])
    certificate.write_bytes(pki.split_pem(pem)[1])

    def supplied(name: str) -> list[pki.Request]:
        entry = {**TABLE["public"], "names": [name], "certificate": str(certificate), "private_key": str(key)}
        return pki.site_requests({"public": entry}, GROUPS, ADDRESSES, "example.org")

    folder = tmp_path / "pki"
    right = supplied("trading.example.org")
    assert "_shared/public" in labels(ensure(folder, requests=right))
    assert ensure(folder, requests=right).changes == []
    assert (folder / "_shared/public.pem").read_bytes() == pem
    assert "ends in 20 days" in ensure(folder, requests=right, now=NOW + 70 * DAY).warnings[0]
    with pytest.raises(pki.PkiError, match=r"wanted: other\.example\.org"):
        ensure(folder, requests=supplied("other.example.org"))
    with pytest.raises(pki.PkiError, match="ended on"):
        ensure(folder, requests=right, now=NOW + 91 * DAY)


def test_a_name_that_becomes_shared_or_ceases_to_be_leaves_one_certificate_for_a_host_to_find(issued: Path) -> None:
    table = {**TABLE, "redis": {**TABLE["redis"], "names": ["redis.example.org"], "shared": True}}
    shared = pki.site_requests(table, GROUPS, ADDRESSES, "example.org")
    assert labels(ensure(issued, requests=shared)) == ["_shared/redis", "r1/redis", "r2/redis"]
    assert ensure(issued, requests=shared).changes == []
    assert pki.host_files(issued, "r1", {"certificate": "redis", "group": "redis"})
    assert labels(ensure(issued, write=False))[-1] == "_shared/redis"
    assert (issued / "_shared/redis.pem").exists()
    assert labels(ensure(issued)) == ["r1/redis", "r2/redis", "_shared/redis"]
    assert ensure(issued).changes == []


@pytest.mark.parametrize(("name", "source"), [("node", "r1/node.pem"), ("public", "_shared/public.pem")])
def test_a_host_installs_its_own_certificate_or_the_shared_one(issued: Path, name: str, source: str) -> None:
    files = {str(file["dest"]): file for file in pki.host_files(issued, "r1", {"certificate": name, "group": "http"})}
    pem = (issued / source).read_text()
    home = f"/etc/pst/pki/{name}"
    assert files[f"{home}/{name}.pem"]["content"] == pem
    assert files[f"{home}/{name}.key"]["content"] + files[f"{home}/{name}.crt"]["content"] == pem
    assert files["/etc/pst/pki/ca.crt"]["content"] == (issued / "ca.crt").read_text()
    held = {dest: (file["group"], file["mode"]) for dest, file in files.items() if dest.startswith(home)}
    assert held.pop(home) == ("http", "0750")
    assert set(held.values()) == {("http", "0640")}
    assert {dest for dest, file in files.items() if file.get("secret")} == {f"{home}/{name}.key", f"{home}/{name}.pem"}


def test_a_certificate_that_was_not_issued_is_named(issued: Path) -> None:
    with pytest.raises(pki.PkiError, match=r"certificate mongodb: .*/r1/mongodb\.pem does not exist"):
        pki.host_files(issued, "r1", {"certificate": "mongodb", "group": "mongodb"})
    wrong = {"certificate": "node", "mode": "0644"}
    assert [problem.split(": ")[1] for problem in pki.entry_problems(wrong)] == ["mode", "group"]


def test_days_left_counts_the_first_end_and_damaged_files_as_none(issued: Path) -> None:
    text = pki.split_pem((issued / "r1/node.pem").read_bytes())[1].decode()
    listing = "\n".join(
        f"{path}:{line}"
        for path, content in (
            ("/a.crt", text),
            ("/b.crt", text[:200]),
            ("/c.crt", (issued / "ca.crt").read_text() + text),
        )
        for line in content.splitlines()
    )
    assert pki.days_left(listing, NOW) == {"/a.crt": 90.0, "/b.crt": 0.0, "/c.crt": 90.0}
