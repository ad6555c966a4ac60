"""What MQTT 5 adds to a message: properties, expiry, topic aliases."""

import pytest

from broker.core.limits import ConnectionLimits
from broker.mqtt.packets import Disconnect, Publish, Version
from broker.mqtt.reason_codes import ReasonCode
from tests.harness import PUBACK, V5, V311, Harness

S = pytest.mark.statement

ALL = {
    "payload_format_indicator": 1,
    "message_expiry_interval": 60,
    "content_type": "text/plain",
    "response_topic": "answers/here",
    "correlation_data": b"\x00\xff",
    "user_property": [("b", "1"), ("a", "2"), ("b", "3")],
}


@S("5:MQTT-3.3.2-4", "5:MQTT-3.3.2-15", "5:MQTT-3.3.2-16", "5:MQTT-3.3.2-17", "5:MQTT-3.3.2-18", "5:MQTT-3.3.2-20")
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("identifier", [0, 200])
def test_properties_go_on_unaltered(harness: Harness, qos: int, identifier: int) -> None:
    """Every property that is for the receiver goes on, user properties in their order; 3.1.1 gets the payload alone."""
    client = harness.connect("s", V5)
    client.subscribe("t", qos, identifier)
    old = harness.connect("o", V311)
    old.subscribe("t", qos)
    publisher = harness.connect("p", V5)
    publisher.publish("t", b"x", qos, properties=ALL)

    (message,) = client.messages()
    (plain,) = old.messages()

    extra = {"subscription_identifier": [identifier]} if identifier else {}
    assert message.properties == {**ALL, **extra}
    assert (plain.payload, plain.topic, plain.qos) == (b"x", b"t", qos)


@S("5:MQTT-3.3.2-6", "5:MQTT-3.3.2-5")
def test_expiry_counts_down_in_the_queue(harness: Harness) -> None:
    """A message that waited is sent with the time that is left, or not at all."""
    client = harness.durable("s", V5)
    client.subscribe("t", 1)
    client.lose()
    publisher = harness.connect("p", V5)
    for seconds in (5, 20):
        publisher.publish("t", b"%d" % seconds, 1, properties={"message_expiry_interval": seconds, "content_type": "c"})
    publisher.publish("t", b"for ever", 1)
    harness.advance(8)

    client = harness.durable("s", V5, session_present=True)

    first, second = client.messages()
    assert (first.payload, first.properties) == (b"20", {"message_expiry_interval": 12, "content_type": "c"})
    assert (second.payload, second.properties) == (b"for ever", {})
    assert harness.router.stats.expired == 1


def test_expiry_holds_for_old_clients_too(harness: Harness) -> None:
    """A 3.1.1 session does not get what has expired either."""
    client = harness.durable("s", V311)
    client.subscribe("t", 1)
    client.lose()
    harness.connect("p", V5).publish("t", b"x", 1, properties={"message_expiry_interval": 5})
    harness.advance(6)

    assert harness.durable("s", V311, session_present=True).messages() == []


def test_clock_set_back_does_not_lengthen_expiry(harness: Harness) -> None:
    """A clock that steps backwards never makes a message older or its interval longer than it was."""
    client = harness.durable("s", V5)
    client.subscribe("t", 1)
    client.lose()
    harness.connect("p", V5).publish("t", b"x", 1, properties={"message_expiry_interval": 5})
    harness.wall -= 1000

    (message,) = harness.durable("s", V5, session_present=True).messages()

    assert message.properties == {"message_expiry_interval": 5}


@S("5:MQTT-3.3.2-8", "5:MQTT-3.3.2-7", "5:MQTT-3.3.2-9", "5:MQTT-3.3.2-11")
def test_aliases_from_the_client(harness: Harness) -> None:
    """A topic alias stands for its topic on its connection until it is set anew; subscribers see none of it."""
    subscriber = harness.connect("s", V5)
    subscriber.subscribe("#", 1)
    old = harness.connect("o", V311)
    old.subscribe("#", 0)
    client = harness.connect("p", V5)
    alias = {"topic_alias": 1}
    client.publish("one", b"1", 1, properties=alias)
    client.publish("", b"2", 1, properties=alias)
    client.publish("two", b"3", properties=alias)
    client.send(*[Publish(topic=b"", payload=b"%d" % i, properties=alias).encode(V5) for i in range(4, 7)])

    messages = subscriber.messages()

    assert [(m.topic, m.payload) for m in messages] == [
        (b"one", b"1"),
        (b"one", b"2"),
        (b"two", b"3"),
        (b"two", b"4"),
        (b"two", b"5"),
        (b"two", b"6"),
    ]
    assert all(m.properties == {} for m in messages)
    assert [m.topic for m in old.messages()] == [m.topic for m in messages]


@S("5:MQTT-3.3.2-9")
@pytest.mark.parametrize(("alias", "topic", "reason"), [(0, "t", 0x94), (4, "t", 0x94), (2, "", 0x82)])
def test_bad_aliases_close(harness: Harness, alias: int, topic: str, reason: int) -> None:
    """Alias 0, one over the maximum, and one that was never set up end the connection."""
    client = harness.connect("p", V5, limits=ConnectionLimits(topic_alias_maximum=3))
    client.publish(topic, properties={"topic_alias": alias})

    (packet,) = client.received()

    assert isinstance(packet, Disconnect)
    assert packet.reason == reason


def test_alias_of_an_earlier_connection_is_gone(harness: Harness) -> None:
    """Aliases end with the connection, also when the session goes on [5:MQTT-3.3.2-7]."""
    client = harness.durable("p", V5)
    client.publish("t", properties={"topic_alias": 1})
    client.lose()
    client = harness.durable("p", V5, session_present=True)
    client.publish("", properties={"topic_alias": 1})

    assert client.is_closed


@S("5:MQTT-3.1.2-26", "5:MQTT-3.1.2-27", "5:MQTT-3.3.2-8")
@pytest.mark.parametrize("qos", [0, 1])
def test_aliases_to_the_client(harness: Harness, qos: int) -> None:
    """A client that takes aliases gets each topic once, as many as it allows; one that does not gets none."""
    client = harness.connect("s", V5, properties={"topic_alias_maximum": 1})
    client.subscribe("#", qos)
    plain = harness.connect("o", V5)
    plain.subscribe("#", qos)
    publisher = harness.connect("p")
    for topic in ("one", "one", "two", "two", "one"):
        publisher.publish(topic, b"x", qos)

    messages = client.messages()
    assert [m.topic for m in messages] == [b"one", b"", b"two", b"two", b""]
    assert [m.properties.get("topic_alias") for m in messages] == [1, 1, None, None, 1]
    assert [m.topic for m in plain.messages()] == [b"one", b"one", b"two", b"two", b"one"]


def test_aliases_are_set_up_by_what_is_sent(harness: Harness) -> None:
    """A message that waits in the queue sets up no alias; sent again on another connection it has its topic."""
    properties = {"topic_alias_maximum": 5, "receive_maximum": 1}
    client = harness.durable("s", V5, properties=properties)
    client.subscribe("#", 1)
    publisher = harness.connect("p", V5)
    for payload in (b"1", b"2"):
        publisher.publish("t", payload, 1, properties={"message_expiry_interval": 60})
    (first,) = client.messages()
    harness.advance(10)
    client.ack(PUBACK, first.packet_id)
    (second,) = client.messages()
    assert (first.topic, first.properties) == (b"t", {"message_expiry_interval": 60, "topic_alias": 1})
    assert (second.topic, second.properties) == (b"", {"message_expiry_interval": 50, "topic_alias": 1})
    client.lose()

    (again,) = harness.durable("s", V5, session_present=True, properties=properties).messages()

    assert (again.topic, again.payload) == (b"t", b"2")
    assert "topic_alias" not in again.properties


@S("5:MQTT-3.3.2-14", "5:MQTT-3.3.4-6")
@pytest.mark.parametrize(
    "properties", [{"response_topic": "a/+"}, {"response_topic": "#"}, {"subscription_identifier": [1]}]
)
def test_properties_a_client_must_not_send(harness: Harness, properties: dict[str, object]) -> None:
    """A wildcard in the response topic and a subscription identifier in a client's PUBLISH are protocol errors."""
    client = harness.connect("p", V5)
    client.publish("t", properties=properties)

    (packet,) = client.received()

    assert isinstance(packet, Disconnect)
    assert packet.reason is ReasonCode.PROTOCOL_ERROR


def test_properties_survive_a_reconnect(harness: Harness, version: Version) -> None:
    """What is sent again has the properties it had."""
    client = harness.durable("s", V5)
    client.subscribe("t", 1, 7)
    harness.connect("p", V5).publish("t", b"x", 1, properties={"content_type": "c"})
    (first,) = client.messages()
    client.lose()

    client = harness.durable("s", version, session_present=version != Version.V31)

    (again,) = client.messages()
    assert (again.dup, again.packet_id) == (True, first.packet_id)
    if version is V5:
        assert again.properties == {"content_type": "c", "subscription_identifier": [7]}
    client.ack(PUBACK, again.packet_id)
    assert harness.router.sessions["s"].inflight_count() == 0
