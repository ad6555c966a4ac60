"""The command line: exit codes, messages, signals."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from broker import __version__
from broker.config.load import parse_config
from broker.mqtt.packets import Version
from tests.interop.sockets import TIMEOUT, RawClient
from tests.interop.test_clients import free_ports, wait_for

ROOT = Path(__file__).parent.parent


def ternmq(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "broker", *arguments],
        cwd=cwd,
        env=environment,
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )


def start(config: Path, *arguments: str, **environment: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a broker and return it with its log."""
    log = config.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "broker", "--config", str(config), *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stderr=file,
            text=True,
        )
    return process, log


@pytest.fixture
def config(tmp_path: Path) -> tuple[Path, int]:
    """A configuration file and the port in it."""
    (port,) = free_ports(1)
    path = tmp_path / "broker.yaml"
    path.write_text(f"v4: {{1: {{listen: '127.0.0.1:{port}'}}}}\n")
    return path, port


def test_version() -> None:
    """--version says which one."""
    found = ternmq("--version")

    assert (found.returncode, found.stdout) == (0, f"ternmq {__version__}\n")


def test_unknown_flag_is_bad_input() -> None:
    """A flag that does not exist exits with 2."""
    assert ternmq("--nonsense").returncode == 2


def test_check() -> None:
    """`check` says that the shipped file is fine, and names keys without effect."""
    found = ternmq("check", "broker.yaml")

    assert found.returncode == 0
    assert "broker.yaml: fine, 2 listeners" in found.stdout
    assert "router.max_segment_size has no effect here" in found.stdout


def test_check_names_every_problem(tmp_path: Path) -> None:
    """A file with mistakes exits with 2 and one line each, a missing certificate among them."""
    path = tmp_path / "broker.yaml"
    path.write_text("v4:\n  1:\n    listn: x\nws:\n  1:\n    listen: y\n")
    found = ternmq("check", str(path))
    assert found.returncode == 2
    assert [line.split(": ")[0] for line in found.stderr.splitlines()] == [f"{path}:2", f"{path}:3", f"{path}:6"]

    path.write_text("v4: {1: {listen: 'x:1', tls: {certpath: a.pem, keypath: b.pem}}}\n")
    found = ternmq("check", str(path))
    assert found.returncode == 2
    assert "v4.1.tls.certpath: there is no file" in found.stderr


def test_check_opens_nothing(config: tuple[Path, int]) -> None:
    """`check` works while the port is taken."""
    path, port = config
    with socket.create_server(("127.0.0.1", port)):
        assert ternmq("check", str(path)).returncode == 0


def test_run_with_a_bad_file_exits_2(tmp_path: Path) -> None:
    """The broker does not start on a file that is wrong."""
    found = ternmq("--config", str(tmp_path / "nothing.yaml"))

    assert found.returncode == 2
    assert "nothing.yaml: cannot be read" in found.stderr


def test_port_in_use_exits_1(config: tuple[Path, int]) -> None:
    """A port that is taken is named with its key."""
    path, port = config
    with socket.create_server(("127.0.0.1", port)):
        found = ternmq("--config", str(path))

    assert found.returncode == 1
    assert f"v4.1.listen: cannot listen on 127.0.0.1:{port}" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_in_order(config: tuple[Path, int], number: signal.Signals) -> None:
    """SIGTERM and SIGINT end with exit code 0, and clients are told."""
    path, port = config
    process, log = start(path)
    wait_for(log, "v4.1: mqtt://", process)
    with RawClient(("127.0.0.1", port), Version.V5) as raw:
        raw.connect("a")
        process.send_signal(number)
        assert getattr(raw.receive(), "reason", None) == 0x8B
    assert process.wait(TIMEOUT) == 0
    assert log.read_text().rstrip().endswith("stopped")


def test_start_says_what_is_served(config: tuple[Path, int]) -> None:
    """A few lines: version, file, address, protection."""
    path, port = config
    process, log = start(path)
    wait_for(log, "v4.1: mqtt://", process)
    process.terminate()
    process.wait(TIMEOUT)

    assert f"v4.1: mqtt://127.0.0.1:{port} (MQTT 3.1, 3.1.1 and 5; no TLS; anonymous clients allowed" in log.read_text()


def test_quiet_says_nothing(config: tuple[Path, int]) -> None:
    """-q leaves warnings and errors."""
    path, port = config
    process, log = start(path, "-q")
    while True:
        assert process.poll() is None
        try:
            RawClient(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            continue
    process.terminate()
    assert process.wait(TIMEOUT) == 0
    assert "v4.1" not in log.read_text().replace("on v4.1", "")


def test_systemd_is_told(config: tuple[Path, int], tmp_path: Path) -> None:
    """READY=1 when the ports are open, STOPPING=1 when it stops."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(TIMEOUT)
        process, _ = start(config[0], NOTIFY_SOCKET=address)
        assert sock.recv(100) == b"READY=1"
        RawClient(("127.0.0.1", config[1])).close()
        process.terminate()
        assert sock.recv(100) == b"STOPPING=1"
    assert process.wait(TIMEOUT) == 0


def test_host_replaces_the_address(config: tuple[Path, int]) -> None:
    """--host listens elsewhere on the same ports."""
    path, port = config
    process, log = start(path, "--host", "127.0.0.2")
    wait_for(log, f"v4.1: mqtt://127.0.0.2:{port}", process)
    RawClient(("127.0.0.2", port)).close()
    process.terminate()
    assert process.wait(TIMEOUT) == 0


def test_foreign_plugins_folder_is_named(tmp_path: Path) -> None:
    """A folder `plugins` in the working directory that would hide ours is one clear error."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "__init__.py").touch()
    found = ternmq("--version", cwd=tmp_path)

    assert found.returncode == 1
    assert f"the folder {tmp_path / 'plugins'} hides ternmq's own package" in found.stderr


def test_generated_configuration_is_one() -> None:
    """`generate-config` prints what `check` takes."""
    found = ternmq("generate-config")

    assert found.returncode == 0
    assert parse_config(found.stdout, "b.yaml").v4["1"].listen == "localhost:1883"


def test_import_translates_rumqttds_file(tmp_path: Path) -> None:
    """A rumqttd.toml comes out as YAML that means the same, with notes on what does nothing here."""
    toml = tmp_path / "rumqttd.toml"
    toml.write_text(
        "id = 0\n[router]\nid = 0\nmax_connections = 10010\nmax_outgoing_packet_count = 200\n"
        'max_segment_size = 104857600\nmax_segment_count = 10\n[ws.1]\nname = "ws-1"\nlisten = "0.0.0.0:8083"\n'
        "next_connection_delay_ms = 1\n[ws.1.connections]\nconnection_timeout_ms = 60000\nmax_client_id_len = 256\n"
        "throttle_delay_ms = 0\nmax_payload_size = 20480\nmax_inflight_count = 500\nmax_inflight_size = 1024\n"
    )
    found = ternmq("import", str(toml))

    assert found.returncode == 0
    assert parse_config(found.stdout, "b.yaml") == parse_config(toml.read_text(), "b.toml")
    assert "# router.max_segment_size has no effect here" in found.stdout
    assert yaml.safe_load(found.stdout)["ws"]["1"]["connections"]["max_inflight_size"] == 1024


def test_clients_say_what_is_wrong() -> None:
    """`pub` and `sub` name what they cannot reach or use."""
    (port,) = free_ports(1)
    for command, extra in (("pub", ["-m", "x"]), ("sub", [])):
        found = ternmq(command, "-t", "t", "-p", str(port), *extra)
        assert found.returncode == 1
        assert f"cannot connect to localhost:{port}" in found.stderr
    found = ternmq("pub", "-t", "t", "-m", "x", "-V", "7")
    assert found.returncode == 1
    assert "choose 3.1, 3.1.1 or 5" in found.stderr
