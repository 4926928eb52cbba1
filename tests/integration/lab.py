"""The running lab as the tests see it: through ssh, the engine, the playbooks and the virtual address."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# The machine that tests run on is shared: a figure is recorded beside its bar, and fails the run only well above it.
SLACK = 1.5
ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "lab"
STATE = INVENTORY / ".state"
REPORTS = ROOT / "reports"
FIRST_RUN = REPORTS / "test" / "first-run.log"
DOMAIN = "lab.pst.test"
VIP = "10.78.0.10"
PREFIX = "pst-"  # of the containers' names
TOOLS = Path(__file__).resolve().parent
PROBE = ROOT / "roles/evidence/files/pst_probe.py"
BALANCERS = ("lab-lb1", "lab-lb2")
APPS = ("lab-app1", "lab-app2", "lab-app3")
MONGODB = ("lab-mongo1", "lab-mongo2", "lab-mongo3")
REDIS = ("lab-redis1", "lab-redis2", "lab-redis3")


@dataclass(frozen=True)
class Run:
    """A playbook's run: its output, its seconds, and the recap per host."""

    code: int
    output: str
    seconds: float
    recap: dict[str, dict[str, int]] = field(default_factory=dict)

    def total(self, what: str) -> int:
        return sum(host[what] for host in self.recap.values())

    def changed_tasks(self) -> list[str]:
        """Return the tasks that changed something, for the message of a failed assertion."""
        found, task = [], ""
        for line in self.output.splitlines():
            if line.startswith(("TASK [", "RUNNING HANDLER [")):
                task = line.split("[", 1)[1].split("]")[0]
            elif line.startswith("changed: "):
                found.append(f"{task}: {line.removeprefix('changed: ')}")
        return found


def environment() -> dict[str, str]:
    return os.environ | {
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        "ANSIBLE_NOCOLOR": "1",
        # Drills fail playbooks on purpose; test_4_logs.py makes a bundle of its own.
        "PST_SUPPORT_BUNDLE": "false",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "PYTHONUNBUFFERED": "1",
    }


def start_playbook(name: str, *arguments: str, output: int) -> subprocess.Popen[str]:
    """Start a playbook as a user does, in a process group of its own."""
    return subprocess.Popen(
        ["ansible-playbook", f"playbooks/{name}.yml", "-i", "inventories/lab", *arguments],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def recap_of(output: str) -> dict[str, dict[str, int]]:
    """Read the closing recap of ansible-playbook."""
    hosts = {}
    for line in output.partition("PLAY RECAP")[2].splitlines():
        if match := re.match(r"(\S+)\s+: (ok=.*)", line):
            hosts[match[1]] = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match[2])}
    return hosts


def playbook(name: str, *arguments: str, timeout: float = 900) -> Run:
    """Run a playbook to its end."""
    started = time.monotonic()
    process = start_playbook(name, *arguments, output=subprocess.PIPE)
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException:
        kill(process)
        raise
    return Run(process.returncode, output, time.monotonic() - started, recap_of(output))


def verb(host: str, role: str, entry: str, timeout: float = 300) -> Run:
    """Use one verb of a role on one host, as an operator would by hand."""
    started = time.monotonic()
    done = subprocess.run(
        ["ansible", host, "-i", "inventories/lab", "-b", "-m", "include_role", "-a", f"name={role} tasks_from={entry}"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Run(done.returncode, done.stdout, time.monotonic() - started)


def journal() -> list[dict[str, Any]]:
    """Return what the newest run has noted on the control node, begun or refused; the run's id sorts by time."""
    files = sorted((REPORTS / "journal").glob("*.jsonl"))
    return [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []


def anew(*arguments: str) -> Run:
    """Make the lab again, whatever was in it; returns the run that made it."""
    succeed(playbook("lab-down"))
    return succeed(playbook("lab", *arguments, timeout=1800))


def succeed(run: Run) -> Run:
    """Fail the test with the end of the output unless the run ended well."""
    assert run.code == 0, run.output[-6000:]
    return run


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the whole process group, as a lost control node would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def killed_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """SIGKILL the process group of a playbook that runs after so many seconds; False where it had ended by then."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        return True
    return False


def interrupted(name: str, after: float, *arguments: str) -> bool:
    """Start a playbook and SIGKILL its process group after so many seconds; False where it had ended by then."""
    return killed_after(start_playbook(name, *arguments, output=subprocess.DEVNULL), after)


def ssh(host: str, command: str, *, check: bool = True, timeout: float = 60, stdin: str = "") -> str:
    """Run a shell command as root on a host; returns what it printed."""
    done = subprocess.run(
        remote(host, command),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{host}: {command}\nexit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def remote(host: str, command: str) -> list[str]:
    """Return the command line that runs a shell command as root on a host."""
    return ["ssh", "-F", str(STATE / "ssh" / "config"), host, "sudo", "-n", "sh", "-c", f"'{quoted(command)}'"]


def quoted(text: str) -> str:
    """Escape single quotes for the remote shell."""
    return text.replace("'", "'\\''")


def engine(*command: str, stdin: str | None = None, timeout: float = 60) -> str:
    """Ask the container engine: `pause` hangs a host, `kill` cuts its power."""
    words = ["docker", *command]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def container(host: str) -> str:
    return f"{PREFIX}{host}"


def eventually(what: str, ask: Callable[[], T], within: float = 60, pause: float = 0.5) -> T:
    """Ask until the answer is true; fail after so many seconds with the last answer or error."""
    deadline = time.monotonic() + within
    last: Any = None
    while time.monotonic() < deadline:
        try:
            last = ask()
        except (AssertionError, OSError, subprocess.SubprocessError, ValueError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(pause)
    raise AssertionError(f"{what}: not within {within:g} s; last seen: {last!r}")


def wait_until_all_serve(within: float = 180) -> None:
    eventually("healthy platform", lambda: playbook("status").code == 0, within, 3)


def answer_to(path: str, timeout: float = 10, **headers: str) -> Any:
    """Ask through the virtual address, with TLS verified against the lab's authority; returns the open answer."""
    context = ssl.create_default_context(cafile=str(STATE / "pki" / "ca.crt"))
    request = urllib.request.Request(f"https://{VIP}{path}", headers={"Host": f"trading.{DOMAIN}"} | headers)
    return urllib.request.urlopen(request, timeout=timeout, context=context)


def ask(path: str, timeout: float = 10, token: str = "") -> tuple[int, str]:
    """Ask through the virtual address; returns status and body."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with answer_to(path, timeout, **headers) as answer:
        return answer.status, answer.read().decode()


def secret(name: str) -> str:
    return (STATE / "secrets" / name).read_text().strip()


def vip_holder() -> str:
    """Return the balancer that holds the virtual address; exactly one may."""
    holders = [
        host for host in BALANCERS if running(host) and f" {VIP}/" in ssh(host, "ip -4 -o addr show", check=False)
    ]
    assert len(holders) == 1, f"holders of {VIP}: {holders}, wanted exactly one"
    return holders[0]


def running(host: str) -> bool:
    return engine("inspect", "--format", "{{.State.Running}} {{.State.Paused}}", container(host)) == "true false"


@dataclass
class Probe:
    """A load through the virtual address, and what became of it."""

    process: subprocess.Popen[str]
    result: dict[str, Any] = field(default_factory=dict)

    def finish(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=240)
        assert self.process.returncode in (0, 1), out
        self.result = json.loads(out)
        return self.result


@contextlib.contextmanager
def tool(script: str | Path, *arguments: str) -> Iterator[Probe]:
    """Run a tool (PROBE, or one beside this file) on the control node, and never leave it behind."""
    process = subprocess.Popen(
        [sys.executable, str(TOOLS / script), *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield Probe(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def writer(script: str, *arguments: str, host: str = "lab-app1") -> Iterator[Probe]:
    """Run a ledger writer on an app node, with the application's own interpreter, network path and credentials."""
    command = f"sudo -n /srv/pst/blue/venv/bin/python - {' '.join(arguments)}"
    process = subprocess.Popen(
        ["ssh", "-F", str(STATE / "ssh" / "config"), host, command],
        stdin=(TOOLS / script).open(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Probe(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


HOSTS = (*BALANCERS, *APPS, *MONGODB, *REDIS, "lab-ibgw1", "lab-ibgw2", "lab-mon1")
UNITS = (
    "mongod redis-server redis-sentinel haproxy keepalived pst-app@blue pst-dashboard@blue ib-gateway prometheus"
    " prometheus-node-exporter chrony ssh pst-firewall"
)


def start_times() -> dict[str, str]:
    """When each service of the platform last started, per host."""
    show = f"systemctl show --property=Id,ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic {UNITS}"
    return {host: ssh(host, show) for host in HOSTS}


def record(name: str, **figures: Any) -> None:
    """Keep the measured figures beside each other in reports/lab.json, and show them in the log."""
    REPORTS.mkdir(exist_ok=True)
    path = REPORTS / "lab.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = figures
    path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    print(f"measured {name}: {json.dumps(figures, sort_keys=True)}")


def secrets() -> dict[str, str]:
    """Return every generated secret of the lab by its name."""
    found = {path.name: path.read_text().strip() for path in (STATE / "secrets").iterdir() if path.is_file()}
    assert len(found) >= 5, "the lab has no secrets: this test would prove nothing"
    return found


def leaked(output: str) -> list[str]:
    """Name the secrets and private keys whose text is in the output."""
    keys = {path.name: path.read_text().splitlines()[1] for path in (STATE / "pki").rglob("*.key")}
    return sorted(name for name, value in (secrets() | keys).items() if value in output)
