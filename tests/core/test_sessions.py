"""Sessions: what outlives a connection, for how long, and what is sent again."""

import pytest

from broker.core.limits import ConnectionLimits, RouterLimits
from broker.mqtt.packets import Ack, ConnAck, Connect, Publish, Version
from tests.harness import PUBACK, PUBCOMP, PUBREC, PUBREL, V5, V311, Harness

S = pytest.mark.statement


@S(
    "3.1.1:MQTT-3.1.2-4",
    "5:MQTT-3.1.2-5",
    "5:MQTT-3.1.2-6",
    "3.1.1:MQTT-3.2.2-2",
    "5:MQTT-3.2.2-3",
    "3.1.1:MQTT-4.1.0-1",
)
@S("5:MQTT-4.1.0-1", "5:MQTT-3.1.2-23", "3.1.1:MQTT-3.1.2-5", "5:MQTT-4.1.0-2")
def test_session_goes_on(harness: Harness, version: Version) -> None:
    """A durable session keeps its subscriptions, and queues QoS 1 and 2 messages while its client is away."""
    client = harness.durable("a", version)
    client.subscribe("t", 2)
    client.lose()
    publisher = harness.connect("p")
    for qos in (0, 1, 2):
        publisher.publish("t", b"%d" % qos, qos)

    client = harness.durable("a", version, session_present=version != Version.V31)

    assert client.payloads() == [b"1", b"2"]
    publisher.publish("t", b"live")
    assert client.payloads() == [b"live"]


@S("3.1.1:MQTT-3.1.2-6", "5:MQTT-3.1.2-4", "3.1.1:MQTT-3.2.2-1", "5:MQTT-3.2.2-2", "3.1.1:MQTT-3.2.2-3")
def test_clean_start_forgets(harness: Harness, version: Version) -> None:
    """Clean start discards the session that was there."""
    client = harness.durable("a", version)
    client.subscribe("t", 1)
    client.lose()
    harness.connect("p").publish("t", b"x", 1)

    client = harness.connect("a", version)

    assert client.messages() == []
    assert not harness.router.sessions["a"].subscriptions


def test_clean_session_ends_with_its_connection(harness: Harness, version: Version) -> None:
    """Nothing is left of a session that is not durable."""
    client = harness.connect("a", version)
    client.subscribe("t", 1)
    client.lose()

    assert not harness.router.sessions
    assert harness.router.route(b"t").weight == 0


@S("5:MQTT-3.1.2-23")
def test_expiry_is_exact(harness: Harness) -> None:
    """A session ends when its expiry interval has passed since the connection closed, and not before."""
    client = harness.connect("a", V5, properties={"session_expiry_interval": 10})
    client.lose()
    harness.advance(9.5)
    assert "a" in harness.router.sessions

    harness.advance(0.5)

    assert "a" not in harness.router.sessions
    assert ("session ended", "a", True) in harness.observer.events


def test_expiry_follows_the_wall_clock(harness: Harness) -> None:
    """A clock that was set back keeps the session until the wall clock has come to its end."""
    client = harness.connect("a", V5, properties={"session_expiry_interval": 10})
    client.lose()
    harness.wall -= 100
    harness.advance(11)
    assert "a" in harness.router.sessions

    harness.advance(100)

    assert "a" not in harness.router.sessions


def test_session_without_end(harness: Harness) -> None:
    """Expiry 0xFFFFFFFF never ends [5: section 3.1.2.11.2]."""
    client = harness.connect("a", V5, properties={"session_expiry_interval": 0xFFFF_FFFF})
    client.lose()
    harness.advance(2.0**33)

    assert "a" in harness.router.sessions


def test_expiry_is_capped_and_told() -> None:
    """An expiry over the limit is cut, and CONNACK says so [5: section 3.2.2.3.2]."""
    harness = Harness(router_limits=RouterLimits(max_session_expiry=60, session_expiry_v3=100))
    client = harness.open(V5)
    client.send(Connect(version=V5, client_id="a", properties={"session_expiry_interval": 100}).encode())
    (connack,) = client.received()
    assert isinstance(connack, ConnAck)
    assert connack.properties["session_expiry_interval"] == 60
    old = harness.durable("b", V311)
    client.lose()
    old.lose()

    harness.advance(61)

    assert not harness.router.sessions


def test_v3_sessions_have_a_greatest_age() -> None:
    """A 3.x session that nobody comes back to ends at last."""
    harness = Harness(router_limits=RouterLimits(session_expiry_v3=100))
    harness.durable("a", V311).lose()
    harness.advance(99)
    assert "a" in harness.router.sessions

    harness.advance(2)

    assert "a" not in harness.router.sessions


@S(
    "3.1.1:MQTT-4.4.0-1",
    "5:MQTT-4.4.0-1",
    "3.1.1:MQTT-3.3.1-1",
    "5:MQTT-3.3.1-1",
    "3.1.1:MQTT-4.6.0-1",
    "5:MQTT-4.6.0-1",
)
@S("5:MQTT-4.5.0-1")
def test_unacknowledged_messages_come_again(harness: Harness, version: Version) -> None:
    """After a reconnect PUBLISH comes with DUP and its identifier, PUBREL alone where PUBREC was sent, in order."""
    client = harness.durable("a", version)
    client.subscribe("t", 2)
    publisher = harness.connect("p")
    for i, qos in enumerate((1, 2, 1, 2, 2)):
        publisher.publish("t", b"%d" % i, qos)
    first = client.messages()
    client.ack(PUBACK, first[0].packet_id)
    client.ack(PUBREC, first[1].packet_id)
    client.received()
    client.lose()
    publisher.publish("t", b"5", 1)

    client = harness.durable("a", version, session_present=version != Version.V31)
    packets = client.received()

    assert packets[0] == Ack(packet_id=first[1].packet_id)
    messages = [packet for packet in packets[1:] if isinstance(packet, Publish)]
    assert [(m.payload, m.dup) for m in messages] == [
        (b"2", True),
        (b"3", True),
        (b"4", True),
        (b"5", False),
    ]
    assert [m.packet_id for m in messages[:3]] == [m.packet_id for m in first[2:]]


def test_runs_come_again_message_by_message(harness: Harness) -> None:
    """What is left of a run after acknowledgements out of order is sent again in the order it was sent."""
    client = harness.durable("a", V311)
    client.subscribe("t", 1)
    publisher = harness.connect("p")
    publisher.send(*[Publish(topic=b"t", payload=b"%d" % i, qos=1, packet_id=i + 1).encode(V311) for i in range(9)])
    messages = client.messages()
    for index in (4, 0, 8, 5):
        client.ack(PUBACK, messages[index].packet_id)
    client.lose()
    client = harness.durable("a", V311, session_present=True)
    client.lose()

    client = harness.durable("a", V311, session_present=True)

    assert client.payloads() == [b"1", b"2", b"3", b"6", b"7"]


def test_resending_honours_a_smaller_receive_maximum(harness: Harness) -> None:
    """A client that comes back with a smaller window gets its messages again as the window allows."""
    client = harness.durable("a", V5)
    client.subscribe("t", 1)
    publisher = harness.connect("p")
    for i in range(5):
        publisher.publish("t", b"%d" % i, 1)
    assert len(client.messages()) == 5
    client.lose()

    client = harness.durable("a", V5, session_present=True, properties={"receive_maximum": 2})
    seen = []
    while messages := client.messages():
        assert len(messages) <= 2
        seen += [message.payload for message in messages]
        for message in messages:
            client.ack(PUBACK, message.packet_id)

    assert seen == [b"%d" % i for i in range(5)]


def test_version_may_change_between_connections(harness: Harness) -> None:
    """A session that goes on in another version gets its messages in that version."""
    client = harness.durable("a", V311)
    client.subscribe("t", 1)
    client.lose()
    harness.connect("p", V5).publish("t", b"x", 1, properties={"content_type": "text/plain"})

    client = harness.durable("a", V5, session_present=True)

    (message,) = client.messages()
    assert message.properties == {"content_type": "text/plain"}
    harness.connect("q").publish("t", b"y")
    assert client.payloads() == [b"y"]


@S("5:MQTT-4.3.3-10", "3.1.1:MQTT-4.3.3-2")
def test_received_identifiers_outlive_the_connection(harness: Harness, version: Version) -> None:
    """A QoS 2 PUBLISH sent again after a reconnect is not delivered twice."""
    subscriber = harness.connect("s")
    subscriber.subscribe("t", 0)
    client = harness.durable("a", version)
    client.publish("t", b"x", 2, packet_id=7)
    client.lose()
    client = harness.durable("a", version, session_present=version != Version.V31)
    client.publish("t", b"x", 2, packet_id=7, dup=True)
    client.ack(PUBREL, 7)

    assert client.received() == [Ack(packet_id=7), Ack(packet_id=7)]
    assert subscriber.payloads() == [b"x"]


def test_offline_queue_drops_the_newest(harness: Harness) -> None:
    """A queue that is full keeps what it has; the loss is counted, and said once at each end."""
    harness = Harness(limits=ConnectionLimits(max_queue_count=3))
    client = harness.durable("a")
    client.subscribe("t", 1)
    client.lose()
    publisher = harness.connect("p")
    for i in range(5):
        publisher.publish("t", b"%d" % i, 1)
    assert [event for event in harness.observer.events if event[0] == "dropping"] == [("dropping", "a", "queue full")]

    client = harness.durable("a", session_present=True)

    assert client.payloads() == [b"0", b"1", b"2"]
    assert ("dropped", "a", "queue full", 2) in harness.observer.events
    assert harness.router.stats.dropped == 2


def test_offline_queue_is_bounded_in_bytes(harness: Harness) -> None:
    """The queue's bytes are bounded too; a run is cut where it no longer fits."""
    harness = Harness(limits=ConnectionLimits(max_queue_bytes=250))
    client = harness.durable("a")
    client.subscribe("t", 1)
    client.lose()
    packets = [Publish(topic=b"t", payload=b"x" * 93, qos=1, packet_id=i + 1).encode(V311) for i in range(4)]
    assert len(packets[0]) == 100
    harness.connect("p").send(*packets)

    assert len(harness.durable("a", session_present=True).messages()) == 2
    assert harness.router.stats.dropped == 2


def test_queue_goes_on_after_the_window(harness: Harness) -> None:
    """QoS 2 exchanges that a lost connection left at PUBREL are finished, and their places used again."""
    limits = ConnectionLimits(max_inflight_count=2)
    client = harness.durable("a", limits=limits)
    client.subscribe("t", 2)
    publisher = harness.connect("p")
    for i in range(4):
        publisher.publish("t", b"%d" % i, 2)
    first, second = client.messages()
    client.ack(PUBREC, first.packet_id)
    client.ack(PUBREC, second.packet_id)
    client.lose()
    client = harness.durable("a", limits=limits, session_present=True)
    assert client.received() == [Ack(packet_id=first.packet_id), Ack(packet_id=second.packet_id)]
    client.ack(PUBCOMP, second.packet_id)
    (third,) = client.messages()
    client.ack(PUBCOMP, first.packet_id)
    (fourth,) = client.messages()

    assert [third.payload, fourth.payload] == [b"2", b"3"]
    assert client.connection.session is not None
    assert client.connection.session.inflight_count() == 2


def test_end_of_a_session_is_kept_in_both_clocks(harness: Harness) -> None:
    """A session that is left alone has its end by the wall clock, and one deadline for it."""
    harness.connect("a", V5, properties={"session_expiry_interval": 10}).lose()
    session = harness.router.sessions["a"]

    assert session.expires_at == harness.wall + 10
    assert harness.router.deadlines.next() == harness.now + 10
    again = harness.connect("a", V5, clean_start=False, session_present=True)
    assert [session.expires_at, session.expiry_deadline] == [None, None]
    again.lose()
    assert "a" not in harness.router.sessions
