#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: bring a running Redis and its Sentinel to their settings without a restart."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_settings
short_description: Set live what differs, and say what needs a restart
description:
  - Compares the running Redis and Sentinel with what is wanted (settings, ACL users, the watch on the master, the
    certificate in use) and sets live what can be set live. Nobody is disconnected.
  - What can only be had by a restart is returned, never done. It is read from the live state, so nothing is lost when a
    run is killed.
  - Who is master, who replicates whom, and what the Sentinels learned is never touched.
  - In check mode a Redis that does not run yet is not an error. Comparing ACL rules creates, and at once removes, a
    user that is off and has no password.
version_added: 0.1.0
extends_documentation_fragment: pst.platform.redis
options:
  own_name:
    description: This host's name among the members.
    type: str
    required: true
  settings:
    description: Settings of Redis, by name.
    type: dict
    required: true
  replica_password:
    description: The password of the user C(replica), with which this node follows a master.
    type: str
    required: true
  users:
    description: ACL users of Redis and their rules, passwords as SHA-256. The user C(default) is always off.
    type: dict
    required: true
  sentinel_users:
    description: ACL users of Sentinel and their rules, in the same way.
    type: dict
    required: true
  watch:
    description: Options of Sentinel's watch on the master.
    type: dict
    required: true
  sentinel_password:
    description: The password of the user C(sentinel), on Redis and between Sentinels.
    type: str
    required: true
  sentinel_state_file:
    description: The file that Sentinel keeps its state in. Its passwords can be read nowhere else.
    type: path
    required: true
  certificate:
    description: File of the certificate that both should use.
    type: path
    required: true
  key:
    description: File of its key.
    type: path
    required: true
  stale:
    description: Units that need a restart for other reasons; they are passed through to RV(restart).
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds to wait for Redis and Sentinel to answer.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Bring the running member to its settings
  pst.platform.redis_settings:
    cluster: "{{ redis_cluster }}"
    own_name: redis1.example.net
    certificate: /etc/pst/pki/redis/redis.crt
    key: /etc/pst/pki/redis/redis.key
    settings: {maxmemory: "1073741824"}
    replica_password: "{{ redis_replica_password }}"
    users: {app: "on #9f86… ~app:* +@read"}
    sentinel_users: {app: "on #9f86… +sentinel|masters"}
    watch: {down-after-milliseconds: "2000"}
    sentinel_password: "{{ redis_sentinel_password }}"
    sentinel_state_file: /var/lib/redis/sentinel.conf
"""

RETURN = r"""
changes:
  description: Names of what was (in check mode, would be) set.
  returned: always
  type: list
  elements: str
restart:
  description: Units that need a restart, each with the reasons.
  returned: always
  type: dict
role:
  description: C(master) or C(replica); empty where Redis does not run (check mode).
  returned: always
  type: str
"""

import time
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils import redis_cluster as rc

DEFAULT_OFF = {"default": "off"}


def opened(connect: Callable[[str], rc.Client], member: str, timeout: float, dry: bool) -> rc.Client | None:
    """A connection, once the service answers; None where there is nothing to compare with yet."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return connect(member)
        except OSError as error:
            if dry:
                return None
            if time.monotonic() >= deadline:
                raise rc.ClusterError(f"{member} does not answer: {error}") from error
            time.sleep(0.2)


def apply(given: dict[str, Any], dry: bool) -> tuple[rc.Applied, str]:
    cluster, applied = rc.Cluster.of(given["cluster"]), rc.Applied()
    own_name, timeout = given["own_name"], given["timeout"]
    for unit in given["stale"]:
        applied.needs_restart(unit, "runs on older files")
    role = ""
    if server := opened(cluster.server, own_name, timeout, dry):
        rc.apply_settings(server, {**given["settings"], "masterauth": given["replica_password"]}, dry, applied)
        rc.apply_users(server, {**DEFAULT_OFF, **given["users"]}, dry, applied)
        if rc.serves_old_certificate(server, given["certificate"]):
            if not dry:
                files = "tls-cert-file", given["certificate"], "tls-key-file", given["key"]
                server.call("CONFIG", "SET", *files)
            applied.changes.append("certificate")
        role = "master" if rc.info(server.call("INFO", "replication"))["role"] == "master" else "replica"
        server.close()
    if sentinel := opened(cluster.sentinel, own_name, timeout, dry):
        name = cluster.name
        with open(given["sentinel_state_file"], encoding="utf-8") as stream:
            recorded = rc.recorded_watch(stream.read(), name)
        rc.apply_users(sentinel, {**DEFAULT_OFF, **given["sentinel_users"]}, dry, applied)
        login = "sentinel", given["sentinel_password"]
        rc.apply_peers(sentinel, dict(zip(("sentinel-user", "sentinel-pass"), login, strict=True)), dry, applied)
        watch = {**given["watch"], **dict(zip(("auth-user", "auth-pass"), login, strict=True))}
        rc.apply_watch(sentinel, name, watch, recorded, dry, applied)
        if rc.serves_old_certificate(sentinel, given["certificate"]):
            applied.needs_restart(rc.SENTINEL_UNIT, "uses an older certificate (Sentinel reads it only at start)")
        sentinel.close()
    return applied, role


def main() -> None:
    users = {"type": "dict", "required": True, "no_log": True}
    password = {"type": "str", "required": True, "no_log": True}
    module = AnsibleModule(
        argument_spec={
            "cluster": rc.CLUSTER_ARGUMENT,
            "own_name": {"type": "str", "required": True},
            "settings": {"type": "dict", "required": True},
            "replica_password": password,
            "users": users,
            "sentinel_users": users,
            "sentinel_password": password,
            "watch": {"type": "dict", "required": True},
            "sentinel_state_file": {"type": "path", "required": True},
            "certificate": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "stale": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        applied, role = apply(module.params, module.check_mode)
    except (rc.ClusterError, rc.CommandError, OSError) as error:
        module.fail_json(msg=f"{module.params['own_name']}: {error}")
    module.exit_json(
        changed=bool(applied.changes),
        changes=applied.changes,
        restart=applied.restart,
        role=role,
        diff={"before": "", "after": "".join(f"{name}\n" for name in applied.changes)},
    )


if __name__ == "__main__":
    main()
