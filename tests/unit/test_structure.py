"""The contracts of docs/development.md, as far as a test can hold them: shape of roles, scenarios, playbooks, texts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from conftest import ROOT

VERBS = {"preflight", "health", "drain", "undrain", "restart", "backup", "restore", "deploy", "handover"}
ROLES = sorted(path.name for path in ROOT.glob("roles/*/"))
LONGEST_TASK_FILE = 120
INCLUDES = {f"{prefix}{verb}_role" for prefix in ("", "ansible.builtin.") for verb in ("include", "import")}

each_role = pytest.mark.parametrize("role", ROLES)


class Loader(yaml.SafeLoader):
    """Reads what Ansible reads: its tags are texts here."""


Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_scalar(node))


@cache
def load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader) if path.exists() else None


@cache
def tracked() -> list[Path]:
    """Return the files that are, or are about to be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def ansible_files() -> list[Path]:
    folders = ("playbooks", "roles", "molecule", "tests")
    return [path for path in tracked() if path.suffix == ".yml" and path.relative_to(ROOT).parts[0] in folders]


def dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every dictionary in a document, in its order."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from dictionaries(item)
    elif isinstance(value, list):
        for item in value:
            yield from dictionaries(item)


def specs(role: str) -> dict[str, Any]:
    return (load(ROOT / f"roles/{role}/meta/argument_specs.yml") or {}).get("argument_specs", {})


def defaults(role: str) -> dict[str, Any]:
    return load(ROOT / f"roles/{role}/defaults/main.yml") or {}


@cache
def entry_points_in_use() -> set[tuple[str, str]]:
    """Return (role, entry point) of every include of a role in the repository."""
    found = set()
    for path in ansible_files():
        for item in dictionaries(load(path)):
            calls = [item[key] for key in INCLUDES & item.keys()] + [
                r for r in item.get("roles", []) or [] if isinstance(r, dict)
            ]
            for call in (call for call in calls if isinstance(call, dict)):
                found.add(
                    (call.get("name") or call.get("role"), str(call.get("tasks_from", "main")).removesuffix(".yml"))
                )
    return {(role, entry) for role, entry in found if role in ROLES and "{{" not in entry}


def script(name: str) -> Any:
    """Import one of the scripts in .ci."""
    loader = SourceFileLoader(name, str(ROOT / ".ci" / name))
    module = module_from_spec(spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def test_there_are_roles():
    assert {"base", "pki", "firewall", "mongodb", "redis", "load_balancer", "app", "ib_gateway", "monitoring"} <= set(
        ROLES
    )


@each_role
@pytest.mark.parametrize(
    "name", ["README.md", "defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"]
)
def test_a_role_has_the_common_shape(role, name):
    assert (ROOT / "roles" / role / name).is_file()


@each_role
def test_a_readme_says_what_to_expect(role):
    path = ROOT / f"roles/{role}/README.md"
    text = path.read_text().lower() if path.exists() else ""
    wanted = {
        "what it touches": r"\btouch",
        "how it fails": r"\bfail",
        "the table of variables": "<!-- begin variables -->.*<!-- end variables -->",
    }
    assert [what for what, pattern in wanted.items() if not re.search(pattern, text, re.DOTALL)] == [], "missing"


@each_role
def test_every_entry_point_has_a_spec_and_every_spec_an_entry_point(role):
    files = {path.stem for path in (ROOT / f"roles/{role}/tasks").glob("*.yml")}
    used = {entry for name, entry in entry_points_in_use() if name == role}
    wanted = {"main"} | (files & VERBS) | used
    assert used <= files
    assert wanted <= set(specs(role)) <= files


@each_role
def test_every_option_is_described_and_typed(role):
    options = {
        (entry, key): option for entry, spec in specs(role).items() for key, option in spec.get("options", {}).items()
    }
    assert [key for key, option in options.items() if not option.get("description") or "type" not in option] == []
    assert [key for key in options if not re.match(rf"{role}_|site_", key[1])] == [], (
        f"wanted names that begin with {role}_"
    )
    assert [entry for entry, spec in specs(role).items() if not spec.get("short_description")] == []


@each_role
def test_defaults_and_specs_are_of_one_mind(role):
    options = {key: option for spec in specs(role).values() for key, option in spec.get("options", {}).items()}
    main = specs(role).get("main", {}).get("options", {})
    given = defaults(role)
    assert set(given) - set(options) == set(), "in defaults without an option"
    assert {key for key in given if options[key].get("required")} == set(), "required, and yet with a default"
    optional = {key for key, option in main.items() if not option.get("required")}
    assert optional - set(given) == set(), "optional without a default"
    assert {key for key in given if "default" in options[key] and options[key]["default"] != given[key]} == set()


@each_role
def test_every_default_is_valid(role):
    main = specs(role).get("main", {}).get("options", {})
    literal = {key: value for key, value in defaults(role).items() if key in main and "{{" not in str(value)}
    result = ArgumentSpecValidator({key: dict(main[key]) for key in literal}).validate(literal)
    assert result.error_messages == []


@each_role
def test_a_secret_has_no_default(role):
    """A password in defaults would be the same everywhere."""
    named = re.compile(r"_(password|secret|token|key_file|auth_key)$")
    assert [
        key
        for key in defaults(role)
        if named.search(key) and isinstance(defaults(role)[key], str) and defaults(role)[key]
    ] == []
    options = {key: option for spec in specs(role).values() for key, option in spec.get("options", {}).items()}
    assert [key for key, option in options.items() if re.search(r"_password$", key) and not option.get("no_log")] == []


@each_role
def test_a_role_has_a_scenario_with_a_fault_and_a_proof(role):
    scenario = ROOT / "molecule" / role
    missing = [
        n for n in ("molecule.yml", "hosts.yml", "converge.yml", "side_effect.yml") if not (scenario / n).is_file()
    ]
    assert missing == []
    assert load(scenario / "molecule.yml") in (None, {}), "settings belong into .config/molecule/config.yml"
    proof = re.compile(r"^(async )?def test_", re.MULTILINE)
    assert any(proof.search(path.read_text()) for path in scenario.glob("tests/test_*.py")), "no test function"


def test_every_scenario_is_run():
    run = {check.name for check in script("test").checks("molecule")}
    folders = {path.name for path in (ROOT / "molecule").iterdir() if path.is_dir()} - {"shared"}
    assert run == folders
    assert set(ROLES) <= run


def test_scenarios_have_networks_of_their_own():
    networks: dict[str, list[str]] = {}
    for path in ROOT.glob("molecule/*/hosts.yml"):
        (network,) = {item["lab_host_subnet"] for item in dictionaries(load(path)) if "lab_host_subnet" in item}
        networks.setdefault(network, []).append(path.parent.name)
    assert {network: names for network, names in networks.items() if len(names) > 1} == {}


def test_no_failure_is_ignored():
    """`failed_when: false` only where an assert, which names the value seen, follows in the same file."""
    problems = []
    for path in ansible_files():
        items = list(dictionaries(load(path)))
        for number, item in enumerate(items):
            where = f"{path.relative_to(ROOT)}: {item.get('name')}"
            if "ignore_errors" in item:
                problems.append(f"{where}: ignore_errors")
            if item.get("failed_when") is False:
                register = item.get("register")
                asserts = [str(later) for later in items[number:] if "ansible.builtin.assert" in later]
                if not register or not any(register in text for text in asserts):
                    problems.append(f"{where}: failed_when: false without an assert of {register}")
    assert problems == []


def test_no_handler_restarts():
    """What has to be restarted follows from the live state; a handler that was not reached is a lost restart."""
    restarts = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("roles/*/handlers/*.yml")
        for item in dictionaries(load(path))
        if item.get("state") == "restarted" or re.search(r"\brestart\b", str(item.get("cmd", "")))
    }
    assert restarts == set()


def test_task_files_are_short():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ROOT.glob("roles/*/tasks/**/*.yml")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_TASK_FILE} == {}


def test_a_playbook_says_what_it_does_what_it_needs_and_how_long_it_takes():
    problems = []
    for path in sorted(ROOT.glob("playbooks/*.yml")):
        if not isinstance(load(path), list):
            continue  # site_variables.yml is no playbook
        lines = path.read_text().removeprefix("---\n").splitlines()
        head = "\n".join(lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])
        wanted = (f"ansible-playbook playbooks/{path.name}", "Needs", "Takes")
        problems += [f"{path.name}: {words}" for words in wanted if words not in head]
    assert problems == []


def test_every_playbook_begins_with_validate():
    def begins(name: str) -> bool:
        (first, *_) = load(ROOT / "playbooks" / name)
        imported = first.get("ansible.builtin.import_playbook", "")
        return imported == "validate.yml" or (bool(imported) and begins(imported))

    playbooks = {path.name for path in ROOT.glob("playbooks/*.yml") if isinstance(load(path), list)}
    assert "validate.yml" in playbooks
    # What removes the lab has to work when its inventory is broken, and so has the emergency stop.
    assert {
        name
        for name in playbooks - {"validate.yml", "lab-down.yml", "lab-dr-down.yml", "kill-switch.yml"}
        if not begins(name)
    } == set()


def traces_of_this_machine() -> Iterator[str]:
    """Yield patterns of what is true on this machine only: its paths, and the registries that its tools are set to."""
    for path in (ROOT, ROOT.parent, Path.home()):
        if len(path.parts) > 2:  # a folder that any machine has, such as /tmp or /root, says nothing
            yield rf"(?<![\w.~-]){re.escape(str(path))}(?=[/\s\"'`])"
    pip = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(pip, capture_output=True, text=True, check=False).stdout
    settings += " ".join(
        value for key, value in os.environ.items() if re.search(r"INDEX|REGISTRY|PROXY|FIND_LINKS", key, re.IGNORECASE)
    )
    for host in re.findall(r"https?://(?:[^@/\s']+@)?([^/:\s']+)", settings):
        if host not in ("pypi.org", "localhost", "127.0.0.1", "registry.npmjs.org"):
            yield re.escape(host)
    for path in re.findall(r"file://(/[^\s']+)", settings):
        yield re.escape(path)


CANNOT_FAIL = {"ansible.builtin.set_fact", "ansible.builtin.debug", "ansible.builtin.group_by", "pst.platform.evidence"}


def unrescued(tasks: list[Any], folder: Path) -> Iterator[str]:
    """Yield the names of the tasks whose failure would leave the run lock with a run that is over."""
    for task in tasks:
        role = task.get("ansible.builtin.include_role", {})
        if (
            "rescue" in task
            or CANNOT_FAIL & task.keys()
            or (role.get("name"), role.get("tasks_from")) == ("run", "fail")
        ):
            continue
        if included := task.get("ansible.builtin.include_tasks"):
            yield from unrescued(load(folder / included), folder)
        elif "block" in task:
            yield from unrescued(task["block"], folder)
        else:
            yield task["name"]


def plays_with_the_lock() -> dict[str, list[dict[str, Any]]]:
    """Return the plays after `parts/plan.yml`, which takes the run lock, by their files."""
    found = {}
    for path in sorted(ROOT.glob("playbooks/*.yml")):
        names = [isinstance(play, dict) and play.get("ansible.builtin.import_playbook") for play in load(path)]
        if "parts/plan.yml" not in names:
            continue
        for name, play in list(zip(names, load(path), strict=True))[names.index("parts/plan.yml") + 1 :]:
            part = ROOT / "playbooks" / name if name else path
            found[str(part.relative_to(ROOT))] = (
                load(part) if name else [*found.get(f"playbooks/{path.name}", []), play]
            )
    return found


@pytest.mark.parametrize("path", plays_with_the_lock())
def test_no_failure_leaves_the_run_lock(path):
    plays = plays_with_the_lock()[path]
    assert [play["name"] for play in plays if "roles" in play] == [], "a role in `roles` has no rescue"
    assert [
        f"{play['name']}: {name}" for play in plays for name in unrescued(play.get("tasks", []), (ROOT / path).parent)
    ] == []


def test_nothing_of_this_machine_is_in_the_repository():
    pattern = re.compile("|".join(traces_of_this_machine()))
    problems = []
    for path in tracked():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        problems += [
            f"{path.relative_to(ROOT)}:{n}: {line.strip()[:100]}"
            for n, line in enumerate(lines, 1)
            if pattern.search(line)
        ]
    assert problems == []
