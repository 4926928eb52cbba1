"""A private certificate authority in a folder of the control node, and the certificates of a site.

The folder holds, for each authority, `<authority>.key` and `<authority>.crt`; for each certificate one file
`<host>/<name>.pem` with its private key and its chain, so that a key is never on disk with another key's certificate;
and `ca.crt`, the authorities that the hosts trust. Every file is replaced by one rename: a run that is killed leaves
only whole files, and the next run issues what is still missing.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ORGANIZATION = "pst"
SHARED = "_shared"  # the folder of certificates that all hosts of a group share; no host can have this name
CLOCK_SKEW = timedelta(minutes=10)
CERTIFICATE_MARK = b"-----BEGIN CERTIFICATE-----"


class PkiError(Exception):
    """Everything that is wrong, one line each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Request:
    """One certificate that has to exist."""

    host: str
    name: str
    common_name: str
    dns: tuple[str, ...]
    addresses: tuple[str, ...]
    supplied: tuple[Path, Path] | None = None  # the user's own certificate and private key

    @property
    def label(self) -> str:
        return f"{self.host}/{self.name}"

    @property
    def alternative_names(self) -> list[x509.GeneralName]:
        return [
            *(x509.DNSName(name) for name in self.dns),
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in self.addresses),
        ]


@dataclass(frozen=True)
class Policy:
    """When a certificate is replaced, and for how long the next one is valid."""

    validity: timedelta
    renew_before: timedelta
    force: tuple[str, ...] = ()  # patterns of `<host>/<name>`


@dataclass(frozen=True)
class Change:
    label: str
    reason: str


@dataclass
class Result:
    changes: list[Change] = field(default_factory=list)
    certificates: dict[str, dict[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


# What a site needs


def site_requests(
    table: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    addresses: Mapping[str, str],
    domain: str,
) -> list[Request]:
    """Cross the table of certificates with the hosts of the site (the keys of `addresses`)."""
    requests: list[Request] = []
    problems: list[str] = []
    for name, entry in table.items():
        hosts = [h for h in addresses if any(h in groups.get(g, ()) for g in entry.get("groups", ()))]
        names = tuple(entry.get("names") or ())
        extra_addresses = tuple(entry.get("addresses") or ())
        supplied = None
        if entry.get("certificate") or entry.get("private_key"):
            supplied = (Path(entry.get("certificate") or ""), Path(entry.get("private_key") or ""))
        if supplied and not entry.get("shared"):
            problems.append(f"pki_certificates.{name}: a supplied certificate must be `shared: true`")
        if not entry.get("shared"):
            requests += [
                Request(
                    host=host,
                    name=name,
                    common_name=f"{host}.{domain}",
                    dns=_unique(f"{host}.{domain}", host, "localhost", *names),
                    addresses=_unique(addresses[host], "127.0.0.1", *extra_addresses),
                )
                for host in hosts
            ]
        elif not names:
            problems.append(f"pki_certificates.{name}.names: empty, wanted: the names that its hosts share")
        elif hosts:
            requests.append(Request(SHARED, name, names[0], _unique(*names), _unique(*extra_addresses), supplied))
    problems += [problem for request in requests for problem in _name_problems(request)]
    if problems:
        raise PkiError(*problems)
    return requests


def _unique(*values: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _name_problems(request: Request) -> Iterator[str]:
    if len(request.common_name) > 64:
        yield f"{request.label}: the name {request.common_name} has more than the 64 characters of a common name"
    for address in request.addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            yield f"{request.label}: {address!r} is no IP address (site_address, or addresses of pki_certificates)"


# Authorities


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes
    chain: tuple[x509.Certificate, ...] = ()  # the certificates above it, where it is an intermediate

    @classmethod
    def create(cls, name: str, validity: timedelta, now: datetime, key: PrivateKeyTypes | None = None) -> Authority:
        signing_key = key if isinstance(key, ec.EllipticCurvePrivateKey) else ec.generate_private_key(ec.SECP256R1())
        subject = _subject(f"{ORGANIZATION} {name}", "authority")
        identifier = x509.SubjectKeyIdentifier.from_public_key(signing_key.public_key())
        certificate = (
            _builder(subject, subject, signing_key.public_key(), now, now + validity)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(signing_key, hashes.SHA256())
        )
        return cls(certificate, signing_key)

    @classmethod
    def load(cls, certificate: Path, private_key: Path, passphrase: str | None = None) -> Authority:
        try:
            issuer, *above = x509.load_pem_x509_certificates(certificate.read_bytes())
            key = serialization.load_pem_private_key(
                private_key.read_bytes(), passphrase.encode() if passphrase else None
            )
        except (OSError, ValueError, TypeError) as error:
            raise PkiError(f"the authority {certificate} with {private_key} cannot be read: {error}") from None
        if issuer.public_key() != key.public_key():
            raise PkiError(f"the authority's certificate {certificate} does not belong to its key {private_key}")
        if not _is_authority(issuer):
            raise PkiError(f"the first certificate of {certificate} may not issue certificates (basicConstraints CA)")
        return cls(issuer, cast("CertificateIssuerPrivateKeyTypes", key), tuple(above))

    def sign(self, request: Request, validity: timedelta, now: datetime) -> bytes:
        """A fresh private key and its certificate with the intermediates, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        end = min(now + validity, self.certificate.not_valid_after_utc)
        subject = _subject(request.common_name, request.name)
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), now, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(request.alternative_names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(self._key_identifier(), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        intermediates = [c for c in (self.certificate, *self.chain) if c.issuer != c.subject]
        return _key_pem(key) + _certificates_pem([certificate, *intermediates])

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        try:
            own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _subject(common_name: str, unit: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: Any, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CLOCK_SKEW)
        .not_valid_after(end)
    )


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except x509.ExtensionNotFound:
        return False


def _key_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


def _certificates_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


# Certificates on disk


def split_pem(pem: bytes) -> tuple[bytes, bytes]:
    """The private key and the certificates of a file that holds both, in this order."""
    key, mark, certificates = pem.partition(CERTIFICATE_MARK)
    return key, mark + certificates


def read_pem(pem: bytes) -> tuple[PrivateKeyTypes, list[x509.Certificate]]:
    key_pem, certificates_pem = split_pem(pem)
    key = serialization.load_pem_private_key(key_pem, None)
    certificates = x509.load_pem_x509_certificates(certificates_pem)
    if key.public_key() != certificates[0].public_key():
        raise ValueError("the certificate does not belong to the key")
    return key, certificates


def reason_to_issue(
    pem: bytes | None, request: Request, authority: Authority, policy: Policy, now: datetime
) -> str | None:
    """Why the certificate has to be issued (again), or None."""
    if pem is None:
        return "it is missing"
    try:
        certificate = read_pem(pem)[1][0]
    except ValueError as error:
        return f"the file is damaged ({error})"
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, ValueError, TypeError):
        return "another authority issued it"
    if certificate.subject != _subject(request.common_name, request.name):
        return f"its subject is {certificate.subject.rfc4514_string()}"
    if _alternative_names(certificate) != set(request.alternative_names):
        return f"its names are {', '.join(_printable_names(certificate))}"
    if now < certificate.not_valid_before_utc:
        return f"it is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
    if certificate.not_valid_after_utc - now < policy.renew_before:
        return f"it ends on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M}"
    if any(fnmatchcase(request.label, pattern) for pattern in policy.force):
        return "pki_force_renew names it"
    return None


def _alternative_names(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


def _printable_names(certificate: x509.Certificate) -> list[str]:
    return sorted(str(name.value) for name in _alternative_names(certificate))


def supplied_pem(request: Request, now: datetime) -> bytes:
    """The user's own key and certificate, checked."""
    certificate_path, key_path = request.supplied or (Path(), Path())
    try:
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        pem = _key_pem(key) + _certificates_pem(x509.load_pem_x509_certificates(certificate_path.read_bytes()))
        certificate = read_pem(pem)[1][0]
    except (OSError, ValueError, TypeError) as error:
        raise PkiError(f"{request.label}: {certificate_path} with {key_path} is no pair: {error}") from None
    names = _printable_names(certificate)
    wanted = [*request.dns, *request.addresses]
    missing = [w for w in wanted if w not in names and "*." + w.partition(".")[2] not in names]
    if missing:
        raise PkiError(f"{request.label}: {certificate_path} is for {', '.join(names)}, wanted: {', '.join(missing)}")
    if now >= certificate.not_valid_after_utc:
        raise PkiError(f"{request.label}: {certificate_path} ended on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return pem


def entry_problems(entry: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with an entry `certificate` of pst.platform.files."""
    name = entry["certificate"]
    for key in sorted(set(entry) - {"certificate", "owner", "group", "when"}):
        yield f"certificate {name}: {key}: is not an option of a certificate"
    if not entry.get("group"):
        yield f"certificate {name}: group: wanted the group that reads it"


def host_files(directory: Path, host: str, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what installs a certificate on a host, as entries of pst.platform.files."""
    name = entry["certificate"]
    found = [path for folder in (host, SHARED) if (path := directory / folder / f"{name}.pem").exists()]
    if not found:
        raise PkiError(
            f"certificate {name}: {directory / host / name}.pem does not exist. Wanted: one that the role pki"
            " has issued (pki_certificates names it, and this host is in one of its groups)."
        )
    pem = found[0].read_bytes()
    key, certificates = split_pem(pem)
    home = f"/etc/pst/pki/{name}"
    owners = {"owner": entry.get("owner", "root"), "group": entry["group"]}
    readable = {**owners, "mode": "0640"}
    return [
        {"dest": "/etc/pst", "state": "directory", "mode": "0755"},
        {"dest": "/etc/pst/pki", "state": "directory", "mode": "0755"},
        {"dest": home, "state": "directory", "mode": "0750", **owners},
        {"dest": "/etc/pst/pki/ca.crt", "content": (directory / "ca.crt").read_text(), "mode": "0644"},
        {"dest": f"{home}/{name}.crt", "content": certificates.decode(), **readable},
        {"dest": f"{home}/{name}.key", "content": key.decode(), "secret": True, **readable},
        {"dest": f"{home}/{name}.pem", "content": pem.decode(), "secret": True, **readable},
    ]


class Store:
    """The folder. With `write=False` (check mode) nothing is written and what is missing exists only in memory."""

    def __init__(self, directory: Path, *, write: bool) -> None:
        self.directory = directory
        self.write = write

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One run at a time."""
        if not self.write:
            yield
            return
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self, name: str) -> bytes | None:
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, name: str, content: bytes, mode: int = 0o600) -> None:
        if not self.write:
            return
        path = self.directory / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.new")
        staged.unlink(missing_ok=True)
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def authority(self, name: str, validity: timedelta, now: datetime, result: Result) -> Authority:
        """The authority of this name, made when it does not exist: the key first, so that a killed run resumes."""
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        if certificate.exists():
            if not key.exists():
                raise PkiError(f"{certificate} has lost its key: put {key} back, or use a new name for pki_ca_name")
            return Authority.load(certificate, key)
        existing = serialization.load_pem_private_key(key.read_bytes(), None) if key.exists() else None
        authority = Authority.create(name, validity, now, existing)
        self.replace(key.name, _key_pem(authority.key))
        self.replace(certificate.name, _certificates_pem([authority.certificate]), 0o644)
        result.changes.append(Change(f"authority {name}", "it is missing"))
        return authority


@dataclass(frozen=True)
class Authorities:
    """Who issues, and whom the hosts trust."""

    directory: Path  # sites that have to trust each other share it
    issuer: str  # its name in the folder
    also_trusted: tuple[str, ...]  # names in the folder, or paths of PEM files
    validity: timedelta
    supplied: tuple[Path, Path] | None = None  # the user's own authority: certificate (with the chain), private key
    passphrase: str | None = None


def ensure(
    store: Store, authorities: Authorities, requests: Sequence[Request], policy: Policy, now: datetime
) -> Result:
    """Make the folder hold every requested certificate, and say what was issued and why."""
    result = Result()
    unmatched = [p for p in policy.force if not any(fnmatchcase(r.label, p) for r in requests)]
    if unmatched:
        raise PkiError(*(f"pki_force_renew: no certificate is named {p} (<host>/<name>)" for p in unmatched))
    with Store(authorities.directory, write=store.write).locked():
        issuer = _ensure_authorities(store, authorities, policy, now, result)
        for request in requests:
            _ensure_certificate(store, issuer, request, policy, now, result)
        _retire_other_kind(store, requests, result)
    return result


def _retire_other_kind(store: Store, requests: Sequence[Request], result: Result) -> None:
    """Remove what a name had before it became, or ceased to be, shared: a host installs the one that is there."""
    shared = {request.name for request in requests if request.host == SHARED}
    own = {request.name for request in requests} - shared
    stale = [store.directory / SHARED / f"{name}.pem" for name in own]
    stale += [path for name in shared for path in store.directory.glob(f"*/{name}.pem") if path.parent.name != SHARED]
    for path in sorted(path for path in stale if path.exists()):
        if store.write:
            path.unlink()
        reason = "it is shared now" if path.stem in shared else "it is not shared any more"
        result.changes.append(Change(f"{path.parent.name}/{path.stem}", reason))


def _ensure_authorities(
    store: Store, authorities: Authorities, policy: Policy, now: datetime, result: Result
) -> Authority:
    home = Store(authorities.directory, write=store.write)
    if authorities.supplied:
        issuer = Authority.load(*authorities.supplied, authorities.passphrase)
    else:
        issuer = home.authority(authorities.issuer, authorities.validity, now, result)
    left = issuer.certificate.not_valid_after_utc - now
    if left <= policy.renew_before:
        raise PkiError(f"the issuing authority ends in {left.days} days: roll it over (roles/pki/README.md)")
    if left <= policy.validity:
        result.warnings.append(f"The issuing authority ends in {left.days} days: roll it over (roles/pki/README.md).")

    trusted = [issuer.certificate, *issuer.chain]
    for name in authorities.also_trusted:
        if "/" in name:
            trusted += _read_certificates(Path(name))
        elif authorities.supplied or name != authorities.issuer:
            trusted.append(home.authority(name, authorities.validity, now, result).certificate)
    bundle = _certificates_pem(list(dict.fromkeys(trusted)))
    if store.read("ca.crt") != bundle:
        store.replace("ca.crt", bundle, 0o644)
        names = ", ".join(c.subject.rfc4514_string() for c in dict.fromkeys(trusted))
        result.changes.append(Change("trusted authorities", names))
    return issuer


def _read_certificates(path: Path) -> list[x509.Certificate]:
    try:
        found: list[x509.Certificate] = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PkiError(f"pki_ca_also_trusted: {path} cannot be read: {error}") from None
    return found


def _ensure_certificate(
    store: Store, issuer: Authority, request: Request, policy: Policy, now: datetime, result: Result
) -> None:
    path = f"{request.label}.pem"
    pem = store.read(path)
    if request.supplied:
        wanted = supplied_pem(request, now)
        reason = None if pem == wanted else f"{request.supplied[0]} differs"
    else:
        reason = reason_to_issue(pem, request, issuer, policy, now)
        wanted = issuer.sign(request, policy.validity, now) if reason or pem is None else pem
    if reason:
        store.replace(path, wanted)
        result.changes.append(Change(request.label, reason))
    certificate = read_pem(wanted)[1][0]
    result.certificates[request.label] = {
        "serial": f"{certificate.serial_number:x}",
        "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
    }
    if request.supplied and certificate.not_valid_after_utc - now < policy.renew_before:
        days = (certificate.not_valid_after_utc - now).days
        result.warnings.append(f"{request.label}: the supplied certificate ends in {days} days: replace it.")


# Health


def days_left(listing: str, now: datetime) -> dict[str, float]:
    """Days until each certificate file ends, from `grep -r . <folder> --include=*.crt` (lines `path:text`)."""
    files: dict[str, list[str]] = {}
    for line in listing.splitlines():
        path, _, text = line.partition(":")
        files.setdefault(path, []).append(text)
    return {path: _days_left("\n".join(lines), now) for path, lines in files.items()}


def _days_left(pem: str, now: datetime) -> float:
    """The first to end of a file's certificates counts. A damaged file has none left."""
    try:
        ends = [c.not_valid_after_utc for c in x509.load_pem_x509_certificates(pem.encode())]
    except ValueError:
        return 0.0
    left: timedelta = min(ends) - now
    return round(left / timedelta(days=1), 2)
