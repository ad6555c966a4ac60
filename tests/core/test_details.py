"""Small things that would go wrong unseen: what hooks and observers are told, rare packets, bounds at their edge."""

import inspect
from typing import Any

import pytest

from broker.core.hooks import AuthStep, Decision, Hooks, Login, Pending
from broker.core.limits import ConnectionLimits
from broker.core.observer import Observer, Observers
from broker.core.router import Router
from broker.core.subscriptions import SubscriptionIndex
from broker.mqtt.packets import (
    PINGREQ,
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Publish,
    Version,
    Will,
)
from broker.mqtt.reason_codes import ReasonCode
from tests.harness import PUBACK, PUBREC, PUBREL, V5, V31, V311, Harness

ALLOW, DENY = Decision.ALLOW, Decision.DENY


EVENTS = (
    "connected",
    "refused",
    "disconnected",
    "taken_over",
    "session_ended",
    "subscribed",
    "unsubscribed",
    "denied",
    "dropping",
    "dropped",
    "retained_refused",
)


def test_every_event_is_passed_on() -> None:
    """There is no event that several observers would not hear of."""
    events = {
        name for name in vars(Observer) if name.islower() and name.isascii() and not name.startswith(("_", "mut"))
    }

    assert events == set(EVENTS)


@pytest.mark.parametrize("event", EVENTS)
def test_observers_pass_every_event_on(event: str) -> None:
    """Each of several observers hears each event, with everything it says, in their order."""
    heard: list[tuple[int, str, tuple[Any, ...]]] = []

    class Listener(Observer):
        def __init__(self, number: int) -> None:
            setattr(self, event, lambda *args: heard.append((number, event, args)))

    observers = Observers(Listener(1))
    observers.add(Listener(2))
    count = len(inspect.signature(getattr(Observer, event)).parameters) - 1
    arguments = tuple(object() for _ in range(count))
    getattr(observers, event)(*arguments)

    assert heard == [(1, event, arguments), (2, event, arguments)]
    assert getattr(Observer(), event)(*arguments) is None


def test_login_tells_all() -> None:
    """A login has the listener, the certificate's name and the whole CONNECT."""
    logins: list[Login] = []
    harness = Harness(hooks=Hooks(authenticate=[lambda login: logins.append(login)]))
    client = harness.open(V5)
    client.wire.tls_identity = "alice"
    client.send(Connect(version=V5, client_id="a", user_name="bob", keep_alive=7).encode())

    (login,) = logins

    assert (login.listener, login.tls_identity, login.user_name, login.connect.keep_alive) == (
        "test",
        "alice",
        "bob",
        7,
    )
    assert harness.router.sessions["a"].user_name == "alice"


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
def test_publish_hook_is_told_all(qos: int, retain: bool) -> None:
    """Who, topic, QoS and retain; asked once for each combination; deny is the default where it is set."""
    asked: list[tuple[Any, ...]] = []
    hook: Any = lambda session, *rest: asked.append((session.client_id, *rest))  # noqa: E731
    harness = Harness(hooks=Hooks(authorize_publish=[hook], default_authorize=DENY))
    subscriber = harness.connect("s")
    harness.router.subscribe(harness.router.sessions["s"], b"#", harness.router.subscriptions().options(0))
    client = harness.connect("p", V5)
    client.publish("t", b"x", qos, retain=retain)

    assert asked == [("p", b"t", qos, retain)]
    assert subscriber.messages() == []
    assert client.received() == ([Ack(packet_id=1, reason=0x87)] if qos else [])


def test_subscribe_and_will_hooks_are_told_all() -> None:
    """Who, filter and QoS; who wants in, and its will."""
    asked: list[tuple[Any, ...]] = []
    hooks = Hooks(
        authorize_subscribe=[lambda session, topic, qos: asked.append((session.client_id, topic, qos))],
        authorize_will=[lambda login, will: asked.append((login.client_id, will.topic))],
    )
    harness = Harness(hooks=hooks)
    client = harness.connect("a", will=Will(topic=b"w", payload=b""))
    client.subscribe("t/#", 2)

    assert asked == [("a", b"w"), ("a", b"t/#", 2)]


def test_late_refusal_reads_like_an_early_one() -> None:
    """A login that is denied later gets the same CONNACK, with its words."""
    answers = []
    for is_late in (False, True):
        pending: Pending[Decision | None] = Pending()
        hook: Any = (lambda login, p=pending: p) if is_late else (lambda login: DENY)
        harness = Harness(hooks=Hooks(authenticate=[hook]))
        client = harness.open(V5)
        client.send(Connect(version=V5, client_id="a", user_name="u").encode(), PINGREQ)
        pending.resolve(DENY)
        harness.turn()
        answers.append((client.received(), harness.observer.events, harness.router.stats.refused_total))

    assert answers[0] == answers[1]
    packets, events, refused = answers[0]
    assert packets == [ConnAck(reason=0x86, properties={"reason_string": "the login of 'u' is refused"})]
    assert events == [("refused", "a", 0x86, "the login of 'u' is refused")]
    assert refused == 1


def test_refusals_are_counted() -> None:
    """Each refused connection adds one."""
    harness = Harness()
    for expected in (1, 2, 3):
        harness.open(V31).send(b"\x10\x00")
        assert harness.router.stats.refused_total == expected


def test_version_of_refusals(harness: Harness) -> None:
    """A CONNECT that breaks off is not answered in MQTT 5 before its version is known, and is in it after."""
    early = harness.open(V5)
    early.send(b"\x10\x07\x00\x04MQTT\x06")
    late = harness.open(V5)
    late.send(Connect(version=V5, client_id="a").encode()[:-3] + b"\x00\x05a")

    (answer,) = early.received()

    assert isinstance(answer, ConnAck)
    assert answer.reason == 0x84
    assert "reason_string" in answer.properties
    (answer,) = late.received()
    assert isinstance(answer, ConnAck)
    assert answer.reason == 0x81


def test_words_of_a_clients_good_bye_are_kept(harness: Harness) -> None:
    """The reason string of a client's DISCONNECT is what the observer hears."""
    told: list[tuple[Any, ...]] = []
    harness.observer.disconnected = lambda *args: told.append(args[1:])  # type: ignore[method-assign]  # heard in full
    harness.connect("a", V5).disconnect(properties={"reason_string": "going home"})
    harness.connect("b", V5).disconnect()
    harness.connect("c", V5).lose()

    assert told == [
        (ReasonCode.SUCCESS, "going home", True),
        (ReasonCode.SUCCESS, "the client disconnected", True),
        (ReasonCode.UNSPECIFIED_ERROR, "the network is gone", False),
    ]
    assert not harness.router.connections


def test_loss_before_connect_is_a_refusal(harness: Harness) -> None:
    """A connection that is lost before CONNECT is told as one that never came to be."""
    harness.open().lose()

    assert harness.observer.events == [("refused", "", 0x80, "the network is gone")]


@pytest.mark.parametrize(
    ("data", "is_closed"),
    [(b"\x30\xff\xff\xff", False), (b"\x30\xff\xff\xff\xff", True), (b"\x30\x80\x80\x80\x00", True),
     (b"\x30\x80", False), (b"\x30\x80\x00", True)],
)  # fmt: skip
def test_lengths_that_come_in_pieces(harness: Harness, data: bytes, is_closed: bool) -> None:
    """A length is refused with the byte that makes it wrong, and waited for until then; also behind other packets."""
    for prefix in (b"", PINGREQ * 3):
        client = harness.connect("a", V311)
        client.send(prefix + data)
        assert client.is_closed is is_closed
        client = harness.connect("a", V311)
        for byte in prefix + data:
            client.send(bytes((byte,)))
        assert client.is_closed is is_closed


@pytest.mark.parametrize(
    ("topic", "properties", "is_refused"),
    [
        (b"a/b/c", {}, False),
        (b"a/b/c/d", {}, True),
        (b"a", {"response_topic": "a/+"}, True),
        (b"a", {"response_topic": "a/#"}, True),
        (b"a", {"response_topic": "a/b"}, False),
    ],
)
def test_wills_are_held_to_the_rules_of_messages(topic: bytes, properties: dict[str, Any], is_refused: bool) -> None:
    """Topic levels and the response topic of a will are checked at CONNECT."""
    harness = Harness()
    client = harness.open(V5, ConnectionLimits(max_topic_levels=3))
    will = Will(topic=topic, payload=b"", properties=properties)
    client.send(Connect(version=V5, client_id="a", will=will).encode())

    assert client.is_closed is is_refused


def test_authentication_in_full() -> None:
    """Data of the last step comes with CONNACK and AUTH; steps are counted anew for each authentication."""

    class Steps:
        def __init__(self, login: Login) -> None:
            self.left = 2

        def step(self, data: bytes | None) -> AuthStep | Pending[AuthStep]:
            self.left -= 1
            if self.left >= 0:
                return AuthStep(reason=ReasonCode.CONTINUE_AUTHENTICATION, data=b"%d" % self.left)
            return AuthStep(reason=ReasonCode.SUCCESS, data=data)

    harness = Harness(hooks=Hooks(exchanges={"m": Steps}))
    client = harness.open(V5, ConnectionLimits(max_auth_steps=2))
    method = {"authentication_method": "m"}
    client.send(Connect(version=V5, client_id="a", properties={**method, "authentication_data": b"x"}).encode())
    packet = Auth(reason=ReasonCode.CONTINUE_AUTHENTICATION, properties=method).encode()
    client.send(packet)
    client.send(packet)
    *_, connack = client.received()
    assert isinstance(connack, ConnAck)
    assert "authentication_data" not in connack.properties
    for _ in range(3):
        client.send(Auth(reason=ReasonCode.RE_AUTHENTICATE, properties=method).encode())
        client.send(packet)
        properties = {**method, "authentication_data": b"last"}
        client.send(Auth(reason=ReasonCode.CONTINUE_AUTHENTICATION, properties=properties).encode())
        *_, done = client.received()

        assert done == Auth(reason=ReasonCode.SUCCESS, properties=properties)


def test_shared_deliveries_in_full(harness: Harness) -> None:
    """Subscription identifier and retain flag of a shared subscription, for each version."""
    for version, name in ((V5, "a"), (V311, "b")):
        client = harness.connect(name, version)
        client.subscribe(f"$share/{name}/t", 8 if version is V5 else 0, identifier=9 if version is V5 else 0)
        harness.connect("p").publish("t", b"x", retain=True)
        harness.connect("p").publish("t", b"y")
        first, second = client.messages()

        assert [first.retain, second.retain] == [version is V5, False]
        assert first.properties == ({"subscription_identifier": [9]} if version is V5 else {})


def test_aged_message_keeps_the_rest(harness: Harness) -> None:
    """A retained message with an expiry is replayed with everything else as it was, to each subscriber anew."""
    publisher = harness.connect("p", V5)
    properties = {"message_expiry_interval": 10, "content_type": "c"}
    publisher.publish("t", b"payload", 2, retain=True, properties=properties)
    for waited, left in ((0, 10), (9, 1)):
        harness.advance(waited)
        client = harness.connect(f"s{waited}", V5)
        (message,) = client.subscribe("t", 2, identifier=3)
        assert isinstance(message, Publish)
        assert (message.payload, message.qos, message.retain, message.topic) == (b"payload", 2, True, b"t")
        assert message.properties == {
            "message_expiry_interval": left,
            "content_type": "c",
            "subscription_identifier": [3],
        }
    harness.wall -= 1000
    (message,) = harness.connect("back", V5).subscribe("t", 2)
    assert isinstance(message, Publish)
    assert message.properties["message_expiry_interval"] == 10


def test_retained_bytes_go_up_and_down(harness: Harness) -> None:
    """The bytes of retained messages are those that are there, and no level of a topic stays behind."""
    publisher = harness.connect("p")
    store = harness.router.retained
    sizes = {}
    for topic, size in (("a/b/c", 10), ("a/b", 20), ("a/b/d", 30), ("a/b", 5), ("x", 1)):
        publisher.publish(topic, b"x" * size, retain=True)
        sizes[topic] = size + len(topic) + 4
        assert store.bytes == sum(sizes.values())
    for topic in ("a/b", "a/b/c", "x", "a/b/d"):
        publisher.publish(topic, b"", retain=True)
        del sizes[topic]
        assert store.bytes == sum(sizes.values())
    assert store._tree == {}


def test_options_are_shared() -> None:
    """Equal options are one object, different ones are not; the number remembered is bounded."""
    index = SubscriptionIndex()
    options = index.options(0x2D, 7)
    assert index.options(0x2D, 7) is options
    assert index.options(0x2D, 8) is not options
    for identifier in range(10_000):
        index.options(0, identifier)

    assert (options.byte, options.identifier, options.qos) == (0x2D, 7, 1)
    assert (options.no_local, options.retain_as_published, options.retain_handling) == (True, True, 2)
    plain = index.options(2)
    assert (plain.identifier, plain.no_local, plain.retain_as_published, plain.retain_handling) == (0, False, False, 0)
    assert len(index._options) <= 4096


def test_statistics() -> None:
    """Every number counts what it says."""
    harness = Harness(limits=ConnectionLimits(max_queue_count=1))
    for i in range(2):
        harness.connect(f"s{i}", V5).subscribe("t", 1)
    away = harness.durable("away", V5)
    away.subscribe("t", 1)
    away.lose()
    publisher = harness.connect("p", V5)
    stats = harness.router.stats
    before = stats.received_bytes
    packets = [Publish(topic=b"t", payload=b"x", qos=1, packet_id=i + 1).encode(V5) for i in range(3)]
    publisher.send(*packets)
    publisher.publish("nobody", b"x")

    assert (stats.published, stats.delivered, stats.dropped) == (4, 9, 2)
    assert stats.published_bytes == stats.received_bytes - before == 3 * len(packets[0]) + 12
    assert stats.connections_total == 4


def test_two_subscribers_one_full_window(harness: Harness) -> None:
    """What one subscriber has not acknowledged holds nobody else back."""
    stuck = harness.connect("stuck", limits=ConnectionLimits(max_inflight_count=1))
    stuck.subscribe("t", 1)
    quick = harness.connect("quick")
    quick.subscribe("t", 1)
    publisher = harness.connect("p")
    for i in range(5):
        publisher.publish("t", b"%d" % i, 1)

    assert len(stuck.messages()) == 1
    assert len(quick.messages()) == 5
    session = harness.router.sessions["stuck"]
    assert (session.queued_count, session.queued_bytes) == (4, 4 * 8)
    stuck.ack(PUBACK, 1)
    assert (session.queued_count, session.queued_bytes) == (3, 3 * 8)


def test_queue_of_runs_is_bounded_exactly() -> None:
    """A run that does not fit is cut where the queue is full, in messages and in bytes."""
    for limits, fits in ((ConnectionLimits(max_queue_count=7), 7), (ConnectionLimits(max_queue_bytes=8 * 6 + 7), 6)):
        harness = Harness(limits=limits)
        client = harness.durable("a")
        client.subscribe("t", 1)
        client.lose()
        publisher = harness.connect("p")
        for first in (1, 11):
            packets = [Publish(topic=b"t", payload=b"x", qos=1, packet_id=first + i).encode(V311) for i in range(5)]
            publisher.send(*packets)
        session = harness.router.sessions["a"]

        assert session.queued_count == fits
        assert session.queued_bytes == fits * 8
        assert harness.router.stats.dropped == 10 - fits


def test_oversized_resends_free_their_places(harness: Harness) -> None:
    """Messages that a client no longer takes after a reconnect count as delivered; the rest goes on."""
    limits = ConnectionLimits(max_inflight_count=2)
    client = harness.durable("a", V5, limits=limits)
    client.subscribe("t", 2)
    publisher = harness.connect("p")
    for size, qos in ((200, 1), (200, 2), (1, 1), (1, 2)):
        publisher.publish("t", b"x" * size, qos)
    assert len(client.messages()) == 2
    client.lose()
    client = harness.durable("a", V5, limits=limits, session_present=True, properties={"maximum_packet_size": 100})

    assert [(m.payload, m.qos) for m in client.messages()] == [(b"x", 1), (b"x", 2)]
    session = harness.router.sessions["a"]
    assert session.inflight_count() == 2
    assert harness.router.stats.dropped == 2


def test_clean_up_of_deadlines(harness: Harness) -> None:
    """Connections that come and go leave no deadlines behind beyond a bound."""
    for _ in range(5000):
        harness.connect("a", V5, keep_alive=100).lose()

    assert len(harness.router.deadlines) < 3000
    assert not harness.router.connections


def test_session_expiry_deadline_is_set_anew(harness: Harness) -> None:
    """A client that comes and goes is kept for its interval from the last time it went."""
    for _ in range(5):
        harness.durable("a", V5, session_present="a" in harness.router.sessions).lose()
        harness.advance(3599)
        assert "a" in harness.router.sessions
    harness.advance(1)

    assert "a" not in harness.router.sessions


def test_new_identifiers_and_choice_come_from_outside() -> None:
    """Nothing in the core makes up chance of its own."""
    router = Router(choose=lambda found: found[0], new_id=lambda: "made")

    assert router.new_id() == "made"


@pytest.mark.parametrize("reason", [0x80, 0x7F, 0x10])
def test_edge_of_refusing_reasons(reason: int) -> None:
    """0x80 is the first reason that refuses; 0x10 is a success."""
    harness = Harness()
    client = harness.connect("a", V5)
    client.subscribe("t", 2)
    harness.connect("p").publish("t", b"x", 2)
    (message,) = client.messages()
    client.ack(PUBREC, message.packet_id, reason)

    if reason == 0x7F:
        assert client.is_closed
    else:
        session = harness.router.sessions["a"]
        assert client.received() == ([] if reason == 0x80 else [Ack(packet_id=message.packet_id)])
        assert session.inflight_count() == (reason == 0x10)
    fresh = harness.connect("b", V5)
    fresh.ack(PUBREC, 5, 0x80)
    assert fresh.received() == []


def test_repeated_pubrel(harness: Harness, version: Version) -> None:
    """PUBREL of one identifier among others, the first there is included, and once more."""
    client = harness.connect("a", version)
    for packet_id in (1, 2, 258):
        client.publish("t", b"", 2, packet_id=packet_id)
    client.received()
    for packet_id in (258, 1, 1, 2):
        client.ack(PUBREL, packet_id)
    session = harness.router.sessions["a"]
    again = 0x92 if version is V5 else 0

    assert client.received() == [
        Ack(packet_id=258),
        Ack(packet_id=1),
        Ack(packet_id=1, reason=again),
        Ack(packet_id=2),
    ]
    assert session.received == set()


def test_shutting_down_reads(harness: Harness) -> None:
    """A DISCONNECT of the server's own has its reason and words."""
    client = harness.connect("a", V5)
    client.connection.end(ReasonCode.SERVER_SHUTTING_DOWN, "the broker is shutting down")

    assert client.received() == [
        Disconnect(reason=ReasonCode.SERVER_SHUTTING_DOWN, properties={"reason_string": "the broker is shutting down"})
    ]


def test_queue_counts_return_to_nothing() -> None:
    """Whatever went through the queue in pieces, its counts are 0 when it is empty."""
    harness = Harness(limits=ConnectionLimits(max_inflight_count=4))
    client = harness.connect("a")
    client.subscribe("t", 1)
    publisher = harness.connect("p", limits=ConnectionLimits())
    for _ in range(3):
        publisher.send(*[Publish(topic=b"t", qos=1, packet_id=i + 1).encode(V311) for i in range(11)])
    session = harness.router.sessions["a"]
    assert (session.queued_count, session.queued_bytes) == (29, 29 * 7)
    count = 0
    while messages := client.messages():
        count += len(messages)
        for message in messages:
            client.ack(PUBACK, message.packet_id)

    assert count == 33
    assert (session.queued_count, session.queued_bytes, session.queue) == (0, 0, None)


def test_losses_are_told_by_their_cause() -> None:
    """Each cause of an episode is told once at its beginning and with its number at the end."""
    harness = Harness(limits=ConnectionLimits(max_queue_count=0, max_inflight_count=1))
    client = harness.connect("a", V5, properties={"maximum_packet_size": 50})
    client.subscribe("t", 1)
    publisher = harness.connect("p", limits=ConnectionLimits())
    publisher.publish("t", b"x" * 60, 1)
    publisher.publish("t", b"x" * 60, 0)
    for _ in range(4):
        publisher.publish("t", b"x", 1)
    client.lose()
    losses = [event for event in harness.observer.events if event[0].startswith("drop")]

    assert losses == [
        ("dropping", "a", "larger than the client's Maximum Packet Size"),
        ("dropping", "a", "queue full"),
        ("dropped", "a", "larger than the client's Maximum Packet Size", 2),
        ("dropped", "a", "queue full", 3),
    ]
    assert harness.router.stats.dropped == 5
