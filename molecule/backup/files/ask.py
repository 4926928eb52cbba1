#!/usr/bin/env python3
"""Asks the repositories' server past restic: ask.py METHOD PATH [certificate] [password]. Prints status and answer."""

import base64
import http.client
import ssl
import sys
from pathlib import Path

method, path, *with_what = sys.argv[1:]
context = ssl.create_default_context(cafile="/etc/pst/pki/ca.crt")
if "certificate" in with_what:
    context.load_cert_chain("/etc/pst/pki/node/node.crt", "/etc/pst/pki/node/node.key")
password = Path("/etc/pst/backup/secrets/backup-mongodb.password").read_text()
login = base64.b64encode(f"backup-mongodb:{password}".encode()).decode()
connection = http.client.HTTPSConnection("keeper.backup.pst.test", 8000, context=context, timeout=20)
try:
    headers = {"Accept": "application/vnd.x.restic.rest.v2"}
    headers |= {"Authorization": f"Basic {login}"} if "password" in with_what else {}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
except OSError as error:
    sys.stdout.write(f"refused {error}\n")
else:
    sys.stdout.write(f"{answer.status} {answer.read().decode(errors='replace')}\n")
