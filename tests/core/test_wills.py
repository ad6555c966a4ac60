"""Wills: when they are published, and when not."""

from typing import Any

import pytest

from broker.mqtt.packets import Connect, Version, Will
from broker.mqtt.reason_codes import ReasonCode
from tests.harness import V5, V311, Client, Harness

S = pytest.mark.statement


def watcher(harness: Harness, options: int = 0) -> Client:
    """Return a client that sees every message."""
    client = harness.connect("watcher", V5)
    client.subscribe("#", options)
    return client


def will(**properties: Any) -> Will:
    """Return a will on `gone`."""
    return Will(topic=b"gone", payload=b"bye", qos=1, properties=properties)


@S("3.1.1:MQTT-3.1.2-8", "5:MQTT-3.1.2-8", "3.1.1:MQTT-3.1.2-9", "5:MQTT-3.1.2-9", "5:MQTT-3.1.2-7")
def test_lost_connection_publishes_the_will(harness: Harness, version: Version) -> None:
    """A client that is gone without a word has its will published at the will's QoS."""
    seen = watcher(harness, 2)
    harness.connect("a", version, will=will()).lose()

    (message,) = seen.messages()

    assert (message.topic, message.payload, message.qos, message.retain) == (b"gone", b"bye", 1, False)


@pytest.mark.parametrize("how", ["keep-alive", "protocol error", "take-over", "with will"])
def test_every_other_end_publishes_it_too(harness: Harness, how: str) -> None:
    """Keep-alive, errors, take-over and DISCONNECT 0x04 are not good-byes."""
    seen = watcher(harness)
    client = harness.connect("a", V5, keep_alive=1, will=will())
    if how == "keep-alive":
        harness.advance(2)
    elif how == "protocol error":
        client.send(b"\x00\x00")
    elif how == "take-over":
        harness.connect("a", V5)
    else:
        client.disconnect(reason=ReasonCode.DISCONNECT_WITH_WILL)

    assert seen.payloads() == [b"bye"]


@S("3.1.1:MQTT-3.1.2-17", "3.1.1:MQTT-3.1.2-16", "5:MQTT-3.1.2-14", "5:MQTT-3.1.2-15")
@pytest.mark.parametrize("retain", [False, True])
def test_will_retain(harness: Harness, version: Version, retain: bool) -> None:
    """A will is retained where it says so."""
    harness.connect("a", version, will=Will(topic=b"gone", payload=b"bye", retain=retain)).lose()
    late = harness.connect("late")

    found = late.subscribe("gone")

    assert len(found) == int(retain)


@S("5:MQTT-3.1.3-9")
def test_will_delay(harness: Harness) -> None:
    """A delayed will waits exactly its delay."""
    seen = watcher(harness)
    client = harness.connect("a", V5, will=will(will_delay_interval=5), properties={"session_expiry_interval": 100})
    client.lose()
    harness.advance(4.5)
    assert seen.messages() == []

    harness.advance(0.5)

    assert seen.payloads() == [b"bye"]


@S("5:MQTT-3.1.3-9")
def test_will_is_not_sent_when_the_client_is_back(harness: Harness) -> None:
    """A client that comes back within the delay keeps its peace."""
    seen = watcher(harness)
    properties = {"session_expiry_interval": 100}
    harness.connect("a", V5, will=will(will_delay_interval=5), properties=properties).lose()
    harness.connect("a", V5, clean_start=False, session_present=True, properties=properties)
    harness.advance(10)

    assert seen.messages() == []


def test_will_is_sent_when_the_session_ends_first(harness: Harness) -> None:
    """The end of the session is the end of the delay [5: section 3.1.3.2.2]."""
    seen = watcher(harness)
    properties = {"session_expiry_interval": 3}
    harness.connect("a", V5, will=will(will_delay_interval=50), properties=properties).lose()
    harness.advance(2.5)
    assert seen.messages() == []

    harness.advance(0.5)

    assert seen.payloads() == [b"bye"]


def test_clean_start_sends_a_waiting_will(harness: Harness) -> None:
    """A client that starts anew ends the old session, whose will is due."""
    seen = watcher(harness)
    properties = {"session_expiry_interval": 100}
    harness.connect("a", V5, will=will(will_delay_interval=50), properties=properties).lose()
    harness.connect("a", V5)

    assert seen.payloads() == [b"bye"]


def test_take_over_of_a_durable_session_with_delay_sends_none(harness: Harness) -> None:
    """The session goes on at once, so the delayed will is never due."""
    seen = watcher(harness)
    properties = {"session_expiry_interval": 100}
    harness.connect("a", V5, will=will(will_delay_interval=1), properties=properties)
    harness.connect("a", V5, clean_start=False, session_present=True, properties=properties)
    harness.advance(10)

    assert seen.messages() == []


def test_will_properties_are_forwarded(harness: Harness) -> None:
    """Expiry, format, content type, response topic, correlation data and user properties go on."""
    seen = watcher(harness)
    properties = {
        "payload_format_indicator": 1,
        "message_expiry_interval": 10,
        "content_type": "text/plain",
        "response_topic": "answers",
        "correlation_data": b"\x00\x01",
        "user_property": [("b", "1"), ("a", "2"), ("b", "3")],
    }
    harness.connect("a", V5, will=will(**properties)).lose()

    (message,) = seen.messages()

    assert message.properties == properties


@S("3.1.1:MQTT-3.1.3-10", "5:MQTT-3.1.3-11")
@pytest.mark.parametrize("topic", [b"a/#", b"", b"\xff"])
def test_will_topic_is_checked_at_connect(harness: Harness, version: Version, topic: bytes) -> None:
    """A will that could never be published is refused with its CONNECT."""
    client = harness.open(version)
    client.send(Connect(version=version, client_id="a", will=Will(topic=topic, payload=b"")).encode())

    assert client.is_closed
    assert not harness.router.sessions


def test_will_reaches_the_other_version(harness: Harness) -> None:
    """A 3.1.1 subscriber gets the will of an MQTT 5 client without its properties."""
    seen = harness.connect("w", V311)
    seen.subscribe("gone", 1)
    harness.connect("a", V5, will=will(content_type="x")).lose()

    assert seen.payloads() == [b"bye"]
