"""Worlds of bus1 in memory; what a test leaves behind is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bus1_client import Client, World, check


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def peers(world: World) -> Iterator[tuple[Client, Client, Client]]:
    """Three peers; at the end the invariants hold, and when all are closed there is no charge and no user left."""
    first, second, third = clients = world.clients(3)
    yield first, second, third
    check(world, clients)
    for client in clients:
        if client.peer.peer_id in world.core.peers:
            client.close()
    assert not world.core.peers
    assert not world.core.users
    assert not world.accounts.accounts
    assert all(not file.open_count for client in clients for file in client.process.files.values())


Peers = tuple[Client, Client, Client]
