"""pst.platform.files as a playbook calls it: what is rendered, what is sent once, and what never shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CANARY = "c4n4ry-s3cret"
TEMPLATE = """\
# {{ ansible_managed }}
{% include 'part.j2' %}
{% for number in [1, 2] %}
  {% if number == 2 %}
  line {{ number }} for {{ who }} \\n C:\\new
  {% endif %}
{% endfor %}
{{ "{{ not a template }}" }}
"""


@pytest.fixture
def role(tmp_path):
    for name, content in {
        "templates/a.conf.j2": TEMPLATE,
        "templates/part.j2": "part of {{ who }}\n",
        "files/data.bin": "\0\x01",
    }.items():
        path = tmp_path / "roles/demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "out").mkdir()
    return tmp_path / "roles/demo"


@pytest.fixture
def play(role, tmp_path):
    def play(tasks: list[dict], *options: str) -> str:
        (role / "tasks").mkdir(exist_ok=True)
        (role / "tasks/main.yml").write_text(json.dumps(tasks))
        variables = {"who": "me", "ansible_managed": "mine", "password": CANARY, "out": str(tmp_path / "out")}
        head = {"hosts": "localhost", "gather_facts": False, "vars": variables, "roles": ["demo"]}
        (tmp_path / "play.yml").write_text(json.dumps([head]))
        command = [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local", "play.yml"]
        command += ["-e", f"ansible_python_interpreter={sys.executable}", *options]
        environment = os.environ | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            "ANSIBLE_NOCOLOR": "1",
        }
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    return play


def files(*entries: dict) -> dict:
    ids = {"owner": str(os.getuid()), "group": str(os.getgid())}
    return {"pst.platform.files": {"files": [{**ids, "mode": "0640", **entry} for entry in entries]}}


def test_it_renders_as_the_builtin_does_and_sends_the_rest(play, tmp_path):
    out = tmp_path / "out"
    said = play(
        [
            files(
                {"dest": "{{ out }}/ours", "template": "a.conf.j2"},
                {"dest": "{{ out }}/data", "src": "data.bin"},
                {"dest": "{{ out }}/text", "content": "{{ who }}\n"},
                {"dest": "{{ out }}/left-out", "content": "", "when": "{{ who == 'you' }}"},
            ),
            {"ansible.builtin.template": {"src": "a.conf.j2", "dest": "{{ out }}/theirs", "mode": "0640"}},
        ]
    )
    assert "failed=0" in said, said
    assert (out / "ours").read_text() == (out / "theirs").read_text()
    assert "{{ not a template }}" in (out / "ours").read_text()
    assert (out / "data").read_bytes() == b"\0\x01"
    assert (out / "text").read_text() == "me\n"
    assert not (out / "left-out").exists()


def test_a_secret_never_shows_whatever_happens_to_it(play, tmp_path):
    wrong = {
        "dest": "{{ out }}/wrong",
        "content": "{{ password }}",
        "secret": True,
        "validate": "sh -c 'cat $0; exit 1' %s",
    }
    right = {"dest": "{{ out }}/right", "content": "{{ password }}", "secret": True}
    for entries, options, words in (
        ((right,), ("--check",), "(secret content changed)"),
        ((right,), (), "(secret content changed)"),
        ((right, wrong), (), "its output is withheld"),
    ):
        said = play([files(*entries)], "-vvv", "--diff", *options)
        assert CANARY not in said
        assert words in said
    assert (tmp_path / "out/right").read_text() == CANARY


def test_all_that_is_wrong_is_told_before_the_host_is_asked(play):
    said = play(
        [files({"dest": "relative", "content": ""}, {"dest": "/a/b"}, {"dest": "/c/d", "content": "", "mode": "x"})]
    )
    for words in ("absolute path", "/a/b: wanted exactly one of", "/c/d: mode: wanted a quoted octal"):
        assert words in said
    said = play([files({"dest": "{{ out }}/a", "template": "absent.j2"})])
    assert "out/a: " in said
    assert "absent.j2" in said


def test_a_certificate_is_installed_among_the_files_of_a_role(play, tmp_path):
    """An entry `certificate` is refused, or in check mode left out, where none was issued."""
    task = {"pst.platform.files": {"files": [{"certificate": "demo", "group": "0"}]}}
    state = tmp_path / "state"
    said = play([task], "-e", f"site_state_dir={state}")
    assert "certificate demo: " in said
    assert "demo.pem does not exist" in said
    assert "failed=0" in play([task], "--check", "-e", f"site_state_dir={state}")
    pem = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\nA\n"
    for name, content in {"ca.crt": "authority\n", "localhost/demo.pem": pem}.items():
        (state / "pki" / name).parent.mkdir(parents=True, exist_ok=True)
        (state / "pki" / name).write_text(content)
    said = play([task], "--check", "--diff", "-vvv", "-e", f"site_state_dir={state}")
    assert "/etc/pst/pki/demo/demo.key" in said, said
    assert CANARY not in said
    said = play([{"pst.platform.files": {"files": [{"certificate": "demo", "mode": "0644"}]}}])
    for words in ("certificate demo: mode: is not an option", "certificate demo: group: wanted the group"):
        assert words in said


def test_units_are_brought_to_their_state_with_the_files(play, tmp_path):
    task = files({"dest": "{{ out }}/a", "content": "a"})
    task["pst.platform.files"]["units"] = [{"name": "no-such"}]
    said = play([task])
    assert "no-such: wanted the full name of one unit" in said
    assert not (tmp_path / "out/a").exists()


def test_the_filters_are_loaded_before_the_first_task():
    """Each worker would search and compile them again, which was two fifths of the control node's time."""
    package = "ansible_collections.pst.platform.plugins.filter.pki"
    assert "pst.platform.preload" in (ROOT / "ansible.cfg").read_text()
    program = f"""
import sys
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=[{str(ROOT / "collections")!r}])._install()
from ansible_collections.pst.platform.plugins.callback.preload import CallbackModule
assert {package!r} not in sys.modules
CallbackModule().v2_playbook_on_start(None)
assert {package!r} in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
