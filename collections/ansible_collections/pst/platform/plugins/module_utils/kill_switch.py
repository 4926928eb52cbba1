# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the kill switch has proven, from what its tasks registered on each host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

GATES = "ib_gateways"
FAILED = (
    "NOT STOPPED: no host could revoke the leases, and not every gate is closed. Cut the gateways off by other means."
)


@dataclass(frozen=True)
class Host:
    """One host's results; a task that did not run there has none."""

    name: str
    has_gate: bool
    results: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, variables: Mapping[str, Any], registers: Mapping[str, str]) -> Host:
        found = {key: variables.get(name) for key, name in registers.items()}
        results = {key: result for key, result in found.items() if result and not result.get("skipped")}
        return cls(variables["inventory_hostname"], GATES in variables["group_names"], results)

    @property
    def answered(self) -> bool:
        return bool(self.results) and not any(result.get("unreachable") for result in self.results.values())

    @property
    def lease(self) -> bool:
        return "leases" in self.results.get("lease", {})

    @property
    def gate(self) -> bool:
        return self.results.get("gate", {}).get("stdout") == "done"

    @property
    def quiet(self) -> bool:
        """Whether no trading process runs, as far as that was asked."""
        return "processes" not in self.results or self.results["processes"].get("stdout") == ""

    def says(self, *, stops: bool) -> Iterator[str]:
        if not self.answered:
            yield "no answer"
            return
        if self.has_gate:
            done = "closed" if stops else "open"
            yield f"gate {done}" if self.gate else f"gate NOT {done}: {reason(self.results.get('gate', {}))}"
        else:
            done = "revoked" if stops else "valid"
            yield f"leases {done}" if self.lease else f"leases NOT {done}: {reason(self.results.get('lease', {}))}"
        if "processes" in self.results:
            yield "nothing runs" if self.quiet else f"STILL RUNS: {reason(self.results['processes'])}"


def reason(result: Mapping[str, Any]) -> str:
    """Why a task came to nothing, in one line."""
    said = result.get("msg") or result.get("stderr") or result.get("stdout") or "no result"
    return " ".join(str(said).split())


def rows(variables: Iterable[Mapping[str, Any]], registers: Mapping[str, str], stops: bool) -> list[dict[str, Any]]:
    """A row for each host. `registers` names the variables with the results for lease, gate, processes and so on."""
    hosts = [Host.of(found, registers) for found in variables]
    return [{"host": host.name, "what": "; ".join(host.says(stops=stops))} for host in hosts]


def proof(variables: Iterable[Mapping[str, Any]], registers: Mapping[str, str], stops: bool) -> dict[str, Any]:
    """Whether no order can pass (or, for the undo, whether orders can), and what is left to do."""
    hosts = [Host.of(found, registers) for found in variables]
    lease = [host.name for host in hosts if host.lease]
    gates = [host for host in hosts if host.has_gate]
    other = [host.name for host in gates if not host.gate]
    silent = [host.name for host in hosts if not host.answered]
    if stops:
        proven = bool(lease) or (bool(gates) and not other)
        message = list(stopped(lease, other, [host.name for host in hosts if not host.quiet])) if proven else [FAILED]
    else:
        proven = bool(lease)
        message = list(resumed(lease, other))
    if silent:
        message.append(f"No answer from {', '.join(silent)}.")
    return {"proven": proven, "message": " ".join(message)}


def stopped(lease: list[str], open_gates: list[str], running: list[str]) -> Iterator[str]:
    if lease:
        yield f"Stopped: a majority of MongoDB has the leases revoked (through {lease[0]})."
    else:
        yield "Stopped: every gate is closed. The leases are NOT revoked: run this again once MongoDB has a primary,"
        yield "because a reboot of the gateway's host opens its gate."
    if lease and open_gates:
        yield f"Gates not closed, though they obey the lease: {', '.join(open_gates)}."
    if running:
        yield f"Trading processes may still run on {', '.join(running)}; they reach no gateway."


def resumed(lease: list[str], closed_gates: list[str]) -> Iterator[str]:
    if lease:
        yield "Undone: the leases are valid, and the guards take them again."
    else:
        yield "NOT UNDONE: no host could reinstate the leases."
    if closed_gates:
        yield f"Gates that may still be closed: {', '.join(closed_gates)}."
