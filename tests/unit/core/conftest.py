"""Worlds in memory for tests of the core."""

from __future__ import annotations

import pytest

from tests.support.core_client import Client, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def pair(world: World) -> tuple[Client, Client]:
    return world.connect(), world.connect()
