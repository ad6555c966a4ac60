"""`ternmq pub` and `ternmq sub`: paho behind a small interface."""

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

__all__ = ["PublishRequest", "Server", "SubscribeRequest", "publish", "subscribe"]

_VERSIONS = {"3.1": paho.MQTTv31, "3.1.1": paho.MQTTv311, "5": paho.MQTTv5}
_TIMEOUT = 10.0


class Server(NamedTuple):
    """Where to connect, and as whom."""

    host: str
    port: int | None
    user: str | None
    password: str | None
    client_id: str
    version: str
    websocket: bool
    path: str
    ca_file: str | None


class PublishRequest(NamedTuple):
    """What to publish; *properties* by paho's names."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Mapping[str, Any]


class SubscribeRequest(NamedTuple):
    """What to subscribe to and how to print it."""

    topic_filters: Sequence[str]
    qos: int
    stop_after: int
    show_topic: bool


class _Session:
    """A paho client that stops with a reason."""

    def __init__(self, server: Server) -> None:
        if server.version not in _VERSIONS:
            raise ValueError(f"--mqtt {server.version}: choose 3.1, 3.1.1 or 5")
        self.v5 = server.version == "5"
        self.error: str | None = None
        self.done = threading.Event()
        self.connected = threading.Event()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=server.client_id,
            protocol=_VERSIONS[server.version],
            transport="websockets" if server.websocket else "tcp",
        )
        if server.websocket:
            self.client.ws_set_options(path=server.path)
        if server.user is not None:
            self.client.username_pw_set(server.user, server.password)
        if server.ca_file is not None:
            self.client.tls_set(server.ca_file)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        port = server.port
        if port is None:
            secure = server.ca_file is not None
            port = (8084 if secure else 8083) if server.websocket else (8883 if secure else 1883)
        self._where = f"{server.host}:{port}"
        self.client.connect(server.host, port)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.stop(f"{self._where} refused the connection: {reason}")
        else:
            self.connected.set()

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if not self.done.is_set():
            said = getattr(properties, "ReasonString", None)
            self.stop(f"{self._where} closed the connection: {reason}{f' ({said})' if said else ''}")

    def stop(self, error: str | None = None) -> None:
        """End with *error*, or well."""
        self.error = error
        self.done.set()
        self.connected.set()


def _open(server: Server) -> "_Session | str":
    try:
        session = _Session(server)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"cannot connect to {server.host}:{server.port or 'the default port'}: {error}; is the broker running?"
    session.client.loop_start()
    if not session.connected.wait(_TIMEOUT):
        session.stop("no answer to CONNECT within 10 s; is this an MQTT port?")
    return session


def publish(server: Server, request: PublishRequest) -> str | None:
    """Publish one message; return None when the broker has it, else what went wrong."""
    session = _open(server)
    if isinstance(session, str):
        return session
    if session.error is None:
        properties = None
        if session.v5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types here
            for name, value in request.properties.items():
                setattr(properties, name, value)
        info = session.client.publish(request.topic, request.payload, request.qos, request.retain, properties)
        try:
            info.wait_for_publish(_TIMEOUT)
        except (RuntimeError, ValueError) as failure:
            session.error = session.error or str(failure)
        if session.error is None and not info.is_published():
            session.error = "the broker has not acknowledged the message within 10 s"
    error, failed = session.error, session.error is not None
    session.stop(error)
    session.client.disconnect()
    session.client.loop_stop()
    return error if failed else None


def subscribe(server: Server, request: SubscribeRequest) -> str | None:
    """Print messages until interrupted or enough have come; return None, or what went wrong."""
    session = _open(server)
    if isinstance(session, str):
        return session
    left = request.stop_after

    def on_message(client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        nonlocal left
        if session.done.is_set():
            return
        if request.show_topic:
            shown = str(message.properties) if message.properties is not None else "[]"
            suffix = f" {shown}" if shown != "[]" else ""
            sys.stdout.write(f"{message.topic}{suffix} ")
        sys.stdout.flush()
        sys.stdout.buffer.write(message.payload + b"\n")
        sys.stdout.buffer.flush()
        left -= 1
        if not left:
            session.stop()

    def on_subscribe(client: Any, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        refused = [
            f"{topic_filter}: {reason}"
            for topic_filter, reason in zip(request.topic_filters, reasons, strict=False)
            if reason.is_failure
        ]
        if refused:
            session.stop(f"the subscription is refused: {', '.join(refused)}")

    if session.error is None:
        session.client.on_message = on_message
        session.client.on_subscribe = on_subscribe
        session.client.subscribe([(topic_filter, request.qos) for topic_filter in request.topic_filters])
        try:
            session.done.wait()
        except KeyboardInterrupt:
            session.stop()
    error = session.error
    session.stop(error)
    session.client.disconnect()
    session.client.loop_stop()
    return error
