"""`python3 -m pst_parquet`, which is what /usr/local/bin/pst-parquet runs."""

from .cli import main

raise SystemExit(main())
