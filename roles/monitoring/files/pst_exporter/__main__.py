"""python3 -P -m pst_exporter [--check <settings>]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from . import certificates, mongodb, site
from .server import BadRequestError, Certificates, Query, Route, Server
from .settings import PATH, Settings, SettingsError, load

BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h: systemd does not try again


def routes(settings: Settings) -> dict[str, Route]:
    """Return what each path answers."""
    found: dict[str, Route] = {}
    if settings.mongodb.hosts:
        members = mongodb.Members(settings.mongodb)

        def member(query: Query) -> str:
            target = query.get("target", "")
            if target not in settings.mongodb.hosts:
                raise BadRequestError(f"target is {target!r}, wanted: one of {', '.join(settings.mongodb.hosts)}")
            return mongodb.render(target, members.ask)

        def connect() -> Any:
            hosts, replica_set = list(settings.mongodb.hosts), settings.mongodb.replica_set
            return mongodb.connect(settings.mongodb, hosts, replicaSet=replica_set)

        database = site.Database(connect, settings.mongodb.platform_database, settings.mongodb.trading_database)
        trading = site.Site(database.read, settings.processes, site.Breaks.load(Path(settings.state)))
        found |= {"/mongodb": member, "/site": lambda _query: trading.render()}
    watch = certificates.Watch(settings.endpoints, certificates.look(settings.tls), settings.certificates_every_s)
    watch.start()
    return {**found, "/certificates": lambda _query: watch.render()}


def main(arguments: list[str]) -> int:
    try:
        settings = load(Path(arguments[1]) if arguments[:1] == ["--check"] else PATH)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_CONFIGURATION
    if arguments[:1] == ["--check"]:
        return 0
    Server(settings.listen, Certificates(settings.tls), routes(settings)).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
