"""A client inside the process: the broker's own MQTT 5 without a socket."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from broker.core.connection import Connection
from broker.core.limits import ConnectionLimits
from broker.mqtt.framing import PacketStream, decode_server_packet
from broker.mqtt.packets import (
    Ack,
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
from broker.mqtt.properties import Properties
from broker.mqtt.reason_codes import ReasonCode
from broker.transports.driver import Driver

__all__ = ["Link", "LinkError", "Message"]

#: Messages that wait in a link before the broker keeps the rest in its own queue.
_HIGH: Final = 1000


class LinkError(Exception):
    """The broker said no; *reason* is its reason code."""

    def __init__(self, what: str, reason: int) -> None:
        self.reason = ReasonCode(reason)
        super().__init__(f"{what}: {self.reason.text} (0x{reason:02X})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An application message that a link received."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties = field(default_factory=dict)


class Link:
    """A connected in-process client; iterate over it for its messages.

    QoS 1 and 2 messages are acknowledged when the iteration has yielded them.
    """

    def __init__(self, driver: Driver, client_id: str, limits: ConnectionLimits) -> None:
        """Connect as *client_id*; raises LinkError where plugins refuse."""
        self.peer = self.address = "in-process"
        self.tls_identity: str | None = None
        self._driver = driver
        self._stream = PacketStream()
        self._messages: deque[Publish] = deque()
        self._arrived = asyncio.Event()
        self._answers: dict[tuple[PacketType, int], asyncio.Future[Any]] = {}
        self._next_id = 0
        self._taken = 0
        self._refused: int | None = None
        self._closed = False
        with driver.turn() as router:
            self._connection = Connection(router, self, limits, "link")
            self._connection.receive(
                Connect(
                    version=Version.V5,
                    client_id=client_id,
                    properties={"receive_maximum": 65_535},
                ).encode()
            )
            router.flush()
        if self._refused:
            raise LinkError(f"the link {client_id!r} is refused", self._refused)

    @property
    def client_id(self) -> str:
        """The client identifier, which the broker chose where it was empty."""
        return self._connection.client_id

    # --- what users call ----------------------------------------------------------------------------------------------

    async def publish(
        self, topic: str, payload: bytes | str = b"", qos: int = 0, *, retain: bool = False, **properties: Any
    ) -> None:
        """Publish a message; at QoS 1 and 2 return when the broker has taken it.

        *properties* are those of MQTT 5 by name: `message_expiry_interval=60`. Raises LinkError where it is refused.
        """
        packet = Publish(
            topic=topic.encode(),
            payload=payload.encode() if isinstance(payload, str) else payload,
            qos=qos,
            retain=retain,
            packet_id=self._take_id() if qos else 0,
            properties=properties,
        )
        if not qos:
            self._send(packet.encode(Version.V5))
            return
        first = PacketType.PUBACK if qos == 1 else PacketType.PUBREC
        answer: Ack = await self._ask(packet.encode(Version.V5), first, packet.packet_id)
        if answer.reason >= 0x80:
            raise LinkError(f"the message to {topic!r} is refused", answer.reason)
        if qos == 2:
            release = Ack(packet_id=packet.packet_id).encode(PacketType.PUBREL, Version.V5)
            await self._ask(release, PacketType.PUBCOMP, packet.packet_id)

    async def subscribe(self, topic_filter: str, qos: int = 0, *, no_local: bool = False) -> None:
        """Subscribe; raises LinkError where it is refused."""
        packet_id = self._take_id()
        request = SubscriptionRequest(topic_filter.encode(), qos | no_local << 2)
        packet = Subscribe(packet_id=packet_id, requests=[request]).encode(Version.V5)
        answer: SubAck = await self._ask(packet, PacketType.SUBACK, packet_id)
        if answer.reasons[0] >= 0x80:
            raise LinkError(f"the subscription to {topic_filter!r} is refused", answer.reasons[0])

    async def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe; raises LinkError where the filter is not valid."""
        packet_id = self._take_id()
        packet = Unsubscribe(packet_id=packet_id, topic_filters=[topic_filter.encode()]).encode(Version.V5)
        answer: UnsubAck = await self._ask(packet, PacketType.UNSUBACK, packet_id)
        if answer.reasons[0] >= 0x80:
            raise LinkError(f"cannot unsubscribe from {topic_filter!r}", answer.reasons[0])

    async def next(self) -> Message:
        """Return the next message; raises StopAsyncIteration when the link is closed and all are read."""
        while not self._messages:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        packet = self._messages.popleft()
        self._taken += 1
        if len(self._messages) == _HIGH // 2:
            self._driver.run(self._connection.unblocked)
        if packet.qos and not self._closed:
            kind = PacketType.PUBACK if packet.qos == 1 else PacketType.PUBREC
            self._send(Ack(packet_id=packet.packet_id).encode(kind, Version.V5))
        return Message(
            topic=packet.topic.decode(),
            payload=packet.payload,
            qos=packet.qos,
            retain=packet.retain,
            properties=packet.properties,
        )

    async def __aiter__(self) -> AsyncIterator[Message]:
        while True:
            try:
                message = await self.next()
            except StopAsyncIteration:
                return
            yield message

    async def aclose(self) -> None:
        """Disconnect; messages that have arrived can still be read."""
        if not self._closed:
            self._send(Disconnect().encode(Version.V5))

    async def __aenter__(self) -> "Link":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    # --- both ways ----------------------------------------------------------------------------------------------------

    def _take_id(self) -> int:
        for _ in range(65_535):
            self._next_id = self._next_id % 65_535 + 1
            if not any(packet_id == self._next_id for _, packet_id in self._answers):
                return self._next_id
        raise LinkError("all packet identifiers of the link are in use", ReasonCode.QUOTA_EXCEEDED)

    def _send(self, data: bytes) -> None:
        if self._closed:
            raise LinkError("the link is closed", ReasonCode.UNSPECIFIED_ERROR)
        self._driver.run(lambda: self._connection.receive(data))

    async def _ask(self, data: bytes, kind: PacketType, packet_id: int) -> Any:
        future: asyncio.Future[Any] = self._driver.loop.create_future()
        self._answers[(kind, packet_id)] = future
        try:
            self._send(data)
            return await future
        finally:
            self._answers.pop((kind, packet_id), None)

    def _receive(self, first: int, body: bytes) -> None:
        packet = decode_server_packet(first, body, Version.V5)
        match packet:
            case Publish():
                self._messages.append(packet)
                self._arrived.set()
                if len(self._messages) == _HIGH:
                    self._connection.blocked()
            case ConnAck():
                self._refused = packet.reason
            case Ack() if first >> 4 == PacketType.PUBREL:
                done = Ack(packet_id=packet.packet_id).encode(PacketType.PUBCOMP, Version.V5)
                # Not at once: this is called while the broker writes out, and an answer is input to it.
                self._driver.loop.call_soon(self._answer, done)
            case Ack() | SubAck() | UnsubAck():
                waiting = self._answers.get((PacketType(first >> 4), packet.packet_id))
                if waiting is not None and not waiting.done():
                    waiting.set_result(packet)
            case _:
                pass  # DISCONNECT is followed by close

    def _answer(self, data: bytes) -> None:
        if not self._closed:
            self._send(data)

    # --- Wire ---------------------------------------------------------------------------------------------------------

    def send(self, parts: Sequence[bytes | bytearray]) -> None:
        """Take packets from the broker."""
        for first, body in self._stream.feed(b"".join(parts)):
            self._receive(first, body)

    def unsent(self) -> int:
        """Return 0: a link holds messages, and asks for no more when it has enough."""
        return 0

    def taken(self) -> int:
        """Return how many messages its user has taken, as a sign of life."""
        return self._taken

    def pause(self) -> None:
        """Do nothing: a link sends only what its user awaits."""

    def resume(self) -> None:
        """Do nothing, as `pause`."""

    def close(self, reason: int) -> None:
        """Wake everybody who waits; the link is over."""
        self._closed = True
        self._arrived.set()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(LinkError("the broker closed the link", reason))
