"""What is told of a member of MongoDB, from answers as a 6.0 gives them."""

# ruff: noqa: DTZ001 - the times of pysystemtrade and of the driver are naive

from __future__ import annotations

from datetime import datetime, timedelta

from pst_exporter.mongodb import Answers, render
from test_exporter_site import samples

AT = datetime(2026, 11, 30, 12)
STATUS = {
    "version": "6.0.5",
    "uptime": 93784.0,
    "opcounters": {
        "insert": 5,
        "query": 70,
        "update": 6,
        "delete": 1,
        "getmore": 300,
        "command": 9000,
        "deprecated": {},
    },
    "opcountersRepl": {"insert": 2, "query": 0, "update": 3, "delete": 0, "getmore": 0, "command": 1},
    "connections": {"current": 40, "available": 960, "totalCreated": 5000, "active": 7},
    "mem": {"bits": 64, "resident": 150, "virtual": 2500, "supported": True},
    "network": {"bytesIn": 123, "bytesOut": 456, "numRequests": 9},
    "wiredTiger": {
        "cache": {
            "bytes currently in the cache": 1000,
            "tracked dirty bytes in the cache": 10,
            "maximum bytes configured": 268435456,
            "pages read into cache": 3,
        }
    },
}
SET = {
    "myState": 2,
    "members": [
        {"name": "m1.lab.test:27017", "state": 1, "health": 1.0, "optimeDate": AT},
        {"name": "m2.lab.test:27017", "state": 2, "health": 1.0, "optimeDate": AT - timedelta(seconds=42)},
        {"name": "m3.lab.test:27017", "state": 8, "health": 0.0, "optimeDate": datetime(1970, 1, 1)},
    ],
}


def test_a_member_that_answers():
    told = samples(render("m2", lambda _target: Answers(STATUS, SET, (AT - timedelta(days=2), AT))))
    assert told["mongodb_up", ""] == 1
    assert told["mongodb_op_counters_total", 'type="query"'] == 70
    assert sum(value for (name, _), value in told.items() if name == "mongodb_op_counters_total") == sum(
        value for value in STATUS["opcounters"].values() if not isinstance(value, dict)
    )
    assert told["mongodb_connections", 'state="current"'] == 40
    assert told["mongodb_memory_bytes", 'type="resident"'] == 150 * 1024 * 1024
    assert told["mongodb_wiredtiger_cache_bytes", 'type="dirty"'] == 10
    assert told["mongodb_network_bytes_total", 'direction="out"'] == 456
    assert told["mongodb_replset_my_state", ""] == 2
    assert told["mongodb_replset_member_state", 'member="m3"'] == 8
    assert told["mongodb_replset_member_health", 'member="m3"'] == 0
    assert told["mongodb_replset_primaries", ""] == 1
    assert told["mongodb_oplog_window_seconds", ""] == 2 * 86400
    lags = {labels: value for (name, labels), value in told.items() if name == "mongodb_replset_member_lag_seconds"}
    assert lags == {'member="m2"': 42}  # of secondaries only: one that is down has no lag, it is down


def test_a_member_without_a_set_is_up():
    told = samples(render("m", lambda _target: Answers(STATUS, {})))
    assert told["mongodb_up", ""] == 1
    assert not [name for name, _ in told if name.startswith("mongodb_replset")]


def test_a_set_without_a_primary_has_no_lag():
    members = [{**member, "state": 2} for member in SET["members"]]
    told = samples(render("m", lambda _target: Answers(STATUS, {**SET, "members": members})))
    assert told["mongodb_replset_primaries", ""] == 0
    assert not [name for name, _ in told if name == "mongodb_replset_member_lag_seconds"]


def test_a_member_that_does_not_answer_is_down_and_its_error_shows_no_secret():
    def refuse(_target: str) -> Answers:
        raise ConnectionRefusedError("mongodb://monitor:s3cret@m")

    told = render("m", refuse)
    assert samples(told) == {
        ("mongodb_up", ""): 0,
        ("mongodb_last_error_info", 'error="ConnectionRefusedError"'): 1,
    }
    assert "s3cret" not in told
