"""The states of a connection."""

from enum import Enum, auto

__all__ = ["State"]


class State(Enum):
    """How far a connection is [5: section 3.1]."""

    #: Nothing but CONNECT may come.
    NEW = auto()
    #: An enhanced authentication goes on; nothing but AUTH or DISCONNECT may come.
    AUTHENTICATING = auto()
    CONNECTED = auto()
    CLOSED = auto()
