"""The outgoing window against a plain table of packet identifiers."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.core.run import Delivery, Run
from broker.core.tables import COUNT, PACKET_ID, PUBACKS, PUBCOMPS, PUBRECS
from broker.core.window import Window
from tests.harness import examples

SIZE = 10
FIRST = {1: b"\x40\x02", 2: b"\x50\x02", 3: b"\x70\x02"}


class WindowAgainstTable(RuleBasedStateMachine):
    """Everything a window does is done on a dictionary too: index → QoS, or 3 for a PUBREL that is out."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[int, int] = {}
        #: Indexes in the order they were sent, and those whose PUBREL is out in the order of the PUBRELs.
        self.order: list[int] = []
        self.released: list[int] = []
        #: Indexes that wait to be sent again.
        self.waiting: list[int] = []
        self.deliveries = {qos: Delivery(Run.message(b"t", b"x", qos=qos), qos, False, ()) for qos in (1, 2)}

    @initialize(max_count=st.integers(1, 30), start=st.sampled_from([0, 100, COUNT - 7]))
    def begin(self, max_count: int, start: int) -> None:
        """Make a window; identifiers may be about to begin anew."""
        self.window = Window(max_count, 1000 * SIZE)
        self.window._next = start
        self.window._free = COUNT - start

    def counted(self) -> int:
        """Return how many places are taken on this connection."""
        return len(self.table) - len(self.waiting)

    @precondition(lambda self: not self.waiting)
    @rule(qos=st.sampled_from([1, 2]), wanted=st.integers(1, 9))
    def send(self, qos: int, wanted: int) -> None:
        """Send as many messages as there is room for."""
        room = self.window.room(SIZE)
        assert room == max(0, self.window.max_count - self.counted())
        while room > 0 and wanted > 0:
            index, count = self.window.take(min(room, wanted))
            assert 0 < count <= min(room, wanted)
            indexes = range(index, index + count)
            assert all(0 <= i < COUNT and i not in self.table for i in indexes)
            self.window.add(qos, index, count, 0, self.deliveries[qos], SIZE)
            self.table.update(dict.fromkeys(indexes, qos))
            self.order += indexes
            room -= count
            wanted -= count

    def due(self, qos: int) -> list[int]:
        """Return what may be acknowledged next, oldest first."""
        return self.released if qos == 3 else [i for i in self.order if self.table[i] == qos and i not in self.waiting]

    @rule(qos=st.sampled_from([1, 2, 3]), count=st.integers(1, 12), skip=st.integers(0, 2), behind=st.integers(0, 2))
    def acknowledge_in_order(self, qos: int, count: int, skip: int, behind: int) -> None:
        """A run of acknowledgements comes, perhaps not from the beginning, perhaps behind other packets."""
        due = list(self.due(qos))
        indexes = due[skip : skip + count]
        data = b"\xc0\x00" * behind + b"".join(FIRST[qos] + PACKET_ID[i] for i in indexes) + b"\x30\x02\x00\x00"
        limit = (len(data) - 2 * behind) >> 2
        if qos == 3:
            done = self.window.complete(PUBCOMPS, data, 2 * behind, limit)
        else:
            done = self.window.acknowledge(qos, PUBACKS if qos == 1 else PUBRECS, data, 2 * behind, limit)
        expected = 0
        while expected < len(indexes) and indexes[expected] == due[expected]:
            expected += 1
        assert done == expected
        for index in indexes[:done]:
            self.settle(qos, index)

    @precondition(lambda self: self.table)
    @rule(data=st.data(), refused=st.booleans())
    def acknowledge_one(self, data: st.DataObject, refused: bool) -> None:
        """One acknowledgement comes for any message; one of another kind than its own settles nothing."""
        index = data.draw(st.sampled_from(sorted(self.table)))
        for qos in (1, 2):
            if self.table.get(index) != qos:
                assert self.window.settle(qos, index) is False
        assert self.window.is_released(index) is (self.table[index] == 3)
        if self.table[index] == 3:
            assert self.window.complete_one(index) is True
            self.settle(3, index)
            return
        assert self.window.complete_one(index) is False
        qos = self.table[index]
        assert self.window.settle(qos, index) is True
        if qos == 2 and refused:
            self.window.give_back()
            self.forget(index)
            return
        if qos == 2:
            self.window.note_released(index, 1)
        self.settle(qos, index)

    def settle(self, qos: int, index: int) -> None:
        """Do to the table what an acknowledgement does."""
        if qos == 2:
            self.table[index] = 3
            self.order.remove(index)
            self.released.append(index)
            if index in self.waiting:
                self.waiting.remove(index)
        else:
            self.forget(index)

    def forget(self, index: int) -> None:
        """Free an identifier."""
        del self.table[index]
        for found in (self.order, self.released, self.waiting):
            if index in found:
                found.remove(index)

    @rule(max_count=st.integers(1, 30))
    def reconnect(self, max_count: int) -> None:
        """A new connection begins, perhaps with another window."""
        self.window.begin_again(max_count, 1000 * SIZE)
        self.waiting = list(self.order)
        assert self.window.bytes == 0

    @precondition(lambda self: self.waiting)
    @rule(most=st.integers(1, 5))
    def send_again(self, most: int) -> None:
        """What waits is sent again, oldest first, as far as there is room."""
        window = self.window
        room = window.room(SIZE)
        if room <= 0:
            return
        index, count, start, delivery, size, order = window.resend.popleft()
        count_now = min(most, room, count)
        if count_now < count:
            rest = (index + count_now, count - count_now, start + count_now, delivery, size, order)
            window.resend.appendleft(rest)
        window.add(delivery.qos, index, count_now, start, delivery, size, order)
        assert self.waiting[:count_now] == list(range(index, index + count_now))
        del self.waiting[:count_now]

    @invariant()
    def all_agree(self) -> None:
        """Places, bytes, orders and identifiers are those of the table."""
        if not hasattr(self, "window"):
            return
        window = self.window
        stretches = window.unacknowledged()
        assert [i for s in stretches for i in range(s[0], s[0] + s[1])] == self.order
        assert [i for s in window.resend for i in range(s[0], s[0] + s[1])] == self.waiting
        assert all(s[3].qos == self.table[s[0]] for s in stretches)
        assert sorted(i for first, count in window.released for i in range(first, first + count)) == sorted(
            self.released
        )
        assert window.count == self.counted()
        assert window.bytes == SIZE * len([i for i in self.order if i not in self.waiting])


WindowAgainstTable.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=50)
TestWindowAgainstTable = WindowAgainstTable.TestCase


def test_room_is_bounded_in_bytes() -> None:
    """As many messages as the bytes allow, and one that is larger when nothing is in flight."""
    window = Window(10, 100)
    delivery = Delivery(Run.message(b"t", b"x", qos=1), 1, False, ())
    assert [window.room(size) for size in (1, 10, 11, 33, 34, 100, 101, 1000)] == [10, 10, 9, 3, 2, 1, 1, 1]
    index, count = window.take(1)
    window.add(1, index, count, 0, delivery, 40)
    assert [window.room(size) for size in (1, 6, 7, 60, 61, 1000)] == [9, 9, 8, 1, 0, 0]
    assert window.acknowledge(1, PUBACKS, PUBACKS[index * 4 : index * 4 + 4], 0, 1) == 1

    assert (window.count, window.bytes, window.room(1000)) == (0, 0, 1)


def test_identifiers_are_found_between_used_ones() -> None:
    """Where identifiers have come round, the free ones between those in use are taken, the longest stretch at once."""
    window = Window(COUNT, 10**9)
    delivery = Delivery(Run.message(b"t", b"x", qos=2), 2, False, ())
    taken: list[int] = []
    while len(taken) < COUNT:
        index, count = window.take(COUNT)
        window.add(2, index, count, 0, delivery, 1)
        taken += range(index, index + count)
    assert sorted(taken) == list(range(COUNT))
    for index in (5, 6, 7, 100, 60_000):
        assert window.settle(2, index)
        window.give_back()
    for index in (200, 201):
        assert window.settle(2, index)
        window.note_released(index, 1)
    found = [window.take(COUNT) for _ in range(1)]
    window.add(2, found[0][0], found[0][1], 0, delivery, 1)
    while window.count < COUNT:
        index, count = window.take(COUNT)
        window.add(2, index, count, 0, delivery, 1)
        found.append((index, count))

    assert found == [(5, 3), (100, 1), (60_000, 1)]


def test_free_identifiers_at_both_ends() -> None:
    """Free identifiers at the end are not joined with those at the beginning, and neither are left out."""
    window = Window(COUNT, 10**9)
    delivery = Delivery(Run.message(b"t", b"x", qos=1), 1, False, ())
    index, count = window.take(COUNT)
    window.add(1, index, count, 0, delivery, 1)
    for free in (0, COUNT - 3, COUNT - 2, COUNT - 1):
        assert window.settle(1, free)
    found = []
    while window.count < COUNT:
        index, count = window.take(10)
        window.add(1, index, count, 0, delivery, 1)
        found.append((index, count))

    assert sorted(found) == [(0, 1), (COUNT - 3, 3)]
