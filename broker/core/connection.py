"""One network connection: bytes in, packets to their handlers, bytes out; and how it ends.

The handlers live beside this module: `handshake` (CONNECT, AUTH), `publishing` (PUBLISH), `acknowledging` (PUBACK to
PUBCOMP), `subscribing` (SUBSCRIBE, UNSUBSCRIBE). Each takes the connection and a packet's place in the input. The two
for runs return the position after what they handled; one that cannot go on yet calls `suspend` and returns its own.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from broker.core import acknowledging, handshake, publishing, subscribing
from broker.core.hooks import Decision, Exchange, Pending
from broker.core.limits import ConnectionLimits
from broker.core.state import State
from broker.mqtt.errors import MalformedPacket, MqttError, PacketTooLarge, ProtocolViolation
from broker.mqtt.packets import PINGRESP, ConnAck, Connect, Disconnect, PacketType, Version
from broker.mqtt.properties import Properties
from broker.mqtt.reason_codes import ReasonCode, connack_return_code

if TYPE_CHECKING:
    from broker.core.deadlines import Deadline
    from broker.core.router import Router
    from broker.core.seams import Wire
    from broker.core.session import Session

__all__ = ["Connection"]

#: Work one connection may cause before the others get their turn: a delivery is one unit, a packet sixteen. So 1024
#: packets, or 16 messages to 1000 subscribers, 2 to 10 ms; less would cost fan-out its long writes. Beside a flood a
#: message took 0.7 ms (p50) and 7 ms (p99); with 4096 packets at a time 23 and 28 ms (python -m benchmarks.flood).
_BUDGET: Final = 16_384
_PACKET_COST: Final = 16


Handler = Callable[["Connection", bytes, int, int, int], None]


class Connection:
    """The broker's side of one network connection."""

    __slots__ = (
        "aliases_in",
        "auth_method",
        "auth_steps",
        "backlogged",
        "block_deadline",
        "client_id",
        "connect",
        "connect_deadline",
        "decisions",
        "exchange",
        "gate",
        "held",
        "held_messages",
        "is_blocked",
        "journal_wait",
        "keep_alive",
        "keep_alive_deadline",
        "last_received",
        "limits",
        "listener",
        "needed",
        "out",
        "problem_information",
        "rest",
        "router",
        "session",
        "state",
        "suspended",
        "user_name",
        "v5",
        "version",
        "wire",
    )

    def __init__(self, router: "Router", wire: "Wire", limits: ConnectionLimits, listener: str) -> None:
        self.router = router
        self.wire = wire
        self.limits = limits
        self.listener = listener
        self.state = State.NEW
        self.version = Version.V311
        self.v5 = False
        self.client_id = ""
        self.user_name: str | None = None
        self.connect: Connect | None = None
        self.session: Session | None = None
        #: What goes out with the next flush. Always this one list.
        self.out: list[bytes | bytearray] = []
        #: What waits for the journal: batch, bytes, messages of the client; later acknowledgements queue behind it.
        self.held: deque[tuple[int, bytes, int]] | None = None
        self.held_messages = 0
        #: The batch of the journal before which nothing at all may leave: CONNACK waits for it.
        self.gate: int | None = None
        self.journal_wait: Pending[None] | None = None
        #: Input that is not handled yet, and how many bytes it takes to go on.
        self.rest: list[bytes] = []
        self.needed = 0
        self.backlogged = False
        #: What a handler waits for, and what goes on with the answer.
        self.suspended: Pending[Any] | None = None
        self.is_blocked = False
        self.block_deadline: Deadline | None = None
        self.last_received = router.now
        self.keep_alive = 0.0
        self.keep_alive_deadline: Deadline | None = None
        #: What plugins decided about topics: (topic, first byte's flags or filter and QoS) → decision.
        self.decisions: dict[tuple[bytes, int], Decision] = {}
        #: Topic aliases that the client set up.
        self.aliases_in: dict[int, bytes] | None = None
        self.problem_information = True
        self.auth_method: str | None = None
        self.exchange: Exchange | None = None
        self.auth_steps = 0
        self.connect_deadline: Deadline | None = router.deadlines.at(
            router.now + limits.connection_timeout, self._connect_timed_out
        )

    @property
    def its_session(self) -> "Session":
        """The session of a connected client."""
        assert self.session is not None, "a connected client has a session"
        return self.session

    @property
    def its_connect(self) -> Connect:
        """The CONNECT of a client that is being admitted, or that may authenticate again."""
        assert self.connect is not None, "what comes before has checked that a CONNECT came"
        return self.connect

    # --- input ------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Handle what came in; what is not a whole packet yet, or beyond this turn's budget, is kept."""
        if self.state is State.CLOSED:
            return
        self.last_received = self.router.now
        self.router.stats.received_bytes += len(data)
        if self.suspended is not None or self.backlogged:
            self.rest.append(data)
            return
        if self.rest:
            self.rest.append(data)
            self.needed -= len(data)
            if self.needed > 0:
                return
            data = b"".join(self.rest)
            self.rest = []
        self._guarded(data)

    def go_on(self) -> None:
        """Handle input that was left over, with a new budget."""
        if not self.backlogged:
            return
        self.backlogged = False
        if self.state is State.CLOSED:
            return
        self.wire.resume()
        self.last_received = self.router.now
        data = b"".join(self.rest)
        self.rest = []
        self._guarded(data)

    def _guarded(self, data: bytes) -> None:
        try:
            self._parse(data)
        except MqttError as error:
            self.fail(error.reason, error.message)

    def _parse(self, data: bytes) -> None:
        pos, n = 0, len(data)
        budget = _BUDGET
        max_length = self.limits.max_remaining_length
        while pos < n:
            first = data[pos]
            if n - pos < 2:
                break
            length = data[pos + 1]
            body = pos + 2
            if length > 127:
                length, body = _remaining_length(data, pos + 1, n)
                if length < 0:
                    self._check_first_byte(first)
                    break
            if length > max_length:
                self._check_first_byte(first)
                raise PacketTooLarge(
                    f"{PacketType(first >> 4).name} of {length} bytes is over max_payload_size ({max_length})"
                )
            end = body + length
            if end > n:
                self._check_first_byte(first)
                self.needed = end - n
                self.rest = [data[pos:] if pos else data]
                return
            if self.state is State.CONNECTED:
                kind = first >> 4
                if kind == 3:
                    after, cost = publishing.receive(self, data, n, pos, body, end)
                    budget -= cost
                elif 4 <= kind <= 7:
                    after = acknowledging.receive(self, data, n, pos, body, end)
                else:
                    self._receive_other(first, data, body, end)
                    after = end
            else:
                self._receive_early(first, data, body, end)
                after = end
            if self.state is State.CLOSED:
                return
            if self.suspended is not None:
                self.rest = [data[after:]] if after < n else []
                return
            pos = after
            budget -= _PACKET_COST
            if budget <= 0 and pos < n:
                self._keep_for_later(data[pos:])
                return
        self.needed = 1
        self.rest = [data[pos:]] if pos < n else []

    def _check_first_byte(self, first: int) -> None:
        """Refuse a packet that cannot be right before the rest of it has come."""
        kind = first >> 4
        if self.state is State.NEW and kind != 1:
            raise ProtocolViolation(f"it begins with the byte 0x{first:02X}, which is not MQTT's CONNECT")
        if kind == 0:
            raise MalformedPacket("packet type 0 is reserved")
        if kind != 3 and first & 15 != (2 if kind in (6, 8, 10) else 0):
            raise MalformedPacket(f"{PacketType(kind).name} has the wrong flags 0x{first & 15:X}")

    def _keep_for_later(self, data: bytes) -> None:
        self.rest = [data]
        self.backlogged = True
        self.wire.pause()
        self.router.backlog.append(self)

    def _receive_early(self, first: int, data: bytes, body: int, end: int) -> None:
        """Handle a packet that comes before the client is connected."""
        self._check_first_byte(first)
        kind = first >> 4
        if kind == 1 and self.state is State.NEW:
            handshake.receive_connect(self, data, body, end)
        elif kind == 15 and self.state is State.AUTHENTICATING:
            handshake.receive_auth(self, data, body, end)
        elif kind == 14 and self.state is State.AUTHENTICATING:
            self.end(ReasonCode.SUCCESS, "the client gave up", by_client=True)
        else:
            raise ProtocolViolation(f"{PacketType(kind).name} came before the connection was established")

    def _receive_other(self, first: int, data: bytes, body: int, end: int) -> None:
        """Handle a packet of a connected client that is neither PUBLISH nor an acknowledgement."""
        self._check_first_byte(first)
        handler = _HANDLERS.get(first >> 4)
        if handler is None:
            raise ProtocolViolation(f"a client must not send {PacketType(first >> 4).name} here")
        handler(self, data, body, end, first)

    # --- suspension -------------------------------------------------------------------------------------------------

    def suspend(self, pending: Pending[Any], go_on: Callable[[Any], None]) -> None:
        """Handle no more input until *pending* is resolved; then call *go_on* with the answer and carry on."""
        self.suspended = pending
        self.wire.pause()

        def resolved(answer: Any) -> None:
            if self.suspended is not pending:
                return
            self.suspended = None
            if self.state is State.CLOSED:
                return
            self.wire.resume()
            self.last_received = self.router.now
            try:
                go_on(answer)
            except MqttError as error:
                self.fail(error.reason, error.message)
            # The answer may have closed the connection, or suspended it anew; what is left of the input waits then.
            if not self.is_closed() and self.suspended is None and self.rest:
                data = b"".join(self.rest)
                self.rest = []
                self._guarded(data)

        pending.then(resolved)

    def is_closed(self) -> bool:
        """Tell whether the connection is over for the broker."""
        return self.state is State.CLOSED

    # --- output -----------------------------------------------------------------------------------------------------

    def send(self, data: bytes | bytearray) -> None:
        """Send *data* with the next flush."""
        if not self.out:
            self.router.dirty.append(self)
        self.out.append(data)

    def acknowledge(self, data: bytes) -> None:
        """Send acknowledgements that depend on nothing: in order, so behind those that wait for the journal."""
        if self.held:
            self._hold(self.held[-1][0], data, 0)
        else:
            self.send(data)

    def send_after_commit(self, data: bytes, *, messages: int = 0) -> None:
        """Send *data* once the journal has committed what was written so far: what is acknowledged is stored.

        *messages* of the client wait for it.
        """
        journal = self.router.journal
        assert journal is not None, "only what is in the journal waits for it"
        self._hold(journal.position, data, messages)

    def _hold(self, position: int, data: bytes, messages: int) -> None:
        if self.held is None:
            self.held = deque()
        if not self.held or self.held[-1][0] < position:
            self.router.wait_for_commit(position, self)
        self.held.append((position, data, messages))
        self.held_messages += messages

    def close_gate(self) -> None:
        """Let nothing leave before the journal has committed what was written so far: not even what needs no disk."""
        journal = self.router.journal
        if journal is None or self.session is None:
            return
        self.gate = journal.position
        self.router.wait_for_commit(journal.position, self)
        self.session.block()

    def _open_gate(self) -> None:
        self.gate = None
        if self.state is State.CLOSED:
            return
        if self.session is not None and not self.is_blocked:
            self.session.unblock()
        if self.out:
            self.router.dirty.append(self)

    def release_held(self, position: int) -> None:
        """Send what waited for the journal's batches up to *position*."""
        if self.gate is not None and self.gate <= position:
            self._open_gate()
        held = self.held
        while held and held[0][0] <= position:
            _, data, messages = held.popleft()
            self.held_messages -= messages
            if self.state is not State.CLOSED:
                self.send(data)
        if self.journal_wait is not None and self.held_messages <= self.limits.max_inflight_count // 2:
            pending, self.journal_wait = self.journal_wait, None
            pending.resolve(None)

    def wait_for_journal(self) -> None:
        """Handle no more input until the journal has caught up with half of what this connection waits for."""
        if self.journal_wait is None:
            self.journal_wait = Pending()
            self.suspend(self.journal_wait, lambda _: None)

    def flush(self) -> None:
        """Write out the outbox."""
        out = self.out
        if not out or self.gate is not None:
            return
        self.wire.send(out)
        out.clear()
        # Messages are bounded by the window and by dropping; answers to what the client goes on asking by this.
        most = 4 * self.limits.max_outbox_bytes + self.limits.max_inflight_bytes
        if self.is_blocked and self.wire.unsent() > most:
            self.end(ReasonCode.QUOTA_EXCEEDED, "the client sends but does not read its answers")

    def blocked(self) -> None:
        """Note that the peer has left as much unread as the outbox may hold."""
        if self.is_blocked or self.state is State.CLOSED:
            return
        self.is_blocked = True
        if self.session is not None:
            self.session.block()
        self._watch_reading()

    def _watch_reading(self) -> None:
        taken = self.wire.taken()
        self.block_deadline = self.router.deadlines.at(
            self.router.now + self.limits.slow_reader_timeout, lambda: self._check_reading(taken)
        )

    def unblocked(self) -> None:
        """Note that the peer has read most of what was sent."""
        if not self.is_blocked:
            return
        self.is_blocked = False
        if self.block_deadline is not None:
            self.block_deadline.cancel()
        if self.session is not None and self.session.connection is self:
            self.session.unblock()

    def _check_reading(self, taken: int) -> None:
        """End the connection where the peer has taken nothing since *taken* bytes; a slow one may go on."""
        if self.wire.taken() > taken:
            self._watch_reading()
            return
        self.end(
            ReasonCode.QUOTA_EXCEEDED,
            f"the client has read nothing for {self.limits.slow_reader_timeout:g} s while messages for it wait",
        )

    # --- the end ----------------------------------------------------------------------------------------------------

    def fail(self, reason: ReasonCode, message: str) -> None:
        """End the connection because of what the client sent; refuse it where it is not connected yet."""
        if self.state is State.CONNECTED:
            self.end(reason, message)
        else:
            self.refuse(reason, message)

    def refuse(self, reason: ReasonCode, message: str) -> None:
        """Answer CONNECT with *reason* where its version has a way to say it, and close [5:MQTT-3.1.4-2]."""
        if self.state is State.CLOSED:
            return
        answer = None
        if self.v5:
            properties: Properties = {"reason_string": message} if self.problem_information else {}
            answer = ConnAck(reason=reason, properties=properties).encode(Version.V5)
            asked = self.connect.properties if self.connect is not None else {}
            if len(answer) > asked.get("maximum_packet_size", len(answer)):
                answer = ConnAck(reason=reason).encode(Version.V5)
        else:
            code = connack_return_code(reason)
            if code is not None:
                answer = ConnAck(reason=code).encode(Version.V311)
        if answer is not None:
            self.send(answer)
        self.router.stats.refused_total += 1
        self.router.observer.refused(self, reason, message)
        self._close(reason)

    def end(self, reason: ReasonCode, message: str, *, by_client: bool = False, keep_will: bool = False) -> None:
        """End the connection: tell a MQTT 5 client why, settle its session, close the socket.

        The will is published unless the client said good-bye; *keep_will* leaves that of a durable session for later.
        """
        if self.state is State.CLOSED:
            return
        was_connected = self.state is State.CONNECTED
        if was_connected and self.v5 and not by_client:
            self.send(self._disconnect_packet(reason, message))
        self._close(reason)
        if was_connected:
            if by_client and reason is ReasonCode.SUCCESS and self.session is not None:
                self.session.will = None
            self.router.connections.discard(self)
            self.router.observer.disconnected(self, reason, message, by_client)
            self._settle(keep_will=keep_will)
        else:
            self.router.observer.refused(self, reason, message)

    def _disconnect_packet(self, reason: ReasonCode, message: str) -> bytes:
        properties: Properties = {"reason_string": message} if self.problem_information else {}
        packet = Disconnect(reason=reason, properties=properties).encode(Version.V5)
        if self.session is not None and len(packet) > self.session.max_packet_size:
            packet = Disconnect(reason=reason).encode(Version.V5)
        return packet

    def lost(self, message: str) -> None:
        """Note that the socket is gone; the will is published [5:MQTT-3.1.2-8]."""
        if self.state is State.CLOSED:
            return
        was_connected = self.state is State.CONNECTED
        self.out.clear()
        self._close(ReasonCode.UNSPECIFIED_ERROR)
        if was_connected:
            self.router.connections.discard(self)
            self.router.observer.disconnected(self, ReasonCode.UNSPECIFIED_ERROR, message, False)
            self._settle()
        else:
            self.router.observer.refused(self, ReasonCode.UNSPECIFIED_ERROR, message)

    def _close(self, reason: ReasonCode) -> None:
        self.state = State.CLOSED
        for deadline in (self.connect_deadline, self.keep_alive_deadline, self.block_deadline):
            if deadline is not None:
                deadline.cancel()
        self.rest = []
        self.suspended = None
        self.exchange = None
        if self.out and self.gate is None:
            self.wire.send(self.out)
        self.out.clear()
        self.wire.close(reason)

    def _settle(self, *, keep_will: bool = False) -> None:
        """Part from the session: keep it or end it, and publish its will when it is due."""
        router, session = self.router, self.its_session
        if session.connection is not self:
            return
        session.detach()
        if session.durable:
            if session.will is not None and not keep_will:
                if session.will_delay:
                    router.delay_will(session)
                else:
                    router.send_will(session)
            router.keep(session)
        else:
            router.end_session(session)

    # --- time -------------------------------------------------------------------------------------------------------

    def _connect_timed_out(self) -> None:
        limit = self.limits.connection_timeout * 1000
        self.refuse(ReasonCode.UNSPECIFIED_ERROR, f"no complete CONNECT within connection_timeout_ms ({limit:g})")

    def watch_keep_alive(self, seconds: int) -> None:
        """End the connection when nothing comes for one and a half times *seconds*; 0 is for ever [5:MQTT-3.1.2-22]."""
        self.keep_alive = seconds * 1.5
        if seconds:
            self.keep_alive_deadline = self.router.deadlines.at(
                self.router.now + self.keep_alive, self._check_keep_alive
            )

    def _check_keep_alive(self) -> None:
        # While the broker itself leaves the input unread, silence is not the client's.
        if self.suspended is not None or self.backlogged:
            self.last_received = self.router.now
        due = self.last_received + self.keep_alive
        if due > self.router.now:
            self.keep_alive_deadline = self.router.deadlines.at(due, self._check_keep_alive)
            return
        self.end(
            ReasonCode.KEEP_ALIVE_TIMEOUT,
            f"nothing came for {self.keep_alive:g} s, one and a half times the keep-alive",
        )


def _remaining_length(data: bytes, pos: int, n: int) -> tuple[int, int]:
    """Return the Remaining Length at *pos* and the position after it; a length of -1 where it is cut off."""
    value = shift = 0
    for at in range(pos, min(pos + 4, n)):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and at > pos:
                raise MalformedPacket("the remaining length is not in its shortest form")
            return value, at + 1
        shift += 7
    if n - pos >= 4:
        raise MalformedPacket("the remaining length has more than four bytes")
    return -1, pos


def _receive_ping(connection: Connection, data: bytes, body: int, end: int, first: int) -> None:
    if body != end:
        raise MalformedPacket("PINGREQ has a body")
    connection.send(PINGRESP)


#: The reasons that a client may give [5: section 3.14.2.1]; the others are a server's.
_CLIENT_REASONS: Final = frozenset((0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99))


def _receive_disconnect(connection: Connection, data: bytes, body: int, end: int, first: int) -> None:
    packet = Disconnect.decode(data, body, end, connection.version)
    if packet.reason not in _CLIENT_REASONS:
        raise ProtocolViolation(f"DISCONNECT has the reason {packet.reason.text}, which is not a client's")
    session = connection.its_session
    expiry = packet.properties.get("session_expiry_interval")
    if expiry is not None and expiry != session.expiry_interval:
        if not session.expiry_interval:
            raise ProtocolViolation("DISCONNECT sets a session expiry where CONNECT had none")
        session.expiry_interval = min(expiry, connection.router.limits.max_session_expiry)
    message = packet.properties.get("reason_string", "the client disconnected")
    connection.end(packet.reason, message, by_client=True)


def _receive_second_connect(connection: Connection, data: bytes, body: int, end: int, first: int) -> None:
    raise ProtocolViolation("a second CONNECT came on one connection")


def _receive_auth(connection: Connection, data: bytes, body: int, end: int, first: int) -> None:
    handshake.receive_reauthentication(connection, data, body, end)


_HANDLERS: dict[int, Handler] = {
    PacketType.CONNECT: _receive_second_connect,
    PacketType.SUBSCRIBE: subscribing.receive_subscribe,
    PacketType.UNSUBSCRIBE: subscribing.receive_unsubscribe,
    PacketType.PINGREQ: _receive_ping,
    PacketType.DISCONNECT: _receive_disconnect,
    PacketType.AUTH: _receive_auth,
}
