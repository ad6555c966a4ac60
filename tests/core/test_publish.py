"""PUBLISH: routing, QoS in both directions, acknowledgements, order."""

import pytest

from broker.core.limits import ConnectionLimits
from broker.mqtt.packets import Ack, Disconnect, PacketType, Publish, Version
from broker.mqtt.reason_codes import ReasonCode
from tests.harness import PUBACK, PUBCOMP, PUBREC, PUBREL, V5, V311, Harness

S = pytest.mark.statement


@S("3.1.1:MQTT-3.8.4-6", "5:MQTT-3.8.4-8", "3.1.1:MQTT-4.3.1-1", "5:MQTT-4.3.1-1", "3.1.1:MQTT-3.3.5-1")
@pytest.mark.parametrize("subscriber_version", [V311, V5])
@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_delivery_is_at_the_lower_qos(
    harness: Harness, version: Version, subscriber_version: Version, published: int, granted: int
) -> None:
    """A message goes out at the lower of its own QoS and the subscription's, across versions."""
    subscriber = harness.connect("s", subscriber_version)
    subscriber.subscribe("a/b", granted)
    publisher = harness.connect("p", version)
    publisher.publish("a/b", b"hello", published)

    (message,) = subscriber.messages()

    assert message.qos == min(published, granted)
    assert (message.topic, message.payload, message.dup, message.retain) == (b"a/b", b"hello", False, False)
    assert bool(message.packet_id) == bool(message.qos)


@S(
    "3.1.1:MQTT-4.3.2-2",
    "5:MQTT-4.3.2-4",
    "3.1.1:MQTT-3.3.4-1",
    "5:MQTT-3.3.4-1",
    "3.1.1:MQTT-2.3.1-6",
    "5:MQTT-2.2.1-5",
)
def test_qos1_is_acknowledged(harness: Harness, version: Version) -> None:
    """PUBACK has the identifier and four bytes, subscribers or not."""
    client = harness.connect("p", version)
    client.publish("t", b"x", 1, packet_id=0x1234)

    assert client.received_bytes() == b"\x40\x02\x12\x34"


@S("3.1.1:MQTT-4.3.3-2", "5:MQTT-4.3.3-8", "5:MQTT-4.3.3-9", "5:MQTT-4.3.3-11", "5:MQTT-4.3.3-12", "5:MQTT-4.3.3-10")
def test_qos2_is_delivered_once(harness: Harness, version: Version) -> None:
    """A PUBLISH repeated before PUBREL is acknowledged, not delivered again; after PUBCOMP the identifier is new."""
    subscriber = harness.connect("s")
    subscriber.subscribe("t", 2)
    client = harness.connect("p", version)
    client.publish("t", b"1", 2, packet_id=5)
    client.publish("t", b"1", 2, packet_id=5, dup=True)
    assert client.received_bytes() == b"\x50\x02\x00\x05" * 2
    client.ack(PUBREL, 5)
    assert client.received_bytes() == b"\x70\x02\x00\x05"
    client.publish("t", b"2", 2, packet_id=5)

    assert subscriber.payloads() == [b"1", b"2"]


@S("5:MQTT-4.3.3-1", "5:MQTT-4.3.3-2", "5:MQTT-4.3.3-4", "3.1.1:MQTT-4.3.3-1", "5:MQTT-4.3.3-6", "5:MQTT-4.3.3-5")
@S("5:MQTT-4.3.3-3", "5:MQTT-2.2.1-4", "5:MQTT-2.2.1-4", "3.1.1:MQTT-2.3.1-4")
def test_qos2_outgoing_exchange(harness: Harness, version: Version) -> None:
    """PUBREC gets PUBREL, and only PUBCOMP gives the place in the window back."""
    limits = ConnectionLimits(max_inflight_count=1)
    subscriber = harness.connect("s", version, limits=limits)
    subscriber.subscribe("t", 2)
    publisher = harness.connect("p")
    publisher.publish("t", b"1", 2)
    publisher.publish("t", b"2", 2)
    (first,) = subscriber.messages()
    subscriber.ack(PUBREC, first.packet_id)
    (release,) = subscriber.received()
    assert release == Ack(packet_id=first.packet_id)
    subscriber.ack(PUBREC, first.packet_id)
    (release,) = subscriber.received()
    assert release == Ack(packet_id=first.packet_id)
    subscriber.ack(PUBCOMP, first.packet_id)

    (second,) = subscriber.messages()

    assert second.payload == b"2"
    assert second.packet_id != first.packet_id


@S("5:MQTT-4.3.3-7")
def test_pubrec_error_ends_the_exchange(harness: Harness) -> None:
    """A PUBREC of 0x80 or more is the last word about its message."""
    limits = ConnectionLimits(max_inflight_count=1)
    subscriber = harness.connect("s", V5, limits=limits)
    subscriber.subscribe("t", 2)
    publisher = harness.connect("p")
    publisher.publish("t", b"1", 2)
    publisher.publish("t", b"2", 2)
    (first,) = subscriber.messages()
    subscriber.ack(PUBREC, first.packet_id, 0x97)

    (second,) = subscriber.messages()

    assert second.payload == b"2"


@S("5:MQTT-4.3.2-2", "3.1.1:MQTT-4.3.2-1", "5:MQTT-4.3.2-1", "5:MQTT-4.3.2-3")
def test_puback_error_ends_the_exchange(harness: Harness) -> None:
    """A PUBACK of 0x80 or more is the last word about its message too."""
    subscriber = harness.connect("s", V5, limits=ConnectionLimits(max_inflight_count=1))
    subscriber.subscribe("t", 1)
    publisher = harness.connect("p")
    publisher.publish("t", b"1", 1)
    publisher.publish("t", b"2", 1)
    (first,) = subscriber.messages()
    subscriber.ack(PUBACK, first.packet_id, 0x97)

    assert subscriber.payloads() == [b"2"]


def test_unknown_identifiers_are_answered(harness: Harness, version: Version) -> None:
    """PUBREC and PUBREL of an unknown identifier get an answer that lets the client go on; MQTT 5 says 0x92."""
    client = harness.connect("c", version)
    client.ack(PUBREC, 9)
    client.ack(PUBREL, 9)
    client.ack(PUBACK, 9)
    client.ack(PUBCOMP, 9)
    reason = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND if version is V5 else 0

    assert client.received() == [Ack(packet_id=9, reason=reason)] * 2
    assert not client.is_closed


@S(
    "3.1.1:MQTT-4.6.0-5",
    "5:MQTT-4.6.0-5",
    "3.1.1:MQTT-4.6.0-6",
    "5:MQTT-4.6.0-6",
    "3.1.1:MQTT-4.6.0-2",
    "5:MQTT-4.6.0-2",
)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_order_is_kept_through_a_full_window(harness: Harness, qos: int) -> None:
    """Messages of a topic come in the order they were published, whether sent at once or queued."""
    subscriber = harness.connect("s", limits=ConnectionLimits(max_inflight_count=7))
    subscriber.subscribe("t", qos)
    publisher = harness.connect("p")
    packets = [Publish(topic=b"t", payload=b"%03d" % i, qos=qos, packet_id=i + 1).encode(V311) for i in range(100)]
    publisher.send(*packets[:50])
    publisher.send(*packets[50:])
    seen = []
    while True:
        messages = subscriber.messages()
        if not messages:
            break
        seen += [message.payload for message in messages]
        for message in messages if qos == 1 else []:
            subscriber.ack(PUBACK, message.packet_id)
        if qos == 2:
            for message in messages:
                subscriber.ack(PUBREC, message.packet_id)
            assert len(subscriber.received()) == len(messages)
            for message in messages:
                subscriber.ack(PUBCOMP, message.packet_id)

    assert seen == [b"%03d" % i for i in range(100)]


@S("3.1.1:MQTT-4.6.0-3", "5:MQTT-4.6.0-3", "3.1.1:MQTT-4.6.0-4", "5:MQTT-4.6.0-4")
def test_acknowledgements_come_in_the_order_of_publishing(harness: Harness, version: Version) -> None:
    """PUBACKs and PUBRECs follow the order of the PUBLISH packets, odd identifiers or not."""
    client = harness.connect("p", version)
    identifiers = [7, 8, 9, 3, 65_535, 1]
    client.send(*[Publish(topic=b"t", qos=1, packet_id=i).encode(version) for i in identifiers])
    client.send(*[Publish(topic=b"t", qos=2, packet_id=i).encode(version) for i in identifiers])
    client.send(*[Ack(packet_id=i).encode(PUBREL, version) for i in identifiers])
    packets = client.received()

    assert packets == [Ack(packet_id=i) for i in identifiers] * 3


@S(
    "3.1.1:MQTT-3.3.1-2",
    "5:MQTT-3.3.1-2",
    "3.1.1:MQTT-3.3.1-4",
    "5:MQTT-3.3.1-4",
    "3.1.1:MQTT-2.3.1-1",
    "5:MQTT-2.2.1-4",
)
@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"\x36\x05\x00\x01t\x00\x01", 0x81),  # QoS 3
        (b"\x38\x03\x00\x01t", 0x81),  # DUP at QoS 0
        (b"\x32\x05\x00\x01t\x00\x00", 0x82),  # packet identifier 0
        (b"\x34\x05\x00\x01t\x00\x00", 0x82),
        (b"\x30\x03\x00\x09t", 0x81),  # topic longer than the packet
        (b"\x30\x01\x00", 0x81),
        (b"\x32\x04\x00\x01t\x00", 0x81),
    ],
)
def test_bad_publish_closes(harness: Harness, version: Version, packet: bytes, reason: int) -> None:
    """A PUBLISH that cannot be right ends the connection, MQTT 5 with the reason."""
    client = harness.connect("p", version)
    if version is V5 and reason == 0x82:
        packet = bytes((packet[0], packet[1] + 1)) + packet[2:] + b"\x00"
    client.send(packet)

    assert client.is_closed
    if version is V5:
        (answer,) = client.received()
        assert isinstance(answer, Disconnect)
        assert answer.reason == reason


@S(
    "3.1.1:MQTT-3.3.2-2",
    "5:MQTT-3.3.2-2",
    "3.1.1:MQTT-3.3.2-1",
    "5:MQTT-3.3.2-1",
    "3.1.1:MQTT-4.7.3-1",
    "5:MQTT-4.7.3-1",
)
@S("3.1.1:MQTT-4.7.3-2", "5:MQTT-4.7.3-2", "3.1.1:MQTT-4.7.1-1", "5:MQTT-4.7.0-1")
@pytest.mark.parametrize("topic", [b"a/+", b"#", b"a\x00b", b"\xff", b""])
def test_invalid_topic_closes(harness: Harness, version: Version, topic: bytes) -> None:
    """A topic name has no wildcard, no U+0000, valid UTF-8 and at least one character."""
    client = harness.connect("p", version)
    client.send(Publish(topic=topic).encode(version))

    assert client.is_closed


def test_receive_maximum_exceeded(harness: Harness, version: Version) -> None:
    """QoS 2 messages beyond max_inflight_count that are not released end the connection, MQTT 5 with 0x93."""
    limits = ConnectionLimits(max_inflight_count=3)
    client = harness.connect("p", version, limits=limits)
    for i in range(1, 4):
        client.publish("t", b"", 2, packet_id=i)
    assert not client.is_closed
    client.received()
    client.publish("t", b"", 2, packet_id=4)

    assert client.is_closed
    if version is V5:
        (answer,) = client.received()
        assert isinstance(answer, Disconnect)
        assert answer.reason is ReasonCode.RECEIVE_MAXIMUM_EXCEEDED


def test_pipelined_qos1_is_no_excess(harness: Harness, version: Version) -> None:
    """QoS 1 messages are acknowledged as they are read, so more than the Receive Maximum may come at once."""
    client = harness.connect("p", version, limits=ConnectionLimits(max_inflight_count=3))
    client.send(*[Publish(topic=b"t", qos=1, packet_id=i).encode(version) for i in range(1, 601)])

    assert len(client.received()) == 600


@S("5:MQTT-3.3.4-9", "5:MQTT-3.3.4-10", "5:MQTT-4.9.0-1", "5:MQTT-4.9.0-2", "5:MQTT-4.9.0-3")
@pytest.mark.parametrize("qos", [1, 2])
def test_receive_maximum_of_the_client_holds(harness: Harness, qos: int) -> None:
    """No more QoS 1 and 2 messages are unacknowledged than the client allows; QoS 0 and pings go on."""
    subscriber = harness.connect("s", V5, properties={"receive_maximum": 2})
    subscriber.subscribe("t", qos)
    subscriber.subscribe("zero", 0)
    publisher = harness.connect("p")
    for i in range(5):
        publisher.publish("t", b"%d" % i, qos)
    publisher.publish("zero", b"z")
    subscriber.send(b"\xc0\x00")

    packets = subscriber.received()

    assert [p.payload for p in packets if isinstance(p, Publish)] == [b"0", b"1", b"z"]
    assert packets[-1] is PacketType.PINGRESP


def test_max_inflight_size_holds(harness: Harness) -> None:
    """Unacknowledged bytes stay within the bound, but one larger message goes when nothing is in flight."""
    subscriber = harness.connect("s", limits=ConnectionLimits(max_inflight_bytes=1000))
    subscriber.subscribe("t", 1)
    publisher = harness.connect("p")
    for size in (400, 400, 400, 5000):
        publisher.publish("t", b"x" * size, 1)
    first = subscriber.messages()
    assert [len(m.payload) for m in first] == [400, 400]
    subscriber.ack(PUBACK, first[0].packet_id)
    (third,) = subscriber.messages()
    assert len(third.payload) == 400
    subscriber.ack(PUBACK, first[1].packet_id)
    assert subscriber.messages() == []
    subscriber.ack(PUBACK, third.packet_id)

    (large,) = subscriber.messages()

    assert len(large.payload) == 5000


@S("5:MQTT-3.1.2-25", "5:MQTT-3.1.2-24")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_maximum_packet_size_of_the_client_holds(harness: Harness, qos: int) -> None:
    """A message whose packet would be larger is left out for this client, as if delivered."""
    subscriber = harness.connect("s", V5, properties={"maximum_packet_size": 100})
    subscriber.subscribe("t", qos)
    other = harness.connect("o", V5)
    other.subscribe("t", qos)
    publisher = harness.connect("p")
    fits = 100 - 2 - 3 - 1 - (2 if qos else 0)
    publisher.publish("t", b"x" * fits, qos)
    publisher.publish("t", b"x" * (fits + 1), qos)
    publisher.publish("t", b"end", qos)

    assert [len(p) for p in subscriber.payloads()] == [fits, 3]
    assert [len(p) for p in other.payloads()] == [fits, fits + 1, 3]


def test_max_payload_size_is_inclusive(harness: Harness, version: Version) -> None:
    """Remaining Length up to max_payload_size is served; one more is refused before the rest of it has come."""
    client = harness.connect("p", version, limits=ConnectionLimits(max_remaining_length=100))
    overhead = 3 + (version is V5)
    client.publish("t", b"x" * (100 - overhead))
    assert not client.is_closed
    client.send(Publish(topic=b"t", payload=b"x" * (101 - overhead)).encode(version)[:5])

    assert client.is_closed
    if version is V5:
        (answer,) = client.received()
        assert isinstance(answer, Disconnect)
        assert answer.reason is ReasonCode.PACKET_TOO_LARGE


@S("3.1.1:MQTT-4.7.2-1", "5:MQTT-4.7.2-1")
@pytest.mark.parametrize("topic_filter", ["#", "+/x", "+/+", "/#"])
def test_leading_wildcards_do_not_match_dollar_topics(harness: Harness, topic_filter: str) -> None:
    """$-topics are seen by those who ask for them by name."""
    wide = harness.connect("w")
    wide.subscribe(topic_filter)
    named = harness.connect("n")
    named.subscribe("$own/#")
    harness.connect("p").publish("$own/x", b"1")

    assert wide.messages() == []
    assert named.payloads() == [b"1"]


@S("3.1.1:MQTT-4.7.3-4", "5:MQTT-4.7.3-4")
def test_topics_are_compared_byte_by_byte(harness: Harness) -> None:
    """Case, spaces and leading slashes count; nothing is normalized."""
    subscriber = harness.connect("s")
    for topic_filter in ("A/b", "/A/b", "A/b "):
        subscriber.subscribe(topic_filter)
    publisher = harness.connect("p")
    for topic in ("A/b", "a/b", "/A/b", "A/b ", "A/B"):
        publisher.publish(topic, topic.encode())

    assert subscriber.payloads() == [b"A/b", b"/A/b", b"A/b "]


def test_a_message_longer_than_a_byte_of_length(harness: Harness, version: Version) -> None:
    """Remaining lengths of one to four bytes are all understood, whole and byte by byte."""
    limits = ConnectionLimits(max_remaining_length=3_000_000)
    subscriber = harness.connect("s", V5)
    subscriber.subscribe("t")
    client = harness.connect("p", version, limits=limits)
    for size in (10, 130, 20_000, 2_100_000):
        client.publish("t", b"x" * size)
    packet = Publish(topic=b"t", payload=b"y" * 300).encode(version)
    for byte in packet:
        client.send(bytes((byte,)))

    assert [len(p) for p in subscriber.payloads()] == [10, 130, 20_000, 2_100_000, 300]


def test_identifiers_skip_those_in_use(harness: Harness) -> None:
    """Identifiers go round without ever meeting one that is still unacknowledged."""
    subscriber = harness.connect("s", limits=ConnectionLimits(max_inflight_count=65_535))
    subscriber.subscribe("t", 1)
    publisher = harness.connect("p")
    publisher.publish("t", b"stuck", 1)
    (stuck,) = subscriber.messages()
    seen = []
    batch = [Publish(topic=b"t", payload=b"x", qos=1, packet_id=i + 1).encode(V311) for i in range(1000)]
    for _ in range(70):
        publisher.send(*batch)
        publisher.received_bytes()
        messages = subscriber.messages()
        seen += [message.packet_id for message in messages]
        subscriber.send(*[Ack(packet_id=m.packet_id).encode(PUBACK, V311) for m in messages])

    assert len(seen) == 70_000
    assert stuck.packet_id not in seen
    assert set(range(1, 65_536)) - set(seen) == {stuck.packet_id}


@S("5:MQTT-3.6.1-1", "3.1.1:MQTT-3.6.1-1")
@pytest.mark.parametrize("count", [1, 3])
def test_pubrel_in_bytes(harness: Harness, version: Version, count: int) -> None:
    """PUBREL of one message and of a run is 0x62, two bytes of length, and the identifier."""
    client = harness.connect("s", version)
    client.subscribe("t", 2)
    harness.connect("p").send(*[Publish(topic=b"t", qos=2, packet_id=i + 1).encode(V311) for i in range(count)])
    client.messages()
    client.send(*[Ack(packet_id=i + 1).encode(PUBREC, version) for i in range(count)])

    assert client.received_bytes() == b"".join(bytes((0x62, 2, 0, i + 1)) for i in range(count))


@pytest.mark.parametrize("kind", [PUBACK, PUBREC, PUBREL, PUBCOMP])
@pytest.mark.parametrize("has_sent", [False, True])
def test_identifier_0_is_never_acknowledged(
    harness: Harness, version: Version, kind: PacketType, has_sent: bool
) -> None:
    """An acknowledgement of identifier 0 ends the connection, whether anything is in flight or not."""
    client = harness.connect("s", version)
    if has_sent:
        client.subscribe("t", 2)
        for qos in (1, 2):
            harness.connect("p").publish("t", b"x", qos)
            client.publish("u", b"x", 2)
    client.send(bytes((kind << 4 | (2 if kind is PUBREL else 0), 2, 0, 0)))

    assert client.is_closed
