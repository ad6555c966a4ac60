"""The chat conversation held by real clients through a real process: the clients people use, unmodified."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiomqtt
import pytest
from amqtt.client import MQTTClient
from gmqtt import Client as GmqttClient
from gmqtt.mqtt.constants import MQTTv50, MQTTv311
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.interop.sockets import TIMEOUT

ROOT = Path(__file__).parent.parent.parent
JS = Path(__file__).parent / "js"


class Process(NamedTuple):
    """A broker in a process of its own."""

    process: subprocess.Popen[str]
    tcp: int
    ws: int
    log: Path


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def wait_for(log: Path, text: str, process: subprocess.Popen[str]) -> None:
    """Return when *text* stands in the log."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        if text in log.read_text():
            return
        assert process.poll() is None, log.read_text()
        threading.Event().wait(0.02)
    raise AssertionError(f"{text!r} never came:\n{log.read_text()}")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`python -m broker --config broker.yaml` with the shipped file, on ports of the test's own."""
    folder = tmp_path_factory.mktemp("broker")
    tcp, ws = free_ports(2)
    text = (ROOT / "broker.yaml").read_text()
    config = folder / "broker.yaml"
    config.write_text(text.replace("0.0.0.0:8884", f"127.0.0.1:{tcp}").replace("0.0.0.0:8885", f"127.0.0.1:{ws}"))
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "broker", "--config", str(config), "-v"], cwd=ROOT, stderr=file, text=True
        )
    wait_for(log, "ws.1: ws://", process)
    yield Process(process, tcp, ws, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


class Service:
    """An AI-Core service on paho: answers `chat/send` on `chat/receive` at QoS 1."""

    def __init__(self, port: int, version: int, *, ws: bool = False) -> None:
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"ai-core-{version}-{ws}",
            protocol=MQTTProtocolVersion(version),
            transport="websockets" if ws else "tcp",
        )
        self.ready = threading.Event()
        self.client.on_connect = lambda client, *_: client.subscribe("chat/send", 1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = self._answer
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(TIMEOUT)

    def _answer(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        topic = getattr(message.properties, "ResponseTopic", "chat/receive")
        properties = None
        if hasattr(message.properties, "CorrelationData"):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types here
            properties.CorrelationData = message.properties.CorrelationData  # type: ignore[union-attr]
        client.publish(topic, b"answer to " + message.payload, qos=1, properties=properties)

    def close(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        self.client.loop_stop()


@contextlib.contextmanager
def service(port: int, version: int, *, ws: bool = False) -> Iterator[Service]:
    """Run a service."""
    found = Service(port, version, ws=ws)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("ws", [False, True])
def test_paho(broker: Process, version: int, ws: bool) -> None:
    """paho talks over TCP and WebSocket, in every version, at every QoS."""
    answers: list[bytes] = []
    done = threading.Event()
    ready = threading.Event()
    port = broker.ws if ws else broker.tcp
    with service(broker.tcp, version):
        page = paho.Client(
            CallbackAPIVersion.VERSION2,
            protocol=MQTTProtocolVersion(version),
            client_id=f"page-{version}-{ws}",
            transport="websockets" if ws else "tcp",
        )
        page.on_connect = lambda client, *_: client.subscribe("chat/receive", 2)
        page.on_subscribe = lambda *_: ready.set()

        def on_message(client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
            answers.append(bytes(message.payload))
            if len(answers) == 3:
                done.set()

        page.on_message = on_message
        page.connect("127.0.0.1", port)
        page.loop_start()
        assert ready.wait(TIMEOUT)
        for qos in (0, 1, 2):
            page.publish("chat/send", b"%d" % qos, qos=qos)
        assert done.wait(TIMEOUT)
        page.disconnect()
        page.loop_stop()
    assert sorted(answers) == [b"answer to 0", b"answer to 1", b"answer to 2"]


@pytest.mark.parametrize("protocol", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
@pytest.mark.parametrize("transport", ["tcp", "websockets"])
async def test_aiomqtt(broker: Process, protocol: aiomqtt.ProtocolVersion, transport: Any) -> None:
    """aiomqtt asks and gets its answer."""
    port = broker.tcp if transport == "tcp" else broker.ws
    with service(broker.tcp, 4):
        async with aiomqtt.Client("127.0.0.1", port, protocol=protocol, transport=transport) as client:
            await client.subscribe("chat/receive", qos=1)
            await client.publish("chat/send", b"hello", qos=2)
            async with asyncio.timeout(TIMEOUT):
                async for message in client.messages:
                    assert message.payload == b"answer to hello"
                    break


@pytest.mark.parametrize("version", [MQTTv311, MQTTv50])
async def test_gmqtt(broker: Process, version: int) -> None:
    """gmqtt asks and gets its answer."""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    subscribed = asyncio.Event()
    client = GmqttClient(f"gmqtt-{version}")
    client.on_message = lambda client, topic, payload, qos, properties: answer.set_result(payload)
    client.on_subscribe = lambda *_: subscribed.set()
    with service(broker.tcp, 5):
        await client.connect("127.0.0.1", broker.tcp, version=version)
        client.subscribe("chat/receive", qos=1)
        async with asyncio.timeout(TIMEOUT):
            await subscribed.wait()
            client.publish("chat/send", b"hello", qos=1)
            assert await answer == b"answer to hello"
        await client.disconnect()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
async def test_amqtt_client(broker: Process, scheme: str) -> None:
    """amqtt's client asks and gets its answer."""
    client = MQTTClient(client_id=f"amqtt-{scheme}", config={"auto_reconnect": False})
    with service(broker.tcp, 4):
        await client.connect(f"{scheme}://127.0.0.1:{broker.tcp if scheme == 'mqtt' else broker.ws}")
        await client.subscribe([("chat/receive", 2)])
        await client.publish("chat/send", b"hello", qos=2)
        async with asyncio.timeout(TIMEOUT):
            message = await client.deliver_message()
        assert message is not None
        assert bytes(message.data or b"") == b"answer to hello"
        await client.disconnect()


@pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_mosquitto_tools(broker: Process, version: str, qos: str) -> None:
    """mosquitto_pub and mosquitto_sub, a retained message so that nobody has to wait."""
    common = ["-h", "127.0.0.1", "-p", str(broker.tcp), "-V", version, "-q", qos, "-t", f"tools/{version}/{qos}"]
    subprocess.run(["mosquitto_pub", *common, "-m", "hello", "-r"], check=True, timeout=TIMEOUT)
    found = subprocess.run(
        ["mosquitto_sub", *common, "-C", "1", "-v"], check=True, timeout=TIMEOUT, capture_output=True, text=True
    )
    assert found.stdout == f"tools/{version}/{qos} hello\n"


@pytest.mark.parametrize("version", ["3.1", "3.1.1", "5"])
@pytest.mark.parametrize("ws", [False, True])
def test_own_tools(broker: Process, version: str, ws: bool) -> None:
    """`ternmq pub` and `ternmq sub`, with the properties of MQTT 5."""
    command = [sys.executable, "-m", "broker"]
    port = ["-p", str(broker.ws if ws else broker.tcp), "-h", "127.0.0.1", *(["--ws"] if ws else [])]
    topic = ["-t", f"own/{version}/{ws}"]
    extra = ["--content-type", "text/plain", "--user-property", "a=b"] if version == "5" else []
    subprocess.run(
        [*command, "pub", *port, "-V", version, *topic, "-m", "hello", "-r", "-q", "1", *extra],
        check=True,
        cwd=ROOT,
        timeout=TIMEOUT,
    )
    found = subprocess.run(
        [*command, "sub", *port, "-V", version, *topic, "-C", "1", "-v"],
        check=True,
        cwd=ROOT,
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
    )
    assert found.stdout.startswith(f"own/{version}/{ws}")
    assert found.stdout.endswith("hello\n")
    assert ("text/plain" in found.stdout) is (version == "5")


def run_node(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of the folder js and return what it printed."""
    found = subprocess.run(
        ["node", script, *arguments], cwd=JS, timeout=120, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
def test_mqttjs_in_node(broker: Process, version: int, scheme: str) -> None:
    """MQTT.js in Node holds the chat conversation, over TCP and WebSocket."""
    port = broker.tcp if scheme == "mqtt" else broker.ws
    with service(broker.tcp, 5):
        result = run_node("chat.mjs", f"{scheme}://127.0.0.1:{port}", str(version))
    assert result["answers"] == ["answer to 0", "answer to 1", "answer to 2"]


@pytest.mark.parametrize("version", [4, 5])
def test_mqttjs_in_chromium(broker: Process, version: int) -> None:
    """An unmodified MQTT.js page in a browser holds the chat conversation with a paho service."""
    with service(broker.tcp, version):
        result = run_node("page.mjs", f"ws://127.0.0.1:{broker.ws}/mqtt", str(version), _chromium())
    assert result["answers"] == ["answer to 0", "answer to 1", "answer to 2"]


def _chromium() -> str:
    for path in os.environ["PATH"].split(os.pathsep):
        if (Path(path) / "chromium").exists():
            return str(Path(path) / "chromium")
    raise AssertionError("there is no chromium: run tools/clients")


def test_request_and_response(broker: Process) -> None:
    """MQTT 5 request and response: response topic and correlation data find their way back [5: section 4.10]."""
    answers: list[tuple[str, bytes, bytes]] = []
    done = threading.Event()
    with service(broker.tcp, 5):
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, client_id="asker")
        subscribed = threading.Event()
        client.on_connect = lambda client, *_: client.subscribe("my/answers", 1)
        client.on_subscribe = lambda *_: subscribed.set()

        def on_message(client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
            answers.append((message.topic, bytes(message.payload), getattr(message.properties, "CorrelationData", b"")))
            done.set()

        client.on_message = on_message
        client.connect("127.0.0.1", broker.tcp)
        client.loop_start()
        assert subscribed.wait(TIMEOUT)
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types here
        properties.ResponseTopic = "my/answers"
        properties.CorrelationData = b"42"
        client.publish("chat/send", b"what?", qos=1, properties=properties)
        assert done.wait(TIMEOUT)
        client.disconnect()
        client.loop_stop()
    assert answers == [("my/answers", b"answer to what?", b"42")]
