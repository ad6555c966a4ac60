"""Where the outside world joins the core: the socket, the disk, the other nodes. Each has one small interface.

The core never asks which implementation it has; where one is not configured it is None, and costs one comparison.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from broker.core.hooks import Pending
    from broker.core.run import Delivery, Run
    from broker.core.session import Session

__all__ = ["Journal", "Ownership", "Peers", "Wire"]


class Wire(Protocol):
    """The socket of one connection, or what stands for it."""

    #: The peer as people write it, `address:port`.
    peer: str
    #: The address alone, for limits and rules per address.
    address: str
    #: Who the client is according to its certificate.
    tls_identity: str | None

    def send(self, parts: Sequence[bytes | bytearray]) -> None:
        """Write *parts* in order; the caller never changes them afterwards."""
        ...

    def unsent(self) -> int:
        """Return the bytes that the peer has not taken yet."""
        ...

    def taken(self) -> int:
        """Return the bytes that the peer has taken since the beginning."""
        ...

    def pause(self) -> None:
        """Deliver no more input until `resume`; each pause is matched by one resume."""
        ...

    def resume(self) -> None:
        """Take back one pause."""
        ...

    def close(self, reason: int) -> None:
        """Send what is unsent, let the peer read it, then close for *reason*; input is thrown away from now on."""
        ...


class Journal(Protocol):
    """The record of what must survive. Calls of one turn are committed together.

    *position* is the batch that the next record will be part of. Acknowledgements that depend on a record wait until
    `Router.committed` is called with its batch or a later one.
    """

    position: int

    def session_saved(self, session: "Session") -> None:
        """The session exists, with its expiry, will and version."""

    def session_removed(self, client_id: str) -> None:
        """The session and all that belongs to it is gone."""

    def subscription_saved(self, client_id: str, topic_filter: bytes, options: int, identifier: int) -> None:
        """The client has this subscription."""

    def subscription_removed(self, client_id: str, topic_filter: bytes) -> None:
        """The client no longer has this subscription."""

    def queued(self, client_id: str, delivery: "Delivery", start: int, stop: int) -> None:
        """Messages *start* to *stop* of *delivery* belong to the client until they are settled."""

    def sent(self, client_id: str, delivery: "Delivery", start: int, stop: int, packet_id: int) -> None:
        """Those messages are in flight with consecutive packet identifiers from *packet_id* on."""

    def discarded(self, client_id: str, delivery: "Delivery", start: int, stop: int) -> None:
        """Queued messages are gone unsent: they have expired, or are too large for the client."""

    def received(self, client_id: str, packet_id: int, count: int) -> None:
        """The client sent QoS 2 messages with these identifiers and has not released them."""

    def released(self, client_id: str, packet_id: int, count: int) -> None:
        """The client released QoS 2 messages with these identifiers."""

    def settled(self, client_id: str, qos: int, packet_id: int, count: int) -> None:
        """The client acknowledged messages: PUBACK (QoS 1) or PUBREC (QoS 2) of these identifiers."""

    def completed(self, client_id: str, packet_id: int, count: int) -> None:
        """PUBCOMP of these identifiers."""

    def retained(self, topic: bytes, run: "Run | None") -> None:
        """The retained message of the topic is now this one, or none."""


class Ownership(Protocol):
    """Which node serves a client identifier."""

    def claim(self, client_id: str) -> "Pending[bool] | None":
        """Make this node the owner: None when it is at once, else whether the claim succeeded."""
        ...

    def release(self, client_id: str) -> None:
        """This node has nothing of the client any more."""
        ...


class Peers(Protocol):
    """The other nodes of the broker."""

    def interest(self, topic_filter: bytes, present: bool) -> None:
        """This node has its first subscription to the filter, or has lost its last."""
        ...

    def forward(self, run: "Run") -> None:
        """A client of this node published *run*."""
        ...
