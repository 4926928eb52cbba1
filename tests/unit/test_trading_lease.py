"""Revoking and reinstating the leases, against a primary in memory; the guard's own words for it are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pst_trading import lease as rules
from pst_trading.store import MongoLeases

from ansible_collections.pst.platform.plugins.module_utils import trading_lease
from ansible_collections.pst.platform.plugins.module_utils.mongodb import Credentials, MongoError, UnreachableError
from ansible_collections.pst.platform.plugins.module_utils.trading_lease import UNHELD, Leases, Switch, shown

HELD = {**UNHELD, "_id": "trading", "epoch": 7, "holder": {"host": "app1", "colour": "blue"}}
STOP = Switch(revoked=True, by="me", reason="$trange fills")
GO = Switch(revoked=False, by="me", reason="checked")


class Primary:
    """Knows the three commands that are sent, and `hello`."""

    def __init__(self, *leases: Mapping[str, Any]) -> None:
        self.leases = {lease["_id"]: dict(lease) for lease in leases}
        self.concerns: list[Any] = []
        self.majority = True

    def __call__(self, host: str, credentials: Credentials | None) -> Primary:
        if host == "down:1":
            raise UnreachableError(host)
        return self

    def close(self) -> None: ...

    def command(self, command: Mapping[str, Any], database: str = "admin") -> dict[str, Any]:
        if "hello" in command:
            return {"isWritablePrimary": True, "primary": "up:1"}
        assert database == "pst"
        if "find" in command:
            self.concerns.append(command["readConcern"]["level"])
            return {"cursor": {"firstBatch": [dict(lease) for _, lease in sorted(self.leases.items())]}}
        self.concerns.append(command["writeConcern"]["w"])
        for update in command["updates"]:
            self.update(update)
        return {"ok": 1} if self.majority else {"ok": 1, "writeConcernError": {"errmsg": "waiting timed out"}}

    def update(self, update: Mapping[str, Any]) -> None:
        if "upsert" in update:
            name = update["q"]["_id"]
            self.leases.setdefault(name, {"_id": name, **update["u"]["$setOnInsert"]})
            return
        wanted = update["q"]["revoked"] is not None
        for lease in self.leases.values():
            if (lease["revoked"] is not None) == wanted:
                ((_, change),) = update["u"][0].items()
                lease["revoked"] = change["revoked"]["$ifNull"][1] if change["revoked"] else None


def leases_of(primary: Primary) -> Leases:
    return Leases(primary, ["down:1", "up:1"], Credentials("guard", "secret"), "pst", timeout=0)


def test_every_lease_is_revoked_by_a_majority_also_one_that_nobody_ever_held() -> None:
    primary = Primary({**HELD, "_id": "operations"})
    found, changed = leases_of(primary).switch(STOP, ["trading"])
    assert changed
    assert [lease["_id"] for lease in found if lease["revoked"]] == ["operations", "trading"]
    assert found[0]["holder"] == HELD["holder"]  # the gates look at `revoked`; the holder is let die by its guard
    assert set(primary.concerns) == {"majority"}


def test_a_second_time_changes_nothing_and_is_proven_again() -> None:
    primary = Primary(HELD)
    leases = leases_of(primary)
    leases.switch(STOP, ["trading"])
    primary.majority = False
    with pytest.raises(MongoError, match="the majority has not confirmed it: waiting timed out"):
        leases.switch(STOP, ["trading"])
    primary.majority = True
    assert leases.switch(STOP, ["trading"])[1] is False


def test_it_is_undone() -> None:
    primary = Primary(HELD)
    leases_of(primary).switch(STOP, ["trading"])
    assert leases_of(primary).switch(GO, ["trading"]) == ([HELD], True)
    assert leases_of(primary).switch(GO, ["trading"]) == ([HELD], False)


def test_what_did_not_take_effect_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    primary = Primary(HELD)
    monkeypatch.setattr(primary, "update", lambda _update: None)
    with pytest.raises(MongoError, match="revoked is trading: None; wanted set for all"):
        leases_of(primary).switch(STOP, ["trading"])


def test_check_mode_looks_and_changes_nothing() -> None:
    primary = Primary(HELD)
    assert leases_of(primary).switch(STOP, ["trading"], check=True) == ([HELD], True)
    assert primary.concerns == ["majority"]
    assert primary.leases["trading"] == HELD


def test_without_a_primary_nothing_is_claimed() -> None:
    with pytest.raises(MongoError, match="no primary"):
        Leases(Primary(HELD), ["down:1"], Credentials("guard", ""), "pst", timeout=0).switch(STOP, ["trading"])


def test_a_lease_in_words() -> None:
    assert shown({**HELD, "revoked": {"by": "me", "reason": "why"}}) == {
        "placement": "trading",
        "holder": "app1/blue",
        "epoch": 7,
        "revoked": "by me: why",
    }
    assert shown({**UNHELD, "_id": "x"}) == {"placement": "x", "holder": "", "epoch": 0, "revoked": ""}


def test_the_guard_s_own_commands_change_a_lease_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    guard = object.__new__(MongoLeases)
    monkeypatch.setattr(guard, "create", lambda placement: None, raising=False)
    monkeypatch.setattr(guard, "_change", lambda only_if, change: sent.append((only_if, change)), raising=False)
    guard.revoke("trading", STOP.by, STOP.reason)
    guard.reinstate("trading", GO.by, GO.reason)
    assert [change for _, change in sent] == [[{"$set": STOP.change()}], [{"$set": GO.change()}]]
    assert rules.unheld("trading") == {"_id": "trading", **UNHELD}
    assert trading_lease.COLLECTION == "leases"
