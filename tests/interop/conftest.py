"""Running brokers for tests over sockets."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker import Broker
from broker.pytest_plugin import RunningBroker

Start = Callable[..., RunningBroker]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start brokers, each with its own configuration; all are stopped at the end."""
    running: list[RunningBroker] = []

    def start_one(config: dict[str, Any] | None = None, directory: Path = Path()) -> RunningBroker:
        broker = RunningBroker(Broker(config, directory=directory) if config is not None else None)
        broker.start()
        running.append(broker)
        return broker

    yield start_one
    for broker in running:
        broker.stop()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, a server certificate for localhost, and a client certificate for CN alice, SAN alice.test."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key",
            "-out", "ca.pem", "-days", "2", "-subj", "/CN=test CA",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    for name, subject, alternative in (("server", "localhost", "DNS:localhost"), ("client", "alice", "DNS:alice.test")):
        (folder / f"{name}.ext").write_text(
            f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\nkeyUsage=digitalSignature\n"
        )
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key",
                "-out", f"{name}.csr", "-subj", f"/CN={subject}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext")  # fmt: skip
    return folder
