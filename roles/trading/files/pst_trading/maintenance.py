"""Says, on a gateway host, whether the gateway may be restarted now: one line of JSON."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

from .gate_settings import PATH, load
from .settings import BAD_CONFIGURATION, SettingsError
from .watch import LeaseReadError, MongoLease

UNAVAILABLE = 69


def main(path: Path = PATH) -> int:
    """Print `in_window` and `holder`, who trades in words; returns the exit status."""
    try:
        settings = load(path)
        lease = MongoLease(settings.mongodb, settings.placement).read()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_CONFIGURATION
    except (LeaseReadError, OSError) as error:
        sys.stderr.write(f"the lease cannot be read: {error}\n")
        return UNAVAILABLE
    # The window is in the host's local time, as everything that pysystemtrade does.
    within = settings.watch.trading_window.covers(datetime.now())  # noqa: DTZ005
    sys.stdout.write(json.dumps({"in_window": within, "holder": lease.holder if lease.host else ""}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
