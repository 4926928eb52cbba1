"""Moves the lease of trading by hand, in place of the guards: ``lease.py hold HOST SECONDS``, ``lease.py release``."""

import sys
import time

from pst_trading import settings as configuration
from pst_trading.store import connect
from pymongo.errors import PyMongoError

PATIENCE_S = 20  # the store's own bounds are those of a guard in a hurry; here the machine may be busy


def main(verb: str, host: str = "", seconds: str = "0") -> None:
    """Write the lease as a guard would have it."""
    settings = configuration.load()
    leases = connect(settings.mongodb)[settings.mongodb.database]["leases"]
    holder = {"host": host, "colour": "blue", "instance": "test", "address": ""} if verb == "hold" else None
    ttl_ms = round(float(seconds) * 1000)
    more = {name: {"$add": [{"$ifNull": [f"${name}", 0]}, 1]} for name in ("epoch", "renewals")}
    change = {
        **more,
        "holder": {"$literal": holder},
        "ttl_ms": ttl_ms,
        "renewed_at": "$$NOW",
        "expires_at": {"$add": ["$$NOW", ttl_ms]},
        "ended": None,
        "wanted": None,
        "revoked": None,
    }
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            leases.update_one({"_id": "trading"}, [{"$set": change}], upsert=True)
        except PyMongoError:
            if time.monotonic() > end:
                raise
        else:
            return


main(*sys.argv[1:])
