"""pst-backup on the hosts; see cli.py."""

import sys

from pst_backup.cli import main

sys.exit(main(sys.argv[1:]))
