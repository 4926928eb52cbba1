# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where a site's secrets come from."""

from __future__ import annotations

import os
import re
import secrets
import stat
import string
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9_]*")
ALPHABET = string.ascii_letters + string.digits
LENGTH = 32
SHORTEST = 16


class SecretError(Exception):
    """A secret that cannot be had; the message names the inventory key and never the value."""


def checked(name: object) -> str:
    """Return the name of a secret, which is also the name of a file."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SecretError(f"{name!r}: wanted the name of a secret in lower case, such as redis_app_password")
    return name


def generated(folder: Path, name: str, length: int = LENGTH) -> str:
    """Return the secret kept in `folder`, made on first use.

    The value is written under another name first and then linked: of many runs that ask at once one makes it, and no
    run ever reads half of it.
    """
    if length < SHORTEST:
        raise SecretError(f"{name}: length {length}, wanted at least {SHORTEST}")
    for place in (folder.parent, folder):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / checked(name)
    if not path.exists():
        descriptor, draft = tempfile.mkstemp(prefix=".new-", dir=folder)  # 0600
        try:
            with open(descriptor, "w", encoding="ascii") as stream:
                stream.write("".join(secrets.choice(ALPHABET) for _ in range(length)))
                stream.flush()
                os.fsync(stream.fileno())
            os.link(draft, path)
        except FileExistsError:
            pass  # another run was faster
        finally:
            os.unlink(draft)
    return _read(path)


def _read(path: Path) -> str:
    for place in (path.parent, path):
        mode = stat.S_IMODE(place.stat().st_mode)
        if mode & 0o077:
            raise SecretError(f"{place}: mode {mode:04o}, wanted nothing for group and others (chmod go= {place})")
    value = path.read_text(encoding="utf-8").strip()
    if not value:
        raise SecretError(f"{path}: is empty, wanted a secret")
    return value


def from_mapping(values: object, name: str, where: str) -> str:
    """Return one secret of a dictionary that was decrypted or fetched elsewhere."""
    if not isinstance(values, Mapping):
        raise SecretError(f"{where}: got {type(values).__name__}, wanted a dictionary with the key {checked(name)}")
    value: Any = values.get(checked(name))
    if not isinstance(value, str) or not value:
        seen = "nothing" if value is None else "an empty text" if value == "" else type(value).__name__
        raise SecretError(f"{where}.{name}: got {seen}, wanted a text")
    return str(value)


def vault_place(path: object) -> tuple[str, str]:
    """Split `<mount>/<path>` of a secret in HashiCorp Vault."""
    mount, _, rest = str(path).strip("/").partition("/")
    if not mount or not rest:
        raise SecretError(f"site_secrets_path: got {path!r}, wanted <mount>/<path>, such as secret/pst/production")
    return mount, rest
