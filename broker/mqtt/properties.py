"""Properties of MQTT 5: one table says what each is called, how it is written and where it may stand [5: 2.2.2]."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from broker.mqtt import wire
from broker.mqtt.errors import MalformedPacket, ProtocolViolation

__all__ = [
    "PROPERTIES",
    "Context",
    "Properties",
    "decode_properties",
    "encode_properties",
    "encode_property_list",
]

#: Decoded properties: name → value; `user_property` is a list of pairs, `subscription_identifier` a list of numbers.
Properties = dict[str, Any]


class Context(Enum):
    """Where a property block stands."""

    CONNECT = "CONNECT"
    CONNACK = "CONNACK"
    PUBLISH = "PUBLISH"
    WILL = "will"
    PUBACK = "PUBACK, PUBREC, PUBREL or PUBCOMP"
    SUBSCRIBE = "SUBSCRIBE"
    SUBACK = "SUBACK"
    UNSUBSCRIBE = "UNSUBSCRIBE"
    UNSUBACK = "UNSUBACK"
    DISCONNECT = "DISCONNECT"
    AUTH = "AUTH"


class _Kind(Enum):
    BYTE = "byte"
    UINT16 = "two byte integer"
    UINT32 = "four byte integer"
    VARINT = "variable byte integer"
    STRING = "string"
    BINARY = "binary data"
    PAIR = "string pair"


class _Property(NamedTuple):
    identifier: int
    name: str
    kind: _Kind
    contexts: frozenset[Context]
    smallest: int = 0
    largest: int | None = None
    repeatable: frozenset[Context] = frozenset()


_C = Context
_MESSAGE = frozenset({_C.PUBLISH, _C.WILL})
_REASON = frozenset(
    {_C.CONNACK, _C.PUBACK, _C.SUBACK, _C.UNSUBACK, _C.DISCONNECT, _C.AUTH},
)


def _in(*contexts: Context) -> frozenset[Context]:
    return frozenset(contexts)


_TABLE = (
    _Property(0x01, "payload_format_indicator", _Kind.BYTE, _MESSAGE, largest=1),
    _Property(0x02, "message_expiry_interval", _Kind.UINT32, _MESSAGE),
    _Property(0x03, "content_type", _Kind.STRING, _MESSAGE),
    _Property(0x08, "response_topic", _Kind.STRING, _MESSAGE),
    _Property(0x09, "correlation_data", _Kind.BINARY, _MESSAGE),
    _Property(
        0x0B,
        "subscription_identifier",
        _Kind.VARINT,
        _in(_C.PUBLISH, _C.SUBSCRIBE),
        smallest=1,
        repeatable=_in(_C.PUBLISH),
    ),
    _Property(0x11, "session_expiry_interval", _Kind.UINT32, _in(_C.CONNECT, _C.CONNACK, _C.DISCONNECT)),
    _Property(0x12, "assigned_client_identifier", _Kind.STRING, _in(_C.CONNACK)),
    _Property(0x13, "server_keep_alive", _Kind.UINT16, _in(_C.CONNACK)),
    _Property(0x15, "authentication_method", _Kind.STRING, _in(_C.CONNECT, _C.CONNACK, _C.AUTH)),
    _Property(0x16, "authentication_data", _Kind.BINARY, _in(_C.CONNECT, _C.CONNACK, _C.AUTH)),
    _Property(0x17, "request_problem_information", _Kind.BYTE, _in(_C.CONNECT), largest=1),
    _Property(0x18, "will_delay_interval", _Kind.UINT32, _in(_C.WILL)),
    _Property(0x19, "request_response_information", _Kind.BYTE, _in(_C.CONNECT), largest=1),
    _Property(0x1A, "response_information", _Kind.STRING, _in(_C.CONNACK)),
    _Property(0x1C, "server_reference", _Kind.STRING, _in(_C.CONNACK, _C.DISCONNECT)),
    _Property(0x1F, "reason_string", _Kind.STRING, _REASON),
    _Property(0x21, "receive_maximum", _Kind.UINT16, _in(_C.CONNECT, _C.CONNACK), smallest=1),
    _Property(0x22, "topic_alias_maximum", _Kind.UINT16, _in(_C.CONNECT, _C.CONNACK)),
    _Property(0x23, "topic_alias", _Kind.UINT16, _in(_C.PUBLISH)),
    _Property(0x24, "maximum_qos", _Kind.BYTE, _in(_C.CONNACK), largest=1),
    _Property(0x25, "retain_available", _Kind.BYTE, _in(_C.CONNACK), largest=1),
    _Property(0x26, "user_property", _Kind.PAIR, frozenset(Context), repeatable=frozenset(Context)),
    _Property(0x27, "maximum_packet_size", _Kind.UINT32, _in(_C.CONNECT, _C.CONNACK), smallest=1),
    _Property(0x28, "wildcard_subscription_available", _Kind.BYTE, _in(_C.CONNACK), largest=1),
    _Property(0x29, "subscription_identifier_available", _Kind.BYTE, _in(_C.CONNACK), largest=1),
    _Property(0x2A, "shared_subscription_available", _Kind.BYTE, _in(_C.CONNACK), largest=1),
)

#: Every property by the name used in this package.
PROPERTIES: Mapping[str, _Property] = {row.name: row for row in _TABLE}
_BY_IDENTIFIER: Mapping[int, _Property] = {row.identifier: row for row in _TABLE}


def _decode_value(row: _Property, data: bytes, pos: int, end: int) -> tuple[Any, int]:
    match row.kind:
        case _Kind.BYTE:
            if pos >= end:
                raise MalformedPacket(f"property {row.name} is cut off")
            return data[pos], pos + 1
        case _Kind.UINT16:
            return wire.decode_uint16(data, pos, end)
        case _Kind.UINT32:
            return wire.decode_uint32(data, pos, end)
        case _Kind.VARINT:
            return wire.decode_varint(data, pos, end)
        case _Kind.STRING:
            return wire.decode_string(data, pos, end)
        case _Kind.BINARY:
            return wire.decode_binary(data, pos, end)
        case _Kind.PAIR:
            name, pos = wire.decode_string(data, pos, end)
            value, pos = wire.decode_string(data, pos, end)
            return (name, value), pos


def decode_properties(data: bytes, pos: int, end: int, context: Context) -> tuple[Properties, int]:
    """Return the property block at *pos* and the position after it.

    Raises MalformedPacket for bytes that do not parse or a property that does not belong in *context*, and
    ProtocolViolation for one that stands twice or has a value outside its range [5: section 2.2.2.2].
    """
    length, pos = wire.decode_varint(data, pos, end)
    stop = pos + length
    if stop > end:
        raise MalformedPacket("the properties are longer than their packet")
    properties: Properties = {}
    while pos < stop:
        identifier, pos = wire.decode_varint(data, pos, stop)
        row = _BY_IDENTIFIER.get(identifier)
        if row is None:
            raise MalformedPacket(f"there is no property 0x{identifier:02X}")
        if context not in row.contexts:
            raise MalformedPacket(f"property {row.name} does not belong in {context.value}")
        value, pos = _decode_value(row, data, pos, stop)
        if isinstance(value, int) and (value < row.smallest or (row.largest is not None and value > row.largest)):
            raise ProtocolViolation(f"property {row.name} must not be {value}")
        if row.repeatable:
            if context not in row.repeatable and row.name in properties:
                raise ProtocolViolation(f"property {row.name} stands twice")
            properties.setdefault(row.name, []).append(value)
        elif row.name in properties:
            raise ProtocolViolation(f"property {row.name} stands twice")
        else:
            properties[row.name] = value
    return properties, pos


def _encode_value(row: _Property, value: Any) -> bytes:
    head = bytes((row.identifier,))
    match row.kind:
        case _Kind.BYTE:
            return head + bytes((value,))
        case _Kind.UINT16:
            return head + int(value).to_bytes(2, "big")
        case _Kind.UINT32:
            return head + int(value).to_bytes(4, "big")
        case _Kind.VARINT:
            return head + wire.encode_varint(value)
        case _Kind.STRING:
            return head + wire.encode_string(value)
        case _Kind.BINARY:
            return head + wire.encode_binary(value)
        case _Kind.PAIR:
            return head + wire.encode_string(value[0]) + wire.encode_string(value[1])


def encode_property_list(properties: Properties) -> bytes:
    """Return *properties* as they stand in a packet, without the length in front."""
    parts: list[bytes] = []
    for name, value in properties.items():
        row = PROPERTIES[name]
        if row.repeatable:
            parts.extend(_encode_value(row, item) for item in value)
        else:
            parts.append(_encode_value(row, value))
    return b"".join(parts)


def encode_properties(properties: Properties) -> bytes:
    """Return *properties* as a block with its length in front; an empty one is a single zero byte."""
    if not properties:
        return b"\x00"
    body = encode_property_list(properties)
    return wire.encode_varint(len(body)) + body
