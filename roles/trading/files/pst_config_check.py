#!/usr/bin/python3
"""Check what a release really makes of pysystemtrade's configuration.

    pst-config-check                  what the slots have
    pst-config-check COLOUR FILE      what a slot would have with this file for its private_config.yaml

pysystemtrade falls back to its defaults without an error, where the file is not found or its folder has a dot. So the
release in a slot is asked what it has, and that has to be what the file says. Values that hold an address, and so
perhaps a password, are told by hash. An empty slot has nothing to ask.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COLOURS = ["blue", "green"]
SLOTS, SETTINGS = Path("/srv/pst"), Path("/etc/pst")
CONFIGURATION, CONTROL = "private_config.yaml", "private_control_config.yaml"
USER = "pst"
TIMEOUT_S = 120
KEYS = (
    "mongo_host",
    "mongo_db",
    "ib_ipaddress",
    "ib_port",
    "ib_idoffset",
    "broker_account",
    "parquet_store",
    "base_currency",
    "strategy_list",
    "strategy_capital_allocation",
)
# Runs in the release. Importing it may print: the last line is the answer, what it has and what the file says by key.
ASK = """
import hashlib, json, sys
import yaml
from sysdata.config.production_config import get_production_config

def shown(value):
    text = json.dumps(value, sort_keys=True, default=str)
    return "sha256 " + hashlib.sha256(text.encode()).hexdigest()[:16] if "://" in text else text

with open(sys.argv[1]) as file:
    wanted = yaml.safe_load(file)
config = get_production_config()
values = {key: [shown(getattr(config, key, None)), shown(wanted.get(key))] for key in sys.argv[2:]}
print()
print(json.dumps(values))
"""


@contextmanager
def staged(file: Path, live: Path) -> Iterator[Path]:
    """A folder as the live one would be with this file; its name has no dot."""
    folder = Path(tempfile.mkdtemp(prefix="pst_config_"))
    try:
        shutil.copy(file, folder / CONFIGURATION)
        if (live / CONTROL).exists():
            shutil.copy(live / CONTROL, folder / CONTROL)
        for path in (*folder.iterdir(), folder):
            shutil.chown(path, USER, USER)
        yield folder
    finally:
        shutil.rmtree(folder)


def ask(release: Path, folder: Path) -> dict[str, list[str]]:
    """Return for each key what the release has, and what the file says."""
    command = [str(release / "venv/bin/python"), "-c", ASK, str(folder / CONFIGURATION), *KEYS]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "PYTHONPATH": str(release / "source"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYSYS_PRIVATE_CONFIG_DIR": str(folder),
    }
    # The release's code never runs as root.
    done = subprocess.run(  # noqa: S603 - the release's own Python
        command, env=environment, cwd=release / "source", user=USER, group=USER, extra_groups=[],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{release} cannot read its configuration:\n{done.stderr.strip()[-2000:]}")
    answer: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def differences(values: dict[str, list[str]]) -> list[str]:
    return [f"{key}: seen {seen}, wanted {wanted}" for key, (seen, wanted) in values.items() if seen != wanted]


def check(colour: str, file: str | None) -> list[str]:
    """Return what is wrong with a slot."""
    live, release = SETTINGS / colour, (SLOTS / colour).resolve()
    if file is None:
        values = ask(release, live)
    else:
        with staged(Path(file), live) as folder:
            values = ask(release, folder)
    return [f"slot {colour}, {problem}" for problem in differences(values)]


def main(arguments: list[str]) -> int:
    """Check, and tell every difference."""
    if len(arguments) not in (0, 2):
        raise SystemExit(__doc__)
    colours, file = ([arguments[0]], arguments[1]) if arguments else (COLOURS, None)
    filled = [colour for colour in colours if (SLOTS / colour).exists()]
    wrong = [problem for colour in filled for problem in check(colour, file)]
    if wrong:
        raise SystemExit("\n".join([f"The release has another configuration than {CONFIGURATION} says:", *wrong]))
    print(f"{len(KEYS)} keys of {CONFIGURATION} are in effect in: {', '.join(filled) or 'no slot'}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
