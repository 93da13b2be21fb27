"""Files, buses and endpoints of the last ABI (L-1 to L-30)."""

from __future__ import annotations

from errno import EBADFD, EBUSY, ECONNRESET, EEXIST, EFAULT, EINVAL, EMFILE, ENOTTY, EOPNOTSUPP, EPERM, ESHUTDOWN
from select import POLLERR, POLLHUP, POLLIN, POLLOUT
from struct import pack

import pytest

from kdbusfs.abi import commands as k
from kdbusfs.abi import families
from kdbusfs.abi.last import constants as c
from kdbusfs.abi.last.commands import COMMANDS
from kdbusfs.abi.last.items import make_item
from kdbusfs.abi.v3 import constants as v3
from kdbusfs.abi.v3.commands import COMMANDS as V3_COMMANDS
from tests.support.core_client import Client
from tests.support.fake_host import FakeProcess
from tests.support.last_client import LastClient, LastWorld, bus_items, name_item, u64_item

SETUP = (c.CMD_BUS_MAKE, c.CMD_ENDPOINT_MAKE, c.CMD_HELLO)
OTHERS = tuple(number for number in COMMANDS if number not in SETUP)
UNKNOWN = 0x40189583


def blank(client: Client, number: int) -> int:
    """A command with nothing but zeros behind its size."""
    return client.command(number, bytes(max(8, number >> 16 & 0x3FFF)))


def dead(client: Client) -> bool:
    return client.handle.poll() == POLLERR | POLLHUP


# L-1: whose BUS_MAKE 0x40189500 is


@pytest.mark.parametrize(
    ("flags", "items", "is_v1"),
    [
        (1 << 63, b"", False),
        (1 << 63, make_item(9, b"1000-x\0"), False),
        (0, make_item(7, bytes(16)), False),
        (0, make_item(11, b"1000-x\0"), False),
        (0, make_item(12, bytes(8)), False),
        (0, make_item(5, bytes(16)), True),
        (0, make_item(9, b"1000-x\0"), True),
        (0, make_item(5, bytes(8)) + make_item(9, b"1000-x\0"), True),
        (0, make_item(7, bytes(8)) + make_item(5, bytes(16)), True),
        (0, make_item(11, b"1000-x\0") + make_item(9, b"x\0"), False),
        (0, b"", False),
        (0, make_item(3, bytes(8)), False),
        (0, pack("<QQ", 8, 1), False),
        (0, pack("<QQ", 1 << 63, 1), False),
        (0, b"1234567", False),
    ],
)
def test_l_1_items_tell_a_bus_make_of_v1_from_this_one(flags: int, items: bytes, is_v1: bool) -> None:
    struct = pack("<QQQ", 24 + len(items), flags, 0) + items
    assert families.is_bus_make_of_v1(struct) == is_v1
    assert not families.is_bus_make_of_v1(struct[:20])


def test_l_1_what_sd_bus_asks_first_is_answered_with_the_flags(world: LastWorld) -> None:
    control = world.control_last()
    assert control.simple(c.CMD_BUS_MAKE, c.FLAG_NEGOTIATE) == 0
    assert control.in_memory(8) == c.MAKE_ACCESS_GROUP | c.MAKE_ACCESS_WORLD
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items()) == 0  # the file was not used up
    assert "1000-last" in world.domain.buses


def test_l_1_without_v1_its_bus_make_is_refused(world: LastWorld) -> None:
    control = world.control_last()
    assert control.simple(c.CMD_BUS_MAKE, 0, make_item(9, b"1000-x\0") + make_item(5, bytes(16))) == -EINVAL


# L-2 to L-9: which command a file takes


def test_l_2_3_a_file_is_made_something_of_once(world: LastWorld) -> None:
    control = world.control_last()
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items()) == 0
    for number in COMMANDS:
        assert blank(control, number) == -EBADFD
    client = world.last()
    for number in (*SETUP, c.CMD_ENDPOINT_UPDATE):
        assert blank(client, number) == -EBADFD
    owner = world.open_last()
    assert owner.make_endpoint(b"1000-custom") == 0
    for number in COMMANDS:
        if number != c.CMD_ENDPOINT_UPDATE:
            assert blank(owner, number) == -EBADFD


def test_l_3_a_fresh_file_takes_its_setup_commands_alone(world: LastWorld) -> None:
    fresh, control = world.open_last(), world.control_last()
    for number in (c.CMD_BUS_MAKE, *OTHERS):
        assert blank(fresh, number) == -EBADFD
    for number in (c.CMD_ENDPOINT_MAKE, c.CMD_HELLO, *OTHERS):
        assert blank(control, number) == -EBADFD
    assert fresh.hello() == 0


def test_l_4_an_unknown_request_is_enotty_everywhere(world: LastWorld) -> None:
    control, owner, client = world.control_last(), world.open_last(), world.last()
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items()) == 0
    assert owner.make_endpoint(b"1000-custom") == 0
    gone = world.last()
    assert gone.byebye() == 0
    for file in (world.open_last(), world.control_last(), control, owner, client, gone):
        assert blank(file, UNKNOWN) == -ENOTTY


def test_l_4_requests_of_another_family_are_enotty_on_a_file_that_speaks_one(world: LastWorld) -> None:
    control, owner, client = world.control_last(), world.open_last(), world.last()
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items()) == 0
    assert owner.make_endpoint(b"1000-custom") == 0
    gone = world.last()
    assert gone.byebye() == 0
    for file in (control, owner, client, gone):
        for number in (*V3_COMMANDS, v3.CMD_BYEBYE):
            assert blank(file, number) == -ENOTTY
    old = world.connect()
    for number in COMMANDS:
        assert blank(old, number) == -ENOTTY


def test_l_5_41_a_dead_connection_is_econnreset_for_every_command_of_its_own(world: LastWorld) -> None:
    client = world.last()
    assert client.byebye() == 0
    for number in OTHERS:
        assert blank(client, number) == -ECONNRESET
    for number in SETUP:
        assert blank(client, number) == -EBADFD
    assert dead(client)


def test_l_6_files_of_an_endpoint_that_is_gone(world: LastWorld) -> None:
    owner = world.open_last()
    assert owner.make_endpoint(b"1000-custom", c.MAKE_ACCESS_WORLD) == 0
    fresh, fresh_custom = world.open_last(), world.open_last(endpoint="1000-custom")
    world.control.close()
    assert owner.update_endpoint() == -ESHUTDOWN
    assert blank(owner, c.CMD_SEND) == -ESHUTDOWN
    assert blank(owner, UNKNOWN) == -ENOTTY
    for file in (fresh, fresh_custom):
        for number in SETUP:
            assert blank(file, number) == -ESHUTDOWN
        assert blank(file, c.CMD_SEND) == -EBADFD


def test_l_6_a_domain_that_is_gone(world: LastWorld) -> None:
    control = world.control_last()
    world.domain.shutdown()
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items()) == -ESHUTDOWN
    assert blank(control, c.CMD_SEND) == -EBADFD


def test_l_7_commands_by_the_kind_of_connection(world: LastWorld) -> None:
    name = name_item(b"com.example")
    activator = world.last(flags=c.HELLO_ACTIVATOR, items=name)
    holder = world.last(flags=c.HELLO_POLICY_HOLDER, items=name_item(b"com.other"))
    monitor = world.last(flags=c.HELLO_MONITOR)
    ordinary = (
        c.CMD_BYEBYE,
        c.CMD_NAME_ACQUIRE,
        c.CMD_NAME_RELEASE,
        c.CMD_MATCH_ADD,
        c.CMD_MATCH_REMOVE,
        c.CMD_SEND,
    )
    for special in (activator, holder, monitor):
        for number in ordinary:
            assert special.command(number, bytes(8)) == -EOPNOTSUPP  # before the argument is read
        for number in (c.CMD_LIST, c.CMD_CONN_INFO, c.CMD_BUS_CREATOR_INFO, c.CMD_UPDATE):
            assert special.command(number, bytes(8)) == -EINVAL
    for number in (c.CMD_RECV, c.CMD_FREE):
        assert activator.command(number, bytes(8)) == -EINVAL
        assert monitor.command(number, bytes(8)) == -EINVAL
        assert holder.command(number, bytes(8)) == -EOPNOTSUPP


def test_l_9_readiness(world: LastWorld) -> None:
    control, owner = world.control_last(), world.open_last()
    assert dead(owner)
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items()) == 0
    assert dead(control)
    assert owner.make_endpoint(b"1000-custom") == 0
    assert dead(owner)
    client, other = world.last(pool_size=4096), world.last()
    assert client.handle.poll() & (POLLIN | POLLOUT) == POLLOUT
    assert client.add_match(1) == 0
    world.domain.changed.clear()
    assert other.signal(items=other.vec(bytes(2000))) == 0  # does not fit
    assert client.handle in world.domain.changed
    assert not client.connection.queue.count
    assert client.handle.poll() & POLLIN
    world.domain.changed.clear()
    assert client.recv() == -11
    assert client.lost == 1
    assert not client.handle.poll() & POLLIN
    assert client.handle in world.domain.changed
    assert other.send(dst=client.id) == 0
    assert client.handle.poll() & POLLIN


# L-24 to L-30: buses and endpoints


def test_l_24_bus_make(world: LastWorld) -> None:
    control = world.control_last()
    name, parameter = bus_items()[:32], bus_items()[32:]
    for items in (
        name,
        parameter,
        b"",
        name + parameter + u64_item(c.ITEM_ATTACH_FLAGS_RECV, 0),
        name + name + parameter,
        name + parameter + parameter,
    ):
        assert control.simple(c.CMD_BUS_MAKE, 0, items) == -EINVAL
    assert control.simple(c.CMD_BUS_MAKE, 4, bus_items()) == -EINVAL
    assert control.simple(c.CMD_BUS_MAKE, 1, bus_items() + u64_item(c.ITEM_ATTACH_FLAGS_SEND, 6)) == 0
    bus = world.domain.buses["1000-last"]
    assert (bus.flags, bus.attach_flags_owner, bus.attach_flags_required) == (1, 6, 0)


def test_l_25_the_order_of_what_is_wrong(world: LastWorld) -> None:
    control = world.control_last()
    mask = u64_item(c.ITEM_ATTACH_FLAGS_SEND, 1 << 20)
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items(bloom_size=7)) == -EINVAL
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items() + mask) == -EINVAL
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items(b"1001-test")) == -EINVAL
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items(b"1000-test")) == -EEXIST
    world.control.close()
    for number in range(16):
        assert world.control_last().simple(c.CMD_BUS_MAKE, 0, bus_items(b"1000-%d" % number)) == 0
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items(b"1000-17")) == -EMFILE
    assert control.simple(c.CMD_BUS_MAKE, 0, bus_items(b"1000-0")) == -EEXIST


def test_l_11_a_bus_that_cannot_be_told_of_is_not_there(world: LastWorld) -> None:
    process = FakeProcess(uid=1000)
    control = world.control_last(process)
    call = control.call(c.CMD_BUS_MAKE, pack("<QQQ", 0, 0, 5), bus_items())
    process.writable = False
    assert control.run(call) == -EFAULT
    assert "1000-last" not in world.domain.buses
    owner = world.open_last(process)
    call = owner.call(c.CMD_ENDPOINT_MAKE, pack("<QQQ", 0, 0, 5), make_item(c.ITEM_MAKE_NAME, b"1000-e\0"))
    assert owner.run(call) == -EFAULT
    assert "1000-e" not in world.domain.buses["1000-test"].endpoints


def test_l_26_a_bus_that_requires_metadata_takes_them_for_granted() -> None:
    world = LastWorld(required=v3.ATTACH_CREDS | v3.ATTACH_EXE)
    client = world.last(send=0)
    assert client.connection.attach_flags_send == c.ATTACH_CREDS | c.ATTACH_EXE
    assert client.update(u64_item(c.ITEM_ATTACH_FLAGS_SEND, c.ATTACH_PIDS)) == 0
    assert client.connection.attach_flags_send == c.ATTACH_CREDS | c.ATTACH_EXE | c.ATTACH_PIDS


def test_l_27_ids_are_never_given_twice(world: LastWorld) -> None:
    seen = {world.last().id, world.connect().id}
    failing = world.open_last()
    for _ in range(3):
        assert failing.hello(items=name_item(b"a.b")) == -EINVAL
    client = world.last()
    assert client.byebye() == 0
    seen |= {client.id, world.last().id}
    assert len(seen) == 4


def test_l_28_endpoint_make_takes_a_name_alone(world: LastWorld) -> None:
    owner = world.open_last()
    assert owner.make_endpoint(b"1000-e", 0, name_item(b"a.b")) == -EINVAL
    assert owner.simple(c.CMD_ENDPOINT_MAKE) == -EINVAL
    stranger = world.open_last(FakeProcess(uid=2000))
    assert stranger.command(c.CMD_ENDPOINT_MAKE, bytes(8)) == -EPERM  # before the argument is read
    assert world.open_last(FakeProcess(uid=2000, ipc_owner=True)).make_endpoint(b"2000-e") == 0
    assert owner.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD) == 0
    custom = world.open_last(endpoint="1000-e")
    assert custom.make_endpoint(b"1000-f") == -EPERM
    access = make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", c.POLICY_ACCESS_WORLD, c.POLICY_SEE, 0))
    assert owner.update_endpoint(name_item(b"a.b") + access + name_item(b"a.c") + access + access) == 0
    assert owner.update_endpoint(make_item(c.ITEM_MAKE_NAME, b"1000-e\0")) == -EINVAL
    visible = world.last(endpoint="1000-e")
    assert world.last().acquire(b"a.b") == 0
    assert visible.conn_info(name=b"a.b") == 0


def test_l_29_the_mask_of_the_mount_does_not_count(world: LastWorld) -> None:
    world.domain.attach_flags_mask = 0
    receiver = world.last(recv=c.ATTACH_ALL)
    assert world.last().send(dst=receiver.id) == 0
    (message,) = receiver.drain()
    assert {c.ITEM_CREDS, c.ITEM_EXE, c.ITEM_TIMESTAMP} <= set(message.kinds())
    assert receiver.conn_info(id=receiver.id, flags=c.ATTACH_CREDS) == 0
    assert [kind for kind, _ in receiver.info()[2]] == [c.ITEM_CREDS]


def test_l_41_byebye_takes_a_struct(world: LastWorld) -> None:
    client, other = world.last(), world.last()
    assert client.command(c.CMD_BYEBYE, bytes(16)) == -EINVAL
    assert client.simple(c.CMD_BYEBYE, 1) == -EINVAL
    assert client.simple(c.CMD_BYEBYE, c.FLAG_NEGOTIATE) == 0
    assert other.send(dst=client.id) == 0
    assert client.byebye() == -EBUSY
    client.drain()
    assert client.byebye() == 0
    assert client.byebye() == -ECONNRESET


def test_l_3_a_family_of_its_own_for_each_file(world: LastWorld) -> None:
    """Any file may speak any family, whoever made the bus."""
    control = world.control_last()
    assert control.simple(c.CMD_BUS_MAKE, c.MAKE_ACCESS_WORLD, bus_items()) == 0
    old = world.open(bus="1000-last")
    assert old.hello() == 0
    new = world.open_last(bus="1000-last")
    assert isinstance(new, LastClient)
    assert new.hello() == 0
    assert {old.id, new.id} == set(world.domain.buses["1000-last"].connections)
    assert k.HELLO in {families.FAMILIES[0].find(v3.CMD_HELLO), families.FAMILIES[1].find(c.CMD_HELLO)}
