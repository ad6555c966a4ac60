"""Telling systemd how the broker is doing: the notify protocol, a datagram to the socket it names."""

import os
import socket

__all__ = ["notify"]


def notify(state: str) -> bool:
    """Send *state* (`READY=1`, `STOPPING=1`) to systemd; tell whether there was somebody to tell.

    Raises OSError where the socket that NOTIFY_SOCKET names cannot be written.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        # A leading @ stands for the abstract namespace.
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())
    return True
