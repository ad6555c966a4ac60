"""The broker against a reference model: clients come, go, subscribe, publish and acknowledge in any order.

A journal takes part: what its records say must survive is what the broker has, after every step. The model knows
nothing of runs, stretches, routes or caches: it has for each session a set of filters, and a list of
the QoS 1 and 2 messages that it is owed, of which the first few must be in the client's hands.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.core.limits import ConnectionLimits
from broker.mqtt.packets import Ack, ConnAck, Publish, SubAck, SubscriptionRequest, UnsubAck, Unsubscribe, Version
from broker.mqtt.packets import Subscribe as SubscribePacket
from broker.mqtt.topics import matches
from tests.core.journal_model import JournalModel
from tests.harness import PUBACK, PUBCOMP, PUBREC, PUBREL, V5, V311, Client, Harness, examples

NAMES = ("a", "b", "c")
FILTERS = ("t/1", "t/2", "t/+", "#", "+/1", "$x/#")
TOPICS = ("t/1", "t/2", "u", "$x/1")
WINDOW = 3


@dataclass
class Expected:
    """What the model knows of a session."""

    filters: dict[str, int] = field(default_factory=dict)
    #: Payload and QoS of QoS 1 and 2 messages that are not acknowledged, oldest first.
    owed: list[tuple[bytes, int]] = field(default_factory=list)
    #: QoS 0 messages that must have come since they were last looked at.
    live: list[bytes] = field(default_factory=list)

    def granted(self, topic: str) -> int | None:
        """Return the highest QoS of the filters that match, or None."""
        found = [qos for topic_filter, qos in self.filters.items() if matches(topic_filter.encode(), topic.encode())]
        return max(found) if found else None


class BrokerAgainstModel(RuleBasedStateMachine):
    """Every step is done on both; after each, what every client has received must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = JournalModel()
        self.harness = Harness(limits=ConnectionLimits(max_inflight_count=WINDOW), journal=self.journal)
        self.clients: dict[str, Client] = {}
        #: QoS 1 and 2 messages that a client has and has not acknowledged.
        self.inbox: dict[str, list[Publish]] = {}
        self.expected: dict[str, Expected] = {}
        self.retained: dict[str, bytes] = {}
        self.count = 0
        self.publisher = self.harness.connect("publisher", V5, limits=ConnectionLimits(max_inflight_count=1000))

    # --- steps --------------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), version=st.sampled_from([V311, V5]), clean=st.booleans())
    def connect(self, name: str, version: Version, clean: bool) -> None:
        """A client connects, perhaps while it is connected, perhaps in another version than before."""
        if clean and version is V311:
            return  # its session would end with its connection: the model has durable ones alone
        known = name in self.expected and not clean
        properties = {"session_expiry_interval": 1000} if version is V5 else {}
        if not known:
            self.expected[name] = Expected()
        self.inbox[name] = []
        self.clients[name] = self.harness.connect(
            name, version, clean_start=clean, session_present=known, properties=properties
        )

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """A client's network goes away."""
        name = data.draw(st.sampled_from(sorted(self.clients)))
        self.clients.pop(name).lose()
        self.inbox[name] = []

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), topic_filter=st.sampled_from(FILTERS), qos=st.integers(0, 2))
    def subscribe(self, data: st.DataObject, topic_filter: str, qos: int) -> None:
        """A client subscribes, and gets what is retained."""
        name = data.draw(st.sampled_from(sorted(self.clients)))
        request = SubscriptionRequest(topic_filter.encode(), qos)
        client, expected = self.clients[name], self.expected[name]
        expected.filters[topic_filter] = qos
        wanted = [topic for topic in self.retained if matches(topic_filter.encode(), topic.encode())]
        # The order among topics is the broker's choice.
        chosen = [topic.decode() for topic in self.harness.router.retained.topics(topic_filter.encode())]
        assert sorted(chosen) == sorted(wanted)
        for topic in chosen:
            self.expect(name, self.retained[topic], min(1, qos))
        client.send(SubscribePacket(packet_id=client.take_id(), requests=[request]).encode(client.version))

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), topic_filter=st.sampled_from(FILTERS))
    def unsubscribe(self, data: st.DataObject, topic_filter: str) -> None:
        """A client unsubscribes."""
        name = data.draw(st.sampled_from(sorted(self.clients)))
        client = self.clients[name]
        packet = Unsubscribe(packet_id=client.take_id(), topic_filters=[topic_filter.encode()])
        client.send(packet.encode(client.version))
        self.expected[name].filters.pop(topic_filter, None)

    @rule(topic=st.sampled_from(TOPICS), qos=st.integers(0, 2), count=st.sampled_from([1, 1, 2, 5]))
    def publish(self, topic: str, qos: int, count: int) -> None:
        """Messages are published, one or a run."""
        packets = []
        for _ in range(count):
            payload = self.new_payload(topic, qos)
            packet_id = self.publisher.take_id() if qos else 0
            packets.append(Publish(topic=topic.encode(), payload=payload, qos=qos, packet_id=packet_id).encode(V5))
        self.publisher.send(*packets)
        answers = self.publisher.received()
        assert len(answers) == (count if qos else 0)
        for answer in answers if qos == 2 else []:
            assert isinstance(answer, Ack)
            self.publisher.ack(PUBREL, answer.packet_id)
            assert self.publisher.received() == [answer]

    @rule(topic=st.sampled_from(TOPICS), clear=st.booleans())
    def retain(self, topic: str, clear: bool) -> None:
        """A message is retained, or the one that was is cleared."""
        payload = b"" if clear else None
        payload = self.new_payload(topic, 1, payload)
        if clear:
            self.retained.pop(topic, None)
        else:
            self.retained[topic] = payload
        self.publisher.publish(topic, payload, 1, retain=True)
        assert len(self.publisher.received()) == 1

    def new_payload(self, topic: str, qos: int, payload: bytes | None = None) -> bytes:
        """Return the payload of a new message, which everybody who subscribed is to get."""
        self.count += 1
        if payload is None:
            payload = b"%06d" % self.count
        for name, expected in self.expected.items():
            granted = expected.granted(topic)
            if granted is not None:
                self.expect(name, payload, min(qos, granted))
        return payload

    def expect(self, name: str, payload: bytes, qos: int) -> None:
        """Note that a session is to get a message."""
        if qos:
            self.expected[name].owed.append((payload, qos))
        elif name in self.clients:
            self.expected[name].live.append(payload)

    @precondition(lambda self: any(self.inbox.values()))
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """A client acknowledges some of what it has, in any order."""
        name = data.draw(st.sampled_from(sorted(name for name, found in self.inbox.items() if found)))
        client, inbox = self.clients[name], self.inbox[name]
        for message in data.draw(st.permutations(inbox))[: data.draw(st.integers(1, WINDOW))]:
            client.ack(PUBACK if message.qos == 1 else PUBREC, message.packet_id)
            inbox.remove(message)
            self.expected[name].owed.remove((message.payload, message.qos))

    # --- checks -------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> None:
        """Take what has come, and finish QoS 2 exchanges, until nothing more comes."""
        client = self.clients[name]
        live = []
        while packets := client.received():
            for packet in packets:
                match packet:
                    case Publish(qos=0):
                        live.append(packet.payload)
                    case Publish():
                        self.inbox[name].append(packet)
                    case Ack():
                        client.ack(PUBCOMP, packet.packet_id)
                    case _:
                        assert isinstance(packet, ConnAck | SubAck | UnsubAck), packet
        assert live == self.expected[name].live
        self.expected[name].live = []

    @invariant()
    def clients_have_what_they_are_owed(self) -> None:
        """The oldest messages, as many as the window takes, are in the client's hands, each once."""
        for name, expected in self.expected.items():
            if name in self.clients:
                self.read(name)
                has = [(message.payload, message.qos) for message in self.inbox[name]]
                assert sorted(has) == sorted(expected.owed[:WINDOW])

    @invariant()
    def broker_has_what_the_model_has(self) -> None:
        """Sessions, subscriptions and retained messages are the same, and nobody is disturbed."""
        sessions = self.harness.router.sessions
        assert set(sessions) == {"publisher", *self.expected}
        for name, expected in self.expected.items():
            assert {f.decode() for f in sessions[name].subscriptions} == set(expected.filters)
            assert (sessions[name].connection is not None) is (name in self.clients)
        assert not self.publisher.is_closed
        assert len(self.harness.router.retained) == len(self.retained)
        self.journal.compare(self.harness.router)


BrokerAgainstModel.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=40)
TestBrokerAgainstModel = BrokerAgainstModel.TestCase
