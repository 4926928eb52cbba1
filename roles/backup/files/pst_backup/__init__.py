"""Backups that restore: consistent dumps of MongoDB and its oplog, and folders, in append-only restic repositories."""
