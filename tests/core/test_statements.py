"""Normative statements that no other test shows by the way; what each says stands in docs/statements.toml."""

from typing import Any

import pytest

from broker.core.hooks import Decision, Hooks
from broker.core.limits import ConnectionLimits
from broker.mqtt.packets import PINGREQ, Ack, ConnAck, Connect, Disconnect, Publish, SubAck, Version, Will
from broker.mqtt.reason_codes import ReasonCode
from tests.harness import PUBACK, PUBCOMP, PUBREC, PUBREL, V5, V31, V311, Harness

S = pytest.mark.statement


@S("3.1.1:MQTT-2.3.1-5", "5:MQTT-2.2.1-2", "5:MQTT-2.2.2-1")
def test_qos0_has_no_identifier(harness: Harness) -> None:
    """The bytes of a QoS 0 PUBLISH: no identifier, and in MQTT 5 a property length of 0."""
    for version, expected in ((V311, b"\x30\x04\x00\x01tx"), (V5, b"\x30\x05\x00\x01t\x00x")):
        client = harness.connect(f"s{version}", version)
        client.subscribe("t")
        harness.connect("p").publish("t", b"x")

        assert client.received_bytes() == expected


@S("3.1.1:MQTT-3.1.2-7")
def test_retained_messages_outlive_the_session(harness: Harness, version: Version) -> None:
    """The end of the session that published it does not touch a retained message."""
    client = harness.connect("p", version)
    client.publish("t", b"x", retain=True)
    client.disconnect()

    assert len(harness.connect("late").subscribe("t")) == 1


@S("3.1.1:MQTT-3.1.2-12")
def test_without_a_will_nothing_is_published(harness: Harness, version: Version) -> None:
    """A client that is lost without a will leaves no message."""
    watcher = harness.connect("w")
    watcher.subscribe("#")
    harness.connect("a", version).lose()

    assert watcher.messages() == []


@S("3.1.1:MQTT-3.1.2-18", "3.1.1:MQTT-3.1.2-19", "3.1.1:MQTT-3.1.2-20", "3.1.1:MQTT-3.1.2-21", "3.1.1:MQTT-3.1.3-1")
@S("5:MQTT-3.1.2-16", "5:MQTT-3.1.2-17", "5:MQTT-3.1.2-18", "5:MQTT-3.1.2-19", "5:MQTT-3.1.3-1")
@pytest.mark.parametrize("user", [None, "u"])
@pytest.mark.parametrize("password", [None, b"p"])
@pytest.mark.parametrize("will", [None, Will(topic=b"w", payload=b"m")])
def test_payload_follows_the_flags(user: str | None, password: bytes | None, will: Will | None) -> None:
    """Each field of the payload is there if and only if its flag is, in the order of the specification."""
    for version in (V311, V5):
        if version is V311 and user is None and password is not None:
            continue
        packet = Connect(version=version, client_id="a", user_name=user, password=password, will=will)
        encoded = packet.encode()

        assert Connect.decode(encoded, 2, len(encoded)) == packet
        for cut in range(3, len(encoded)):
            client = Harness().open(version)
            client.send(bytes((0x10, cut - 2)) + encoded[2:cut])
            assert client.is_closed, "a field is missing"
        client = Harness().open(version)
        client.send(bytes((0x10, encoded[1] + 3)) + encoded[2:] + b"\x00\x01x")
        assert client.is_closed, "a field is there without its flag"


@S("3.1.1:MQTT-3.1.3-2", "5:MQTT-3.1.3-2", "3.1.1:MQTT-3.1.4-3", "5:MQTT-3.1.4-4")
def test_identifier_names_the_session(harness: Harness, version: Version) -> None:
    """Two identifiers are two sessions; Clean Start touches one's own alone."""
    harness.durable("a", version).subscribe("a")
    harness.durable("b", version).subscribe("b")
    harness.connect("a", version)

    assert {name: set(session.subscriptions) for name, session in harness.router.sessions.items()} == {
        "a": set(),
        "b": {b"b"},
    }


@S("3.1.1:MQTT-3.1.3-11", "5:MQTT-3.1.3-12", "5:MQTT-3.3.2-13", "5:MQTT-3.3.2-19", "5:MQTT-1.5.7-1")
@pytest.mark.parametrize("field", ["user", "response_topic", "content_type", "name", "value"])
def test_strings_are_utf8(harness: Harness, field: str) -> None:
    """User name, response topic, content type and both parts of a user property are UTF-8."""
    client = harness.open(V5)
    if field == "user":
        packet = Connect(version=V5, client_id="a", user_name="XX").encode()
    else:
        client.send(Connect(version=V5, client_id="a").encode())
        pair = [("XX", "v")] if field == "name" else [("n", "XX")]
        properties: dict[str, Any] = {field: "XX"} if "_" in field else {"user_property": pair}
        packet = Publish(topic=b"t", properties=properties).encode(V5)
    client.send(packet.replace(b"XX", b"\xff\xff"))

    assert client.is_closed


@S("3.1.1:MQTT-3.1.4-5", "5:MQTT-3.1.4-6", "5:MQTT-3.14.4-1", "5:MQTT-3.14.4-2", "5:MQTT-4.13.2-1")
def test_nothing_behind_a_refusal_is_processed(version: Version) -> None:
    """What comes behind a refused CONNECT, and behind any end, is thrown away, and nothing more is sent."""
    harness = Harness(hooks=Hooks(authenticate=[lambda login: Decision.DENY]))
    watcher = harness.open()
    harness.router.hooks.default_authenticate = Decision.ALLOW
    client = harness.open(version)
    client.send(Connect(version=version, client_id="a").encode(), Publish(topic=b"t").encode(version), PINGREQ)
    client.send(PINGREQ)

    (connack,) = client.received()

    assert isinstance(connack, ConnAck)
    assert client.is_closed
    assert harness.router.stats.published == 0
    assert not watcher.is_closed


@S("3.1.1:MQTT-3.2.2-6", "3.1.1:MQTT-4.8.0-1", "5:MQTT-4.13.1-1")
def test_violations_close(harness: Harness, version: Version) -> None:
    """A violation closes; where a 3.x return code fits nothing, without a CONNACK."""
    fresh = harness.open(version)
    fresh.send(b"\x10\x00")
    connected = harness.connect("a", version)
    connected.send(b"\xc0\x01x")

    assert fresh.is_closed
    assert fresh.received() == []
    assert connected.is_closed


@S("3.1.1:MQTT-3.3.1-3", "5:MQTT-3.3.1-3")
@pytest.mark.parametrize("qos", [1, 2])
def test_dup_is_not_passed_on(harness: Harness, version: Version, qos: int) -> None:
    """A message that comes with DUP goes out without it: it is the first time for the subscriber."""
    for subscriber_version in (V311, V5):
        subscriber = harness.connect(f"s{subscriber_version}", subscriber_version)
        subscriber.subscribe("t", 2)
        harness.connect("p", version).publish("t", b"x", qos, dup=True)
        (message,) = subscriber.messages()

        assert not message.dup


@S("3.1.1:MQTT-3.3.1-7")
def test_qos0_replaces_the_retained_message(harness: Harness, version: Version) -> None:
    """The QoS of a retained message does not protect it."""
    publisher = harness.connect("p", version)
    publisher.publish("t", b"old", 2, retain=True)
    publisher.publish("t", b"new", 0, retain=True)

    (message,) = harness.connect("s").subscribe("t", 2)

    assert isinstance(message, Publish)
    assert (message.payload, message.qos) == (b"new", 0)


@S("3.1.1:MQTT-3.3.2-3", "5:MQTT-3.3.2-3", "3.1.1:MQTT-4.5.0-1", "5:MQTT-4.5.0-1")
def test_everybody_who_matches_gets_it_under_its_name(harness: Harness) -> None:
    """All sessions that match get the message, connected or not, under the name it was published to."""
    clients = {}
    for topic_filter in ("a/b", "a/+", "#", "+/b", "a/#", "a/b/#"):
        clients[topic_filter] = harness.durable(topic_filter.replace("#", "*"))
        clients[topic_filter].subscribe(topic_filter, 1)
    away = harness.durable("away")
    away.subscribe("a/b", 1)
    away.lose()
    other = harness.connect("other")
    other.subscribe("a/c")
    harness.connect("p").publish("a/b", b"x", 1)

    for client in (*clients.values(), harness.durable("away", session_present=True)):
        assert [message.topic for message in client.messages()] == [b"a/b"]
    assert other.messages() == []


@S("3.1.1:MQTT-3.6.1-1", "5:MQTT-3.6.1-1", "5:MQTT-3.15.1-1")
@pytest.mark.parametrize("first", [0x60, 0x61, 0x41, 0x52, 0x71, 0xC1, 0xF1])
def test_flags_are_checked(harness: Harness, version: Version, first: int) -> None:
    """A packet with flags that are not its own ends the connection."""
    client = harness.connect("a", version)
    client.send(bytes((first, 2, 0, 1)))

    assert client.is_closed


@S("3.1.1:MQTT-3.9.3-2")
@pytest.mark.parametrize("version", [V31, V311])
def test_refusals_of_3x_are_all_0x80(version: Version) -> None:
    """Whatever the reason, SUBACK of 3.x has one code for it."""
    hook: Any = lambda session, topic, qos: Decision.DENY if topic == b"no" else None  # noqa: E731
    harness = Harness(hooks=Hooks(authorize_subscribe=[hook]), limits=ConnectionLimits(max_subscriptions=1))
    client = harness.connect("a", version)
    client.send(b"\x82\x14\x00\x01\x00\x02no\x00\x00\x02#a\x01\x00\x01x\x02\x00\x01y\x00")

    (answer,) = client.received()

    assert answer == SubAck(packet_id=1, reasons=(0x80, 0x80, 2, 0x80))


@S("3.1.1:MQTT-4.1.0-2")
def test_session_lasts_as_long_as_its_connection(harness: Harness, version: Version) -> None:
    """However short its expiry, a session stays while its client is connected."""
    client = harness.connect("a", version, clean_start=False)
    client.subscribe("t")
    harness.advance(10**8)
    harness.connect("p").publish("t", b"x")

    assert client.payloads() == [b"x"]


@S("3.1.1:MQTT-4.7.3-3", "5:MQTT-4.7.3-3")
def test_topics_may_have_65535_bytes(harness: Harness, version: Version) -> None:
    """The longest topic name and filter there can be work."""
    topic = "x" * 65_535
    client = harness.connect("a", version)
    client.subscribe(topic)
    client.publish(topic, b"y")

    assert client.payloads() == [b"y"]


@S("5:MQTT-1.5.5-1")
@pytest.mark.parametrize(
    "packet",
    [
        b"\xc0\x80\x00",  # PINGREQ with a length of two bytes
        b"\x30\x06\x00\x01t\x80\x00x",  # property length
        b"\x82\x0b\x00\x01\x03\x0b\x85\x00\x00\x01t\x00\x00",  # subscription identifier
    ],
)
def test_lengths_are_in_their_shortest_form(harness: Harness, packet: bytes) -> None:
    """A variable byte integer with a byte too many is malformed, wherever it stands."""
    client = harness.connect("a", V5)
    client.send(packet)

    (answer,) = client.received()

    assert isinstance(answer, Disconnect)
    assert answer.reason is ReasonCode.MALFORMED_PACKET


@S("5:MQTT-3.1.2-28", "5:MQTT-3.2.2-1", "5:MQTT-3.2.2-8", "5:MQTT-3.2.0-2", "5:MQTT-3.2.2-22")
def test_connack_in_bytes(harness: Harness) -> None:
    """No reserved bit, reason 0, no response information, no Server Keep Alive; and there is never a second one."""
    client = harness.open(V5)
    properties = {"request_response_information": 0}
    client.send(Connect(version=V5, client_id="a", keep_alive=10, properties=properties).encode())
    data = client.received_bytes()
    client.send(PINGREQ)

    assert data[:1] + data[2:4] == b"\x20\x00\x00"
    assert client.received_bytes() == b"\xd0\x00"
    assert client.connection.keep_alive == 15


@S("5:MQTT-3.1.2-29")
def test_no_words_where_none_are_wanted() -> None:
    """With Request Problem Information 0 acknowledgements of refusal have codes alone."""
    deny: Any = lambda *_: Decision.DENY  # noqa: E731
    harness = Harness(hooks=Hooks(authorize_publish=[deny], authorize_subscribe=[deny]))
    client = harness.connect("a", V5, properties={"request_problem_information": 0})
    client.publish("t", b"", 1)
    client.publish("t", b"", 2)
    client.send(b"\x82\x07\x00\x09\x00\x00\x01t\x00")

    assert client.received_bytes() == b"\x40\x03\x00\x01\x87\x50\x03\x00\x02\x87\x90\x04\x00\x09\x00\x87"


@S("5:MQTT-3.1.3-10")
def test_order_of_the_wills_user_properties(harness: Harness) -> None:
    """User properties of a will keep their order, equal names included."""
    watcher = harness.connect("w", V5)
    watcher.subscribe("t")
    pairs = [("b", "1"), ("a", "2"), ("b", "0")]
    harness.connect("a", V5, will=Will(topic=b"t", payload=b"", properties={"user_property": pairs})).lose()

    (message,) = watcher.messages()

    assert message.properties == {"user_property": pairs}


@S("5:MQTT-3.2.2-19", "5:MQTT-3.14.2-3")
def test_words_are_left_out_where_they_do_not_fit(harness: Harness) -> None:
    """A CONNACK or DISCONNECT that would be larger than the client accepts comes without its reason string."""
    properties = {"maximum_packet_size": 20}
    refused = harness.open(V5, ConnectionLimits(max_client_id_length=1))
    refused.send(Connect(version=V5, client_id="ab", properties=properties).encode())
    client = harness.connect("a", V5, properties=properties)
    client.send(b"\x00\x00")

    assert refused.received() == [ConnAck(reason=0x85)]
    assert client.received() == [Disconnect(reason=ReasonCode.MALFORMED_PACKET)]


@S("5:MQTT-3.3.2-12")
def test_every_alias_up_to_the_maximum(harness: Harness) -> None:
    """All the aliases that the client was told it may use can be used."""
    subscriber = harness.connect("s")
    subscriber.subscribe("#")
    client = harness.connect("p", V5)
    maximum = client.connection.limits.topic_alias_maximum
    for alias in range(1, maximum + 1):
        client.publish(f"t{alias}", properties={"topic_alias": alias})
    for alias in range(1, maximum + 1):
        client.publish("", properties={"topic_alias": alias})

    assert [m.topic for m in subscriber.messages()] == [b"t%d" % i for i in range(1, maximum + 1)] * 2


@S("5:MQTT-3.4.2-1", "5:MQTT-3.5.2-1", "5:MQTT-3.6.2-1", "5:MQTT-3.7.2-1")
@pytest.mark.parametrize("kind", [PUBACK, PUBREC, PUBREL, PUBCOMP])
def test_reasons_of_acknowledgements(kind: Any) -> None:
    """A reason that is not listed for its packet is malformed; one that is, is taken."""
    listed = {0, 0x92} if kind in (PUBREL, PUBCOMP) else {0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}
    for reason in range(256):
        client = Harness().connect("a", V5)
        client.send(bytes((kind << 4 | (2 if kind is PUBREL else 0), 3, 0, 1, reason)))

        assert client.is_closed is (reason not in listed)


@S("5:MQTT-3.14.2-1", "5:MQTT-3.15.2-1")
def test_reasons_of_disconnect_and_auth(harness: Harness) -> None:
    """A client's DISCONNECT has a client's reason; one that only a server gives is a protocol error."""
    listed = {0, 4, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99}
    for reason in range(256):
        client = harness.connect("a", V5)
        client.send(bytes((0xE0, 1, reason)))

        assert client.is_closed
        assert bool(client.received()) is (reason not in listed)


@S("5:MQTT-3.14.0-1")
def test_no_disconnect_before_connack(harness: Harness) -> None:
    """A client that is cut off before its CONNACK gets no DISCONNECT."""
    client = harness.open(V5)
    client.send(Connect(version=V5, client_id="a").encode()[:-1])
    harness.advance(1000)

    assert client.is_closed
    assert client.received() == []


@S("5:MQTT-4.3.2-5")
def test_identifier_is_free_after_puback(harness: Harness, version: Version) -> None:
    """A QoS 1 message with an identifier that was acknowledged is a new message."""
    subscriber = harness.connect("s")
    subscriber.subscribe("t")
    client = harness.connect("p", version)
    for payload in (b"1", b"2"):
        client.publish("t", payload, 1, packet_id=7)

    assert client.received() == [Ack(packet_id=7)] * 2
    assert subscriber.payloads() == [b"1", b"2"]


@S("5:MQTT-4.3.3-7", "5:MQTT-4.3.3-13")
def test_exchange_goes_on_after_expiry(harness: Harness) -> None:
    """A message that was sent in time is sent again, and its exchange finished, however late."""
    client = harness.durable("s", V5)
    client.subscribe("t", 2)
    publisher = harness.connect("p", V5)
    publisher.publish("t", b"1", 2, properties={"message_expiry_interval": 5})
    publisher.publish("t", b"2", 1, properties={"message_expiry_interval": 5})
    first = client.messages()
    client.ack(PUBREC, first[0].packet_id)
    client.received()
    client.lose()
    harness.advance(100)

    client = harness.durable("s", V5, session_present=True)

    release, message = client.received()
    assert release == Ack(packet_id=first[0].packet_id)
    assert isinstance(message, Publish)
    assert (message.payload, message.dup) == (b"2", True)
    client.ack(PUBCOMP, first[0].packet_id)
    assert not client.is_closed


@S("5:MQTT-4.4.0-2")
def test_refused_messages_are_not_sent_again(harness: Harness) -> None:
    """A message that the client refused is settled."""
    client = harness.durable("s", V5)
    client.subscribe("t", 2)
    publisher = harness.connect("p")
    publisher.publish("t", b"1", 1)
    publisher.publish("t", b"2", 2)
    first, second = client.messages()
    client.ack(PUBACK, first.packet_id, 0x80)
    client.ack(PUBREC, second.packet_id, 0x80)
    client.lose()

    assert harness.durable("s", V5, session_present=True).received() == []


@S("5:MQTT-4.8.2-1", "5:MQTT-4.8.2-2", "5:MQTT-4.8.2-4")
def test_shared_filters(harness: Harness) -> None:
    """A share name and a filter make a shared subscription; a QoS 2 message is finished with its member."""
    client = harness.durable("s", V5)
    for good in ("$share/g/a", "$share/g/#", "$share/$g/a/+", "$share/g//a"):
        client.subscribe(good, 2)
    other = harness.connect("o", V5)
    other.subscribe("$share/h/a", 2)
    for bad in (
        b"$share",
        b"$share/",
        b"$share/g",
        b"$share/g/",
        b"$share//a",
        b"$share/+/a",
        b"$share/g#/a",
        b"$share/g/a#",
    ):
        client.send(b"\x82" + bytes((len(bad) + 6,)) + b"\x00\x09\x00\x00" + bytes((len(bad),)) + bad + b"\x00")
        (answer,) = client.received()
        assert isinstance(answer, SubAck)
        # `$share` alone is a filter like any other.
        assert list(answer.reasons) == [0 if bad == b"$share" else 0x8F]
    harness.connect("p").publish("/a", b"x", 2)
    messages = client.messages()
    client.lose()
    again = harness.durable("s", V5, session_present=True)

    assert [m.payload for m in messages] == [b"x", b"x"]
    assert [(m.payload, m.dup) for m in again.messages()] == [(b"x", True)] * 2
