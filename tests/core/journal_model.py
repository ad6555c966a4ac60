"""A journal that keeps what its records say must survive, to be held against what the broker has."""

from dataclasses import dataclass, field
from typing import Any

from broker.core.run import Delivery, Run
from broker.core.session import Session

__all__ = ["JournalModel"]


@dataclass
class Item:
    """A message that belongs to a client: queued (identifier 0) or in flight."""

    delivery: Delivery
    index: int
    packet_id: int = 0


@dataclass
class Stored:
    """What the records say of one session."""

    expiry_interval: int
    subscriptions: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    received: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)


class JournalModel:
    """Each record changes what is stored as whoever reads the journal would; a record that fits nothing fails."""

    def __init__(self) -> None:
        self.position = 1
        self.sessions: dict[str, Stored] = {}
        self.messages: dict[bytes, Run] = {}

    def session_saved(self, session: Session) -> None:
        """Keep the session."""
        stored = self.sessions.setdefault(session.client_id, Stored(session.expiry_interval))
        stored.expiry_interval = session.expiry_interval

    def session_removed(self, client_id: str) -> None:
        """Forget the session, which must be there."""
        del self.sessions[client_id]

    def subscription_saved(self, client_id: str, topic_filter: bytes, options: int, identifier: int) -> None:
        """Keep the subscription."""
        self.sessions[client_id].subscriptions[topic_filter] = (options, identifier)

    def subscription_removed(self, client_id: str, topic_filter: bytes) -> None:
        """Forget the subscription, which must be there."""
        del self.sessions[client_id].subscriptions[topic_filter]

    def queued(self, client_id: str, delivery: Delivery, start: int, stop: int) -> None:
        """Keep the messages."""
        assert 0 <= start < stop <= delivery.run.count
        self.sessions[client_id].items += [Item(delivery, index) for index in range(start, stop)]

    def discarded(self, client_id: str, delivery: Delivery, start: int, stop: int) -> None:
        """Forget queued messages."""
        for index in range(start, stop):
            item = self.find(client_id, delivery, index)
            assert item is not None
            self.sessions[client_id].items.remove(item)

    def find(self, client_id: str, delivery: Delivery, index: int) -> Item | None:
        """Return a queued message, or None."""
        for item in self.sessions[client_id].items:
            if item.delivery is delivery and item.index == index and not item.packet_id:
                return item
        return None

    def sent(self, client_id: str, delivery: Delivery, start: int, stop: int, packet_id: int) -> None:
        """Give the messages their identifiers, which nothing else may have."""
        stored = self.sessions[client_id]
        for offset, index in enumerate(range(start, stop)):
            assert packet_id + offset not in stored.released
            assert packet_id + offset not in {item.packet_id for item in stored.items}
            item = self.find(client_id, delivery, index)
            if item is None:
                item = Item(delivery, index)
                stored.items.append(item)
            item.packet_id = packet_id + offset

    def settled(self, client_id: str, qos: int, packet_id: int, count: int) -> None:
        """Forget messages in flight; those of QoS 2 keep their identifiers until they are completed."""
        stored = self.sessions[client_id]
        for one in range(packet_id, packet_id + count):
            (item,) = [item for item in stored.items if item.packet_id == one and item.delivery.qos == qos]
            stored.items.remove(item)
            if qos == 2:
                stored.released.add(one)

    def completed(self, client_id: str, packet_id: int, count: int) -> None:
        """Free the identifiers."""
        for one in range(packet_id, packet_id + count):
            self.sessions[client_id].released.remove(one)

    def received(self, client_id: str, packet_id: int, count: int) -> None:
        """Remember identifiers of the client's."""
        self.sessions[client_id].received.update(range(packet_id, packet_id + count))

    def released(self, client_id: str, packet_id: int, count: int) -> None:
        """Forget identifiers of the client's, which must be there."""
        for one in range(packet_id, packet_id + count):
            self.sessions[client_id].received.remove(one)

    def retained(self, topic: bytes, run: Run | None) -> None:
        """Keep the retained message, or forget the one that must be there."""
        if run is None:
            del self.messages[topic]
        else:
            self.messages[topic] = run

    # --- comparing ----------------------------------------------------------------------------------------------------

    def compare(self, router: Any) -> None:
        """Check that what is stored is what the broker has."""
        durable = {name: session for name, session in router.sessions.items() if session.durable}
        assert set(self.sessions) == set(durable)
        for name, session in durable.items():
            stored = self.sessions[name]
            assert stored.expiry_interval == session.expiry_interval
            assert stored.subscriptions == {f: (o.byte, o.identifier) for f, o in session.subscriptions.items()}
            assert stored.received == (session.received or set())
            queued = [(id(d), i) for d, start, stop in session.queue or () for i in range(start, stop)]
            assert [(id(item.delivery), item.index) for item in stored.items if not item.packet_id] == queued
            inflight = set()
            released = set()
            if session.window is not None:
                for index, count, start, delivery, _, _ in session.window.unacknowledged():
                    inflight |= {(index + 1 + i, id(delivery), start + i) for i in range(count)}
                released = {i + 1 for index, count in session.window.released for i in range(index, index + count)}
            assert {(i.packet_id, id(i.delivery), i.index) for i in stored.items if i.packet_id} == inflight
            assert stored.released == released
        assert {t: run.payload(0) for t, run in self.messages.items()} == {
            topic: router.retained.get(topic, router.wall).payload(0) for topic in self.messages
        }
        assert len(self.messages) == len(router.retained)
