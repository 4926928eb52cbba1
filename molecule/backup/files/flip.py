#!/usr/bin/env python3
"""Flips a bit in the middle of the largest file of MongoDB's repository; again, and it is as it was."""

from pathlib import Path

folder = Path("/var/lib/pst-backup-repositories/backup-mongodb/data")
path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
content = bytearray(path.read_bytes())
content[len(content) // 2] ^= 1
path.chmod(0o600)
path.write_bytes(content)
