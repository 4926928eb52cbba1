"""The generator of the tables of variables, and that what it has written is current."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

import pytest
from conftest import ROOT

SPECS = """
argument_specs:
  main:
    short_description: Run it.
    options:
      demo_port: {type: int, description: "Port (1024 to 65535), as O(demo_port) | TLS."}
      demo_password: {type: str, required: true, description: Secret.}
      demo_users:
        type: list
        elements: dict
        description: [Who, may.]
        options: {name: {required: true, description: Name.}}
  health:
    short_description: Ask
    options:
      demo_port: {type: int, description: "Port (1024 to 65535), as O(demo_port) | TLS."}
      demo_wait: {type: int, default: 5, description: Seconds.}
"""
WANTED = """\
### `main`: Run it

| variable | type | default | meaning |
|---|---|---|---|
| `demo_port` | int | `4000` | Port (1024 to 65535), as `demo_port` \\| TLS. |
| `demo_password` | str | **required** | Secret. |
| `demo_users` | list of dict | `[]` | Who may. |
| `demo_users[].name` | str | **required** | Name. |

### `health`: Ask

Reads variables of `main`, and:

| variable | type | default | meaning |
|---|---|---|---|
| `demo_wait` | int | `5` | Seconds. |

"""


@pytest.fixture(scope="module")
def docs():
    loader = SourceFileLoader("docs", str(ROOT / ".ci/docs"))
    module = module_from_spec(spec_from_loader("docs", loader))
    sys.modules["docs"] = module  # dataclasses and named tuples look their module up
    loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path):
    for name, text in {
        "meta/argument_specs.yml": SPECS,
        "defaults/main.yml": "demo_port: 4000\ndemo_users: []\n",
        "README.md": "# Demo\n\n<!-- BEGIN variables -->\nold\n<!-- END variables -->\n\nAfter.\n",
    }.items():
        path = tmp_path / "roles/demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_table_is_written_once_and_only_between_the_marks(docs, project):
    readme = project / "roles/demo/README.md"
    assert list(docs.outdated(project, write=False)) == ["roles/demo/README.md"]
    assert "old" in readme.read_text()
    assert list(docs.outdated(project, write=True)) == ["roles/demo/README.md"]
    assert readme.read_text() == f"# Demo\n\n{docs.BEGIN}\n\n{WANTED}{docs.END}\n\nAfter.\n"
    assert list(docs.outdated(project, write=True)) == []


def test_a_readme_without_the_marks_is_named(docs, project):
    (project / "roles/demo/README.md").write_text("# Demo\n")
    (problem,) = docs.outdated(project, write=True)
    assert "wanted the lines" in problem


def test_the_tables_of_this_repository_are_current(docs):
    assert list(docs.outdated(ROOT, write=False)) == [], "run `make docs`"
