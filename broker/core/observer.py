"""What happens, told to one observer; the log, the metrics and status plugins implement it.

Methods are called for events of clients, never for single messages. An observer must not raise.
"""

from typing import TYPE_CHECKING

from broker.mqtt.reason_codes import ReasonCode

if TYPE_CHECKING:
    from broker.core.connection import Connection
    from broker.core.session import Session

__all__ = ["Observer", "Observers"]


class Observer:
    """Hears of everything and does nothing; override what is of interest."""

    def connected(self, connection: "Connection", session_present: bool) -> None:
        """A client has got its CONNACK."""

    def refused(self, connection: "Connection", reason: ReasonCode, message: str) -> None:
        """A connection ended before its CONNACK, or with one that says no."""

    def disconnected(self, connection: "Connection", reason: ReasonCode, message: str, by_client: bool) -> None:
        """A client that had its CONNACK is gone; *by_client* tells whether it said so itself."""

    def taken_over(self, old: "Connection", new: "Connection") -> None:
        """A client connected again while it was connected [5:MQTT-3.1.4-3]; `disconnected` follows for *old*."""

    def session_ended(self, session: "Session", expired: bool) -> None:
        """A session and all it held is gone."""

    def subscribed(self, session: "Session", topic_filter: bytes, qos: int) -> None:
        """A subscription was made or changed, with the QoS granted."""

    def unsubscribed(self, session: "Session", topic_filter: bytes) -> None:
        """A subscription was removed."""

    def denied(self, session: "Session", action: str, topic: bytes) -> None:
        """A plugin refused to let a client publish to a topic or subscribe to a filter."""

    def dropping(self, session: "Session", why: str) -> None:
        """Messages for a client begin to be lost; said once until `dropped` closes the episode."""

    def dropped(self, session: "Session", why: str, count: int) -> None:
        """An episode of losses is over, after *count* messages."""

    def retained_refused(self, topic: bytes, why: str) -> None:
        """A message could not be retained."""


class Observers(Observer):
    """Passes every event on to several observers, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        """Tell *observer* too from now on."""
        self._observers.append(observer)

    def connected(self, connection: "Connection", session_present: bool) -> None:
        for observer in self._observers:
            observer.connected(connection, session_present)

    def refused(self, connection: "Connection", reason: ReasonCode, message: str) -> None:
        for observer in self._observers:
            observer.refused(connection, reason, message)

    def disconnected(self, connection: "Connection", reason: ReasonCode, message: str, by_client: bool) -> None:
        for observer in self._observers:
            observer.disconnected(connection, reason, message, by_client)

    def taken_over(self, old: "Connection", new: "Connection") -> None:
        for observer in self._observers:
            observer.taken_over(old, new)

    def session_ended(self, session: "Session", expired: bool) -> None:
        for observer in self._observers:
            observer.session_ended(session, expired)

    def subscribed(self, session: "Session", topic_filter: bytes, qos: int) -> None:
        for observer in self._observers:
            observer.subscribed(session, topic_filter, qos)

    def unsubscribed(self, session: "Session", topic_filter: bytes) -> None:
        for observer in self._observers:
            observer.unsubscribed(session, topic_filter)

    def denied(self, session: "Session", action: str, topic: bytes) -> None:
        for observer in self._observers:
            observer.denied(session, action, topic)

    def dropping(self, session: "Session", why: str) -> None:
        for observer in self._observers:
            observer.dropping(session, why)

    def dropped(self, session: "Session", why: str, count: int) -> None:
        for observer in self._observers:
            observer.dropped(session, why, count)

    def retained_refused(self, topic: bytes, why: str) -> None:
        for observer in self._observers:
            observer.retained_refused(topic, why)
