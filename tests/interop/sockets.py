"""A small blocking MQTT client over a real socket, TCP, TLS, unix or WebSocket, for tests that need every byte."""

import base64
import os
import socket
import ssl
import struct
from typing import Any

from broker.mqtt.framing import PacketStream, ServerPacket, decode_server_packet
from broker.mqtt.packets import ConnAck, Connect, Version

__all__ = ["TIMEOUT", "RawClient"]

#: Seconds that nothing on loopback should take: a bound for tests that fail, not a measurement.
TIMEOUT = 20.0


class RawClient:
    """Sends and receives packets; with *ws* in binary frames."""

    def __init__(
        self,
        address: Any,
        version: Version = Version.V311,
        *,
        ws: bool = False,
        tls: ssl.SSLContext | None = None,
        path: str = "/mqtt",
        headers: str = "Sec-WebSocket-Protocol: mqtt\r\n",
    ) -> None:
        self.version = version
        self.ws = ws
        self.stream = PacketStream()
        self.waiting: list[ServerPacket] = []
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock: socket.socket = socket.socket(family)
        self.sock.settimeout(TIMEOUT)
        try:
            self.sock.connect(address)
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        except OSError:
            self.sock.close()
            raise
        self.response = b""
        self.close_code: int | None = None
        self._buffer = b""
        if ws:
            self._handshake(path, headers)

    def _handshake(self, path: str, headers: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        )
        self.sock.sendall(request.encode())
        while b"\r\n\r\n" not in self.response:
            data = self.sock.recv(65_536)
            if not data:
                return
            self.response += data
        self.response, _, self._buffer = self.response.partition(b"\r\n\r\n")

    def frame(self, data: bytes, opcode: int = 2, *, fin: bool = True, masked: bool = True) -> None:
        """Send one WebSocket frame."""
        mask = os.urandom(4) if masked else b""
        bit = 0x80 if masked else 0
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", fin << 7 | opcode, bit | size)
        elif size < 65_536:
            head = struct.pack("!BBH", fin << 7 | opcode, bit | 126, size)
        else:
            head = struct.pack("!BBQ", fin << 7 | opcode, bit | 127, size)
        if masked:
            data = bytes(byte ^ mask[i & 3] for i, byte in enumerate(data))
        self.sock.sendall(head + mask + data)

    def send(self, *data: bytes) -> None:
        """Send bytes, over WebSocket as one frame."""
        if self.ws:
            self.frame(b"".join(data))
        else:
            self.sock.sendall(b"".join(data))

    def connect(self, client_id: str, **fields: Any) -> ConnAck:
        """Send CONNECT and return the CONNACK."""
        self.send(Connect(version=self.version, client_id=client_id, **fields).encode())
        packet = self.receive()
        assert isinstance(packet, ConnAck), packet
        return packet

    def receive(self) -> ServerPacket | None:
        """Return the next packet, or None when the broker has closed."""
        while not self.waiting:
            data = self._read_frame() if self.ws else self._read()
            if data is None:
                return None
            self.waiting = [decode_server_packet(first, body, self.version) for first, body in self.stream.feed(data)]
        return self.waiting.pop(0)

    def _read(self) -> bytes | None:
        try:
            return self.sock.recv(65_536) or None
        except ConnectionResetError:
            return None

    def _more(self, size: int) -> bool:
        while len(self._buffer) < size:
            data = self._read()
            if data is None:
                return False
            self._buffer += data
        return True

    def read_frame(self) -> tuple[int, bytes] | None:
        """Return opcode and contents of the next WebSocket frame, or None at the end."""
        if not self._more(2):
            return None
        size, start = self._buffer[1] & 0x7F, 2
        if size == 126:
            if not self._more(4):
                return None
            size, start = int.from_bytes(self._buffer[2:4], "big"), 4
        elif size == 127:
            if not self._more(10):
                return None
            size, start = int.from_bytes(self._buffer[2:10], "big"), 10
        if not self._more(start + size):
            return None
        opcode, data = self._buffer[0] & 15, self._buffer[start : start + size]
        self._buffer = self._buffer[start + size :]
        return opcode, data

    def _read_frame(self) -> bytes | None:
        while True:
            frame = self.read_frame()
            if frame is None:
                return None
            opcode, data = frame
            if opcode == 8:
                self.close_code = int.from_bytes(data[:2], "big") if data else None
                return None
            if opcode == 2:
                return data

    def close(self) -> None:
        """Close the socket without a word."""
        self.sock.close()

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
