"""BUS_MAKE (BUS) and the life of a bus (FS-24 to FS-31)."""

from __future__ import annotations

from errno import (
    EBADF,
    EBADFD,
    EBADMSG,
    ECONNRESET,
    EEXIST,
    EFAULT,
    EINVAL,
    EMFILE,
    ENAMETOOLONG,
    ENOTTY,
    ESHUTDOWN,
)
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from struct import pack, unpack_from

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.base.errors import CommandError
from kdbusfs.core.domain import Domain
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World
from tests.support.fake_host import FakeCaller, FakeHost, FakeMemory

NAME = i.string(c.ITEM_MAKE_NAME, b"1000-x")
BLOOM = i.bloom_parameter(64)
SEND, RECV = c.ITEM_ATTACH_FLAGS_SEND, c.ITEM_ATTACH_FLAGS_RECV


@pytest.fixture
def control(world: World) -> Client:
    return world.open_control(world.owner)


def make(control: Client, items: bytes, flags: int = 0) -> int:
    return control.command(c.CMD_BUS_MAKE, pack("<QQQQ", 0, flags, 0, 0), items)


def creator_info(client: Client, flags: int = 0) -> tuple[int, int]:
    """Id and flags of the bus."""
    assert client.command(c.CMD_BUS_CREATOR_INFO, pack("<QQQQQQQ", 0, flags, 0, 0, 0, 0, 0)) == 0
    _, bus_id, bus_flags = unpack_from("<QQQ", client.pool, client.out(40))
    assert client.free(client.out(40)) == 0
    return bus_id, bus_flags


def test_bus_1_a_control_file_makes_one_bus(world: World, control: Client) -> None:
    """BUS-1: EBADFD before the argument is read."""
    assert make(control, NAME + BLOOM) == 0
    call = control.call(c.CMD_BUS_MAKE, bytes(32))
    call.error = EFAULT
    assert control.run(call) == -EBADFD
    assert make(control, i.string(c.ITEM_MAKE_NAME, b"1000-y") + BLOOM) == -EBADFD
    assert sorted(world.domain.buses) == ["1000-test", "1000-x"]


def test_bus_1_a_failed_attempt_leaves_the_file_usable(control: Client) -> None:
    """BUS-1"""
    assert make(control, NAME) == -EBADMSG
    assert make(control, i.string(c.ITEM_MAKE_NAME, b"1000-test") + BLOOM) == -EEXIST
    assert make(control, NAME + BLOOM) == 0


def test_bus_2_name_and_bloom_parameters_are_required_once(control: Client) -> None:
    """BUS-2"""
    assert make(control, b"") == -EBADMSG
    assert make(control, BLOOM) == -EBADMSG
    assert make(control, NAME) == -EBADMSG
    assert make(control, NAME + NAME) == -EEXIST
    assert make(control, BLOOM + BLOOM) == -EEXIST
    assert make(control, NAME + BLOOM + NAME) == -EEXIST
    for kind in (SEND, RECV):
        assert make(control, NAME + BLOOM + i.u64(kind, 0) * 2) == -EEXIST
    assert make(control, i.u64(SEND, 0) + NAME + i.u64(RECV, 0) + BLOOM) == 0


@pytest.mark.parametrize("kind", [c.ITEM_NAME, c.ITEM_CONN_DESCRIPTION, c.ITEM_SECLABEL, 0x4242])
def test_bus_2_other_items_are_einval(control: Client, kind: int) -> None:
    """BUS-2, GEN-18"""
    assert make(control, NAME + BLOOM + i.string(kind, b"a")) == -EINVAL


def test_bus_2_errors_come_in_item_order(control: Client) -> None:
    """BUS-2"""
    other = i.string(c.ITEM_NAME, b"a")
    assert make(control, NAME + NAME + other) == -EEXIST
    assert make(control, NAME + other + NAME) == -EINVAL


@pytest.mark.parametrize("size", [0, 1, 4, 7, 9, 12, 4095, 4097, 4104, 1 << 40, c.U64_MAX - 7])
def test_bus_3_bloom_sizes_are_8_to_4096_in_steps_of_8(control: Client, size: int) -> None:
    """BUS-3, LIM-5"""
    assert make(control, NAME + i.bloom_parameter(size)) == -EINVAL


@pytest.mark.parametrize("size", [8, 16, 64, 4096])
def test_bus_3_bloom_parameters_are_reported_by_hello(world: World, control: Client, size: int) -> None:
    """BUS-3: n_hash is only stored, but has to be at least 1."""
    assert make(control, NAME + i.bloom_parameter(size, 0)) == -EINVAL
    assert make(control, NAME + i.bloom_parameter(size, c.U64_MAX)) == 0
    client = world.open(bus="1000-x")
    assert client.hello(free=False) == 0
    assert unpack_from("<QQQQQ", client.pool) == (40, 32, c.ITEM_BLOOM_PARAMETER, size, c.U64_MAX)


def test_bus_4_without_attach_items_nothing_is_required_and_nothing_shown(
    world: World, control: Client
) -> None:
    """BUS-4"""
    assert make(control, NAME + BLOOM) == 0
    client = world.open(bus="1000-x")
    assert client.hello(send=0, free=False) == 0
    assert client.out(32) == 1 << 63
    assert client.command(c.CMD_BUS_CREATOR_INFO, pack("<QQQQQQQ", 0, c.ATTACH_ALL, 0, 0, 0, 0, 0)) == 0
    assert client.out(48) == 24 + 24


def test_bus_4_any_means_all_14_kinds(world: World, control: Client) -> None:
    """BUS-4, GEN-17"""
    assert make(control, NAME + BLOOM + i.u64(RECV, c.ATTACH_ANY) + i.u64(SEND, c.ATTACH_ANY)) == 0
    client = world.open(bus="1000-x")
    assert client.hello(free=False) == 0
    assert client.out(32) == 1 << 63 | 0x3FFF


@pytest.mark.parametrize(
    "name", [b"x", b"999-x", b"10000-x", b"1000x", b"1000_x", b"01000-x", b"0-x", b"bus", b"control"]
)
def test_bus_5_the_name_starts_with_the_uid(control: Client, name: bytes) -> None:
    """BUS-5, FS-31: so `bus` and `control` can never be taken."""
    assert make(control, i.string(c.ITEM_MAKE_NAME, name) + BLOOM) == -EINVAL


def test_bus_5_it_is_the_effective_uid_that_counts(world: World) -> None:
    """BUS-5, FS-6"""
    control = world.open_control(FakeProcess(uid=1000, euid=2000, gid=3000))
    assert make(control, NAME + BLOOM) == -EINVAL
    assert make(control, i.string(c.ITEM_MAKE_NAME, b"2000-x") + BLOOM) == 0
    bus = world.domain.buses["2000-x"]
    assert (bus.uid, bus.gid) == (2000, 3000)


def test_bus_5_the_uid_is_that_of_the_domains_user_namespace(world: World) -> None:
    """BUS-5, NS-2: an unmapped one has no name that it could give."""
    control = world.open_control(FakeProcess(uid=101000, domain_uids={101000: 1000}))
    assert make(control, i.string(c.ITEM_MAKE_NAME, b"101000-x") + BLOOM) == -EINVAL
    assert make(control, NAME + BLOOM) == 0
    unmapped = world.open_control(FakeProcess(uid=5, domain_uids={}))
    for name in (b"5-x", b"4294967295-x", b"65534-x"):
        assert make(unmapped, i.string(c.ITEM_MAKE_NAME, name) + BLOOM) == -EINVAL


def test_bus_6_a_name_in_use_is_eexist_even_at_the_limit(world: World) -> None:
    """BUS-6, BUS-8"""
    user = FakeProcess(uid=1000)
    for number in range(15):
        assert world.make_bus(world.open_control(user), b"1000-%d" % number) == 0
    assert world.make_bus(world.open_control(user), b"1000-0") == -EEXIST
    assert world.make_bus(world.open_control(user), b"1000-new") == -EMFILE


def test_bus_7_a_real_uid_has_16_buses(world: World) -> None:
    """BUS-7, LIM-14: whatever its effective uid; a removed bus gives its slot back."""
    files = []
    for number in range(16):
        files.append(world.open_control(FakeProcess(uid=7, euid=7 + number)))
        assert world.make_bus(files[-1], b"%d-x" % (7 + number)) == 0
    extra = world.open_control(FakeProcess(uid=7, euid=100))
    assert world.make_bus(extra, b"100-x") == -EMFILE
    assert world.make_bus(world.open_control(FakeProcess(uid=8, euid=100)), b"100-x") == 0
    files[3].close()
    assert world.make_bus(extra, b"100-y") == 0
    assert len(world.domain.buses) == 18


def test_bus_8_checks_come_in_order(world: World) -> None:
    """BUS-8: items, missing, bloom, RECV mask, SEND mask, prefix, EEXIST, EMFILE."""
    control = world.open_control(FakeProcess(uid=1000))
    bad_flags = 1 << 20
    wrong, long = i.string(c.ITEM_MAKE_NAME, b"7-x"), i.string(c.ITEM_MAKE_NAME, b"x" * 64)
    assert make(control, long + BLOOM) == -ENAMETOOLONG
    assert make(control, i.bloom_parameter(1)) == -EBADMSG
    assert make(control, wrong + BLOOM + BLOOM) == -EEXIST
    assert make(control, wrong + i.bloom_parameter(1)) == -EINVAL
    taken = i.string(c.ITEM_MAKE_NAME, b"1000-test")
    for bad in (i.u64(RECV, bad_flags), i.u64(SEND, bad_flags)):
        assert make(control, taken + BLOOM + bad) == -EINVAL
    assert make(control, taken + i.bloom_parameter(12)) == -EINVAL
    assert make(control, taken + BLOOM) == -EEXIST


def test_bus_9_ids_count_from_1_and_failures_use_them_up(world: World) -> None:
    """BUS-9: those by EEXIST and EMFILE; refused items do not."""
    user = FakeProcess(uid=1000)
    controls = [world.open_control(user) for _ in range(15)]
    assert creator_info(world.connect())[0] == 1
    assert world.make_bus(controls[0], b"1000-test") == -EEXIST
    assert make(controls[0], NAME) == -EBADMSG
    assert make(controls[0], i.string(c.ITEM_MAKE_NAME, b"9-x") + BLOOM) == -EINVAL
    for number, control in enumerate(controls):
        assert world.make_bus(control, b"1000-%d" % number) == 0
    assert world.domain.buses["1000-0"].id == 3
    assert world.make_bus(world.open_control(user), b"1000-last") == -EMFILE
    controls[0].close()
    assert world.make_bus(world.open_control(user), b"1000-last") == 0
    assert world.domain.buses["1000-last"].id == 1 + 1 + 15 + 1 + 1


def test_bus_9_the_uuid_is_constant_for_a_bus(world: World, control: Client) -> None:
    """BUS-9"""
    assert make(control, NAME + BLOOM) == 0
    uuids = []
    for bus in ("1000-x", "1000-x", "1000-test"):
        client = world.open(bus=bus)
        assert client.hello(free=False) == 0
        uuids.append(client.last[88:104])
    assert uuids[0] == uuids[1] != uuids[2]


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_bus_10_bus_flags_are_those_of_bus_make(world: World, control: Client, flags: int) -> None:
    """BUS-10, FS-6, FS-7: and decide the permission bits."""
    assert make(control, NAME + BLOOM, flags) == 0
    client = world.open(bus="1000-x")
    assert client.hello(free=False) == 0
    assert client.out(48) == flags
    assert creator_info(client)[1] == flags
    bus = world.domain.buses["1000-x"]
    assert bus.mode == {0: 0o500, 1: 0o550, 2: 0o555, 3: 0o555}[flags]
    assert bus.endpoints["bus"].mode == {0: 0o600, 1: 0o660, 2: 0o666, 3: 0o666}[flags]


def test_bus_11_a_creator_that_cannot_be_described_makes_no_bus(world: World) -> None:
    """BUS-11"""
    process = FakeProcess(uid=1000, failing=c.ATTACH_CMDLINE)
    control = world.open_control(process)
    before = world.domain.stats()
    assert make(control, NAME + BLOOM) == -EFAULT
    assert world.domain.stats() == before
    process.failing = 0
    assert make(control, NAME + BLOOM) == 0


def test_bus_12_directory_and_endpoint_are_there_at_once(world: World, control: Client) -> None:
    """BUS-12, FS-7"""
    assert make(control, NAME + BLOOM) == 0
    bus = world.domain.buses["1000-x"]
    assert list(bus.endpoints) == ["bus"]
    endpoint = bus.endpoints["bus"]
    assert (endpoint.uid, endpoint.gid) == (bus.uid, bus.gid) == (1000, 1000)
    assert len({bus.ino, endpoint.ino, 1, 2}) == 4


def test_bus_13_the_system_mask_limits_no_requirement(world: World, control: Client) -> None:
    """BUS-13"""
    world.domain.attach_flags_mask = 0
    assert make(control, NAME + BLOOM + i.u64(RECV, c.ATTACH_ANY)) == 0


def test_bus_14_kernel_flags_are_written_and_return_flags_are_not(control: Client) -> None:
    """BUS-14"""
    assert control.command(c.CMD_BUS_MAKE, pack("<QQQQ", 0, 0, 1, 77), NAME + BLOOM) == 0
    assert control.in_memory(16) == 0x3 | 1 << 63
    assert control.in_memory(24) == 77


def test_fs_11_inode_numbers_are_the_smallest_free_ones(world: World, control: Client) -> None:
    """FS-11: free as soon as the bus is gone, whoever has a file of it open."""
    bus = world.domain.buses["1000-test"]
    assert (bus.ino, bus.endpoints["bus"].ino) == (3, 4)
    assert make(control, NAME + BLOOM) == 0
    assert world.domain.buses["1000-x"].ino == 5
    left = world.connect()
    world.control.close()
    again = world.open_control(world.owner)
    assert world.make_bus(again, b"1000-again") == 0
    assert world.domain.buses["1000-again"].ino == 3
    assert world.domain.buses["1000-again"].endpoints["bus"].ino == left.connection.endpoint.ino == 4


def test_fs_22_unknown_commands_on_control_are_enotty(world: World, control: Client) -> None:
    """FS-22: also after BUS_MAKE; ESHUTDOWN once the domain is gone."""
    for file in (control, world.control):
        for number in (0, c.CMD_HELLO, c.CMD_BYEBYE, c.CMD_SEND, c.CMD_ENDPOINT_MAKE, 0xC0089577):
            call = file.call(number, bytes(8))
            call.error = EBADF
            assert file.run(call) == -ENOTTY
    world.domain.shutdown()
    for number in (c.CMD_BUS_MAKE, 0):
        assert control.run(control.call(number, bytes(32))) == -ESHUTDOWN


def test_fs_21_a_domain_or_endpoint_that_is_gone_cannot_be_opened(world: World) -> None:
    """FS-21"""
    endpoint = world.domain.buses["1000-test"].endpoints["bus"]
    world.control.close()
    with pytest.raises(CommandError) as error:
        world.domain.open_endpoint(endpoint, FakeCaller(world.owner), FakeMemory())
    assert error.value.errno == ESHUTDOWN
    world.domain.shutdown()
    with pytest.raises(CommandError) as error:
        world.open_control(world.owner)
    assert error.value.errno == ESHUTDOWN


def test_fs_23_control_is_always_ready(control: Client) -> None:
    """FS-23"""
    assert control.handle.poll() == POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM


def test_fs_1_a_domain_starts_empty_and_alone() -> None:
    """FS-1"""
    first, second = Domain(FakeHost()), World().domain
    assert first.buses == {} and list(second.buses) == ["1000-test"]


def test_fs_24_the_bus_goes_with_its_control_file(world: World) -> None:
    """FS-24, FS-26: endpoints and connections before the close returns."""
    client, fresh, owner = world.connect(), world.open(), world.open()
    assert owner.make_endpoint(b"1000-ep") == 0
    world.domain.changed.clear()
    world.control.close()
    assert world.domain.buses == {}
    assert client.handle in world.domain.changed
    assert client.handle.poll() == fresh.handle.poll() == owner.handle.poll() == POLLERR | POLLHUP
    assert client.send(dst=client.id) == -ECONNRESET


def test_fs_26_connections_go_one_by_one_and_nobody_hears_of_it(world: World) -> None:
    """FS-26, SHUT-1: each is woken by its own end, and by no other."""
    clients = [world.connect() for _ in range(3)]
    for client in clients:
        assert client.add_match(1, i.id_change(c.ITEM_ID_REMOVE)) == 0
    world.domain.changed.clear()
    world.control.close()
    woken = [
        clients.index(client)
        for handle in world.domain.changed
        for client in clients
        if client.handle is handle
    ]
    assert woken == [0, 1, 2]
    assert [client.connection.traffic.received for client in clients] == [0, 0, 0]


def test_fs_27_files_keep_nothing_alive(world: World) -> None:
    """FS-27: a fresh file of a removed endpoint gets ESHUTDOWN, a connected one ECONNRESET."""
    fresh, client = world.open(), world.connect()
    world.control.close()
    assert fresh.hello() == -ESHUTDOWN
    assert fresh.make_endpoint(b"1000-ep") == -ESHUTDOWN
    assert client.recv() == -ECONNRESET
    assert fresh.handle.poll() == client.handle.poll() == POLLERR | POLLHUP
    assert world.domain.stats()["users"] == 1, "the connection counts until its file is closed"
    client.close()
    assert world.domain.stats()["users"] == 0


def test_fs_28_a_removed_bus_lists_nothing(world: World) -> None:
    """FS-28"""
    bus = world.domain.buses["1000-test"]
    world.control.close()
    assert bus.endpoints == {}


def test_fs_29_unmounting_removes_all_buses(world: World, control: Client) -> None:
    """FS-29"""
    assert make(control, NAME + BLOOM) == 0
    client = world.connect()
    world.domain.shutdown()
    assert world.domain.buses == {}
    assert client.recv() == -ECONNRESET
    client.close()
    control.close()
    world.control.close()
    assert world.domain.stats() == {"users": 0, "credentials": 0, "waiting": 0, "buses": []}


def test_fs_30_a_name_is_free_again_at_once(world: World, control: Client) -> None:
    """FS-30"""
    old = world.open()
    world.control.close()
    assert world.make_bus(control, b"1000-test") == 0
    assert old.hello() == -ESHUTDOWN, "the old endpoint is not the new one"
    assert world.open().hello() == 0


def test_fs_31_buses_and_endpoints_have_names_of_their_own(world: World, control: Client) -> None:
    """FS-31"""
    assert world.open().make_endpoint(b"1000-test") == 0
    assert world.make_bus(control, b"1000-ep") == 0
    assert world.open().make_endpoint(b"1000-ep") == 0
    assert world.open(bus="1000-ep").make_endpoint(b"1000-ep") == 0
