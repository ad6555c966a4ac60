"""A byte stream connection: TCP, TLS or a unix socket around one connection of the core."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from broker.core.connection import Connection
from broker.mqtt.reason_codes import ReasonCode
from broker.transports.driver import Driver
from broker.transports.settings import Identity, ListenerSettings

__all__ = ["StreamProtocol"]

_log = logging.getLogger("broker")

#: A read of at least this many bytes makes the loop look at other sockets before this one is read again: uvloop would
#: go on for up to 32 reads. A ping beside a flood waited 377 ms without it, 12 ms with it.
_LARGE_READ: Final = 64 * 1024
#: Seconds that a closed connection's peer has for reading what was sent last.
_LINGER: Final = 2.0

_HTTP_METHODS: Final = (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"CONN")


class StreamProtocol(asyncio.Protocol):
    """The socket side of a connection; it is the `Wire` that the core writes to."""

    #: Whether nothing more can come from a client that has said good-bye.
    CLOSES_AT_ONCE = True

    def __init__(
        self,
        driver: Driver,
        settings: ListenerSettings,
        accepted_at: float,
        address: str,
        peer: str,
        done: Callable[["StreamProtocol"], None],
    ) -> None:
        """*done* is called once, when the socket is gone."""
        self.driver = driver
        self.settings = settings
        self.accepted_at = accepted_at
        self.address = address
        self.peer = peer
        self.tls_identity: str | None = None
        self.transport: asyncio.Transport | None = None
        self.connection: Connection | None = None
        self._done = done
        self._written = 0
        self._pauses = 0
        self._started = False
        self._closing = False
        self._linger: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the core's connection; its time for CONNECT has run since the socket was accepted."""
        self.transport = cast("asyncio.Transport", transport)
        if self._closing:
            # Given up while its handshake was going on.
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(high=self.settings.limits.max_outbox_bytes)
        self.tls_identity = _identity(self.settings, self.transport)
        with self.driver.turn() as router:
            late = router.now - self.accepted_at
            router.now = self.accepted_at
            self.connection = Connection(router, self, self.settings.limits, self.settings.name)
            router.now += late

    def data_received(self, data: bytes) -> None:
        """Hand *data* to the core."""
        if self._closing:
            return
        driver = self.driver
        driver.tell_time()
        try:
            if self._started or self._right_protocol(data):
                self._received(data)
        except Exception:
            self._broken()
        if len(data) >= _LARGE_READ:
            self.pause()
            driver.loop.call_soon(self.resume)
        if self.settings.throttle_delay:
            self.pause()
            driver.loop.call_later(self.settings.throttle_delay, self.resume)
        driver.finish()

    def _received(self, data: bytes) -> None:
        assert self.connection is not None, "data follows connection_made"
        self.connection.receive(data)

    def _broken(self) -> None:
        """End the connection for a fault of our own; nobody else notices."""
        assert self.connection is not None, "data follows connection_made"
        _log.exception("an error in the broker itself ends the connection of %s; please report it", self.peer)
        self.connection.fail(ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR, "an error in the broker itself")

    def eof_received(self) -> bool:
        """Close too: a client that sends nothing more has nothing to say to its keep-alive either."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the core that the socket is gone."""
        if self._linger is not None:
            self._linger.cancel()
        self._done(self)
        self._closing = True
        if self.connection is not None and not self.connection.is_closed():
            message = "the client closed the socket without DISCONNECT" if error is None else f"socket error: {error}"
            self.driver.run(lambda: cast("Connection", self.connection).lost(message))

    def pause_writing(self) -> None:
        """Note that the peer does not read."""
        if self.connection is not None:
            self.connection.blocked()

    def resume_writing(self) -> None:
        """Note that the peer has read."""
        if self.connection is not None:
            self.driver.run(self.connection.unblocked)

    # --- Wire ---------------------------------------------------------------------------------------------------------

    def send(self, parts: Sequence[bytes | bytearray]) -> None:
        """Write *parts* to the socket at once."""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._write(data)

    def _write(self, data: bytes | bytearray) -> None:
        assert self.transport is not None, "nothing is sent before connection_made"
        self._written += len(data)
        self.driver.router.stats.sent_bytes += len(data)
        self.transport.write(data)

    def taken(self) -> int:
        """Return the bytes that have left for the peer."""
        return self._written - self.unsent()

    def unsent(self) -> int:
        """Return the bytes that wait in the transport."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def pause(self) -> None:
        """Stop reading until `resume`."""
        self._pauses += 1
        if self._pauses == 1 and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Take back one `pause`."""
        self._pauses -= 1
        if not self._pauses and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def close(self, reason: int) -> None:
        """Close when the peer has read everything, or a moment later; what it still sends is thrown away.

        Closing at once would make the system reset the connection where input is unread, and the peer would never see
        the DISCONNECT that says why.
        """
        transport = self.transport
        if self._closing or transport is None:
            return
        self._closing = True
        self._linger = self.driver.loop.call_later(_LINGER, self._give_up)
        if self._pauses and not transport.is_closing():
            self._pauses = 0
            transport.resume_reading()
        if transport.is_closing():
            return
        if reason == ReasonCode.SUCCESS and self.CLOSES_AT_ONCE:
            transport.close()
        elif transport.can_write_eof():
            try:
                transport.write_eof()
            except OSError:
                # The peer was faster: its reset is known to the system and not yet to the loop.
                transport.abort()

    def _give_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self.transport is not None:
            self.transport.abort()

    # --- what came first ----------------------------------------------------------------------------------------------

    def _right_protocol(self, data: bytes) -> bool:
        """Tell whether the first bytes can be MQTT; answer and close where they are something else."""
        self._started = True
        connection = self.connection
        assert connection is not None, "data follows connection_made"
        if data[:2] == b"\x16\x03" and self.settings.tls is None:
            connection.refuse(ReasonCode.UNSPECIFIED_ERROR, self._tls_hint())
            return False
        if data[:4] in _HTTP_METHODS:
            text = "This port speaks MQTT over TCP, not HTTP. Browsers need a WebSocket listener (ws:// or wss://).\n"
            page = (
                f"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
                f"Connection: close\r\n\r\n{text}"
            )
            self.send([page.encode()])
            connection.refuse(
                ReasonCode.UNSPECIFIED_ERROR,
                "HTTP came on an MQTT port: give browsers the port of a ws listener",
            )
            return False
        return True

    def _tls_hint(self) -> str:
        name = self.settings.name
        return f"a TLS client came to the plain listener {name}: use mqtt:// or ws://, or give it a tls section"


def _identity(settings: ListenerSettings, transport: asyncio.Transport) -> str | None:
    """Return who the client is according to its certificate, where the listener wants to know."""
    if settings.tls is None or settings.tls.identity is None:
        return None
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    certificate: dict[str, Any] | None = tls.getpeercert() if tls is not None else None
    if not certificate:
        return None
    if settings.tls.identity is Identity.SAN:
        names = certificate.get("subjectAltName", ())
        return str(names[0][1]) if names else None
    for row in certificate.get("subject", ()):
        for key, value in row:
            if key == "commonName":
                return str(value)
    return None
