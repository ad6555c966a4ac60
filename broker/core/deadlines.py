"""One heap for everything that happens later; nothing here reads a clock."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

__all__ = ["Deadline", "Deadlines"]


class Deadline:
    """Something that is due at a time; `cancel` takes it back."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Callable[[], None]) -> None:
        self.when = when
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Never run the action; harmless when it has run."""
        self.action = None


class Deadlines:
    """A heap of deadlines; a cancelled one stays until it would be due, or until more than half are dead."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Deadline]] = []
        self._order = count()
        self._sweep_at = 1024
        #: Set when the earliest deadline may have changed; whoever sleeps until `next` clears it.
        self.changed = False

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when: float, action: Callable[[], None]) -> Deadline:
        """Run *action* once `run` is called with a time of *when* or later."""
        deadline = Deadline(when, action)
        if not self._heap or when < self._heap[0][0]:
            self.changed = True
        heappush(self._heap, (when, next(self._order), deadline))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].action is not None]
            heapify(self._heap)
            self._sweep_at = max(1024, 2 * len(self._heap))
        return deadline

    def next(self) -> float | None:
        """Return when the next action is due, or None when there is none."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heappop(heap)
        return heap[0][0] if heap else None

    def run(self, now: float) -> None:
        """Run every action that is due at *now*, oldest first."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            deadline = heappop(heap)[2]
            action, deadline.action = deadline.action, None
            if action is not None:
                action()
                heap = self._heap
