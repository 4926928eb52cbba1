"""pst.platform.secret: the logic, and the lookup as Ansible calls it, with a stand-in for HashiCorp Vault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from ansible_collections.pst.platform.plugins.module_utils.secrets import (
    ALPHABET,
    SecretError,
    checked,
    from_mapping,
    generated,
    vault_place,
)


def test_made_once_and_kept(tmp_path):
    folder = tmp_path / "secrets"
    value = generated(folder, "redis_password")
    assert len(value) == 32
    assert set(value) <= set(ALPHABET)
    assert generated(folder, "redis_password", length=512) == value
    assert generated(folder, "other") != value
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "other").stat().st_mode & 0o777 == 0o600
    assert len(generated(folder, "mongodb_key_file", length=512)) == 512


def test_many_runs_at_once_agree(tmp_path):
    with ProcessPoolExecutor(8) as pool:
        values = set(pool.map(partial(generated, tmp_path / "secrets"), ["one"] * 64))
    assert len(values) == 1
    assert os.listdir(tmp_path / "secrets") == ["one"]


def test_a_readable_or_empty_file_is_refused(tmp_path):
    folder = tmp_path / "secrets"
    generated(folder, "a")
    (folder / "a").chmod(0o640)
    with pytest.raises(SecretError, match="mode 0640, wanted nothing for group and others"):
        generated(folder, "a")
    (folder / "a").chmod(0o600)
    (folder / "a").write_text("\n")
    with pytest.raises(SecretError, match="is empty"):
        generated(folder, "a")


def test_a_short_secret_is_refused(tmp_path):
    with pytest.raises(SecretError, match="wanted at least 16"):
        generated(tmp_path, "a", length=8)


@pytest.mark.parametrize("name", ["../a", "a/b", "", "A", ".hidden", 1, None])
def test_a_name_is_no_path(name):
    with pytest.raises(SecretError, match="wanted the name of a secret"):
        checked(name)


def test_what_is_missing_is_named_and_what_is_wrong_is_not_shown():
    assert from_mapping({"a": "x"}, "a", "site_secrets") == "x"
    for values, words in (
        ({}, "site_secrets.a: got nothing"),
        ({"a": ""}, "got an empty text"),
        ({"a": 12345}, "got int"),
        ("text", "got str, wanted a dictionary"),
    ):
        with pytest.raises(SecretError, match=words) as caught:
            from_mapping(values, "a", "site_secrets")
        assert "12345" not in str(caught.value)


def test_the_place_in_vault():
    assert vault_place("secret/pst/production") == ("secret", "pst/production")
    with pytest.raises(SecretError, match="site_secrets_path: got 'secret'"):
        vault_place("secret")


class Vault(BaseHTTPRequestHandler):
    """Answers one read of KV version 2, to whoever has the token."""

    def do_GET(self):
        known = self.path == "/v1/kv/data/pst/lab" and self.headers["X-Vault-Token"] == "let-me-in"
        body = (
            {"data": {"data": {"app_password": "from-vault"}, "metadata": {"version": 1}}} if known else {"errors": []}
        )
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_args):
        """Say nothing."""


@pytest.fixture
def vault():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vault)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def lookup(name: str, check: bool = False, **variables: object) -> str:
    """Return what Ansible says to a debug task that shows the secret."""
    command = [Path(sys.executable).with_name("ansible"), "localhost", "-m", "debug", "-a", "var=wanted"]
    command += ["-i", "localhost,", "-c", "local", "-e", json.dumps(variables), *(["--check"] if check else [])]
    command += ["-e", json.dumps({"wanted": f"{{{{ lookup('pst.platform.secret', '{name}') }}}}"})]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    return done.stdout + done.stderr


def test_the_lookup_generates_also_in_check_mode(tmp_path):
    variables = {"site_secrets_backend": "generated", "parent": str(tmp_path), "site_state_dir": "{{ parent }}/state"}
    said = lookup("app_password", check=True, **variables)
    assert (tmp_path / "state/secrets/app_password").read_text() in said


def test_the_lookup_reads_variables():
    variables = {"site_secrets_backend": "vars", "site_secrets": {"app_password": "from-vars"}}
    assert "from-vars" in lookup("app_password", **variables)
    assert "site_secrets.other: got nothing, wanted a text" in lookup("other", **variables)


def test_the_lookup_reads_vault(vault):
    variables = {
        "site_secrets_backend": "hashi_vault",
        "site_secrets_path": "kv/pst/lab",
        "ansible_hashi_vault_addr": vault,
        "ansible_hashi_vault_token": "let-me-in",
        "ansible_hashi_vault_auth_method": "token",
    }
    assert "from-vault" in lookup("app_password", **variables)
    assert "HashiCorp Vault, kv/pst/lab.other: got nothing" in lookup("other", **variables)


def test_a_site_without_a_backend_is_told_so():
    assert "site_secrets_backend: is not set for this site" in lookup("app_password")
    assert "got 'file', wanted one of generated, vars, hashi_vault" in lookup("a", site_secrets_backend="file")
