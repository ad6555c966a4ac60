"""Sending retained messages to a new subscription, no faster than the client reads them."""

from collections import deque
from typing import TYPE_CHECKING, Final

from broker.core.run import Delivery

if TYPE_CHECKING:
    from broker.core.session import Session
    from broker.core.subscriptions import Options

__all__ = ["Replay"]

#: Messages sent before other clients get their turn.
_SLICE: Final = 500
_SLICE_BYTES: Final = 64 * 1024
#: No more is sent while the client has this many bytes unread.
_UNSENT: Final = 256 * 1024
#: Seconds until a client that has that much unread is looked at again.
_LOOK_AGAIN: Final = 0.01


class Replay:
    """The retained messages that a session still has to get; each is looked up when it goes, so never out of date."""

    __slots__ = ("_session", "_waiting")

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._waiting: deque[tuple[deque[bytes], Options]] = deque()

    def add(self, topics: deque[bytes], options: "Options") -> None:
        """Send the retained messages of *topics* for a subscription with *options*, after those that wait already."""
        self._waiting.append((topics, options))

    def step(self) -> bool:
        """Send some more; tell whether more can go in the next turn."""
        session = self._session
        connection = session.connection
        if connection is None:
            return False
        if connection.wire.unsent() > _UNSENT:
            router = session.router
            router.deadlines.at(router.now + _LOOK_AGAIN, lambda: router.go_on_replaying(session))
            return False
        self._send(_SLICE, _SLICE_BYTES)
        return bool(self._waiting)

    def finish(self) -> None:
        """Queue what is left for a durable session whose client has gone; QoS 0 messages are lost with it."""
        if self._session.durable:
            self._send(sum(len(topics) + 1 for topics, _ in self._waiting), None)
        self._waiting.clear()
        self._session.replay = None

    def _send(self, most: int, most_bytes: int | None) -> None:
        session = self._session
        router = session.router
        while self._waiting and most > 0 and (most_bytes is None or most_bytes > 0):
            topics, options = self._waiting[0]
            if not topics:
                self._waiting.popleft()
                continue
            most -= 1
            run = router.retained.get(topics.popleft(), router.wall)
            if run is None or not router.may_receive(session, run.topic):
                continue
            if run.expiry is not None:
                run = router.aged(run)
            identifiers = (options.identifier,) if options.identifier and session.v5 else ()
            session.offer(Delivery(run, min(run.qos, options.qos), True, identifiers))
            run.forget_encodings()
            if most_bytes is not None:
                most_bytes -= run.size
        if self._waiting and not self._waiting[0][0]:
            self._waiting.popleft()
        if not self._waiting:
            session.replay = None
