"""Process control: one document per process.

Nothing in it names a host, and starting is no compare-and-set: as upstream, whose dangers the platform has to cover.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

from sysdata.config.control_config import get_control_config
from sysdata.mongodb.mongo_connection import Document, keyed_collection

GO, STOP, NO_RUN, PAUSE = "GO", "STOP", "NO-RUN", "PAUSE"
SUCCESS, RUNNING, STOPPED, NOT_TO_RUN = "success", "process_running", "process_stop", "process_no_run"
NEW = {
    "status": GO,
    "currently_running": 0.0,
    "process_id": 0.0,
    "last_start_time": None,
    "last_end_time": None,
    "recently_crashed": 0.0,
    "running_methods": {},
}


class dataControlProcess:  # noqa: N801 - upstream's name
    """Read and change the documents."""

    def __init__(self) -> None:
        self._documents = keyed_collection("process_control", "process_name")

    def get(self, name: str) -> Document:
        """Return a process's document, or what it begins with."""
        return {"process_name": name, **NEW, **(self._documents.find_one({"process_name": name}) or {})}

    def _set(self, name: str, **values: Any) -> None:
        new = {key: value for key, value in NEW.items() if key not in values and not _touches(key, values)}
        self._documents.update_one({"process_name": name}, {"$set": values, "$setOnInsert": new}, upsert=True)

    def get_dict_of_control_processes(self) -> dict[str, Document]:
        """Return all documents by name."""
        return {document["process_name"]: document for document in self._documents.find({}, {"_id": 0})}

    def change_status_to_stop(self, name: str) -> None:
        """Let it finish its current method and end."""
        self._set(name, status=STOP)

    def change_status_to_go(self, name: str) -> None:
        """Let it run."""
        self._set(name, status=GO)

    def change_status_to_no_run(self, name: str) -> None:
        """Let it not start."""
        self._set(name, status=NO_RUN)

    def change_status_to_pause(self, name: str) -> None:
        """Let it stay up and run nothing."""
        self._set(name, status=PAUSE)

    def check_if_okay_to_start_process(self, name: str) -> str:
        """Say whether a process may start, and why not."""
        document = self.get(name)
        if document["currently_running"]:
            return RUNNING
        return {STOP: STOPPED, NO_RUN: NOT_TO_RUN}.get(document["status"], SUCCESS)

    def start_process(self, name: str) -> None:
        """Write down that a process of this host runs."""
        now = datetime.now()
        self._set(name, currently_running=1.0, process_id=float(os.getpid()), last_start_time=now, running_methods={})

    def finish_process(self, name: str, *, crashed: bool = False) -> None:
        """Write down that a process has ended."""
        ended = {"currently_running": 0.0, "process_id": 0.0, "last_end_time": datetime.now()}
        self._set(name, **ended, recently_crashed=float(crashed))

    def finish_all_processes(self) -> None:
        """Write it down for all, whatever host they run on."""
        for name, document in self.get_dict_of_control_processes().items():
            if document["currently_running"]:
                self.finish_process(name)

    def log_start_run_method(self, name: str, method: str) -> None:
        """Write down that a method runs."""
        self._set(name, **{f"running_methods.{method}": [datetime.now(), None]})

    def log_end_run_method(self, name: str, method: str) -> None:
        """Write down that a method has ended."""
        self._set(name, **{f"running_methods.{method}.1": datetime.now()})

    def check_if_pid_running_and_if_not_finish_all_processes(self) -> list[str]:
        """Look for the processes in this host's own table, and close those of every other host: as upstream."""
        running = {name: d for name, d in self.get_dict_of_control_processes().items() if d["currently_running"]}
        dead = [name for name, document in running.items() if not _is_alive(int(document["process_id"]))]
        for name in dead:
            self.finish_process(name, crashed=True)
        return dead


def _touches(key: str, values: dict[str, Any]) -> bool:
    return any(name.startswith(f"{key}.") for name in values)


def _is_alive(process_id: int) -> bool:
    return os.path.isdir(f"/proc/{process_id}")


class diagControlProcess:  # noqa: N801 - upstream's name
    """When a process may run."""

    def __init__(self) -> None:
        self._control = dataControlProcess()
        self._config = get_control_config()

    def _time(self, kind: str, name: str) -> str:
        times = self._config[f"process_configuration_{kind}_time"]
        return str(times.get(name, times["default"]))

    def get_start_time(self, name: str) -> str:
        """Return 'HH:MM'."""
        return self._time("start", name)

    def get_stop_time(self, name: str) -> str:
        """Return 'HH:MM'."""
        return self._time("stop", name)

    def is_it_time_to_run(self, name: str) -> bool:
        """Whether its window is open."""
        return self.get_start_time(name) <= f"{datetime.now():%H:%M}" < self.get_stop_time(name)

    def is_it_time_to_stop(self, name: str) -> bool:
        """Whether its window is over."""
        return f"{datetime.now():%H:%M}" >= self.get_stop_time(name)

    def has_previous_process_finished(self, name: str) -> bool:
        """Whether what it waits for has ended within a day."""
        previous = self._config["process_configuration_previous_process"].get(name)
        ended = self._control.get(previous)["last_end_time"] if previous else datetime.now()
        return ended is not None and datetime.now() - ended < timedelta(days=1)

    def get_method_configuration(self, name: str) -> dict[str, dict[str, Any]]:
        """Return frequency and number of a process's methods."""
        return self._config["process_configuration_methods"].get(name) or {}
