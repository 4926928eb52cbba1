"""Run the reference application, or check its configuration."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from reference_app import logs
from reference_app.config import ConfigError, effective, load, load_secrets
from reference_app.server import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="reference_app", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--check-config", action="store_true", help="print the effective configuration and exit")
    arguments = parser.parse_args()
    try:
        config, sha256 = load(arguments.config)
        if arguments.check_config:
            print(effective(config))
            return 0
        secrets = load_secrets()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 78  # EX_CONFIG: systemd does not restart on it
    logs.configure()
    asyncio.run(run(config, sha256, secrets))
    return 0


if __name__ == "__main__":
    sys.exit(main())
