"""Every fast path against its plain twin: however bytes are cut into reads, the outcome is the same."""

from collections import defaultdict
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.core.limits import ConnectionLimits
from broker.mqtt.packets import Ack, Connect, PacketType, Publish, Version
from broker.mqtt.topics import matches
from tests.harness import PUBACK, PUBCOMP, PUBREC, PUBREL, V5, V311, Client, Harness, examples

topics = st.sampled_from([b"a", b"a/b", b"b", b"$x", b"long/" + b"x" * 130])
payloads = st.sampled_from([b"", b"1", b"2", b"xy", b"x" * 200])
PROPERTIES: list[dict[str, Any]] = [
    {},
    {"content_type": "c"},
    {"user_property": [("a", "b"), ("a", "c")]},
    {"message_expiry_interval": 9},
]
properties = st.sampled_from(PROPERTIES)


@st.composite
def messages(draw: st.DrawFn) -> list[Publish]:
    """Messages with many repetitions, so that runs come up, identifiers in and out of order."""
    found: list[Publish] = []
    packet_id = draw(st.sampled_from([1, 40, 65_530]))
    for _ in range(draw(st.integers(1, 6))):
        topic, payload, qos = draw(topics), draw(payloads), draw(st.integers(0, 2))
        retain, extra = draw(st.booleans()), draw(properties)
        for _ in range(draw(st.sampled_from([1, 2, 5]))):
            packet_id = draw(st.sampled_from([packet_id % 65_535 + 1] * 5 + [7]))
            found.append(
                Publish(
                    topic=topic,
                    payload=payload,
                    qos=qos,
                    retain=retain,
                    packet_id=packet_id if qos else 0,
                    properties=dict(extra),
                )
            )
    return found


SUBSCRIPTIONS = ((V311, "#", 0), (V311, "a/#", 1), (V5, "+", 2), (V5, "a", 8), (V5, "b", 1))


def outcome(version: Version, data: bytes, cuts: list[int]) -> list[Any]:
    """Return all that everybody receives when *data* comes cut at *cuts*."""
    harness = Harness(limits=ConnectionLimits(max_inflight_count=20))
    subscribers = []
    for number, (subscriber_version, topic_filter, options) in enumerate(SUBSCRIPTIONS):
        client = harness.connect(f"s{number}", subscriber_version)
        client.subscribe(topic_filter, options, identifier=number if number == 4 else 0)
        subscribers.append(client)
    publisher = harness.connect("p", version, limits=ConnectionLimits(max_inflight_count=1000))
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if not publisher.is_closed:
            publisher.send(data[start:stop])
    store = harness.router.retained
    found = [(topic, store.get(topic, harness.wall)) for topic in sorted(store.topics(b"#"))]
    retained = [(topic, run.payload(0)) for topic, run in found if run is not None]
    return [publisher.received(), retained, *[settle(client) for client in subscribers]]


def settle(client: Client) -> list[Publish]:
    """Acknowledge until nothing more comes; return all messages, their identifiers left out."""
    seen: list[Publish] = []
    while packets := client.received():
        for packet in packets:
            if isinstance(packet, Publish):
                if packet.qos:
                    client.ack(PUBACK if packet.qos == 1 else PUBREC, packet.packet_id)
                packet.packet_id = 0
                seen.append(packet)
            elif isinstance(packet, Ack):
                client.ack(PUBCOMP, packet.packet_id)
    return seen


@settings(max_examples=examples(150))
@given(st.sampled_from([V311, V5]), messages(), st.data())
def test_cuts_do_not_matter(version: Version, published: list[Publish], data: st.DataObject) -> None:
    """All at once, packet by packet, byte by byte and cut anywhere give the same."""
    packets = [message.encode(version) for message in published]
    stream = b"".join(packets)
    expected = outcome(version, stream, [])
    boundaries = [sum(map(len, packets[: i + 1])) for i in range(len(packets) - 1)]
    anywhere = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=6)))

    assert outcome(version, stream, boundaries) == expected
    assert outcome(version, stream, list(range(1, len(stream)))) == expected
    assert outcome(version, stream, anywhere) == expected


@settings(max_examples=examples(150))
@given(st.sampled_from([V311, V5]), messages())
def test_runs_are_what_the_plain_reading_says(version: Version, published: list[Publish]) -> None:
    """What subscribers get is what a plain reading of the specification says, message by message."""
    result = outcome(version, b"".join(message.encode(version) for message in published), [])
    received: set[int] = set()
    expected: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    answers = []
    for message in published:
        if message.qos:
            answers.append((message.qos, message.packet_id))
        if message.qos == 2:
            if message.packet_id in received:
                continue
            received.add(message.packet_id)
        for number, (subscriber_version, topic_filter, options) in enumerate(SUBSCRIPTIONS):
            if not matches(topic_filter.encode(), message.topic):
                continue
            extra = dict(message.properties) if version is V5 and subscriber_version is V5 else {}
            if number == 4:
                extra["subscription_identifier"] = [4]
            kept = message.retain and bool(options & 8)
            expected[number].append((message.topic, message.payload, min(message.qos, options & 3), kept, extra))

    assert [Ack(packet_id=packet_id) for _, packet_id in answers] == result[0]
    for number in range(len(SUBSCRIPTIONS)):
        got = [(m.topic, m.payload, m.qos, m.retain, m.properties) for m in result[2 + number]]
        # Only messages of one topic are promised an order among different QoS through a full window.
        for topic in {message.topic for message in published}:
            for qos in (0, 1, 2):
                assert [m for m in got if (m[0], m[2]) == (topic, qos)] == [
                    m for m in expected[number] if (m[0], m[2]) == (topic, qos)
                ]


@settings(max_examples=examples(200))
@given(st.lists(st.integers(0, 29), max_size=40), st.sampled_from([1, 2]), st.booleans())
def test_acknowledgements_in_any_order(order: list[int], qos: int, at_once: bool) -> None:
    """Whatever order acknowledgements come in, together or one by one, each message is settled exactly once."""
    harness = Harness(limits=ConnectionLimits(max_inflight_count=30))
    client = harness.connect("s")
    client.subscribe("t", qos)
    publisher = harness.connect("p")
    publisher.send(
        *[Publish(topic=b"t", payload=b"%02d" % i, qos=qos, packet_id=i + 1).encode(V311) for i in range(20)]
    )
    publisher.send(*[Publish(topic=b"t", payload=b"x", qos=qos, packet_id=i + 1).encode(V311) for i in range(20, 30)])
    identifiers = [message.packet_id for message in client.messages()]
    steps = [PUBACK] if qos == 1 else [PUBREC, PUBCOMP]
    for kind in steps:
        acks = [Ack(packet_id=identifiers[i]).encode(kind, V311) for i in order]
        if at_once:
            client.send(*acks)
        else:
            for ack in acks:
                client.send(ack)
        client.received()

    assert client.connection.session is not None
    assert client.connection.session.inflight_count() == 30 - len(set(order))
    window = client.connection.session.window
    assert window is not None
    assert window.bytes == sum(stretch[1] * stretch[4] for stretch in window.unacknowledged())


@settings(max_examples=examples(300))
@given(st.sampled_from([V311, V5]), st.binary(max_size=60), st.booleans())
@example(V5, b"\x30\x80\x80\x80\x80\x01", False)
@example(V5, b"\xe0\x02\x00\x80", False)
def test_any_bytes_are_accepted_or_refused(version: Version, data: bytes, is_connected: bool) -> None:
    """Whatever a client sends ends in an answer or in its own end; nobody else notices."""
    harness = Harness()
    other = harness.connect("other")
    client = harness.connect("c", version) if is_connected else harness.open(version)
    client.send(data)
    client.received()
    other.send(b"\xc0\x00")

    assert other.received() == [PacketType.PINGRESP]
    assert not harness.router.dirty


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid packet with a few bytes changed, cut or doubled."""
    packet = draw(
        st.sampled_from(
            [
                Connect(version=V5, client_id="x", properties={"receive_maximum": 5}).encode(),
                Publish(topic=b"t", payload=b"x", qos=2, packet_id=3, properties={"content_type": "c"}).encode(V5),
                Ack(packet_id=1, reason=0x10).encode(PUBREC, V5),
                Ack(packet_id=1).encode(PUBREL, V5),
                b"\x82\x0b\x00\x01\x02\x0b\x05\x00\x03a/+\x01",
                b"\xa2\x07\x00\x01\x00\x00\x02ab",
                b"\xe0\x07\x00\x05\x11\x00\x00\x00\x05",
                b"\xf0\x09\x19\x07\x15\x00\x04abcd",
            ]
        )
    )
    data = bytearray(packet)
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(data) - 1))
        data[position] = draw(st.integers(0, 255))
    return bytes(data) * draw(st.integers(1, 3))


@settings(max_examples=examples(500))
@given(mutated())
def test_damaged_packets_hurt_nobody_else(data: bytes) -> None:
    """A packet with a few wrong bytes is served or ends its connection, and never the broker."""
    harness = Harness()
    watcher = harness.connect("w", V5)
    watcher.subscribe("#", 2)
    client = harness.durable("c", V5)
    client.send(data)
    client.received()
    if not client.is_closed:
        client.lose()
    again = harness.durable("c", V5, session_present="c" in harness.router.sessions)
    again.lose()

    assert not watcher.is_closed
