"""A broker for any project's tests: the fixture `ternmq_broker`.

    async def test_my_service(ternmq_broker):
        host, port = "127.0.0.1", ternmq_broker.port("v4.1")

It is installed with ternmq; nothing needs to be imported. Each test gets a broker of its own, on ports of its own.
"""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from broker.app import Broker

__all__ = ["RunningBroker", "ternmq_broker"]

_TEST_CONFIG = {
    "v4": {"1": {"name": "tcp", "listen": "127.0.0.1:0"}},
    "ws": {"1": {"name": "ws", "listen": "127.0.0.1:0"}},
}


class RunningBroker:
    """A broker on a loop in a thread of its own, so that tests of any kind can use it."""

    def __init__(self, broker: Broker | None = None) -> None:
        self.broker = broker if broker is not None else Broker(_TEST_CONFIG)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ternmq", daemon=True)

    def start(self) -> None:
        """Serve; raises StartError where a port cannot be opened."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.broker.start(), self._loop).result()

    def stop(self) -> None:
        """Stop serving, in order."""
        asyncio.run_coroutine_threadsafe(self.broker.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def port(self, place: str = "v4.1") -> int:
        """Return the port of a listener: `v4.1` is MQTT, `ws.1` MQTT over WebSocket."""
        return self.broker.port(place)


@pytest.fixture
def ternmq_broker() -> Iterator[RunningBroker]:
    """A running broker; `ternmq_broker.port("v4.1")` and `.port("ws.1")` are its ports on 127.0.0.1."""
    running = RunningBroker()
    running.start()
    try:
        yield running
    finally:
        running.stop()
