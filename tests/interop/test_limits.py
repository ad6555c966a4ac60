"""Every limit over a real socket: at it, one under it, one over it; on TCP and WebSocket, in 3.1.1 and 5."""

import time
from typing import Any

import pytest

from broker.mqtt.packets import (
    PINGREQ,
    Ack,
    ConnAck,
    Disconnect,
    PacketType,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Version,
)
from broker.pytest_plugin import RunningBroker
from tests.interop.conftest import Start
from tests.interop.sockets import RawClient

V311, V5 = Version.V311, Version.V5


def config(**connections: Any) -> dict[str, Any]:
    """Return a configuration with a TCP and a WebSocket listener that have these limits."""
    listener = {"listen": "127.0.0.1:0", "connections": connections}
    return {"v4": {"1": listener}, "ws": {"1": listener}}


@pytest.fixture(params=[(ws, version) for ws in (False, True) for version in (V311, V5)], ids=str)
def kind(request: pytest.FixtureRequest) -> tuple[bool, Version]:
    """Transport and version."""
    ws, version = request.param
    return ws, version


def client(broker: RunningBroker, kind: tuple[bool, Version]) -> RawClient:
    """Return an unconnected client of this kind."""
    ws, version = kind
    return RawClient(("127.0.0.1", broker.port("ws.1" if ws else "v4.1")), version, ws=ws)


def ended(raw: RawClient, reason: int) -> None:
    """Check that the broker ended the connection, and told an MQTT 5 client why."""
    packets = []
    while (packet := raw.receive()) is not None:
        packets.append(packet)
    if raw.version is V5:
        last = packets[-1]
        assert isinstance(last, Disconnect | ConnAck)
        assert last.reason == reason
    else:
        assert not [packet for packet in packets if isinstance(packet, Disconnect)]


@pytest.mark.parametrize("size", [20_479, 20_480, 20_481])
def test_max_payload_size(start: Start, kind: tuple[bool, Version], size: int) -> None:
    """Remaining Length up to max_payload_size passes."""
    broker = start(config(max_payload_size=20_480))
    overhead = 2 + 1 + (kind[1] is V5)
    with client(broker, kind) as raw:
        connack = raw.connect("a")
        if raw.version is V5:
            assert connack.properties["maximum_packet_size"] == 20_484
        raw.send(Publish(topic=b"t", payload=b"x" * (size - overhead)).encode(raw.version), PINGREQ)
        if size > 20_480:
            ended(raw, 0x95)
        else:
            assert raw.receive() is PacketType.PINGRESP


def test_connect_over_max_payload_size(start: Start, kind: tuple[bool, Version]) -> None:
    """An oversized CONNECT is refused; MQTT 5 may be told only once its version is known, so it is just closed."""
    broker = start(config(max_payload_size=100, max_client_id_len=200))
    with client(broker, kind) as raw:
        raw.send(b"\x10\xff\x01" + b"\x00" * 10)
        assert raw.receive() is None


@pytest.mark.parametrize("length", [255, 256, 257])
def test_max_client_id_len(start: Start, kind: tuple[bool, Version], length: int) -> None:
    """A client identifier may have max_client_id_len bytes."""
    broker = start(config(max_client_id_len=256))
    with client(broker, kind) as raw:
        reason = raw.connect("x" * length).reason
        assert reason == ((0x85 if raw.version is V5 else 2) if length > 256 else 0)


@pytest.mark.parametrize("count", [499, 500, 501])
def test_max_inflight_count_incoming(start: Start, kind: tuple[bool, Version], count: int) -> None:
    """As many QoS 2 messages may be unfinished."""
    broker = start(config(max_inflight_count=500))
    with client(broker, kind) as raw:
        connack = raw.connect("a")
        if raw.version is V5:
            assert connack.properties["receive_maximum"] == 500
        raw.send(*[Publish(topic=b"t", qos=2, packet_id=i + 1).encode(raw.version) for i in range(count)])
        if count > 500:
            ended(raw, 0x93)
            return
        for i in range(count):
            assert raw.receive() == Ack(packet_id=i + 1)
        raw.send(PINGREQ)
        assert raw.receive() is PacketType.PINGRESP


@pytest.mark.parametrize("limit", [{"max_inflight_count": 5}, {"max_inflight_size": 5}])
def test_inflight_outgoing(start: Start, kind: tuple[bool, Version], limit: dict[str, int]) -> None:
    """A subscriber has at most so many messages, or so many KiB, unacknowledged: five of 1 KiB each, or four."""
    broker = start(config(**limit))
    expected = 5 if "max_inflight_count" in limit else 4
    with client(broker, kind) as raw, client(broker, (False, V311)) as publisher:
        raw.connect("s")
        raw.send(Subscribe(packet_id=1, requests=[SubscriptionRequest(b"t", 1)]).encode(raw.version))
        assert isinstance(raw.receive(), SubAck)
        publisher.connect("p")
        publisher.send(
            *[Publish(topic=b"t", payload=b"x" * 1024, qos=1, packet_id=i + 1).encode(V311) for i in range(7)]
        )
        for i in range(7):
            assert publisher.receive() == Ack(packet_id=i + 1)
        raw.send(PINGREQ)
        packets = []
        while (packet := raw.receive()) is not PacketType.PINGRESP:
            packets.append(packet)
        assert len(packets) == expected
        first = packets[0]
        assert isinstance(first, Publish)
        raw.send(Ack(packet_id=first.packet_id).encode(PacketType.PUBACK, raw.version))
        assert isinstance(raw.receive(), Publish)


def test_connection_timeout(start: Start, kind: tuple[bool, Version]) -> None:
    """A connection without CONNECT is closed, and not before its time; the handshake counts."""
    broker = start(config(connection_timeout_ms=300))
    begun = time.monotonic()
    with client(broker, kind) as raw:
        assert raw.receive() is None
        assert time.monotonic() - begun >= 0.29


def test_connection_timeout_bounds_the_websocket_handshake(start: Start) -> None:
    """A WebSocket handshake that never ends does not keep its socket."""
    broker = start(config(connection_timeout_ms=300))
    with RawClient(("127.0.0.1", broker.port("ws.1"))) as raw:
        raw.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert raw.receive() is None


def test_throttle_delay(start: Start, kind: tuple[bool, Version]) -> None:
    """After a read the socket rests: two pings one after the other take at least the delay."""
    broker = start(config(throttle_delay_ms=200))
    with client(broker, kind) as raw:
        raw.connect("a")
        begun = time.monotonic()
        raw.send(PINGREQ)
        raw.receive()
        raw.send(PINGREQ)
        raw.receive()
        assert time.monotonic() - begun >= 0.19


def test_next_connection_delay(start: Start, kind: tuple[bool, Version]) -> None:
    """Between two accepts at least the delay passes."""
    listener = {"listen": "127.0.0.1:0", "next_connection_delay_ms": 100}
    broker = start({"v4": {"1": listener}, "ws": {"1": listener}})
    begun = time.monotonic()
    clients = []
    for i in range(4):
        raw = client(broker, kind)
        raw.connect(f"c{i}")
        clients.append(raw)
    assert time.monotonic() - begun >= 0.29
    for raw in clients:
        raw.close()


def test_keep_alive(start: Start, kind: tuple[bool, Version]) -> None:
    """A silent client is cut off after 1.5 times its keep-alive, and not before."""
    broker = start(config())
    with client(broker, kind) as raw:
        raw.connect("a", keep_alive=1)
        begun = time.monotonic()
        ended(raw, 0x8D)
        assert time.monotonic() - begun >= 1.49


def test_max_connections_per_address(start: Start) -> None:
    """One more connection than the limit from an address is closed; when one goes another may come."""
    broker = start({**config(), "router": {"max_connections_per_address": 2}})
    kind = (False, V311)
    first, second = client(broker, kind), client(broker, kind)
    first.connect("1")
    second.connect("2")
    with client(broker, kind) as third:
        assert third.receive() is None
    first.close()
    for _ in range(1000):
        with client(broker, kind) as fourth:
            try:
                fourth.connect("4")
            except (AssertionError, BrokenPipeError, ConnectionResetError):
                continue
            break
    else:
        raise AssertionError("the place of a closed connection is never given back")
    second.close()


def test_pending_connections_are_bounded(start: Start) -> None:
    """Of many connections without CONNECT the oldest go; one that means it still gets in."""
    listener = {"listen": "127.0.0.1:0", "max_pending_connections": 5}
    broker = start({"v4": {"1": listener}})
    kind = (False, V311)
    idle = [client(broker, kind) for _ in range(10)]
    with client(broker, kind) as raw:
        assert raw.connect("a").reason == 0
    assert idle[0].receive() is None
    for each in idle:
        each.close()
