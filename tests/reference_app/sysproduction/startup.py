"""What upstream runs at boot. It frees the processes and client ids of every host: nobody may run it here."""

from __future__ import annotations

from sysbrokers.IB.ib_connection import clear_all_client_ids
from sysproduction.data.control_process import dataControlProcess


def startup() -> None:
    """Take everything for ended, whatever host it runs on."""
    dataControlProcess().finish_all_processes()
    clear_all_client_ids()
