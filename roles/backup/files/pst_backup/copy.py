"""Fill an empty set from a member of MongoDB, and prove that every member of it holds the same: for a rehearsal.

    python3 -m pst_backup.copy --source HOST:PORT --target HOST:PORT … --set NAME --login FILE --ca FILE --folder FOLDER

The first target is the primary. The file has user and password, which both sets know. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from pst_backup import mongo, raw, replay
from pst_backup.catalog import FULL, Plan, Snapshot, Stamp
from pst_backup.mongo import Account
from pst_backup.raw import Digest
from pst_backup.restore import Fetched, Live, RestoreError, reason, room, stage

Say = Callable[[str], None]
KNOWN = (mongo.DumpError, raw.DamagedError, replay.ReplayError, RestoreError, PyMongoError, OSError)
CAUGHT_UP_MS = 600_000
COPIES = 3.0  # the dump, and at most two members of the copy on one host


class Everywhere(Live):
    """Each write waits for all members: one that falls behind further than the oplog reaches would be lost."""

    def __init__(self, client: Any, members: int) -> None:
        super().__init__(client)
        self.concern = WriteConcern(members, wtimeout=CAUGHT_UP_MS)

    def collection(self, namespace: str) -> Any:
        return super().collection(namespace).with_options(write_concern=self.concern)


def copy(source: Any, targets: Sequence[Any], folder: Path, say: Say) -> dict[str, Any]:
    """Dump, follow, load, replay; then compare every collection on every target with the source at that time."""
    room(folder, int(mongo.size_on_disk(source) * COPIES), "the copy")
    parts = {name: folder / name for name in ("full", "oplog")}
    for part in parts.values():
        part.mkdir(parents=True, mode=0o700)
    manifest = mongo.dump(source, parts["full"], {})
    begin = Stamp.parse(manifest["at"])
    operations = mongo.follow(source, begin, parts["oplog"], {})
    if operations is None:
        raise RestoreError(
            f"the oplog no longer reaches back to {begin.wall()}: make it larger (mongodb_oplog_size_mb)"
        )
    until = Stamp.parse(operations["until"])
    # Now, as the member keeps old states for some minutes only, and loading may take longer.
    wanted = {name: mongo.digest_of(source, name, until) for name in mongo.listing(source).collections}
    plan = Plan(Snapshot("", 0.0, "", (FULL, f"until={begin}")), (), None, until)
    fetched = Fetched(parts["full"], [parts["oplog"]], manifest, plan)
    found = stage(Everywhere(targets[0], len(targets)), fetched, lambda _: True, lambda name: name, say)
    # A note in the oplog that every member has to have: then each has all that was before it.
    everywhere = {"w": len(targets), "wtimeout": CAUGHT_UP_MS}
    targets[0].admin.command({"appendOplogNote": 1, "data": {"pst": "copied"}, "writeConcern": everywhere})
    for target in targets:
        held = {name: mongo.digest_of(target, name) for name in found.shapes}
        if problems := differences(wanted, held):
            raise RestoreError(f"{mongo.hello(target).get('me')} is not what {manifest['member']} is: {problems[0]}"
                               f" ({len(problems)} of {len(held)} collections differ)")  # fmt: skip
    return {
        "at": until.wall(), "from": manifest["member"], "members": len(targets), "collections": len(found.shapes),
        "documents": sum(wanted[name].count for name in found.shapes), "operations": found.applied,
        "bytes": sum(wanted[name].size for name in found.shapes),
    }  # fmt: skip


def differences(wanted: Mapping[str, Digest], held: Mapping[str, Digest]) -> list[str]:
    """What is not the same; a collection without documents may have come or gone meanwhile."""
    nothing = Digest()
    pairs = ((name, wanted.get(name, nothing), held.get(name, nothing)) for name in sorted({*wanted, *held}))
    return [
        f"{name} has {seen.count} documents, wanted {want.count}{' of the same content' * (seen.count == want.count)}"
        for name, want, seen in pairs
        if seen != want
    ]


def main(words: Sequence[str]) -> int:
    """Run it; exit status 1 with one line that says why."""
    parser = argparse.ArgumentParser("pst_backup.copy", description=(__doc__ or "").partition("\n")[0])
    for name in ("source", "set", "ca"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--target", nargs="+", required=True)
    for name in ("login", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args(words)
    try:
        login = json.loads(options.login.read_text())
        account = Account((), options.set, login["user"], login["password"], options.ca)
        with ExitStack() as stack:
            source, *targets = (stack.enter_context(account.client(one)) for one in (options.source, *options.target))
            told = copy(source, targets, options.folder, lambda text: print(text, file=sys.stderr))  # noqa: T201
    except KNOWN as error:
        print(reason(error), file=sys.stderr)  # noqa: T201
        return 1
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    print(json.dumps(told))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
