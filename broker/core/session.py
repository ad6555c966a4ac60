"""A session: what the broker keeps for one client identifier, with or without a connection [5: section 4.1].

Messages to the client go through here: QoS 0 straight into the connection's outbox, QoS 1 and 2 through the window, and
into the queue while the window is full or the client is away.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from broker.core.limits import NEVER, ConnectionLimits
from broker.core.run import Delivery, Encoded
from broker.core.tables import HIGH, LOW, PACKET_ID, PUBRELS
from broker.core.window import Window

if TYPE_CHECKING:
    from broker.core.connection import Connection
    from broker.core.deadlines import Deadline
    from broker.core.replay import Replay
    from broker.core.router import Router
    from broker.core.run import Run
    from broker.core.subscriptions import Options

__all__ = ["Session"]

#: Stands for the outbox while nothing may be put in: the client is away or does not read. It is always empty.
_SHUT: Final[list[bytes | bytearray]] = []


class Session:
    """Lives from a client's first CONNECT until it is discarded or expires."""

    __slots__ = (
        "alias_maximum",
        "aliases",
        "client_id",
        "connection",
        "expires_at",
        "expiry_deadline",
        "expiry_interval",
        "is_stored",
        "limits",
        "lost",
        "max_packet_size",
        "out",
        "queue",
        "queued_bytes",
        "queued_count",
        "receive_maximum",
        "received",
        "replay",
        "router",
        "subscriptions",
        "user_name",
        "v5",
        "will",
        "will_deadline",
        "will_delay",
        "window",
    )

    def __init__(self, router: "Router", client_id: str, limits: ConnectionLimits) -> None:
        self.router = router
        self.client_id = client_id
        self.limits = limits
        self.user_name: str | None = None
        self.connection: Connection | None = None
        #: The connection's outbox while messages may go into it.
        self.out = _SHUT
        self.v5 = False
        #: Seconds that the session outlives its connection; 0 ends it with the connection.
        self.expiry_interval = 0
        #: Wall time at which the session ends, while the client is away.
        self.expires_at: float | None = None
        self.expiry_deadline: Deadline | None = None
        #: Whether the journal knows the session.
        self.is_stored = False
        self.subscriptions: dict[bytes, Options] = {}
        self.window: Window | None = None
        #: Messages that wait: delivery, first, last + 1.
        self.queue: deque[tuple[Delivery, int, int]] | None = None
        self.queued_count = 0
        self.queued_bytes = 0
        #: Packet identifiers of QoS 2 messages that the client sent and has not released.
        self.received: set[int] | None = None
        self.replay: Replay | None = None
        self.will: Run | None = None
        self.will_delay = 0
        self.will_deadline: Deadline | None = None
        #: Messages lost in the current episode, by what they were lost for.
        self.lost: dict[str, int] | None = None
        #: What the client said about itself in MQTT 5.
        self.receive_maximum = 65_535
        self.max_packet_size = NEVER
        self.alias_maximum = 0
        #: Topic aliases set up with the client on this connection.
        self.aliases: dict[bytes, int] | None = None

    @property
    def durable(self) -> bool:
        """Whether the session outlives its connection."""
        return self.expiry_interval > 0

    @property
    def individual(self) -> bool:
        """Whether packets for this client may differ from those for others of its kind."""
        return self.alias_maximum > 0 or self.max_packet_size != NEVER

    def attach(self, connection: "Connection") -> None:
        """Deliver to *connection* from now on."""
        self.connection = connection
        self.out = connection.out
        self.limits = connection.limits
        self.aliases = {} if self.alias_maximum else None
        if self.window is not None:
            self.window.begin_again(self._max_inflight(), self.limits.max_inflight_bytes)

    def detach(self) -> None:
        """Keep or drop messages for the client from now on, until it connects again."""
        self.connection = None
        self.out = _SHUT
        self.aliases = None
        if self.replay is not None:
            self.replay.finish()
        self.end_losses()

    def block(self) -> None:
        """Drop QoS 0 messages from now on: the client does not read."""
        self.out = _SHUT

    def unblock(self) -> None:
        """Take messages into the outbox again."""
        if self.connection is not None:
            self.out = self.connection.out
            self.end_losses()

    def _max_inflight(self) -> int:
        return min(self.limits.max_inflight_count, self.receive_maximum)

    # --- losses ---------------------------------------------------------------------------------------------------

    def lose(self, why: str, count: int) -> None:
        """Count messages that the client does not get; the observer hears of the first of an episode."""
        self.router.stats.dropped += count
        if self.lost is None:
            self.lost = {}
        if why not in self.lost:
            self.router.observer.dropping(self, why)
        self.lost[why] = self.lost.get(why, 0) + count

    def end_losses(self) -> None:
        """Close the episode of losses, if there is one."""
        if self.lost is not None:
            lost, self.lost = self.lost, None
            for why, count in lost.items():
                self.router.observer.dropped(self, why, count)

    # --- delivery -------------------------------------------------------------------------------------------------

    def first(self, blob: bytes, count: int) -> None:
        """Take *count* QoS 0 messages while the outbox is empty or shut."""
        connection = self.connection
        if connection is None:
            return
        if self.out is _SHUT:
            self._lose_qos0(connection, count)
            return
        self.router.dirty.append(connection)
        self.out.append(blob)

    def _lose_qos0(self, connection: "Connection", count: int) -> None:
        # A client whose CONNACK waits for the disk is not there yet: that it misses QoS 0 messages is no loss.
        if connection.gate is None:
            self.lose("slow reader", count)

    def offer(self, delivery: Delivery) -> None:
        """Send the messages of *delivery*, or queue what cannot go now."""
        if delivery.qos == 0:
            self._offer_qos0(delivery)
            return
        count = delivery.run.count
        if self.connection is None or self.queue or (self.window is not None and self.window.resend):
            self._enqueue(delivery, 0, count)
            return
        sent = self._transmit(delivery, 0, count)
        if sent < count:
            self._enqueue(delivery, sent, count)

    def _offer_qos0(self, delivery: Delivery) -> None:
        if self.connection is None:
            return
        run = delivery.run
        if self.out is _SHUT:
            self._lose_qos0(self.connection, run.count)
            return
        encoded, alias = self._encode(delivery) or (delivery.encode(self.v5), 0)
        if encoded.size > self.max_packet_size:
            self.lose("larger than the client's Maximum Packet Size", run.count)
            return
        if alias and self.aliases is not None:
            self.aliases[run.topic] = alias
        self.connection.send(encoded.data)

    def _encode(self, delivery: Delivery) -> tuple[Encoded, int] | None:
        """Return the run as it goes to this client now, and the topic alias that it sets up (0 for none).

        None where it has expired. What sets up an alias has the topic too [5: section 3.3.2.3.4].
        """
        encoded = delivery.encode_at(self.v5, self.router.wall)
        aliases = self.aliases
        if aliases is None or encoded is None:
            return None if encoded is None else (encoded, 0)
        run = delivery.run
        known = aliases.get(run.topic, 0)
        alias = known or len(aliases) + 1
        if alias > self.alias_maximum:
            return encoded, 0
        expiry = run.expiry
        if expiry is not None:
            expiry -= run.waited(self.router.wall)
        with_alias = run.build(
            True, delivery.qos, delivery.retain, delivery.identifiers, expiry, alias=alias, with_topic=not known
        )
        if not known and with_alias.size > self.max_packet_size:
            return encoded, 0
        return with_alias, 0 if known else alias

    def _enqueue(self, delivery: Delivery, start: int, stop: int) -> None:
        if self.connection is None and not self.durable:
            return
        size = delivery.run.size
        limits = self.limits
        room = min(
            limits.max_queue_count - self.queued_count,
            (limits.max_queue_bytes - self.queued_bytes) // size,
        )
        if room < stop - start:
            self.lose("queue full", stop - start - max(room, 0))
            stop = start + room
            if room <= 0:
                return
        if self.queue is None:
            self.queue = deque()
        self.queue.append((delivery, start, stop))
        self.queued_count += stop - start
        self.queued_bytes += (stop - start) * size
        journal = self.router.journal
        if journal is not None and self.durable:
            journal.queued(self.client_id, delivery, start, stop)

    def _transmit(self, delivery: Delivery, start: int, stop: int, *, queued: bool = False) -> int:
        """Send from *start* on as much as the window takes; return where it stopped.

        *queued* says that the messages come from the queue, where the journal knows them.
        """
        connection, window = self.connection, self.window
        assert connection is not None, "nothing is transmitted without a connection"
        if window is None:
            window = self.window = Window(self._max_inflight(), self.limits.max_inflight_bytes)
        if window.count >= window.max_count:
            return start
        journal = self.router.journal if self.durable else None
        found = self._encode(delivery)
        if found is None or found[0].size > self.max_packet_size:
            if found is None:
                self.router.stats.expired += stop - start
            else:
                self.lose("larger than the client's Maximum Packet Size", stop - start)
            if queued and journal is not None:
                journal.discarded(self.client_id, delivery, start, stop)
            return stop
        (data, size, id_at), alias = found
        qos = delivery.qos
        while start < stop:
            wanted = window.room(size)
            if wanted <= 0:
                break
            if wanted > stop - start:
                wanted = stop - start
            index, count = window.take(wanted)
            window.add(qos, index, count, start, delivery, size)
            parts = _with_identifiers(data, size, id_at, start, index, count)
            if alias and self.aliases is not None:
                self.aliases[delivery.run.topic] = alias
            if journal is not None:
                journal.sent(self.client_id, delivery, start, start + count, index + 1)
            start += count
            if journal is not None and qos == 2:
                # Its identifier must be on disk first, or a restart could give it to another message.
                connection.send_after_commit(b"".join(parts))
                continue
            out = connection.out
            if not out:
                self.router.dirty.append(connection)
            out += parts
        return start

    def pump(self) -> None:
        """Send what waits, as far as the window allows: first what an earlier connection left, then the queue."""
        window, queue = self.window, self.queue
        if self.connection is None:
            return
        if window is not None and window.resend:
            self._resend(window)
            if window.resend:
                return
        if not queue:
            return
        while queue:
            delivery, start, stop = queue[0]
            reached = self._transmit(delivery, start, stop, queued=True)
            self.queued_count -= reached - start
            self.queued_bytes -= (reached - start) * delivery.run.size
            if reached < stop:
                queue[0] = (delivery, reached, stop)
                return
            queue.popleft()
        self.queue = None
        self.end_losses()

    def _resend(self, window: Window) -> None:
        """Send unacknowledged messages again, with DUP and their old identifiers [5:MQTT-4.4.0-1, 5:MQTT-3.3.1-1]."""
        connection = self.connection
        assert connection is not None, "only a connected client is sent anything"
        while window.resend:
            index, count, start, delivery, _, order = window.resend[0]
            encoded = delivery.encode_at(self.v5, self.router.wall) or delivery.encode(self.v5)
            data, size, id_at = encoded
            room = window.room(size)
            if room <= 0:
                return
            sent = min(room, count)
            copy = bytearray(b"".join(_with_identifiers(data, size, id_at, start, index, sent)))
            copy[0::size] = bytes((copy[0] | 0x08,)) * sent
            window.resend.popleft()
            if sent < count:
                window.resend.appendleft((index + sent, count - sent, start + sent, delivery, size, order))
            window.add(delivery.qos, index, sent, start, delivery, size, order)
            if size <= self.max_packet_size:
                connection.send(copy)
            else:
                self._skip(window, delivery, index, sent)

    def _skip(self, window: Window, delivery: Delivery, index: int, count: int) -> None:
        """Treat messages that the client does not take any more as delivered [5:MQTT-3.1.2-25]."""
        self.lose("larger than the client's Maximum Packet Size", count)
        for one in range(index, index + count):
            window.settle(delivery.qos, one)
            if delivery.qos == 2:
                window.give_back()
        journal = self.router.journal
        if journal is not None and self.durable:
            journal.settled(self.client_id, delivery.qos, index + 1, count)
            if delivery.qos == 2:
                journal.completed(self.client_id, index + 1, count)

    def resend_releases(self) -> None:
        """Send every PUBREL whose PUBCOMP is missing again [5:MQTT-4.4.0-1]."""
        if self.window is not None and self.connection is not None:
            for index, count in self.window.released:
                self.connection.send(PUBRELS[index * 4 : (index + count) * 4])

    def inflight_count(self) -> int:
        """Return how many outgoing messages are unacknowledged."""
        if self.window is None:
            return 0
        return self.window.count + sum(stretch[1] for stretch in self.window.resend)


def _with_identifiers(
    data: bytes, size: int, id_at: int, start: int, index: int, count: int
) -> Sequence[bytes | bytearray]:
    """Return *count* packets of *data* from packet *start* on, with identifiers from *index* on, in parts to join."""
    at = start * size
    if count == 1:
        # Three slices to be joined with everything else at the flush: a third of what patching a copy costs.
        return data[at : at + id_at], PACKET_ID[index], data[at + id_at + 2 : at + size]
    copy = bytearray(data[at : at + count * size])
    copy[id_at::size] = HIGH[index : index + count]
    copy[id_at + 1 :: size] = LOW[index : index + count]
    return (copy,)
