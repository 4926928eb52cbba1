"""Whether a gateway may be restarted now, as the playbooks ask it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from pst_trading import maintenance
from pst_trading.gate_settings import TradingWindow
from pst_trading.watch import NO_LEASE, Lease, LeaseReadError

ALWAYS = TradingWindow("00:00", "23:59", ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"))


@pytest.fixture
def lease(monkeypatch):
    """A lease that the test sets."""
    found = SimpleNamespace(answer=NO_LEASE)

    def read():
        if isinstance(found.answer, Exception):
            raise found.answer
        return found.answer

    settings = SimpleNamespace(mongodb=None, placement="trading", watch=SimpleNamespace(trading_window=ALWAYS))
    monkeypatch.setattr(maintenance, "load", lambda _path: settings)
    monkeypatch.setattr(maintenance, "MongoLease", lambda _mongodb, _placement: SimpleNamespace(read=read))
    return found


def test_it_says_who_trades(lease, capsys, monkeypatch):
    lease.answer = Lease(7, 1, "app1", "blue", 10.0, 15.0, revoked=False)
    assert maintenance.main() == 0
    said = json.loads(capsys.readouterr().out)
    assert said["holder"] == "app1/blue holds the lease of trading (epoch 7)"
    assert isinstance(said["in_window"], bool)


def test_nobody_is_nothing(lease, capsys):
    assert maintenance.main() == 0
    assert json.loads(capsys.readouterr().out)["holder"] == ""


def test_a_lease_that_cannot_be_read_is_no_leave_to_restart(lease, capsys):
    lease.answer = LeaseReadError("no primary")
    assert maintenance.main() == 69
    assert "the lease cannot be read: no primary" in capsys.readouterr().err


def test_settings_that_cannot_be_used_are_told(tmp_path, capsys):
    path = tmp_path / "gate.json"
    path.write_text("{}")
    assert maintenance.main(path) == 78
    assert "gate.json" in capsys.readouterr().err
