"""`python3 -m pst_trading`, which is what /usr/local/bin/pst-trading runs."""

from .cli import main

raise SystemExit(main())
