"""A mail server that wants STARTTLS and a login, a webhook that wants a signature; both write down what they took."""

import hashlib
import hmac
import json
import ssl
import sys
import time
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

TAKEN = Path("/var/lib/sink")
SETTINGS = json.loads(Path("/etc/sink.json").read_text())
CERTIFICATE = "/etc/pst/pki/node/node.pem"


def context():
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(CERTIFICATE)
    return made


def keep(kind, values):
    (TAKEN / f"{time.time_ns()}-{kind}.json").write_text(json.dumps(values))


class Mailbox:
    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        message = message_from_bytes(envelope.content)
        keep(
            "mail",
            {
                "tls": session.ssl is not None,
                "login": session.auth_data.login.decode() if session.auth_data else "",
                "to": envelope.rcpt_tos,
                "headers": dict(message.items()),
                "body": message.get_payload(decode=True).decode(),
            },
        )
        return "250 taken"


def login(server, session, envelope, mechanism, data):
    right = isinstance(data, LoginPassword) and data == LoginPassword(b"pst", SETTINGS["password"].encode())
    return AuthResult(success=right, auth_data=data if right else None)


class Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        stamp = self.headers["X-Pst-Timestamp"]
        wanted = (
            "sha256=" + hmac.new(SETTINGS["secret"].encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        )
        right = hmac.compare_digest(wanted, self.headers["X-Pst-Signature"]) and abs(time.time() - int(stamp)) < 60
        if self.path.startswith("/elsewhere"):
            self.send_response(307)
            self.send_header("Location", "/events")
        else:
            self.send_response(204 if right else 403)
            keep("hook", {"right": right, **json.loads(body)})
        self.end_headers()

    def log_message(self, *_args):
        pass


mail = Controller(
    Mailbox(),
    hostname="0.0.0.0",
    port=587,
    tls_context=context(),
    require_starttls=True,
    auth_required=True,
    authenticator=login,
)
web = ThreadingHTTPServer(("0.0.0.0", 8443), Hook)
web.socket = context().wrap_socket(web.socket, server_side=True)
if "mail" in sys.argv:
    mail.start()
web.serve_forever()
