"""PUBLISH from a client: the hot path.

Packets that follow one another with the same flags, length, topic and properties are taken as one run. Packet
identifiers are read, checked and acknowledged column-wise against tables of all of them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.core.hooks import Decision, Pending, decide
from broker.core.run import Run
from broker.core.tables import HIGH, LOW, PUBACKS, PUBRECS
from broker.mqtt.errors import MalformedPacket, MqttError, ProtocolViolation
from broker.mqtt.packets import Ack, PacketType
from broker.mqtt.properties import Context, Properties, decode_properties, encode_property_list
from broker.mqtt.reason_codes import ReasonCode
from broker.mqtt.topics import topic_error
from broker.mqtt.wire import decode_varint, is_valid_utf8

if TYPE_CHECKING:
    from broker.core.connection import Connection
    from broker.core.session import Session

__all__ = ["receive"]


def receive(connection: "Connection", data: bytes, n: int, pos: int, body: int, end: int) -> tuple[int, int]:
    """Handle the PUBLISH at *pos* and all that belong to its run; return the position after them and what it cost.

    Costs are deliveries. Returns *pos* itself where a plugin has to be waited for.
    """
    first = data[pos]
    qos = first >> 1 & 3
    if qos == 3 or (first & 8 and not qos):
        raise MalformedPacket("a PUBLISH has QoS 3, or DUP at QoS 0")
    if end - body < 2:
        raise MalformedPacket("a PUBLISH is cut off before its topic name")
    topic_end = body + 2 + (data[body] << 8 | data[body + 1])
    after_id = topic_end + 2 if qos else topic_end
    if after_id > end:
        raise MalformedPacket("a PUBLISH is cut off in its topic name or packet identifier")
    payload = after_id
    if connection.v5:
        payload = _after_properties(data, after_id, end)
    size = end - pos
    stop = _run_end(data, n, pos, end, topic_end if qos else payload, after_id, payload if qos else 0)
    topic = data[body + 2 : topic_end]
    properties = None
    if payload - after_id > 1:
        properties, _ = decode_properties(data, after_id, end, Context.PUBLISH)
        topic = _check_properties(connection, topic, properties)
    route = connection.router.known_route(topic)
    if route is None:
        _check_topic(connection, topic)
        route = connection.router.route(topic)
    run = _make_run(connection, data[pos:stop], size, topic, first, topic_end - pos, payload - pos, properties)
    if connection.router.hooks.authorize_publish:
        decision = _authorize(connection, topic, first & 7)
        if isinstance(decision, Pending):
            return pos, 0
        if decision is Decision.DENY:
            _refuse(connection, run, ReasonCode.NOT_AUTHORIZED)
            return stop, 1
    router = connection.router
    router.stats.published += run.count
    router.stats.published_bytes += stop - pos
    if qos == 2:
        _receive_qos2(connection, run)
    elif run.retain and not _retained(connection, run, run):
        return stop, 1
    else:
        router.publish(run)
        if qos:
            _acknowledge(connection, run)
    return stop, route.weight


def _after_properties(data: bytes, pos: int, end: int) -> int:
    """Return where the payload begins behind the properties at *pos*."""
    if pos < end and not data[pos]:
        return pos + 1
    length, pos = decode_varint(data, pos, end)
    if pos + length > end:
        raise MalformedPacket("the properties of a PUBLISH are longer than the packet")
    return pos + length


def _run_end(data: bytes, n: int, pos: int, end: int, prefix_end: int, after_id: int, properties_end: int) -> int:
    """Return where the packets end that begin like the one from *pos* to *end*.

    At QoS 1 and 2 the properties behind the packet identifier must be the same too, where there are any.
    """
    size = end - pos
    last = n - size
    if end > last:
        return end
    starts = data.startswith
    prefix = data[pos:prefix_end]
    if not starts(prefix, end):
        return end
    stop = end
    if properties_end > after_id:
        properties = data[after_id:properties_end]
        offset = after_id - pos
        while stop <= last and starts(prefix, stop) and starts(properties, stop + offset):
            stop += size
        return stop
    while stop <= last and starts(prefix, stop):
        stop += size
    return stop


def _check_topic(connection: "Connection", topic: bytes) -> None:
    if not topic and connection.v5:
        raise ProtocolViolation("a PUBLISH has neither a topic name nor a topic alias")
    error = topic_error(topic)
    if error is not None and not is_valid_utf8(topic):
        raise MalformedPacket(error)
    limits = connection.limits
    if error is None and len(topic) > limits.max_topic_length:
        error = f"the topic name has {len(topic)} bytes, more than max_topic_length ({limits.max_topic_length})"
    if error is None and topic.count(b"/") >= limits.max_topic_levels:
        error = f"the topic name has more levels than max_topic_levels ({limits.max_topic_levels})"
    if error is not None:
        raise MqttError(ReasonCode.TOPIC_NAME_INVALID, error)


def _check_properties(connection: "Connection", topic: bytes, properties: Properties) -> bytes:
    """Return the topic that a PUBLISH of MQTT 5 is for, its alias resolved [5: section 3.3.2.3.4]."""
    if "subscription_identifier" in properties:
        raise ProtocolViolation("a client's PUBLISH has a subscription identifier")
    response_topic = properties.get("response_topic")
    if response_topic is not None and ("+" in response_topic or "#" in response_topic):
        raise ProtocolViolation("the response topic contains a wildcard")
    alias = properties.get("topic_alias")
    if alias is None:
        return topic
    if not 0 < alias <= connection.limits.topic_alias_maximum:
        raise MqttError(
            ReasonCode.TOPIC_ALIAS_INVALID,
            f"topic alias {alias} is not from 1 to the maximum of {connection.limits.topic_alias_maximum}",
        )
    if connection.aliases_in is None:
        connection.aliases_in = {}
    if not topic:
        known = connection.aliases_in.get(alias)
        if known is None:
            raise ProtocolViolation(f"topic alias {alias} has not been set up")
        return known
    if connection.aliases_in.get(alias) != topic:
        _check_topic(connection, topic)
        connection.aliases_in[alias] = topic
    return topic


def _authorize(connection: "Connection", topic: bytes, flags: int) -> Decision | Pending[Decision]:
    """Ask the plugins, once per topic and flags; suspend the connection where one answers later."""
    decision = connection.decisions.get((topic, flags))
    if decision is not None:
        return decision
    session = connection.its_session
    hooks = connection.router.hooks
    answers = [hook(session, topic, flags >> 1 & 3, bool(flags & 1)) for hook in hooks.authorize_publish]
    verdict = decide(answers, hooks.default_authorize)
    if isinstance(verdict, Pending):

        def decided(answer: Decision) -> None:
            connection.decisions[(topic, flags)] = answer

        connection.suspend(verdict, decided)
        return verdict
    if len(connection.decisions) > 10_000:
        connection.decisions.clear()
    connection.decisions[(topic, flags)] = verdict
    return verdict


def _refuse(connection: "Connection", run: Run, reason: ReasonCode) -> None:
    """Answer each message of a run with *reason*; MQTT 3.x is told nothing, or cut off [5: section 3.4.2.1]."""
    session = connection.its_session
    if reason is ReasonCode.NOT_AUTHORIZED:
        connection.router.observer.denied(session, "publish to", run.topic)
    connection.router.stats.dropped += run.count
    if not run.qos and reason is not ReasonCode.NOT_AUTHORIZED:
        return
    if not connection.v5 and (connection.limits.disconnect_denied_publisher or reason is ReasonCode.QUOTA_EXCEEDED):
        raise MqttError(reason, f"the message to {run.topic.decode()!r} is refused: {reason.text}")
    if not run.qos:
        return
    kind = PacketType.PUBACK if run.qos == 1 else PacketType.PUBREC
    high, low, _ = _columns(run)
    for packet_id in _identifiers(high, low):
        if run.qos == 2 and not connection.v5:
            _note_received(session, packet_id)
        connection.acknowledge(Ack(packet_id=packet_id, reason=reason).encode(kind, connection.version))


def _note_received(session: "Session", packet_id: int) -> None:
    if session.received is None:
        session.received = set()
    session.received.add(packet_id)


def _make_run(
    connection: "Connection",
    data: bytes,
    size: int,
    topic: bytes,
    first: int,
    id_at: int,
    payload_at: int,
    properties: Properties | None,
) -> Run:
    """Return the run whose packets are *data*; what is for this hop alone is left out of its properties."""
    qos = first >> 1 & 3
    kept = b""
    expiry = None
    verbatim = True
    if properties is not None:
        expiry = properties.pop("message_expiry_interval", None)
        verbatim = properties.pop("topic_alias", None) is None
        kept = encode_property_list(properties)
    return Run(
        topic,
        qos,
        bool(first & 1),
        data,
        size,
        payload_at,
        v5=connection.v5,
        id_at=id_at if qos else 0,
        properties=kept,
        expiry=expiry,
        wall=connection.router.wall,
        publisher=connection.client_id,
        verbatim=verbatim,
    )


def _retained(connection: "Connection", run: Run, last: Run) -> bool:
    """Retain the last message of *last*; where there is no room, refuse the whole *run* and tell so."""
    if connection.router.retain(last) is None:
        return True
    _refuse(connection, run, ReasonCode.QUOTA_EXCEEDED)
    return False


def _columns(run: Run) -> tuple[bytes, bytes, int]:
    """Return the upper and lower bytes of a run's packet identifiers, and the first identifier's index."""
    high = run.data[run.id_at :: run.size]
    low = run.data[run.id_at + 1 :: run.size]
    return high, low, (high[0] << 8 | low[0]) - 1


def _identifiers(high: bytes, low: bytes) -> list[int]:
    identifiers = [upper << 8 | lower for upper, lower in zip(high, low, strict=True)]
    if 0 in identifiers:
        raise ProtocolViolation("a PUBLISH of QoS 1 or 2 has packet identifier 0")
    return identifiers


def _acknowledge(connection: "Connection", run: Run) -> None:
    """Send the PUBACKs of a QoS 1 run that has been routed."""
    high, low, index = _columns(run)
    count = run.count
    if index >= 0 and high == HIGH[index : index + count] and low == LOW[index : index + count]:
        answer = PUBACKS[index * 4 : (index + count) * 4]
    else:
        answer = b"".join([PUBACKS[(i - 1) * 4 : i * 4] for i in _identifiers(high, low)])
    if connection.router.journal is None:
        connection.acknowledge(answer)
        return
    connection.send_after_commit(answer, messages=count)
    if connection.held_messages > connection.limits.max_inflight_count:
        if connection.v5:
            _check_quota(connection, 0)
        # The journal is behind: read on when it has caught up [design: pressure].
        connection.wait_for_journal()


def _check_quota(connection: "Connection", more: int) -> None:
    """Refuse messages beyond the Receive Maximum that the client was told [5:MQTT-3.3.4-9]."""
    unfinished = connection.held_messages + more + len(connection.its_session.received or ())
    limit = connection.limits.max_inflight_count
    if unfinished > limit:
        raise MqttError(
            ReasonCode.RECEIVE_MAXIMUM_EXCEEDED,
            f"{unfinished} messages are unfinished, more than max_inflight_count ({limit})",
        )


def _receive_qos2(connection: "Connection", run: Run) -> None:
    """Route the messages of a QoS 2 run that are new, and send the PUBRECs [5:MQTT-4.3.3-8 to -12]."""
    session = connection.its_session
    received = session.received
    if received is None:
        received = session.received = set()
    high, low, index = _columns(run)
    count = run.count
    in_order = index >= 0 and high == HIGH[index : index + count] and low == LOW[index : index + count]
    identifiers: Sequence[int] = range(index + 1, index + 1 + count) if in_order else _identifiers(high, low)
    if received.isdisjoint(identifiers) and (in_order or len(set(identifiers)) == count):
        fresh = [run]
    else:
        fresh = _not_yet_received(run, identifiers, received)
    _check_quota(connection, sum(part.count for part in fresh))
    if run.retain and fresh and not _retained(connection, run, fresh[-1]):
        return
    for part in fresh:
        connection.router.publish(part)
    received.update(identifiers)
    if in_order:
        answer = PUBRECS[index * 4 : (index + count) * 4]
    else:
        answer = b"".join([PUBRECS[(i - 1) * 4 : i * 4] for i in identifiers])
    journal = connection.router.journal
    if journal is None:
        connection.acknowledge(answer)
        return
    if session.durable:
        for packet_id in identifiers:
            journal.received(session.client_id, packet_id, 1)
    connection.send_after_commit(answer)


def _not_yet_received(run: Run, identifiers: Sequence[int], received: set[int]) -> list[Run]:
    seen = set(received)
    fresh = []
    for position, packet_id in enumerate(identifiers):
        if packet_id not in seen:
            seen.add(packet_id)
            fresh.append(run.part(position, position + 1))
    return fresh
