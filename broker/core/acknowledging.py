"""PUBACK, PUBREC, PUBREL and PUBCOMP from a client, runs of consecutive identifiers at once [5: section 4.3]."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from broker.core.tables import PUBACKS, PUBCOMPS, PUBRECS, PUBRELS, consecutive
from broker.mqtt.errors import MalformedPacket
from broker.mqtt.packets import Ack, PacketType
from broker.mqtt.reason_codes import ReasonCode

if TYPE_CHECKING:
    from broker.core.connection import Connection
    from broker.core.session import Session

__all__ = ["receive"]


def receive(connection: "Connection", data: bytes, n: int, pos: int, body: int, end: int) -> int:
    """Handle the acknowledgement at *pos* and those like it that follow; return the position after them."""
    first = data[pos]
    if first & 15 != (2 if first >> 4 == PacketType.PUBREL else 0):
        raise MalformedPacket(f"{PacketType(first >> 4).name} has the wrong flags 0x{first & 15:X}")
    session = connection.its_session
    if end - body == 2:
        done = _RUNS[first](connection, session, data, pos, (n - pos) >> 2)
        if done:
            return pos + 4 * done
    packet = Ack.decode(data, body, end, connection.version)
    if packet.reason not in _REASONS[first]:
        raise MalformedPacket(
            f"{PacketType(first >> 4).name} has the reason 0x{packet.reason:02X}, which is not one of its"
        )
    _SINGLES[first](connection, session, packet)
    return end


def _ranges(data: bytes, pos: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the packet identifiers of *count* acknowledgements as stretches: first and how many."""
    start = stretch = 0
    for at in range(pos, pos + 4 * count, 4):
        packet_id = data[at + 2] << 8 | data[at + 3]
        if stretch and packet_id == start + stretch:
            stretch += 1
            continue
        if stretch:
            yield start, stretch
        start, stretch = packet_id, 1
    if stretch:
        yield start, stretch


def _answer(data: bytes, pos: int, count: int, first: int) -> bytes:
    """Return *count* acknowledgements with the identifiers of those at *pos*."""
    copy = bytearray(data[pos : pos + 4 * count])
    copy[0::4] = bytes((first,)) * count
    return bytes(copy)


def _puback_run(connection: "Connection", session: "Session", data: bytes, pos: int, limit: int) -> int:
    window = session.window
    if window is None:
        return 0
    done = window.acknowledge(1, PUBACKS, data, pos, limit)
    if done:
        journal = session.router.journal
        if journal is not None and session.durable:
            for packet_id, count in _ranges(data, pos, done):
                journal.settled(session.client_id, 1, packet_id, count)
        if session.queue or window.resend:
            session.pump()
    return done


def _pubrec_run(connection: "Connection", session: "Session", data: bytes, pos: int, limit: int) -> int:
    window = session.window
    if window is None:
        return 0
    done = window.acknowledge(2, PUBRECS, data, pos, limit)
    if done:
        answer = _answer(data, pos, done, 0x62)
        journal = session.router.journal
        if journal is not None and session.durable:
            for packet_id, count in _ranges(data, pos, done):
                journal.settled(session.client_id, 2, packet_id, count)
            connection.send_after_commit(answer)
        else:
            connection.acknowledge(answer)
    return done


def _pubrel_run(connection: "Connection", session: "Session", data: bytes, pos: int, limit: int) -> int:
    index = (data[pos + 2] << 8 | data[pos + 3]) - 1
    received = session.received
    if index < 0 or not received:
        return 0
    done = consecutive(data, pos, PUBRELS, index, limit)
    identifiers = range(index + 1, index + 1 + done)
    if not received.issuperset(identifiers):
        return 0
    received.difference_update(identifiers)
    answer = PUBCOMPS[index * 4 : (index + done) * 4]
    journal = session.router.journal
    if journal is not None and session.durable:
        journal.released(session.client_id, index + 1, done)
        connection.send_after_commit(answer)
    else:
        connection.acknowledge(answer)
    return done


def _pubcomp_run(connection: "Connection", session: "Session", data: bytes, pos: int, limit: int) -> int:
    window = session.window
    if window is None:
        return 0
    done = window.complete(PUBCOMPS, data, pos, limit)
    if done:
        journal = session.router.journal
        if journal is not None and session.durable:
            for packet_id, count in _ranges(data, pos, done):
                journal.completed(session.client_id, packet_id, count)
        if session.queue or window.resend:
            session.pump()
    return done


def _puback(connection: "Connection", session: "Session", packet: Ack) -> None:
    """Settle one PUBACK; a reason of 0x80 or more is final too: the client has the message [5:MQTT-4.8.2-6]."""
    window = session.window
    if window is not None and window.settle(1, packet.packet_id - 1):
        journal = session.router.journal
        if journal is not None and session.durable:
            journal.settled(session.client_id, 1, packet.packet_id, 1)
        session.pump()


def _pubrec(connection: "Connection", session: "Session", packet: Ack) -> None:
    window, index = session.window, packet.packet_id - 1
    journal = session.router.journal if session.durable else None
    settled = window is not None and window.settle(2, index)
    if window is not None and settled:
        if journal is not None:
            journal.settled(session.client_id, 2, packet.packet_id, 1)
        if packet.reason >= 0x80:
            window.give_back()
            if journal is not None:
                journal.completed(session.client_id, packet.packet_id, 1)
            session.pump()
            return
        window.note_released(index, 1)
    elif packet.reason >= 0x80:
        return
    known = window is not None and window.is_released(index)
    # A PUBREC that comes again gets its PUBREL again; one that nothing waits for is told so [5: section 4.3.3].
    reason = ReasonCode.SUCCESS if known else ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
    answer = Ack(packet_id=packet.packet_id, reason=reason).encode(PacketType.PUBREL, connection.version)
    if settled and journal is not None:
        connection.send_after_commit(answer)
    else:
        connection.acknowledge(answer)


def _pubrel(connection: "Connection", session: "Session", packet: Ack) -> None:
    received, journal = session.received, session.router.journal
    known = received is not None and packet.packet_id in received
    reason = ReasonCode.SUCCESS if known else ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
    answer = Ack(packet_id=packet.packet_id, reason=reason).encode(PacketType.PUBCOMP, connection.version)
    if received is not None and known:
        received.discard(packet.packet_id)
        if journal is not None and session.durable:
            journal.released(session.client_id, packet.packet_id, 1)
            connection.send_after_commit(answer)
            return
    connection.acknowledge(answer)


def _pubcomp(connection: "Connection", session: "Session", packet: Ack) -> None:
    window = session.window
    if window is not None and window.complete_one(packet.packet_id - 1):
        journal = session.router.journal
        if journal is not None and session.durable:
            journal.completed(session.client_id, packet.packet_id, 1)
        session.pump()


_PUBLISH_REASONS = frozenset((0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99))
_RELEASE_REASONS = frozenset((0x00, 0x92))
#: The reason codes that are listed for each packet [5:MQTT-3.4.2-1, 5:MQTT-3.5.2-1, 5:MQTT-3.6.2-1, 5:MQTT-3.7.2-1].
_REASONS = {0x40: _PUBLISH_REASONS, 0x50: _PUBLISH_REASONS, 0x62: _RELEASE_REASONS, 0x70: _RELEASE_REASONS}
_RUNS = {0x40: _puback_run, 0x50: _pubrec_run, 0x62: _pubrel_run, 0x70: _pubcomp_run}
_SINGLES = {0x40: _puback, 0x50: _pubrec, 0x62: _pubrel, 0x70: _pubcomp}
