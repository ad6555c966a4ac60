"""Runs, the tables of identifiers, and messages that were made here."""

from typing import Any

import pytest

from broker.core.hooks import Decision
from broker.core.run import Run
from broker.core.tables import COUNT, HIGH, LOW, PACKET_ID, PUBACKS, PUBCOMPS, PUBRECS, PUBRELS, consecutive
from broker.mqtt.packets import (
    Publish,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from tests.harness import PUBACK, V5, V311, Harness

ALLOW, DENY = Decision.ALLOW, Decision.DENY


def test_tables() -> None:
    """The tables hold every packet identifier, and acknowledgements of the right kind."""
    for packet_id in (1, 2, 255, 256, 257, 65_534, 65_535):
        both = packet_id.to_bytes(2, "big")
        assert PACKET_ID[packet_id - 1] == both == bytes((HIGH[packet_id - 1], LOW[packet_id - 1]))
        for table, first in ((PUBACKS, 0x40), (PUBRECS, 0x50), (PUBRELS, 0x62), (PUBCOMPS, 0x70)):
            assert table[(packet_id - 1) * 4 : packet_id * 4] == bytes((first, 2)) + both
    assert len(PUBACKS) == 4 * COUNT == 4 * 65_535


@pytest.mark.parametrize("limit", range(1, 12))
@pytest.mark.parametrize("matching", range(12))
def test_consecutive(limit: int, matching: int) -> None:
    """The number of packets that continue the table is found exactly, at any position."""
    data = b"xyz" + PUBACKS[40 : 40 + matching * 4] + b"\x00" * 60

    assert consecutive(data, 3, PUBACKS, 10, limit) == min(limit, matching)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
def test_will_in_bytes(harness: Harness, qos: int, retain: bool) -> None:
    """The bytes of a will as a 3.1.1 subscriber gets them, the first time and retained."""
    client = harness.connect("s")
    client.subscribe("w", 2)
    harness.connect("a", will=Will(topic=b"w", payload=b"bye", qos=qos, retain=retain)).lose()
    packet_id = b"\x00\x01" if qos else b""
    length = bytes((6 + len(packet_id),))

    assert client.received_bytes() == bytes((0x30 | qos << 1,)) + length + b"\x00\x01w" + packet_id + b"bye"
    late = harness.connect("l")
    late.send(Subscribe(packet_id=1, requests=[SubscriptionRequest(b"w", 2)]).encode(V311))
    expected = bytes((0x31 | qos << 1,)) + length + b"\x00\x01w" + packet_id + b"bye" if retain else b""
    assert late.received_bytes() == b"\x90\x03\x00\x01\x02" + expected


def test_message_that_came_from_no_client() -> None:
    """The defaults of a message made here."""
    run = Run.message(b"t", b"x")

    assert (run.qos, run.retain, run.properties, run.wall, run.publisher, run.id_at) == (0, False, b"", 0.0, "", 0)
    assert (run.payload(0), run.count, run.verbatim, run.expires_at()) == (b"x", 1, True, None)
    assert not Run.message(b"t", b"x", expiry=1).verbatim
    assert not Run.message(b"t", b"x", properties=b"\x01\x00").verbatim
    assert Run.message(b"t", b"x", wall=5, expiry=7).expires_at() == 12


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
def test_messages_made_here_are_packets(qos: int, retain: bool) -> None:
    """A message that came from no client has the bytes of one that did."""
    run = Run.message(b"t", b"x" * 200, qos=qos, retain=retain)
    packet = Publish(topic=b"t", payload=b"x" * 200, qos=qos, retain=retain)

    assert run.data == packet.encode(V311)
    assert run.id_at == (6 if qos else 0)


def test_part_of_a_run_is_like_the_run() -> None:
    """A part has everything of its run but the other messages; the whole is the run itself."""
    data = b"".join(Publish(topic=b"t", payload=b"%d" % i, qos=1, packet_id=i + 1).encode(V5) for i in range(5))
    fields: dict[str, Any] = {"v5": True, "id_at": 5, "properties": b"\x01\x01", "expiry": 7, "wall": 3.0}
    run = Run(b"t", 1, True, data, len(data) // 5, 8, publisher="p", verbatim=False, **fields)
    part = run.part(1, 4)

    assert run.part(0, 5) is run
    assert (part.count, [part.payload(i) for i in range(3)]) == (3, [b"1", b"2", b"3"])
    assert part.data == data[len(data) // 5 : 4 * len(data) // 5]
    for name in ("topic", "qos", "retain", "size", "payload_at", "publisher", "verbatim", *fields):
        assert getattr(part, name) == getattr(run, name)
    assert run.part(0, 4).count == 4
    assert run.part(1, 5).count == 4


def test_runs_are_sent_again_in_pieces(harness: Harness) -> None:
    """A run in flight goes again as the smaller window of a new connection allows, each message once, in order."""
    client = harness.durable("a", V5)
    client.subscribe("t", 2)
    publisher = harness.connect("p")
    packets = [Publish(topic=b"t", payload=b"%d" % i, qos=1, packet_id=i + 1, retain=False) for i in range(9)]
    publisher.send(*[packet.encode(V311) for packet in packets])
    first = client.messages()
    client.lose()
    client = harness.durable("a", V5, session_present=True, properties={"receive_maximum": 4})
    seen = []
    while messages := client.messages():
        assert len(messages) <= 4
        seen += messages
        for message in messages:
            client.ack(PUBACK, message.packet_id)

    assert [(m.packet_id, m.payload, m.dup, m.retain) for m in seen] == [
        (m.packet_id, m.payload, True, False) for m in first
    ]
    session = harness.router.sessions["a"]
    assert (session.inflight_count(), session.queued_count, session.queued_bytes) == (0, 0, 0)
