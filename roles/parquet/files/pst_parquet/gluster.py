"""What GlusterFS says of the volume, from its command line's XML."""

from __future__ import annotations

import subprocess
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass

CLI_S = 30
BUSY = "Another transaction is in progress"
BUSY_S = 0.5
TRIES = 20


class GlusterError(Exception):
    """The command line failed, or its answer is not one."""


@dataclass(frozen=True)
class Volume:
    """Bricks by `host:/path` and whether each runs; entries that wait to be healed."""

    bricks: dict[str, bool]
    pending: int


def ask(*words: str) -> ET.Element:
    """Return the answer of `gluster … --xml`; asked again where another host's question has the cluster's lock."""
    for _ in range(TRIES):
        try:
            return _ask(*words)
        except GlusterError as error:
            if BUSY not in str(error):
                raise
            time.sleep(BUSY_S)
    return _ask(*words)


def _ask(*words: str) -> ET.Element:
    command = ["/usr/sbin/gluster", "--mode=script", *words, "--xml"]
    try:
        done = subprocess.run(  # noqa: S603  no shell, our own words
            command, capture_output=True, text=True, check=False, timeout=CLI_S
        )
        answer = ET.fromstring(done.stdout)  # noqa: S314  of root's own daemon
    except subprocess.TimeoutExpired as error:
        raise GlusterError(f"{' '.join(command)}: not finished after {CLI_S} s") from error
    except (OSError, ET.ParseError) as error:
        raise GlusterError(f"{' '.join(command)}: {error}") from error
    if (code := answer.findtext("opRet", "-1")) != "0":
        raise GlusterError(f"{' '.join(words)}: {answer.findtext('opErrstr') or code}")
    return answer


def volume(name: str) -> Volume:
    """Return the state of a volume."""
    return parse(ask("volume", "status", name), ask("volume", "heal", name, "info"))


def parse(status: ET.Element, heal: ET.Element) -> Volume:
    bricks = {}
    for node in status.iter("node"):
        path = node.findtext("path", "")
        if path.startswith("/"):
            bricks[f"{node.findtext('hostname')}:{path}"] = node.findtext("status") == "1"
    counts = [brick.findtext("numberOfEntries", "-") for brick in heal.iter("brick")]
    # Of a brick that does not answer there is no number; that it is down is told by `bricks`.
    pending = sum(int(count) for count in counts if count.isdigit())
    return Volume(bricks, pending)
