"""The broker inside a program: links, the fixture, passwords, the log."""

import asyncio
import logging
from typing import Any

import pytest

from broker import Broker, LinkError, Message
from broker.core.connection import Connection
from broker.core.hooks import Decision
from broker.log import LogObserver
from broker.mqtt.packets import Version, Will
from broker.mqtt.reason_codes import ReasonCode
from broker.pytest_plugin import RunningBroker
from tests.harness import V5, V311, FakeWire, Harness
from tests.interop.sockets import TIMEOUT, RawClient

CONFIG = {"v4": {"1": {"listen": "127.0.0.1:0"}}}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The broker's log at its most talkative."""
    logger = logging.getLogger("broker")
    logger.propagate = True
    caplog.set_level(logging.DEBUG, "broker")
    return caplog


async def first(link: Any) -> Message:
    """Return the next message of a link."""
    async with asyncio.timeout(TIMEOUT):
        message: Message = await link.next()
        return message


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_links_talk(qos: int) -> None:
    """Two links exchange a message at every QoS, with properties."""
    async with Broker(CONFIG) as broker, broker.link("a") as a, broker.link("b") as b:
        await a.subscribe("t/#", qos)
        await b.publish("t/x", "hello", qos, content_type="text/plain")
        message = await first(a)

    assert (message.topic, message.payload, message.qos) == ("t/x", b"hello", qos)
    assert message.properties == {"content_type": "text/plain"}


async def test_link_iterates_until_closed() -> None:
    """`async for` ends when the broker stops, after the messages that had come."""
    async with Broker(CONFIG) as broker:
        link = broker.link()
        assert link.client_id.startswith("ternmq-")
        await link.subscribe("t")
        for i in range(3):
            await link.publish("t", b"%d" % i)
    assert [message.payload async for message in link] == [b"0", b"1", b"2"]
    with pytest.raises(LinkError, match="closed"):
        await link.publish("t")


async def test_link_is_told_no() -> None:
    """What plugins refuse raises, with the reason."""
    async with Broker(CONFIG) as broker:
        broker.hooks.authorize_publish.append(lambda *_: Decision.DENY)
        broker.hooks.authorize_subscribe.append(lambda *_: Decision.DENY)
        link = broker.link("a")
        for refused in (link.publish("t", qos=1), link.publish("t", qos=2), link.subscribe("t")):
            with pytest.raises(LinkError, match="0x87"):
                await refused
        with pytest.raises(LinkError, match="topic filter invalid"):
            await link.unsubscribe("a/#/b")
        broker.hooks.authenticate.append(lambda login: Decision.DENY)
        with pytest.raises(LinkError, match="refused"):
            broker.link("b")


async def test_link_that_is_not_read_holds_back() -> None:
    """QoS 1 messages beyond what a link holds wait in the broker, and all come in order."""
    async with Broker(CONFIG) as broker, broker.link("slow") as slow, broker.link("p") as publisher:
        await slow.subscribe("t", 1)
        for i in range(3000):
            await publisher.publish("t", b"%d" % i, 1)
        received = [(await first(slow)).payload for _ in range(3000)]

    assert received == [b"%d" % i for i in range(3000)]


async def test_no_link_to_a_broker_that_is_not_running() -> None:
    """A link needs a running broker; stopping twice is harmless."""
    broker = Broker(CONFIG)
    with pytest.raises(RuntimeError, match="not running"):
        broker.link("a")
    await broker.start()
    await broker.stop()
    await broker.stop()


def test_fixture_gives_a_broker(ternmq_broker: RunningBroker) -> None:
    """The fixture that ships with the package works for plain tests."""
    for place, ws in (("v4.1", False), ("ws.1", True)):
        with RawClient(("127.0.0.1", ternmq_broker.port(place)), ws=ws) as raw:
            assert raw.connect("a").reason == 0


@pytest.mark.parametrize(
    ("user", "password", "is_let_in"),
    [("Alice", b"pw", True), ("Alice", b"PW", False), ("alice", b"pw", False), ("Bob", b"", False), (None, None, False),
     ("", b"", False)],
)  # fmt: skip
async def test_auth_map(user: str | None, password: bytes | None, is_let_in: bool) -> None:
    """`auth` lets in exactly its pairs, on its own listener."""
    config = {
        "v4": {
            "1": {"listen": "127.0.0.1:0", "connections": {"auth": {"Alice": "pw"}}},
            "2": {"listen": "127.0.0.1:0"},
        }
    }
    async with Broker(config) as broker:

        def login(place: str) -> int:
            with RawClient(("127.0.0.1", broker.port(place)), V5) as raw:
                return raw.connect("a", user_name=user, password=password).reason

        reason = await asyncio.to_thread(login, "v4.1")
        assert (reason == 0) is is_let_in
        assert reason in (0, 0x86, 0x87)
        assert await asyncio.to_thread(login, "v4.2") == 0


async def test_broker_runs_on_a_plain_loop_and_on_uvloop() -> None:
    """The tests run on asyncio's own loop; the same works on uvloop."""
    uvloop = pytest.importorskip("uvloop")

    async def talk() -> bytes:
        async with Broker(CONFIG) as broker, broker.link("a") as link:
            await link.subscribe("t")
            await link.publish("t", "x")
            return (await link.next()).payload

    def on_uvloop() -> bytes:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(talk())

    assert await talk() == b"x"
    assert await asyncio.to_thread(on_uvloop) == b"x"


async def test_wills_are_published_before_an_orderly_stop() -> None:
    """A will reaches subscribers when the broker stops, before they are closed."""
    async with Broker(CONFIG) as broker:
        link = broker.link("watcher")
        await link.subscribe("gone")

        def connect() -> RawClient:
            raw = RawClient(("127.0.0.1", broker.port("v4.1")), V5)
            raw.connect("a", will=Will(topic=b"gone", payload=b"bye"))
            return raw

        raw = await asyncio.to_thread(connect)
    assert [message.payload async for message in link] == [b"bye"]
    raw.close()


# --- the log ----------------------------------------------------------------------------------------------------------


def logged(log: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the log."""
    return [record.getMessage() for record in log.records]


def logging_harness() -> tuple[Harness, list[float]]:
    """Return a broker that logs, and its clock."""
    clock = [0.0]
    harness = Harness()
    harness.router.observer = LogObserver(lambda: clock[0])
    return harness, clock


def test_every_end_is_one_line(log: pytest.LogCaptureFixture) -> None:
    """Reason, client, user, address, listener and remedy, in one line each."""
    harness, _ = logging_harness()
    client = harness.connect("c1", V5, user_name="alice", keep_alive=10)
    harness.advance(20)
    harness.connect("c2", V311).disconnect()
    harness.connect("c3", V311).lose()
    refused = harness.open(V311)
    refused.send(b"\x10\x00")
    assert client.is_closed

    lines = [line for line in logged(log) if line.startswith(("disconnected", "refused"))]

    where = "from 192.0.2.1:1 on test"
    remedy = "check the network, or raise the client's keep-alive"
    silence = f"nothing came for 15 s, one and a half times the keep-alive -> {remedy}"
    assert lines == [
        f"disconnected (keep alive timeout): client 'c1' (user 'alice') {where}, MQTT 5: {silence}",
        f"disconnected (normal disconnection): client 'c2' {where}, MQTT 3.1.1: the client disconnected",
        f"disconnected (unspecified error): client 'c3' {where}, MQTT 3.1.1: the network is gone",
        f"refused (malformed packet): a client without CONNECT {where}, MQTT 3.1.1: a two byte integer is cut off",
    ]


def test_fight_for_an_identifier_is_called_out(log: pytest.LogCaptureFixture) -> None:
    """Five take-overs within ten seconds are one warning with the remedy; slow ones are none."""
    harness, clock = logging_harness()
    for _ in range(6):
        harness.connect("same")
        clock[0] += 3
    assert not [line for line in logged(log) if "taken over 5 times" in line]
    for _ in range(5):
        harness.connect("same")
        clock[0] += 1

    lines = [line for line in logged(log) if "taken over 5 times" in line]
    assert len(lines) == 1
    assert "give each its own" in lines[0]


def test_difference_to_rumqttd_is_said_once(log: pytest.LogCaptureFixture) -> None:
    """Keep-alive 0, MQTT 3.1 and MQTT 5 over WebSocket are remarked on, once each."""
    harness, _ = logging_harness()
    for version in (Version.V31, V5, Version.V31):
        harness.connect("a", version)
    wire = FakeWire()
    connection = Connection(harness.router, wire, harness.limits, "ws.1")
    connection.v5 = True
    connection.keep_alive = 1.0
    harness.router.observer.connected(connection, False)

    assert len([line for line in logged(log) if line.startswith("by the way: rumqttd")]) == 3


def test_other_events_are_logged(log: pytest.LogCaptureFixture) -> None:
    """Subscriptions, denials, losses, expiry and refusals to retain each have their line."""
    harness, _ = logging_harness()
    client = harness.durable("a", V5)
    client.subscribe("t", 1)
    client.unsubscribe("t")
    session = harness.router.sessions["a"]
    observer = harness.router.observer
    observer.denied(session, "publish to", b"\xff")
    session.lose("queue full", 2)
    session.end_losses()
    observer.retained_refused(b"t", "no room")
    client.lose()
    harness.advance(4000)
    observer.disconnected(client.connection, ReasonCode.ADMINISTRATIVE_ACTION, "kicked", False)

    text = "\n".join(logged(log))
    for expected in (
        "client 'a' subscribed to 't' with QoS 1",
        "client 'a' unsubscribed from 't'",
        r"client 'a' (user None) may not publish to '\\xff'",
        "messages for client 'a' are being dropped: queue full",
        "2 messages for client 'a' were dropped: queue full",
        "the message to 't' was not retained: no room",
        "session of client 'a' has expired",
    ):
        assert expected in text
