# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A replicated GlusterFS volume, a brick on each member: what it lacks, how it is formed, how a lost member comes back.

Nothing is remembered between runs: all is read from the daemons. Every step may be repeated.
"""

from __future__ import annotations

import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils.units import Run, run

PROGRAM = Path("/usr/sbin/gluster")
CALL_S = 120.0
POLL_S = 1.0
IDENTITY = Path("/var/lib/glusterd/glusterd.info")
PEERS = Path("/var/lib/glusterd/peers")
IN_CLUSTER = "3"  # the state of a peer that both sides have accepted
VOLUME_ID = "trusted.glusterfs.volume-id"
INSIDE = ".glusterfs"
EMPTY = "pst-empty"  # in that folder, from when the brick was made until the others were told to fill it
UNIT = "glusterd.service"
PIDS = Path("/run/gluster/vols")
BUSY = "Another transaction is in progress"
TRIES = 30


class GlusterError(Exception):
    """A step that failed; the message says which, and what GlusterFS said."""


@dataclass(frozen=True)
class Wanted:
    """The volume as the task wants it. Members are names that all of them resolve."""

    volume: str
    members: Sequence[str]
    own_name: str
    brick: str
    options: Mapping[str, str]

    @property
    def bricks(self) -> list[str]:
        return [f"{member}:{self.brick}" for member in self.members]


@dataclass(frozen=True)
class Seen:
    """What this host's daemon knows."""

    answers: bool = False
    uuid: str = ""
    pool: Mapping[str, str] = field(default_factory=dict)  # uuid by name, this host as "localhost"
    connected: Sequence[str] = ()  # names of those that can be asked: connected, and accepted on both sides
    volume_id: str = ""
    started: bool = False
    bricks: Sequence[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    down: Sequence[str] = ()  # the brick of this host, where it does not run
    empty: Sequence[str] = ()  # the brick of this host, where nobody was told to fill it

    def lacks(self, wanted: Wanted) -> list[str]:
        """Return what is not as it is wanted, in words."""
        if not self.answers:
            return ["glusterd does not answer"]
        found = [f"{name} is no peer" for name in wanted.members if name != wanted.own_name and name not in self.pool]
        if not self.volume_id:
            return [*found, f"volume {wanted.volume} does not exist"]
        found += [f"brick {brick} is not in the volume" for brick in wanted.bricks if brick not in self.bricks]
        found += [
            f"option {key} is {self.options.get(key, 'not set')}, wanted {value}"
            for key, value in wanted.options.items()
            if self.options.get(key) != value
        ]
        if not self.started:
            found.append(f"volume {wanted.volume} is not started")
        found += [f"brick {brick} does not run" for brick in self.down]
        return found + [f"brick {brick} is not compared with the others" for brick in self.empty]

    def strangers(self, wanted: Wanted) -> list[str]:
        """Return the bricks that are in the volume and not wanted: data that nobody may throw away by a variable."""
        return [brick for brick in self.bricks if brick not in wanted.bricks]


class Gluster:
    """The daemon of this host."""

    def __init__(self, wanted: Wanted, runner: Run = run, wait: Callable[[float], None] = time.sleep) -> None:
        self.wanted = wanted
        self._run = runner
        self._wait = wait

    # Looking ----------------------------------------------------------------------------------------------------------

    def look(self, patience: float = 0.0) -> Seen:
        """Return what the daemon knows; it may not be there yet. One that comes up is waited for so many seconds."""
        while True:
            try:
                peers = self._ask("pool", "list")
                break
            except (GlusterError, OSError):
                if patience <= 0 or not PROGRAM.exists():
                    return Seen()
            self._wait(POLL_S)
            patience -= POLL_S
        pool, connected, own = {}, [], ""
        for peer in peers.iter("peer"):
            name, uuid = peer.findtext("hostname", ""), peer.findtext("uuid", "")
            pool[name] = uuid
            if name == "localhost":
                own = uuid
            elif peer.findtext("connected") == "1" and peer.findtext("state") == IN_CLUSTER:
                connected.append(name)
        try:
            info = self._ask("volume", "info", self.wanted.volume)
        except GlusterError:
            return Seen(True, own, pool, connected)
        own_brick = f"{self.wanted.own_name}:{self.wanted.brick}"
        volume = info.find(".//volume")
        if volume is None:
            return Seen(True, own, pool, connected)
        return Seen(
            answers=True,
            uuid=own,
            pool=pool,
            connected=connected,
            volume_id=volume.findtext("id", ""),
            started=volume.findtext("statusStr") == "Started",
            bricks=[brick.findtext("name", "") for brick in volume.iter("brick")],
            options={o.findtext("name", ""): o.findtext("value", "") for o in volume.iter("option")},
            # Of its own brick a host can tell without a lock on the whole cluster, which `volume status` takes.
            down=() if volume.findtext("statusStr") != "Started" or self._runs() else (own_brick,),
            empty=(own_brick,) if self._empty().exists() else (),
        )

    def _empty(self) -> Path:
        return Path(self.wanted.brick, INSIDE, EMPTY)

    def _runs(self) -> bool:
        """Say whether the brick of this host runs."""
        path = self.wanted.brick.lstrip("/").replace("/", "-")
        try:
            pid = int((PIDS / self.wanted.volume / f"{self.wanted.own_name}-{path}.pid").read_text())
            return "glusterfsd" in Path(f"/proc/{pid}/cmdline").read_text()
        except (OSError, ValueError):
            return False

    def down(self) -> list[str]:
        """Return the bricks of the volume, on all members, that do not run."""
        status = self._ask("volume", "status", self.wanted.volume)
        return [
            f"{node.findtext('hostname')}:{node.findtext('path')}"
            for node in status.iter("node")
            if node.findtext("path", "").startswith("/") and node.findtext("status") != "1"
        ]

    # Forming ----------------------------------------------------------------------------------------------------------

    def form(self, timeout: float) -> list[str]:
        """Bring pool and volume to what is wanted; on the member that knows most. Returns what was done."""
        done = []
        seen = self.look()
        if strangers := seen.strangers(self.wanted):
            raise GlusterError(
                f"volume {self.wanted.volume} has the bricks {', '.join(strangers)}, wanted none but "
                f"{', '.join(self.wanted.bricks)}: members are not exchanged by a variable"
            )
        for name in self.wanted.members:
            if name not in (self.wanted.own_name, *seen.pool):
                self._ask("peer", "probe", name)
                done.append(f"probed {name}")
        self._await(self._absent, "peers are not connected", timeout)
        if not seen.volume_id:
            replica = ["replica", str(len(self.wanted.members))] if len(self.wanted.members) > 1 else []
            self._ask("volume", "create", self.wanted.volume, *replica, *self.wanted.bricks)
            done.append("created the volume")
        options = self.look().options
        wrong = {key: value for key, value in self.wanted.options.items() if options.get(key) != value}
        if wrong:
            self._ask("volume", "set", self.wanted.volume, *(word for pair in wrong.items() for word in pair))
            done.append(f"set {', '.join(wrong)}")
        seen = self.look()
        if not seen.started:
            self._ask("volume", "start", self.wanted.volume)
            done.append("started the volume")
        elif down := self.down():
            self._ask("volume", "start", self.wanted.volume, "force")
            done.append(f"started {', '.join(down)}")
        self._await(self.down, "bricks do not run", timeout)
        return done

    def _absent(self) -> list[str]:
        return [m for m in self.wanted.members if m not in (self.wanted.own_name, *self.look().connected)]

    # Coming back ------------------------------------------------------------------------------------------------------

    def rejoin(self, uuid: str, volume_id: str, peers: Mapping[str, str], timeout: float) -> list[str]:
        """Give a member that lost its disk its identity and its place back; the others then heal its brick.

        It is told who its peers are (identities by name) instead of probing one: the others know this member, and
        after a probe both sides may wait for each other, for ever ("Sent and Received peer request").
        """
        done = []
        seen = self.look()
        if seen.volume_id and seen.uuid != uuid:
            raise GlusterError(
                f"this host is {seen.uuid} and knows a volume {self.wanted.volume}; the others know it as {uuid}. "
                "Wanted: one of them, or no volume here"
            )
        if not seen.volume_id:
            self._identify(uuid, peers)
            done.append(f"took the identity {uuid}")
            self._await(
                lambda: [] if self.look().volume_id else [self.wanted.volume], "not learnt from the others", timeout
            )
            done.append("learnt the volume from the others")
        if self.prepare(volume_id):
            done.append("prepared an empty brick")
        return done

    def prepare(self, volume_id: str) -> bool:
        """Mark an empty folder as the brick. One with files and no mark is somebody's data: it is left alone."""
        brick = Path(self.wanted.brick)
        brick.mkdir(mode=0o755, parents=True, exist_ok=True)
        mark = bytes.fromhex(volume_id.replace("-", ""))
        try:
            there = os.getxattr(brick, VOLUME_ID)
        except OSError:
            there = b""
        inside = brick / INSIDE
        if there == mark and inside.is_dir():
            return False
        if there != mark and (there or any(brick.iterdir())):
            raise GlusterError(f"{brick}: seen files of something else, wanted an empty folder or this volume's brick")
        os.setxattr(brick, VOLUME_ID, mark)
        # The brick's process does not start without the folder. It has the note in it from the beginning: a run that is
        # killed now would leave a copy that lacks files and counts as complete.
        new = brick / f"{INSIDE}.new"
        new.mkdir(mode=0o700, exist_ok=True)
        (new / EMPTY).touch()
        new.replace(inside)
        return True

    def _identify(self, uuid: str, peers: Mapping[str, str]) -> None:
        self._systemctl("stop")
        lines = [line for line in IDENTITY.read_text().splitlines() if not line.startswith("UUID=")]
        temporary = IDENTITY.with_suffix(".new")
        temporary.write_text("\n".join([f"UUID={uuid}", *lines]) + "\n")
        temporary.chmod(0o600)
        temporary.replace(IDENTITY)
        PEERS.mkdir(mode=0o755, exist_ok=True)
        for path in PEERS.iterdir():
            path.unlink()
        for name, identity in peers.items():
            path = PEERS / identity
            path.write_text(f"uuid={identity}\nstate={IN_CLUSTER}\nhostname1={name}\n")
            path.chmod(0o600)
        self._systemctl("start")
        self._await(lambda: [] if self.look().answers else [UNIT], "does not answer", CALL_S)

    def heal(self, timeout: float) -> None:
        """Have the whole volume compared, from the member whose brick is empty. It goes on after this call.

        The healing process of each member has to be connected to its own brick; no other question tells that.
        """
        # This one command has no answer in XML.
        command = [str(PROGRAM), "--mode=script", "volume", "heal", self.wanted.volume, "full"]
        waited = 0.0
        while (done := self._run(command, CALL_S)).code:
            if waited >= timeout:
                raise GlusterError(f"{' '.join(command[2:])}: {done.err.strip() or done.out.strip()}")
            self._wait(POLL_S)
            waited += POLL_S
        self._empty().unlink(missing_ok=True)

    # The command line -------------------------------------------------------------------------------------------------

    def _ask(self, *words: str) -> ET.Element:
        """Ask, again where another host's question has the cluster's lock."""
        for _ in range(TRIES):
            try:
                return self._ask_once(*words)
            except GlusterError as error:
                if BUSY not in str(error):
                    raise
                self._wait(POLL_S)
        return self._ask_once(*words)

    def _ask_once(self, *words: str) -> ET.Element:
        done = self._run([str(PROGRAM), "--mode=script", *words, "--xml"], CALL_S)
        try:
            answer = ET.fromstring(done.out)  # noqa: S314  of root's own daemon
        except ET.ParseError:
            raise GlusterError(
                f"gluster {' '.join(words)}: {done.err.strip() or done.out.strip() or done.code}"
            ) from None
        if answer.findtext("opRet", "-1") != "0":
            raise GlusterError(
                f"gluster {' '.join(words)}: {answer.findtext('opErrstr') or answer.findtext('output') or done.code}"
            )
        return answer

    def _systemctl(self, verb: str) -> None:
        done = self._run(["systemctl", verb, UNIT], CALL_S)
        if done.code:
            raise GlusterError(f"systemctl {verb} {UNIT}: {done.err.strip() or done.code}")

    def _await(self, missing: Callable[[], Sequence[Any]], what: str, timeout: float) -> None:
        waited = 0.0
        while left := missing():
            if waited >= timeout:
                raise GlusterError(f"{', '.join(map(str, left))}: {what} after {timeout:g} s")
            self._wait(POLL_S)
            waited += POLL_S
