"""Orders as a stack handler would, and tells what became of them: ``trader.py VERB ADDRESS CLIENT_ID``.

``order`` sends one; ``until-cut`` then waits for the gate to hang up; ``until-refused`` sends one after the other. Each
line is a verdict, with the seconds of a clock that all hosts of the scenario share: they are containers.
"""

import sys
import time

from gateway_simulator.client import Client
from gateway_simulator.protocol import Reply, Request

READ_ONLY = "321"


def verdict(client: Client, order_id: int) -> str:
    """Send an order that nobody fills, and say whether it reached the gateway."""
    client.place(order_id, "IBM", 1, "LMT", "1.0", reference="pst:test")
    for message in client.until(Reply.ORDER_STATUS, failed_id=order_id):
        if message[0] == str(Reply.ERROR.value) and message[2] == str(order_id):
            return f"refused {message[4]}" if message[3] == READ_ONLY else f"error {message[3]} {message[4]}"
    return "passed"


def main(verb: str, address: str, client_id: str) -> None:
    """Run one verb."""
    host, _, port = address.rpartition(":")
    with Client(host, int(port), int(client_id), timeout=30) as client:
        order_id = client.next_order_id()

        def say(text: str) -> None:
            sys.stdout.write(f"{time.monotonic():.1f} {text}\n")
            sys.stdout.flush()

        said = verdict(client, order_id)
        say(said)
        if verb == "until-refused":
            while said == "passed":
                time.sleep(0.3)
                order_id += 1
                said = verdict(client, order_id)
            say(said)
        if verb == "until-cut":
            try:
                while True:
                    client.receive()
            except (EOFError, ConnectionError):
                say("cut")
                return
        client.send(Request.CURRENT_TIME, 1)
        list(client.until(Reply.CURRENT_TIME))
        say("alive")


main(*sys.argv[1:])
