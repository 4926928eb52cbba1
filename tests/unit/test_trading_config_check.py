"""The check of the configuration in effect, with stand-ins for a release: one that reads it, and some that do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "roles/trading/files"))
import pst_config_check as check

URI = "mongodb://app:canary7f3a9c@db:27017/"
WANTED = {
    "mongo_host": URI,
    "mongo_db": "production",
    "ib_ipaddress": "127.0.0.1",
    "ib_port": 4001,
    "ib_idoffset": 100,
    "broker_account": "DU1",
    "parquet_store": "/var/lib/pst/parquet",
    "base_currency": "USD",
    "strategy_list": {"momentum": {}},
    "strategy_capital_allocation": {"strategy_weights": {"momentum": 1.0}},
}
READS = """
import os, pathlib, types, yaml
print("a release may print what it likes")
def get_production_config():
    file = pathlib.Path(os.environ["PYSYS_PRIVATE_CONFIG_DIR"]) / "private_config.yaml"
    return types.SimpleNamespace(**{"mongo_host": "127.0.0.1", **yaml.safe_load(file.read_text())})
"""
FALLS_BACK = """
import types
def get_production_config():
    return types.SimpleNamespace(mongo_host="127.0.0.1", mongo_db="production", ib_port=4001)
"""
BREAKS = "raise ImportError('no module pandas')"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with the slot's settings in place, on which nobody changes the user."""
    monkeypatch.setattr(check, "SLOTS", tmp_path / "srv")
    monkeypatch.setattr(check, "SETTINGS", tmp_path / "etc")
    monkeypatch.setattr(check.shutil, "chown", lambda *_: None)
    run = subprocess.run

    def as_ourselves(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert [options.pop(key) for key in ("user", "group", "extra_groups")] == ["pst", "pst", []]
        return run(command, **options)

    monkeypatch.setattr(check.subprocess, "run", as_ourselves)
    live = tmp_path / "etc/blue"
    live.mkdir(parents=True)
    (live / "private_config.yaml").write_text(yaml.safe_dump(WANTED))
    return tmp_path


def release(host: Path, code: str) -> None:
    folder = host / "srv/releases/r1"
    (folder / "source/sysdata/config").mkdir(parents=True)
    (folder / "source/sysdata/config/production_config.py").write_text(code)
    (folder / "venv/bin").mkdir(parents=True)
    python = folder / "venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    os.symlink("releases/r1", host / "srv/blue")


def test_what_the_release_has_is_what_the_file_says(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release(host, READS)
    assert check.main([]) == 0
    assert "10 keys of private_config.yaml are in effect in: blue" in capsys.readouterr().out


def test_a_new_file_is_asked_about_before_it_is_put_in_place(host: Path) -> None:
    release(host, READS)
    new = host / "staged"
    new.write_text(yaml.safe_dump({**WANTED, "mongo_db": "other"}))
    assert check.main(["blue", str(new)]) == 0
    new.write_text("mongo_host: [")
    with pytest.raises(SystemExit, match="cannot read its configuration"):
        check.main(["blue", str(new)])


def test_a_release_that_falls_back_to_its_defaults_is_found_out_and_no_password_is_told(host: Path) -> None:
    release(host, FALLS_BACK)
    with pytest.raises(SystemExit) as refusal:
        check.main([])
    said = str(refusal.value)
    assert 'slot blue, mongo_host: seen "127.0.0.1", wanted sha256 ' in said
    assert 'slot blue, broker_account: seen null, wanted "DU1"' in said
    assert "mongo_db" not in said.replace("private_config", "")
    assert "canary7f3a9c" not in said


def test_a_release_that_cannot_be_asked_is_refused(host: Path) -> None:
    release(host, BREAKS)
    with pytest.raises(SystemExit, match="no module pandas"):
        check.main([])


def test_an_empty_slot_has_nothing_to_ask(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 0
    assert check.main(["blue", str(host / "etc/blue/private_config.yaml")]) == 0
    assert "in effect in: no slot" in capsys.readouterr().out


def test_the_folder_of_the_check_has_no_dot(host: Path) -> None:
    with check.staged(host / "etc/blue/private_config.yaml", host / "etc/blue") as folder:
        assert "." not in folder.name
        assert yaml.safe_load((folder / "private_config.yaml").read_text()) == WANTED
    assert not folder.exists()


def test_the_templates_render_what_is_asked_about() -> None:
    text = (ROOT / "roles/trading/templates/private_config.yaml.j2").read_text()
    assert [key for key in check.KEYS if f"'{key}'" not in text] == []
