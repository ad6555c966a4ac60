"""Fixtures that tests of the core share."""

import pytest

from broker.mqtt.packets import Version
from tests.harness import VERSIONS, Harness


@pytest.fixture
def harness() -> Harness:
    """A broker with default limits."""
    return Harness()


@pytest.fixture(params=VERSIONS, ids=lambda version: f"v{version.text}")
def version(request: pytest.FixtureRequest) -> Version:
    """Each protocol version in turn."""
    assert isinstance(request.param, Version)
    return request.param
