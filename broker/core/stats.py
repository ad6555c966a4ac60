"""What the broker counts; plain numbers, added to once per run and read by metrics and $SYS."""

__all__ = ["Stats"]


class Stats:
    """Totals since the start. Messages are application messages, bytes are those of whole packets."""

    __slots__ = (
        "connections_total",
        "delivered",
        "dropped",
        "expired",
        "published",
        "published_bytes",
        "received_bytes",
        "refused_total",
        "sent_bytes",
        "started_at",
    )

    def __init__(self) -> None:
        #: Messages that clients published.
        self.published = 0
        self.published_bytes = 0
        #: Messages handed to subscribers.
        self.delivered = 0
        #: Messages that a subscriber lost: slow, queue full, too large for it.
        self.dropped = 0
        #: Messages whose expiry interval passed in a queue.
        self.expired = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.connections_total = 0
        self.refused_total = 0
        #: Wall time of the start.
        self.started_at = 0.0
