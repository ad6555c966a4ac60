"""The control packets of MQTT 3.1, 3.1.1 and 5 as plain values, decoded and encoded [5: section 3].

PUBLISH has its fast path in `broker.core`; the class here is its plain twin, used for wills, by clients and in tests.
Decoders get the bytes between *pos* and *end*: variable header and payload. The fixed header is the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from broker.mqtt import wire
from broker.mqtt.errors import MalformedPacket, MqttError, ProtocolViolation
from broker.mqtt.properties import Context, Properties, decode_properties, encode_properties
from broker.mqtt.reason_codes import ReasonCode

__all__ = [
    "PINGREQ",
    "PINGRESP",
    "Ack",
    "Auth",
    "ConnAck",
    "Connect",
    "Disconnect",
    "PacketType",
    "Publish",
    "SubAck",
    "Subscribe",
    "SubscriptionRequest",
    "UnsubAck",
    "Unsubscribe",
    "Version",
    "Will",
    "frame",
]


class PacketType(IntEnum):
    """The upper four bits of a packet's first byte [5: section 2.1.2]."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


class Version(IntEnum):
    """Protocol levels as they stand in CONNECT."""

    V31 = 3
    V311 = 4
    V5 = 5

    @property
    def text(self) -> str:
        """The version as people write it."""
        return {3: "3.1", 4: "3.1.1", 5: "5"}[self]


PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"

_LEVELS = {(b"MQIsdp", 3): Version.V31, (b"MQTT", 4): Version.V311, (b"MQTT", 5): Version.V5}


def frame(first: int, body: bytes) -> bytes:
    """Return *body* behind its fixed header, whose first byte is *first*."""
    return bytes((first,)) + wire.encode_varint(len(body)) + body


@dataclass(slots=True, kw_only=True)
class Publish:
    """An application message on its way: PUBLISH [5: section 3.3]."""

    topic: bytes
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, first: int, data: bytes, pos: int, end: int, version: Version) -> "Publish":
        """Return the packet; checks its form, not whether its topic or alias is allowed here."""
        qos = first >> 1 & 3
        if qos == 3:
            raise MalformedPacket("a PUBLISH has both QoS bits set")
        if qos == 0 and first & 8:
            raise MalformedPacket("a PUBLISH of QoS 0 has DUP set")
        topic, pos = wire.decode_binary(data, pos, end)
        packet_id = 0
        if qos:
            packet_id, pos = wire.decode_uint16(data, pos, end)
            if not packet_id:
                raise ProtocolViolation("a PUBLISH of QoS 1 or 2 has packet identifier 0")
        properties: Properties = {}
        if version is Version.V5:
            properties, pos = decode_properties(data, pos, end, Context.PUBLISH)
        return cls(
            topic=topic,
            payload=data[pos:end],
            qos=qos,
            retain=bool(first & 1),
            dup=bool(first & 8),
            packet_id=packet_id,
            properties=properties,
        )

    def encode(self, version: Version) -> bytes:
        """Return the whole packet."""
        first = 0x30 | self.dup << 3 | self.qos << 1 | self.retain
        packet_id = wire.encode_uint16(self.packet_id) if self.qos else b""
        properties = encode_properties(self.properties) if version is Version.V5 else b""
        return frame(first, wire.encode_binary(self.topic) + packet_id + properties + self.payload)


@dataclass(slots=True, kw_only=True)
class Will:
    """The Will Message that stands in CONNECT [5: section 3.1.2.5]."""

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Connect:
    """CONNECT [5: section 3.1]."""

    version: Version = Version.V311
    client_id: str = ""
    clean_start: bool = True
    keep_alive: int = 0
    user_name: str | None = None
    password: bytes | None = field(default=None, repr=False)
    will: Will | None = None
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, pos: int, end: int) -> "Connect":
        """Return the packet.

        Raises MqttError: 0x84 for a protocol that this broker does not speak, MalformedPacket or ProtocolViolation for
        the rest [5: section 3.1.2].
        """
        version, pos = decode_protocol(data, pos, end)
        if pos >= end:
            raise MalformedPacket("CONNECT is cut off before its flags")
        flags = data[pos]
        keep_alive, pos = wire.decode_uint16(data, pos + 1, end)
        _check_flags(flags, version)
        properties: Properties = {}
        if version is Version.V5:
            properties, pos = decode_properties(data, pos, end, Context.CONNECT)
            if "authentication_data" in properties and "authentication_method" not in properties:
                raise ProtocolViolation("CONNECT has authentication data without an authentication method")
        client_id, pos = wire.decode_string(data, pos, end)
        will = None
        if flags & 0x04:
            will, pos = _decode_will(flags, data, pos, end, version)
        user_name = password = None
        # MQTT 3.1 lets a client set the flag and leave the field out; 3.1.1 and 5 do not.
        if flags & 0x80 and not (version is Version.V31 and pos == end):
            user_name, pos = wire.decode_string(data, pos, end)
        if flags & 0x40 and not (version is Version.V31 and pos == end):
            password, pos = wire.decode_binary(data, pos, end)
        if pos != end:
            raise MalformedPacket("CONNECT has bytes after its last field")
        return cls(
            version=version,
            client_id=client_id,
            clean_start=bool(flags & 0x02),
            keep_alive=keep_alive,
            user_name=user_name,
            password=password,
            will=will,
            properties=properties,
        )

    def encode(self) -> bytes:
        """Return the whole packet."""
        will = self.will
        flags = self.clean_start << 1
        v5 = self.version is Version.V5
        name = b"MQIsdp" if self.version is Version.V31 else b"MQTT"
        payload = [wire.encode_string(self.client_id)]
        if will is not None:
            flags |= 0x04 | will.qos << 3 | will.retain << 5
            if v5:
                payload.append(encode_properties(will.properties))
            payload += (wire.encode_binary(will.topic), wire.encode_binary(will.payload))
        if self.user_name is not None:
            flags |= 0x80
            payload.append(wire.encode_string(self.user_name))
        if self.password is not None:
            flags |= 0x40
            payload.append(wire.encode_binary(self.password))
        head = wire.encode_binary(name) + bytes((self.version, flags)) + wire.encode_uint16(self.keep_alive)
        if v5:
            head += encode_properties(self.properties)
        return frame(0x10, head + b"".join(payload))


def decode_protocol(data: bytes, pos: int, end: int) -> tuple[Version, int]:
    """Return the version that a CONNECT asks for and the position after it [5:MQTT-3.1.2-1, 5:MQTT-3.1.2-2]."""
    name, pos = wire.decode_binary(data, pos, end)
    if pos >= end:
        raise MalformedPacket("CONNECT is cut off before its protocol level")
    version = _LEVELS.get((name, data[pos]))
    if version is None:
        shown = name[:20].decode("utf-8", "backslashreplace")
        raise MqttError(
            ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
            f"protocol {shown!r} level {data[pos]} is not MQTT 3.1, 3.1.1 or 5",
        )
    return version, pos + 1


def _check_flags(flags: int, version: Version) -> None:
    if flags & 0x01:
        raise MalformedPacket("the reserved flag of CONNECT is set")
    if flags & 0x18 == 0x18:
        raise MalformedPacket("the will QoS is 3")
    if not flags & 0x04 and flags & 0x38:
        raise MalformedPacket("will QoS or will retain is set without a will")
    if flags & 0x40 and not flags & 0x80 and version is not Version.V5:
        raise MalformedPacket("CONNECT has a password without a user name")


def _decode_will(flags: int, data: bytes, pos: int, end: int, version: Version) -> tuple[Will, int]:
    properties: Properties = {}
    if version is Version.V5:
        properties, pos = decode_properties(data, pos, end, Context.WILL)
    topic, pos = wire.decode_binary(data, pos, end)
    payload, pos = wire.decode_binary(data, pos, end)
    will = Will(
        topic=topic,
        payload=payload,
        qos=flags >> 3 & 3,
        retain=bool(flags & 0x20),
        properties=properties,
    )
    return will, pos


@dataclass(slots=True, kw_only=True)
class ConnAck:
    """CONNACK; *reason* is the return code in 3.x [5: section 3.2]."""

    session_present: bool = False
    reason: int = 0
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, pos: int, end: int, version: Version) -> "ConnAck":
        """Return the packet."""
        if end - pos < 2:
            raise MalformedPacket("CONNACK is cut off")
        session_present, reason = bool(data[pos] & 1), data[pos + 1]
        properties: Properties = {}
        if version is Version.V5:
            properties, pos = decode_properties(data, pos + 2, end, Context.CONNACK)
        return cls(session_present=session_present, reason=reason, properties=properties)

    def encode(self, version: Version) -> bytes:
        """Return the whole packet."""
        body = bytes((self.session_present, self.reason))
        if version is Version.V5:
            body += encode_properties(self.properties)
        return frame(0x20, body)


@dataclass(slots=True, kw_only=True)
class Ack:
    """PUBACK, PUBREC, PUBREL or PUBCOMP [5: section 3.4 to 3.7]."""

    packet_id: int
    reason: int = 0
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, pos: int, end: int, version: Version) -> "Ack":
        """Return the packet; raises ProtocolViolation for packet identifier 0."""
        packet_id, pos = wire.decode_uint16(data, pos, end)
        if not packet_id:
            raise ProtocolViolation("an acknowledgement has packet identifier 0")
        reason = 0
        properties: Properties = {}
        if version is Version.V5 and pos < end:
            reason = data[pos]
            pos += 1
            if pos < end:
                properties, pos = decode_properties(data, pos, end, Context.PUBACK)
        if pos != end:
            raise MalformedPacket("an acknowledgement has bytes after its last field")
        return cls(packet_id=packet_id, reason=reason, properties=properties)

    def encode(self, packet_type: PacketType, version: Version) -> bytes:
        """Return the whole packet; success is four bytes in every version."""
        first = packet_type << 4 | (0x02 if packet_type is PacketType.PUBREL else 0)
        body = wire.encode_uint16(self.packet_id)
        if version is Version.V5 and (self.reason or self.properties):
            body += bytes((self.reason,))
            if self.properties:
                body += encode_properties(self.properties)
        return frame(first, body)


@dataclass(slots=True, frozen=True)
class SubscriptionRequest:
    """One topic filter of a SUBSCRIBE with its options byte [5: section 3.8.3.1]."""

    topic_filter: bytes
    options: int

    @property
    def qos(self) -> int:
        """The maximum QoS asked for."""
        return self.options & 3


@dataclass(slots=True, kw_only=True)
class Subscribe:
    """SUBSCRIBE [5: section 3.8]."""

    packet_id: int
    requests: Sequence[SubscriptionRequest]
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, pos: int, end: int, version: Version) -> "Subscribe":
        """Return the packet; whether each filter is valid is left to the caller, who answers one by one."""
        packet_id, properties, pos = _decode_request(data, pos, end, version, Context.SUBSCRIBE)
        allowed = 0x3F if version is Version.V5 else 0x03
        requests = []
        while pos < end:
            topic_filter, pos = wire.decode_binary(data, pos, end)
            if pos >= end:
                raise MalformedPacket("SUBSCRIBE is cut off before the options of a topic filter")
            options = data[pos]
            pos += 1
            if options & ~allowed or options & 3 == 3:
                raise MalformedPacket(f"subscription options 0x{options:02X} have reserved bits or QoS 3")
            if options & 0x30 == 0x30:
                raise ProtocolViolation("retain handling is 3")
            requests.append(SubscriptionRequest(topic_filter, options))
        if not requests:
            raise ProtocolViolation("SUBSCRIBE has no topic filter")
        return cls(packet_id=packet_id, requests=requests, properties=properties)

    def encode(self, version: Version) -> bytes:
        """Return the whole packet."""
        body = wire.encode_uint16(self.packet_id)
        if version is Version.V5:
            body += encode_properties(self.properties)
        for request in self.requests:
            body += wire.encode_binary(request.topic_filter) + bytes((request.options,))
        return frame(0x82, body)


@dataclass(slots=True, kw_only=True)
class Unsubscribe:
    """UNSUBSCRIBE [5: section 3.10]."""

    packet_id: int
    topic_filters: Sequence[bytes]
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, pos: int, end: int, version: Version) -> "Unsubscribe":
        """Return the packet."""
        packet_id, properties, pos = _decode_request(data, pos, end, version, Context.UNSUBSCRIBE)
        topic_filters = []
        while pos < end:
            topic_filter, pos = wire.decode_binary(data, pos, end)
            topic_filters.append(topic_filter)
        if not topic_filters:
            raise ProtocolViolation("UNSUBSCRIBE has no topic filter")
        return cls(packet_id=packet_id, topic_filters=topic_filters, properties=properties)

    def encode(self, version: Version) -> bytes:
        """Return the whole packet."""
        body = wire.encode_uint16(self.packet_id)
        if version is Version.V5:
            body += encode_properties(self.properties)
        return frame(0xA2, body + b"".join(map(wire.encode_binary, self.topic_filters)))


def _decode_request(data: bytes, pos: int, end: int, version: Version, context: Context) -> tuple[int, Properties, int]:
    packet_id, pos = wire.decode_uint16(data, pos, end)
    if not packet_id:
        raise ProtocolViolation(f"{context.value} has packet identifier 0")
    properties: Properties = {}
    if version is Version.V5:
        properties, pos = decode_properties(data, pos, end, context)
    return packet_id, properties, pos


@dataclass(slots=True, kw_only=True)
class SubAck:
    """SUBACK: one reason code per topic filter, in their order [5: section 3.9]."""

    packet_id: int
    reasons: Sequence[int]
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, pos: int, end: int, version: Version) -> "SubAck":
        """Return the packet."""
        packet_id, properties, pos = _decode_request(data, pos, end, version, Context.SUBACK)
        return cls(packet_id=packet_id, reasons=tuple(data[pos:end]), properties=properties)

    def encode(self, version: Version) -> bytes:
        """Return the whole packet; every refusal is 0x80 in 3.x."""
        body = wire.encode_uint16(self.packet_id)
        if version is Version.V5:
            return frame(0x90, body + encode_properties(self.properties) + bytes(self.reasons))
        return frame(0x90, body + bytes(min(reason, 0x80) for reason in self.reasons))


@dataclass(slots=True, kw_only=True)
class UnsubAck:
    """UNSUBACK; 3.x has no reason codes [5: section 3.11]."""

    packet_id: int
    reasons: Sequence[int] = ()
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, pos: int, end: int, version: Version) -> "UnsubAck":
        """Return the packet."""
        packet_id, properties, pos = _decode_request(data, pos, end, version, Context.UNSUBACK)
        return cls(packet_id=packet_id, reasons=tuple(data[pos:end]), properties=properties)

    def encode(self, version: Version) -> bytes:
        """Return the whole packet."""
        body = wire.encode_uint16(self.packet_id)
        if version is Version.V5:
            body += encode_properties(self.properties) + bytes(self.reasons)
        return frame(0xB0, body)


def _decode_reason(
    data: bytes, pos: int, end: int, version: Version, context: Context
) -> tuple[ReasonCode, Properties]:
    reason, properties = ReasonCode.SUCCESS, Properties()
    if pos < end and version is not Version.V5:
        raise MalformedPacket(f"{context.value} has a body")
    if pos < end:
        try:
            reason = ReasonCode(data[pos])
        except ValueError as error:
            raise MalformedPacket(f"{context.value} has the unknown reason code 0x{data[pos]:02X}") from error
        pos += 1
        if pos < end:
            properties, pos = decode_properties(data, pos, end, context)
        if pos != end:
            raise MalformedPacket(f"{context.value} has bytes after its last field")
    return reason, properties


@dataclass(slots=True, kw_only=True)
class Disconnect:
    """DISCONNECT [5: section 3.14]."""

    reason: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, pos: int, end: int, version: Version) -> "Disconnect":
        """Return the packet; an empty body is a normal disconnection."""
        reason, properties = _decode_reason(data, pos, end, version, Context.DISCONNECT)
        return cls(reason=reason, properties=properties)

    def encode(self, version: Version) -> bytes:
        """Return the whole packet."""
        if version is not Version.V5 or not (self.reason or self.properties):
            return b"\xe0\x00"
        return frame(0xE0, bytes((self.reason,)) + encode_properties(self.properties))


@dataclass(slots=True, kw_only=True)
class Auth:
    """AUTH, a step of an enhanced authentication [5: section 3.15]."""

    reason: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, pos: int, end: int, version: Version) -> "Auth":
        """Return the packet; raises ProtocolViolation outside MQTT 5."""
        if version is not Version.V5:
            raise ProtocolViolation("AUTH is a packet of MQTT 5")
        reason, properties = _decode_reason(data, pos, end, version, Context.AUTH)
        return cls(reason=reason, properties=properties)

    def encode(self) -> bytes:
        """Return the whole packet."""
        if not (self.reason or self.properties):
            return b"\xf0\x00"
        return frame(0xF0, bytes((self.reason,)) + encode_properties(self.properties))
