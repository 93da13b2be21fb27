"""CONN_INFO (INFO) and BUS_CREATOR_INFO (CRE)."""

from __future__ import annotations

from errno import EINVAL, ENOBUFS, ENXIO, ESRCH
from struct import pack, unpack_from
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World, walk_items

NAME = i.name(b"a.b")
INFO = pack("<QQQQQQQ", 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def client(world: World) -> Client:
    return world.connect()


def result(client: Client) -> tuple[int, int, list[tuple[int, bytes]]]:
    """Id, flags and items of the last answer."""
    offset, size = client.out(40), client.out(48)
    stated, id, flags = unpack_from("<QQQ", client.pool, offset)
    assert stated == size
    items = walk_items(client.pool, offset + 24, offset + size)
    assert client.free(offset) == 0
    return id, flags, items


def info(client: Client, flags: int = 0, **whom: Any) -> tuple[int, int, list[tuple[int, bytes]]]:
    assert client.conn_info(flags=flags, **whom) == 0
    return result(client)


def creator(
    client: Client, flags: int, *, id: int = 0, items: bytes = b""
) -> tuple[int, int, list[tuple[int, bytes]]]:
    assert client.command(c.CMD_BUS_CREATOR_INFO, pack("<QQQQQQQ", 0, flags, 0, 0, id, 0, 0), items) == 0
    return result(client)


def test_info_1_by_id_or_by_name(world: World, client: Client) -> None:
    """INFO-1"""
    peer = world.connect()
    assert client.conn_info(id=99) == -ENXIO
    assert client.conn_info(id=c.U64_MAX) == -ENXIO
    assert client.conn_info(name=b"a.b") == -ESRCH
    assert peer.acquire(b"a.b") == 0
    assert info(client, name=b"a.b") == info(client, id=peer.id) == (peer.id, c.HELLO_ACCEPT_FD, [])


def test_info_1_without_id_one_valid_name_is_needed(world: World, client: Client) -> None:
    """INFO-1: EINVAL otherwise, not EEXIST or EBADMSG."""
    assert client.acquire(b"a.b") == 0
    for items in (
        b"",
        NAME + NAME,
        i.name(b"a"),
        i.name(b"a.*"),
        i.name(b""),
        i.string(c.ITEM_DST_NAME, b"a.b"),
        make_item(c.ITEM_OWNED_NAME, pack("<Q", 0) + b"a.b\0"),
    ):
        assert client.command(c.CMD_CONN_INFO, INFO, items) == -EINVAL
    assert client.command(c.CMD_CONN_INFO, INFO, make_item(0x4242, b"") + NAME) == 0


def test_info_1_with_an_id_items_are_ignored(client: Client) -> None:
    """INFO-1: but walked (ITEM-3)."""
    by_id = pack("<QQQQQQQ", 0, 0, 0, 0, client.id, 0, 0)
    for items in (NAME + NAME, i.name(b"bad"), make_item(0x4242, b"")):
        assert client.command(c.CMD_CONN_INFO, by_id, items) == 0
    assert client.command(c.CMD_CONN_INFO, by_id, make_item(c.ITEM_ID, b"")) == -EINVAL


def test_info_2_on_a_custom_endpoint_what_is_invisible_is_not_there(world: World, client: Client) -> None:
    """INFO-2: not even oneself."""
    peer = world.connect()
    assert client.acquire(b"a.b") == client.acquire(b"c.d") == peer.acquire(b"e.f") == 0
    assert world.open().make_endpoint(b"1000-ep", items=i.name(b"c.d") + i.world(c.POLICY_SEE)) == 0
    inside = world.connect(endpoint="1000-ep")
    assert inside.conn_info(name=b"a.b") == -ESRCH
    assert inside.conn_info(name=b"none.such") == -ESRCH
    assert inside.conn_info(id=peer.id) == inside.conn_info(id=inside.id) == -ENXIO
    assert info(inside, name=b"c.d")[0] == info(inside, id=client.id)[0] == client.id


def test_info_3_every_kind_of_connection_is_found_by_id(world: World, client: Client) -> None:
    """INFO-3, INFO-5: with its HELLO flags."""
    assert world.open().make_endpoint(b"1000-ep") == 0
    for flags, items in (
        (c.HELLO_MONITOR | c.HELLO_ACCEPT_FD, b""),
        (c.HELLO_ACTIVATOR, NAME),
        (c.HELLO_POLICY_HOLDER, i.name(b"h.h")),
    ):
        peer = world.connect(flags=flags, items=items)
        assert info(client, id=peer.id) == (peer.id, flags, [])
    inside = world.connect(endpoint="1000-ep", flags=0)
    assert info(client, id=inside.id) == (inside.id, 0, [])
    gone = world.connect()
    assert gone.byebye() == 0
    assert client.conn_info(id=gone.id) == -ENXIO


def test_info_4_a_name_stands_for_its_owner_of_the_moment(world: World, client: Client) -> None:
    """INFO-4"""
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=NAME)
    assert info(client, name=b"a.b")[0] == activator.id
    taker = world.connect()
    assert taker.acquire(b"a.b") == 0
    assert info(client, name=b"a.b")[0] == taker.id
    taker.close()
    assert info(client, name=b"a.b")[0] == activator.id


ALL_KINDS = [
    c.ITEM_CREDS,
    c.ITEM_PIDS,
    c.ITEM_AUXGROUPS,
    c.ITEM_TID_COMM,
    c.ITEM_PID_COMM,
    c.ITEM_EXE,
    c.ITEM_CMDLINE,
    c.ITEM_CGROUP,
    c.ITEM_CAPS,
    c.ITEM_SECLABEL,
    c.ITEM_AUDIT,
    c.ITEM_OWNED_NAME,
    c.ITEM_OWNED_NAME,
    c.ITEM_CONN_DESCRIPTION,
]


def kinds(items: list[tuple[int, bytes]]) -> list[int]:
    return [kind for kind, _ in items]


def test_info_5_everything_in_meta_order(world: World, client: Client) -> None:
    """INFO-5, INFO-6, META-1: never a timestamp."""
    world.domain.attach_flags_mask = c.ATTACH_ALL
    process = FakeProcess(seclabel=b"label", audit=(3, 4))
    peer = world.connect(process, items=i.string(c.ITEM_CONN_DESCRIPTION, b"peer"), send=c.ATTACH_ANY)
    assert peer.acquire(b"z.z") == peer.acquire(b"a.b", c.NAME_ALLOW_REPLACEMENT) == 0
    id, flags, items = info(client, c.ATTACH_ALL, id=peer.id)
    assert (id, flags, kinds(items)) == (peer.id, c.HELLO_ACCEPT_FD, ALL_KINDS)
    assert items[-3:] == [
        (c.ITEM_OWNED_NAME, pack("<Q", 0) + b"z.z\0"),
        (c.ITEM_OWNED_NAME, pack("<Q", c.NAME_ALLOW_REPLACEMENT) + b"a.b\0"),
        (c.ITEM_CONN_DESCRIPTION, b"peer\0"),
    ]


@pytest.mark.parametrize("bit", range(14))
def test_info_5_asked_for_and_agreed_to_and_let_through(world: World, client: Client, bit: int) -> None:
    """INFO-5: each of the three masks hides a kind, and they are looked at anew each time."""
    world.domain.attach_flags_mask = c.ATTACH_ALL
    process = FakeProcess(seclabel=b"label", audit=(3, 4))
    flag, kind = 1 << bit, c.ITEM_TIMESTAMP + bit
    peer = world.connect(process, items=i.string(c.ITEM_CONN_DESCRIPTION, b"peer"), send=c.ATTACH_ALL)
    assert peer.acquire(b"a.b") == 0
    expected = [] if flag == c.ATTACH_TIMESTAMP else [kind]
    assert kinds(info(client, flag, id=peer.id)[2]) == expected
    assert kind not in kinds(info(client, c.ATTACH_ALL & ~flag, id=peer.id)[2])
    world.domain.attach_flags_mask &= ~flag
    assert kinds(info(client, flag, id=peer.id)[2]) == []
    world.domain.attach_flags_mask = c.ATTACH_ALL
    assert peer.update(i.u64(c.ITEM_ATTACH_FLAGS_SEND, c.ATTACH_ALL & ~flag)) == 0
    assert kinds(info(client, flag, id=peer.id)[2]) == []


def test_info_6_process_data_are_those_of_hello(world: World, client: Client) -> None:
    """INFO-6: names and description are current."""
    process = FakeProcess(uid=1000, pid=50)
    peer = world.connect(process)
    process.uid, process.pid = 9, 9
    assert peer.acquire(b"a.b") == 0
    creds = (c.ITEM_CREDS, pack("<8I", *[1000] * 8))
    pids = (c.ITEM_PIDS, pack("<QQQ", 50, 50, 1))
    flags = c.ATTACH_CREDS | c.ATTACH_PIDS | c.ATTACH_NAMES
    assert info(client, flags, id=peer.id)[2] == [creds, pids, (c.ITEM_OWNED_NAME, pack("<Q", 0) + b"a.b\0")]
    assert peer.release_name(b"a.b") == 0
    assert info(client, flags, id=peer.id)[2] == [creds, pids]


def test_info_6_in_the_readers_namespaces(world: World) -> None:
    """INFO-6, META-20"""
    peer = world.connect(FakeProcess(uid=1000, gid=1000, pid=50))
    reader = world.connect(FakeProcess(uid=1000, uid_map={0: 1000}, user_ns=2, pid_ns=2))
    assert info(reader, c.ATTACH_CREDS | c.ATTACH_PIDS, id=peer.id)[2] == [
        (c.ITEM_CREDS, pack("<8I", *[0] * 8)),
        (c.ITEM_PIDS, pack("<QQQ", 0, 0, 0)),
    ]


def test_info_7_offset_and_size_come_back(client: Client) -> None:
    """INFO-7: 24 bytes without items."""
    assert client.conn_info(id=client.id) == 0
    offset, size = client.out(40), client.out(48)
    assert size == 24
    assert bytes(client.pool[offset : offset + 24]) == pack("<QQQ", 24, client.id, c.HELLO_ACCEPT_FD)


def test_info_7_a_full_pool_is_enobufs(world: World) -> None:
    """INFO-7, POOL-13: and nothing is written back but kernel_flags."""
    client = world.connect(pool_size=4096)
    for _ in range(4096 // 24):
        assert client.conn_info(id=client.id) == 0
    assert client.conn_info(id=client.id) == -ENOBUFS
    assert client.last == pack("<QQQQQQQ", 56, 0, c.ATTACH_ALL | 1 << 63, 0, client.id, 0, 0)
    assert client.free(0) == 0
    assert client.conn_info(id=client.id) == 0
    assert client.out(40) == 0


def test_info_8_names_are_not_filtered(world: World, client: Client) -> None:
    """INFO-8: one visible name reveals all of them."""
    assert client.acquire(b"seen.name") == client.acquire(b"hidden.name") == 0
    assert world.open().make_endpoint(b"1000-ep", items=i.name(b"seen.name") + i.world(c.POLICY_SEE)) == 0
    inside = world.connect(endpoint="1000-ep")
    assert inside.conn_info(name=b"hidden.name") == -ESRCH
    assert len(info(inside, c.ATTACH_NAMES, name=b"seen.name")[2]) == 2


BUS_NAME = (c.ITEM_MAKE_NAME, b"1000-test\0")


def test_cre_1_id_flags_and_name_of_the_bus(client: Client) -> None:
    """CRE-1: byte for byte; id and items are ignored."""
    assert client.command(c.CMD_BUS_CREATOR_INFO, INFO) == 0
    offset, size = client.out(40), client.out(48)
    expected = (
        pack("<QQQ", 56, 1, c.MAKE_ACCESS_WORLD)
        + pack("<QQ", 26, c.ITEM_MAKE_NAME)
        + b"1000-test\0"
        + bytes(6)
    )
    assert bytes(client.pool[offset : offset + size]) == expected
    assert creator(client, 0, id=77, items=make_item(0x4242, b"")) == (1, c.MAKE_ACCESS_WORLD, [BUS_NAME])


def make_bus(world: World, shown: int, process: FakeProcess) -> Client:
    control = world.open_control(process)
    extra = i.u64(c.ITEM_ATTACH_FLAGS_SEND, shown)
    assert world.make_bus(control, b"1000-x", c.MAKE_ACCESS_WORLD, extra=extra) == 0
    client = world.open(FakeProcess(), bus="1000-x")
    assert client.hello() == 0
    return client


def test_cre_2_the_creators_metadata_in_order(world: World) -> None:
    """CRE-2: never names, description or timestamp."""
    world.domain.attach_flags_mask = c.ATTACH_ALL
    client = make_bus(world, c.ATTACH_ANY, FakeProcess(seclabel=b"label", audit=(3, 4)))
    assert client.acquire(b"a.b") == 0
    assert kinds(creator(client, c.ATTACH_ALL)[2]) == [c.ITEM_MAKE_NAME, *ALL_KINDS[:11]]


@pytest.mark.parametrize("flag", [1 << bit for bit in range(14) if c.ATTACH_PROCESS & 1 << bit])
def test_cre_2_asked_for_and_shown_and_let_through(world: World, flag: int) -> None:
    """CRE-2"""
    world.domain.attach_flags_mask = c.ATTACH_ALL
    client = make_bus(world, flag, FakeProcess(seclabel=b"label", audit=(3, 4)))
    kind = c.ITEM_TIMESTAMP + flag.bit_length() - 1
    assert kinds(creator(client, c.ATTACH_ALL)[2]) == [c.ITEM_MAKE_NAME, kind]
    assert kinds(creator(client, c.ATTACH_ALL & ~flag)[2]) == [c.ITEM_MAKE_NAME]
    world.domain.attach_flags_mask = c.ATTACH_ALL & ~flag
    assert kinds(creator(client, c.ATTACH_ALL)[2]) == [c.ITEM_MAKE_NAME]


def test_cre_3_the_same_on_custom_endpoints_and_as_it_was(world: World) -> None:
    """CRE-3: data of BUS_MAKE time for the reader's namespaces."""
    process = FakeProcess(uid=1000)
    client = make_bus(world, c.ATTACH_CREDS, process)
    process.uid = process.gid = 5
    expected = [(c.ITEM_MAKE_NAME, b"1000-x\0"), (c.ITEM_CREDS, pack("<8I", *[1000] * 8))]
    assert creator(client, c.ATTACH_ALL)[2] == expected
    assert world.open(bus="1000-x").make_endpoint(b"1000-ep") == 0
    inside = world.open(FakeProcess(uid=1000, uid_map={3: 1000}), bus="1000-x", endpoint="1000-ep")
    assert inside.hello() == 0
    assert creator(inside, c.ATTACH_ALL)[2][1] == (c.ITEM_CREDS, pack("<8I", *[3] * 8))


def test_cre_pools_exhausted_are_enobufs(world: World) -> None:
    """CRE-1, POOL-13"""
    client = world.connect(pool_size=4096)
    results = [client.command(c.CMD_BUS_CREATOR_INFO, INFO) for _ in range(4096 // 56 + 1)]
    assert results == [0] * (4096 // 56) + [-ENOBUFS]
