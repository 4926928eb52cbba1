"""The dashboard: the WSGI application `app`, or by itself on loopback (DASHBOARD_PORT, 5000)."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, Response, jsonify

from dashboard.notes import blueprint as notes
from sysdata.config.production_config import get_production_config
from sysdata.mongodb.mongo_connection import get_database
from sysdata.parquet.parquet_access import ParquetAccess
from sysexecution.order_stack import broker_stack
from syslogging.logger import get_logger
from sysproduction.data.control_process import dataControlProcess

NEWEST_TRADES = 20
LOG = get_logger("dashboard")
app = Flask(__name__)
app.register_blueprint(notes)


@app.get("/")
def index() -> str:
    """The static page."""
    return "<!doctype html><title>pysystemtrade</title><h1>Reference application</h1>"


@app.get("/strategy")
def strategy() -> Response:
    """Positions by strategy and instrument, from the fills."""
    positions: dict[str, dict[str, float]] = {}
    for key, filled in broker_stack().filled().items():
        name, instrument, _ = key.split("/")
        held = positions.setdefault(name, {})
        held[instrument] = held.get(instrument, 0.0) + filled
    return jsonify(positions)


@app.get("/trades")
def trades() -> Response:
    """The newest orders that are done."""
    newest = get_database()["_BROKER_HISTORIC_ORDERS"].find({}, {"_id": 0}).sort("order_id", -1).limit(NEWEST_TRADES)
    return jsonify([{key: _text(value) for key, value in order.items()} for order in newest])


@app.get("/capital")
def capital() -> Response:
    """The account's capital; fails until there is one, as upstream."""
    return jsonify(
        {key: _text(value) for key, value in ParquetAccess().read("capital", "__global_capital")[-1].items()}
    )


@app.get("/processes")
def processes() -> Response:
    """Process control, with upstream's two dangers: it closes what another host runs, and shows the database's URI."""
    control = dataControlProcess()
    for name in control.check_if_pid_running_and_if_not_finish_all_processes():
        LOG.critical("%s appears to have crashed, marking as close", name)
    documents = control.get_dict_of_control_processes()
    config = get_production_config()
    return jsonify(
        {
            "running_modes": {name: {k: _text(v) for k, v in document.items()} for name, document in documents.items()},
            "config": {"mongo_host": config.mongo_host, "mongo_db": config.mongo_db},
        }
    )


def _text(value: Any) -> Any:
    """Leave to JSON what it knows; times and the rest become text."""
    return value if isinstance(value, int | float | str | bool | type(None)) else str(value)


if __name__ == "__main__":
    app.run(port=int(os.environ.get("DASHBOARD_PORT", "5000")), threaded=True)
