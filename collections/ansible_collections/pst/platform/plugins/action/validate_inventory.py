# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads the inventory as Ansible sees it and hands it to `inventory_check`, where the rules are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.template import Templar
from ansible.utils.vars import load_extra_vars

from ansible_collections.pst.platform.plugins.module_utils import gateway, maintenance, trading
from ansible_collections.pst.platform.plugins.module_utils import inventory_check as rules

try:  # Ansible tags each value with the file and line that it came from. Only the messages use it.
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

# What Ansible itself adds to the variables of every host, and SOPS to a file that it encrypts.
MAGIC = {
    *("environment", "group_names", "groups", "hostvars", "inventory_dir", "inventory_file", "inventory_hostname"),
    *("inventory_hostname_short", "omit", "play_hosts", "playbook_dir", "role_names", "sops", "vars"),
}


class ActionModule(ActionBase):
    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {"site_variables": {"type": "path", "required": True}, "roles": {"type": "path", "required": True}}
        )
        hostvars = (task_vars or {})["hostvars"]
        contract, defaults = read_contract(self._loader, arguments["site_variables"], Path(arguments["roles"]))
        extra_vars = set(load_extra_vars(self._loader))
        hosts = [
            read_host(self._loader, hostvars, name, contract, defaults, extra_vars)
            for name in hostvars
            if name != "localhost"
        ]
        role_rules = (trading.check_sites, gateway.check_sites, maintenance.check_sites)
        problems = rules.check(hosts, contract, option_errors, role_rules)
        for problem in problems:
            self._display.display(f"- {problem}", color="red")
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            return {"failed": True, "msg": f"{count} in the inventory, listed above. Nothing was changed."}
        return {"changed": False, "msg": f"{len(hosts)} hosts checked", "hosts": len(hosts)}


def read_contract(
    loader: DataLoader, site_variables: str, roles: Path
) -> tuple[rules.Contract, dict[str, dict[str, Any]]]:
    """Every role's options by entry point, with the site's own; and every role's own values, for templates."""
    shared = loader.load_from_file(site_variables)["argument_specs"]
    specs: dict[tuple[str, str], rules.Options] = {}
    defaults: dict[str, dict[str, Any]] = {}
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        role = path.parent.parent
        for entry_point, spec in ((loader.load_from_file(str(path)) or {}).get("argument_specs") or {}).items():
            specs[role.name, entry_point] = spec.get("options") or {}
        defaults[role.name] = {}
        for file in (role / "defaults/main.yml", role / "vars/main.yml"):
            if file.exists():
                defaults[role.name] |= loader.load_from_file(str(file), trusted_as_template=True) or {}
    return rules.Contract(site=shared["site"]["options"], host=shared["host"]["options"], roles=specs), defaults


def read_host(
    loader: DataLoader,
    hostvars: Any,
    name: str,
    contract: rules.Contract,
    defaults: Mapping[str, Mapping[str, Any]],
    extra_vars: set[str],
) -> rules.Host:
    variables = hostvars.raw_get(name)
    groups = frozenset(variables["group_names"])
    wanted = {*contract.of_host(groups), "ansible_host", "ansible_port"} & set(variables)

    of_roles = {key: value for role, _ in rules.entry_points(groups) for key, value in defaults.get(role, {}).items()}
    templar = Templar(loader=loader, variables={**of_roles, **variables, "hostvars": hostvars})
    values = {}
    for key in wanted:
        try:
            value = templar.template(variables[key])
            values[key] = rules.UNKNOWN if any(rules.placeholders(value, key)) else value
        except AnsibleError as error:
            # What needs facts is known only on the host: the role's own check, when it runs, is the judge.
            reason = cause(error)
            values[key] = rules.UNKNOWN if "ansible_facts" in reason else rules.Unresolved(reason)
    return rules.Host(
        name=name,
        groups=groups,
        written={key: value for key, value in variables.items() if key not in MAGIC and key not in extra_vars},
        values=values,
        origins={key: text for key in variables if (text := origin(variables[key]))},
    )


def cause(error: BaseException) -> str:
    """The first cause, in one line: for a lookup that fails its own words instead of Ansible's around them."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def origin(value: Any) -> str:
    tag = Origin and Origin.get_tag(value)
    if not tag or not tag.path:
        return ""
    return f"{os.path.relpath(tag.path)}:{tag.line_num}" if tag.line_num else os.path.relpath(tag.path)


def option_errors(name: str, option: rules.Option, value: Any) -> list[str]:
    """What Ansible's own check of a role's arguments finds, without the secrets."""
    result = ArgumentSpecValidator({name: dict(option)}).validate({name: value})
    return [str(remove_values(message, result._no_log_values)) for message in result.error_messages]
