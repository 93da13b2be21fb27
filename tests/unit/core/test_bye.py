"""BYEBYE."""

from __future__ import annotations

from errno import EALREADY, EBUSY, ECONNRESET, EFAULT, EOPNOTSUPP
from select import POLLERR, POLLHUP

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.base.call import PENDING
from tests.support import items as i
from tests.support.core_client import Client, World
from tests.support.core_scenes import request


@pytest.fixture
def client(world: World) -> Client:
    return world.connect()


def test_bye_1_it_disconnects_and_leaves_a_dead_file(world: World, client: Client) -> None:
    """BYE-1, CLOSE-2, POLL-3"""
    watcher = world.connect()
    assert client.acquire(b"a.b") == 0
    assert watcher.add_match(1) == 0
    world.domain.changed.clear()
    assert client.byebye() == 0
    assert client.handle in world.domain.changed
    assert client.handle.poll() == POLLERR | POLLHUP
    assert client.send(dst=watcher.id) == -ECONNRESET
    assert [watcher.receive().kinds()[0] for _ in range(2)] == [c.ITEM_NAME_REMOVE, c.ITEM_ID_REMOVE]
    assert watcher.conn_info(id=client.id) < 0


def test_bye_2_a_queue_that_is_not_empty_is_ebusy(client: Client) -> None:
    """BYE-2: without side effect; slices that were not freed do not matter."""
    assert client.send(dst=client.id) == 0
    assert client.byebye() == -EBUSY
    assert client.acquire(b"a.b") == 0
    client.receive()
    assert client.byebye() == 0


def test_bye_3_who_is_disconnected_gets_ealready(world: World, client: Client) -> None:
    """BYE-3"""
    assert client.byebye() == 0
    assert client.byebye() == -EALREADY
    other = world.connect()
    world.control.close()
    assert other.byebye() == -EALREADY


@pytest.mark.parametrize("role", [c.HELLO_ACTIVATOR, c.HELLO_POLICY_HOLDER, c.HELLO_MONITOR])
def test_bye_4_special_connections_cannot(world: World, role: int) -> None:
    """BYE-4: also dead ones."""
    client = world.connect(flags=role, items=b"" if role == c.HELLO_MONITOR else i.name(b"a.b"))
    assert client.byebye() == -EOPNOTSUPP
    world.control.close()
    assert client.byebye() == -EOPNOTSUPP


def test_bye_5_the_argument_is_ignored(client: Client) -> None:
    """BYE-5: also a message that cannot be received."""
    call = client.call(c.CMD_BYEBYE, bytes(8))
    call.data, call.command, call.error, call.address = b"", memoryview(bytearray()), EFAULT, 3
    assert client.run(call) == 0


def test_bye_6_it_ends_blocked_sends_of_the_same_connection(world: World, client: Client) -> None:
    """BYE-6: they get ECONNRESET before anything else happens."""
    peer = world.connect()
    timeout = world.host.clock.now + 10**9
    for cookie in (1, 2):
        assert request(client, peer.id, cookie, sync=True, timeout=timeout) == PENDING
    assert client.byebye() == 0
    assert [call.result for call in world.domain.completed] == [-ECONNRESET] * 2
    assert world.domain.stats()["waiting"] == 0
    assert peer.receive().cookie == 1
    assert peer.send(dst=client.id, cookie_reply=1) < 0


def test_bye_7_the_pool_stays(client: Client) -> None:
    """BYE-7: until the file is closed; what was received is readable."""
    assert client.send(dst=client.id, items=client.vec(b"payload")) == 0
    message = client.receive()
    assert client.byebye() == 0
    assert client.payloads(message) == [b"payload"]
    memory = client.memory
    assert not memory.closed
    client.close()
    assert memory.closed
