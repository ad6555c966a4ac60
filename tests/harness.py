"""A broker without a socket or a clock: clients that hand bytes to the core and read what it answers."""

import os
import re
from collections.abc import Sequence
from typing import Any

from broker.core.connection import Connection
from broker.core.hooks import Hooks
from broker.core.limits import ConnectionLimits, RouterLimits
from broker.core.observer import Observer
from broker.core.router import Router
from broker.mqtt.framing import PacketStream, ServerPacket, decode_server_packet
from broker.mqtt.packets import (
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    PacketType,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Version,
)

V31, V311, V5 = Version.V31, Version.V311, Version.V5
VERSIONS = (V31, V311, V5)
PUBACK, PUBREC, PUBREL, PUBCOMP = PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP


def examples(count: int) -> int:
    """Return how many examples Hypothesis tries: *count* times TERNMQ_EXAMPLES: more in a campaign."""
    return max(5, int(count * float(os.environ.get("TERNMQ_EXAMPLES", "1"))))


__all__ = [
    "PUBACK",
    "PUBCOMP",
    "PUBREC",
    "PUBREL",
    "V5",
    "V31",
    "V311",
    "VERSIONS",
    "Client",
    "FakeWire",
    "Harness",
    "RecordingObserver",
    "examples",
]


class FakeWire:
    """Keeps what the core writes."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        self.peer = f"{address}:1"
        self.address = address
        self.tls_identity: str | None = None
        self.data = bytearray()
        self.writes = 0
        self.closed_for: int | None = None
        self.has_taken = 0
        self.pauses = 0
        self.unread = 0

    def send(self, parts: Sequence[bytes | bytearray]) -> None:
        """Take *parts*."""
        assert self.closed_for is None, "nothing is written after close"
        self.data += b"".join(parts)
        self.writes += 1

    def unsent(self) -> int:
        """Return what the test says the peer has not read."""
        return self.unread

    def pause(self) -> None:
        """Count."""
        self.pauses += 1

    def resume(self) -> None:
        """Count back."""
        self.pauses -= 1
        assert self.pauses >= 0

    def close(self, reason: int) -> None:
        """Note the reason."""
        self.closed_for = reason

    def taken(self) -> int:
        """Return what the test says the peer has read."""
        return self.has_taken


#: Words that messages for people write in capitals.
_CAPITALS = frozenset((*(kind.name for kind in PacketType), "MQTT", "UTF", "DUP", "HTTP", "TLS"))


def check_text(message: str) -> None:
    """Check that a message for people is a sentence as the others are: no capitals but for names, nothing missing."""
    assert isinstance(message, str)
    first = message.split()[0]
    assert first in _CAPITALS or not first[0].isupper() or message.startswith("Maximum"), message
    for word in re.findall(r"[A-Za-z]+", re.sub(r"'[^']*'|0x[0-9A-F]+|U\+0000", "", message)):
        assert len(word) < 2 or not word.isupper() or word in _CAPITALS, message
        assert not re.search("[A-Z]{2}[a-z]|[a-z][A-Z]{2}", word), message


class RecordingObserver(Observer):
    """Keeps the names of events with their telling arguments."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def connected(self, connection: Connection, session_present: bool) -> None:
        self.events.append(("connected", connection.client_id, session_present))

    def refused(self, connection: Connection, reason: Any, message: str) -> None:
        check_text(message)
        self.events.append(("refused", connection.client_id, int(reason), message))

    def disconnected(self, connection: Connection, reason: Any, message: str, by_client: bool) -> None:
        check_text(message)
        self.events.append(("disconnected", connection.client_id, int(reason), by_client))

    def taken_over(self, old: Connection, new: Connection) -> None:
        self.events.append(("taken over", old.client_id))

    def session_ended(self, session: Any, expired: bool) -> None:
        self.events.append(("session ended", session.client_id, expired))

    def subscribed(self, session: Any, topic_filter: bytes, qos: int) -> None:
        self.events.append(("subscribed", session.client_id, topic_filter, qos))

    def unsubscribed(self, session: Any, topic_filter: bytes) -> None:
        self.events.append(("unsubscribed", session.client_id, topic_filter))

    def denied(self, session: Any, action: str, topic: bytes) -> None:
        check_text(action)
        self.events.append(("denied", session.client_id, action, topic))

    def dropping(self, session: Any, why: str) -> None:
        check_text(why)
        self.events.append(("dropping", session.client_id, why))

    def dropped(self, session: Any, why: str, count: int) -> None:
        self.events.append(("dropped", session.client_id, why, count))

    def retained_refused(self, topic: bytes, why: str) -> None:
        check_text(why)
        self.events.append(("retained refused", topic))


class Client:
    """The client's side of a connection to the core."""

    def __init__(self, harness: "Harness", version: Version, limits: ConnectionLimits | None) -> None:
        self.harness = harness
        self.version = version
        self.wire = FakeWire()
        self.connection = Connection(harness.router, self.wire, limits or harness.limits, "test")
        self.stream = PacketStream()
        self.read = 0
        self.next_id = 0

    def send(self, *data: bytes) -> None:
        """Hand *data* to the broker in one piece, and let it finish its turn."""
        self.harness.tell_time()
        self.connection.receive(b"".join(data))
        self.harness.turn()

    def received(self) -> list[ServerPacket]:
        """Return the packets that have come since the last call."""
        data = bytes(self.wire.data[self.read :])
        self.read = len(self.wire.data)
        return [decode_server_packet(first, body, self.version) for first, body in self.stream.feed(data)]

    def received_bytes(self) -> bytes:
        """Return the bytes that have come since the last call."""
        data = bytes(self.wire.data[self.read :])
        self.read = len(self.wire.data)
        return data

    def take_id(self) -> int:
        """Return a packet identifier that was not used before."""
        self.next_id += 1
        return self.next_id

    def subscribe(self, topic_filter: str, options: int = 0, identifier: int = 0) -> list[ServerPacket]:
        """Subscribe and return what comes behind the SUBACK, which must be a yes."""
        properties = {"subscription_identifier": [identifier]} if identifier else {}
        request = SubscriptionRequest(topic_filter.encode(), options)
        packet = Subscribe(packet_id=self.take_id(), requests=[request], properties=properties)
        self.send(packet.encode(self.version))
        suback, *rest = self.received()
        assert isinstance(suback, SubAck), suback
        assert list(suback.reasons) == [options & 3], suback
        return rest

    def unsubscribe(self, topic_filter: str) -> UnsubAck:
        """Unsubscribe and return the answer."""
        packet = Unsubscribe(packet_id=self.take_id(), topic_filters=[topic_filter.encode()])
        self.send(packet.encode(self.version))
        (answer,) = self.received()
        assert isinstance(answer, UnsubAck)
        return answer

    def publish(self, topic: str, payload: bytes = b"", qos: int = 0, packet_id: int = 0, **fields: Any) -> int:
        """Publish one message and return its packet identifier; the answer is left to read."""
        if qos and not packet_id:
            packet_id = self.take_id()
        packet = Publish(topic=topic.encode(), payload=payload, qos=qos, packet_id=packet_id, **fields)
        self.send(packet.encode(self.version))
        return packet_id

    def ack(self, kind: PacketType, packet_id: int, reason: int = 0) -> None:
        """Send an acknowledgement."""
        self.send(Ack(packet_id=packet_id, reason=reason).encode(kind, self.version))

    def messages(self) -> list[Publish]:
        """Return the PUBLISH packets that have come, and nothing else may have."""
        packets = self.received()
        assert all(isinstance(packet, Publish) for packet in packets), packets
        return [packet for packet in packets if isinstance(packet, Publish)]

    def payloads(self) -> list[bytes]:
        """Return the payloads of `messages`."""
        return [message.payload for message in self.messages()]

    def disconnect(self, **fields: Any) -> None:
        """Say good-bye."""
        self.send(Disconnect(**fields).encode(self.version))

    def lose(self) -> None:
        """Lose the network."""
        self.harness.tell_time()
        self.connection.lost("the network is gone")
        self.harness.turn()

    @property
    def is_closed(self) -> bool:
        """Whether the broker has closed the connection."""
        return self.wire.closed_for is not None


class Harness:
    """A router with a clock that the test turns."""

    def __init__(
        self,
        *,
        limits: ConnectionLimits | None = None,
        router_limits: RouterLimits | None = None,
        hooks: Hooks | None = None,
        journal: Any = None,
    ) -> None:
        self.limits = limits or ConnectionLimits()
        self.observer = RecordingObserver()
        self.generated = 0
        self.now = 1000.0
        self.wall = 1_700_000_000.0
        self.router = Router(
            router_limits, observer=self.observer, hooks=hooks, choose=lambda found: found[-1], new_id=self._new_id
        )
        self.router.journal = journal
        #: Whether what the journal holds back is let go at the end of each turn.
        self.commits = journal is not None
        self.tell_time()

    def _new_id(self) -> str:
        self.generated += 1
        return f"generated-{self.generated}"

    def tell_time(self) -> None:
        """Set the router's clocks, as whoever drives it must before each call."""
        self.router.now = self.now
        self.router.wall = self.wall

    def turn(self) -> None:
        """Finish the turn: write out, and go on with what was left, until nothing is."""
        self.router.flush()
        for _ in range(100_000):
            if not self.router.has_backlog() and not (self.commits and self.router.is_waiting_for_commit()):
                return
            if self.commits and self.router.journal is not None:
                position = self.router.journal.position
                self.router.journal.position += 1
                self.router.committed(position)
            self.router.run_backlog()
            self.router.flush()
        raise AssertionError("the backlog never ends")

    def advance(self, seconds: float) -> None:
        """Let time pass; what is due happens."""
        end = self.now + seconds
        while True:
            due = self.router.deadlines.next()
            if due is None or due > end:
                break
            self.wall += max(0.0, due - self.now)
            self.now = max(self.now, due)
            self.tell_time()
            self.router.deadlines.run(self.now)
            self.turn()
        self.wall += end - self.now
        self.now = end
        self.tell_time()

    def open(self, version: Version = V311, limits: ConnectionLimits | None = None) -> Client:
        """Return a client that has not sent CONNECT."""
        self.tell_time()
        return Client(self, version, limits)

    def connect(
        self,
        client_id: str = "client",
        version: Version = V311,
        *,
        limits: ConnectionLimits | None = None,
        session_present: bool = False,
        **fields: Any,
    ) -> Client:
        """Return a connected client; its CONNACK is read and must be a yes."""
        client = self.open(version, limits)
        client.send(Connect(version=version, client_id=client_id, **fields).encode())
        packets = client.received()
        assert packets, "no CONNACK came"
        connack = packets[0]
        assert isinstance(connack, ConnAck), connack
        assert connack.reason == 0, connack
        assert connack.session_present is session_present
        # What came behind the CONNACK is still to be read.
        client.read -= sum(len(_encoded(packet, version)) for packet in packets[1:])
        return client

    def durable(self, client_id: str, version: Version = V311, **fields: Any) -> Client:
        """Return a client whose session outlives its connection."""
        if version is V5:
            properties = {"session_expiry_interval": 3600, **fields.pop("properties", {})}
            fields["properties"] = properties
        return self.connect(client_id, version, clean_start=False, **fields)


def _encoded(packet: ServerPacket, version: Version) -> bytes:
    """Return the bytes that *packet* came as."""
    if isinstance(packet, Ack):
        return packet.encode(PUBREL, version)
    if isinstance(packet, PacketType):
        return bytes((packet << 4, 0))
    if isinstance(packet, Auth):
        return packet.encode()
    return packet.encode(version)
