"""Run the agent of a slot, or check its configuration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pst_agent import logs
from pst_agent.config import ConfigError, effective, load, load_secrets, settings_hash


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--check-config", action="store_true", help="print the effective configuration and exit")
    arguments = parser.parse_args()
    try:
        config, sha256 = load(arguments.config)
        if arguments.check_config:
            print(effective(config))  # noqa: T201
            return 0
        secrets = load_secrets()
        shared = settings_hash(arguments.config, config, secrets.agent_token)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 78  # EX_CONFIG: systemd does not restart on it
    logs.configure()
    # A check of the configuration needs no server, no driver, and answers in a tenth of the time.
    import asyncio  # noqa: PLC0415

    from pst_agent.server import run  # noqa: PLC0415

    asyncio.run(run(config, sha256, shared, secrets))
    return 0


if __name__ == "__main__":
    sys.exit(main())
