"""Cutting a byte stream into packets, the plain way: for clients, links and tests [5: section 2.1]."""

from broker.mqtt.errors import MalformedPacket
from broker.mqtt.packets import (
    Ack,
    Auth,
    ConnAck,
    Disconnect,
    PacketType,
    Publish,
    SubAck,
    UnsubAck,
    Version,
)

__all__ = ["PacketStream", "ServerPacket", "decode_server_packet"]

#: What a server sends; PINGRESP is its packet type alone.
ServerPacket = ConnAck | Publish | Ack | SubAck | UnsubAck | Disconnect | Auth | PacketType


class PacketStream:
    """Takes bytes as they come and gives whole packets."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the packets that *data* completes: first byte, and the bytes behind the fixed header."""
        data = self._rest + data
        packets = []
        pos = 0
        while True:
            length = shift = 0
            body = pos + 1
            while body < len(data):
                byte = data[body]
                body += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
                if shift > 21:
                    raise MalformedPacket("the remaining length has more than four bytes")
            else:
                break
            if body + length > len(data):
                break
            packets.append((data[pos], data[body : body + length]))
            pos = body + length
        self._rest = data[pos:]
        return packets


def decode_server_packet(first: int, body: bytes, version: Version) -> ServerPacket:
    """Return the packet that a server sent; raises MqttError where it is none."""
    kind = PacketType(first >> 4)
    end = len(body)
    match kind:
        case PacketType.PUBLISH:
            return Publish.decode(first, body, 0, end, version)
        case PacketType.CONNACK:
            return ConnAck.decode(body, 0, end, version)
        case PacketType.PUBACK | PacketType.PUBREC | PacketType.PUBREL | PacketType.PUBCOMP:
            return Ack.decode(body, 0, end, version)
        case PacketType.SUBACK:
            return SubAck.decode(body, 0, end, version)
        case PacketType.UNSUBACK:
            return UnsubAck.decode(body, 0, end, version)
        case PacketType.DISCONNECT:
            return Disconnect.decode(body, 0, end, version)
        case PacketType.AUTH:
            return Auth.decode(body, 0, end, version)
        case PacketType.PINGRESP:
            return kind
        case _:
            raise MalformedPacket(f"a server does not send {kind.name}")
