"""A listening address: accepts sockets, one at a time or as fast as they come, and gives each its protocol."""

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from pathlib import Path

from broker.transports.driver import Driver
from broker.transports.settings import ListenerSettings
from broker.transports.stream import StreamProtocol
from broker.transports.tls import make_context
from broker.transports.websocket import WebSocketProtocol

__all__ = ["Listener"]

_log = logging.getLogger("broker")

#: Sockets accepted before others get their turn.
_ACCEPTS_AT_ONCE = 64
#: Seconds until accept is tried again when the process has no file descriptors left.
_OUT_OF_FILES_PAUSE = 1.0


class Listener:
    """Owns the listening sockets of one section of the configuration and the connections that came through them."""

    def __init__(
        self, driver: Driver, settings: ListenerSettings, by_address: Counter[str], max_per_address: int
    ) -> None:
        """*by_address* counts connections of all listeners; *max_per_address* bounds it, 0 for no bound."""
        self.settings = settings
        self._driver = driver
        self._by_address = by_address
        self._max_per_address = max_per_address
        self._sockets: list[socket.socket] = []
        self._protocols: dict[StreamProtocol, None] = {}
        self._pending: dict[StreamProtocol, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None
        self._flooded = False
        self._closed = False

    async def open(self) -> None:
        """Listen; raises OSError where an address cannot be bound or a certificate not be read."""
        if self.settings.tls is not None:
            self._tls = make_context(self.settings.tls)
        if self.settings.path is not None:
            self._sockets.append(_unix_socket(self.settings.path))
        else:
            await self._open_tcp()
        for sock in self._sockets:
            self._driver.loop.add_reader(sock, self._accept, sock)

    async def _open_tcp(self) -> None:
        found = await self._driver.loop.getaddrinfo(
            self.settings.host, self.settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        port = self.settings.port
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # A host name may stand for several addresses: with port 0 they share the one the first got.
                sock.bind((address[0], port, *address[2:]))
                sock.listen(1024)
            except OSError:
                sock.close()
                self._close_sockets()
                raise
            port = sock.getsockname()[1]
            self._sockets.append(sock)

    @property
    def port(self) -> int:
        """The port in use, which the system chose where the configuration said 0; 0 for a unix socket."""
        if self.settings.path is not None or not self._sockets:
            return 0
        return int(self._sockets[0].getsockname()[1])

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(1 if self.settings.next_connection_delay else _ACCEPTS_AT_ONCE):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._cannot_accept(listening, error)
                return
            sock.setblocking(False)
            self._serve(sock, address)
            if self.settings.next_connection_delay:
                self._pause(listening, self.settings.next_connection_delay)

    def _cannot_accept(self, listening: socket.socket, error: OSError) -> None:
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            raise error
        _log.error("%s: cannot accept a connection: %s; raise the limit of open files", self.settings.name, error)
        self._pause(listening, _OUT_OF_FILES_PAUSE)

    def _pause(self, listening: socket.socket, seconds: float) -> None:
        self._driver.loop.remove_reader(listening)
        self._driver.loop.call_later(seconds, self._go_on, listening)

    def _go_on(self, listening: socket.socket) -> None:
        if not self._closed:
            self._driver.loop.add_reader(listening, self._accept, listening)

    def _serve(self, sock: socket.socket, address: tuple[str, int] | str) -> None:
        if isinstance(address, tuple):
            host = address[0]
            peer = f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            host = peer = "unix"
        if self._max_per_address and self._by_address[host] >= self._max_per_address:
            _log.warning(
                "%s: refused %s: it has %d connections (router.max_connections_per_address)",
                self.settings.name,
                peer,
                self._max_per_address,
            )
            sock.close()
            return
        make = StreamProtocol if self.settings.websocket is None else WebSocketProtocol
        protocol = make(self._driver, self.settings, self._driver.loop.time(), host, peer, self._gone)
        self._by_address[host] += 1
        self._protocols[protocol] = None
        self._make_room()
        self._pending[protocol] = None
        task = self._driver.loop.create_task(self._connect(sock, protocol))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket, protocol: StreamProtocol) -> None:
        timeout = self.settings.limits.connection_timeout
        try:
            await self._driver.loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=self._tls,
                ssl_handshake_timeout=timeout if self._tls is not None else None,
            )
        except (OSError, ssl.SSLError) as error:
            hint = ": is it a client without TLS?" if isinstance(error, ssl.SSLError) else ""
            _log.info("%s: no TLS handshake with %s: %s%s", self.settings.name, protocol.peer, error, hint)
            sock.close()
            self._gone(protocol)

    def _make_room(self) -> None:
        """Close the oldest connection that is not through CONNECT where there are too many."""
        pending = self._pending
        if len(pending) < self.settings.max_pending:
            self._flooded = False
            return
        for protocol in [p for p in pending if p.connection is not None and p.connection.session is not None]:
            del pending[protocol]
        if len(pending) < self.settings.max_pending:
            return
        if not self._flooded:
            self._flooded = True
            _log.warning(
                "%s: %d connections have not sent CONNECT (max_pending_connections); closing the oldest of them",
                self.settings.name,
                len(pending),
            )
        oldest = next(iter(pending))
        del pending[oldest]
        oldest.abort()

    def _gone(self, protocol: StreamProtocol) -> None:
        if self._protocols.pop(protocol, self) is self:
            return
        self._pending.pop(protocol, None)
        self._by_address[protocol.address] -= 1
        if not self._by_address[protocol.address]:
            del self._by_address[protocol.address]

    def reload_tls(self) -> None:
        """Read the certificate files again, for connections from now on; raises OSError and keeps the old ones."""
        if self.settings.tls is not None:
            self._tls = make_context(self.settings.tls)

    def connections(self) -> list[StreamProtocol]:
        """Return every connection that came through this listener."""
        return list(self._protocols)

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections stay."""
        self._closed = True
        self._close_sockets()
        if self.settings.path is not None:
            Path(self.settings.path).unlink(missing_ok=True)

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._driver.loop.remove_reader(sock)
                sock.close()

    async def close(self) -> None:
        """Abort what is left and wait until it is gone."""
        for protocol in self.connections():
            protocol.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _unix_socket(path: str) -> socket.socket:
    """Listen on *path*; a socket that a dead process left there is replaced, anything else is not touched."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        if Path(path).is_socket():
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
            finally:
                probe.close()
        sock.bind(path)
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock
