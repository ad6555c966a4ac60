"""The log: one line for every event that a person may ask about, with the remedy where there is one."""

import logging
import sys
from collections import deque
from collections.abc import Callable

from broker.core.connection import Connection
from broker.core.observer import Observer
from broker.core.session import Session
from broker.mqtt.packets import Version
from broker.mqtt.reason_codes import ReasonCode

__all__ = ["LogObserver", "set_up_logging"]

_log = logging.getLogger("broker")

#: Take-overs of one client identifier within so many seconds that mean two clients fight for it.
_TAKEOVERS = 5
_TAKEOVER_SECONDS = 10.0
_MAX_WATCHED = 1000

_REMEDIES = {
    ReasonCode.SESSION_TAKEN_OVER: "give each client an identifier of its own",
    ReasonCode.KEEP_ALIVE_TIMEOUT: "check the network, or raise the client's keep-alive",
    ReasonCode.PACKET_TOO_LARGE: "raise connections.max_payload_size of the listener",
    ReasonCode.RECEIVE_MAXIMUM_EXCEEDED: "raise connections.max_inflight_count, or let the client honour it",
    ReasonCode.BAD_USER_NAME_OR_PASSWORD: "check user name and password",
    ReasonCode.NOT_AUTHORIZED: "let the client log in, or allow what it does",
    ReasonCode.BAD_AUTHENTICATION_METHOD: "let the client connect without an authentication method",
    ReasonCode.SERVER_BUSY: "raise router.max_connections",
    ReasonCode.QUOTA_EXCEEDED: "let the client read faster, or subscribe to less",
}


def set_up_logging(level: int) -> None:
    """Write the log to standard error, one line an event, from *level* up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    _log.handlers[:] = [handler]
    _log.setLevel(level)
    _log.propagate = False


class LogObserver(Observer):
    """Writes events to the log `broker`."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """*monotonic* tells seconds; only take-overs are timed."""
        self._monotonic = monotonic
        self._said: set[str] = set()
        self._takeovers: dict[str, deque[float]] = {}

    def _once(self, key: str, message: str, *args: object) -> None:
        if key not in self._said:
            self._said.add(key)
            _log.info(message, *args)

    def connected(self, connection: Connection, session_present: bool) -> None:
        _log.info(
            "connected: %s%s",
            _who(connection),
            ", goes on with its session" if session_present else "",
        )
        if connection.v5 and connection.listener.startswith("ws"):
            self._once("v5", "by the way: rumqttd does not serve MQTT 5 over WebSocket; this broker does")
        if not connection.keep_alive:
            self._once("keep-alive", "by the way: rumqttd refuses clients with keep-alive 0; this broker does not")
        if connection.version is Version.V31:
            self._once("v31", "by the way: rumqttd does not serve MQTT 3.1; this broker does")

    def refused(self, connection: Connection, reason: ReasonCode, message: str) -> None:
        _log.warning("refused (%s): %s: %s%s", reason.text, _who(connection), message, _remedy(reason))

    def disconnected(self, connection: Connection, reason: ReasonCode, message: str, by_client: bool) -> None:
        normal = by_client and reason is ReasonCode.SUCCESS
        _log.log(
            logging.INFO if by_client or reason in (0x80, 0x8B, 0x8E) else logging.WARNING,
            "disconnected (%s): %s: %s%s",
            "normal disconnection" if normal else reason.text,
            _who(connection),
            message,
            "" if by_client else _remedy(reason),
        )

    def taken_over(self, old: Connection, new: Connection) -> None:
        now = self._monotonic()
        if len(self._takeovers) > _MAX_WATCHED:
            self._takeovers = {key: times for key, times in self._takeovers.items() if now - times[-1] < 60}
        times = self._takeovers.setdefault(new.client_id, deque(maxlen=_TAKEOVERS))
        times.append(now)
        if len(times) == _TAKEOVERS and now - times[0] < _TAKEOVER_SECONDS:
            times.clear()
            times.append(now)
            _log.warning(
                "client %r has been taken over %d times within %g s, last from %s by %s: "
                "two clients use one identifier; give each its own",
                new.client_id,
                _TAKEOVERS,
                _TAKEOVER_SECONDS,
                old.wire.peer,
                new.wire.peer,
            )

    def session_ended(self, session: Session, expired: bool) -> None:
        if expired:
            _log.info("session of client %r has expired", session.client_id)

    def subscribed(self, session: Session, topic_filter: bytes, qos: int) -> None:
        _log.debug("client %r subscribed to %r with QoS %d", session.client_id, _text(topic_filter), qos)

    def unsubscribed(self, session: Session, topic_filter: bytes) -> None:
        _log.debug("client %r unsubscribed from %r", session.client_id, _text(topic_filter))

    def denied(self, session: Session, action: str, topic: bytes) -> None:
        _log.warning("client %r (user %r) may not %s %r", session.client_id, session.user_name, action, _text(topic))

    def dropping(self, session: Session, why: str) -> None:
        _log.warning("messages for client %r are being dropped: %s", session.client_id, why)

    def dropped(self, session: Session, why: str, count: int) -> None:
        _log.warning("%d messages for client %r were dropped: %s", count, session.client_id, why)

    def retained_refused(self, topic: bytes, why: str) -> None:
        _log.warning("the message to %r was not retained: %s", _text(topic), why)


def _text(topic: bytes) -> str:
    return topic.decode("utf-8", "backslashreplace")


def _remedy(reason: ReasonCode) -> str:
    remedy = _REMEDIES.get(reason)
    return f" -> {remedy}" if remedy is not None else ""


def _who(connection: Connection) -> str:
    client = f"client {connection.client_id!r}" if connection.client_id else "a client without CONNECT"
    user = f" (user {connection.user_name!r})" if connection.user_name is not None else ""
    return f"{client}{user} from {connection.wire.peer} on {connection.listener}, MQTT {connection.version.text}"
