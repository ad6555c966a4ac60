"""Where other nodes join: who owns a client, which filters are wanted, what is passed on."""

from typing import Any

import pytest

from broker.core.hooks import Pending
from broker.core.run import Run
from broker.mqtt.packets import ConnAck, Connect, Publish
from tests.harness import V5, V311, Client, Harness


class FakePeers:
    """Notes what this node tells the others."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def interest(self, topic_filter: bytes, present: bool) -> None:
        """Note a filter."""
        self.told.append((topic_filter, present))

    def forward(self, run: Run) -> None:
        """Note a run."""
        self.told.append((run.topic, run.count))


class FakeOwnership:
    """Answers claims as the test says."""

    def __init__(self) -> None:
        self.pending: Pending[bool] | None = None
        self.told: list[tuple[str, str]] = []

    def claim(self, client_id: str) -> Pending[bool] | None:
        """Note the claim."""
        self.told.append(("claim", client_id))
        return self.pending

    def release(self, client_id: str) -> None:
        """Note the release."""
        self.told.append(("release", client_id))


@pytest.mark.parametrize("topic_filter", ["t", "t/+", "$share/g/t", "$share/g/t/#", "$own/t"])
def test_peers_hear_of_first_and_last_interest(harness: Harness, topic_filter: str) -> None:
    """The first subscription to a filter and the loss of the last are told, plain and shared ones together."""
    peers = FakePeers()
    harness.router.peers = peers
    a, b, c = (harness.connect(name, V5) for name in "abc")
    plain = topic_filter.removeprefix("$share/g/")
    for client in (a, b, a):
        client.subscribe(topic_filter)
    c.subscribe(plain)
    assert peers.told == [(plain.encode(), True)]
    a.unsubscribe(topic_filter)
    a.unsubscribe(topic_filter)
    b.unsubscribe(topic_filter)
    b.unsubscribe("other")
    assert len(peers.told) == 1
    c.unsubscribe(plain)
    assert peers.told[1:] == [(plain.encode(), False)]
    a.subscribe(topic_filter)
    a.lose()

    assert peers.told[2:] == [(plain.encode(), True), (plain.encode(), False)]


def test_peers_get_what_is_published_here(harness: Harness) -> None:
    """Runs go on once, subscribers here or not; what a peer sent is not sent back."""
    peers = FakePeers()
    harness.router.peers = peers
    client = harness.connect("a")
    client.send(*[Publish(topic=b"t", payload=b"x").encode(V311)] * 3)
    harness.router.deliver(harness.router.route(b"t"), Run.message(b"t", b"from a peer"))

    assert peers.told == [(b"t", 3)]


def connecting(harness: Harness) -> Client:
    """Return a client that has sent CONNECT."""
    client = harness.open(V5)
    client.send(Connect(version=V5, client_id="a").encode())
    return client


def test_owner_is_asked_before_take_over(harness: Harness) -> None:
    """A claim that is pending holds CONNACK back and leaves the old connection alone; a lost one is told as 0x88."""
    ownership = FakeOwnership()
    harness.router.ownership = ownership
    old = connecting(harness)
    assert isinstance(old.received()[0], ConnAck)
    for answer in (False, True):
        ownership.pending = Pending()
        client = connecting(harness)
        assert client.received() == []
        assert not old.is_closed
        ownership.pending.resolve(answer)
        harness.turn()
        connack = client.received()[0]
        assert isinstance(connack, ConnAck)
        assert connack.reason == (0 if answer else 0x88)
        assert old.is_closed is answer
    client.lose()

    assert ownership.told == [("claim", "a")] * 3 + [("release", "a")] * 2
