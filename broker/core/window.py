"""The outgoing window of one client: packet identifiers in use and QoS 1/2 messages that wait for acknowledgements.

It holds stretches of consecutive identifiers, not single messages: a run that is acknowledged in order costs the same
whether it is one message or hundreds. A stretch splits when an acknowledgement comes out of order.
"""

from collections import deque
from typing import TYPE_CHECKING

from broker.core.tables import COUNT, consecutive

if TYPE_CHECKING:
    from broker.core.run import Delivery

__all__ = ["Stretch", "Window"]

#: Index of the first packet identifier, how many, first message of the delivery, delivery, bytes each, order sent in.
#: A plain tuple: one is made for each delivery of a single message, a class costs five times as much.
Stretch = tuple[int, int, int, "Delivery", int, int]


class Window:
    """Never holds more than *max_count* messages, nor more than *max_bytes* unless it is a single one."""

    __slots__ = (
        "_free",
        "_next",
        "_order",
        "bytes",
        "count",
        "max_bytes",
        "max_count",
        "released",
        "resend",
        "unacked1",
        "unacked2",
    )

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self.max_count = max_count
        self.max_bytes = max_bytes
        self.count = 0
        self.bytes = 0
        #: QoS 1 messages without PUBACK, QoS 2 messages without PUBREC; oldest first.
        self.unacked1: deque[Stretch] = deque()
        self.unacked2: deque[Stretch] = deque()
        #: Identifiers whose PUBREL is out and whose PUBCOMP is not in: index and how many.
        self.released: deque[tuple[int, int]] = deque()
        #: What an earlier connection left unacknowledged and this one has not sent again yet.
        self.resend: deque[Stretch] = deque()
        self._next = 0
        self._free = COUNT
        self._order = 0

    def room(self, size: int) -> int:
        """Return how many more messages of *size* bytes may be sent now."""
        room = self.max_count - self.count
        if room <= 0:
            return 0
        if self.bytes + size * room > self.max_bytes:
            by_bytes = (self.max_bytes - self.bytes) // size
            return by_bytes if by_bytes > 0 else int(not self.count)
        return room

    def take(self, wanted: int) -> tuple[int, int]:
        """Return the first of up to *wanted* consecutive free identifiers, and how many there are (at least one)."""
        if not self._free:
            self._find_free()
        index = self._next
        count = wanted if wanted < self._free else self._free
        self._free -= count
        self._next = index + count if index + count < COUNT else 0
        if not self._next:
            self._free = 0
        return index, count

    def _find_free(self) -> None:
        stretches = (*self.unacked1, *self.unacked2, *self.resend)
        used = sorted([(s[0], s[0] + s[1]) for s in stretches] + [(i, i + n) for i, n in self.released])
        pos = self._next
        while True:
            for start, stop in used:
                if stop <= pos:
                    continue
                if start > pos:
                    self._next, self._free = pos, start - pos
                    return
                pos = stop
            if pos < COUNT:
                self._next, self._free = pos, COUNT - pos
                return
            pos = 0

    def add(
        self, qos: int, index: int, count: int, start: int, delivery: "Delivery", size: int, order: int = 0
    ) -> None:
        """Note that messages from *start* on are on their way with identifiers from *index* on.

        *order* is that of the first sending, for messages that are sent again.
        """
        if not order:
            order = self._order = self._order + 1
        (self.unacked1 if qos == 1 else self.unacked2).append((index, count, start, delivery, size, order))
        self.count += count
        self.bytes += count * size

    def acknowledge(self, qos: int, table: bytes, data: bytes, pos: int, limit: int) -> int:
        """Settle the acknowledgements at *pos* that come in the order of sending; return how many did.

        *table* holds the packets to expect, PUBACK or PUBREC. PUBREC leaves the message's place in the window taken.
        """
        stretches = self.unacked1 if qos == 1 else self.unacked2
        done = 0
        while stretches and done < limit:
            index, count, start, delivery, size, order = stretches[0]
            most = count if count < limit - done else limit - done
            settled = consecutive(data, pos, table, index, most)
            if not settled:
                break
            if settled == count:
                stretches.popleft()
            else:
                stretches[0] = (index + settled, count - settled, start + settled, delivery, size, order)
            self.bytes -= settled * size
            if qos == 1:
                self.count -= settled
            else:
                self.note_released(index, settled)
            done += settled
            if settled < most:
                break
            pos += 4 * settled
        return done

    def settle(self, qos: int, index: int) -> bool:
        """Settle one identifier wherever it stands; tell whether it was in flight.

        The place in the window is given back at QoS 1; at QoS 2 the caller says what follows.
        """
        for stretches in (self.unacked1 if qos == 1 else self.unacked2, self.resend):
            for position, (first, count, start, delivery, size, order) in enumerate(stretches):
                offset = index - first
                if not 0 <= offset < count or delivery.qos != qos:
                    continue
                del stretches[position]
                if offset + 1 < count:
                    after = (index + 1, count - offset - 1, start + offset + 1, delivery, size, order)
                    stretches.insert(position, after)
                if offset:
                    stretches.insert(position, (first, offset, start, delivery, size, order))
                if stretches is not self.resend:
                    self.bytes -= size
                    if qos == 1:
                        self.count -= 1
                elif qos == 2:
                    self.count += 1
                return True
        return False

    def note_released(self, index: int, count: int) -> None:
        """Note that the PUBRELs of these identifiers are out."""
        released = self.released
        if released and released[-1][0] + released[-1][1] == index:
            first, before = released[-1]
            released[-1] = (first, before + count)
        else:
            released.append((index, count))

    def give_back(self) -> None:
        """Free the place of a QoS 2 message whose exchange is over."""
        self.count -= 1

    def is_released(self, index: int) -> bool:
        """Tell whether the PUBREL of an identifier is out and its PUBCOMP is not in."""
        return any(first <= index < first + count for first, count in self.released)

    def complete(self, table: bytes, data: bytes, pos: int, limit: int) -> int:
        """Settle the PUBCOMPs at *pos* that come in the order of the PUBRELs; return how many did."""
        done = 0
        while self.released and done < limit:
            index, count = self.released[0]
            most = min(count, limit - done)
            completed = consecutive(data, pos, table, index, most)
            if completed == count:
                self.released.popleft()
            elif completed:
                self.released[0] = (index + completed, count - completed)
            done += completed
            pos += 4 * completed
            if completed < most:
                break
        self.count -= done
        return done

    def complete_one(self, index: int) -> bool:
        """Settle one PUBCOMP wherever it stands; tell whether its PUBREL was out."""
        for position, (first, count) in enumerate(self.released):
            if first <= index < first + count:
                del self.released[position]
                if index + 1 < first + count:
                    self.released.insert(position, (index + 1, first + count - index - 1))
                if index > first:
                    self.released.insert(position, (first, index - first))
                self.count -= 1
                return True
        return False

    def begin_again(self, max_count: int, max_bytes: int) -> None:
        """Prepare for a new connection: everything unacknowledged is to be sent again, oldest first."""
        self.resend = deque(self.unacknowledged())
        self.unacked1.clear()
        self.unacked2.clear()
        self.max_count = max_count
        self.max_bytes = max_bytes
        self.count = sum(count for _, count in self.released)
        self.bytes = 0
        self._free = 0

    def unacknowledged(self) -> list[Stretch]:
        """Return all messages in flight, oldest first."""
        return sorted((*self.unacked1, *self.unacked2, *self.resend), key=lambda stretch: stretch[5])
