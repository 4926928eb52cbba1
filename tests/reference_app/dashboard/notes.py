"""Notes: what tests write and read to prove that a request reached MongoDB and Redis. Upstream has nothing like it.

MongoDB decides, by a majority; Redis is a cache that may be away or not configured. A note is immutable, so a cached
one is never wrong. Redis comes from the slot's app.json (beside the private configuration) and its password from the
credential `redis_password`.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from functools import cache
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, request
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel
from werkzeug.exceptions import RequestEntityTooLarge

from sysdata.config.production_config import PRIVATE_DIRECTORY_VARIABLE, resolve_path
from sysdata.mongodb.mongo_connection import get_database
from syslogging.logger import get_logger

LOG = get_logger("notes")
CACHE_SECONDS = 3600
CACHE_TIMEOUT_S = 0.5
CACHE_REST_S = 1.0  # after a failure it is left alone this long: requests must not queue up behind it
MAX_BODY = 64 * 1024
MAX_KEY, MAX_TEXT = 200, 10_000

blueprint = Blueprint("notes", __name__)
Answer = Response | tuple[Response, int] | tuple[Response, int, dict[str, str]]


@cache
def slot() -> dict[str, Any]:
    """Return what the platform says about this slot; nothing when the application was started by hand."""
    path = resolve_path(os.environ.get(PRIVATE_DIRECTORY_VARIABLE, "private")) / "app.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@cache
def release() -> str:
    """Return the version of the release that this tree is the source of."""
    manifest = Path(__file__).resolve().parents[2] / "manifest.json"
    return str(json.loads(manifest.read_text())["version"]) if manifest.is_file() else "unreleased"


class Cache:
    """Redis, found through the Sentinels on every new connection; no retries inside the client."""

    def __init__(self) -> None:
        self._rest_until = 0.0
        settings, folder = slot().get("redis"), os.environ.get("CREDENTIALS_DIRECTORY", "")
        password = Path(folder, "redis_password")
        self._redis: Redis | None = None
        if settings and folder and password.is_file():
            common: dict[str, Any] = {
                "username": settings["username"],
                "password": password.read_text().strip(),
                "ssl": True,
                "ssl_ca_certs": slot()["tls"]["ca"],
                "socket_connect_timeout": CACHE_TIMEOUT_S,
                "socket_timeout": CACHE_TIMEOUT_S,
                "retry": Retry(NoBackoff(), 0),
            }
            addresses = [(host, int(port)) for host, port in (entry.rsplit(":", 1) for entry in settings["sentinels"])]
            self._redis = Sentinel(addresses, sentinel_kwargs=common, **common).master_for(settings["master"])

    def get(self, key: str) -> str | None:
        """Return a text, if it is there."""
        raw = self._ask(lambda redis: redis.get(f"app:notes:{key}"))
        return raw.decode() if raw is not None else None

    def put(self, key: str, text: str) -> None:
        """Keep a text for a while."""
        self._ask(lambda redis: redis.set(f"app:notes:{key}", text, ex=CACHE_SECONDS))

    def _ask(self, question: Any) -> Any:
        if self._redis is None or time.monotonic() < self._rest_until:
            return None
        try:
            return question(self._redis)
        except (RedisError, OSError) as error:
            LOG.warning("the cache failed: %s", error)
            self._rest_until = time.monotonic() + CACHE_REST_S
            self._redis.connection_pool.disconnect()  # it may lead to a master that was demoted or cut off
            return None


@cache
def the_cache() -> Cache:
    """Return this process's cache."""
    return Cache()


@blueprint.get("/echo")
def echo() -> Response:
    """The message, and who answered."""
    instance = slot().get("instance", {})
    return jsonify(
        message=request.args.get("message", ""),
        host=instance.get("host", ""),
        colour=instance.get("colour", ""),
        release=release(),
    )


@blueprint.post("/notes")
def put_note() -> Answer:
    """201 written by a majority, 200 known, 409 the key holds another text."""
    request.max_content_length = MAX_BODY
    try:
        note = json.loads(request.get_data())
    except RequestEntityTooLarge:
        return refused(413, f"the body is larger than {MAX_BODY} bytes")
    except ValueError as error:
        return refused(422, str(error))
    if not isinstance(note, dict) or note.keys() != {"key", "text"} or not all(type(v) is str for v in note.values()):
        return refused(422, 'wanted {"key": text, "text": text}')
    if not 0 < len(note["key"]) <= MAX_KEY or len(note["text"]) > MAX_TEXT:
        return refused(422, f"key: 1 to {MAX_KEY} characters, text: at most {MAX_TEXT}")
    # One operation: an upsert that changes nothing still waits for the majority, so a repeated request is
    # acknowledged only when the first one's write is safe.
    token = uuid.uuid4().hex
    stored: Any = get_database()["notes"].find_one_and_update(
        {"_id": note["key"]},
        {"$setOnInsert": {"text": note["text"], "token": token}},
        upsert=True,
        return_document=ReturnDocument.AFTER,
    )
    the_cache().put(note["key"], stored["text"])
    if stored["text"] != note["text"]:
        return refused(409, f"key {note['key']!r} holds another text")
    return jsonify(note), 201 if stored["token"] == token else 200


@blueprint.get("/notes/<path:key>")
def get_note(key: str) -> Answer:
    """The note; X-Cache says from where."""
    if (text := the_cache().get(key)) is not None:
        return jsonify(key=key, text=text), 200, {"X-Cache": "hit"}
    stored = get_database()["notes"].find_one({"_id": key})
    if stored is None:
        return refused(404, f"no note {key!r}")
    the_cache().put(key, stored["text"])
    return jsonify(key=key, text=stored["text"]), 200, {"X-Cache": "miss"}


@blueprint.errorhandler(PyMongoError)
def database_failed(error: PyMongoError) -> Answer:
    """503: nothing is known to be lost, try again."""
    LOG.error("database failed: %s", error)
    return jsonify(error="the database does not answer; try again"), 503, {"Retry-After": "1"}


def refused(code: int, reason: str) -> Answer:
    """Say why not."""
    return jsonify(error=reason), code
