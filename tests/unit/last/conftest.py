"""Worlds in memory for tests of the last ABI."""

from __future__ import annotations

import pytest

from tests.support.last_client import LastClient, LastWorld


@pytest.fixture
def world() -> LastWorld:
    return LastWorld()


@pytest.fixture
def pair(world: LastWorld) -> tuple[LastClient, LastClient]:
    return world.last(), world.last()
