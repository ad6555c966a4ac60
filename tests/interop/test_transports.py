"""Transports: TCP, unix, TLS with and without client certificates, WebSocket in all its shapes."""

import asyncio
import logging
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from broker import Broker, StartError
from broker.core.hooks import Login
from broker.mqtt.framing import decode_server_packet
from broker.mqtt.packets import PINGREQ, Connect, PacketType, Publish, Subscribe, SubscriptionRequest, Version
from tests.interop.conftest import Start
from tests.interop.sockets import RawClient

V311, V5 = Version.V311, Version.V5
S = pytest.mark.statement

WS = {"ws": {"1": {"listen": "127.0.0.1:0"}}}


def ws_client(port: int, **kwargs: Any) -> RawClient:
    """Return a WebSocket client."""
    return RawClient(("127.0.0.1", port), ws=True, **kwargs)


@pytest.mark.parametrize("ws", [False, True])
@pytest.mark.parametrize("version", [Version.V31, V311, V5])
def test_every_version_on_every_listener(start: Start, ws: bool, version: Version) -> None:
    """v4, v5 and ws listeners all speak every version."""
    listener = {"listen": "127.0.0.1:0"}
    broker = start({"v4": {"1": listener}, "v5": {"1": listener}, "ws": {"1": listener}})
    for place in ("ws.1",) if ws else ("v4.1", "v5.1"):
        with RawClient(("127.0.0.1", broker.port(place)), version, ws=ws) as raw:
            assert raw.connect("a").reason == 0


def test_host_names_and_both_families(start: Start) -> None:
    """A host name in `listen` is looked up, and every address behind it is served on one port."""
    broker = start({"v4": {"1": {"listen": "localhost:0"}, "2": {"listen": "[::1]:0"}}})
    with RawClient(("127.0.0.1", broker.port("v4.1"))) as raw:
        assert raw.connect("a").reason == 0
    assert broker.port("v4.2")


def test_unix_socket(start: Start, tmp_path: Path) -> None:
    """A unix socket serves MQTT; one that a dead process left is replaced, and it is removed at the end."""
    path = tmp_path / "mqtt.sock"
    config = {"v4": {"1": {"listen": "unix:mqtt.sock"}}}
    broker = start(config, tmp_path)
    with RawClient(str(path)) as raw:
        assert raw.connect("a").reason == 0
    with pytest.raises(StartError, match=r"v4\.1\.listen"):
        start(config, tmp_path)
    assert stat.S_ISSOCK(path.stat().st_mode)
    del broker


async def test_port_in_use_names_port_and_key() -> None:
    """A port that is taken is an error that says which, and leaves nothing open."""
    async with Broker({"v4": {"1": {"listen": "127.0.0.1:0"}}}) as broker:
        port = broker.port("v4.1")
        second = Broker({"ws": {"1": {"listen": "127.0.0.1:0"}}, "v4": {"9": {"listen": f"127.0.0.1:{port}"}}})
        with pytest.raises(StartError, match=rf"v4\.9\.listen: cannot listen on 127\.0\.0\.1:{port}"):
            await second.start()


# --- TLS --------------------------------------------------------------------------------------------------------------


def trusting(certificates: Path, *, client: bool = False) -> ssl.SSLContext:
    """Return a client context."""
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if client:
        context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    return context


@pytest.mark.parametrize("ws", [False, True])
def test_tls(start: Start, certificates: Path, ws: bool) -> None:
    """mqtts:// and wss:// work."""
    tls = {"certpath": "server.pem", "keypath": "server.key"}
    place = "ws" if ws else "v4"
    broker = start({place: {"1": {"listen": "127.0.0.1:0", "tls": tls}}}, certificates)
    with RawClient(("127.0.0.1", broker.port(f"{place}.1")), V5, ws=ws, tls=trusting(certificates)) as raw:
        assert raw.connect("a").reason == 0
        raw.send(PINGREQ)
        assert raw.receive() is PacketType.PINGRESP


@pytest.mark.parametrize(("identity", "expected"), [("cn", "alice"), ("san", "alice.test"), (None, "someone")])
@pytest.mark.parametrize("ws", [False, True])
def test_client_certificate_names_the_user(
    start: Start, certificates: Path, identity: str | None, expected: str, ws: bool
) -> None:
    """A client certificate is the user where the listener says so."""
    tls = {"certpath": "server.pem", "keypath": "server.key", "capath": "ca.pem", "identity": identity}
    place = "ws" if ws else "v4"
    broker = start({place: {"1": {"listen": "127.0.0.1:0", "tls": tls}}}, certificates)
    logins: list[Login] = []
    broker.broker.hooks.authenticate.append(lambda login: logins.append(login))
    context = trusting(certificates, client=True)
    with RawClient(("127.0.0.1", broker.port(f"{place}.1")), ws=ws, tls=context) as raw:
        assert raw.connect("a", user_name="someone", password=b"x").reason == 0
        assert broker.broker.router.sessions["a"].user_name == expected
    assert logins[0].tls_identity == (expected if identity else None)


def test_client_without_certificate_is_refused(start: Start, certificates: Path) -> None:
    """With capath a certificate is wanted."""
    tls = {"certpath": "server.pem", "keypath": "server.key", "capath": "ca.pem"}
    broker = start({"v4": {"1": {"listen": "127.0.0.1:0", "tls": tls}}}, certificates)
    with RawClient(("127.0.0.1", broker.port("v4.1")), tls=trusting(certificates)) as raw:
        try:
            raw.send(Connect(client_id="a").encode())
            packet = raw.receive()
        except OSError:
            packet = None
    assert packet is None
    assert not broker.broker.router.sessions


async def test_missing_certificate_is_named(certificates: Path) -> None:
    """A certificate file that is not there is an error with its path and key."""
    tls = {"certpath": "nothing.pem", "keypath": "server.key"}
    broker = Broker({"v4": {"1": {"listen": "127.0.0.1:0", "tls": tls}}}, directory=certificates)

    with pytest.raises(StartError, match=r"v4\.1\.tls"):
        await broker.start()


# --- WebSocket --------------------------------------------------------------------------------------------------------


@S("5:MQTT-6.0.0-4", "3.1.1:MQTT-6.0.0-4")
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("mqtt", "mqtt"),
        ("mqttv3.1", "mqttv3.1"),
        ("foo, mqtt", "mqtt"),
        ("mqttv3.1, mqtt", "mqttv3.1"),
        ("foo", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("path", ["/", "/mqtt", "/any/path?x=1"])
def test_subprotocols_and_paths(start: Start, offered: str, chosen: str | None, path: str) -> None:
    """What the client offers is echoed; a client that offers nothing is accepted, on every path."""
    broker = start(WS)
    headers = f"Sec-WebSocket-Protocol: {offered}\r\n" if offered else ""
    with ws_client(broker.port("ws.1"), path=path, headers=headers) as raw:
        assert raw.response.startswith(b"HTTP/1.1 101")
        echoed = [line for line in raw.response.split(b"\r\n") if line.lower().startswith(b"sec-websocket-protocol")]
        assert echoed == ([f"Sec-WebSocket-Protocol: {chosen}".encode()] if chosen else [])
        assert raw.connect("a").reason == 0


def test_paths_and_origins_can_be_restricted(start: Start) -> None:
    """A path or an origin that is not listed is refused with words that name the setting."""
    broker = start({"ws": {"1": {"listen": "127.0.0.1:0", "paths": ["/mqtt"], "origins": ["https://good.example"]}}})
    port = broker.port("ws.1")
    for path, origin, status in (
        ("/mqtt", "https://good.example", b"101"),
        ("/mqtt?token=1", None, b"101"),
        ("/other", "https://good.example", b"404"),
        ("/mqtt", "https://evil.example", b"403"),
    ):
        headers = f"Origin: {origin}\r\n" if origin else ""
        with ws_client(port, path=path, headers=headers) as raw:
            assert raw.response.split(b" ")[1] == status, raw.response


@S("3.1.1:MQTT-6.0.0-1", "5:MQTT-6.0.0-1")
def test_text_frame_closes_with_1003(start: Start) -> None:
    """A text frame is told what is wrong with it."""
    broker = start(WS)
    with ws_client(broker.port("ws.1")) as raw:
        raw.connect("a")
        raw.frame(b"hello", 1)
        assert raw.receive() is None
        assert raw.close_code == 1003


@S("3.1.1:MQTT-6.0.0-2", "5:MQTT-6.0.0-2", "3.1.1:MQTT-4.2.0-1", "5:MQTT-4.2.0-1")
def test_packets_and_frames_are_independent(start: Start) -> None:
    """Packets are split over frames, merged in frames, and spread over fragmented messages with pings between."""
    broker = start(WS)
    connect = Connect(client_id="a").encode()
    subscribe = Subscribe(packet_id=1, requests=[SubscriptionRequest(b"t", 0)]).encode(V311)
    messages = [Publish(topic=b"t", payload=b"%d" % i * 200).encode(V311) for i in range(5)]
    with ws_client(broker.port("ws.1")) as raw:
        for byte in connect:
            raw.frame(bytes((byte,)))
        raw.receive()
        raw.frame(subscribe + messages[0] + messages[1][:50])
        raw.frame(messages[1][50:] + messages[2][:10], fin=False)
        raw.frame(b"ping", 9)
        raw.frame(b"", 0, fin=False)
        raw.frame(messages[2][10:], 0)
        for message in messages[3:]:
            raw.frame(message)
        raw.receive()
        opcodes = []
        payloads: list[bytes] = []
        while len(payloads) < 5:
            frame = raw.read_frame() if not raw.waiting else None
            if frame is not None and frame[0] == 10:
                opcodes.append(frame[1])
                continue
            if frame is not None:
                found = [decode_server_packet(first, body, V311) for first, body in raw.stream.feed(frame[1])]
                raw.waiting += found
            payloads += [packet.payload for packet in raw.waiting if isinstance(packet, Publish)]
            raw.waiting = []
        assert payloads == [b"%d" % i * 200 for i in range(5)]
        assert opcodes == [b"ping"]


@pytest.mark.parametrize("size", [100, 125, 126, 65_530, 65_540, 300_000])
def test_frames_of_every_length(start: Start, size: int) -> None:
    """Frames with one, two and eight bytes of length pass both ways; large messages come in several frames."""
    limits = {"max_payload_size": 1_000_000}
    broker = start({"ws": {"1": {"listen": "127.0.0.1:0", "connections": limits}}})
    with ws_client(broker.port("ws.1")) as raw:
        raw.connect("a")
        raw.send(Subscribe(packet_id=1, requests=[SubscriptionRequest(b"t", 0)]).encode(V311))
        raw.receive()
        payload = bytes(i & 255 for i in range(size))
        raw.send(Publish(topic=b"t", payload=payload).encode(V311))
        packet = raw.receive()
        assert isinstance(packet, Publish)
        assert packet.payload == payload


@pytest.mark.parametrize("bad", [{"opcode": 3}, {"masked": False}, {"opcode": 0}, {"opcode": 9, "fin": False}], ids=str)
def test_bad_frames_close(start: Start, bad: dict[str, Any]) -> None:
    """A frame that RFC 6455 does not allow ends its connection."""
    broker = start(WS)
    with ws_client(broker.port("ws.1")) as raw:
        raw.connect("a")
        raw.frame(PINGREQ, **bad)
        assert raw.receive() is None
        assert raw.close_code == 1002


def test_close_is_answered(start: Start) -> None:
    """A close frame gets one back, and the will is published."""
    broker = start(WS)
    with ws_client(broker.port("ws.1")) as raw:
        raw.connect("a")
        raw.frame(b"\x03\xe8", 8)
        assert raw.receive() is None
        assert raw.close_code == 1000


def test_closing_handshake_after_disconnect(start: Start) -> None:
    """Behind DISCONNECT the close handshake is finished: the client can still write its close frame."""
    broker = start(WS)
    with ws_client(broker.port("ws.1")) as raw:
        raw.connect("a")
        raw.frame(b"\xe0\x00")
        assert raw.receive() is None
        assert raw.close_code == 1000
        for _ in range(3):
            raw.frame(b"\x03\xe8", 8)
        assert raw.sock.recv(100) == b""


def test_protocol_error_has_a_close_code(start: Start) -> None:
    """An MQTT error closes the WebSocket with a code that fits."""
    broker = start(WS)
    with ws_client(broker.port("ws.1"), version=V5) as raw:
        raw.connect("a")
        raw.send(b"\x00\x00")
        while raw.receive() is not None:
            pass
        assert raw.close_code == 1002


def test_compression_is_negotiated_where_it_is_on(start: Start) -> None:
    """permessage-deflate is used where the listener allows it, and only there."""
    websockets = pytest.importorskip("websockets.sync.client")
    for compression in (False, True):
        broker = start({"ws": {"1": {"listen": "127.0.0.1:0", "compression": compression}}})
        with websockets.connect(
            f"ws://127.0.0.1:{broker.port('ws.1')}/mqtt", subprotocols=["mqtt"], compression="deflate"
        ) as connection:
            assert bool(connection.protocol.extensions) is compression
            connection.send(Connect(client_id="a").encode())
            assert connection.recv() == b"\x20\x02\x00\x00"
            connection.send(Publish(topic=b"t", payload=b"x" * 5000).encode(V311) + PINGREQ)
            assert connection.recv() == b"\xd0\x00"


def test_http_get_gets_a_page(start: Start) -> None:
    """A browser that opens the port reads what it is."""
    broker = start(WS)
    with RawClient(("127.0.0.1", broker.port("ws.1"))) as raw:
        raw.sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        page = b""
        while data := raw.sock.recv(65_536):
            page += data
    assert page.startswith(b"HTTP/1.1 200")
    assert b"MQTT over WebSocket" in page


# --- the wrong kind of bytes ------------------------------------------------------------------------------------------

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50


@pytest.mark.parametrize(
    ("place", "data", "said"),
    [
        ("v4.1", HELLO, "a TLS client came to the plain listener v4.1"),
        ("ws.1", HELLO, "a TLS client came to the plain listener ws.1"),
        ("v4.1", b"GET /mqtt HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", "HTTP came on an MQTT port"),
        ("ws.1", Connect(client_id="a").encode(), "plain MQTT came to the WebSocket listener ws.1"),
        ("ws.1", b"nonsense\r\n\r\n", "no WebSocket handshake"),
        ("v4.1", b"nonsense\r\n\r\n", "which is not MQTT's CONNECT"),
    ],
)
def test_wrong_bytes_get_one_clear_line(
    start: Start, caplog: pytest.LogCaptureFixture, place: str, data: bytes, said: str
) -> None:
    """TLS, HTTP or MQTT on the wrong port is one line in the log, with the remedy."""
    listener = {"listen": "127.0.0.1:0"}
    logging.getLogger("broker").propagate = True
    broker = start({"v4": {"1": listener}, "ws": {"1": listener}})
    with caplog.at_level(logging.INFO, "broker"), RawClient(("127.0.0.1", broker.port(place))) as raw:
        raw.sock.sendall(data)
        while raw.sock.recv(65_536):
            pass
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(lines) == 1
    assert said in lines[0]


def test_stalled_peers_delay_nobody(start: Start, certificates: Path) -> None:
    """Connections that say nothing, or half a handshake, do not keep others from being served."""
    tls = {"certpath": "server.pem", "keypath": "server.key"}
    broker = start(
        {"v4": {"1": {"listen": "127.0.0.1:0", "tls": tls}}, "ws": {"1": {"listen": "127.0.0.1:0"}}}, certificates
    )
    stalled = []
    for place in ("v4.1", "ws.1"):
        for _ in range(20):
            raw = RawClient(("127.0.0.1", broker.port(place)))
            raw.sock.sendall(b"\x16\x03" if place == "v4.1" else b"GET / HT")
            stalled.append(raw)
    with RawClient(("127.0.0.1", broker.port("v4.1")), tls=trusting(certificates)) as raw:
        assert raw.connect("a").reason == 0
    with ws_client(broker.port("ws.1")) as raw:
        assert raw.connect("b").reason == 0
    for raw in stalled:
        raw.close()


def test_refused_client_reads_why_although_it_goes_on_sending(start: Start) -> None:
    """Half-close and drain: input that is still coming does not make the system drop the DISCONNECT."""
    broker = start({"v4": {"1": {"listen": "127.0.0.1:0", "connections": {"max_payload_size": 1000}}}})
    with RawClient(("127.0.0.1", broker.port("v4.1")), V5) as raw:
        raw.connect("a")
        raw.sock.sendall(b"\x30\xff\xff\x3f")
        try:
            for _ in range(50):
                raw.sock.sendall(b"x" * 10_000)
        except OSError as error:
            raise AssertionError("the connection was reset before the client could read why") from error
        packet = raw.receive()
        assert getattr(packet, "reason", None) == 0x95


def test_stop_tells_clients(start: Start) -> None:
    """At an orderly stop MQTT 5 clients read 0x8B, and wills are published first."""
    broker = start({"v4": {"1": {"listen": "127.0.0.1:0"}}})
    with RawClient(("127.0.0.1", broker.port("v4.1")), V5) as raw:
        raw.connect("a")
        asyncio.run_coroutine_threadsafe(broker.broker.stop(), broker._loop).result()
        packet = raw.receive()
        assert getattr(packet, "reason", None) == 0x8B
        assert raw.receive() is None
