"""CONNECT: what is accepted, what is refused, and how."""

import pytest

from broker.core.limits import ConnectionLimits, RouterLimits
from broker.mqtt.packets import PINGREQ, ConnAck, Connect, Disconnect, PacketType, Version, Will
from broker.mqtt.reason_codes import ReasonCode
from tests.harness import V5, V31, V311, Client, Harness

S = pytest.mark.statement


def refused(client: Client) -> ConnAck | None:
    """Return the CONNACK of a client that must have been refused, or None where it was just closed."""
    packets = client.received()
    assert client.is_closed
    if not packets:
        return None
    (connack,) = packets
    assert isinstance(connack, ConnAck)
    assert connack.reason
    assert not connack.session_present
    return connack


@S("3.1.1:MQTT-3.1.4-4", "5:MQTT-3.1.4-5", "3.1.1:MQTT-3.2.0-1", "5:MQTT-3.2.0-1", "5:MQTT-3.1.2-2")
def test_each_version_gets_its_connack(harness: Harness, version: Version) -> None:
    """CONNECT of every version is answered on one port, with CONNACK first."""
    harness.connect("a", version)

    assert harness.observer.events == [("connected", "a", False)]


@S("3.1.1:MQTT-3.1.2-2", "5:MQTT-3.1.2-2")
@pytest.mark.parametrize("level", [0, 2, 6, 255])
def test_unknown_level_is_refused_in_the_nearest_version(harness: Harness, level: int) -> None:
    """A level that is not spoken gets return code 1, or 0x84 where it is newer than 5."""
    client = harness.open(V5 if level > 5 else V311)
    packet = bytearray(Connect(version=V311, client_id="a").encode())
    packet[8] = level
    client.send(bytes(packet))

    connack = refused(client)

    assert connack is not None
    assert connack.reason == (0x84 if level > 5 else 1)


@S("3.1.1:MQTT-3.1.2-1", "5:MQTT-3.1.2-1")
def test_unknown_protocol_name_is_refused(harness: Harness) -> None:
    """Another protocol than MQTT is not served."""
    client = harness.open()
    client.send(Connect(client_id="a").encode().replace(b"MQTT", b"HTTP"))

    refused(client)

    assert harness.observer.events[0][:3] == ("refused", "", ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)


@S("3.1.1:MQTT-3.1.0-1", "5:MQTT-3.1.0-1")
def test_first_packet_must_be_connect(harness: Harness) -> None:
    """Anything before CONNECT closes the connection without an answer."""
    client = harness.open()
    client.send(PINGREQ)

    assert client.is_closed
    assert client.received() == []


@S("3.1.1:MQTT-3.1.0-2", "5:MQTT-3.1.0-2")
def test_second_connect_closes(harness: Harness, version: Version) -> None:
    """A second CONNECT is a protocol error."""
    client = harness.connect("a", version)
    client.send(Connect(version=version, client_id="a").encode())

    assert client.is_closed
    if version is V5:
        (packet,) = client.received()
        assert isinstance(packet, Disconnect)
        assert packet.reason is ReasonCode.PROTOCOL_ERROR


@S("3.1.1:MQTT-3.1.2-3", "5:MQTT-3.1.2-3")
def test_reserved_flag_closes(harness: Harness, version: Version) -> None:
    """The reserved bit of the connect flags must be 0."""
    client = harness.open(version)
    packet = bytearray(Connect(version=version, client_id="a").encode())
    packet[11 if version is V31 else 9] |= 1
    client.send(bytes(packet))

    connack = refused(client)

    assert (connack.reason if connack else None) == (0x81 if version is V5 else None)


@S("3.1.1:MQTT-3.1.2-11", "3.1.1:MQTT-3.1.2-13", "3.1.1:MQTT-3.1.2-14", "3.1.1:MQTT-3.1.2-15")
@S("5:MQTT-3.1.2-11", "5:MQTT-3.1.2-12", "5:MQTT-3.1.2-13")
@pytest.mark.parametrize("flags", [0x0A, 0x22, 0x1E, 0x12])
def test_will_flags_must_agree(harness: Harness, version: Version, flags: int) -> None:
    """Will QoS and will retain need a will, and QoS 3 is none."""
    client = harness.open(version)
    packet = bytearray(Connect(version=version, client_id="a").encode())
    packet[11 if version is V31 else 9] = flags
    client.send(bytes(packet))

    assert client.is_closed
    assert not harness.router.sessions


@S("3.1.1:MQTT-3.1.2-22")
def test_password_needs_user_name_before_version_5(harness: Harness) -> None:
    """3.1.1 has no password without a user name; 5 has."""
    client = harness.open(V311)
    client.send(Connect(version=V311, client_id="a", password=b"x").encode())
    assert client.is_closed

    harness.connect("b", V5, password=b"x")


@S("3.1.1:MQTT-3.1.3-3", "5:MQTT-3.1.3-3", "5:MQTT-3.1.3-4", "3.1.1:MQTT-3.1.3-4", "5:MQTT-1.5.4-1", "5:MQTT-1.5.4-2")
@S("3.1.1:MQTT-1.5.3-1", "3.1.1:MQTT-1.5.3-2")
@pytest.mark.parametrize("bad", [b"\xff\xfe", b"\xed\xa0\x80", b"a\x00"])
def test_client_id_must_be_utf8(harness: Harness, version: Version, bad: bytes) -> None:
    """Ill-formed UTF-8 and U+0000 in a string end the connection."""
    client = harness.open(version)
    client.send(Connect(version=version, client_id="X" * len(bad)).encode().replace(b"X" * len(bad), bad))

    assert client.is_closed
    assert not harness.router.sessions


@S("3.1.1:MQTT-1.5.3-3", "5:MQTT-1.5.4-3")
def test_byte_order_mark_is_kept(harness: Harness, version: Version) -> None:
    """U+FEFF is a character like any other."""
    client = harness.connect("\ufeffa", version)

    assert client.connection.client_id == "\ufeffa"


@S("3.1.1:MQTT-3.1.3-5", "5:MQTT-3.1.3-5")
def test_plain_client_ids_are_allowed(harness: Harness, version: Version) -> None:
    """Letters and digits up to 23 bytes are always good, and so are longer ones up to the limit."""
    harness.connect("0123456789abcdefghijklm", version)
    harness.connect("a" * 256, version)


@S("3.1.1:MQTT-3.1.3-9", "5:MQTT-3.1.3-8")
def test_client_id_over_the_limit_is_refused(harness: Harness, version: Version) -> None:
    """max_client_id_len counts UTF-8 bytes, inclusive."""
    limits = ConnectionLimits(max_client_id_length=8)
    harness.connect("é" * 4, version, limits=limits)
    client = harness.open(version, limits)
    client.send(Connect(version=version, client_id="é" * 4 + "x").encode())

    connack = refused(client)

    assert connack is not None
    assert connack.reason == (0x85 if version is V5 else 2)


@S("3.1.1:MQTT-3.1.3-6", "5:MQTT-3.1.3-6", "5:MQTT-3.1.3-7", "5:MQTT-3.2.2-16")
def test_empty_client_id_gets_a_new_one(harness: Harness) -> None:
    """A client without an identifier gets one, and MQTT 5 says which."""
    harness.connect("", V311)
    client = harness.open(V5)
    client.send(Connect(version=V5).encode())

    (connack,) = client.received()

    assert isinstance(connack, ConnAck)
    assert connack.properties["assigned_client_identifier"] == "generated-2"
    assert set(harness.router.sessions) == {"generated-1", "generated-2"}


@S("3.1.1:MQTT-3.1.3-7", "3.1.1:MQTT-3.1.3-8")
@pytest.mark.parametrize(("version", "clean"), [(V311, False), (V31, True), (V31, False)])
def test_empty_client_id_needs_clean_session(harness: Harness, version: Version, clean: bool) -> None:
    """3.1.1 takes an empty identifier for a clean session only, 3.1 never."""
    client = harness.open(version)
    client.send(Connect(version=version, clean_start=clean).encode())

    connack = refused(client)

    assert connack is not None
    assert connack.reason == 2


@S("3.1.1:MQTT-3.2.2-4", "5:MQTT-3.2.2-6", "3.1.1:MQTT-3.2.2-5", "5:MQTT-3.2.2-7", "5:MQTT-3.1.4-2")
def test_full_broker_says_so(harness: Harness) -> None:
    """Beyond max_connections a client reads why it is refused, and the connection closes."""
    harness = Harness(router_limits=RouterLimits(max_connections=1))
    harness.connect("a", V5)
    for version, code in ((V311, 3), (V5, 0x89)):
        client = harness.open(version)
        client.send(Connect(version=version, client_id="b").encode())

        connack = refused(client)

        assert connack is not None
        assert connack.reason == code
    # A client that takes itself over needs no more room.
    harness.connect("a", V5)


@S("3.1.1:MQTT-3.1.4-1", "5:MQTT-3.1.4-1", "5:MQTT-3.1.4-2")
def test_bytes_behind_the_payload_are_malformed(harness: Harness, version: Version) -> None:
    """CONNECT is checked to its last byte."""
    client = harness.open(version)
    packet = Connect(version=version, client_id="a").encode()
    client.send(bytes((packet[0], packet[1] + 1)) + packet[2:] + b"x")

    assert client.is_closed
    assert not harness.router.sessions


@S("5:MQTT-3.2.2-9")
def test_connack_tells_every_limit(harness: Harness) -> None:
    """Receive Maximum, Maximum Packet Size, aliases and keep-alive are told; Maximum QoS is not, as all are served."""
    limits = ConnectionLimits(
        max_inflight_count=500, max_remaining_length=20_480, topic_alias_maximum=7, max_keep_alive=60
    )
    client = harness.open(V5, limits)
    client.send(Connect(version=V5, client_id="a").encode())

    (connack,) = client.received()

    assert isinstance(connack, ConnAck)
    assert connack.properties == {
        "receive_maximum": 500,
        "maximum_packet_size": 20_484,
        "topic_alias_maximum": 7,
        "server_keep_alive": 60,
    }


@S("5:MQTT-3.1.4-3", "3.1.1:MQTT-3.1.4-2")
def test_take_over_closes_the_old_connection_first(harness: Harness) -> None:
    """The old connection gets 0x8E before the new one gets its CONNACK."""
    old = harness.connect("a", V5)
    new = harness.connect("a", V5)

    (packet,) = old.received()

    assert isinstance(packet, Disconnect)
    assert packet.reason is ReasonCode.SESSION_TAKEN_OVER
    assert old.is_closed
    assert not new.is_closed
    kinds = [event[0] for event in harness.observer.events]
    assert kinds == ["connected", "taken over", "disconnected", "session ended", "connected"]


def test_pipelined_packets_behind_connect_are_handled(harness: Harness, version: Version) -> None:
    """A client need not wait for CONNACK [5: section 3.1.4]."""
    client = harness.open(version)
    client.send(Connect(version=version, client_id="a").encode(), PINGREQ)

    connack, pong = client.received()

    assert isinstance(connack, ConnAck)
    assert pong is PacketType.PINGRESP


@S("3.1.1:MQTT-3.12.4-1", "5:MQTT-3.12.4-1")
def test_ping_is_answered(harness: Harness, version: Version) -> None:
    """PINGREQ gets PINGRESP."""
    client = harness.connect("a", version)
    client.send(PINGREQ)

    assert client.received_bytes() == b"\xd0\x00"


@S("3.1.1:MQTT-3.1.2-24", "5:MQTT-3.1.2-22")
def test_keep_alive_is_one_and_a_half_times(harness: Harness, version: Version) -> None:
    """Silence for 1.5 times the keep-alive closes, and not a moment before; any packet starts it anew."""
    client = harness.connect("a", version, keep_alive=10)
    harness.advance(14.5)
    client.send(PINGREQ)
    harness.advance(14.5)
    assert not client.is_closed

    harness.advance(0.5)

    assert client.is_closed
    if version is V5:
        packet = client.received()[-1]
        assert isinstance(packet, Disconnect)
        assert packet.reason is ReasonCode.KEEP_ALIVE_TIMEOUT


def test_keep_alive_zero_is_for_ever(harness: Harness, version: Version) -> None:
    """A client may ask not to be watched."""
    client = harness.connect("a", version, keep_alive=0)
    harness.advance(1_000_000)

    assert not client.is_closed


def test_server_keep_alive_holds(harness: Harness) -> None:
    """An MQTT 5 client that asks for a longer keep-alive, or none, is held to the one told; a shorter one stays."""
    limits = ConnectionLimits(max_keep_alive=2)
    for asked, held in ((1000, 3.0), (0, 3.0), (2, 3.0), (1, 1.5)):
        client = harness.connect("a", V5, keep_alive=asked, limits=limits)
        harness.advance(held - 0.5)
        assert not client.is_closed
        harness.advance(0.5)
        assert client.is_closed
    old = harness.connect("b", V311, keep_alive=1000, limits=limits)
    harness.advance(100)

    assert not old.is_closed


def test_connection_timeout_is_exact(harness: Harness) -> None:
    """A connection without a complete CONNECT ends at connection_timeout_ms; one with it does not."""
    slow = harness.open(limits=ConnectionLimits(connection_timeout=5.0))
    slow.send(Connect(client_id="a").encode()[:-1])
    quick = harness.connect("b", limits=ConnectionLimits(connection_timeout=5.0))
    harness.advance(4.999)
    assert not slow.is_closed

    harness.advance(0.001)

    assert slow.is_closed
    assert not quick.is_closed


@S("3.1.1:MQTT-3.14.4-3", "5:MQTT-3.14.4-3", "3.1.1:MQTT-3.1.2-10", "5:MQTT-3.1.2-10")
def test_disconnect_discards_the_will(harness: Harness, version: Version) -> None:
    """A client that says good-bye has no will left."""
    watcher = harness.connect("w")
    watcher.subscribe("#")
    client = harness.connect("a", version, will=Will(topic=b"gone", payload=b"x"))
    client.disconnect()

    assert client.is_closed
    assert watcher.messages() == []


@S("3.1.1:MQTT-3.14.1-1", "5:MQTT-3.14.1-1", "3.1.1:MQTT-2.2.2-2", "5:MQTT-2.1.3-1")
def test_disconnect_with_wrong_flags_closes_with_the_will(harness: Harness, version: Version) -> None:
    """The lower bits of DISCONNECT are checked; what fails the check is no good-bye."""
    watcher = harness.connect("w")
    watcher.subscribe("#")
    client = harness.connect("a", version, will=Will(topic=b"gone", payload=b"x"))
    client.send(b"\xe1\x00")

    assert client.is_closed
    assert watcher.payloads() == [b"x"]


@S("5:MQTT-3.14.2-1", "5:MQTT-3.14.2-2")
def test_disconnect_cannot_raise_expiry_from_zero(harness: Harness) -> None:
    """A session that would end with its connection cannot be kept by DISCONNECT."""
    client = harness.connect("a", V5)
    client.disconnect(properties={"session_expiry_interval": 10})

    (packet,) = client.received()

    assert isinstance(packet, Disconnect)
    assert packet.reason is ReasonCode.PROTOCOL_ERROR


def test_disconnect_can_change_expiry(harness: Harness) -> None:
    """DISCONNECT may shorten or lengthen an expiry that is not 0 [5: section 3.14.2.2.2]."""
    client = harness.durable("a", V5)
    client.disconnect(properties={"session_expiry_interval": 10})
    harness.advance(9)
    assert "a" in harness.router.sessions

    harness.advance(2)

    assert "a" not in harness.router.sessions


def test_reason_string_is_left_out_on_request(harness: Harness) -> None:
    """Request Problem Information 0 gets codes without words [5: section 3.1.2.11.7]."""
    client = harness.connect("a", V5, properties={"request_problem_information": 0})
    client.send(b"\x00\x00")

    (packet,) = client.received()

    assert packet == Disconnect(reason=ReasonCode.MALFORMED_PACKET)


def test_reason_string_says_what_was_wrong(harness: Harness) -> None:
    """An MQTT 5 client reads why it is cut off."""
    client = harness.connect("a", V5)
    client.send(b"\x00\x00")

    (packet,) = client.received()

    assert isinstance(packet, Disconnect)
    assert "packet type 0" in packet.properties["reason_string"]
