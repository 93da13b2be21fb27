"""ENDPOINT_MAKE (EPM), ENDPOINT_UPDATE (EPU), and the life of a custom endpoint."""

from __future__ import annotations

from errno import (
    EBADF,
    EBADMSG,
    ECONNRESET,
    EEXIST,
    EINVAL,
    EMFILE,
    ENAMETOOLONG,
    ENOBUFS,
    EPERM,
    ESHUTDOWN,
)
from select import POLLERR, POLLHUP
from struct import pack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World

SEE_ALL = i.name(b"a.b") + i.world(c.POLICY_SEE)


@pytest.fixture
def owner(world: World) -> Client:
    return world.open()


def make(client: Client, items: bytes, flags: int = 0) -> int:
    return client.command(c.CMD_ENDPOINT_MAKE, pack("<QQQQ", 0, flags, 0, 0), items)


def test_epm_1_only_privileged_files_make_endpoints(world: World) -> None:
    """EPM-1: EPERM before the argument is read."""
    stranger = world.open(FakeProcess(uid=2000))
    call = stranger.call(c.CMD_ENDPOINT_MAKE, bytes(32))
    call.error = EBADF
    assert stranger.run(call) == -EPERM
    assert stranger.make_endpoint(b"2000-ep") == -EPERM
    assert world.open(FakeProcess(uid=2000, ipc_owner=True)).make_endpoint(b"2000-ep") == 0


def test_epm_1_nobody_makes_endpoints_through_a_custom_endpoint(world: World, owner: Client) -> None:
    """EPM-1, CEP-4: not even root or the bus' owner."""
    assert owner.make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD) == 0
    for process in (world.owner, FakeProcess(uid=0, ipc_owner=True)):
        assert world.open(process, endpoint="1000-ep").make_endpoint(b"1000-nested") == -EPERM


def test_epm_2_exactly_one_name_is_needed(owner: Client) -> None:
    """EPM-2"""
    named = i.string(c.ITEM_MAKE_NAME, b"1000-ep")
    assert make(owner, b"") == -EBADMSG
    assert make(owner, SEE_ALL) == -EBADMSG
    assert make(owner, named + named) == -EEXIST
    assert make(owner, named + i.string(c.ITEM_MAKE_NAME, b"1000-ep2")) == -EEXIST
    assert make(owner, i.string(c.ITEM_SECLABEL, b"odd") + named + make_item(0x4242, b"")) == 0


def test_epm_2_name_and_access_items_are_the_first_policy(world: World, owner: Client) -> None:
    """EPM-2"""
    assert owner.make_endpoint(b"1000-ep", items=SEE_ALL) == 0
    assert world.connect().acquire(b"a.b") == 0
    client = world.connect(endpoint="1000-ep")
    assert client.conn_info(name=b"a.b") == 0


@pytest.mark.parametrize("name", [b"ep", b"bus", b"999-ep", b"1000ep", b"10001-ep"])
def test_epm_3_the_name_starts_with_the_uid(owner: Client, name: bytes) -> None:
    """EPM-3"""
    assert owner.make_endpoint(name) == -EINVAL


def test_epm_3_the_name_is_valid_and_free(world: World, owner: Client) -> None:
    """EPM-3, LIM-7"""
    assert owner.make_endpoint(b"1000-" + b"x" * 59) == -ENAMETOOLONG
    assert owner.make_endpoint(b"1000-" + b"x" * 58) == 0
    assert world.open().make_endpoint(b"1000-" + b"x" * 58) == -EEXIST
    owner.close()
    assert world.open().make_endpoint(b"1000-" + b"x" * 58) == 0


def test_epm_3_uid_of_the_caller_and_the_domain(world: World) -> None:
    """EPM-3, FS-8: the effective one of the calling thread, in the domain's user namespace."""
    process = FakeProcess(uid=1000)
    client = world.open(process)
    process.uid, process.euid, process.gid = 1, 2, 3
    assert client.make_endpoint(b"1000-ep") == -EINVAL
    process.domain_uids = {2: 102}
    assert client.make_endpoint(b"2-ep") == -EINVAL
    assert client.make_endpoint(b"102-ep", c.MAKE_ACCESS_GROUP) == 0
    node = world.domain.buses["1000-test"].endpoints["102-ep"]
    assert (node.uid, node.gid, node.mode) == (2, 3, 0o660)


def test_epm_3_a_dead_bus_is_eshutdown(world: World, owner: Client) -> None:
    """EPM-3: after the check of the name."""
    world.control.close()
    assert owner.make_endpoint(b"x") == -EINVAL
    assert owner.make_endpoint(b"1000-ep") == -ESHUTDOWN


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (i.world(c.POLICY_OWN), EINVAL),
        (i.name(b"nodot"), EINVAL),
        (i.name(b"a.b") + i.world(3), EINVAL),
        (i.name(b"a.b") * 2, EEXIST),
    ],
)
def test_epm_4_an_invalid_policy_leaves_no_endpoint(
    world: World, owner: Client, items: bytes, expected: int
) -> None:
    """EPM-4"""
    before = world.domain.stats()
    assert owner.make_endpoint(b"1000-ep", items=items) == -expected
    assert world.domain.stats() == before
    assert owner.make_endpoint(b"1000-ep") == 0, "the file may try again"


def test_epm_5_the_file_owns_the_endpoint(world: World, owner: Client) -> None:
    """EPM-5, FS-25"""
    assert owner.make_endpoint(b"1000-ep") == 0
    assert owner.handle.poll() == POLLERR | POLLHUP
    client, fresh = world.connect(endpoint="1000-ep"), world.open(endpoint="1000-ep")
    other = world.connect()
    owner.close()
    assert list(world.domain.buses["1000-test"].endpoints) == ["bus"]
    assert client.recv() == -ECONNRESET
    assert fresh.hello() == -ESHUTDOWN
    assert other.send(dst=other.id) == 0, "the bus lives on (SHUT-5)"


def test_epm_6_there_may_be_many_endpoints(world: World) -> None:
    """EPM-6"""
    for number in range(40):
        assert world.open().make_endpoint(b"1000-%d" % number) == 0


def test_epm_7_users_of_an_endpoint_share_its_account(world: World, owner: Client) -> None:
    """EPM-7, HELLO-13: 1024 connections, of all users of the endpoint, and of no others."""
    assert owner.make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD) == 0
    clients = [
        world.connect(FakeProcess(uid=2000 + number % 3), endpoint="1000-ep", pool_size=4096)
        for number in range(1024)
    ]
    late = world.open(FakeProcess(uid=3000), endpoint="1000-ep")
    assert late.hello() == -EMFILE
    assert world.connect(FakeProcess(uid=2000)).id
    assert clients[5].byebye() == 0
    assert late.hello() == -EMFILE, "BYEBYE gives nothing back"
    clients[5].close()
    assert late.hello() == 0


def test_epm_7_users_of_an_endpoint_share_its_message_quota(world: World, owner: Client) -> None:
    """EPM-7, QUO-3: two users fill 16 accounted slots together, a third outside has its own."""
    receiver = world.connect()
    assert receiver.acquire(b"a.b") == 0
    policy = i.name(b"a.b") + i.world(c.POLICY_TALK)
    assert world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD, policy) == 0
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=policy)
    first = world.connect(FakeProcess(uid=2000), endpoint="1000-ep")
    second = world.connect(FakeProcess(uid=3000), endpoint="1000-ep")
    for number in range(32):
        assert (first if number % 2 else second).send(dst=receiver.id) == 0
    assert first.send(dst=receiver.id) == second.send(dst=receiver.id) == -ENOBUFS
    assert world.connect(FakeProcess(uid=2000)).send(dst=receiver.id) == 0
    holder.close()


def test_epm_7_endpoints_of_one_maker_have_separate_accounts(world: World) -> None:
    """EPM-7"""
    for name in (b"1000-a", b"1000-b"):
        assert world.open().make_endpoint(name) == 0
    endpoints = world.domain.buses["1000-test"].endpoints
    assert endpoints["1000-a"].user is not endpoints["1000-b"].user
    assert endpoints["bus"].user is None


def test_epm_7_the_user_of_a_file_is_who_made_the_connection(world: World, owner: Client) -> None:
    """EPM-7: not the account, so that work for one user of an endpoint delays no other."""
    assert owner.make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD) == 0
    client = world.connect(FakeProcess(uid=2000, euid=1000), endpoint="1000-ep")
    assert client.endpoint.user == 2000
    assert world.connect(FakeProcess(uid=2000, euid=1000)).endpoint.user == 2000


def sees(client: Client, name: bytes) -> bool:
    return client.conn_info(name=name) == 0


def test_epu_1_an_update_replaces_the_whole_policy(world: World, owner: Client) -> None:
    """EPU-1, EPU-3, CEP-5: at once, for connections that exist; without items it becomes empty."""
    assert owner.make_endpoint(b"1000-ep", items=SEE_ALL) == 0
    peer = world.connect()
    names = (b"a.b", b"c.d", b"e.f")
    for name in names:
        assert peer.acquire(name) == 0
    client = world.connect(endpoint="1000-ep")
    assert [sees(client, name) for name in names] == [True, False, False]
    more = b"".join(i.name(name) + i.world(c.POLICY_SEE) for name in names[1:])
    assert owner.update_endpoint(more) == 0
    assert [sees(client, name) for name in names] == [False, True, True]
    assert owner.update_endpoint(make_item(0x4242, b"ignored")) == 0
    assert [sees(client, name) for name in names] == [False, False, False]
    assert owner.update_endpoint(more) == 0
    assert owner.update_endpoint() == 0
    assert [sees(client, name) for name in names] == [False, False, False]


def test_epu_1_a_failed_update_changes_nothing(world: World, owner: Client) -> None:
    """EPU-1, POL-6"""
    assert owner.make_endpoint(b"1000-ep", items=SEE_ALL) == 0
    assert world.connect().acquire(b"a.b") == 0
    client = world.connect(endpoint="1000-ep")
    for bad in (i.world(1), i.name(b"x.y") * 2, i.name(b"bad"), i.name(b"x.y") + i.world(9)):
        assert owner.update_endpoint(bad) in (-EINVAL, -EEXIST)
        assert sees(client, b"a.b")


def test_epu_1_any_number_of_names_that_fits(world: World, owner: Client) -> None:
    """EPU-1, POL-5"""
    assert owner.make_endpoint(b"1000-ep") == 0
    items = b"".join(i.name(b"n.x%d" % number) for number in range(1000))
    assert owner.update_endpoint(items) == 0
    assert owner.update_endpoint(items) == 0


def test_epu_2_whoever_holds_the_file_may_update(owner: Client) -> None:
    """EPU-2"""
    process = FakeProcess(uid=1000)
    owner.process = process
    assert owner.make_endpoint(b"1000-ep") == 0
    process.uid = 2000
    assert owner.update_endpoint(SEE_ALL) == 0


def test_epu_2_an_update_after_the_bus_has_no_effect(world: World, owner: Client) -> None:
    """EPU-2"""
    assert owner.make_endpoint(b"1000-ep") == 0
    world.control.close()
    assert owner.update_endpoint(SEE_ALL) == 0
    assert owner.update_endpoint(i.world(1)) == -EINVAL
    owner.close()
    assert world.domain.stats() == {"users": 0, "credentials": 0, "waiting": 0, "buses": []}


def test_fs_12_endpoints_are_listed_in_the_order_of_their_inodes(world: World) -> None:
    """FS-12, FS-11: a part of them at a time, whatever comes and goes; a number that is free again is taken first."""
    ends = [world.open() for _ in range(6)]
    for number, end in enumerate(ends):
        assert end.make_endpoint(b"1000-e%d" % number) == 0
    bus = world.domain.buses["1000-test"]
    ends[1].close()
    ends[4].close()
    late = world.open()
    assert late.make_endpoint(b"1000-late") == 0
    names = [each.name for each in bus.endpoints_behind(0, 10)]
    assert names == ["bus", "1000-e0", "1000-late", "1000-e2", "1000-e3", "1000-e5"]
    assert [each.name for each in bus.endpoints_behind(bus.endpoints["1000-late"].ino, 2)] == ["1000-e2", "1000-e3"]
    assert bus.endpoints_behind(bus.endpoints["1000-e5"].ino, 2) == []
