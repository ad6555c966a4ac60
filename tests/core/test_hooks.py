"""Decisions of plugins, at once and later; enhanced authentication."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from broker.core.hooks import Answer, Decision, Hooks, Login, Pending, decide
from broker.core.limits import ConnectionLimits
from broker.mqtt.packets import (
    PINGREQ,
    Ack,
    ConnAck,
    Connect,
    Disconnect,
    PacketType,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Version,
    Will,
)
from broker.mqtt.reason_codes import ReasonCode
from tests.harness import V5, Harness

S = pytest.mark.statement
ALLOW, DENY = Decision.ALLOW, Decision.DENY


@pytest.mark.parametrize("answers", list(product([ALLOW, DENY, None], repeat=2)))
@pytest.mark.parametrize("default", [ALLOW, DENY])
@pytest.mark.parametrize("late", list(product([False, True], repeat=2)))
def test_deny_wins(answers: tuple[Decision | None, ...], default: Decision, late: tuple[bool, ...]) -> None:
    """Deny beats allow, allow beats no opinion, and the default is for when nobody has one; late answers count too."""
    pendings: list[tuple[Pending[Decision | None], Decision | None]] = []
    said: list[Answer] = []
    for answer, is_late in zip(answers, late, strict=True):
        if is_late:
            pending: Pending[Decision | None] = Pending()
            pendings.append((pending, answer))
            said.append(pending)
        else:
            said.append(answer)
    verdict = decide(said, default)
    for pending, answer in pendings:
        pending.resolve(answer)
    if isinstance(verdict, Pending):
        heard: list[Decision] = []
        verdict.then(heard.append)
        (verdict,) = heard

    assert verdict is (DENY if DENY in answers else ALLOW if ALLOW in answers else default)


def denying(what: bytes) -> Callable[..., Decision | None]:
    """Return a hook that denies one topic."""
    return lambda session, topic, *rest: DENY if topic == what else None


@S("3.1.1:MQTT-3.3.5-2")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_denied_publish(version: Version, qos: int) -> None:
    """A refused message reaches nobody; MQTT 5 reads 0x87, 3.x is acknowledged and told nothing."""
    harness = Harness(hooks=Hooks(authorize_publish=[denying(b"no")]))
    subscriber = harness.connect("s")
    subscriber.subscribe("#")
    client = harness.connect("p", version)
    packet_id = client.publish("no", b"x", qos, retain=True)
    client_packets = client.received()
    client.publish("yes", b"y")

    assert subscriber.payloads() == [b"y"]
    assert len(harness.router.retained) == 0
    reason = ReasonCode.NOT_AUTHORIZED if version is V5 else 0
    assert client_packets == ([Ack(packet_id=packet_id, reason=reason)] if qos else [])
    assert ("denied", "p", "publish to", b"no") in harness.observer.events


def test_denied_publisher_can_be_disconnected() -> None:
    """With the setting a 3.x client is cut off instead."""
    harness = Harness(hooks=Hooks(authorize_publish=[denying(b"no")]))
    client = harness.connect("p", limits=ConnectionLimits(disconnect_denied_publisher=True))
    client.publish("no", b"x", 1)

    assert client.is_closed
    assert client.received() == []


def test_denied_subscription(version: Version) -> None:
    """Each filter gets its own answer."""
    harness = Harness(hooks=Hooks(authorize_subscribe=[denying(b"no")]))
    client = harness.connect("c", version)
    requests = [SubscriptionRequest(b"no", 1), SubscriptionRequest(b"yes", 1)]
    client.send(Subscribe(packet_id=1, requests=requests).encode(version))

    (answer,) = client.received()

    assert answer == SubAck(packet_id=1, reasons=(0x87 if version is V5 else 0x80, 1))


def test_denied_receive() -> None:
    """A message does not reach who may not see it, live, retained or shared."""
    may_see = {"a"}
    hook: Any = lambda session, topic: None if session.client_id in may_see else DENY  # noqa: E731
    harness = Harness(hooks=Hooks(authorize_receive=[hook]))
    clients = [harness.connect(name, V5) for name in "ab"]
    publisher = harness.connect("p")
    publisher.publish("t", b"retained", retain=True)
    found = [len(client.subscribe("t")) for client in clients]
    for client in clients:
        client.subscribe("$share/g/t")
    publisher.publish("t", b"x")

    assert found == [1, 0]
    assert [len(client.messages()) for client in clients] == [2, 0]
    may_see.add("b")
    harness.router.forget_decisions()
    publisher.publish("t", b"y")
    assert len(clients[1].messages()) >= 1


def test_decisions_are_remembered_until_forgotten() -> None:
    """A topic is asked about once per client, until the plugin says that its rules changed."""
    asked: list[bytes] = []
    answer: list[Decision] = [ALLOW]

    def hook(session: Any, topic: bytes, qos: int, retain: bool) -> Decision:
        asked.append(topic)
        return answer[0]

    harness = Harness(hooks=Hooks(authorize_publish=[hook]))
    client = harness.connect("p", V5)
    for _ in range(3):
        client.publish("t", b"x", 1)
    assert asked == [b"t"]
    answer[0] = DENY
    harness.router.forget_decisions()
    client.received()
    client.publish("t", b"x", 1)

    assert asked == [b"t", b"t"]
    assert client.received() == [Ack(packet_id=4, reason=0x87)]


def test_login_can_be_refused(version: Version) -> None:
    """Who may not in reads why: code 4 or 0x86 with a user name, 5 or 0x87 without; and no session is left."""
    harness = Harness(hooks=Hooks(authenticate=[lambda login: DENY]))
    for user, v3, v5 in (("u", 4, 0x86), (None, 5, 0x87)):
        client = harness.open(version)
        client.send(Connect(version=version, client_id="a", user_name=user).encode())
        (connack,) = client.received()
        assert isinstance(connack, ConnAck)
        assert connack.reason == (v5 if version is V5 else v3)
        assert client.is_closed
    assert not harness.router.sessions


def test_login_shows_everything_but_the_password() -> None:
    """A plugin sees who wants in; printing it shows no password."""
    logins: list[Login] = []
    harness = Harness(hooks=Hooks(authenticate=[lambda login: logins.append(login)]))
    harness.connect("a", V5, user_name="u", password=b"secret")

    (login,) = logins

    assert (login.client_id, login.user_name, login.password, login.address) == ("a", "u", b"secret", "192.0.2.1")
    assert "secret" not in repr(login)


def test_take_over_needs_the_login() -> None:
    """A client that is refused does not disturb the one that is connected."""
    harness = Harness(hooks=Hooks(authenticate=[lambda login: ALLOW if login.user_name == "ok" else DENY]))
    good = harness.connect("a", user_name="ok")
    bad = harness.open()
    bad.send(Connect(client_id="a", user_name="bad").encode())

    assert bad.is_closed
    assert not good.is_closed


def test_late_login_holds_the_rest_back() -> None:
    """What comes behind CONNECT waits for the answer, unread beyond what is there; then it goes on in order."""
    pending: Pending[Decision | None] = Pending()
    harness = Harness(hooks=Hooks(authenticate=[lambda login: pending]))
    client = harness.open(V5)
    client.send(Connect(version=V5, client_id="a").encode(), PINGREQ)
    assert client.received() == []
    assert client.wire.pauses == 1
    client.send(PINGREQ)
    pending.resolve(ALLOW)
    harness.turn()

    packets = client.received()

    assert isinstance(packets[0], ConnAck)
    assert packets[1:] == [PacketType.PINGRESP] * 2
    assert client.wire.pauses == 0


def test_late_login_of_a_client_that_is_gone() -> None:
    """An answer for a connection that was lost meanwhile does nothing."""
    pending: Pending[Decision | None] = Pending()
    harness = Harness(hooks=Hooks(authenticate=[lambda login: pending]))
    client = harness.open()
    client.send(Connect(client_id="a").encode())
    client.lose()
    pending.resolve(ALLOW)
    harness.turn()

    assert not harness.router.sessions


def test_two_late_logins_race() -> None:
    """Of two connections of one client that wait for their logins, the one answered last takes over."""
    pendings: list[Pending[Decision | None]] = []

    def hook(login: Login) -> Answer:
        pendings.append(Pending())
        return pendings[-1]

    harness = Harness(hooks=Hooks(authenticate=[hook]))
    first, second = harness.open(V5), harness.open(V5)
    for client in (first, second):
        client.send(Connect(version=V5, client_id="a").encode())
    pendings[1].resolve(ALLOW)
    pendings[0].resolve(ALLOW)
    harness.turn()

    assert not first.is_closed
    assert second.is_closed
    assert isinstance(second.received()[-1], Disconnect)


def test_late_publish_decision_keeps_the_order() -> None:
    """Messages behind one that waits for a decision wait too; other clients do not."""
    pendings: dict[bytes, Pending[Decision | None]] = {}

    def hook(session: Any, topic: bytes, qos: int, retain: bool) -> Answer:
        if not topic.startswith(b"slow"):
            return None
        return pendings.setdefault(topic, Pending())

    harness = Harness(hooks=Hooks(authorize_publish=[hook]))
    subscriber = harness.connect("s")
    subscriber.subscribe("#")
    client, other = harness.connect("p", V5), harness.connect("o")
    client.publish("slow/1", b"1")
    client.publish("fast", b"2")
    client.publish("slow/2", b"3", 1)
    other.publish("fast", b"other")
    assert subscriber.payloads() == [b"other"]
    pendings[b"slow/1"].resolve(ALLOW)
    harness.turn()
    assert subscriber.payloads() == [b"1", b"2"]
    pendings[b"slow/2"].resolve(DENY)
    harness.turn()

    assert client.received() == [Ack(packet_id=1, reason=0x87)]
    assert subscriber.payloads() == []


def test_late_subscribe_decisions() -> None:
    """A SUBSCRIBE is answered when every filter has been decided."""
    pendings: dict[bytes, Pending[Decision | None]] = {}
    hook: Any = lambda session, topic, qos: pendings.setdefault(topic, Pending())  # noqa: E731
    harness = Harness(hooks=Hooks(authorize_subscribe=[hook]))
    client = harness.connect("c", V5)
    requests = [SubscriptionRequest(b"a", 0), SubscriptionRequest(b"b", 0)]
    client.send(Subscribe(packet_id=1, requests=requests).encode(V5))
    pendings[b"a"].resolve(ALLOW)
    harness.turn()
    assert client.received() == []
    pendings[b"b"].resolve(DENY)
    harness.turn()

    assert client.received() == [SubAck(packet_id=1, reasons=(0, 0x87))]


def test_keep_alive_stands_still_while_a_plugin_thinks() -> None:
    """Silence that the broker made itself is not held against the client."""
    pending: Pending[Decision | None] = Pending()
    harness = Harness(hooks=Hooks(authorize_publish=[lambda *_: pending]))
    client = harness.connect("p", keep_alive=1)
    client.publish("t", b"x")
    harness.advance(100)
    assert not client.is_closed
    pending.resolve(ALLOW)
    harness.turn()
    harness.advance(2)

    assert client.is_closed


def test_will_is_asked_about_twice() -> None:
    """A will may be refused at CONNECT, and again when it is to be sent."""
    allowed = {"t": True}
    hooks = Hooks(
        authorize_will=[lambda login, will: DENY if will.topic == b"never" else None],
        authorize_publish=[lambda *_: None if allowed["t"] else DENY],
    )
    harness = Harness(hooks=hooks)
    client = harness.open(V5)
    client.send(Connect(version=V5, client_id="a", will=Will(topic=b"never", payload=b"")).encode())
    (connack,) = client.received()
    assert isinstance(connack, ConnAck)
    assert connack.reason == 0x87
    watcher = harness.connect("w")
    watcher.subscribe("#")
    for is_allowed in (True, False):
        allowed["t"] = is_allowed
        harness.connect("b", will=Will(topic=b"t", payload=b"x")).lose()

    assert watcher.payloads() == [b"x"]
    assert ("denied", "b", "send its will to", b"t") in harness.observer.events


def test_answers_that_come_one_after_another() -> None:
    """What waits behind an answer is not handled while the next one is awaited, and then in order."""
    pendings: list[Pending[Decision | None]] = []

    def ask(*_: Any) -> Answer:
        pendings.append(Pending())
        return pendings[-1]

    harness = Harness(hooks=Hooks(authenticate=[ask], authorize_subscribe=[ask], authorize_publish=[ask]))
    client = harness.open(V5)
    requests = [SubscriptionRequest(b"t", 0)]
    client.send(
        Connect(version=V5, client_id="a").encode(),
        Subscribe(packet_id=1, requests=requests).encode(V5),
        b"\xc0\x00",
        b"\x32\x07\x00\x01t\x00\x02\x00x",
        b"\xc0\x00",
    )
    awaited: list[list[Any]] = [[ConnAck], [SubAck, PacketType], [object, Ack, PacketType]]
    for step, expected in enumerate(awaited):
        assert len(pendings) == step + 1
        assert client.received() == []
        pendings[step].resolve(ALLOW)
        harness.turn()
        packets = client.received()
        assert len(packets) == len(expected)
        assert all(isinstance(packet, kind) for packet, kind in zip(packets, expected, strict=True))
    assert client.wire.pauses == 0
    assert not client.is_closed


def test_error_behind_a_late_answer() -> None:
    """A packet that cannot be right, behind one that waited, ends the connection when its turn comes."""
    pending: Pending[Decision | None] = Pending()
    harness = Harness(hooks=Hooks(authenticate=[lambda login: pending]))
    client = harness.open(V5)
    client.send(Connect(version=V5, client_id="a").encode(), b"\x00\x00", PINGREQ)
    assert not client.is_closed
    pending.resolve(ALLOW)
    harness.turn()

    assert client.is_closed
    assert [type(packet) for packet in client.received()] == [ConnAck, Disconnect]


def test_answers_that_are_there_already() -> None:
    """A pending that has its answer costs no turn, and a second answer changes nothing."""
    pending: Pending[Decision | None] = Pending()
    pending.resolve(DENY)
    pending.resolve(ALLOW)
    harness = Harness(hooks=Hooks(authorize_publish=[lambda *_: pending]))
    client = harness.connect("a", V5)
    client.publish("t", b"x", 1)

    assert client.received() == [Ack(packet_id=1, reason=0x87)]
    assert client.wire.pauses == 0


@pytest.mark.parametrize("qos", [1, 2])
def test_denied_runs(version: Version, qos: int) -> None:
    """Every message of a refused run is answered and counted; a refused QoS 2 exchange can be finished."""
    harness = Harness(hooks=Hooks(authorize_publish=[denying(b"no")]))
    client = harness.connect("p", version)
    for first in (1, 11):
        packets = [b"\x00\x02no" + bytes((0, first + i)) + (b"\x00" if version is V5 else b"") for i in range(4)]
        client.send(*[bytes((0x30 | qos << 1, len(body))) + body for body in packets])
    reason = ReasonCode.NOT_AUTHORIZED if version is V5 else 0
    identifiers = [*range(1, 5), *range(11, 15)]
    assert client.received() == [Ack(packet_id=i, reason=reason) for i in identifiers]
    assert harness.router.stats.dropped == 8
    received = harness.router.sessions["p"].received
    assert (received or set()) == (set(identifiers) if qos == 2 and version is not V5 else set())


def test_wills_are_messages_of_their_client() -> None:
    """A will has its expiry and its publisher: it counts down in a queue, and No Local holds for it."""
    harness = Harness()
    away = harness.durable("away", V5)
    away.subscribe("w", 1)
    away.lose()
    own = harness.durable(
        "own", V5, will=Will(topic=b"w", payload=b"", qos=1, properties={"message_expiry_interval": 9})
    )
    own.subscribe("w", 5)
    own.lose()
    harness.advance(4)

    (message,) = harness.durable("away", V5, session_present=True).messages()
    assert message.properties == {"message_expiry_interval": 5}
    assert harness.durable("own", V5, session_present=True).messages() == []


@pytest.mark.parametrize("default", [ALLOW, DENY])
def test_receive_hook_decides_by_topic(default: Decision) -> None:
    """Live, retained and shared messages are judged by their own topic; allow and deny beat the default."""
    asked: list[tuple[str, bytes]] = []

    def hook(session: Any, topic: bytes) -> Decision | None:
        asked.append((session.client_id, topic))
        return {b"t/yes": ALLOW, b"t/no": DENY}.get(topic)

    harness = Harness(hooks=Hooks(authorize_receive=[hook], default_authorize=default))
    publisher = harness.connect("p")
    topics = ("t/yes", "t/no", "t/open")
    for topic in topics:
        publisher.publish(topic, b"retained", retain=True)
    client = harness.connect("c", V5)
    expected = {b"t/yes"} | ({b"t/open"} if default is ALLOW else set())
    assert {m.topic for m in client.subscribe("t/+") if isinstance(m, Publish)} == expected
    client.subscribe("$share/g/t/#")
    for topic in topics:
        publisher.publish(topic, b"live")

    assert sorted(m.topic for m in client.messages()) == sorted([*expected, *expected])
    assert set(asked) == {("c", topic.encode()) for topic in topics}


def test_decisions_can_be_forgotten_again_and_again() -> None:
    """Each time rules change, routes and decisions are made anew."""
    allowed = {"c": False}
    hook: Any = lambda session, topic: None if allowed[session.client_id] else DENY  # noqa: E731
    harness = Harness(hooks=Hooks(authorize_receive=[hook]))
    client = harness.connect("c")
    client.subscribe("t")
    publisher = harness.connect("p")
    for is_allowed in (True, False, True, True, False, True):
        allowed["c"] = is_allowed
        harness.router.forget_decisions()
        publisher.publish("t", b"x")
        assert len(client.messages()) == is_allowed
