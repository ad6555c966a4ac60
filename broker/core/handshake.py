"""CONNECT and AUTH: who is there, may it come in, and what did it leave here last time [5: section 3.1, 4.12]."""

from typing import TYPE_CHECKING, Any

from broker.core.hooks import AuthStep, Decision, Login, Pending, decide
from broker.core.limits import NEVER
from broker.core.run import Run
from broker.core.session import Session
from broker.core.state import State
from broker.mqtt.errors import MqttError, ProtocolViolation
from broker.mqtt.packets import Auth, ConnAck, Connect, Version, Will, decode_protocol
from broker.mqtt.properties import Properties, encode_property_list
from broker.mqtt.reason_codes import ReasonCode
from broker.mqtt.topics import topic_error
from broker.mqtt.wire import varint_size

if TYPE_CHECKING:
    from broker.core.connection import Connection

__all__ = ["receive_auth", "receive_connect", "receive_reauthentication"]


def receive_connect(connection: "Connection", data: bytes, body: int, end: int) -> None:
    """Handle CONNECT: check it, authenticate the client, and make it a session."""
    connection.version, _ = _version(connection, data, body, end)
    connection.v5 = connection.version is Version.V5
    connect = Connect.decode(data, body, end)
    connection.connect = connect
    connection.client_id = connect.client_id
    # A certificate, where the listener takes the name from it, says more than CONNECT does.
    connection.user_name = connection.wire.tls_identity or connect.user_name
    connection.problem_information = bool(connect.properties.get("request_problem_information", 1))
    _check_client_id(connection, connect)
    if connect.will is not None:
        _check_will(connection, connect.will)
    _check_room(connection)
    method = connect.properties.get("authentication_method")
    if method is not None:
        _start_exchange(connection, connect, method)
        return
    hooks = connection.router.hooks
    answers = [hook(_login(connection)) for hook in hooks.authenticate]
    _with_answer(connection, decide(answers, hooks.default_authenticate), _authenticated)


def _version(connection: "Connection", data: bytes, body: int, end: int) -> tuple[Version, int]:
    """Return the protocol version; one that we do not speak is refused in the nearest that we do."""
    try:
        return decode_protocol(data, body, end)
    except MqttError as error:
        level_at = body + 2 + (data[body] << 8 | data[body + 1]) if end - body >= 2 else end
        connection.v5 = level_at < end and data[level_at] > Version.V5
        if error.reason is ReasonCode.UNSUPPORTED_PROTOCOL_VERSION:
            connection.connect = Connect()
        raise


def _login(connection: "Connection") -> Login:
    connect = connection.its_connect
    return Login(
        client_id=connection.client_id,
        user_name=connect.user_name,
        password=connect.password,
        address=connection.wire.address,
        listener=connection.listener,
        tls_identity=connection.wire.tls_identity,
        connect=connect,
    )


def _with_answer(connection: "Connection", answer: Any, go_on: Any) -> None:
    """Call *go_on* with the connection and *answer*, now or when it is there."""
    if isinstance(answer, Pending):
        connection.suspend(answer, lambda value: go_on(connection, value))
    else:
        go_on(connection, answer)


def _check_client_id(connection: "Connection", connect: Connect) -> None:
    limit = connection.limits.max_client_id_length
    length = len(connect.client_id.encode())
    if length > limit:
        raise MqttError(
            ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
            f"the client identifier has {length} bytes, more than max_client_id_len ({limit})",
        )
    if not connect.client_id and connect.version is not Version.V5:
        # 3.1 knows no empty identifier; 3.1.1 allows it for a clean session only [3.1.1:MQTT-3.1.3-8].
        if connect.version is Version.V31 or not connect.clean_start:
            raise MqttError(
                ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
                "an empty client identifier needs MQTT 3.1.1 with a clean session, or MQTT 5",
            )
    if not connect.client_id:
        connection.client_id = connection.router.new_id()


def _check_will(connection: "Connection", will: Will) -> None:
    error = topic_error(will.topic)
    if error is None and will.topic.count(b"/") >= connection.limits.max_topic_levels:
        error = f"it has more levels than max_topic_levels ({connection.limits.max_topic_levels})"
    if error is not None:
        raise MqttError(ReasonCode.TOPIC_NAME_INVALID, f"the will's topic name is refused: {error}")
    response_topic = will.properties.get("response_topic")
    if response_topic is not None and ("+" in response_topic or "#" in response_topic):
        raise ProtocolViolation("the will's response topic contains a wildcard")


def _check_room(connection: "Connection") -> None:
    router = connection.router
    limits = router.limits
    takes_over = connection.client_id in router.sessions and (
        router.sessions[connection.client_id].connection is not None
    )
    if len(router.connections) >= limits.max_connections and not takes_over:
        raise MqttError(
            ReasonCode.SERVER_BUSY,
            f"{limits.max_connections} clients are connected already (router.max_connections)",
        )


# --- authentication ---------------------------------------------------------------------------------------------------


def _authenticated(connection: "Connection", decision: Decision) -> None:
    connect = connection.its_connect
    if decision is Decision.DENY:
        reason = ReasonCode.NOT_AUTHORIZED if connect.user_name is None else ReasonCode.BAD_USER_NAME_OR_PASSWORD
        raise MqttError(reason, f"the login of {connect.user_name!r} is refused")
    _authorize_will(connection)


def _authorize_will(connection: "Connection") -> None:
    connect = connection.its_connect
    will = connect.will
    if will is None:
        _claim(connection, Decision.ALLOW)
        return
    hooks = connection.router.hooks
    login = _login(connection)
    answers = [hook(login, will) for hook in hooks.authorize_will]
    _with_answer(connection, decide(answers, hooks.default_authorize), _claim)


def _claim(connection: "Connection", decision: Decision) -> None:
    """Make sure that this node may serve the client."""
    if decision is Decision.DENY:
        raise MqttError(ReasonCode.NOT_AUTHORIZED, "the client may not publish to the topic of its will")
    ownership = connection.router.ownership
    claim = ownership.claim(connection.client_id) if ownership is not None else None
    _with_answer(connection, True if claim is None else claim, _admit)


def _start_exchange(connection: "Connection", connect: Connect, method: str) -> None:
    start = connection.router.hooks.exchanges.get(method)
    if start is None:
        raise MqttError(ReasonCode.BAD_AUTHENTICATION_METHOD, f"there is no authentication method {method!r} here")
    connection.auth_method = method
    connection.exchange = start(_login(connection))
    connection.state = State.AUTHENTICATING
    _with_answer(connection, connection.exchange.step(connect.properties.get("authentication_data")), _stepped)


def _stepped(connection: "Connection", step: AuthStep) -> None:
    """Go on with an enhanced authentication [5:MQTT-4.12.0-2 to -5]."""
    if step.reason is ReasonCode.CONTINUE_AUTHENTICATION:
        connection.auth_steps += 1
        if connection.auth_steps > connection.limits.max_auth_steps:
            raise MqttError(ReasonCode.NOT_AUTHORIZED, "the authentication takes too many steps")
        connection.send(_auth_packet(connection, ReasonCode.CONTINUE_AUTHENTICATION, step.data))
        return
    connection.exchange = None
    connection.auth_steps = 0
    if step.reason is not ReasonCode.SUCCESS:
        raise MqttError(step.reason, f"the authentication by {connection.auth_method!r} failed")
    if step.user is not None:
        connection.user_name = step.user
    if connection.state is State.CONNECTED:
        connection.send(_auth_packet(connection, ReasonCode.SUCCESS, step.data))
        return
    properties = connection.its_connect.properties
    if step.data is not None:
        properties["authentication_data"] = step.data
    else:
        properties.pop("authentication_data", None)
    _authorize_will(connection)


def _auth_packet(connection: "Connection", reason: ReasonCode, data: bytes | None) -> bytes:
    properties: Properties = {"authentication_method": connection.auth_method}
    if data is not None:
        properties["authentication_data"] = data
    return Auth(reason=reason, properties=properties).encode()


def receive_auth(connection: "Connection", data: bytes, body: int, end: int) -> None:
    """Handle the next AUTH of an enhanced authentication that CONNECT began."""
    packet = Auth.decode(data, body, end, connection.version)
    if packet.reason is not ReasonCode.CONTINUE_AUTHENTICATION:
        raise ProtocolViolation(f"AUTH with reason {packet.reason.text} came out of turn")
    _next_step(connection, packet)


def receive_reauthentication(connection: "Connection", data: bytes, body: int, end: int) -> None:
    """Handle AUTH of a connected client: it begins a re-authentication or goes on with one [5: section 4.12.1]."""
    packet = Auth.decode(data, body, end, connection.version)
    if connection.auth_method is None:
        raise ProtocolViolation("AUTH came on a connection whose CONNECT had no authentication method")
    if packet.reason is ReasonCode.RE_AUTHENTICATE and connection.exchange is None:
        connection.exchange = connection.router.hooks.exchanges[connection.auth_method](_login(connection))
    elif packet.reason is not ReasonCode.CONTINUE_AUTHENTICATION or connection.exchange is None:
        raise ProtocolViolation(f"AUTH with reason {packet.reason.text} came out of turn")
    _next_step(connection, packet)


def _next_step(connection: "Connection", packet: Auth) -> None:
    if packet.properties.get("authentication_method") != connection.auth_method:
        raise ProtocolViolation("AUTH names another authentication method than CONNECT")
    assert connection.exchange is not None, "a step belongs to an exchange"
    _with_answer(connection, connection.exchange.step(packet.properties.get("authentication_data")), _stepped)


# --- admission --------------------------------------------------------------------------------------------------------


def _admit(connection: "Connection", claimed: bool) -> None:
    """Join the client with its session and tell it; the old connection of the same client is gone before."""
    if not claimed:
        raise MqttError(ReasonCode.SERVER_UNAVAILABLE, "another node of the broker keeps this client")
    connect = connection.its_connect
    router = connection.router
    _take_over(connection)
    # Asked again: other clients may have come while plugins were thinking.
    _check_room(connection)
    session = router.sessions.get(connection.client_id)
    if session is not None and connect.clean_start:
        router.end_session(session)
        session = None
    present = session is not None
    if session is None:
        session = router.sessions[connection.client_id] = Session(router, connection.client_id, connection.limits)
    session.user_name = connection.user_name
    _cancel_deadlines(session)
    _set_session(connection, connect, session)
    if connection.connect_deadline is not None:
        connection.connect_deadline.cancel()
    connection.session = session
    connection.state = State.CONNECTED
    router.connections.add(connection)
    router.stats.connections_total += 1
    answer = _connack(connection, connect, session, present).encode(connection.version)
    connection.send(answer)
    session.attach(connection)
    if router.journal is not None and (session.durable or session.is_stored):
        router.save(session)
        connection.close_gate()
    server_keep_alive = _server_keep_alive(connection, connect)
    connection.watch_keep_alive(connect.keep_alive if server_keep_alive is None else server_keep_alive)
    router.observer.connected(connection, present)
    if present:
        session.resend_releases()
        session.pump()
    # The password is not kept; a re-authentication needs the rest.
    connect.password = None
    if connection.auth_method is None:
        connection.connect = None


def _take_over(connection: "Connection") -> None:
    """Close the connection that the client identifier has already [5:MQTT-3.1.4-3]."""
    session = connection.router.sessions.get(connection.client_id)
    if session is not None and session.connection is not None:
        old = session.connection
        connection.router.observer.taken_over(old, connection)
        old.end(
            ReasonCode.SESSION_TAKEN_OVER,
            f"another client connected as {connection.client_id!r} from {connection.wire.peer}",
        )


def _cancel_deadlines(session: Session) -> None:
    """Let a session go on: it does not expire now, and a will that is waiting is not sent [5:MQTT-3.1.3-9]."""
    if session.expiry_deadline is not None:
        session.expiry_deadline.cancel()
        session.expiry_deadline = None
    session.expires_at = None
    if session.will_deadline is not None:
        session.will_deadline.cancel()
        session.will_deadline = None


def _set_session(connection: "Connection", connect: Connect, session: Session) -> None:
    """Take over from CONNECT what the session keeps."""
    limits = connection.router.limits
    properties = connect.properties
    before = (session.v5, session.individual)
    session.v5 = connection.v5
    if connection.v5:
        session.expiry_interval = min(properties.get("session_expiry_interval", 0), limits.max_session_expiry)
        session.receive_maximum = properties.get("receive_maximum", 65_535)
        session.max_packet_size = properties.get("maximum_packet_size", NEVER)
        session.alias_maximum = properties.get("topic_alias_maximum", 0)
    else:
        session.expiry_interval = 0 if connect.clean_start else min(limits.session_expiry_v3, limits.max_session_expiry)
        session.receive_maximum = 65_535
        session.max_packet_size = NEVER
        session.alias_maximum = 0
    if before != (session.v5, session.individual):
        connection.router.invalidate(session)
    session.will = None
    session.will_delay = 0
    if connect.will is not None:
        session.will_delay = connect.will.properties.pop("will_delay_interval", 0)
        session.will = _will_message(connection, connect.will)


def _will_message(connection: "Connection", will: Will) -> Run:
    expiry = will.properties.pop("message_expiry_interval", None)
    return Run.message(
        will.topic,
        will.payload,
        qos=will.qos,
        retain=will.retain,
        properties=encode_property_list(will.properties),
        expiry=expiry,
        publisher=connection.client_id,
    )


def _connack(connection: "Connection", connect: Connect, session: Session, present: bool) -> ConnAck:
    """Return the CONNACK; an MQTT 5 client is told every limit that differs from the specification's default."""
    # 3.1 has no session present flag: the byte is reserved there.
    answer = ConnAck(session_present=present and connection.version is not Version.V31)
    if not connection.v5:
        return answer
    limits = connection.limits
    properties = answer.properties
    asked = connect.properties.get("session_expiry_interval", 0)
    if asked != session.expiry_interval:
        properties["session_expiry_interval"] = session.expiry_interval
    if limits.max_inflight_count < 65_535:
        properties["receive_maximum"] = limits.max_inflight_count
    properties["maximum_packet_size"] = maximum_packet_size(limits.max_remaining_length)
    if not connect.client_id:
        properties["assigned_client_identifier"] = connection.client_id
    if limits.topic_alias_maximum:
        properties["topic_alias_maximum"] = limits.topic_alias_maximum
    server_keep_alive = _server_keep_alive(connection, connect)
    if server_keep_alive is not None:
        properties["server_keep_alive"] = server_keep_alive
    if connection.auth_method is not None:
        properties["authentication_method"] = connection.auth_method
        if "authentication_data" in connect.properties:
            properties["authentication_data"] = connect.properties["authentication_data"]
    return answer


def _server_keep_alive(connection: "Connection", connect: Connect) -> int | None:
    """Return the keep-alive to use in place of the client's, or None; 3.x has no way to tell one [5: 3.2.2.3.14]."""
    longest = connection.limits.max_keep_alive
    if longest is None or not connection.v5 or 0 < connect.keep_alive <= longest:
        return None
    return longest


def maximum_packet_size(remaining_length: int) -> int:
    """Return the size of the whole packet whose Remaining Length is *remaining_length*, in bytes."""

    return 1 + varint_size(remaining_length) + remaining_length
