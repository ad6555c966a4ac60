"""Packet identifiers and their acknowledgements, written out once.

A run of consecutive identifiers is then a slice: comparing or copying thousands costs what one costs. Indexes are
packet identifier - 1.
"""

from typing import Final

__all__ = ["COUNT", "HIGH", "LOW", "PACKET_ID", "PUBACKS", "PUBCOMPS", "PUBRECS", "PUBRELS", "consecutive"]

#: How many packet identifiers there are.
COUNT: Final = 65_535
#: The upper and the lower byte of every packet identifier.
HIGH: Final = bytes((i + 1) >> 8 for i in range(COUNT))
LOW: Final = bytes((i + 1) & 255 for i in range(COUNT))
#: Every packet identifier as its two bytes.
PACKET_ID: Final = tuple(bytes(pair) for pair in zip(HIGH, LOW, strict=True))


def _acknowledgements(first: int) -> bytes:
    head = bytes((first, 2))
    return b"".join([head + packet_id for packet_id in PACKET_ID])


#: All successful acknowledgements of each kind, four bytes each.
PUBACKS: Final = _acknowledgements(0x40)
PUBRECS: Final = _acknowledgements(0x50)
PUBRELS: Final = _acknowledgements(0x62)
PUBCOMPS: Final = _acknowledgements(0x70)


def consecutive(data: bytes, pos: int, table: bytes, index: int, limit: int) -> int:
    """Return how many packets from *pos* are those of *table* from *index* on, at most *limit*."""
    start = index * 4
    if data.startswith(table[start : start + limit * 4], pos):
        return limit
    # The start of a match is a match: halve the interval.
    matching, failing = 0, limit
    while failing - matching > 1:
        middle = (matching + failing) >> 1
        if data.startswith(table[start : start + middle * 4], pos):
            matching = middle
        else:
            failing = middle
    return matching
