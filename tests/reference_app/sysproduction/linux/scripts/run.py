"""Call a function by its dotted name: ``python run.py sysproduction.run_stack_handler.run_stack_handler``."""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":
    module, _, function = sys.argv[1].rpartition(".")
    getattr(import_module(module), function)()
