"""LIM: the limits that no other group's tests reach."""

from __future__ import annotations

from errno import EINVAL, EMFILE, EMSGSIZE, ENAMETOOLONG, ENOBUFS
from struct import pack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.commands import COMMANDS
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import FakeProcess, World


@pytest.mark.parametrize(
    ("size", "result"), [(0, -EINVAL), (7, -EINVAL), (8, 0), (12, -EINVAL), (4096, 0), (4104, -EINVAL)]
)
def test_lim_5_bloom_fields_have_8_to_4096_bytes_in_eights(world: World, size: int, result: int) -> None:
    control = world.open_control(world.owner)
    assert world.make_bus(control, b"1000-other", bloom=size) == result


@pytest.mark.parametrize(("length", "result"), [(63, 0), (64, -ENAMETOOLONG)])
def test_lim_7_names_of_buses_endpoints_and_descriptions_have_63_characters(
    world: World, length: int, result: int
) -> None:
    name = b"1000-" + b"x" * (length - 5)
    assert world.make_bus(world.open_control(world.owner), name) == result
    assert world.open().make_endpoint(name) == result
    description = make_item(c.ITEM_CONN_DESCRIPTION, b"x" * length + b"\0")
    assert world.open().hello(items=description) == result


def test_lim_8_every_command_has_its_greatest_size() -> None:
    sizes = {command.name: command.max_size for command in COMMANDS.values()}
    assert sizes == {
        "BUS_MAKE": 32768,
        "ENDPOINT_MAKE": 32768,
        "HELLO": 32768,
        "SEND": 32768,
        "RECV": 32768,
        "FREE": 8192,
        "NAME_ACQUIRE": 304,
        "NAME_RELEASE": 304,
        "NAME_LIST": 8192,
        "CONN_INFO": 328,  # GEN-8: with the item header that v3 forgets
        "CONN_UPDATE": 32768,
        "BUS_CREATOR_INFO": 328,
        "ENDPOINT_UPDATE": 32768,
        "MATCH_ADD": 32768,
        "MATCH_REMOVE": 40,
    }


def test_lim_8_one_byte_beyond_is_emsgsize(world: World) -> None:
    client = world.connect()
    for number, most in ((c.CMD_SEND, 32768), (c.CMD_RECV, 32768), (c.CMD_FREE, 8192), (c.CMD_NAME_LIST, 8192)):
        command = COMMANDS[number]
        filler = make_item(99, bytes(most - command.size - 16))
        assert client.command(number, bytes(command.size), filler) != -EMSGSIZE
        assert client.command(number, bytes(command.size), filler + b"\0") == -EMSGSIZE


def test_lim_10_policies_within_the_command_are_never_too_big(world: World) -> None:
    access = make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", c.POLICY_ACCESS_WORLD, c.POLICY_OWN, 0))
    name = make_item(c.ITEM_MAKE_NAME, b"1000-custom\0") + make_item(c.ITEM_NAME, b"a.b\0")
    count = (32768 - 32 - len(name)) // len(access)
    assert world.open().make_endpoint(b"1000-custom", items=make_item(c.ITEM_NAME, b"a.b\0") + access * count) == 0
    assert world.open().make_endpoint(b"1000-more", items=access * (count + 2)) == -EMSGSIZE


def test_lim_14_a_user_has_1024_connections_in_the_domain(world: World) -> None:
    process = FakeProcess(uid=2000, pid=200)
    clients = [world.connect(process, pool_size=4096) for _ in range(1024)]
    extra = world.open(process)
    assert extra.hello(pool_size=4096) == -EMFILE
    assert world.open().hello(pool_size=4096) == 0
    clients[0].byebye()
    assert extra.hello(pool_size=4096) == -EMFILE  # HELLO-13: until its file is closed
    clients[0].close()
    assert extra.hello(pool_size=4096) == 0


def test_lim_14_a_user_has_16_buses_in_the_domain(world: World) -> None:
    controls = [world.open_control(world.owner) for _ in range(16)]
    made = [world.make_bus(control, b"1000-%d" % number) for number, control in enumerate(controls)]
    assert made == [0] * 15 + [-EMFILE]
    controls[0].close()
    assert world.make_bus(controls[15], b"1000-15") == 0


def test_memory_that_a_user_makes_the_daemon_hold_comes_back(world: World) -> None:
    """Names, waiting, policies, endpoints and messages are charged to their user as long as they exist."""
    owner, server = world.connect(), world.connect()
    account = owner.connection.user.account
    for _ in range(3):
        assert owner.send(dst=server.id) == 0
        server.free(server.receive().offset)
    start = account.used  # the part of a pool that was ever used stays charged
    assert owner.acquire(b"a.b") == 0
    assert server.acquire(b"a.b", c.NAME_QUEUE) == 0
    maker = world.open()
    assert maker.make_endpoint(b"1000-ep") == 0
    for _ in range(3):
        assert owner.send(dst=server.id) == 0
    held = account.used
    assert held - start >= 3 * 2048 + 2 * 1024 + 2048
    account.limit = held
    assert owner.acquire(b"c.d") == -ENOBUFS
    assert owner.send(dst=server.id) == -ENOBUFS
    assert world.open().make_endpoint(b"1000-other") == -ENOBUFS
    account.limit = 1 << 30
    for _ in range(3):
        server.free(server.receive().offset)
    assert owner.release_name(b"a.b") == 0
    assert server.release_name(b"a.b") == 0
    maker.close()
    assert account.used == start
