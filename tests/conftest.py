"""Fixtures that tests of the core share."""

import pytest
from hypothesis import settings

from broker.mqtt.packets import Version
from tests.harness import VERSIONS, Harness

# Machines are shared and noisy: how long an example takes says nothing.
settings.register_profile("ternmq", deadline=None)
settings.load_profile("ternmq")


@pytest.fixture
def harness() -> Harness:
    """A broker with default limits."""
    return Harness()


@pytest.fixture(params=VERSIONS, ids=lambda version: f"v{version.text}")
def version(request: pytest.FixtureRequest) -> Version:
    """Each protocol version in turn."""
    assert isinstance(request.param, Version)
    return request.param
