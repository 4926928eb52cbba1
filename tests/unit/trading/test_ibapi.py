"""The messages of the IB API that the gate judges and the recovery sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pst_trading import ibapi

from tests.gateway_simulator import protocol


@pytest.mark.parametrize(
    ("offer", "capped"),
    [
        (b"v100..176", b"v145..176"),
        (b"v157..178", b"v157..178"),
        (b"v100..226", b"v145..178"),
        (b"v157..200 +PACEAPI", b"v157..178 +PACEAPI"),
    ],
)
def test_the_offer_is_narrowed_to_what_the_gate_can_read(offer, capped):
    assert ibapi.capped_offer(offer) == capped


@pytest.mark.parametrize("offer", [b"v201..226", b"v50..100", b"", b"v1..", b"100..176", b"v100..99999"])
def test_an_offer_that_the_gate_cannot_read_is_refused(offer):
    with pytest.raises(ibapi.ProtocolError, match="wanted"):
        ibapi.capped_offer(offer)


@pytest.mark.parametrize("word", [b"03", b"+3", b" 3", b"3 ", b"3.0", b"-3", b"", b"\xb2", b"203", b"3x", b"1e0"])
def test_a_message_id_has_one_spelling(word):
    with pytest.raises(ibapi.ProtocolError):
        ibapi.order_message(word + b"\0" + b"7\0")


@given(st.binary(max_size=64))
def test_whatever_a_client_sends_is_an_order_or_not_or_a_protocol_error(body):
    try:
        seen = ibapi.order_message(body)
    except ibapi.ProtocolError:
        return
    first = body.split(b"\0")[0]
    assert (seen is not None) == (int(first) in {3, 4, 21, 58})


def body(*fields):
    return ibapi.frame(*fields)[4:]


def test_order_messages_are_known_with_their_ids():
    contract = ("0", "IBM", "STK", "", "0.0", "", "", "SMART", "", "USD", "", "", "", "")
    order = ("BUY", 1, "MKT", "", "", "DAY", "", "", "", 0, "pst:7:12")
    assert ibapi.order_message(body(3, 41, *contract, *order)) == ibapi.OrderMessage("placeOrder", 41, "pst:7:12")
    assert ibapi.order_message(body(4, 1, 42, "")) == ibapi.OrderMessage("cancelOrder", 42, "")
    assert ibapi.order_message(body(21, 2, 43)) == ibapi.OrderMessage("exerciseOptions", 43, "")
    assert ibapi.order_message(body(58, 1)) == ibapi.OrderMessage("reqGlobalCancel", ibapi.NO_REQUEST, "")
    assert ibapi.order_message(body(3)) == ibapi.OrderMessage("placeOrder", ibapi.NO_REQUEST, "")
    assert ibapi.order_message(body(61, 1)) is None


def test_an_error_has_the_fields_of_its_version():
    assert ibapi.fields_of(ibapi.error(176, 7, ibapi.Code.READ_ONLY, "no")[4:]) == ["4", "2", "7", "321", "no", ""]
    assert ibapi.fields_of(ibapi.error(160, 7, ibapi.Code.READ_ONLY, "no")[4:]) == ["4", "2", "7", "321", "no"]


def test_a_frame_is_bounded():
    assert ibapi.length_of(b"\0\x10\0\0") == ibapi.MAX_FRAME
    with pytest.raises(ibapi.ProtocolError, match="1048577 bytes; wanted: at most 1048576"):
        ibapi.length_of(b"\0\x10\0\x01")


def test_the_simulator_speaks_the_same():
    """The two were written apart: the one from what clients send, the other from what the recovery reads."""
    assert ibapi.frame(71, 2, 5, "") == protocol.encode((71, 2, 5, "")) == ibapi.start_api(5)
    assert {int(kind) for kind in ibapi.Request} - {21, 58} <= {int(kind) for kind in protocol.Request}
    assert {kind.name: kind.value for kind in ibapi.Reply}.items() <= {
        kind.name: kind.value for kind in protocol.Reply
    }.items()
