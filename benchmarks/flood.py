"""How long a well-behaved pair waits beside a client that floods the broker.

    python -m benchmarks.flood [--seconds 5]

One client publishes a message to another every two milliseconds and the time until it arrives is taken, first alone,
then beside a publisher that sends small messages to changing topics as fast as the broker reads them. The broker has
one core, the clients share the other.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.mqtt.packets import Connect, Publish, Subscribe, SubscriptionRequest, Version

_PORT = 28_885
_V311 = Version.V311


async def _connect(name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", _PORT)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
            continue
        writer.write(Connect(version=_V311, client_id=name).encode())
        await reader.readexactly(4)
        return reader, writer


async def flood(seconds: float) -> None:
    """Publish as fast as the broker reads."""
    _, writer = await _connect("flood")
    batch = b"".join(Publish(topic=b"flood/%d" % (i % 50), payload=b"x" * (i % 30)).encode(_V311) for i in range(2000))
    end = time.monotonic() + seconds
    sent = 0
    while time.monotonic() < end:
        writer.write(batch)
        await writer.drain()
        sent += 2000
    print(f"flood: {sent / seconds / 1e3:.0f} k messages/s")
    writer.close()


async def pair(seconds: float) -> list[float]:
    """Return the times of messages from one client to another, in ms."""
    reader, subscriber = await _connect("to")
    _, publisher = await _connect("from")
    request = SubscriptionRequest(b"pair", 0)
    subscriber.write(Subscribe(packet_id=1, requests=[request]).encode(_V311))
    await reader.readexactly(5)
    packet = Publish(topic=b"pair", payload=b"x").encode(_V311)
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.perf_counter()
        publisher.write(packet)
        await reader.readexactly(len(packet))
        times.append((time.perf_counter() - begun) * 1e3)
        await asyncio.sleep(0.002)
    subscriber.close()
    publisher.close()
    return times


def _show(name: str, times: list[float]) -> None:
    times.sort()
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    print(f"{name:12} {len(times):6} messages   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   max {times[-1]:7.2f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--flood", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flood:
        asyncio.run(flood(arguments.seconds))
        return
    cores = sorted(os.sched_getaffinity(0))
    with TemporaryDirectory() as folder:
        config = Path(folder) / "broker.yaml"
        config.write_text(f"v4: {{1: {{listen: '127.0.0.1:{_PORT}'}}}}\n")
        broker = subprocess.Popen([sys.executable, "-m", "broker", "-q", "--config", str(config)])
        os.sched_setaffinity(broker.pid, {cores[0]})
        os.sched_setaffinity(0, {cores[-1]})
        try:
            _show("alone", asyncio.run(pair(arguments.seconds)))
            command = [sys.executable, "-m", "benchmarks.flood", "--flood", "--seconds", str(arguments.seconds + 1)]
            flooding = subprocess.Popen(command)
            _show("beside flood", asyncio.run(pair(arguments.seconds)))
            flooding.wait()
        finally:
            broker.terminate()
            broker.wait()


if __name__ == "__main__":
    main()
