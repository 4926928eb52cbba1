"""Filters of the redis role; the decision is in module_utils/redis_cluster.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.pst.platform.plugins.module_utils.redis_cluster import ClusterError, Seed, choose_master


def redis_first_master(
    members: Sequence[str], hostvars: Mapping[str, Any], host: str, domain: str, told: str = ""
) -> str:
    """Whom `host`, which has no state, follows; from the `__redis_seed` that the members of this run registered."""
    found = {member: hostvars[member].get("__redis_seed") for member in members}
    seeds = {
        f"{member}.{domain}": Seed(seed["seeded"], seed["master"], seed["has_data"], seed["named"])
        for member, seed in found.items()
        if seed and "seeded" in seed
    }
    try:
        names = [f"{member}.{domain}" for member in members]
        return choose_master(f"{host}.{domain}", names, seeds, f"{told}.{domain}" if told else "")
    except ClusterError as error:
        raise AnsibleFilterError(f"{host}: {error}") from error


def redis_users(rules: Mapping[str, str], passwords: Mapping[str, str], previous: Mapping[str, str]) -> dict[str, str]:
    """The ACL rules of each user with its password, and with the previous one while that is being replaced."""

    def login(user: str) -> str:
        valid = [passwords[user], *([previous[user]] if user in previous else [])]
        return " ".join("#" + sha256(password.encode()).hexdigest() for password in valid)

    return {user: f"on {login(user)} {words}" for user, words in rules.items()}


def redis_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as Redis writes them: `yes` and `no` for what YAML read as true and false."""
    return {
        name: ("yes" if value else "no") if isinstance(value, bool) else str(value) for name, value in settings.items()
    }


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them."""
        return {"redis_first_master": redis_first_master, "redis_users": redis_users, "redis_words": redis_words}
