"""Topic filters and who subscribed to them: exact filters in a dictionary, wildcards in a trie."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from broker.core.shared import SharedGroup
from broker.mqtt.topics import is_wildcard

if TYPE_CHECKING:
    from broker.core.session import Session

__all__ = ["Bucket", "Options", "SubscriptionIndex"]


#: Different options that are remembered.
_MAX_OPTIONS = 4096


class Options:
    """The options of a subscription [5: section 3.8.3.1]; shared among subscriptions, so never changed."""

    __slots__ = ("byte", "identifier", "no_local", "qos", "retain_as_published", "retain_handling")

    def __init__(self, byte: int, identifier: int) -> None:
        self.byte = byte
        self.identifier = identifier
        self.qos = byte & 3
        self.no_local = bool(byte & 4)
        self.retain_as_published = bool(byte & 8)
        self.retain_handling = byte >> 4 & 3


class Bucket:
    """Everybody who subscribed to one topic filter."""

    __slots__ = ("shared", "subscribers")

    def __init__(self) -> None:
        self.subscribers: dict[Session, Options] = {}
        #: Share name → group, for `$share/NAME/` before this filter.
        self.shared: dict[bytes, SharedGroup] | None = None

    def is_empty(self) -> bool:
        """Tell whether nobody is left."""
        return not self.subscribers and not self.shared


class _Node:
    """One level of the trie: *here* for filters that end here, *below* for those that end here with `/#`."""

    __slots__ = ("below", "children", "here")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.here: Bucket | None = None
        self.below: Bucket | None = None

    def is_empty(self) -> bool:
        return not self.children and self.here is None and self.below is None


class SubscriptionIndex:
    """Finds the buckets of the filters that match a topic; a lookup costs by the topic's levels, not by filters."""

    def __init__(self) -> None:
        self._exact: dict[bytes, Bucket] = {}
        self._root = _Node()
        self._options: dict[tuple[int, int], Options] = {}

    def options(self, byte: int, identifier: int = 0) -> Options:
        """Return what an options byte and a subscription identifier (0 for none) stand for.

        Equal ones are mostly one object: a hundred thousand subscriptions have a handful of options.
        """
        options = self._options.get((byte, identifier))
        if options is None:
            if len(self._options) >= _MAX_OPTIONS:
                self._options.clear()
            options = self._options[(byte, identifier)] = Options(byte, identifier)
        return options

    def bucket(self, topic_filter: bytes) -> Bucket:
        """Return the bucket of *topic_filter*, made where there was none."""
        if not is_wildcard(topic_filter):
            found = self._exact.get(topic_filter)
            if found is None:
                found = self._exact[topic_filter] = Bucket()
            return found
        node, is_below = self._walk(topic_filter)
        if is_below:
            if node.below is None:
                node.below = Bucket()
            return node.below
        if node.here is None:
            node.here = Bucket()
        return node.here

    def _walk(self, topic_filter: bytes) -> tuple[_Node, bool]:
        levels = topic_filter.split(b"/")
        is_below = levels[-1] == b"#"
        if is_below:
            levels.pop()
        node = self._root
        for level in levels:
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        return node, is_below

    def find(self, topic_filter: bytes) -> Bucket | None:
        """Return the bucket of *topic_filter*, or None."""
        if not is_wildcard(topic_filter):
            return self._exact.get(topic_filter)
        node: _Node | None = self._root
        levels = topic_filter.split(b"/")
        is_below = levels[-1] == b"#"
        for level in levels[:-1] if is_below else levels:
            node = node.children.get(level) if node is not None else None
        if node is None:
            return None
        return node.below if is_below else node.here

    def discard_if_empty(self, topic_filter: bytes) -> bool:
        """Remove the bucket of *topic_filter* where nobody is left in it; tell whether it is gone."""
        if not is_wildcard(topic_filter):
            bucket = self._exact.get(topic_filter)
            if bucket is not None and bucket.is_empty():
                del self._exact[topic_filter]
                return True
            return bucket is None
        levels = topic_filter.split(b"/")
        is_below = levels[-1] == b"#"
        path = [self._root]
        for level in levels[:-1] if is_below else levels:
            child = path[-1].children.get(level)
            if child is None:
                return True
            path.append(child)
        node = path[-1]
        bucket = node.below if is_below else node.here
        if bucket is not None and not bucket.is_empty():
            return False
        if is_below:
            node.below = None
        else:
            node.here = None
        for depth in range(len(path) - 1, 0, -1):
            if not path[depth].is_empty():
                break
            del path[depth - 1].children[levels[depth - 1]]
        return True

    def match(self, topic: bytes) -> list[Bucket]:
        """Return the buckets of all filters that match *topic* [5: section 4.7]."""
        found = []
        exact = self._exact.get(topic)
        if exact is not None:
            found.append(exact)
        root = self._root
        if not root.children and root.below is None:
            return found
        nodes = [root]
        # A leading wildcard does not match a topic that starts with $ [5:MQTT-4.7.2-1].
        hidden = topic[:1] == b"$"
        for level in topic.split(b"/"):
            following = []
            for node in nodes:
                if node.below is not None and not hidden:
                    found.append(node.below)
                children = node.children
                child = children.get(level)
                if child is not None:
                    following.append(child)
                if not hidden:
                    child = children.get(b"+")
                    if child is not None:
                        following.append(child)
            nodes = following
            hidden = False
            if not nodes:
                return found
        for node in nodes:
            if node.here is not None:
                found.append(node.here)
            if node.below is not None:
                found.append(node.below)
        return found

    def filters(self) -> Iterator[tuple[bytes, Bucket]]:
        """Yield every filter with its bucket."""
        yield from self._exact.items()
        pending: list[tuple[tuple[bytes, ...], _Node]] = [((), self._root)]
        while pending:
            levels, node = pending.pop()
            if node.here is not None:
                yield b"/".join(levels), node.here
            if node.below is not None:
                yield b"/".join((*levels, b"#")), node.below
            pending.extend(((*levels, level), child) for level, child in node.children.items())
