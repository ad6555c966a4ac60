"""The bounds that the core keeps; each listener has its own `ConnectionLimits`, the whole broker one `RouterLimits`.

Durations are seconds, sizes bytes. `broker.config` translates the keys of the YAML file into these.
"""

from dataclasses import dataclass

__all__ = ["NEVER", "ConnectionLimits", "RouterLimits"]

#: A session expiry interval that never ends [5: section 3.1.2.11.2].
NEVER = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one client connected through one listener may use."""

    #: From accept to a complete CONNECT, handshakes included.
    connection_timeout: float = 60.0
    #: UTF-8 bytes of a client identifier.
    max_client_id_length: int = 256
    #: Remaining Length of an incoming packet, inclusive.
    max_remaining_length: int = 2_000_000
    #: Unacknowledged QoS 1 and 2 messages, in each direction.
    max_inflight_count: int = 1000
    #: Unacknowledged outgoing bytes; one larger message goes when nothing else is in flight.
    max_inflight_bytes: int = 16 * 1024 * 1024
    #: Messages and bytes that wait for a client that is away or slow.
    max_queue_count: int = 100_000
    max_queue_bytes: int = 64 * 1024 * 1024
    #: Bytes that may wait in a connection's buffers before QoS 0 messages to it are dropped.
    max_outbox_bytes: int = 1024 * 1024
    #: How long a client may leave a full outbox unread before it is disconnected.
    slow_reader_timeout: float = 30.0
    max_subscriptions: int = 100_000
    max_topic_levels: int = 128
    max_topic_length: int = 65_535
    #: Topic aliases that a client may set up.
    topic_alias_maximum: int = 100
    #: AUTH packets from a client before its CONNACK, or in one re-authentication.
    max_auth_steps: int = 10
    #: The longest keep-alive in seconds, told to MQTT 5 clients that ask for a longer one or none; None for no bound.
    max_keep_alive: int | None = None
    #: Whether an MQTT 3.x client that publishes where it may not is cut off, rather than acknowledged and ignored.
    disconnect_denied_publisher: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLimits:
    """What all clients together may use."""

    max_connections: int = 100_000
    max_connections_per_address: int = 0
    max_retained_count: int = 1_000_000
    max_retained_bytes: int = 1024 * 1024 * 1024
    #: The longest session expiry granted; `NEVER` for no bound.
    max_session_expiry: int = NEVER
    #: How long a durable session of an MQTT 3.x client outlives its connection.
    session_expiry_v3: int = 14 * 24 * 3600
    #: Topics whose subscribers are remembered.
    max_cached_routes: int = 131_072
    #: How a shared subscription picks the member that gets the next message.
    shared_strategy: str = "roundrobin"
