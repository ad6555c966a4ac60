"""A first look at throughput: the broker on one core, this generator on the other, closed loop.

    python -m benchmarks.quick [--seconds 3]

Every message is accounted for by bytes: a window of undelivered batches is kept, and a run ends when all has come. It
measures this broker alone; how it stands beside others is another benchmark's business.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

from broker.mqtt.packets import Connect, Publish, Subscribe, SubscriptionRequest, Version

_PORT = 28_884
#: Batches that may be on their way.
_WINDOW = 3


class Scenario(NamedTuple):
    """What is published, and to how many."""

    name: str
    version: Version
    qos: int
    subscribers: int
    batch: int
    mixed: bool = False


_SCENARIOS = (
    Scenario("QoS 0 1→1, 3.1.1", Version.V311, 0, 1, 2000),
    Scenario("QoS 0 1→1, 5", Version.V5, 0, 1, 2000),
    Scenario("QoS 1 1→1, 3.1.1", Version.V311, 1, 1, 100),
    Scenario("QoS 1 1→1, 5", Version.V5, 1, 1, 100),
    Scenario("QoS 0 1→100, 3.1.1", Version.V311, 0, 100, 50),
    Scenario("QoS 1 1→100, 3.1.1", Version.V311, 1, 100, 50),
    Scenario("QoS 0 1→1000, 3.1.1", Version.V311, 0, 1000, 50),
    Scenario("QoS 0 mixed sizes and topics 1→10, 3.1.1", Version.V311, 0, 10, 200, mixed=True),
    Scenario("QoS 0 mixed sizes and topics 1→10, 5", Version.V5, 0, 10, 200, mixed=True),
)


class Subscriber(asyncio.Protocol):
    """Counts bytes, and acknowledges QoS 1 messages of one size."""

    def __init__(self, scenario: Scenario, size: int, id_at: int) -> None:
        self.received = 0
        self.is_ready = asyncio.Event()
        self._scenario = scenario
        self._size = size
        self._id_at = id_at
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect and subscribe."""
        self._transport = cast("asyncio.Transport", transport)
        transport = self._transport
        version = self._scenario.version
        request = SubscriptionRequest(b"bench/#", self._scenario.qos)
        connect = Connect(version=version, client_id=f"subscriber-{id(self)}").encode()
        transport.write(connect + Subscribe(packet_id=1, requests=[request]).encode(version))

    def data_received(self, data: bytes) -> None:
        """Count."""
        if not self.is_ready.is_set():
            self.is_ready.set()
            return
        self.received += len(data)
        if not self._scenario.qos:
            return
        data = self._rest + data
        whole = len(data) // self._size
        self._rest = data[whole * self._size :]
        answer = bytearray(b"\x40\x02\x00\x00" * whole)
        answer[2::4] = data[self._id_at : whole * self._size : self._size]
        answer[3::4] = data[self._id_at + 1 : whole * self._size : self._size]
        self._transport.write(bytes(answer))


class Publisher(asyncio.Protocol):
    """Knows when it may write."""

    def __init__(self, version: Version) -> None:
        self.may_write = asyncio.Event()
        self.may_write.set()
        self._version = version

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect."""
        cast("asyncio.Transport", transport).write(Connect(version=self._version, client_id="publisher").encode())

    def pause_writing(self) -> None:
        """Wait."""
        self.may_write.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self.may_write.set()


async def measure(scenario: Scenario, seconds: float) -> float:
    """Return deliveries per second."""
    loop = asyncio.get_running_loop()
    packets = [
        Publish(
            topic=b"bench/%d" % (i % 7 if scenario.mixed else 0),
            payload=b"x" * (90 + i % 20 if scenario.mixed else 100),
            qos=scenario.qos,
            packet_id=i + 1 if scenario.qos else 0,
        ).encode(scenario.version)
        for i in range(scenario.batch)
    ]
    batch = b"".join(packets)
    id_at = packets[0].index(b"bench/0") + len(b"bench/0")
    subscribers = []
    for _ in range(scenario.subscribers):
        transport, subscriber = await loop.create_connection(
            lambda: Subscriber(scenario, len(packets[0]), id_at), "127.0.0.1", _PORT
        )
        subscribers.append((transport, subscriber))
    for _, subscriber in subscribers:
        await subscriber.is_ready.wait()
    writer, publisher = await loop.create_connection(lambda: Publisher(scenario.version), "127.0.0.1", _PORT)

    async def all_have(size: int) -> None:
        while min(s.received for _, s in subscribers) < size:  # noqa: ASYNC110  # an event for each read would cost more
            await asyncio.sleep(0)

    sent = 0
    window = 1 if scenario.qos else _WINDOW
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        writer.write(batch)
        sent += 1
        await publisher.may_write.wait()
        await all_have((sent - window) * len(batch))
    await all_have(sent * len(batch))
    rate = sent * scenario.batch * scenario.subscribers / (time.perf_counter() - begun)
    for transport, _ in (*subscribers, (writer, None)):
        transport.abort()
    return rate


def main() -> None:
    """Start a broker, measure every scenario, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each scenario")
    seconds = parser.parse_args().seconds
    cores = sorted(os.sched_getaffinity(0))
    with TemporaryDirectory() as folder:
        config = Path(folder) / "broker.yaml"
        config.write_text(f"v4: {{1: {{listen: '127.0.0.1:{_PORT}', connections: {{max_inflight_count: 65535}}}}}}\n")
        broker = subprocess.Popen([sys.executable, "-m", "broker", "-q", "--config", str(config)])
        os.sched_setaffinity(broker.pid, {cores[0]})
        os.sched_setaffinity(0, {cores[-1]})
        try:
            asyncio.run(_ready())
            import uvloop

            for scenario in _SCENARIOS:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    rate = runner.run(measure(scenario, seconds))
                print(f"{scenario.name:45} {rate / 1e3:9.0f} k deliveries/s", flush=True)
        finally:
            broker.terminate()
            broker.wait()


async def _ready() -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", _PORT)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return


if __name__ == "__main__":
    main()
