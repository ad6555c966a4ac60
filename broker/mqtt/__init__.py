"""The protocol: packets, properties, reason codes, topics for MQTT 3.1, 3.1.1 and 5.

Everything in this package is a pure function of bytes; it opens nothing, logs nothing and reads no clock.
"""
