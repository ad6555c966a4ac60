"""Enhanced authentication: AUTH back and forth, driven by a plugin [5: section 4.12]."""

import pytest

from broker.core.hooks import AuthStep, Decision, Hooks, Login, Pending
from broker.core.limits import ConnectionLimits
from broker.mqtt.packets import (
    PINGREQ,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Version,
)
from broker.mqtt.reason_codes import ReasonCode
from tests.harness import V5, V31, V311, Harness

S = pytest.mark.statement
ALLOW, DENY = Decision.ALLOW, Decision.DENY


class TwoSteps:
    """An exchange that wants `one`, then `two`."""

    def __init__(self, login: Login) -> None:
        self.expected = [b"one", b"two"]

    def step(self, data: bytes | None) -> AuthStep | Pending[AuthStep]:
        """Check the next word."""
        if data != self.expected.pop(0):
            return AuthStep(reason=ReasonCode.NOT_AUTHORIZED)
        if self.expected:
            return AuthStep(reason=ReasonCode.CONTINUE_AUTHENTICATION, data=b"more")
        return AuthStep(reason=ReasonCode.SUCCESS, data=b"welcome", user="somebody")


def auth(data: bytes, reason: ReasonCode = ReasonCode.CONTINUE_AUTHENTICATION, method: str = "two-steps") -> bytes:
    """Return an AUTH packet."""
    return Auth(reason=reason, properties={"authentication_method": method, "authentication_data": data}).encode()


def connect(data: bytes, method: str = "two-steps") -> bytes:
    """Return a CONNECT that begins the exchange."""
    properties = {"authentication_method": method, "authentication_data": data}
    return Connect(version=V5, client_id="a", properties=properties).encode()


@S("5:MQTT-4.12.0-2", "5:MQTT-4.12.0-3", "5:MQTT-4.12.0-5", "5:MQTT-3.15.1-1", "5:MQTT-4.12.0-7")
def test_enhanced_authentication() -> None:
    """AUTH goes back and forth until CONNACK; a re-authentication later ends in AUTH 0x00."""
    harness = Harness(hooks=Hooks(exchanges={"two-steps": TwoSteps}))
    client = harness.open(V5)
    client.send(connect(b"one"))
    (step,) = client.received()
    assert isinstance(step, Auth)
    assert step.reason is ReasonCode.CONTINUE_AUTHENTICATION
    assert step.properties == {"authentication_method": "two-steps", "authentication_data": b"more"}
    client.send(auth(b"two"))
    (connack,) = client.received()
    assert isinstance(connack, ConnAck)
    assert connack.properties["authentication_data"] == b"welcome"
    assert connack.properties["authentication_method"] == "two-steps"
    assert client.connection.user_name == "somebody"
    client.send(auth(b"one", ReasonCode.RE_AUTHENTICATE))
    client.send(auth(b"two"))

    again, done = client.received()

    assert isinstance(again, Auth)
    assert isinstance(done, Auth)
    assert [again.reason, done.reason] == [0x18, 0]


@S("5:MQTT-4.12.0-4", "5:MQTT-4.12.0-1", "5:MQTT-4.12.1-2", "5:MQTT-4.12.1-1")
def test_failed_authentication() -> None:
    """A failed exchange ends in CONNACK with its reason, a failed re-authentication in DISCONNECT."""
    harness = Harness(hooks=Hooks(exchanges={"two-steps": TwoSteps}))
    for packets, expected in (([connect(b"wrong")], 0x87), ([connect(b"", "unknown")], 0x8C)):
        client = harness.open(V5)
        client.send(*packets)
        (connack,) = client.received()
        assert isinstance(connack, ConnAck)
        assert connack.reason == expected
    client = harness.open(V5)
    client.send(connect(b"one"))
    client.send(auth(b"two"))
    client.send(auth(b"wrong", ReasonCode.RE_AUTHENTICATE))

    packet = client.received()[-1]

    assert isinstance(packet, Disconnect)
    assert packet.reason is ReasonCode.NOT_AUTHORIZED


@S("5:MQTT-3.1.2-30", "5:MQTT-4.12.0-6", "5:MQTT-4.12.0-7")
@pytest.mark.parametrize(
    "packet",
    [PINGREQ, auth(b"two", method="other"), auth(b"two", ReasonCode.RE_AUTHENTICATE), Auth().encode()],
)
def test_only_auth_may_come_during_the_exchange(packet: bytes) -> None:
    """Anything but AUTH of the same method, or DISCONNECT, ends the connection."""
    harness = Harness(hooks=Hooks(exchanges={"two-steps": TwoSteps}))
    client = harness.open(V5)
    client.send(connect(b"one"))
    client.received()
    client.send(packet)

    assert client.is_closed
    assert not harness.router.sessions


def test_auth_without_method_is_a_protocol_error(version: Version) -> None:
    """AUTH needs a CONNECT with a method, and MQTT 5."""
    client = Harness().connect("a", version)
    client.send(auth(b"x", ReasonCode.RE_AUTHENTICATE))

    assert client.is_closed


def test_client_may_give_up_during_the_exchange() -> None:
    """DISCONNECT instead of AUTH ends the connection quietly."""
    harness = Harness(hooks=Hooks(exchanges={"two-steps": TwoSteps}))
    client = harness.open(V5)
    client.send(connect(b"one"))
    client.received()
    client.disconnect()

    assert client.is_closed
    assert client.received() == []


def test_endless_exchange_is_ended() -> None:
    """A client cannot keep an exchange going for ever."""

    class Endless:
        def __init__(self, login: Login) -> None:
            pass

        def step(self, data: bytes | None) -> AuthStep:
            return AuthStep(reason=ReasonCode.CONTINUE_AUTHENTICATION)

    harness = Harness(hooks=Hooks(exchanges={"two-steps": Endless}))
    client = harness.open(V5, ConnectionLimits(max_auth_steps=3))
    client.send(connect(b""))
    for _ in range(5):
        client.send(auth(b""))

    assert client.is_closed
    assert [type(packet) for packet in client.received()] == [Auth, Auth, Auth, ConnAck]


@pytest.mark.parametrize("version", [V31, V311])
def test_auth_packet_type_is_reserved_before_5(version: Version) -> None:
    """Packet type 15 does not exist in 3.x [3.1.1: section 2.2.1]."""
    client = Harness().connect("a", version)
    client.send(b"\xf0\x00")

    assert client.is_closed


def test_exchange_is_told_who_wants_in() -> None:
    """Both a first authentication and a later one see the login."""
    logins: list[Login] = []

    class Simple:
        def __init__(self, login: Login) -> None:
            logins.append(login)

        def step(self, data: bytes | None) -> AuthStep:
            return AuthStep(reason=ReasonCode.SUCCESS)

    harness = Harness(hooks=Hooks(exchanges={"two-steps": Simple}))
    client = harness.open(V5)
    client.send(connect(b""), auth(b"", ReasonCode.RE_AUTHENTICATE))

    assert [login.client_id for login in logins] == ["a", "a"]
    assert logins[1].password is None


@pytest.mark.parametrize(
    "packets",
    [
        [auth(b"two")],
        [auth(b"one", ReasonCode.RE_AUTHENTICATE), auth(b"one", ReasonCode.RE_AUTHENTICATE)],
        [auth(b"one", ReasonCode.SUCCESS)],
        [auth(b"one", ReasonCode.RE_AUTHENTICATE, method="other")],
    ],
)
def test_authentication_out_of_turn(packets: list[bytes]) -> None:
    """A step without a beginning, a second beginning, a success of the client's own and another method are errors."""
    harness = Harness(hooks=Hooks(exchanges={"two-steps": TwoSteps}))
    client = harness.open(V5)
    client.send(connect(b"one"), auth(b"two"))
    assert not client.is_closed
    client.received()
    client.send(*packets)

    packet = client.received()[-1]

    assert isinstance(packet, Disconnect)
    assert packet.reason is ReasonCode.PROTOCOL_ERROR
    assert "reason_string" in packet.properties
