# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Knows the secrets of the inventory, and writes the bundle without them."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.release import __version__

from ansible_collections.pst.platform.plugins.module_utils.support import BundleError, bundle, recent, unpacked

REPORTS_BYTES = 3_000_000
# What the hosts' results of support_facts and of host_status are registered as.
REGISTERED = ("__support", "__support_status")


class ActionModule(ActionBase):
    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "path": {"type": "path", "required": True},
                "hosts": {"type": "list", "elements": "str", "required": True},
                "roles": {"type": "path", "required": True},
                "state_dirs": {"type": "list", "elements": "path", "default": []},
                "reports": {"type": "list", "elements": "path", "default": []},
                "max_mb": {"type": "int", "default": 20},
                "reason": {"type": "str", "default": ""},
            }
        )
        if not 1 <= args["max_mb"] <= 1000:
            raise AnsibleActionFail(f"max_mb is {args['max_mb']}; wanted: 1 to 1000")
        hostvars = (task_vars or {})["hostvars"]
        secret_options = self._secret_options(Path(args["roles"]))
        known = {
            *(value for name in args["hosts"] for value in values_of(hostvars[name], secret_options)),
            *(value for folder in args["state_dirs"] for value in stored(Path(folder))),
        }
        parts, missing = texts_of(hostvars, args["hosts"])
        folders = [Path(folder) for folder in args["reports"]]
        parts["control"] = {"versions.txt": versions(Path(args["roles"])), **recent(folders, REPORTS_BYTES)}
        path = Path(args["path"]).absolute()
        facts = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "by": getpass.getuser(),
            "reason": args["reason"],
            "hosts": sorted(set(args["hosts"]) - set(missing)),
            "missing": missing,
            "secrets_looked_for": len(known),
        }
        try:
            size = bundle(path, parts, sorted(known), args["max_mb"] * 1_000_000, facts)
        except BundleError as error:
            raise AnsibleActionFail(str(error)) from error
        return {"changed": True, "path": str(path), "size": size, "missing": missing}

    def _secret_options(self, roles: Path) -> dict[str, Any]:
        """The options with a secret in them, of all roles and entry points."""
        found = {}
        for path in roles.glob("*/meta/argument_specs.yml"):
            specs = (self._loader.load_from_file(str(path)) or {}).get("argument_specs") or {}
            for spec in specs.values():
                found |= {name: option for name, option in (spec.get("options") or {}).items() if has_secret(option)}
        return found


def has_secret(option: Mapping[str, Any]) -> bool:
    return bool(option.get("no_log")) or any(has_secret(part) for part in (option.get("options") or {}).values())


def values_of(variables: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """The secrets that a host's variables hold."""
    for name, option in options.items():
        if name in variables:
            try:
                value = variables[name]
            except AnsibleError:  # a template that this host cannot fill: then it does not use the secret either
                continue
            yield from secrets_in(value, option)


def secrets_in(value: Any, option: Mapping[str, Any]) -> Iterator[str]:
    if option.get("no_log"):
        yield from leaves(value)
        return
    parts = {name: part for name, part in (option.get("options") or {}).items() if has_secret(part)}
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, Mapping):
            for name, part in parts.items():
                if name in item:
                    yield from secrets_in(item[name], part)


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def stored(state: Path) -> Iterator[str]:
    """Generated secrets, and the lines of private keys, which are nowhere else."""
    for path in (state / "secrets").glob("*"):
        if path.is_file():
            yield path.read_text()
    for path in [*(state / "pki").rglob("*.pem"), *(state / "pki").rglob("*.key"), *(state / "ssh").glob("id_*")]:
        inside = False
        for line in path.read_text(errors="replace").splitlines():
            if "PRIVATE KEY-----" in line:
                inside = line.startswith("-----BEGIN")
            elif inside:
                yield line


def texts_of(hostvars: Any, hosts: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The texts by host, and why those of others are missing."""
    parts: dict[str, dict[str, str]] = {}
    missing: dict[str, str] = {}
    for name in hosts:
        read, status = (hostvars[name].get(key) or {} for key in REGISTERED)
        if read.get("blob"):
            parts[name] = unpacked(read["blob"])
        else:
            missing[name] = str(read.get("msg") or "nothing was read")[:500]
        if status.get("services"):
            parts.setdefault(name, {})["services.json"] = json.dumps(status["services"], indent=1, default=str)
    return parts, missing


def versions(roles: Path) -> str:
    """What ran here."""
    git = ["git", "-C", str(roles.parent), "describe", "--always", "--dirty", "--long", "--tags"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 (own words)
        revision = done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        revision = ""
    lines = (f"revision {revision or 'unknown'}", f"ansible-core {__version__}", f"python {sys.version}")
    return "\n".join((*lines, " ".join(os.uname()))) + "\n"
