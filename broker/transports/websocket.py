"""MQTT over WebSocket [5: section 6]: the opening handshake and control frames by `websockets`, data frames by hand.

MQTT packets may be split over frames and merged in them, so a connection is a stream of bytes here too, and a data
frame can be handed on as it comes.
"""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from websockets.exceptions import InvalidHandshake
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SEND_EOF
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from broker.mqtt.reason_codes import ReasonCode
from broker.transports.stream import StreamProtocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the compiled helper
    from websockets.utils import apply_mask

__all__ = ["WebSocketProtocol"]

#: The largest frame sent.
_MAX_FRAME: Final = 64 * 1024
_SUBPROTOCOLS: Final = ("mqtt", "mqttv3.1")

#: `websockets` reports what we report better ourselves.
_quiet = logging.getLogger("broker.websockets")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False

#: Close codes for the reasons of MQTT 5 [RFC 6455: section 7.4.1].
_CLOSE_CODES: Final = {
    ReasonCode.SUCCESS: 1000,
    ReasonCode.SERVER_SHUTTING_DOWN: 1001,
    ReasonCode.MALFORMED_PACKET: 1002,
    ReasonCode.PROTOCOL_ERROR: 1002,
    ReasonCode.PACKET_TOO_LARGE: 1009,
    ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR: 1011,
}
_POLICY: Final = 1008


def _select_subprotocol(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Echo what the client offers where it is MQTT; a client that offers nothing is accepted [5:MQTT-6.0.0-3]."""
    for name in offered:
        if name in _SUBPROTOCOLS:
            return name
    return None


class WebSocketProtocol(StreamProtocol):
    """A WebSocket connection; the core sees the bytes in its binary frames."""

    #: Behind its DISCONNECT a client still sends a close frame, and takes a closed socket for an error.
    CLOSES_AT_ONCE = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.settings.websocket is not None, "a WebSocket listener has WebSocket settings"
        self._compressed = self.settings.websocket.compression
        self._ws = ServerProtocol(
            extensions=[ServerPerMessageDeflateFactory()] if self._compressed else None,
            select_subprotocol=_select_subprotocol,
            # Bounds control frames and, with compression, messages; what data frames carry is bounded by packet.
            max_size=self.settings.limits.max_remaining_length + _MAX_FRAME,
            logger=_quiet,
        )
        self._open = False
        #: Input that is not a whole frame header, or not a whole control frame.
        self._pending = b""
        #: The data frame that is coming in: bytes left, its mask.
        self._left = 0
        self._mask = b""
        #: Whether a fragmented message is open.
        self._fragmented = False

    # --- input --------------------------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        if not self._open:
            self._handshake(data)
        elif self._compressed:
            self._control(data)
        else:
            self._frames(data)

    def _frames(self, data: bytes) -> None:
        """Hand the contents of data frames to the core and everything else to `websockets`."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        assert self.connection is not None, "data follows connection_made"
        contents: list[bytes] = []
        pos, n = 0, len(data)
        if self._left:
            pos = self._rest_of_frame(data, contents)
        while n - pos >= 6 or (n - pos >= 2 and not data[pos + 1] & 0x80):
            first, second = data[pos], data[pos + 1]
            length = second & 0x7F
            start = pos + 6
            if length == 126:
                start = pos + 8
                if n < start:
                    break
                length = data[pos + 2] << 8 | data[pos + 3]
            elif length == 127:
                start = pos + 14
                if n < start:
                    break
                length = int.from_bytes(data[pos + 2 : pos + 10], "big")
            opcode = first & 0x0F
            if first & 0x70 or not second & 0x80 or opcode not in (0, 2) or (opcode == 2) is self._fragmented:
                pos = self._other_frame(data, pos, start, length, contents)
                if pos < 0 or self._closing:
                    return
                if self._pending:
                    break
                continue
            self._fragmented = not first & 0x80
            mask = data[start - 4 : start]
            end = start + length
            if end <= n:
                contents.append(apply_mask(data[start:end], mask))
                pos = end
                continue
            self._left, self._mask = length, mask
            self._rest_of_frame(data[start:], contents)
            pos = n
        if not self._pending and pos < n:
            self._pending = data[pos:]
        if contents:
            self.connection.receive(contents[0] if len(contents) == 1 else b"".join(contents))

    def _rest_of_frame(self, data: bytes, contents: list[bytes]) -> int:
        """Unmask what *data* has of the data frame that is coming in; return the position after it."""
        piece = data[: self._left] if len(data) > self._left else data
        if not piece:
            return 0
        contents.append(apply_mask(piece, self._mask))
        self._left -= len(piece)
        turn = len(piece) & 3
        self._mask = self._mask[turn:] + self._mask[:turn]
        return len(piece)

    def _other_frame(self, data: bytes, pos: int, start: int, length: int, contents: list[bytes]) -> int:
        """Hand a frame that is no plain data frame to `websockets`; return the position after it, or -1 at the end."""
        opcode = data[pos] & 0x0F
        if opcode == Opcode.TEXT:
            self._flush_contents(contents)
            self._fail(1003, "text frames are not MQTT: send binary frames")
            return -1
        end = start + length if data[pos + 1] & 0x80 else start - 4 + length
        if length <= 125 and end > len(data):
            self._pending = data[pos:]
            return pos
        self._flush_contents(contents)
        self._control(data[pos:end])
        return min(end, len(data))

    def _flush_contents(self, contents: list[bytes]) -> None:
        if contents and self.connection is not None:
            self.connection.receive(b"".join(contents))
            contents.clear()

    def _control(self, data: bytes) -> None:
        """Let `websockets` handle *data* and do what it says."""
        protocol, connection = self._ws, self.connection
        assert connection is not None, "data follows connection_made"
        protocol.receive_data(data)
        for event in protocol.events_received():
            assert isinstance(event, Frame), "after the handshake only frames come"
            if event.opcode is Opcode.TEXT:
                self._fail(1003, "text frames are not MQTT: send binary frames")
                return
            if event.opcode in (Opcode.BINARY, Opcode.CONT):
                connection.receive(bytes(event.data))
        self._write_out()
        if protocol.close_rcvd is not None:
            connection.lost(f"the client closed the WebSocket with code {int(protocol.close_rcvd.code)}")
        elif protocol.parser_exc is not None:
            connection.lost(f"a frame that WebSocket does not allow: {protocol.parser_exc}")

    def _fail(self, code: int, why: str) -> None:
        """Close the WebSocket with *code*; the core hears that the client is lost."""
        self._ws.fail(code, why)
        self._write_out()
        if self.connection is not None:
            self.connection.lost(why)

    # --- the opening handshake ----------------------------------------------------------------------------------------

    def _right_protocol(self, data: bytes) -> bool:
        """Tell whether the first bytes can be HTTP; close where they are something else."""
        self._started = True
        assert self.connection is not None, "data follows connection_made"
        if data[:2] == b"\x16\x03" and self.settings.tls is None:
            self.connection.refuse(ReasonCode.UNSPECIFIED_ERROR, self._tls_hint())
            return False
        if data[:1] == b"\x10":
            self._ws_refuse(f"plain MQTT came to the WebSocket listener {self.settings.name}: use the port of v4 or v5")
            return False
        return True

    def _ws_refuse(self, message: str) -> None:
        assert self.connection is not None, "data follows connection_made"
        self.connection.refuse(ReasonCode.PROTOCOL_ERROR, message)

    def _handshake(self, data: bytes) -> None:
        protocol = self._ws
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Request):
                self._answer(event)
            elif self._open and isinstance(event, Frame) and self.connection is not None:
                self.connection.receive(bytes(event.data))
        self._write_out()
        if not self._open and protocol.handshake_exc is not None and self.connection is not None:
            self.connection.refuse(
                ReasonCode.UNSPECIFIED_ERROR, f"no WebSocket handshake: {_cause(protocol.handshake_exc)}"
            )

    def _answer(self, request: Request) -> None:
        protocol, settings = self._ws, self.settings.websocket
        assert settings is not None, "a WebSocket listener has WebSocket settings"
        path = request.path.partition("?")[0]
        origin = request.headers.get("Origin")
        if "Upgrade" not in request.headers:
            response = protocol.reject(
                HTTPStatus.OK,
                f"ternmq: this is an MQTT over WebSocket port ({self.settings.name}).\n"
                "Connect an MQTT client to it, for example MQTT.js with ws://HOST:PORT/mqtt.\n",
            )
        elif settings.paths and path not in settings.paths:
            response = protocol.reject(
                HTTPStatus.NOT_FOUND, f"{path} is not among the paths of {self.settings.name}: {settings.paths}\n"
            )
        elif settings.origins and origin is not None and origin not in settings.origins:
            response = protocol.reject(
                HTTPStatus.FORBIDDEN, f"the origin {origin} is not among the origins of {self.settings.name}\n"
            )
        else:
            response = protocol.accept(request)
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            self._open = True
            self._compressed = bool(protocol.extensions)
        elif protocol.handshake_exc is None:
            protocol.handshake_exc = InvalidHandshake(f"{request.path} answered {response.status_code}")
        protocol.send_response(response)

    def _write_out(self) -> None:
        for data in self._ws.data_to_send():
            if data != SEND_EOF:
                self._write(data)

    # --- Wire ---------------------------------------------------------------------------------------------------------

    def send(self, parts: Sequence[bytes | bytearray]) -> None:
        """Write *parts* in binary frames, cut between parts where it can be."""
        if not self._open:
            return
        if self._compressed:
            self._ws.send_binary(b"".join(parts))
            self._write_out()
            return
        size = sum(map(len, parts))
        if size > _MAX_FRAME:
            data = _framed(parts)
        elif size > 125:
            data = b"".join((b"\x82\x7e", size.to_bytes(2, "big"), *parts))
        else:
            data = b"".join((b"\x82", bytes((size,)), *parts))
        self._write(data)

    def close(self, reason: int) -> None:
        """Say good-bye in a close frame too."""
        if self._open and not self._closing and self._ws.close_sent is None:
            code = _CLOSE_CODES.get(ReasonCode(reason), _POLICY)
            self._ws.send_close(code, ReasonCode(reason).text)
            self._write_out()
        super().close(reason)


def _framed(parts: Sequence[bytes | bytearray]) -> bytes:
    """Return *parts* as frames of at most `_MAX_FRAME`; only a part that is larger itself is cut."""
    frames: list[bytes | bytearray] = []
    batch: list[bytes | bytearray] = []
    size = 0

    def finish() -> None:
        nonlocal size
        if not batch:
            return
        if size > 65_535:
            frames.append(b"\x82\x7f" + size.to_bytes(8, "big"))
        elif size > 125:
            frames.append(b"\x82\x7e" + size.to_bytes(2, "big"))
        else:
            frames.append(bytes((0x82, size)))
        frames.extend(batch)
        batch.clear()
        size = 0

    for part in parts:
        if size + len(part) > _MAX_FRAME:
            finish()
        if len(part) > _MAX_FRAME:
            for at in range(0, len(part), _MAX_FRAME):
                batch.append(part[at : at + _MAX_FRAME])
                size = len(batch[0])
                finish()
            continue
        batch.append(part)
        size += len(part)
    finish()
    return b"".join(frames)


def _cause(error: BaseException) -> str:
    """Return what is behind a failed handshake, in one line."""
    cause = error.__cause__ if error.__cause__ is not None else error
    return str(cause).splitlines()[0] if str(cause) else type(cause).__name__
