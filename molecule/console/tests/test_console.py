"""What the page serves, to whom, and what its two processes may do."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shlex
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from ansible_collections.pst.platform.plugins.module_utils.dashboards import BOARDS

testinfra_hosts = ["ansible://mon12", "ansible://mon13"]


@pytest.fixture(autouse=True)
def become(host: Host) -> Iterator[None]:
    """Ask as root."""
    with host.sudo():
        yield


class Page:
    """The page, as a browser on the control node sees it."""

    def __init__(self, host: Host) -> None:
        variables = host.ansible.get_variables()
        state = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "state"
        self.url = f"https://{variables['ansible_host']}:8443"
        self.tls = ssl.create_default_context(cafile=str(state / "pki/ca.crt"))
        self.passwords = {
            "operator": (state / "secrets/console_operator_password").read_text().strip(),
            "night.desk": (state / "secrets/console_night_password").read_text().strip(),
        }

    def get(
        self, path: str, user: str | None = "operator", password: str | None = None, method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(self.url + path, method=method)
        if user is not None:
            login = f"{user}:{password or self.passwords[user]}"
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.tls) as answer:
                return answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 429:
                time.sleep(1)
                return self.get(path, user, password, method)
            return error.code, {key.lower(): value for key, value in error.headers.items()}, error.read()

    def state(self) -> dict[str, Any]:
        return json.loads(self.get("/data/state.json")[2])


@pytest.fixture
def page(host: Host) -> Page:
    return Page(host)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the bound"
        time.sleep(0.5)


@pytest.mark.parametrize("path", ["/", "/console.js", "/data/state.json", "/data/runs.json", "/nothing"])
def test_nothing_is_shown_without_a_password(page: Page, path: str) -> None:
    for user, password in ((None, None), ("operator", "wrong"), ("root", "wrong")):
        status, headers, body = page.get(path, user, password)
        assert status == 401
        assert headers["www-authenticate"].startswith("Basic")
        assert b"mon12" not in body


@pytest.mark.parametrize("user", ["operator", "night.desk"])
def test_each_user_is_let_in_with_his_own_password(page: Page, user: str) -> None:
    assert page.get("/", user)[0] == 200
    other = next(password for name, password in page.passwords.items() if name != user)
    assert page.get("/", user, other)[0] == 401


def test_the_page_allows_nothing_but_its_own_files(page: Page) -> None:
    status, headers, body = page.get("/")
    assert status == 200
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["server"] == "nginx", "no version"
    assert b"http://" not in body
    assert b"https://" not in body
    # A refused request is as careful.
    assert "content-security-policy" in page.get("/", None)[1]


@pytest.mark.parametrize(
    "path",
    [
        "/data/",
        "/data/.state.json.new",
        "/data/../site.json",
        "/data/%2e%2e/site.json",
        "/../../etc/passwd",
        "/nothing",
    ],
)
def test_only_the_page_and_its_data_are_served(page: Page, path: str) -> None:
    assert page.get(path)[0] in (400, 403, 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_the_page_is_for_reading(page: Page, method: str) -> None:
    assert page.get("/", method=method)[0] == 405


def test_old_tls_is_refused(host: Host, page: Page) -> None:
    address = page.url.removeprefix("https://")
    done = host.run(f"openssl s_client -tls1_1 -cipher 'DEFAULT@SECLEVEL=0' -connect {address} </dev/null 2>&1")
    assert "Cipher is (NONE)" in done.stdout or "no protocols available" in done.stdout, done.stdout


def test_a_guesser_is_slowed_down(host: Host, page: Page) -> None:
    """On one connection, as fast as he can. mon13 lets three requests a second through: a slow machine tells it too."""
    if host.check_output("hostname -s") != "mon13":
        pytest.skip("mon13 has the bound for it")
    address, _, port = page.url.removeprefix("https://").partition(":")
    connection = http.client.HTTPSConnection(address, int(port), timeout=10, context=page.tls)
    codes = []
    for number in range(60):
        login = base64.b64encode(f"operator:guess {number}".encode()).decode()
        connection.request("GET", "/data/state.json", headers={"Authorization": f"Basic {login}"})
        answer = connection.getresponse()
        answer.read()
        codes.append(answer.status)
    connection.close()
    assert set(codes) == {401, 429}
    assert page.get("/")[0] == 200, "after a while"


def test_the_state_is_fresh_and_well(page: Page) -> None:
    until(lambda: abs(time.time() - page.state()["at"]) < 5)
    # What happened before has passed: the exporter and Prometheus run again, and what the hosts are busy with was
    # asked since, which is done every 10 seconds only.
    deadline = time.monotonic() + 30
    while True:
        state = page.state()
        hosts = {host["name"]: host for tier in state["tiers"] for host in tier["hosts"]}
        assert set(hosts) == {"mon12", "mon13"}
        problems = [problem for problem in state["problems"] if problem["section"] != "alerts"]
        loads = {name: host["load"].get("memory") for name, host in hosts.items()}
        if not problems and None not in loads.values():
            break
        assert time.monotonic() < deadline, (problems, loads)
        time.sleep(1)
    assert all(0 < load < 1 for load in loads.values()), loads
    until(lambda: page.state()["at"] > state["at"])
    services = {unit["service"]: unit["state"] for unit in hosts["mon12"]["units"]}
    assert services["prometheus"] == services["page"] == services["collector"] == "ok"
    assert {target["job"] for target in hosts["mon13"]["targets"]} == {"node", "prometheus"}


def test_charts_have_figures(page: Page) -> None:
    charts = json.loads(page.get("/data/charts.json")[2])
    assert [panel["title"] for panel in charts["panels"]][:2] == ["Trading System Health", "Order Processing Rate"]
    assert {panel["problem"] for panel in charts["panels"]} == {""}, "Prometheus understands every expression"


def test_every_expression_of_the_boards_is_promql(host: Host) -> None:
    expressions = sorted({query.expr for board in BOARDS for panel in board.panels for query in panel.queries})
    assert len(expressions) > 40
    rules = [{"record": f"board:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    text = json.dumps({"groups": [{"name": "boards", "rules": rules}]})
    host.check_output(f"printf '%s' {shlex.quote(text)} > /root/boards.yml")
    result = host.run("promtool check rules /root/boards.yml; s=$?; rm /root/boards.yml; exit $s")
    assert result.rc == 0, result.stdout + result.stderr


def test_a_run_that_was_left_here_is_shown(host: Host, page: Page) -> None:
    run = {"id": "probe", "started": "2026-11-30T01:10:11Z", "operation": "probe"}
    path = "/var/lib/pst-console/runs/probe.json"
    host.check_output(f"echo '{json.dumps(run)}' > {path}")
    try:
        until(lambda: run in json.loads(page.get("/data/runs.json")[2])["runs"])
    finally:
        host.check_output(f"rm {path}")


def test_a_new_certificate_is_served_without_a_restart(host: Host, page: Page) -> None:
    """By a reload, as a run of the role does it."""
    main = "systemctl show -P MainPID pst-console-web.service"
    before = host.check_output(main)
    host.check_output("touch /etc/pst/pki/console/console.crt && systemctl reload pst-console-web.service")
    time.sleep(1)
    assert page.get("/")[0] == 200
    assert host.check_output(main) == before


def test_the_packages_own_site_does_not_run(host: Host) -> None:
    assert host.check_output("systemctl is-enabled nginx.service || true") == "masked"
    listening = [line.split()[3] for line in host.check_output("ss -Hltn").splitlines()]
    assert not [address for address in listening if address.endswith(":80")]
    (page,) = [address for address in listening if address.endswith(":8443")]
    assert page.startswith("10.78.30.")


def test_the_server_cannot_write_what_it_shows(host: Host) -> None:
    pid = host.check_output("systemctl show -P MainPID pst-console-web.service")
    assert host.check_output(f"stat -c '%U %G' /proc/{pid}") == "www-data pst-console"
    as_it = "setpriv --reuid www-data --regid pst-console --clear-groups"
    host.check_output(f"{as_it} cat /run/pst-console/state.json")
    for path in (
        "/run/pst-console",
        "/run/pst-console/state.json",
        "/var/lib/pst-console/runs",
        "/etc/pst/console/users",
    ):
        assert host.run(f"{as_it} test -w {path}").rc == 1, path


def test_passwords_are_hashes_that_others_cannot_read(host: Host, page: Page) -> None:
    users = host.file("/etc/pst/console/users")
    assert (users.user, users.group, users.mode) == ("root", "pst-console", 0o640)
    assert users.content_string.count("$6$") == 2
    assert not [password for password in page.passwords.values() if password in users.content_string]


def test_visits_are_logged_without_the_polling(host: Host, page: Page) -> None:
    page.get("/data/state.json")
    last = f"/{time.monotonic_ns()}"
    page.get(last, None)

    def logged() -> list[dict[str, Any]]:
        lines = host.check_output("journalctl -t pst_console --since=-2min -o cat").splitlines()
        return [json.loads(line) for line in lines]

    until(lambda: (last, 401) in [(line["path"], line["status"]) for line in logged()])
    assert not [line for line in logged() if line["path"].startswith("/data/") and line["status"] == 200]


@pytest.mark.parametrize("unit", ["pst-console.service", "pst-console-web.service"])
def test_exposure(host: Host, unit: str) -> None:
    result = host.run(f"systemd-analyze security --threshold=15 --no-pager {unit}")
    assert result.rc == 0, result.stdout[-2000:]


def test_what_it_costs(host: Host) -> None:
    """A tenth of a core would be seen by what the host is for. Measured: a quarter of a per cent, 20 MiB."""
    pid = host.check_output("systemctl show -P MainPID pst-console.service")

    def seconds() -> float:
        fields = host.check_output(f"cat /proc/{pid}/stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    before, started = seconds(), time.monotonic()
    time.sleep(20)
    share = (seconds() - before) / (time.monotonic() - started)
    memory = int(host.check_output(f"grep VmRSS /proc/{pid}/status").split()[1]) / 1024
    print(f"collector: {100 * share:.2f} % of a core, {memory:.0f} MiB")
    assert share < 0.1
    assert memory < 64
