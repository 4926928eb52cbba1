"""Puts a lease into MongoDB that nobody holds, as `root`; the password comes on standard input."""

import sys

import pymongo

client = pymongo.MongoClient(
    sys.argv[1], username="root", password=sys.stdin.read().strip(), authSource="admin", tls=True,
    tlsCAFile="/etc/pst/pki/ca.crt", directConnection=True,
)  # fmt: skip
client.pst.leases.replace_one(
    {"_id": "live"}, {"_id": "live", "epoch": 5, "holder": None, "revoked": None, "wanted": None}, upsert=True
)
