"""Which files are privileged (PRIV)."""

from __future__ import annotations

from errno import EPERM

import pytest

from kdbusfs.abi.v3 import constants as c
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World


def is_privileged(client: Client) -> bool:
    """What a client can see of it: whether it may own a name without any policy."""
    result = client.acquire(b"a.b")
    assert result in (0, -EPERM)
    return result == 0 and client.release_name(b"a.b") == 0


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (FakeProcess(uid=1000), True),
        (FakeProcess(uid=2000, euid=1000), True),
        (FakeProcess(uid=1000, euid=2000), False),
        (FakeProcess(uid=2000), False),
        (FakeProcess(uid=2000, gid=1000, aux=(1000,)), False),
        (FakeProcess(uid=2000, ipc_owner=True), True),
        (FakeProcess(uid=0), False),
        (FakeProcess(uid=0, ipc_owner=True), True),
    ],
)
def test_priv_1_the_owner_by_euid_or_cap_ipc_owner(process: FakeProcess, expected: bool) -> None:
    """PRIV-1"""
    assert is_privileged(World().connect(process)) is expected


def test_priv_1_the_owner_is_who_made_the_bus_by_euid() -> None:
    """PRIV-1, FS-6"""
    world = World()
    assert world.make_bus(world.open_control(FakeProcess(uid=5, euid=6)), b"6-x") == 0
    for uid, expected in ((6, True), (5, False)):
        client = world.open(FakeProcess(uid=uid), bus="6-x")
        assert client.hello() == 0
        assert is_privileged(client) is expected


def test_priv_1_it_is_judged_at_open_and_stays_with_the_file() -> None:
    """PRIV-1: after setuid, and in the hands of another process."""
    world = World()
    process = FakeProcess(uid=1000)
    before_hello, connected = world.open(process), world.connect(process)
    process.uid = 2000
    assert before_hello.hello() == 0
    assert is_privileged(before_hello) and is_privileged(connected)
    connected.process = FakeProcess(uid=3000)
    assert is_privileged(connected)

    process = FakeProcess(uid=2000)
    client = world.open(process)
    process.uid, process.ipc_owner = 1000, True
    assert client.hello(flags=c.HELLO_MONITOR) == -EPERM
    assert client.hello() == 0
    assert not is_privileged(client)


def test_priv_2_nobody_is_privileged_on_a_custom_endpoint() -> None:
    """PRIV-2"""
    world = World()
    policy = i.name(b"a.b") + i.world(c.POLICY_OWN)
    assert world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD, policy) == 0
    for process in (FakeProcess(uid=1000), FakeProcess(uid=0, ipc_owner=True)):
        assert not is_privileged(world.connect(process, endpoint="1000-ep"))
