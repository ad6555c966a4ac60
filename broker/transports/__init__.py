"""Sockets: TCP, TLS, unix and WebSocket listeners around the core's connections, and the loop that drives them."""
