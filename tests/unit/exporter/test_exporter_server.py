"""Who is let in, what is answered, and what is seen of certificates; over real TLS."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pst_exporter.__main__ import main
from pst_exporter.certificates import Seen, Watch, look
from pst_exporter.server import BadRequestError, Certificates, Query, Server
from pst_exporter.settings import Endpoint, SettingsError, Tls, load
from test_exporter_site import samples

TODAY = datetime.now(UTC).replace(microsecond=0)


class Authority:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self.ca = self._signed(self.name, self.key.public_key(), TODAY + timedelta(days=9), ca=True)
        (folder / "ca.crt").write_bytes(self.ca.public_bytes(serialization.Encoding.PEM))

    def _signed(self, name, key, expires, names=(), *, ca=False):
        builder = x509.CertificateBuilder(self.name, name, key, x509.random_serial_number())
        builder = builder.not_valid_before(TODAY - timedelta(days=99)).not_valid_after(expires)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        usage = dict.fromkeys(("crl_sign", "key_cert_sign"), ca) | {"digital_signature": True}
        others = (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        )
        builder = builder.add_extension(x509.KeyUsage(**usage, **dict.fromkeys(others, False)), critical=True)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, unit: str, expires: datetime = TODAY + timedelta(days=5), host: str = "localhost") -> Tls:
        key = ec.generate_private_key(ec.SECP256R1())
        name = [(NameOID.COMMON_NAME, host), (NameOID.ORGANIZATIONAL_UNIT_NAME, unit)]
        subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in name])
        certificate = self._signed(subject, key.public_key(), expires, [host])
        paths = [self.folder / f"{unit}.{kind}" for kind in ("crt", "key")]
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        paths[1].write_bytes(key.private_bytes(*form))
        return Tls(str(paths[0]), str(paths[1]), str(self.folder / "ca.crt"), ("monitoring",))


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def only_known(query: Query) -> str:
    if query.get("target") != "a":
        raise BadRequestError("wanted: a")
    return "figure 1\n"


@pytest.fixture
def server(authority):
    server = Server("127.0.0.1:0", Certificates(authority.issue("monitoring")), {"/mongodb": only_known})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, tls: Tls | None, path: str = "/mongodb?target=a") -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(server.certificates._tls.ca))
    if tls:
        context.load_cert_chain(tls.certificate, tls.key)
    connection = http.client.HTTPSConnection("localhost", server.server_address[1], timeout=5, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_who_has_the_wanted_certificate_is_answered(server, authority):
    assert ask(server, authority.issue("monitoring")) == (200, "figure 1\n")
    assert ask(server, authority.issue("monitoring"), "/mongodb?target=b") == (400, "wanted: a\n")
    assert ask(server, authority.issue("monitoring"), "/other") == (404, "wanted: /mongodb\n")


def test_a_certificate_of_another_service_is_refused(server, authority):
    assert ask(server, authority.issue("redis"))[0] == 403


def test_nobody_gets_in_without_a_certificate(server):
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        ask(server, None)


def test_one_that_says_nothing_keeps_nobody_waiting(server, authority):
    with socket.create_connection(server.server_address[:2]):
        assert ask(server, authority.issue("monitoring"))[0] == 200


def test_a_renewed_certificate_is_shown_without_a_restart(server, authority):
    endpoint = Endpoint("h", "s", "127.0.0.1", server.server_address[1], "localhost")
    before = look(authority.issue("node"))(endpoint)
    authority.issue("monitoring", TODAY + timedelta(days=7))
    after = look(authority.issue("node"))(endpoint)
    assert before == Seen((TODAY + timedelta(days=5)).timestamp())
    assert after == Seen((TODAY + timedelta(days=7)).timestamp())


def test_an_expired_certificate_is_told_as_such(server, authority):
    authority.issue("monitoring", TODAY - timedelta(days=1))
    endpoint = Endpoint("h", "s", "127.0.0.1", server.server_address[1], "localhost")
    seen = look(authority.issue("node"))(endpoint)
    assert seen == Seen(None, "certificate has expired")
    watch = Watch([endpoint], lambda _endpoint: seen, 60)
    watch.step()
    told = samples(watch.render())
    assert told == {("pst_certificate_valid", 'host="h",service="s",problem="certificate has expired"'): 0}


def test_an_endpoint_that_does_not_answer_is_not_told(authority):
    endpoint = Endpoint("h", "s", "127.0.0.1", 1, "localhost")
    assert look(authority.issue("node"))(endpoint) is None
    answers = [Seen(1.0), None]
    watch = Watch([endpoint], lambda _endpoint: answers.pop(0), 60)
    watch.step()
    assert samples(watch.render())["pst_certificate_expiry_timestamp_seconds", 'host="h",service="s"'] == 1
    watch.step()
    assert samples(watch.render()) == {}


SETTINGS = {
    "listen": "127.0.0.1:9216",
    "tls": {"certificate": "c", "key": "k", "ca": "a", "clients": ["monitoring"]},
    "mongodb": {
        "hosts": ["m:27017"],
        "replica_set": "rs",
        "username": "monitor",
        "password_file": "p",
        "ca": "a",
        "platform_database": "pst",
        "trading_database": "production",
    },
    "processes": [{"name": "p", "kind": "daily", "start": "01:00", "stop": "02:00", "days": ["Mon"]}],
    "endpoints": [],
    "certificates_every_s": 60,
    "state": "/var/lib/pst-exporter/breaks.json",
}


def test_settings_are_read_strictly(tmp_path, capsys):
    path = tmp_path / "exporter.json"
    path.write_text(json.dumps(SETTINGS))
    assert load(path).mongodb.hosts == ("m:27017",)
    assert main(["--check", str(path)]) == 0
    for wrong, words in (
        ({"listen": "9216"}, "listen is '9216'"),
        ({"tls": {**SETTINGS["tls"], "klients": []}}, "tls: klients"),
        ({"processes": [{"name": "p"}]}, "processes[0]: days, kind, start, stop"),
        ({"endpoints": None}, "endpoints is None"),
        ({"more": 1}, "more: wanted exactly"),
    ):
        path.write_text(json.dumps({**SETTINGS, **wrong}))
        with pytest.raises(SettingsError, match=words.replace("[", r"\[").replace("]", r"\]")):
            load(path)
        assert main(["--check", str(path)]) == 78
        assert words in capsys.readouterr().err
