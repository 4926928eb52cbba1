# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""One mutating run per site at a time, and a journal of who did what, from which an interrupted run goes on.

The lock is one document. It holds all that is known of the run that has it, so that anybody can make the run's page in
the journal from it: a crash between the two leaves nothing that the next run does not mend. Each grant counts the
lock's `number` up. A run that is in the journal had the lock, and of two the one with the larger number had it later.

Every write is one `findAndModify` that a majority has to confirm, and each may be sent again: an answer that was lost
in an election is asked for again, for `timeout` seconds. Times are those of the server.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils.mongodb import (
    TRANSIENT,
    Clock,
    CommandError,
    Connect,
    Credentials,
    Document,
    MongoError,
    ReplicaSet,
    Server,
    wait,
)

LOCK, JOURNAL, SITE = "run_lock", "journal", "site"
OUTCOMES = ("succeeded", "failed")
STATES = ("begun", "proven", "failed")
DUPLICATE_KEY = 11000
# Besides those of a busy set: network errors between its members, a time limit, a majority that is not there yet.
PASSING = TRANSIENT | {6, 7, 50, 64, 89, 134, 262, 9001}
# The server gives up before the socket does (SOCKET_SECONDS), so that no write takes effect after it was sent again.
SERVER_MS = 5000
SOCKET_SECONDS = 2 * SERVER_MS / 1000 + 2
# What a run's document takes over from the lock.
FIELDS = ("number", "playbook", "target", "key", "by", "from", "pid", "site", "reason", "started")


class HeldError(MongoError):
    """Another run has the lock; `holder` is what is known of it."""

    def __init__(self, message: str, holder: Document) -> None:
        super().__init__(message)
        self.holder = holder


class LostError(MongoError):
    """The lock is not, or no longer, this run's: it must not go on."""


@dataclass(frozen=True)
class Run:
    """A run that wants the lock. `target` is what was asked for, as given; `reason` why a rule was overridden."""

    id: str
    playbook: str
    by: str
    host: str
    pid: int
    target: Mapping[str, Any] = field(default_factory=dict)
    site: str = ""
    reason: str = ""

    @property
    def key(self) -> str:
        """The same for two runs that are the same undertaking."""
        text = json.dumps([self.playbook, self.target], sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def document(self) -> Document:
        return {
            "run": self.id,
            "playbook": self.playbook,
            "target": dict(self.target),
            "key": self.key,
            "by": self.by,
            "from": self.host,
            "pid": self.pid,
            "site": self.site,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Begun:
    """What a run begins with: the run that it resumes, and the steps that were proven there and before."""

    run: Document
    proven: list[dict[str, str]]
    broken: str = ""

    @property
    def resumed_from(self) -> str:
        return str(self.run.get("resumed_from") or "")


class Journal:
    """The lock and the journal of a site, asked of the primary of its replica set."""

    def __init__(
        self,
        connect: Connect,
        hosts: Sequence[str],
        user: Credentials,
        database: str = "pst",
        timeout: float = 30.0,
        clock: Clock = time,
    ) -> None:
        self.replica_set = ReplicaSet(connect, clock, timeout)
        self.hosts = hosts
        self.user = user
        self.database = database
        self.server: Server | None = None

    # The verbs --------------------------------------------------------------------------------------------------------

    def begin(self, run: Run, *, break_reason: str = "", resume_hours: float = 24.0, check: bool = False) -> Begun:
        """Take the lock and open the run's page in the journal. HeldError where another run has the lock.

        With `break_reason` the lock is taken from the run that has it, whose outcome becomes `broken`. Where the newest
        run with the same key has not succeeded, this one resumes it, until `resume_hours` after its start. A step that
        was proven longer ago than that is not taken over.
        """
        if check:
            holder = self._holder()
            if holder and not break_reason:
                raise self._held(holder)
            page = self._page({**run.document(), "started": self._now()}, resume_hours)
            return Begun({"_id": run.id, **page}, proven(page["steps"]), str((holder or {}).get("run", "")))
        lock, broken = self._take(run, break_reason, resume_hours)
        self._close_left(lock, break_reason if broken else "")
        page = self._open(lock, resume_hours)
        return Begun(page, proven(page["steps"]), broken)

    def step(self, run: str, step: str, host: str, state: str, evidence: Mapping[str, Any] | None = None) -> Document:
        """Note the state of a step on a host; again changes nothing but the time. LostError where the lock is lost."""
        self._own(run)
        page = self._change(JOURNAL, {"_id": run, "outcome": "running"}, step_update(step, host, state, evidence or {}))
        if page is None:
            raise self._lost(run)
        return page

    def end(self, run: str, outcome: str, evidence: Mapping[str, Any] | None = None) -> tuple[Document, bool]:
        """End the run, then free the lock. Returns the run, and whether this call has ended it."""
        try:
            self._own(run)
        except LostError:
            page = self._page_of(run)
            if page is None or page["outcome"] != outcome:
                raise
            return page, False  # the answer to the same call was lost
        closing = {"outcome": literal(outcome), "ended": "$$NOW", "evidence": literal(dict(evidence or {}))}
        page = self._change(JOURNAL, {"_id": run, "outcome": "running"}, [{"$set": closing}]) or self._page_of(run)
        self._change(LOCK, {"_id": SITE, "run": run}, [{"$replaceWith": FREE}])
        if page is None:
            raise LostError(f"{run} is not in the journal")
        return page, True

    def free(self) -> None:
        """HeldError where a run that has not ended has the lock."""
        if holder := self._holder():
            raise self._held(holder)

    def read(self, limit: int = 20, run: str = "") -> tuple[Document, list[Document]]:
        """The lock, and the last runs, the newest first; or the one run that is named."""
        lock = next(iter(self._find(LOCK, {"_id": SITE})), {})
        return lock, self._find(JOURNAL, {"_id": run} if run else {}, limit)

    # The lock ---------------------------------------------------------------------------------------------------------

    def _take(self, run: Run, break_reason: str, resume_hours: float) -> tuple[Document, str]:
        """Move the lock to this run in one step. Returns it, and the id of the run that it was taken from."""
        grant = [{"$replaceWith": granted(run)}]
        from_whom: str | None = None
        broken = ""
        while True:
            try:
                # Where the lock is there and not as wanted, the upsert meets its key.
                lock = self._change(LOCK, {"_id": SITE, "run": from_whom}, grant, upsert=from_whom is None)
            except CommandError as error:
                if error.code != DUPLICATE_KEY:
                    raise
                lock = None
            if lock is not None:
                return lock, broken
            seen = next(iter(self._find(LOCK, {"_id": SITE}, linearizable=True)), {})
            holder = seen.get("run")
            if holder == run.id:
                return seen, broken  # it was granted, and the answer was lost
            if holder is None:
                from_whom, broken = None, ""
                continue
            page = self._page_of(holder)
            if page is None or page["outcome"] == "running":
                # A reason to break the lock of one run is none to break that of the run which was faster.
                if not break_reason or (broken and broken != holder):
                    raise self._held(seen)
                self._open(seen, resume_hours)  # it had the lock, also where it was killed before it had a page
                broken = holder
            else:  # it has ended, and was killed before it gave the lock back
                broken = ""
            from_whom = holder

    def _holder(self) -> Document | None:
        """The lock, where a run that has not ended has it."""
        lock = next(iter(self._find(LOCK, {"_id": SITE}, linearizable=True)), {})
        if lock.get("run") is None:
            return None
        page = self._page_of(lock["run"])
        return lock if page is None or page["outcome"] == "running" else None

    def _own(self, run: str) -> None:
        """Prove that the lock is this run's, by a write: a deposed primary cannot have one confirmed."""
        if self._change(LOCK, {"_id": SITE, "run": run}, [{"$set": {"seen": "$$NOW"}}]) is None:
            raise self._lost(run)

    def _held(self, lock: Document) -> HeldError:
        now = self._now()
        return HeldError(
            f"run_lock: seen run {lock['run']} of {lock['playbook']} ({in_words(lock['target'])}) by {lock['by']}, "
            f"process {lock['pid']} on {lock['from']}, since {shown_time(lock['started'])} "
            f"({age(now - lock['started'])} ago, last sign of it {age(now - lock['seen'])} ago); wanted no other run: "
            "one changes the site at a time. Wait for it. Where it is dead, run this again with "
            "-e run_break_lock='<why>': that breaks its lock, and the same playbook for the same target resumes it",
            plain(lock),
        )

    def _lost(self, run: str) -> LostError:
        lock = next(iter(self._find(LOCK, {"_id": SITE}, linearizable=True)), {})
        page = self._page_of(run)
        if page is None:
            why = "it is not in the journal"
        elif broke := page.get("broken"):
            why = f"{broke['by']} broke it at {shown_time(page['ended'])}: {broke['reason']}"
        else:
            why = f"its outcome is {page['outcome']}"
        now = f"run {lock['run']} by {lock['by']} has it" if lock.get("run") else "nobody has it"
        return LostError(f"the run lock is not that of run {run}: {why}; {now}. This run must not go on")

    # The journal ------------------------------------------------------------------------------------------------------

    def _open(self, lock: Document, resume_hours: float) -> Document:
        """Have the page of the run that holds this lock. Says the same whoever does it, and however often."""
        page = self._page(lock, resume_hours)
        try:
            opened = self._change(JOURNAL, {"_id": lock["run"]}, {"$setOnInsert": page}, upsert=True)
        except CommandError as error:
            if error.code != DUPLICATE_KEY:
                raise
            opened = self._page_of(lock["run"])
        if opened is None:
            raise MongoError(f"the journal does not hold run {lock['run']}, which has just been written")
        return opened

    def _page(self, lock: Document, resume_hours: float) -> Document:
        earlier = {"number": {"$lt": lock["number"]}} if "number" in lock else {}
        previous = next(iter(self._find(JOURNAL, {"key": lock["key"], **earlier}, 1)), None)
        resumed = previous is not None and resumable(previous, lock["started"], resume_hours)
        return {
            **{name: lock[name] for name in FIELDS if name in lock},
            "outcome": "running",
            "ended": None,
            "evidence": {},
            "resumed_from": previous["_id"] if previous and resumed else None,
            "steps": inherited(previous, lock["started"], resume_hours) if previous and resumed else [],
        }

    def _close_left(self, lock: Document, break_reason: str) -> None:
        """Close the pages of the runs that have lost the lock: the one that was broken, and any that was left so."""
        reason = break_reason or "it had lost the lock without an end"
        mark = {"by": lock["by"], "run": lock["run"], "reason": reason}
        closing = [{"$set": {"outcome": "broken", "ended": "$$NOW", "broken": literal(mark)}}]
        while self._change(JOURNAL, {"outcome": "running", "number": {"$lt": lock["number"]}}, closing) is not None:
            pass

    def _page_of(self, run: str) -> Document | None:
        return next(iter(self._find(JOURNAL, {"_id": run}, linearizable=True)), None)

    # MongoDB ----------------------------------------------------------------------------------------------------------

    def _change(
        self, collection: str, query: Document, update: Document | list[Document], *, upsert: bool = False
    ) -> Document | None:
        """Change one document; returns it as it is then, None where there is none such."""
        command = {"findAndModify": collection, "query": query, "update": update, "new": True, "upsert": upsert}
        concern = {"w": "majority", "wtimeout": SERVER_MS}
        changed: Document | None = self._ask({**command, "writeConcern": concern, "maxTimeMS": SERVER_MS})["value"]
        return changed

    def _find(self, collection: str, query: Document, limit: int = 1, *, linearizable: bool = False) -> list[Document]:
        """Documents of the newest runs first. A linearizable read is for one document, and decides."""
        level = "linearizable" if linearizable else "majority"
        command = {"find": collection, "filter": query, "sort": {"number": -1}, "limit": limit, "batchSize": limit}
        answer = self._ask({**command, "singleBatch": True, "readConcern": {"level": level}, "maxTimeMS": SERVER_MS})
        found: list[Document] = answer["cursor"]["firstBatch"]
        return found

    def _now(self) -> datetime:
        now: datetime = self._ask({"hello": 1})["localTime"]
        return now

    def _ask(self, command: Document) -> Document:
        """Ask the primary, and whoever is it next, until there is an answer that a majority stands for."""
        answer: Document = {}

        def attempt() -> str:
            nonlocal answer
            try:
                if self.server is None:
                    primary = self.replica_set.find_primary(self.hosts, timeout=0)
                    self.server = self.replica_set.connect(primary, self.user)
                answer = self.server.command(command, self.database)
                problem = str((answer.get("writeConcernError") or {}).get("errmsg", ""))
            except CommandError as error:
                if error.code not in PASSING:
                    raise
                problem = str(error)
            except MongoError as error:
                problem = str(error)
            if problem:
                self.close()
            return problem

        if problem := wait(self.replica_set.clock, self.replica_set.timeout, attempt):
            limit = f"{self.replica_set.timeout:g} s"
            raise MongoError(f"the journal was not confirmed by a majority of MongoDB within {limit}: {problem}")
        return answer

    def close(self) -> None:
        """Leave the server; the next question looks for the primary again."""
        if self.server is not None:
            self.server.close()
        self.server = None


# --- updates ----------------------------------------------------------------------------------------------------------

FREE: Document = {"_id": "$_id", "number": "$number", "run": None}


def literal(value: Any) -> Document:
    """A value that may begin with a dollar sign."""
    return {"$literal": value}


def granted(run: Run) -> Document:
    """The lock after it was granted."""
    number = {"$add": [{"$ifNull": ["$number", 0]}, 1]}
    values = {name: literal(value) for name, value in run.document().items()}
    return {"_id": SITE, "number": number, **values, "started": "$$NOW", "seen": "$$NOW"}


def step_update(step: str, host: str, state: str, evidence: Mapping[str, Any]) -> list[Document]:
    """Put a step in the place of what was noted of it before."""
    same = {"$and": [{"$eq": ["$$one.step", literal(step)]}, {"$eq": ["$$one.host", literal(host)]}]}

    def those(condition: Document) -> Document:
        return {"$filter": {"input": "$steps", "as": "one", "cond": condition}}

    begun: Any = "$$NOW" if state == "begun" else {"$ifNull": ["$earlier.begun", "$$NOW"]}
    noted = {
        "step": literal(step),
        "host": literal(host),
        "state": state,
        "begun": begun,
        "at": "$$NOW",
        "seconds": {"$divide": [{"$subtract": ["$$NOW", begun]}, 1000]},
        "evidence": literal(dict(evidence)),
        "run": "$_id",
    }
    return [
        {"$set": {"earlier": {"$first": those(same)}}},
        {"$set": {"steps": {"$concatArrays": [those({"$not": [same]}), [noted]]}}},
        {"$unset": "earlier"},
    ]


# --- resuming (pure) --------------------------------------------------------------------------------------------------


def resumable(previous: Document, now: datetime, hours: float) -> bool:
    started: datetime = previous["started"]
    return previous["outcome"] != "succeeded" and now - started <= timedelta(hours=hours)


def inherited(previous: Document, now: datetime, hours: float) -> list[Document]:
    """The steps that need not be taken again, with the run that proved each; it may itself have taken them over."""
    fresh = timedelta(hours=hours)
    steps = (step for step in previous["steps"] if step["state"] == "proven" and now - step["at"] <= fresh)
    return [{key: value for key, value in step.items() if key != "begun"} for step in steps]


def proven(steps: Sequence[Document]) -> list[dict[str, str]]:
    return [{"step": step["step"], "host": step["host"]} for step in steps if step["state"] == "proven"]


# --- in words ---------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A document as JSON has it: times in ISO format, UTC."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return shown_time(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def shown_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def age(span: timedelta) -> str:
    """A span in its two largest units."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def in_words(target: Mapping[str, Any]) -> str:
    """A target in one line."""
    words = (f"{key}={','.join(map(str, v)) if isinstance(v, list | tuple) else v}" for key, v in target.items())
    return " ".join(words) or "no target"


def run_rows(lock: Document, pages: Sequence[Document]) -> list[Document]:
    """A row for each run, for a table; the rest of its page as it is."""
    return [
        {
            **plain(page),
            "run": page["_id"],
            "target": in_words(page["target"]),
            "outcome": outcome_in_words(lock, page),
            "seconds": round((page["ended"] - page["started"]).total_seconds(), 1) if page["ended"] else "",
            "resumed_from": page["resumed_from"] or "",
            "why": why(page),
            "steps": plain(page["steps"]),
        }
        for page in pages
    ]


def outcome_in_words(lock: Document, page: Document) -> str:
    """The outcome; a run that is not at its end and has no lock is no longer running."""
    lost = page["outcome"] == "running" and lock.get("run") != page["_id"]
    return "lost its lock" if lost else str(page["outcome"])


def why(page: Document) -> str:
    """Why it was overridden, or broken."""
    broken = page.get("broken")
    parts = (page.get("reason", ""), f"broken by {broken['by']}: {broken['reason']}" if broken else "")
    return "; ".join(part for part in parts if part)


def step_rows(page: Document) -> list[Document]:
    """A row for each step of a run, in the order of their last change."""
    return [
        {
            **plain(step),
            "seconds": round(step["seconds"], 1),
            "proven_by": step["run"] if step["run"] != page["_id"] else "",
            "evidence": json.dumps(plain(step["evidence"]), sort_keys=True) if step["evidence"] else "",
        }
        for step in page["steps"]
    ]


# --- the control node's side ------------------------------------------------------------------------------------------

NOTED = (
    "playbook",
    "target",
    "by",
    "from",
    "pid",
    "site",
    "reason",
    "break_lock",
    "step",
    "host",
    "step_state",
    "outcome",
)


def new_run_id() -> str:
    """An id that sorts by time, and that two runs of one second do not share."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def append_line(folder: Path, args: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Append what was asked for and what came of it to the run's file; a refused run leaves one line."""
    asked = {name: args[name] for name in NOTED if args.get(name) not in (None, "", {})}
    came = {name: result[name] for name in ("proven", "resumed_from", "broken") if result.get(name)}
    failed = bool(result.get("failed") or result.get("unreachable"))
    line = {
        "at": shown_time(datetime.now(UTC)),
        "run": args["run"],
        "call": args["state"],
        **asked,
        "evidence": args.get("evidence") or {},
        **came,
        "done": not failed,
        **({"error": result.get("msg", "")} if failed else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    # One write at the end of the file: lines of hosts that get here together do not mix.
    text = json.dumps(plain(line), ensure_ascii=False) + "\n"
    with (folder / f"{Path(args['run']).name}.jsonl").open("ab", buffering=0) as file:
        file.write(text.encode())
