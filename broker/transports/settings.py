"""What a listener needs to know; `broker.app` makes these from the configuration."""

from dataclasses import dataclass
from enum import Enum

from broker.core.limits import ConnectionLimits

__all__ = ["ListenerSettings", "TlsSettings", "WebSocketSettings"]


class Identity(Enum):
    """Which part of a client certificate names the client."""

    CN = "cn"
    SAN = "san"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """Certificate files (PEM); with *ca_path* a client certificate signed by it is wanted."""

    certificate_path: str
    key_path: str
    ca_path: str | None = None
    #: Whether clients without a certificate are refused.
    require_certificate: bool = True
    #: Which part of the certificate is the user name, or None to take that from CONNECT.
    identity: Identity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketSettings:
    """What the opening handshake accepts; an empty tuple accepts everything."""

    paths: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    compression: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """One listening address."""

    #: `v4.1`, `ws.1`: the section of the configuration, for logs and errors.
    name: str
    #: Host name or address, or None for a unix socket.
    host: str | None
    port: int = 0
    path: str | None = None
    tls: TlsSettings | None = None
    websocket: WebSocketSettings | None = None
    limits: ConnectionLimits
    #: Seconds between two accepts.
    next_connection_delay: float = 0.0
    #: Seconds that a socket is not read after each read.
    throttle_delay: float = 0.0
    #: Connections that are not through CONNECT; beyond it the oldest of them is closed.
    max_pending: int = 1000
