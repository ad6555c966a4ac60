"""Retained messages: kept, cleared, replayed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.limits import RouterLimits
from broker.core.retained import RetainedStore
from broker.core.run import Run
from broker.mqtt.packets import Ack, Disconnect, Publish, Version
from broker.mqtt.reason_codes import ReasonCode
from broker.mqtt.topics import matches
from tests.harness import V5, V311, Harness

S = pytest.mark.statement


@S(
    "3.1.1:MQTT-3.3.1-5",
    "5:MQTT-3.3.1-5",
    "3.1.1:MQTT-3.3.1-6",
    "3.1.1:MQTT-3.3.1-8",
    "5:MQTT-3.3.1-9",
    "3.1.1:MQTT-3.3.1-9",
)
@S("5:MQTT-3.8.4-4", "3.1.1:MQTT-3.8.4-3", "5:MQTT-3.3.1-12")
def test_new_subscription_gets_the_last_message(harness: Harness, version: Version) -> None:
    """The last retained message comes with RETAIN set; while one is subscribed it comes without."""
    live = harness.connect("live", version)
    live.subscribe("t", 1)
    publisher = harness.connect("p", version)
    publisher.publish("t", b"old", 1, retain=True)
    publisher.publish("t", b"new", 1, retain=True)
    assert [(m.payload, m.retain) for m in live.messages()] == [(b"old", False), (b"new", False)]

    (message,) = harness.connect("late", version).subscribe("t", 1)

    assert isinstance(message, Publish)
    assert (message.payload, message.retain, message.qos) == (b"new", True, 1)


@S("3.1.1:MQTT-3.3.1-10", "3.1.1:MQTT-3.3.1-11", "5:MQTT-3.3.1-6", "5:MQTT-3.3.1-7")
def test_empty_payload_clears(harness: Harness, version: Version) -> None:
    """An empty retained message removes the one that was there, and is itself delivered but not kept."""
    live = harness.connect("live")
    live.subscribe("t")
    publisher = harness.connect("p", version)
    publisher.publish("t", b"x", retain=True)
    publisher.publish("t", b"", retain=True)

    assert live.payloads() == [b"x", b""]
    assert harness.connect("late").subscribe("t") == []
    assert len(harness.router.retained) == 0


@S("3.1.1:MQTT-3.3.1-12", "5:MQTT-3.3.1-8")
def test_without_the_flag_nothing_is_kept_or_cleared(harness: Harness, version: Version) -> None:
    """A message without RETAIN leaves the retained one alone, an empty one too."""
    publisher = harness.connect("p", version)
    publisher.publish("t", b"x", retain=True)
    publisher.publish("t", b"y")
    publisher.publish("t", b"")

    (message,) = harness.connect("late").subscribe("t")

    assert isinstance(message, Publish)
    assert message.payload == b"x"


@S("5:MQTT-3.3.1-9", "5:MQTT-3.3.1-10", "5:MQTT-3.3.1-11", "5:MQTT-3.8.4-3")
@pytest.mark.parametrize(("handling", "expected"), [(0, [1, 1]), (1, [1, 0]), (2, [0, 0])])
def test_retain_handling(harness: Harness, handling: int, expected: list[int]) -> None:
    """0 replays always, 1 for a new subscription only, 2 never."""
    harness.connect("p").publish("t", b"x", retain=True)
    client = harness.connect("c", V5)

    assert [len(client.subscribe("t", handling << 4)) for _ in range(2)] == expected


@S("3.1.1:MQTT-3.8.4-3")
def test_v3_subscribing_again_replays_again(harness: Harness) -> None:
    """In 3.1.1 every SUBSCRIBE replays."""
    harness.connect("p").publish("t", b"x", retain=True)
    client = harness.connect("c", V311)

    assert [len(client.subscribe("t")) for _ in range(2)] == [1, 1]


@S("5:MQTT-3.3.1-12", "5:MQTT-3.3.1-13")
def test_retain_as_published(harness: Harness) -> None:
    """With the option the flag comes as it was published, without it it is cleared."""
    plain = harness.connect("plain", V5)
    plain.subscribe("t")
    kept = harness.connect("kept", V5)
    kept.subscribe("t", 8)
    publisher = harness.connect("p")
    publisher.publish("t", b"1", retain=True)
    publisher.publish("t", b"2")

    assert [m.retain for m in plain.messages()] == [False, False]
    assert [m.retain for m in kept.messages()] == [True, False]


def test_expired_retained_message_is_gone(harness: Harness) -> None:
    """A retained message is replayed with the time it has left, and not at all when it has none [5:MQTT-3.3.2-6]."""
    publisher = harness.connect("p", V5)
    publisher.publish("t", b"x", retain=True, properties={"message_expiry_interval": 10, "content_type": "a"})
    harness.advance(4)
    (message,) = harness.connect("one", V5).subscribe("t")
    assert isinstance(message, Publish)
    assert message.properties == {"message_expiry_interval": 6, "content_type": "a"}
    assert len(harness.connect("two", V311).subscribe("t")) == 1
    harness.advance(6)
    assert harness.connect("three", V5).subscribe("t") == []

    publisher.publish("u", b"x", retain=True, properties={"message_expiry_interval": 10})
    harness.advance(20)

    assert len(harness.router.retained) == 0


def test_run_keeps_only_its_last_message(harness: Harness) -> None:
    """Many retained messages of one topic in one read leave one behind, and hold no more memory than it."""
    publisher = harness.connect("p")
    publisher.send(*[Publish(topic=b"t", payload=b"%03d" % i, retain=True).encode(V311) for i in range(100)])

    run = harness.router.retained.get(b"t", harness.wall)

    assert run is not None
    assert run.payload(0) == b"099"
    assert len(run.data) == run.size == harness.router.retained.bytes


@pytest.mark.parametrize("limits", [RouterLimits(max_retained_count=1), RouterLimits(max_retained_bytes=20)])
def test_no_room_is_refused(limits: RouterLimits, version: Version) -> None:
    """Beyond the limits MQTT 5 reads 0x97, and 3.x is cut off rather than told a lie; what is kept stays."""
    harness = Harness(router_limits=limits)
    publisher = harness.connect("p", version)
    publisher.publish("a", b"x" * 10, 1, retain=True)
    publisher.received()
    publisher.publish("b", b"y" * 10, 1, retain=True)
    publisher_closed = publisher.is_closed
    packets = publisher.received()

    if version is V5:
        assert packets == [Ack(packet_id=2, reason=ReasonCode.QUOTA_EXCEEDED)]
    else:
        assert publisher_closed
        assert not [p for p in packets if not isinstance(p, Disconnect)]
    assert len(harness.router.retained) == 1
    assert ("retained refused", b"b") in harness.observer.events


def test_thousands_are_replayed_in_slices(harness: Harness) -> None:
    """A wide subscription gets every retained message, a bounded number at a time."""
    publisher = harness.connect("p")
    for i in range(2500):
        publisher.publish(f"t/{i}", b"x" * 100, retain=True)
    client = harness.connect("c")

    found = client.subscribe("t/#")

    assert len({m.topic for m in found if isinstance(m, Publish)}) == 2500
    assert client.wire.writes > 4


def test_replay_waits_for_the_reader(harness: Harness) -> None:
    """While the client has a lot unread no more is sent; when it has read, the rest comes."""
    publisher = harness.connect("p")
    for i in range(1000):
        publisher.publish(f"t/{i}", b"x", retain=True)
    client = harness.connect("c")
    client.wire.unread = 1_000_000
    assert client.subscribe("t/#") == []
    harness.advance(1)
    assert client.messages() == []
    client.wire.unread = 0

    harness.advance(1)

    assert len(client.messages()) == 1000


def test_replay_is_kept_for_a_durable_session(harness: Harness) -> None:
    """What a client had still to get when it was lost comes with its session, QoS 1 and 2."""
    publisher = harness.connect("p")
    for i in range(300):
        publisher.publish(f"t/{i}", b"x", 1, retain=True)
    client = harness.durable("c")
    client.wire.unread = 1_000_000
    client.subscribe("t/#", 1)
    client.lose()

    client = harness.durable("c", session_present=True)

    assert len(client.messages()) == 300


level = st.sampled_from([b"a", b"b", b"$x", b""])
topic = st.lists(level, min_size=1, max_size=4).map(b"/".join).filter(bool)
wildcard = st.lists(st.sampled_from([b"a", b"b", b"+", b"$x", b""]), min_size=1, max_size=4).map(b"/".join)
topic_filter = st.one_of(wildcard, wildcard.map(lambda f: f + b"/#"), st.just(b"#")).filter(bool)


@given(st.lists(st.tuples(st.booleans(), topic), max_size=30), topic_filter)
def test_tree_finds_what_a_naive_matcher_finds(changes: list[tuple[bool, bytes]], wanted: bytes) -> None:
    """After any changes the tree answers as a loop over all topics would."""
    store = RetainedStore(1000, 10**9)
    naive = set()
    for is_set, name in changes:
        if is_set:
            store.set(name, Run.message(name, b"x"))
            naive.add(name)
        else:
            assert store.remove(name) is (name in naive)
            naive.discard(name)

    assert sorted(store.topics(wanted)) == sorted(name for name in naive if matches(wanted, name))
    assert len(store) == len(naive)


@pytest.mark.parametrize(("size", "steps"), [(1, [500, 500, 203]), (10_000, [7] * 171 + [6])])
def test_slices_of_a_replay(size: int, steps: list[int]) -> None:
    """A slice has at most 500 messages or 64 KiB, and ends exactly with the last message."""
    harness = Harness()
    publisher = harness.connect("p")
    for i in range(1203):
        publisher.publish(f"t/{i}", b"x" * size, retain=True)
    client = harness.connect("c")
    client.connection.receive(b"\x82\x08\x00\x01\x00\x03t/#\x00")
    harness.router.flush()
    assert len(client.received()) == 1
    seen = []
    while harness.router.has_backlog():
        harness.router.run_backlog()
        harness.router.flush()
        seen.append(len(client.messages()))

    assert seen == steps
    assert harness.router.sessions["c"].replay is None


def test_several_replays_of_one_client(harness: Harness) -> None:
    """Subscriptions replay one after another, each with its own options; what is gone by then is skipped."""
    publisher = harness.connect("p")
    for i in range(150):
        publisher.publish(f"a/{i}", b"x", 1, retain=True)
        publisher.publish(f"b/{i}", b"x", 1, retain=True)
    client = harness.connect("c")
    client.wire.unread = 10**6
    client.subscribe("a/#", 0)
    client.subscribe("b/#", 1)
    for i in range(0, 150, 2):
        publisher.publish(f"a/{i}", b"", retain=True)
    client.messages()
    client.wire.unread = 0
    harness.advance(1)

    messages = client.messages()

    assert [(m.topic[:1], m.qos) for m in messages] == [(b"a", 0)] * 75 + [(b"b", 1)] * 150


@pytest.mark.parametrize("version", [V311, V5])
def test_qos0_without_room_is_dropped_alone(version: Version) -> None:
    """A QoS 0 message that cannot be retained is dropped and counted; its publisher stays, nobody gets it."""
    harness = Harness(router_limits=RouterLimits(max_retained_count=0))
    watcher = harness.connect("w")
    watcher.subscribe("#")
    publisher = harness.connect("p", version)
    for _ in range(2):
        publisher.publish("t", b"x", retain=True)

    assert not publisher.is_closed
    assert watcher.messages() == []
    assert harness.router.stats.dropped == 2


def test_expired_at_the_very_moment(harness: Harness) -> None:
    """A message is gone at the end of its interval, not after it."""
    publisher = harness.connect("p", V5)
    for topic, seconds in (("a", 5), ("b", 5), ("c", 8)):
        publisher.publish(topic, b"x", retain=True, properties={"message_expiry_interval": seconds})
    store = harness.router.retained
    assert store.next_expiry() == harness.wall + 5
    store.sweep(harness.wall + 4.9)
    assert len(store) == 3
    store.sweep(harness.wall + 5)

    assert len(store) == 1
    assert store.next_expiry() == harness.wall + 8
    harness.advance(9.5)
    assert len(store) == 0
