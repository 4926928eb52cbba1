"""Tables of plain text."""

from __future__ import annotations

from ansible_collections.pst.platform.plugins.module_utils.table import joined, render

ROWS = [
    {"host": "m1", "service": "mongod", "state": "secondary", "since": "1", "ok": True},
    {"host": "m2", "service": "mongod", "state": "primary", "since": "2", "ok": True},
    {"host": "m3", "service": "mongod", "state": "secondary", "since": "3", "ok": True},
    {"host": "r1", "service": "redis", "state": "no answer", "ok": False},
    {"host": "r2", "service": "redis", "state": "no answer", "ok": False},
]


def test_rows_of_one_state_are_one_and_what_is_not_well_stays_alone() -> None:
    columns = ["service", "state", "host"]
    assert render(columns, joined(columns, "host", ROWS)) == [
        "SERVICE  STATE      HOST",
        "mongod   secondary  m1 m3",
        "mongod   primary    m2",
        "redis    no answer  r1",
        "redis    no answer  r2",
    ]


def test_joining_leaves_the_rows_as_they_are() -> None:
    before = [dict(row) for row in ROWS]
    joined(["service", "host"], "host", ROWS)
    assert before == ROWS
