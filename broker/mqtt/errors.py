"""What can be wrong with the bytes of a client; each error carries the reason code that MQTT 5 has for it."""

from broker.mqtt.reason_codes import ReasonCode

__all__ = ["MalformedPacket", "MqttError", "PacketTooLarge", "ProtocolViolation"]


class MqttError(Exception):
    """A client broke a rule; its connection ends with *reason*, and *message* says what it did."""

    def __init__(self, reason: ReasonCode, message: str) -> None:
        self.reason = reason
        self.message = message
        super().__init__(f"{message} ({reason.text}, 0x{reason:02X})")


class MalformedPacket(MqttError):
    """The bytes cannot be parsed according to the specification [5: section 4.13]."""

    def __init__(self, message: str) -> None:
        super().__init__(ReasonCode.MALFORMED_PACKET, message)


class ProtocolViolation(MqttError):
    """The packet parses, but is not allowed here [5: section 4.13]."""

    def __init__(self, message: str) -> None:
        super().__init__(ReasonCode.PROTOCOL_ERROR, message)


class PacketTooLarge(MqttError):
    """The packet is larger than the receiver accepts [5: section 3.1.2.11.4]."""

    def __init__(self, message: str) -> None:
        super().__init__(ReasonCode.PACKET_TOO_LARGE, message)
