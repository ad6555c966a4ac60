"""Slow readers, floods and leftovers: who is held back, who loses what."""

from broker.core.limits import ConnectionLimits
from broker.mqtt.packets import PINGREQ, Disconnect, PacketType, Publish
from broker.mqtt.reason_codes import ReasonCode
from tests.harness import PUBACK, V5, V311, Harness


def test_slow_reader_loses_qos0_only(harness: Harness) -> None:
    """While a client does not read, QoS 0 messages to it are dropped and counted; QoS 1 ones wait."""
    slow = harness.connect("slow", V5, limits=ConnectionLimits(max_inflight_count=1))
    slow.subscribe("t", 1)
    quick = harness.connect("quick")
    quick.subscribe("t", 0)
    publisher = harness.connect("p")
    publisher.publish("t", b"before")
    slow.connection.blocked()
    for _ in range(3):
        publisher.publish("t", b"lost")
    publisher.publish("t", b"1", 1)
    publisher.publish("t", b"2", 1)
    slow.connection.unblocked()
    publisher.publish("t", b"after")

    messages = slow.messages()

    assert [m.payload for m in messages] == [b"before", b"1", b"after"]
    assert len(quick.messages()) == 7
    assert ("dropped", "slow", "slow reader", 3) in harness.observer.events
    slow.ack(PUBACK, messages[1].packet_id)
    assert slow.payloads() == [b"2"]


def test_reader_that_stopped_is_disconnected(harness: Harness) -> None:
    """A client that reads nothing of a full outbox for slow_reader_timeout is cut off; one that reads slowly is not."""
    limits = ConnectionLimits(slow_reader_timeout=10.0)
    stopped, recovered, slow = (harness.connect(name, V5, limits=limits) for name in ("stopped", "recovered", "slow"))
    for client in (stopped, recovered, slow):
        client.connection.blocked()
    harness.advance(9)
    recovered.connection.unblocked()
    slow.wire.has_taken = 1
    assert not stopped.is_closed
    harness.advance(1)

    (packet,) = stopped.received()

    assert isinstance(packet, Disconnect)
    assert packet.reason is ReasonCode.QUOTA_EXCEEDED
    assert not recovered.is_closed
    assert not slow.is_closed
    harness.advance(10)
    assert slow.is_closed


def test_client_that_asks_and_never_reads_is_cut_off(harness: Harness) -> None:
    """Answers to a client that does not read them are bounded too."""
    client = harness.connect("a", V5, limits=ConnectionLimits(max_outbox_bytes=1000, max_inflight_bytes=500))
    client.connection.blocked()
    client.wire.unread = 4500
    client.send(PINGREQ)
    assert not client.is_closed
    client.wire.unread = 4501
    client.send(PINGREQ)

    assert client.is_closed


def test_one_write_per_turn(harness: Harness) -> None:
    """All that a turn brings for a client goes out in one write."""
    subscriber = harness.connect("s")
    subscriber.subscribe("#")
    publisher = harness.connect("p")
    before = subscriber.wire.writes
    publisher.send(*[Publish(topic=b"t%d" % i, payload=b"x" * i).encode(V311) for i in range(100)])

    assert len(subscriber.messages()) == 100
    assert subscriber.wire.writes == before + 1


def test_outboxes_are_bounded_within_a_turn(harness: Harness) -> None:
    """Much published in one turn is written out before the turn is over."""
    subscriber = harness.connect("s")
    subscriber.subscribe("#")
    publisher = harness.connect("p")
    before = subscriber.wire.writes
    publisher.send(*[Publish(topic=b"t%d" % i, payload=b"x" * 100_000).encode(V311) for i in range(9)])

    assert subscriber.wire.writes - before >= 3
    assert len(subscriber.messages()) == 9


def test_flood_takes_turns(harness: Harness) -> None:
    """One client's input is handled up to a budget; then others have their turn, and it is read no further."""
    publisher = harness.connect("p", V5)
    other = harness.connect("o")
    harness.tell_time()
    flood = b"".join(Publish(topic=b"t%d" % (i % 7), payload=b"x").encode(V5) for i in range(20_000))
    publisher.connection.receive(flood)
    assert 0 < harness.router.stats.published < 10_000
    assert publisher.wire.pauses == 1
    other.connection.receive(PINGREQ)
    harness.router.flush()
    assert other.received() == [PacketType.PINGRESP]
    assert harness.router.stats.published < 10_000
    publisher.connection.receive(Publish(topic=b"last").encode(V5))

    harness.turn()

    assert harness.router.stats.published == 20_001
    assert publisher.wire.pauses == 0


def test_fan_out_counts_towards_the_budget(harness: Harness) -> None:
    """A message to a thousand subscribers costs its publisher a thousand times more."""
    for i in range(1000):
        harness.connect(f"s{i}").subscribe("#")
    publisher = harness.connect("p")
    publisher.connection.receive(b"".join(Publish(topic=b"t%d" % (i % 7)).encode(V311) for i in range(100)))

    assert 10 <= harness.router.stats.published < 30
    harness.turn()
    assert harness.router.stats.published == 100


def test_closing_with_input_left(harness: Harness) -> None:
    """A connection that is lost with input still to handle is not touched again."""
    publisher = harness.connect("p")
    publisher.connection.receive(b"".join(Publish(topic=b"t%d" % (i % 7)).encode(V311) for i in range(20_000)))
    publisher.connection.lost("gone")
    published = harness.router.stats.published
    harness.turn()

    assert harness.router.stats.published == published


def test_partial_packets_are_not_joined_again_and_again(harness: Harness) -> None:
    """The pieces of a packet are joined once, when it is whole."""
    client = harness.connect("p", limits=ConnectionLimits(max_remaining_length=1_000_000))
    packet = Publish(topic=b"t", payload=b"x" * 900_000).encode(V311)
    for at in range(0, 900_000, 1000):
        client.connection.receive(packet[at : at + 1000])
    assert len(client.connection.rest) == 900
    client.send(packet[900_000:])

    assert client.connection.rest == []
    assert harness.router.stats.published == 1


def test_blocking_comes_and_goes(harness: Harness) -> None:
    """A client may be slow again and again; each time QoS 0 is dropped, and its time begins anew."""
    client = harness.connect("s", V5, limits=ConnectionLimits(slow_reader_timeout=10.0))
    client.subscribe("t")
    publisher = harness.connect("p")
    for round_ in (b"1", b"2", b"3"):
        client.connection.blocked()
        harness.advance(4)
        client.connection.blocked()
        publisher.publish("t", b"lost")
        harness.advance(5)
        client.connection.unblocked()
        client.connection.unblocked()
        publisher.publish("t", round_)
        assert client.payloads() == [round_]
    harness.advance(100)
    assert not client.is_closed
    assert harness.router.stats.dropped == 3
    client.lose()
    client.connection.blocked()
    harness.advance(100)

    assert [event[0] for event in harness.observer.events].count("disconnected") == 1


def test_words_of_timeouts(harness: Harness) -> None:
    """A time-out names its limit in the unit of the configuration."""
    harness.open(V5, ConnectionLimits(connection_timeout=1.5))
    harness.advance(2)

    assert harness.observer.events == [("refused", "", 0x80, "no complete CONNECT within connection_timeout_ms (1500)")]
