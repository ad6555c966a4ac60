"""The barrier: what is acknowledged to a durable session, or retained, waits for the journal."""

from typing import Any

import pytest

from broker.core import acknowledging
from broker.core.limits import ConnectionLimits
from broker.mqtt.packets import Ack, ConnAck, Connect, Disconnect, PacketType, Publish, SubAck, Subscribe
from broker.mqtt.packets import SubscriptionRequest as Request
from tests.core.journal_model import JournalModel
from tests.harness import PUBACK, PUBCOMP, PUBREC, PUBREL, V5, V311, Client, Harness


class FakeJournal:
    """Notes records; the test commits."""

    def __init__(self) -> None:
        self.position = 1
        self.records: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: self.records.append((name, *args))

    def names(self) -> list[str]:
        """Return the kinds of records, and forget them."""
        names = [record[0] for record in self.records]
        self.records.clear()
        return names


def journalled(limits: ConnectionLimits | None = None) -> tuple[Harness, FakeJournal]:
    """Return a broker with a journal."""
    journal = FakeJournal()
    harness = Harness(limits=limits, journal=journal)
    harness.commits = False
    return harness, journal


def commit(harness: Harness, journal: FakeJournal) -> None:
    """Commit what the journal has."""
    position = journal.position
    journal.position += 1
    harness.router.committed(position)
    harness.turn()


def durable(harness: Harness, journal: FakeJournal, client_id: str = "d") -> Client:
    """Return a connected client with a durable session."""
    client = harness.open(V5)
    properties = {"session_expiry_interval": 100}
    client.send(Connect(version=V5, client_id=client_id, clean_start=False, properties=properties).encode())
    assert client.received() == []
    commit(harness, journal)
    (connack,) = client.received()
    assert isinstance(connack, ConnAck)
    journal.names()
    return client


def test_answers_wait_for_their_commit() -> None:
    """CONNACK, SUBACK, PUBACK and PUBREC leave when their batch is committed, and in order."""
    harness, journal = journalled()
    client = durable(harness, journal)
    client.send(Subscribe(packet_id=1, requests=[Request(b"t", 2)]).encode(V5))
    client.publish("t", b"x", 1, packet_id=2)
    client.publish("t", b"y", 2, packet_id=3)
    early = client.received()
    assert [packet.qos for packet in early if isinstance(packet, Publish)] == [1]
    assert len(early) == 1
    commit(harness, journal)
    kinds = [type(packet) for packet in client.received()]

    assert kinds == [SubAck, Ack, Publish, Ack]
    assert journal.names() == ["subscription_saved", "sent", "sent", "received"]


def test_a_later_batch_does_not_leave_early() -> None:
    """A commit lets go exactly what was written before it."""
    harness, journal = journalled()
    client = durable(harness, journal)
    client.publish("t", b"x", 1, packet_id=1)
    first = journal.position
    journal.position += 1
    client.publish("t", b"y", 1, packet_id=2)
    harness.router.committed(first)
    harness.turn()
    assert client.received() == [Ack(packet_id=1)]
    harness.router.committed(journal.position)
    harness.turn()

    assert client.received() == [Ack(packet_id=2)]


def test_answers_without_records_keep_their_place() -> None:
    """An acknowledgement that needs no disk stays behind one that waits; pings and QoS 0 do not."""
    harness, journal = journalled()
    client = durable(harness, journal)
    client.publish("t", b"x", 1, packet_id=1)
    client.ack(PUBREL, 99)
    client.send(b"\xc0\x00")
    assert client.received() == [PacketType.PINGRESP]
    commit(harness, journal)

    assert client.received() == [Ack(packet_id=1), Ack(packet_id=99, reason=0x92)]


def test_every_step_of_qos2_is_recorded() -> None:
    """Both directions of QoS 2 leave a record for each step, and PUBREL and PUBCOMP wait."""
    harness, journal = journalled()
    client = durable(harness, journal)
    client.send(Subscribe(packet_id=1, requests=[Request(b"t", 2)]).encode(V5))
    client.publish("t", b"x", 2, packet_id=7)
    commit(harness, journal)
    (message,) = [packet for packet in client.received() if isinstance(packet, Publish)]
    journal.names()
    client.ack(PUBREL, 7)
    client.ack(PUBREC, message.packet_id)
    assert client.received() == []
    commit(harness, journal)
    assert client.received() == [Ack(packet_id=7), Ack(packet_id=message.packet_id)]
    client.ack(PUBCOMP, message.packet_id)

    assert journal.names() == ["released", "settled", "completed"]


def test_queue_and_acknowledgement_are_recorded() -> None:
    """A message for a client that is away is queued in the journal, sent when it is back, settled by its PUBACK."""
    harness, journal = journalled()
    client = durable(harness, journal)
    client.send(Subscribe(packet_id=1, requests=[Request(b"t", 1)]).encode(V5))
    client.lose()
    publisher = harness.connect("p")
    journal.names()
    publisher.publish("t", b"x", 1)
    assert publisher.received() == []
    assert journal.names() == ["queued"]
    commit(harness, journal)
    assert publisher.received() == [Ack(packet_id=1)]
    client = harness.open(V5)
    properties = {"session_expiry_interval": 100}
    client.send(Connect(version=V5, client_id="d", clean_start=False, properties=properties).encode())
    commit(harness, journal)
    packets = client.received()
    (message,) = [packet for packet in packets if isinstance(packet, Publish)]
    client.ack(PUBACK, message.packet_id)

    assert journal.names() == ["session_saved", "sent", "settled"]


def test_retained_and_ended_sessions_are_recorded() -> None:
    """Retained messages set and cleared, subscriptions and sessions removed."""
    harness, journal = journalled()
    client = durable(harness, journal)
    client.publish("t", b"x", 1, packet_id=1, retain=True)
    client.publish("t", b"", 1, packet_id=2, retain=True)
    client.lose()
    harness.advance(101)

    assert journal.names() == ["retained", "retained", "session_saved", "session_removed"]


def test_clean_sessions_write_nothing() -> None:
    """What no disk needs to know leaves no record."""
    harness, journal = journalled()
    client = harness.connect("a")
    client.subscribe("t", 2)
    client.publish("t", b"x", 0)
    client.publish("t", b"x", 2)
    client.lose()

    assert journal.names() == []


def test_publisher_is_held_back_by_a_slow_journal() -> None:
    """A 3.x publisher is read no further while more than its window waits for the journal, and goes on after."""
    limits = ConnectionLimits(max_inflight_count=3)
    harness, journal = journalled(limits)
    client = harness.connect("p", V311, limits=limits)
    for i in range(1, 9):
        client.publish("t", b"x", 1, packet_id=i)
    assert client.wire.pauses == 1
    assert harness.router.stats.published == 4
    commit(harness, journal)
    commit(harness, journal)
    commit(harness, journal)

    assert [packet.packet_id for packet in client.received() if isinstance(packet, Ack)] == list(range(1, 9))
    assert client.wire.pauses == 0


def test_receive_maximum_counts_what_waits() -> None:
    """An MQTT 5 client that has more in flight than it was allowed is cut off."""
    limits = ConnectionLimits(max_inflight_count=3)
    harness, _ = journalled(limits)
    client = harness.connect("p", V5, limits=limits)
    for i in range(1, 5):
        client.publish("t", b"x", 1, packet_id=i)

    packet = client.received()[-1]

    assert isinstance(packet, Disconnect)
    assert packet.reason == 0x93


def test_session_that_is_no_longer_durable_is_removed() -> None:
    """A client that comes back without an expiry takes its session out of the journal at once."""
    harness, journal = journalled()
    durable(harness, journal).lose()
    journal.names()
    client = harness.open(V5)
    client.send(Connect(version=V5, client_id="d", clean_start=False).encode())
    assert journal.names() == ["session_removed"]
    commit(harness, journal)
    client.lose()

    assert journal.names() == []


def modelled(max_inflight_count: int) -> tuple[Harness, JournalModel]:
    """Return a broker with a journal that is held against it."""
    journal = JournalModel()
    return Harness(limits=ConnectionLimits(max_inflight_count=max_inflight_count), journal=journal), journal


@pytest.mark.parametrize("qos", [1, 2])
def test_records_agree_with_runs_and_odd_orders(qos: int) -> None:
    """Runs, acknowledgements in any order, with reasons, and errors leave records of what the broker has."""
    harness, journal = modelled(max_inflight_count=8)
    client = harness.durable("s", V5)
    client.subscribe("t", qos, 7)
    publisher = harness.durable("p", V5, limits=ConnectionLimits())
    for first in (1, 300, 65_530):
        packets = [Publish(topic=b"t", qos=qos, packet_id=first + i).encode(V5) for i in range(6)]
        publisher.send(*packets)
        journal.compare(harness.router)
    publisher.received()
    while messages := [packet for packet in client.received() if isinstance(packet, Publish)]:
        for position in (2, 0, 1):
            if position < len(messages):
                reason = 0x80 if position == 2 else 0
                client.ack(PUBACK if qos == 1 else PUBREC, messages[position].packet_id, reason)
                journal.compare(harness.router)
        rest = messages[3:]
        client.send(*[Ack(packet_id=m.packet_id).encode(PUBACK if qos == 1 else PUBREC, V5) for m in rest])
        journal.compare(harness.router)
        if qos == 2:
            open_ones = [m.packet_id for i, m in enumerate(messages) if i != 2]
            client.ack(PUBREC, open_ones[0])
            client.ack(PUBCOMP, open_ones[-1])
            client.send(*[Ack(packet_id=i).encode(PUBCOMP, V5) for i in open_ones[:-1]])
            journal.compare(harness.router)
    if qos == 2:
        for first in (1, 300, 65_530):
            publisher.ack(PUBREL, first + 3)
            publisher.send(*[Ack(packet_id=first + i).encode(PUBREL, V5) for i in (0, 1, 2, 4, 5)])
            journal.compare(harness.router)
    assert journal.sessions["s"].items == []
    assert journal.sessions["p"].received == set()


def test_records_of_what_is_dropped_from_the_queue() -> None:
    """Expired messages, those too large after a reconnect, and sessions that end leave nothing behind."""
    harness, journal = modelled(max_inflight_count=2)
    client = harness.durable("s", V5)
    client.subscribe("t", 2)
    publisher = harness.connect("p", V5)
    for size in (10, 200, 10, 200, 10):
        publisher.publish("t", b"x" * size, 2)
    publisher.publish("t", b"old", 1, properties={"message_expiry_interval": 1})
    journal.compare(harness.router)
    client.lose()
    harness.advance(10)
    client = harness.durable("s", V5, session_present=True, properties={"maximum_packet_size": 100})
    while messages := client.received():
        for message in messages:
            if isinstance(message, Publish):
                client.ack(PUBREC, message.packet_id)
            else:
                client.ack(PUBCOMP, message.packet_id)  # type: ignore[union-attr]  # PUBREL
            journal.compare(harness.router)
    assert journal.sessions["s"].items == []
    client.unsubscribe("t")
    client.lose()
    harness.advance(10_000)

    journal.compare(harness.router)
    assert journal.sessions == {}


def test_nothing_leaves_before_connack() -> None:
    """While CONNACK waits for the disk nothing overtakes it; QoS 0 messages of that time are not for the client."""
    harness, journal = journalled()
    client = durable(harness, journal)
    client.send(Subscribe(packet_id=1, requests=[Request(b"t", 1)]).encode(V5))
    commit(harness, journal)
    client.lose()
    publisher = harness.connect("p")
    publisher.publish("t", b"1", 1)
    client = harness.open(V5)
    properties = {"session_expiry_interval": 100}
    client.send(Connect(version=V5, client_id="d", clean_start=False, properties=properties).encode(), b"\xc0\x00")
    publisher.publish("t", b"0", 0)
    publisher.publish("t", b"2", 1)
    assert client.received() == []
    commit(harness, journal)

    packets = client.received()

    assert [type(packet) for packet in packets] == [ConnAck, Publish, PacketType, Publish]
    assert [packet.payload for packet in packets if isinstance(packet, Publish)] == [b"1", b"2"]
    assert harness.router.stats.dropped == 0
    publisher.publish("t", b"live")
    assert len(client.received()) == 1


def test_connection_that_ends_before_its_connack() -> None:
    """A client that is lost while its CONNACK waits never gets it, and its session is kept."""
    harness, journal = journalled()
    client = harness.open(V5)
    properties = {"session_expiry_interval": 100}
    client.send(Connect(version=V5, client_id="d", clean_start=False, properties=properties).encode(), b"\x00\x00")
    assert client.is_closed
    commit(harness, journal)

    assert client.received() == []
    assert "d" in harness.router.sessions
    harness.advance(101)
    assert "d" not in harness.router.sessions


def test_runs_leave_one_record_each() -> None:
    """A run of acknowledgements is one record, wherever its identifiers begin, also behind other packets."""
    harness, journal = journalled()
    client = durable(harness, journal)
    for first in (1, 300, 65_530):
        ids = range(first, first + 6)
        client.send(*[Publish(topic=b"t", qos=2, packet_id=i).encode(V5) for i in ids])
        journal.names()
        client.send(b"\xc0\x00", *[Ack(packet_id=i).encode(PUBREL, V5) for i in ids])
        assert journal.records == [("released", "d", first, 6)]
    commit(harness, journal)
    packets = [packet for packet in client.received() if isinstance(packet, Ack)]

    expected = [i for first in (1, 300, 65_530) for _ in range(2) for i in range(first, first + 6)]
    assert [packet.packet_id for packet in packets] == expected
    assert {packet.reason for packet in packets} == {0}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([1], [(1, 1)]), ([255, 256, 257], [(255, 3)]), ([65_534, 65_535, 1, 2], [(65_534, 2), (1, 2)]),
     ([5, 7, 8], [(5, 1), (7, 2)]), ([8, 7], [(8, 1), (7, 1)])],
)  # fmt: skip
def test_stretches_of_identifiers(ids: list[int], expected: list[tuple[int, int]]) -> None:
    """Identifiers of acknowledgements come as stretches."""
    data = b"xx" + b"".join(Ack(packet_id=i).encode(PUBACK, V5) for i in ids)

    assert list(acknowledging._ranges(data, 2, len(ids))) == expected


def test_acknowledgements_with_a_written_out_success() -> None:
    """PUBACK to PUBCOMP with a reason byte of 0 do what those without it do."""
    harness, journal = modelled(max_inflight_count=100)
    client = harness.durable("s", V5)
    client.subscribe("t", 2)
    client.send(*[Publish(topic=b"t", qos=qos, packet_id=qos).encode(V5) for qos in (1, 2)])
    journal.compare(harness.router)
    messages = [packet for packet in client.received() if isinstance(packet, Publish)]
    steps = [(0x40, messages[0].packet_id), (0x50, messages[1].packet_id), (0x62, 2), (0x70, messages[1].packet_id)]
    harness.commits = False
    for first, packet_id in steps:
        client.send(bytes((first, 3, 0, packet_id, 0)))
        journal.compare(harness.router)
    assert client.received() == []
    harness.commits = True
    harness.turn()

    assert client.received() == [Ack(packet_id=messages[1].packet_id), Ack(packet_id=2)]
    assert journal.sessions["s"].items == []
    assert not journal.sessions["s"].received
    assert harness.router.sessions["s"].received == set()


def test_input_goes_on_when_half_has_been_committed() -> None:
    """A publisher that was held back is read again when half of its window waits, not before."""
    limits = ConnectionLimits(max_inflight_count=5)
    harness, journal = journalled(limits)
    client = harness.connect("p", V311, limits=limits)
    for i in range(1, 8):
        client.publish("t", b"x", 1, packet_id=i)
        if i < 7:
            journal.position += 1
    assert client.connection.held_messages == 6
    assert client.wire.pauses == 1
    for position in range(1, 4):
        harness.router.committed(position)
        assert client.wire.pauses == 1
    harness.router.committed(4)

    assert client.wire.pauses == 0


@pytest.mark.parametrize("qos", [1, 2])
def test_runs_to_a_client_leave_one_record_for_each_step(qos: int) -> None:
    """Acknowledgements of a run that was sent are one record a step, and answered in one go."""
    harness, journal = journalled()
    client = durable(harness, journal)
    client.send(Subscribe(packet_id=1, requests=[Request(b"t", qos)]).encode(V5))
    commit(harness, journal)
    harness.connect("p").send(*[Publish(topic=b"t", qos=qos, packet_id=i + 1).encode(V311) for i in range(6)])
    commit(harness, journal)
    client.received()
    assert journal.records[-1][0] == "sent"
    assert journal.records[-1][3:] == (0, 6, 1)
    journal.names()
    steps: list[tuple[PacketType, tuple[Any, ...]]] = [(PUBACK, ("settled", "d", 1, 1, 6))]
    if qos == 2:
        steps = [(PUBREC, ("settled", "d", 2, 1, 6)), (PUBCOMP, ("completed", "d", 1, 6))]
    for kind, record in steps:
        client.send(b"\xc0\x00", *[Ack(packet_id=i + 1).encode(kind, V5) for i in range(6)])
        assert journal.records == [record]
        journal.names()
        commit(harness, journal)
        answers = [packet for packet in client.received() if isinstance(packet, Ack)]
        assert [packet.packet_id for packet in answers] == ([1, 2, 3, 4, 5, 6] if kind is PUBREC else [])
        assert all(packet.reason == 0 for packet in answers)
    assert harness.router.sessions["d"].inflight_count() == 0
