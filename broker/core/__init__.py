"""The broker without a socket, a clock or a log: connections, sessions, routing, retained messages, wills.

Bytes and the time go in, bytes and events come out. Nothing here sleeps, opens or prints; the shells in
`broker.transports` and `broker.app` do, so that all of this is tested without a network.
"""
