"""Retained messages: the last one of each topic [5: section 3.3.1.3]."""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from broker.mqtt.topics import is_wildcard

if TYPE_CHECKING:
    from broker.core.run import Run

__all__ = ["RetainedStore"]

#: Key in the tree under which a node names its own topic: no level of a topic name can be "#".
_TOPIC = b"#"


class RetainedStore:
    """Topic → message, bounded in count and bytes, with a tree of levels for wildcards."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._messages: dict[bytes, Run] = {}
        self._tree: dict[bytes, Any] = {}
        self._expiring: list[tuple[float, bytes]] = []
        self._max_count = max_count
        self._max_bytes = max_bytes
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def refusal(self, topic: bytes, run: "Run") -> str | None:
        """Say why a message like those of *run* cannot be retained for *topic*, or return None where it can."""
        old = self._messages.get(topic)
        if old is None and len(self._messages) >= self._max_count:
            return f"{self._max_count} messages are retained already (router.max_retained_count)"
        if self.bytes + run.size - (old.size if old is not None else 0) > self._max_bytes:
            return f"{self._max_bytes} bytes are retained already (router.max_retained_bytes)"
        return None

    def get(self, topic: bytes, wall: float) -> "Run | None":
        """Return the retained message of *topic*, or None where there is none that has not expired."""
        run = self._messages.get(topic)
        if run is not None and run.expiry is not None and run.wall + run.expiry <= wall:
            self.remove(topic)
            return None
        return run

    def set(self, topic: bytes, run: "Run") -> None:
        """Make the only message of *run* the retained message of *topic* [5:MQTT-3.3.1-5]."""
        old = self._messages.get(topic)
        if old is None:
            node = self._tree
            for level in topic.split(b"/"):
                child = node.get(level)
                if child is None:
                    child = node[level] = {}
                node = child
            node[_TOPIC] = topic
        else:
            self.bytes -= old.size
        self._messages[topic] = run
        self.bytes += run.size
        expires_at = run.expires_at()
        if expires_at is not None:
            heappush(self._expiring, (expires_at, topic))

    def remove(self, topic: bytes) -> bool:
        """Forget the retained message of *topic*; tell whether there was one [5:MQTT-3.3.1-6]."""
        run = self._messages.pop(topic, None)
        if run is None:
            return False
        self.bytes -= run.size
        levels = topic.split(b"/")
        path = [self._tree]
        for level in levels:
            path.append(path[-1][level])
        del path[-1][_TOPIC]
        for depth in range(len(levels), 0, -1):
            if path[depth]:
                break
            del path[depth - 1][levels[depth - 1]]
        return True

    def next_expiry(self) -> float | None:
        """Return the wall time at which `sweep` has something to do, or None."""
        return self._expiring[0][0] if self._expiring else None

    def sweep(self, wall: float) -> None:
        """Forget every message that has expired at *wall*."""
        while self._expiring and self._expiring[0][0] <= wall:
            self.get(heappop(self._expiring)[1], wall)

    def topics(self, topic_filter: bytes) -> Iterator[bytes]:
        """Yield the topics of retained messages that *topic_filter* matches, expired ones included."""
        if not is_wildcard(topic_filter):
            if topic_filter in self._messages:
                yield topic_filter
            return
        if topic_filter == b"#":
            yield from [topic for topic in self._messages if topic[:1] != b"$"]
            return
        wanted = topic_filter.split(b"/")
        pending: list[tuple[dict[bytes, Any], int]] = [(self._tree, 0)]
        while pending:
            node, depth = pending.pop()
            if depth == len(wanted):
                if _TOPIC in node:
                    yield node[_TOPIC]
                continue
            level = wanted[depth]
            if level == b"#":
                yield from _all_below(node)
            elif level == b"+":
                pending.extend(
                    (child, depth + 1)
                    for name, child in node.items()
                    if name != _TOPIC and not (depth == 0 and name[:1] == b"$")
                )
            elif level in node:
                pending.append((node[level], depth + 1))


def _all_below(node: dict[bytes, Any]) -> Iterator[bytes]:
    pending = [node]
    while pending:
        node = pending.pop()
        for level, child in node.items():
            if level == _TOPIC:
                yield child
            else:
                pending.append(child)
