"""The keys of the configuration: their types, defaults, units and meaning, in one place.

The JSON Schema, the reference page in the docs and `ternmq check` are made from these models. The tree and the key
names are rumqttd's; keys that rumqttd lacks are marked in their description.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from broker.mqtt.topics import filter_error

__all__ = ["Config", "Connections", "Listener", "RouterSection", "Tls", "WebSocketListener", "parse_listen"]

_LATER = "comes with a later version"


def _no_effect(why: str, **kwargs: Any) -> Any:
    """A key of rumqttd that is accepted, so that one file starts both brokers, and said to do nothing here."""
    return Field(default=None, description=f"No effect here: {why}", json_schema_extra={"no_effect": why}, **kwargs)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Connections(_Section):
    """What one client connected through this listener may use."""

    connection_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = Field(
        default=60_000,
        description="Milliseconds from accepting a socket to its CONNECT, TLS and WebSocket handshakes included.",
    )
    max_client_id_len: Annotated[int, Field(ge=1, le=65_535)] = Field(
        default=256, description="Bytes of a client identifier (UTF-8). Longer ones are refused."
    )
    throttle_delay_ms: Annotated[int, Field(ge=0, le=60_000)] = Field(
        default=0, description="Milliseconds for which a socket is not read after each read. 0 is off."
    )
    max_payload_size: Annotated[int, Field(ge=16, le=268_435_455)] = Field(
        default=2_000_000,
        description="Largest Remaining Length of an incoming packet, in bytes: its topic, properties and payload.",
    )
    max_inflight_count: Annotated[int, Field(ge=1, le=65_535)] = Field(
        default=1000, description="Unacknowledged QoS 1 and 2 messages of one client, in each direction."
    )
    max_inflight_size: Annotated[int, Field(ge=1, le=4_194_304)] = Field(
        default=16_384,
        description="KiB of unacknowledged outgoing messages of one client. A larger one goes when none is in flight.",
    )
    auth: dict[str, str] | None = Field(
        default=None,
        description="User name: password. When set, a client must log in with one of these pairs.",
        repr=False,
    )
    dynamic_filters: bool | None = _no_effect("topics need no preparation before they are published to")
    max_queue_count: Annotated[int, Field(ge=0, le=100_000_000)] = Field(
        default=100_000, description="Messages that wait for one client that is away or slow. [not in rumqttd]"
    )
    max_queue_bytes: Annotated[int, Field(ge=0)] = Field(
        default=67_108_864, description="Bytes that wait for one client that is away or slow. [not in rumqttd]"
    )
    max_outbox_bytes: Annotated[int, Field(ge=16_384)] = Field(
        default=1_048_576,
        description="Bytes a client may leave unread before QoS 0 messages to it are dropped. [not in rumqttd]",
    )
    slow_reader_timeout_ms: Annotated[int, Field(ge=100)] = Field(
        default=30_000,
        description="Milliseconds for which a client may leave a full outbox unread; then it is disconnected. "
        "[not in rumqttd]",
    )
    max_subscriptions: Annotated[int, Field(ge=1)] = Field(
        default=100_000, description="Subscriptions of one client. [not in rumqttd]"
    )
    max_topic_levels: Annotated[int, Field(ge=1, le=65_535)] = Field(
        default=128, description="Levels of a topic name or filter. [not in rumqttd]"
    )
    max_topic_length: Annotated[int, Field(ge=1, le=65_535)] = Field(
        default=65_535, description="Bytes of a topic name or filter. [not in rumqttd]"
    )
    topic_alias_maximum: Annotated[int, Field(ge=0, le=65_535)] = Field(
        default=100, description="Topic aliases that an MQTT 5 client may set up. [not in rumqttd]"
    )
    max_keep_alive: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        default=None,
        description="The longest keep-alive in seconds; MQTT 5 clients that ask for a longer one or none are told it. "
        "[not in rumqttd]",
    )
    disconnect_denied_publisher: bool = Field(
        default=False,
        description="Whether an MQTT 3.x client is disconnected for publishing where it may not, "
        "rather than acknowledged and ignored. [not in rumqttd]",
    )


class Tls(_Section):
    """Certificate files in PEM format; relative paths are relative to the configuration file."""

    certpath: str = Field(description="The server's certificate, with the chain behind it.")
    keypath: str = Field(description="The private key of the certificate.")
    capath: str | None = Field(default=None, description="Certificates that sign client certificates.")
    require_certificate: bool = Field(
        default=True,
        description="With capath: whether clients without a certificate are refused. [not in rumqttd]",
    )
    identity: Literal["cn", "san"] | None = Field(
        default=None,
        description="Which part of a client's certificate is its user name: cn, the common name, or san, the first "
        "alternative name. [not in rumqttd]",
    )

    @model_validator(mode="after")
    def _identity_needs_ca(self) -> "Tls":
        if self.identity is not None and self.capath is None:
            raise ValueError("identity needs capath: without it no client certificate is asked for")
        return self


def parse_listen(listen: str) -> tuple[str | None, int, str | None]:
    """Return host, port and unix path of *listen*: `HOST:PORT`, `[IPv6]:PORT` or `unix:PATH`.

    Raises ValueError, with a remedy.
    """
    if listen.startswith("unix:"):
        if not listen[5:]:
            raise ValueError("write unix:PATH")
        return None, 0, listen[5:]
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65_535:
        raise ValueError(f"{listen!r} is not HOST:PORT with a port from 0 to 65535, [IPv6]:PORT or unix:PATH")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"put the IPv6 address in brackets: [{host}]:{port}")
    return host, int(port), None


class Listener(_Section):
    """One listening address. Each speaks MQTT 3.1, 3.1.1 and 5, whatever section it stands in."""

    name: str = Field(default="", description="A name for the logs.")
    listen: str = Field(description="HOST:PORT, [IPv6]:PORT or unix:PATH. Port 0 lets the system choose.")
    tls: Tls | None = Field(default=None, description="Serve TLS with these certificates.")
    next_connection_delay_ms: Annotated[int, Field(ge=0, le=60_000)] = Field(
        default=0, description="Milliseconds between two accepts of this listener: 1 allows 1000 connections a second."
    )
    max_pending_connections: Annotated[int, Field(ge=1)] = Field(
        default=1000,
        description="Connections that have not sent CONNECT; beyond it the oldest of them is closed. [not in rumqttd]",
    )
    connections: Connections = Field(default_factory=Connections, description="Limits of the clients.")

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, listen: str) -> str:
        parse_listen(listen)
        return listen


class WebSocketListener(Listener):
    """One listening address for MQTT over WebSocket; with tls it is wss://."""

    paths: tuple[str, ...] = Field(
        default=(), description="The paths that are served; none means every path. [not in rumqttd]"
    )
    origins: tuple[str, ...] = Field(
        default=(),
        description="The web origins whose pages may connect, as https://example.org; none means all. [not in rumqttd]",
    )
    compression: bool = Field(
        default=False, description="Whether permessage-deflate is negotiated. Costs CPU and memory. [not in rumqttd]"
    )

    @field_validator("paths")
    @classmethod
    def _check_paths(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if not path.startswith("/"):
                raise ValueError(f"a path begins with '/': write '/{path}'")
        return paths


class RouterSection(_Section):
    """What all clients share."""

    id: int | None = _no_effect("one process is one router")
    max_connections: Annotated[int, Field(ge=1)] = Field(
        default=100_000, description="Clients connected at a time, over all listeners."
    )
    max_outgoing_packet_count: int | None = _no_effect("deliveries are not read from a log in batches")
    max_segment_size: int | None = _no_effect("there is no commit log; queues are bounded by max_queue_bytes")
    max_segment_count: int | None = _no_effect("there is no commit log; queues are bounded by max_queue_count")
    custom_segment: dict[str, Any] | None = _no_effect("there is no commit log")
    initialized_filters: list[str] | None = _no_effect("topics need no preparation")
    instant_ack: bool | None = _no_effect("it is a key of rumqttd before 0.12")
    max_read_len: int | None = _no_effect("it is a key of rumqttd before 0.12")
    shared_subscriptions_strategy: Literal["roundrobin", "random", "sticky"] = Field(
        default="roundrobin", description="How a shared subscription picks the member that gets the next message."
    )
    max_connections_per_address: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Connections from one address; 0 is no bound. [not in rumqttd]"
    )
    max_retained_count: Annotated[int, Field(ge=0)] = Field(
        default=1_000_000, description="Retained messages. [not in rumqttd]"
    )
    max_retained_bytes: Annotated[int, Field(ge=0)] = Field(
        default=1_073_741_824, description="Bytes of retained messages. [not in rumqttd]"
    )
    max_session_expiry_seconds: Annotated[int, Field(ge=0, le=0xFFFF_FFFF)] = Field(
        default=0xFFFF_FFFF,
        description="The longest a session outlives its connection; 4294967295 is no bound. [not in rumqttd]",
    )
    session_expiry_v3_seconds: Annotated[int, Field(ge=0, le=0xFFFF_FFFF)] = Field(
        default=1_209_600,
        description="How long a session with clean session off outlives its connection, for MQTT 3.x clients. "
        "[not in rumqttd]",
    )

    @field_validator("initialized_filters")
    @classmethod
    def _check_filters(cls, filters: list[str] | None) -> list[str] | None:
        for topic_filter in filters or ():
            error = filter_error(topic_filter.encode())
            if error is not None:
                raise ValueError(f"{topic_filter!r}: {error}")
        return filters


class Console(_Section):
    """HTTP console."""

    listen: str = Field(description="HOST:PORT")


class Prometheus(_Section):
    """Prometheus exporter."""

    listen: str | None = Field(default=None, description="HOST:PORT")
    port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(default=None, description="Port on 127.0.0.1.")
    interval: Annotated[int, Field(ge=1)] = Field(default=1, description="Seconds between two samples.")


class PushInterval(_Section):
    """How often something is pushed."""

    push_interval: Annotated[int, Field(ge=1)] = Field(description="Seconds.")


class Metrics(_Section):
    """Meters and alerts for in-process links."""

    meters: PushInterval | None = None
    alerts: PushInterval | None = None


class Bridge(_Section):
    """A connection to another broker whose messages are published here."""

    name: str
    addr: str
    qos: Annotated[int, Field(ge=0, le=2)]
    sub_path: str
    reconnection_delay: int
    ping_delay: int
    timeout_delay: int | None = _no_effect("rumqttd does not read it either")
    connections: Connections = Field(default_factory=Connections)
    transport: dict[str, Any] | None = None


class Cluster(_Section):
    """Several nodes."""

    node_id: int
    listen: str
    seniors: list[Any] = Field(default_factory=list)


class Persistence(_Section):
    """What survives a restart."""

    path: str
    sync: Literal["full", "normal", "off"] = "full"


def _later(what: str) -> Any:
    return Field(default=None, description=f"{what} (not supported yet)", json_schema_extra={"later": True})


class Config(_Section):
    """A whole configuration file."""

    id: int | None = _no_effect("one process is one node")
    router: RouterSection = Field(default_factory=RouterSection, description="What all clients share.")
    v4: dict[str, Listener] = Field(default_factory=dict, description="TCP listeners.")
    v5: dict[str, Listener] = Field(
        default_factory=dict, description="TCP listeners, the same as those of v4: each speaks every version."
    )
    ws: dict[str, WebSocketListener] = Field(default_factory=dict, description="WebSocket listeners.")
    console: Console | None = _later("HTTP console.")
    prometheus: Prometheus | None = _later("Prometheus exporter.")
    metrics: Metrics | None = _later("Meters and alerts.")
    bridge: Bridge | None = _later("A bridge from another broker.")
    cluster: Cluster | None = _later("Several nodes.")
    persistence: Persistence | None = _later("What survives a restart.")
    plugins: dict[str, Any] | None = _later("Plugins: dotted path → settings.")

    @model_validator(mode="after")
    def _has_listener(self) -> "Config":
        if not (self.v4 or self.v5 or self.ws):
            raise ValueError("there is no listener: add a section v4, v5 or ws, or start without a file for defaults")
        return self

    @classmethod
    def built_in(cls) -> "Config":
        """Return the defaults without a file: rumqttd's ports, on this machine only."""
        return cls(
            v4={"1": Listener(name="v4-1", listen="localhost:1883")},
            v5={"1": Listener(name="v5-1", listen="localhost:1884")},
            ws={"1": WebSocketListener(name="ws-1", listen="localhost:8083")},
        )

    def listeners(self) -> dict[str, Listener]:
        """Return every listener by its place in the file: `v4.1`, `ws.1`."""
        sections: tuple[tuple[str, dict[str, Any]], ...] = (("v4", self.v4), ("v5", self.v5), ("ws", self.ws))
        return {f"{section}.{key}": listener for section, found in sections for key, listener in found.items()}
