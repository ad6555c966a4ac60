"""SUBSCRIBE and UNSUBSCRIBE from a client [5: section 3.8, 3.10]."""

from typing import TYPE_CHECKING

from broker.core.hooks import Decision, Pending, decide
from broker.core.subscriptions import Options
from broker.mqtt.errors import MalformedPacket, ProtocolViolation
from broker.mqtt.packets import SubAck, Subscribe, SubscriptionRequest, UnsubAck, Unsubscribe
from broker.mqtt.reason_codes import ReasonCode
from broker.mqtt.topics import filter_error, parse_shared
from broker.mqtt.wire import is_valid_utf8

if TYPE_CHECKING:
    from broker.core.connection import Connection
    from broker.core.session import Session

__all__ = ["receive_subscribe", "receive_unsubscribe"]

#: Set in the key of a remembered decision, so that it is not taken for one about publishing.
_SUBSCRIBE = 0x100


def receive_subscribe(connection: "Connection", data: bytes, body: int, end: int, first: int) -> None:
    """Handle SUBSCRIBE: one reason code per filter, and the retained messages behind the SUBACK [5:MQTT-3.8.4-1]."""
    packet = Subscribe.decode(data, body, end, connection.version)
    for request in packet.requests:
        if not is_valid_utf8(request.topic_filter):
            raise MalformedPacket("a topic filter is not valid UTF-8")
    _decide(connection, packet)


def _decide(connection: "Connection", packet: Subscribe) -> None:
    """Ask plugins about every filter; go on when the last has been answered."""
    hooks = connection.router.hooks
    session = connection.its_session
    if hooks.authorize_subscribe:
        for request in packet.requests:
            key = (request.topic_filter, _SUBSCRIBE | request.qos)
            if key in connection.decisions:
                continue
            answers = [hook(session, request.topic_filter, request.qos) for hook in hooks.authorize_subscribe]
            verdict = decide(answers, hooks.default_authorize)
            if isinstance(verdict, Pending):

                def decided(answer: Decision, key: tuple[bytes, int] = key) -> None:
                    connection.decisions[key] = answer
                    _decide(connection, packet)

                connection.suspend(verdict, decided)
                return
            connection.decisions[key] = verdict
    _subscribe(connection, session, packet)


def _subscribe(connection: "Connection", session: "Session", packet: Subscribe) -> None:
    router = connection.router
    identifier = packet.properties.get("subscription_identifier", [0])[0]
    reasons: list[int] = []
    granted: list[tuple[bytes, Options, bool]] = []
    for request in packet.requests:
        reason = _refusal(connection, session, request)
        if reason is not None:
            reasons.append(reason)
            continue
        options = router.subscriptions().options(request.options, identifier)
        is_new = router.subscribe(session, request.topic_filter, options)
        reasons.append(request.qos)
        granted.append((request.topic_filter, options, is_new))
        router.observer.subscribed(session, request.topic_filter, request.qos)
    answer = SubAck(packet_id=packet.packet_id, reasons=reasons).encode(connection.version)
    if router.journal is not None and session.durable:
        connection.send_after_commit(answer)
    else:
        connection.acknowledge(answer)
    for topic_filter, options, is_new in granted:
        # Retain handling: 0 always, 1 only for a new subscription, 2 never; never for a shared one [5:MQTT-3.3.1-9].
        wanted = options.retain_handling == 0 or (options.retain_handling == 1 and is_new)
        if wanted and not topic_filter.startswith(b"$share/"):
            router.replay(session, topic_filter, options)


def _refusal(connection: "Connection", session: "Session", request: SubscriptionRequest) -> ReasonCode | None:
    """Return why a subscription cannot be made, or None where it can."""
    topic_filter = request.topic_filter
    limits = connection.limits
    try:
        shared = parse_shared(topic_filter)
    except ValueError:
        return ReasonCode.TOPIC_FILTER_INVALID
    plain = topic_filter if shared is None else shared.topic_filter
    if filter_error(plain) is not None:
        return ReasonCode.TOPIC_FILTER_INVALID
    if len(topic_filter) > limits.max_topic_length or plain.count(b"/") >= limits.max_topic_levels:
        return ReasonCode.TOPIC_FILTER_INVALID
    if shared is not None and request.options & 4:
        raise ProtocolViolation("a shared subscription has No Local set")
    if len(session.subscriptions) >= limits.max_subscriptions and topic_filter not in session.subscriptions:
        return ReasonCode.QUOTA_EXCEEDED
    if connection.decisions.get((topic_filter, _SUBSCRIBE | request.qos)) is Decision.DENY:
        connection.router.observer.denied(session, "subscribe to", topic_filter)
        return ReasonCode.NOT_AUTHORIZED
    return None


def receive_unsubscribe(connection: "Connection", data: bytes, body: int, end: int, first: int) -> None:
    """Handle UNSUBSCRIBE: a reason code per filter in MQTT 5, one UNSUBACK in all [5:MQTT-3.10.4-4]."""
    packet = Unsubscribe.decode(data, body, end, connection.version)
    router, session = connection.router, connection.its_session
    reasons = []
    for topic_filter in packet.topic_filters:
        if not is_valid_utf8(topic_filter):
            raise MalformedPacket("a topic filter is not valid UTF-8")
        if router.unsubscribe(session, topic_filter):
            reasons.append(ReasonCode.SUCCESS)
            router.observer.unsubscribed(session, topic_filter)
        elif filter_error(topic_filter) is not None:
            reasons.append(ReasonCode.TOPIC_FILTER_INVALID)
        else:
            reasons.append(ReasonCode.NO_SUBSCRIPTION_EXISTED)
    answer = UnsubAck(packet_id=packet.packet_id, reasons=reasons).encode(connection.version)
    if router.journal is not None and session.durable:
        connection.send_after_commit(answer)
    else:
        connection.acknowledge(answer)
