"""Data representations shared by all packets: integers, strings, binary data [5: section 1.5].

Decoders take the packet and a position and return the value and the position after it; they never read past *end*.
"""

from broker.mqtt.errors import MalformedPacket

__all__ = [
    "MAX_VARINT",
    "decode_binary",
    "decode_string",
    "decode_uint16",
    "decode_uint32",
    "decode_varint",
    "encode_binary",
    "encode_string",
    "encode_uint16",
    "encode_varint",
    "is_valid_utf8",
    "varint_size",
]

#: The largest value of a Variable Byte Integer: four bytes of seven bits.
MAX_VARINT = 268_435_455


def decode_varint(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Return the Variable Byte Integer at *pos* and the position after it [5:MQTT-1.5.5-1].

    Raises MalformedPacket where it is cut off by *end*, longer than four bytes, or not in its shortest form.
    """
    value = shift = 0
    start = pos
    while True:
        if pos >= end:
            raise MalformedPacket("a variable byte integer is cut off")
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 21:
            raise MalformedPacket("a variable byte integer has more than four bytes")
    if byte == 0 and pos - start > 1:
        raise MalformedPacket("a variable byte integer is not in its shortest form")
    return value, pos


def decode_uint16(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Return the Two Byte Integer at *pos* and the position after it."""
    if pos + 2 > end:
        raise MalformedPacket("a two byte integer is cut off")
    return data[pos] << 8 | data[pos + 1], pos + 2


def decode_uint32(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Return the Four Byte Integer at *pos* and the position after it."""
    if pos + 4 > end:
        raise MalformedPacket("a four byte integer is cut off")
    return int.from_bytes(data[pos : pos + 4], "big"), pos + 4


def decode_binary(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    """Return the length-prefixed bytes at *pos* and the position after them."""
    length, pos = decode_uint16(data, pos, end)
    if pos + length > end:
        raise MalformedPacket("a string or binary field is longer than its packet")
    return data[pos : pos + length], pos + length


def decode_string(data: bytes, pos: int, end: int) -> tuple[str, int]:
    """Return the UTF-8 string at *pos* and the position after it [5:MQTT-1.5.4-1, 5:MQTT-1.5.4-2]."""
    raw, pos = decode_binary(data, pos, end)
    if b"\x00" in raw:
        raise MalformedPacket("a string contains the character U+0000")
    try:
        return raw.decode(), pos
    except UnicodeDecodeError as error:
        raise MalformedPacket(f"a string is not valid UTF-8: {error.reason}") from error


def is_valid_utf8(raw: bytes) -> bool:
    """Tell whether *raw* may stand where the specification wants a UTF-8 string."""
    if b"\x00" in raw:
        return False
    if raw.isascii():
        return True
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def encode_varint(value: int) -> bytes:
    """Return *value* as a Variable Byte Integer in its shortest form."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        if not value:
            out.append(low)
            return bytes(out)
        out.append(low | 0x80)


def varint_size(value: int) -> int:
    """Return how many bytes *value* takes as a Variable Byte Integer."""
    return 1 if value < 0x80 else 2 if value < 0x4000 else 3 if value < 0x200000 else 4


def encode_uint16(value: int) -> bytes:
    """Return *value* as a Two Byte Integer."""
    return value.to_bytes(2, "big")


def encode_binary(raw: bytes) -> bytes:
    """Return *raw* with its two byte length in front; raises ValueError above 65,535 bytes."""
    if len(raw) > 65_535:
        raise ValueError(f"{len(raw)} bytes do not fit a field of at most 65535 bytes")
    return len(raw).to_bytes(2, "big") + raw


def encode_string(text: str) -> bytes:
    """Return *text* as a length-prefixed UTF-8 string; raises ValueError above 65,535 bytes."""
    return encode_binary(text.encode())
