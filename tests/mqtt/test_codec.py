"""The codec: every packet there and back, every prefix of it refused, any bytes accepted or refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.mqtt import wire
from broker.mqtt.errors import MalformedPacket, MqttError, ProtocolViolation
from broker.mqtt.framing import PacketStream, decode_server_packet
from broker.mqtt.packets import (
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    PacketType,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Version,
    Will,
    frame,
)
from broker.mqtt.properties import PROPERTIES, Context, decode_properties, encode_properties
from broker.mqtt.reason_codes import CONNACK_V3, ReasonCode, connack_return_code
from broker.mqtt.topics import filter_error, matches, parse_shared, topic_error

V5 = Version.V5


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (16_383, b"\xff\x7f"), (16_384, b"\x80\x80\x01"),
     (2_097_151, b"\xff\xff\x7f"), (2_097_152, b"\x80\x80\x80\x01"), (268_435_455, b"\xff\xff\xff\x7f")],
)  # fmt: skip
def test_variable_byte_integers(value: int, encoded: bytes) -> None:
    """The table of the specification [5: table 1-1]."""
    assert wire.encode_varint(value) == encoded
    assert wire.decode_varint(encoded, 0, len(encoded)) == (value, len(encoded))
    assert wire.varint_size(value) == len(encoded)
    with pytest.raises(MalformedPacket):
        wire.decode_varint(encoded, 0, len(encoded) - 1)


@pytest.mark.parametrize("bad", [b"\x80\x00", b"\xff\xff\xff\xff\x01", b"\x80\x80\x80\x80"])
def test_bad_variable_byte_integers(bad: bytes) -> None:
    """Five bytes, and a byte more than needed, are malformed."""
    with pytest.raises(MalformedPacket):
        wire.decode_varint(bad, 0, len(bad))


def test_fields_do_not_grow_beyond_their_length() -> None:
    """A string of 65,535 bytes fits, one more does not."""
    assert len(wire.encode_string("x" * 65_535)) == 65_537
    with pytest.raises(ValueError, match="65536 bytes"):
        wire.encode_string("x" * 65_536)


SAMPLES: dict[str, Any] = {
    "byte": 1,
    "two byte integer": 1234,
    "four byte integer": 123_456,
    "variable byte integer": 300,
    "string": "é",
    "binary data": b"\x00\xff",
    "string pair": ("n", "v"),
}


def sample(name: str) -> Any:
    """Return a value for a property."""
    row = PROPERTIES[name]
    value = SAMPLES[row.kind.value]
    return [value, value] if row.repeatable else value


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("context", Context)
def test_properties_stand_where_they_belong(name: str, context: Context) -> None:
    """Every property is decoded where it may stand, and malformed everywhere else; once, unless it may repeat."""
    row = PROPERTIES[name]
    value = sample(name)
    if row.repeatable and context not in row.repeatable:
        value = value[:1]
    encoded = encode_properties({name: value})
    if context not in row.contexts:
        with pytest.raises(MalformedPacket, match=name):
            decode_properties(encoded, 0, len(encoded), context)
        return
    assert decode_properties(encoded, 0, len(encoded), context) == ({name: value}, len(encoded))
    for end in range(len(encoded)):
        with pytest.raises(MqttError):
            decode_properties(encoded, 0, end, context)
    body = encoded[1:]
    twice = wire.encode_varint(2 * len(body)) + body * 2
    if row.repeatable and context in row.repeatable:
        assert len(decode_properties(twice, 0, len(twice), context)[0][name]) == 4
    else:
        with pytest.raises(ProtocolViolation, match="twice"):
            decode_properties(twice, 0, len(twice), context)


@pytest.mark.parametrize(
    ("name", "value", "context"),
    [
        ("payload_format_indicator", 2, Context.PUBLISH),
        ("request_problem_information", 2, Context.CONNECT),
        ("request_response_information", 2, Context.CONNECT),
        ("receive_maximum", 0, Context.CONNECT),
        ("maximum_packet_size", 0, Context.CONNECT),
        ("subscription_identifier", [0], Context.SUBSCRIBE),
        ("maximum_qos", 2, Context.CONNACK),
    ],
)
def test_values_out_of_range(name: str, value: Any, context: Context) -> None:
    """Values that the specification excludes are protocol errors; the nearest allowed one is taken."""
    encoded = encode_properties({name: value})
    with pytest.raises(ProtocolViolation, match=name):
        decode_properties(encoded, 0, len(encoded), context)
    inside = [1] if isinstance(value, list) else 1
    encoded = encode_properties({name: inside})
    assert decode_properties(encoded, 0, len(encoded), context)[0] == {name: inside}


def test_unknown_property() -> None:
    """A property that does not exist is malformed."""
    with pytest.raises(MalformedPacket, match="0x7F"):
        decode_properties(b"\x02\x7f\x00", 0, 3, Context.CONNECT)


properties_of = {
    context: {name: sample(name) for name, row in PROPERTIES.items() if context in row.contexts} for context in Context
}
properties_of[Context.SUBSCRIBE]["subscription_identifier"] = [300]

ANY_VERSION = [
    Publish(topic=b"t", payload=b"x"),
    Publish(topic=b"t", payload=b"x", qos=2, dup=True, retain=True, packet_id=9),
    Subscribe(packet_id=1, requests=[SubscriptionRequest(b"a", 1), SubscriptionRequest(b"b/#", 2)]),
    Unsubscribe(packet_id=2, topic_filters=[b"a", b"b"]),
]
ONLY_5 = [
    Publish(topic=b"t", qos=1, packet_id=1, properties=properties_of[Context.PUBLISH]),
    Subscribe(packet_id=1, requests=[SubscriptionRequest(b"a", 0x2E)], properties=properties_of[Context.SUBSCRIBE]),
    Unsubscribe(packet_id=2, topic_filters=[b"a"], properties=properties_of[Context.UNSUBSCRIBE]),
]


@pytest.mark.parametrize(
    ("packet", "version"), [(p, v) for p in ANY_VERSION for v in Version] + [(p, V5) for p in ONLY_5], ids=str
)
def test_there_and_back(packet: Any, version: Version) -> None:
    """What is encoded is decoded to the same, and no prefix of it is."""
    data = packet.encode(version)
    ((first, body),) = PacketStream().feed(data)
    decode = (lambda b: type(packet).decode(first, b, 0, len(b), version)) if isinstance(packet, Publish) else (
        lambda b: type(packet).decode(b, 0, len(b), version)
    )  # fmt: skip
    assert decode(body) == packet
    shortest = len(body) - len(packet.payload) if isinstance(packet, Publish) else len(body)
    for end in range(shortest):
        if isinstance(packet, Subscribe | Unsubscribe) and end and _is_whole(decode, body[:end]):
            continue
        with pytest.raises(MqttError):
            decode(body[:end])


def _is_whole(decode: Any, body: bytes) -> bool:
    """Tell whether *body* happens to end behind a filter: then it is a shorter packet, not a broken one."""
    try:
        decode(body)
    except MqttError:
        return False
    return True


@pytest.mark.parametrize(
    "packet",
    [
        ConnAck(session_present=True, reason=0, properties=properties_of[Context.CONNACK]),
        SubAck(packet_id=1, reasons=(0, 1, 0x87), properties=properties_of[Context.SUBACK]),
        UnsubAck(packet_id=1, reasons=(0, 0x11), properties=properties_of[Context.UNSUBACK]),
        Disconnect(reason=ReasonCode.SERVER_BUSY, properties=properties_of[Context.DISCONNECT]),
        Auth(reason=ReasonCode.CONTINUE_AUTHENTICATION, properties=properties_of[Context.AUTH]),
    ],
    ids=lambda packet: type(packet).__name__,
)
def test_server_packets(packet: Any) -> None:
    """What a server sends is read back by its clients."""
    data = packet.encode() if isinstance(packet, Auth) else packet.encode(V5)
    ((first, body),) = PacketStream().feed(data)

    assert decode_server_packet(first, body, V5) == packet


@pytest.mark.parametrize("kind", [PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP])
def test_acknowledgements(kind: PacketType) -> None:
    """Success has four bytes in every version; a reason makes five, words more; 3.x has no room for either."""
    success = Ack(packet_id=0x1234)
    assert success.encode(kind, V5) == success.encode(kind, Version.V311)
    assert len(success.encode(kind, V5)) == 4
    refusal = Ack(packet_id=1, reason=0x92, properties=properties_of[Context.PUBACK])
    ((_, body),) = PacketStream().feed(refusal.encode(kind, V5))
    assert Ack.decode(body, 0, len(body), V5) == refusal
    assert Ack.decode(b"\x00\x01\x92", 0, 3, V5).reason == 0x92
    for bad, version in ((b"\x00\x01\x00", Version.V311), (b"\x00\x00", V5), (b"\x00", V5), (b"\x00\x01\x00\x00x", V5)):
        with pytest.raises(MqttError):
            Ack.decode(bad, 0, len(bad), version)


@pytest.mark.parametrize("version", Version)
def test_connect_there_and_back(version: Version) -> None:
    """CONNECT with everything in it."""
    v5 = version is V5
    packet = Connect(
        version=version,
        client_id="é",
        clean_start=False,
        keep_alive=77,
        user_name="user",
        password=b"secret!",
        will=Will(topic=b"w", payload=b"p", qos=2, retain=True, properties=properties_of[Context.WILL] if v5 else {}),
        properties=properties_of[Context.CONNECT] if v5 else {},
    )
    ((_, body),) = PacketStream().feed(packet.encode())

    assert Connect.decode(body, 0, len(body)) == packet
    assert "secret" not in repr(packet)
    for end in range(len(body)):
        # MQTT 3.1 lets the user name and password be missing at the end although flagged.
        if version is Version.V31 and end in (len(body) - 9, len(body) - 15):
            continue
        with pytest.raises(MqttError):
            Connect.decode(body, 0, end)


def test_authentication_data_needs_a_method() -> None:
    """Authentication data alone is a protocol error [5: section 3.1.2.11.10]."""
    body = PacketStream().feed(Connect(version=V5, properties={"authentication_data": b"x"}).encode())[0][1]

    with pytest.raises(ProtocolViolation):
        Connect.decode(body, 0, len(body))


@given(st.integers(0, 255), st.binary(max_size=40), st.sampled_from(Version))
def test_any_bytes_are_decoded_or_refused(first: int, body: bytes, version: Version) -> None:
    """A decoder raises MqttError or returns a packet, whatever it gets."""
    end = len(body)
    texts: list[str] = []
    for decode in (
        lambda: Publish.decode(first, body, 0, end, version),
        lambda: Connect.decode(body, 0, end),
        lambda: Ack.decode(body, 0, end, version),
        lambda: Subscribe.decode(body, 0, end, version),
        lambda: Unsubscribe.decode(body, 0, end, version),
        lambda: Disconnect.decode(body, 0, end, version),
        lambda: Auth.decode(body, 0, end, version),
    ):
        try:
            decode()
        except MqttError as error:
            texts.append(str(error))
    assert all("(0x" not in text and ", 0x" in text for text in texts)


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_stream_cuts_packets_however_bytes_come(bodies: list[bytes], data: st.DataObject) -> None:
    """The packets of a stream do not depend on how it is read."""
    stream = b"".join(frame(0x30, body) for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    reader = PacketStream()
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:stop])

    assert found == [(0x30, body) for body in bodies]


def test_stream_refuses_long_lengths() -> None:
    """A length of five bytes is malformed for clients too."""
    with pytest.raises(MalformedPacket):
        PacketStream().feed(b"\x30\x80\x80\x80\x80\x01")


@pytest.mark.parametrize("first", [0x10, 0x82, 0xA2, 0xC0])
def test_what_servers_do_not_send(first: int) -> None:
    """A client's packet is none of a server's."""
    with pytest.raises(MalformedPacket):
        decode_server_packet(first, b"", V5)


# --- topics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True), ("a/b", "a/c", False), ("a/b", "a", False), ("a", "a/b", False),
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True), ("#", "a", True), ("#", "/", True), ("#", "$SYS/a", False),
        ("+", "a", True), ("+", "/a", False), ("+/+", "/finance", True), ("/+", "/finance", True),
        ("+", "$SYS", False), ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/a", True), ("$SYS/+/x", "$SYS/a/x", True), ("sport/+", "sport", False),
        ("sport/+", "sport/", True), ("a/+/c", "a//c", True), ("a/#", "ab", False), ("a/$x/+", "a/$x/b", True),
        ("a/+", "a/$x", True),
    ],
)  # fmt: skip
def test_matching(topic_filter: str, topic: str, expected: bool) -> None:
    """The examples of the specification and their neighbours [5: section 4.7]."""
    assert matches(topic_filter.encode(), topic.encode()) is expected


@pytest.mark.parametrize("good", ["a", "/", "//", "+", "#", "a/#", "+/+/#", "$SYS/#", " ", "é", "a/+/b"])
def test_good_filters(good: str) -> None:
    """Nothing is wrong with these."""
    assert filter_error(good.encode()) is None


@pytest.mark.parametrize("bad", ["", "a#", "#/", "a/#/b", "+a", "a+/b", "\x00"])
def test_bad_filters(bad: str) -> None:
    """Each of these breaks a rule."""
    assert filter_error(bad.encode()) is not None


@pytest.mark.parametrize("bad", [b"", b"+", b"a/#", b"\x00", b"\xff", b"\xed\xa0\x80"])
def test_bad_topics(bad: bytes) -> None:
    """Each of these breaks a rule; a topic without any of that is fine."""
    assert topic_error(bad) is not None
    assert topic_error(b"a/\xc3\xa9/ ") is None


def test_shared_filters_are_parsed() -> None:
    """Share name and filter come apart; other filters are none."""
    assert parse_shared(b"$share/g/a/b") == (b"g", b"a/b")
    assert parse_shared(b"a/$share/g") is None
    assert parse_shared(b"$shared/g/a") is None


def test_return_codes_of_3x() -> None:
    """Reasons with a counterpart have its code, the others none."""
    assert set(CONNACK_V3.values()) == {0, 1, 2, 3, 4, 5}
    assert connack_return_code(ReasonCode.SERVER_BUSY) == 3
    assert connack_return_code(ReasonCode.MALFORMED_PACKET) is None
    assert ReasonCode.SESSION_TAKEN_OVER.text == "session taken over"
