"""A run: consecutive PUBLISH packets that differ only in packet identifier and payload, handled as one.

Everything that depends on topic, flags and properties is done once per run, and for a subscriber whose packets look
like the publisher's the run goes out as the bytes that came in. One message is a run of one.
"""

from typing import NamedTuple

from broker.mqtt.wire import encode_uint16, encode_varint

__all__ = ["Delivery", "Encoded", "Run"]

_EXPIRY = b"\x02"
_IDENTIFIER = b"\x0b"
_ALIAS = b"\x23"


class Encoded(NamedTuple):
    """A run as it goes on the wire: *data* is packets of *size* bytes, each with its packet identifier at *id_at*."""

    data: bytes
    size: int
    #: Position of the packet identifier within each packet; 0 at QoS 0.
    id_at: int


class Run:
    """Messages of one topic, one size, one set of flags and properties; never changed once made.

    *data* is the packets as they came in, *size* bytes each, payloads from *payload_at*. *properties* is what goes on
    to MQTT 5 subscribers except the message expiry, which is *expiry* seconds from *wall*, when the run arrived.
    """

    __slots__ = (
        "_encoded",
        "count",
        "data",
        "expiry",
        "id_at",
        "payload_at",
        "properties",
        "publisher",
        "qos",
        "retain",
        "size",
        "topic",
        "v5",
        "verbatim",
        "wall",
    )

    def __init__(
        self,
        topic: bytes,
        qos: int,
        retain: bool,
        data: bytes,
        size: int,
        payload_at: int,
        *,
        v5: bool = False,
        id_at: int = 0,
        properties: bytes = b"",
        expiry: int | None = None,
        wall: float = 0.0,
        publisher: str = "",
        verbatim: bool = True,
    ) -> None:
        self.topic = topic
        self.qos = qos
        self.retain = retain
        self.data = data
        self.size = size
        self.count = len(data) // size
        self.payload_at = payload_at
        self.v5 = v5
        self.id_at = id_at
        self.properties = properties
        self.expiry = expiry
        self.wall = wall
        self.publisher = publisher
        #: Whether *data* may go to a subscriber as it is: its properties are those that go on, in no alias's place.
        self.verbatim = verbatim
        self._encoded: dict[tuple[bool, int, bool, tuple[int, ...]], Encoded] | None = None

    @classmethod
    def message(
        cls,
        topic: bytes,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: bytes = b"",
        expiry: int | None = None,
        wall: float = 0.0,
        publisher: str = "",
    ) -> "Run":
        """Return a run of one message that came from no client's packet: a will, a plugin, the in-process link."""
        head = encode_uint16(len(topic)) + topic + (b"\x00\x00" if qos else b"")
        length = len(head) + len(payload)
        fixed = bytes((0x30 | qos << 1 | retain,)) + encode_varint(length)
        data = fixed + head + payload
        return cls(
            topic,
            qos,
            retain,
            data,
            len(data),
            len(data) - len(payload),
            id_at=len(fixed) + 2 + len(topic) if qos else 0,
            properties=properties,
            expiry=expiry,
            wall=wall,
            publisher=publisher,
            verbatim=not properties and expiry is None,
        )

    def payload(self, index: int) -> bytes:
        """Return the payload of message *index*."""
        start = index * self.size
        return self.data[start + self.payload_at : start + self.size]

    def part(self, start: int, stop: int) -> "Run":
        """Return messages *start* to *stop* as a run of their own that keeps nothing else in memory."""
        if start == 0 and stop == self.count:
            return self
        return Run(
            self.topic,
            self.qos,
            self.retain,
            self.data[start * self.size : stop * self.size],
            self.size,
            self.payload_at,
            v5=self.v5,
            id_at=self.id_at,
            properties=self.properties,
            expiry=self.expiry,
            wall=self.wall,
            publisher=self.publisher,
            verbatim=self.verbatim,
        )

    def expires_at(self) -> float | None:
        """Return the wall time after which the messages are gone, or None."""
        return None if self.expiry is None else self.wall + self.expiry

    def waited(self, wall: float) -> int:
        """Return the whole seconds from arrival to *wall*; none where the clock was set back."""
        return max(0, int(wall - self.wall))

    def encode(self, v5: bool, qos: int, retain: bool, identifiers: tuple[int, ...]) -> Encoded:
        """Return the run as it goes to subscribers of one kind; packet identifiers are whatever they were.

        Made once for each kind of subscriber: most runs have one or two.
        """
        first = 0x30 | qos << 1 | retain
        if self.verbatim and self.v5 is v5 and not identifiers and (qos == self.qos or (qos and self.qos)):
            if self.data[0] == first:
                return Encoded(self.data, self.size, self.id_at)
            copy = bytearray(self.data)
            copy[0 :: self.size] = bytes((first,)) * self.count
            return Encoded(bytes(copy), self.size, self.id_at)
        key = (v5, qos, retain, identifiers)
        if self._encoded is None:
            self._encoded = {}
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = self._encoded[key] = self.build(v5, qos, retain, identifiers, self.expiry)
        return encoded

    def forget_encodings(self) -> None:
        """Keep no more than what came in: for messages that stay."""
        self._encoded = None

    def build(
        self,
        v5: bool,
        qos: int,
        retain: bool,
        identifiers: tuple[int, ...],
        expiry: int | None,
        *,
        alias: int = 0,
        with_topic: bool = True,
    ) -> Encoded:
        """Return the run written anew, with *expiry* seconds left, and with a topic alias if *alias* is not 0."""
        topic = self.topic if with_topic else b""
        properties = b""
        if v5:
            parts = [self.properties]
            if expiry is not None:
                parts.append(_EXPIRY + expiry.to_bytes(4, "big"))
            if alias:
                parts.append(_ALIAS + encode_uint16(alias))
            parts += [_IDENTIFIER + encode_varint(identifier) for identifier in identifiers]
            properties = b"".join(parts)
            properties = encode_varint(len(properties)) + properties
        body = encode_uint16(len(topic)) + topic
        payload_at = self.payload_at
        size = self.size
        length = len(body) + (2 if qos else 0) + len(properties) + size - payload_at
        head = bytes((0x30 | qos << 1 | retain,)) + encode_varint(length) + body
        id_at = len(head) if qos else 0
        if qos:
            head += b"\x00\x00"
        head += properties
        data = self.data
        if self.count == 1:
            built = head + data[payload_at:]
        else:
            built = b"".join([head + data[at + payload_at : at + size] for at in range(0, len(data), size)])
        return Encoded(built, len(head) + size - payload_at, id_at)


class Delivery:
    """A run on its way to one kind of subscriber: with which QoS, retain flag and subscription identifiers.

    One object serves all subscribers of that kind; their queues and windows refer to it with a first and a last index.
    """

    __slots__ = ("identifiers", "qos", "retain", "run", "share")

    def __init__(
        self, run: Run, qos: int, retain: bool, identifiers: tuple[int, ...], share: object | None = None
    ) -> None:
        self.run = run
        self.qos = qos
        self.retain = retain
        self.identifiers = identifiers
        #: The shared subscription that the messages came through, for handing them on.
        self.share = share

    def encode(self, v5: bool) -> Encoded:
        """Return the run as it goes on the wire just now."""
        return self.run.encode(v5, self.qos, self.retain, self.identifiers)

    def encode_at(self, v5: bool, wall: float) -> Encoded | None:
        """Return the run as it leaves a queue at *wall*, or None when it has expired [5:MQTT-3.3.2-5, 3.3.2-6]."""
        run = self.run
        if run.expiry is None:
            return run.encode(v5, self.qos, self.retain, self.identifiers)
        waited = run.waited(wall)
        if waited >= run.expiry and wall >= run.wall + run.expiry:
            return None
        if not v5 or not waited:
            return run.encode(v5, self.qos, self.retain, self.identifiers)
        return run.build(v5, self.qos, self.retain, self.identifiers, run.expiry - waited)
