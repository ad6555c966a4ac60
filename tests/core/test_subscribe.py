"""SUBSCRIBE and UNSUBSCRIBE, overlapping and shared subscriptions, options."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.limits import ConnectionLimits, RouterLimits
from broker.core.subscriptions import SubscriptionIndex
from broker.mqtt.packets import Disconnect, Publish, SubAck, Subscribe, SubscriptionRequest, UnsubAck, Version
from broker.mqtt.reason_codes import ReasonCode
from broker.mqtt.topics import matches
from tests.harness import PUBACK, PUBREC, V5, V311, Client, Harness

S = pytest.mark.statement


def suback(client: Client, *requests: tuple[bytes, int]) -> SubAck:
    """Subscribe to several filters and return the SUBACK."""
    wanted = [SubscriptionRequest(topic_filter, options) for topic_filter, options in requests]
    client.send(Subscribe(packet_id=9, requests=wanted).encode(client.version))
    packet = client.received()[0]
    assert isinstance(packet, SubAck)
    return packet


@S(
    "3.1.1:MQTT-3.8.4-1",
    "5:MQTT-3.8.4-1",
    "3.1.1:MQTT-3.8.4-2",
    "5:MQTT-3.8.4-2",
    "3.1.1:MQTT-3.8.4-4",
    "5:MQTT-3.8.4-5",
)
@S(
    "3.1.1:MQTT-3.8.4-5",
    "5:MQTT-3.8.4-6",
    "5:MQTT-3.8.4-7",
    "3.1.1:MQTT-3.9.3-1",
    "5:MQTT-3.9.3-1",
    "3.1.1:MQTT-2.3.1-7",
)
@S("5:MQTT-2.2.1-6", "5:MQTT-3.9.3-2")
def test_one_suback_for_all_filters(harness: Harness, version: Version) -> None:
    """One SUBACK has the identifier and one code per filter, in their order, a bad one among good ones."""
    client = harness.connect("a", version)

    answer = suback(client, (b"a", 0), (b"b/#", 1), (b"c/#/d", 1), (b"+", 2))

    assert answer.packet_id == 9
    assert list(answer.reasons) == [0, 1, 0x8F if version is V5 else 0x80, 2]
    assert not client.is_closed


@S("3.1.1:MQTT-4.7.1-2", "5:MQTT-4.7.1-1", "3.1.1:MQTT-4.7.1-3", "5:MQTT-4.7.1-2")
@pytest.mark.parametrize(
    "bad", ["a#", "#/a", "a/#/b", "a+", "+a", "a/b+/c", "", "$share/g", "$share//a", "$share/g+/a"]
)
def test_bad_filters_are_refused(harness: Harness, version: Version, bad: str) -> None:
    """A filter that breaks the rules of wildcards or of shared subscriptions gets its own refusal."""
    client = harness.connect("a", version)

    answer = suback(client, (bad.encode(), 0))

    assert list(answer.reasons) == [0x8F if version is V5 else 0x80]


@S(
    "3.1.1:MQTT-3.8.3-3",
    "5:MQTT-3.8.3-2",
    "3.1.1:MQTT-3.8.3-1",
    "5:MQTT-3.8.3-1",
    "3.1.1:MQTT-3-8.3-4",
    "5:MQTT-3.8.3-5",
)
@S("3.1.1:MQTT-3.8.1-1", "5:MQTT-3.8.1-1", "3.1.1:MQTT-2.2.2-1", "3.1.1:MQTT-2.2.2-2", "5:MQTT-2.1.3-1")
@pytest.mark.parametrize(
    "packet",
    [
        b"\x82\x02\x00\x01",  # no filter
        b"\x82\x06\x00\x01\x00\x01a\x03",  # QoS 3
        b"\x82\x06\x00\x01\x00\x01a\xc0",  # reserved bits
        b"\x80\x06\x00\x01\x00\x01a\x00",  # wrong flags
        b"\x82\x06\x00\x00\x00\x01a\x00",  # identifier 0
        b"\x82\x06\x00\x01\x00\x01\xff\x00",  # not UTF-8
        b"\x82\x05\x00\x01\x00\x01a",  # no options
    ],
)
def test_bad_subscribe_closes(harness: Harness, version: Version, packet: bytes) -> None:
    """A SUBSCRIBE that cannot be right ends the connection."""
    client = harness.connect("a", version)
    if version is V5:
        packet = packet[:1] + bytes((packet[1] + 1,)) + packet[2:4] + b"\x00" + packet[4:]
    client.send(packet)

    assert client.is_closed


@S("3.1.1:MQTT-3.8.4-3", "5:MQTT-3.8.4-3")
def test_subscribing_again_replaces(harness: Harness, version: Version) -> None:
    """A second subscription to a filter changes its QoS; messages still come once."""
    client = harness.connect("a", version)
    client.subscribe("t", 0)
    client.subscribe("t", 2)
    harness.connect("p").publish("t", b"x", 2)

    (message,) = client.messages()

    assert message.qos == 2


@S("3.1.1:MQTT-3.10.4-4", "5:MQTT-3.10.4-4", "3.1.1:MQTT-3.10.4-1", "5:MQTT-3.10.4-1", "3.1.1:MQTT-3.10.4-2")
@S(
    "5:MQTT-3.10.4-2",
    "3.1.1:MQTT-3.10.4-5",
    "5:MQTT-3.10.4-5",
    "5:MQTT-3.11.3-1",
    "5:MQTT-3.11.3-2",
    "3.1.1:MQTT-3.10.4-6",
)
@S("5:MQTT-3.10.4-6")
def test_unsubscribe(harness: Harness, version: Version) -> None:
    """UNSUBSCRIBE stops new messages and is answered whether there was a subscription or not."""
    client = harness.connect("a", version)
    client.subscribe("t")
    client.subscribe("+/x")
    gone = client.unsubscribe("t")
    unknown = client.unsubscribe("nothing")
    wildcard = client.unsubscribe("+/x")
    publisher = harness.connect("p")
    publisher.publish("t", b"x")
    publisher.publish("t/x", b"x")

    assert client.messages() == []
    assert [type(answer) for answer in (gone, unknown, wildcard)] == [UnsubAck] * 3
    if version is V5:
        assert [list(a.reasons) for a in (gone, unknown, wildcard)] == [[0], [0x11], [0]]


@S("3.1.1:MQTT-3.10.4-3", "5:MQTT-3.10.4-3")
def test_unsubscribe_finishes_what_was_sent(harness: Harness) -> None:
    """QoS 1 and 2 messages that were on their way are finished."""
    client = harness.durable("a")
    client.subscribe("t", 1)
    harness.connect("p").publish("t", b"x", 1)
    client.messages()
    client.unsubscribe("t")
    client.lose()

    assert harness.durable("a", session_present=True).payloads() == [b"x"]


@S(
    "3.1.1:MQTT-3.10.1-1",
    "5:MQTT-3.10.1-1",
    "3.1.1:MQTT-3.10.3-1",
    "5:MQTT-3.10.3-1",
    "3.1.1:MQTT-3.10.3-2",
    "5:MQTT-3.10.3-2",
)
@pytest.mark.parametrize(
    "packet",
    [b"\xa2\x02\x00\x01", b"\xa0\x05\x00\x01\x00\x01a", b"\xa2\x05\x00\x00\x00\x01a", b"\xa2\x05\x00\x01\x00\x01\xff"],
)
def test_bad_unsubscribe_closes(harness: Harness, version: Version, packet: bytes) -> None:
    """An UNSUBSCRIBE that cannot be right ends the connection."""
    client = harness.connect("a", version)
    if version is V5:
        packet = packet[:1] + bytes((packet[1] + 1,)) + packet[2:4] + b"\x00" + packet[4:]
    client.send(packet)

    assert client.is_closed


@S("3.1.1:MQTT-3.3.5-1", "5:MQTT-3.3.4-2", "5:MQTT-3.3.4-3", "5:MQTT-3.3.4-4")
def test_overlapping_subscriptions_give_one_message(harness: Harness) -> None:
    """One copy at the highest QoS, with the identifiers of all that match."""
    client = harness.connect("a", V5)
    client.subscribe("t/#", 0, identifier=3)
    client.subscribe("t/x", 2, identifier=1)
    client.subscribe("+/x", 1)
    client.subscribe("other", 2, identifier=9)
    old = harness.connect("b", V311)
    old.subscribe("t/#", 0)
    old.subscribe("t/x", 1)
    harness.connect("p").publish("t/x", b"x", 2)

    (message,) = client.messages()
    (same,) = old.messages()

    assert message.qos == 2
    assert sorted(message.properties["subscription_identifier"]) == [1, 3]
    assert same.qos == 1


@S("5:MQTT-3.8.3-3")
def test_no_local(harness: Harness) -> None:
    """With No Local a client does not get what it published itself, and others still do."""
    client = harness.connect("a", V5)
    client.subscribe("t", 4)
    other = harness.connect("b", V5)
    other.subscribe("t", 4)
    client.publish("t", b"mine")
    other.publish("t", b"theirs")

    assert client.payloads() == [b"theirs"]
    assert other.payloads() == [b"mine"]


@S("5:MQTT-3.8.3-4")
def test_no_local_on_a_shared_subscription_closes(harness: Harness) -> None:
    """No Local on $share is a protocol error."""
    client = harness.connect("a", V5)
    client.send(Subscribe(packet_id=1, requests=[SubscriptionRequest(b"$share/g/t", 4)]).encode(V5))

    (packet,) = client.received()

    assert isinstance(packet, Disconnect)
    assert packet.reason is ReasonCode.PROTOCOL_ERROR


def test_retain_handling_three_closes(harness: Harness) -> None:
    """Retain handling 3 is a protocol error [5: section 3.8.3.1]."""
    client = harness.connect("a", V5)
    client.send(Subscribe(packet_id=1, requests=[SubscriptionRequest(b"t", 0x30)]).encode(V5))

    (packet,) = client.received()

    assert isinstance(packet, Disconnect)
    assert packet.reason is ReasonCode.PROTOCOL_ERROR


def test_subscriptions_are_bounded(harness: Harness) -> None:
    """max_subscriptions is exact; replacing one is no new one."""
    limits = ConnectionLimits(max_subscriptions=2)
    client = harness.connect("a", V5, limits=limits)

    assert list(suback(client, (b"a", 0), (b"b", 0), (b"c", 0), (b"a", 1)).reasons) == [0, 0, 0x97, 1]


@pytest.mark.parametrize(("levels", "code"), [(3, 0), (4, 0x8F)])
def test_topic_levels_are_bounded(harness: Harness, levels: int, code: int) -> None:
    """max_topic_levels is inclusive, for filters and for topic names."""
    limits = ConnectionLimits(max_topic_levels=3)
    client = harness.connect("a", V5, limits=limits)

    assert list(suback(client, (b"/".join([b"x"] * levels), 0)).reasons) == [code]
    client.publish("/".join("x" * levels))
    assert client.is_closed is bool(code)


@pytest.mark.parametrize(("length", "code"), [(10, 0), (11, 0x8F)])
def test_topic_length_is_bounded(harness: Harness, length: int, code: int) -> None:
    """max_topic_length is inclusive."""
    client = harness.connect("a", V5, limits=ConnectionLimits(max_topic_length=10))

    assert list(suback(client, (b"x" * length, 0)).reasons) == [code]
    client.publish("x" * length)
    assert client.is_closed is bool(code)


# --- shared -----------------------------------------------------------------------------------------------------------


def group(harness: Harness, *names: str, options: int = 1) -> list[Client]:
    """Return clients that share `$share/g/t`."""
    clients = [harness.connect(name, V5) for name in names]
    for client in clients:
        client.subscribe("$share/g/t", options)
    return clients


def test_shared_round_robin(harness: Harness) -> None:
    """Each message goes to one member in turn, a run in one read no less than single messages."""
    members = group(harness, "a", "b", "c", options=0)
    publisher = harness.connect("p")
    publisher.send(*[Publish(topic=b"t", payload=b"%d" % i).encode(V311) for i in range(9)])

    received = [member.payloads() for member in members]

    assert [len(payloads) for payloads in received] == [3, 3, 3]
    assert sorted(chain.from_iterable(received)) == [b"%d" % i for i in range(9)]
    assert all(payloads == sorted(payloads) for payloads in received)


@pytest.mark.parametrize(("strategy", "expected"), [("sticky", [4, 0]), ("random", [0, 4])])
def test_shared_strategies(strategy: str, expected: list[int]) -> None:
    """Sticky stays with a member; random asks the choice it was given."""
    harness = Harness(router_limits=RouterLimits(shared_strategy=strategy))
    members = group(harness, "a", "b")
    publisher = harness.connect("p")
    for _ in range(4):
        publisher.publish("t", b"x")

    assert [len(member.messages()) for member in members] == expected


def test_shared_and_own_subscription_are_apart(harness: Harness) -> None:
    """A plain subscription gets every message beside the shared ones [5: section 4.8.2]."""
    (member,) = group(harness, "a")
    member.subscribe("t", 0)
    harness.connect("p").publish("t", b"x")

    assert member.payloads() == [b"x", b"x"]


def test_groups_of_one_name_on_two_filters_are_apart(harness: Harness) -> None:
    """A share name belongs to its filter."""
    a, b = harness.connect("a", V5), harness.connect("b", V5)
    a.subscribe("$share/g/t")
    b.subscribe("$share/g/+")
    harness.connect("p").publish("t", b"x")

    assert [a.payloads(), b.payloads()] == [[b"x"], [b"x"]]


@S("5:MQTT-3.3.1-9")
def test_shared_gets_no_retained(harness: Harness) -> None:
    """A shared subscription is not sent retained messages [5: section 4.8.2]."""
    harness.connect("p").publish("t", b"x", retain=True)
    client = harness.connect("a", V5)

    assert client.subscribe("$share/g/t") == []


@S("5:MQTT-4.8.2-3")
def test_shared_honours_each_members_qos(harness: Harness) -> None:
    """A member that asked for QoS 0 gets QoS 0."""
    low, high = harness.connect("low", V5), harness.connect("high", V5)
    low.subscribe("$share/g/t", 0)
    high.subscribe("$share/g/t", 2)
    publisher = harness.connect("p")
    for _ in range(2):
        publisher.publish("t", b"x", 2)

    assert [m.qos for m in low.messages() + high.messages()] == [0, 2]


@S("5:MQTT-4.8.2-4", "5:MQTT-4.8.2-5")
def test_unacknowledged_shared_messages_move_on(harness: Harness) -> None:
    """QoS 1 messages of a member whose session ends go to another; QoS 2 ones that were sent go to nobody."""
    a, b = group(harness, "a", "b", options=2)
    publisher = harness.connect("p")
    for i, qos in enumerate((1, 1, 2, 2)):
        publisher.publish("t", b"%d" % i, qos)
    first = a.messages()
    second = b.messages()
    a.lose()

    moved = b.payloads()

    assert moved == [m.payload for m in first if m.qos == 1]
    assert len(first) == len(second) == 2
    assert len(moved) == 1


@S("5:MQTT-4.8.2-6")
def test_refused_shared_message_is_discarded(harness: Harness) -> None:
    """A message that a member refuses with 0x80 or more is not tried elsewhere."""
    a, b = group(harness, "a", "b", options=2)
    publisher = harness.connect("p")
    publisher.publish("t", b"1", 1)
    publisher.publish("t", b"2", 2)
    for member in (a, b):
        for message in member.messages():
            member.ack(PUBACK if message.qos == 1 else PUBREC, message.packet_id, 0x80)
    a.lose()

    assert b.messages() == []


def test_shared_prefers_connected_members(harness: Harness) -> None:
    """Messages wait for a member that is away only where nobody is there."""
    away = harness.durable("away", V5)
    away.subscribe("$share/g/t", 1)
    here = harness.connect("here", V5)
    here.subscribe("$share/g/t", 1)
    away.lose()
    publisher = harness.connect("p")
    for _ in range(4):
        publisher.publish("t", b"x", 1)
    assert len(here.messages()) == 4
    here.lose()
    # The four were not acknowledged: they go to the member that is left, as the next one does.
    publisher.publish("t", b"y", 1)

    back = harness.durable("away", V5, session_present=True)

    assert back.payloads() == [b"x"] * 4 + [b"y"]


# --- the index --------------------------------------------------------------------------------------------------------

level = st.sampled_from([b"a", b"b", b"$x", b""])
topic = st.lists(level, min_size=1, max_size=4).map(b"/".join).filter(bool)
any_level = st.sampled_from([b"a", b"b", b"+", b"$x", b""])
wildcard = st.lists(any_level, min_size=1, max_size=4).map(b"/".join)
topic_filter = st.one_of(wildcard, wildcard.map(lambda f: f + b"/#"), st.just(b"#")).filter(bool)


class _Subscriber:
    """Stands for a session: only its identity counts."""


@given(st.lists(st.tuples(st.booleans(), topic_filter), max_size=40), st.lists(topic, min_size=1, max_size=10))
def test_index_finds_what_a_naive_matcher_finds(changes: list[tuple[bool, bytes]], topics: list[bytes]) -> None:
    """After any subscribing and unsubscribing the index answers as a loop over all filters would, and leaks nothing."""
    index = SubscriptionIndex()
    naive: set[bytes] = set()
    subscriber = _Subscriber()
    for is_added, wanted in changes:
        if is_added:
            index.bucket(wanted).subscribers[subscriber] = None  # type: ignore[index,assignment]
            naive.add(wanted)
        else:
            bucket = index.find(wanted)
            if bucket is not None:
                bucket.subscribers.clear()
            assert index.discard_if_empty(wanted)
            naive.discard(wanted)

    found = dict(index.filters())
    assert set(found) == naive
    for name in topics:
        expected = {id(found[wanted]) for wanted in naive if matches(wanted, name)}
        matched = index.match(name)
        assert {id(bucket) for bucket in matched} == expected
        assert len(matched) == len(expected)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), topic_filter), max_size=30), topic)
def test_routes_are_never_stale(changes: list[tuple[bool, str, bytes]], name: bytes) -> None:
    """Whatever subscriptions come and go, a message reaches exactly those who match at that moment."""
    harness = Harness()
    clients = {who: harness.connect(who) for who in "ab"}
    publisher = harness.connect("p")
    wanted: dict[str, set[bytes]] = {"a": set(), "b": set()}
    for is_added, who, filter_ in changes:
        if is_added:
            clients[who].subscribe(filter_.decode())
            wanted[who].add(filter_)
        else:
            clients[who].unsubscribe(filter_.decode())
            wanted[who].discard(filter_)
        publisher.publish(name.decode(), b"x")
        for each, filters in wanted.items():
            assert len(clients[each].messages()) == any(matches(f, name) for f in filters)
