"""HELLO."""

from __future__ import annotations

from errno import (
    ECONNREFUSED,
    EEXIST,
    EFAULT,
    EINVAL,
    EMFILE,
    ENAMETOOLONG,
    ENOMEM,
    EOPNOTSUPP,
    EPERM,
    ESHUTDOWN,
    ESRCH,
)
from itertools import combinations
from struct import pack, unpack, unpack_from

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item, parse_items
from tests.support import items as i
from tests.support.core_client import POOL_SIZE, Client, FakeProcess, World

SPECIAL = (c.HELLO_ACTIVATOR, c.HELLO_POLICY_HOLDER, c.HELLO_MONITOR)
NAME = i.name(b"a.b")
CREDS = i.creds(1, 2, 3, 4, 5, 6, 7, 8)


@pytest.fixture
def fresh(world: World) -> Client:
    return world.open()


@pytest.fixture
def stranger(world: World) -> Client:
    return world.open(FakeProcess(uid=2000))


def info_items(reader: Client, id: int, flags: int = c.ATTACH_ALL) -> list[tuple[int, bytes]]:
    """The metadata of a connection by CONN_INFO."""
    assert reader.conn_info(id=id, flags=flags) == 0
    offset, size = reader.out(40), reader.out(48)
    items = parse_items(bytes(reader.pool[: offset + size]), offset + 24, offset + size)
    assert reader.free(offset) == 0
    return items


def received(client: Client) -> list[tuple[int, ...]]:
    """The notifications in its queue: item type, then old id, new id."""
    result: list[tuple[int, ...]] = []
    while client.recv() == 0:
        (kind, payload), *_ = client.read_message(client.out(48), client.out(56), 0).items
        if kind in (c.ITEM_ID_ADD, c.ITEM_ID_REMOVE):
            result.append((kind, *unpack("<QQ", payload)))
        else:
            result.append((kind, *unpack_from("<QQQQ", payload)))
    return result


def observer(world: World) -> Client:
    client = world.connect()
    assert client.add_match(1) == 0
    return client


def test_hello_1_checks_come_in_order(world: World, stranger: Client) -> None:
    """HELLO-1: flags, items valid, pool size, roles, their items, attach flags, requirement."""
    bad_item, bad_attach = i.string(c.ITEM_CONN_DESCRIPTION, b"x" * 64), 1 << 20
    two = c.HELLO_ACTIVATOR | c.HELLO_MONITOR
    assert stranger.hello(flags=1 << 4, items=bad_item) == -EINVAL
    assert stranger.hello(pool_size=0, items=bad_item) == -ENAMETOOLONG
    assert stranger.hello(pool_size=0, flags=two) == -EFAULT
    assert stranger.hello(flags=two) == -EINVAL
    assert stranger.hello(flags=c.HELLO_ACTIVATOR) == -EPERM
    assert stranger.hello(items=CREDS, send=bad_attach) == -EPERM
    assert world.make_bus(world.open_control(FakeProcess()), b"1000-strict", required=c.ATTACH_PIDS) == 0
    client = world.open(bus="1000-strict")
    assert client.hello(send=0, recv=bad_attach) == -EINVAL
    assert client.hello(send=bad_attach, recv=0) == -EINVAL
    assert client.hello(send=0, items=CREDS * 2 + i.pids(2_000_000, 0, 0)) == -ECONNREFUSED


@pytest.mark.parametrize("size", [0, 1, 8, 4095, 4097, 8192 + 8, (1 << 64) - 1])
def test_hello_2_the_pool_size_is_a_multiple_of_the_page_size(fresh: Client, size: int) -> None:
    """HELLO-2"""
    assert fresh.hello(pool_size=size) == -EFAULT


def test_hello_2_the_page_size_is_that_of_the_host(world: World, fresh: Client) -> None:
    """HELLO-2: 64 KiB on some machines."""
    world.host.page_size = 1 << 16
    assert fresh.hello(pool_size=3 << 14) == -EFAULT
    assert fresh.hello(pool_size=1 << 16) == 0


def test_hello_2_a_size_that_cannot_be_had_fails(world: World, fresh: Client) -> None:
    """HELLO-2: what the memory says; the file can try again, and nothing stays accounted."""
    before = world.domain.stats()
    fresh.memory.resize_errno = EINVAL
    assert fresh.hello(pool_size=1 << 62) == -EINVAL
    fresh.memory.resize_errno = 0
    fresh.memory.failing = ENOMEM
    assert fresh.hello() == -ENOMEM
    assert world.domain.stats() == before
    fresh.memory.failing = 0
    assert fresh.hello() == 0
    fresh.close()
    world.control.close()
    assert len(world.domain.users) == 0


def test_hello_2_a_size_that_cannot_be_had_is_told_before_the_rest(world: World, fresh: Client) -> None:
    """HELLO-1, HELLO-2: the pool is made before the credentials and the endpoint are checked."""
    fresh.memory.resize_errno = ENOMEM
    assert fresh.hello(send=1 << 30) == -EINVAL
    assert fresh.hello(items=make_item(c.ITEM_PIDS, pack("<QQQ", 2_000_000, 0, 0))) == -ENOMEM
    world.control.close()
    assert fresh.hello() == -ENOMEM


def test_hello_2_every_attempt_has_fresh_memory(world: World, fresh: Client) -> None:
    """HELLO-2, HELLO-21"""
    assert fresh.hello(flags=c.HELLO_POLICY_HOLDER, items=NAME) == 0
    second = world.open()
    assert second.hello(flags=c.HELLO_POLICY_HOLDER, items=NAME, pool_size=8192) == -EEXIST
    assert len(second.pool) == 8192
    assert second.hello(pool_size=4096) == 0
    assert len(second.pool) == 4096


@pytest.mark.parametrize("roles", [*combinations(SPECIAL, 2), SPECIAL])
def test_hello_3_there_is_one_special_role_at_most(world: World, roles: tuple[int, ...]) -> None:
    """HELLO-3: EINVAL before any other check of the role, on every endpoint."""
    flags = sum(roles)
    assert world.open().hello(flags=flags, items=NAME) == -EINVAL
    assert world.open(FakeProcess(uid=2000)).hello(flags=flags, items=NAME) == -EINVAL
    assert world.open().make_endpoint(b"1000-ep") == 0
    assert world.open(endpoint="1000-ep").hello(flags=flags, items=NAME) == -EINVAL


@pytest.mark.parametrize("role", (0, *SPECIAL))
def test_hello_3_accept_fd_goes_with_every_role(fresh: Client, role: int) -> None:
    """HELLO-3"""
    items = NAME if role in SPECIAL[:2] else b""
    assert fresh.hello(flags=role | c.HELLO_ACCEPT_FD, items=items) == 0


def test_hello_4_no_monitor_on_a_custom_endpoint(world: World) -> None:
    """HELLO-4, HELLO-5, CEP-4: EOPNOTSUPP for monitors, EPERM for the others."""
    assert world.open().make_endpoint(b"1000-ep") == 0
    client = world.open(endpoint="1000-ep")
    assert client.hello(flags=c.HELLO_MONITOR) == -EOPNOTSUPP
    assert client.hello(flags=c.HELLO_ACTIVATOR, items=NAME) == -EPERM
    assert client.hello(flags=c.HELLO_POLICY_HOLDER, items=NAME) == -EPERM
    assert client.hello() == 0


@pytest.mark.parametrize("role", SPECIAL)
def test_hello_5_special_roles_need_privilege(stranger: Client, role: int) -> None:
    """HELLO-5: before the items are looked at."""
    assert stranger.hello(flags=role, items=make_item(0x4242, b"")) == -EPERM


@pytest.mark.parametrize("role", (0, *SPECIAL))
def test_hello_6_a_name_is_for_activators_and_holders(fresh: Client, role: int) -> None:
    """HELLO-6, HELLO-7: exactly one."""
    needs = role in SPECIAL[:2]
    assert fresh.hello(flags=role, items=NAME + NAME) == -EINVAL
    assert fresh.hello(flags=role, items=NAME + i.name(b"c.d")) == -EINVAL
    assert fresh.hello(flags=role, items=b"" if needs else NAME) == -EINVAL
    assert fresh.hello(flags=role, items=NAME if needs else b"") == 0


@pytest.mark.parametrize(
    "name", [b"", b"a", b"a..b", b".a", b"a.", b"a.1", b"a b.c", b"*", b"a*", b"a.*.b", b"a." + b"b" * 254]
)
def test_hello_6_the_name_is_valid(fresh: Client, name: bytes) -> None:
    """HELLO-6"""
    for role in SPECIAL[:2]:
        assert fresh.hello(flags=role, items=i.name(name)) == -EINVAL


def test_hello_6_a_holder_may_hold_a_wildcard_but_nobody_activates_one(world: World, fresh: Client) -> None:
    """HELLO-6, POL-8: an activator of a wildcard is an effect of the defect of POL-7 in the reference."""
    assert fresh.hello(flags=c.HELLO_ACTIVATOR, items=i.name(b"a.*")) == -EINVAL
    assert fresh.hello(flags=c.HELLO_POLICY_HOLDER, items=i.name(b"a.*")) == 0


@pytest.mark.parametrize("item", [CREDS, i.pids(1, 1, 1), i.string(c.ITEM_SECLABEL, b"label")])
def test_hello_6_a_faked_identity_needs_privilege(world: World, stranger: Client, item: bytes) -> None:
    """HELLO-6: EPERM comes before EINVAL of its size."""
    assert stranger.hello(items=item) == -EPERM
    assert stranger.hello(items=make_item(c.ITEM_PIDS, b"short")) == -EPERM
    assert world.connect(items=item).id
    assert world.open().make_endpoint(b"1000-ep") == 0
    assert world.open(endpoint="1000-ep").hello(items=item) == -EPERM


def test_hello_6_faked_pids_have_their_size(fresh: Client) -> None:
    """HELLO-6: CREDS were measured by the generic check."""
    for length in (0, 16, 23, 25, 32):
        assert fresh.hello(items=make_item(c.ITEM_PIDS, bytes(length))) == -EINVAL
    assert fresh.hello(items=make_item(c.ITEM_CREDS, bytes(31))) == -EINVAL


def test_hello_6_there_is_one_description(world: World, fresh: Client) -> None:
    """HELLO-6"""
    described = i.string(c.ITEM_CONN_DESCRIPTION, b"name")
    assert fresh.hello(items=described * 2) == -EINVAL
    assert fresh.hello(items=described) == 0
    assert (c.ITEM_CONN_DESCRIPTION, b"name\0") in info_items(world.connect(), fresh.id)


@pytest.mark.parametrize(
    "item",
    [
        i.world(c.POLICY_OWN),
        i.access(77, 77),
        make_item(c.ITEM_BLOOM_MASK, b"odd"),
        i.u64(c.ITEM_ID, 5),
        i.name_change(c.ITEM_NAME_ADD),
        i.name_change(c.ITEM_NAME_REMOVE),
        i.name_change(c.ITEM_NAME_CHANGE),
        i.id_change(c.ITEM_ID_ADD),
        i.id_change(c.ITEM_ID_REMOVE),
    ],
)
def test_hello_6_policy_and_match_items_are_ignored(stranger: Client, item: bytes) -> None:
    """HELLO-6: on ordinary connections."""
    assert stranger.hello(items=item * 2) == 0


@pytest.mark.parametrize(
    "item",
    [
        make_item(0x4242, b""),
        i.string(c.ITEM_MAKE_NAME, b"x"),
        i.u64(c.ITEM_ATTACH_FLAGS_SEND, 0),
        make_item(c.ITEM_AUXGROUPS, b""),
        i.string(c.ITEM_DST_NAME, b"a.b"),
        i.bloom_parameter(64),
        make_item(c.ITEM_REPLY_DEAD, b""),
        i.string(c.ITEM_EXE, b"/bin/x"),
    ],
)
def test_hello_6_other_items_are_einval(fresh: Client, item: bytes) -> None:
    """HELLO-6"""
    assert fresh.hello(items=item) == -EINVAL


def test_hello_6_items_are_checked_in_order(stranger: Client) -> None:
    """HELLO-6"""
    assert stranger.hello(items=CREDS + NAME) == -EPERM
    assert stranger.hello(items=NAME + CREDS) == -EINVAL


def test_hello_6_of_repeated_identities_the_last_wins(world: World) -> None:
    """HELLO-6"""
    labels = i.string(c.ITEM_SECLABEL, b"first") + i.string(c.ITEM_SECLABEL, b"last")
    client = world.connect(items=labels + i.creds(*[9] * 8) + CREDS)
    items = info_items(world.connect(), client.id)
    assert (c.ITEM_SECLABEL, b"last\0") in items
    assert (c.ITEM_CREDS, pack("<8I", 1, 2, 3, 4, 5, 6, 7, 8)) in items


def test_hello_8_any_means_all_kinds(world: World, fresh: Client) -> None:
    """HELLO-8, GEN-17"""
    assert world.make_bus(world.open_control(FakeProcess()), b"1000-strict", required=c.ATTACH_ANY) == 0
    client = world.open(bus="1000-strict")
    assert client.hello(send=c.ATTACH_ALL & ~1) == -ECONNREFUSED
    assert client.hello(send=c.ATTACH_ANY, recv=c.ATTACH_ANY, free=False) == 0
    assert client.out(40) == c.ATTACH_ANY, "unchanged (HELLO-17)"


def test_hello_9_missing_required_flag_is_refused(world: World) -> None:
    """HELLO-9: nothing but kernel_flags is written back."""
    required = c.ATTACH_CREDS | c.ATTACH_PIDS
    assert world.make_bus(world.open_control(FakeProcess()), b"1000-strict", required=required) == 0
    client = world.open(bus="1000-strict")
    for send in (0, c.ATTACH_CREDS, c.ATTACH_ALL & ~c.ATTACH_PIDS):
        assert client.hello(send=send) == -ECONNREFUSED
        expected = pack("<QQQQQQQQQQQ16s", 104, 1, 0xF | 1 << 63, 0, send, 0, 0, 0, POOL_SIZE, 0, 0, b"")
        assert client.last == expected
    assert client.hello(send=required) == 0


def test_hello_10_ids_count_from_1_and_are_never_reused(world: World) -> None:
    """HELLO-10: later failures use them up, earlier ones do not; each bus counts for itself."""
    first = world.connect()
    assert first.id == 1
    first.close()
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=NAME)
    assert holder.id == 2
    assert world.open().hello(flags=c.HELLO_POLICY_HOLDER, items=NAME) == -EEXIST
    assert world.open(FakeProcess(failing=c.ATTACH_EXE)).hello() == -EFAULT
    assert world.open().hello(pool_size=1) == -EFAULT
    assert world.open(FakeProcess(uid=2)).hello(flags=c.HELLO_MONITOR) == -EPERM
    assert world.connect().id == 5
    assert world.make_bus(world.open_control(FakeProcess()), b"1000-other") == 0
    other = world.open(bus="1000-other")
    assert other.hello() == 0 and other.id == 1


def test_hello_11_only_the_faked_parts_are_known(world: World) -> None:
    """HELLO-11"""
    world.domain.attach_flags_mask = c.ATTACH_ALL
    reader = world.connect()
    for item, kind in (
        (CREDS, c.ITEM_CREDS),
        (i.pids(7, 8, 9), c.ITEM_PIDS),
        (i.string(c.ITEM_SECLABEL, b"label"), c.ITEM_SECLABEL),
    ):
        client = world.connect(items=item)
        assert info_items(reader, client.id) == parse_items(item, 0, len(item)), kind


def test_hello_11_faked_ids_are_those_of_the_callers_namespaces(world: World) -> None:
    """HELLO-11, NS-1: unmapped ids are EINVAL, -1 is "none"."""
    process = FakeProcess(uid=1000, uid_map={0: 1000, 1: 1001}, user_ns=2)
    client = world.open(process)
    assert client.hello(items=i.creds(0, 0, 0, 2, 0, 0, 0, 0)) == -EINVAL
    assert client.hello(items=i.creds(0, 0, 0, 0, 0, 0, 2, 0)) == -EINVAL
    none = 0xFFFFFFFF
    assert client.hello(items=i.creds(0, 1, none, 0, 1, 0, 0, none)) == 0
    expected = pack("<8I", 1000, 1001, none, 1000, 1001, 1000, 1000, none)
    assert info_items(world.connect(), client.id) == [(c.ITEM_CREDS, expected)]


def test_hello_11_faked_pids_exist_or_are_0(world: World) -> None:
    """HELLO-11"""
    client = world.open()
    for bad in ((2_000_000, 1, 1), (1, 2_000_000, 1), (1, 1, 2_000_000), (1 << 40, 0, 0)):
        assert client.hello(items=i.pids(*bad)) == -EINVAL
    assert client.hello(items=i.pids(0, 5, 0)) == 0
    assert info_items(world.connect(), client.id) == [(c.ITEM_PIDS, pack("<QQQ", 0, 5, 0))]


def test_hello_11_faked_pids_count_with_their_lower_32_bits(world: World) -> None:
    """HELLO-11: the ids of policies do so too (POL-2)."""
    client = world.connect(items=i.pids(0, (1 << 32) + 5, 7 << 32 | 6))
    assert info_items(world.connect(), client.id) == [(c.ITEM_PIDS, pack("<QQQ", 0, 5, 6))]


def test_hello_12_everything_is_collected_whatever_the_flags(world: World) -> None:
    """HELLO-12: a kind that cannot be gathered fails HELLO, even if it is visible to no reader."""
    process = FakeProcess(failing=c.ATTACH_CMDLINE)
    client = world.open(process)
    assert client.hello(send=0) == -EFAULT
    assert client.hello(send=0, items=CREDS) == 0, "a faked identity collects nothing"
    assert len(world.domain.users) == 1


def test_hello_13_a_user_has_1024_connections_in_the_domain(world: World) -> None:
    """HELLO-13, LIM-14: by real uid, over all buses, until their files are closed."""
    assert world.make_bus(world.open_control(FakeProcess()), b"1000-other", c.MAKE_ACCESS_WORLD) == 0
    user = FakeProcess(uid=2000)
    clients = []
    for number in range(1024):
        clients.append(world.open(user, bus=("1000-test", "1000-other")[number % 2]))
        assert clients[-1].hello(pool_size=4096) == 0
    late = world.open(FakeProcess(uid=2000, euid=3000))
    assert late.hello() == -EMFILE
    assert world.open(FakeProcess(uid=3000, euid=2000)).hello() == 0
    assert clients[0].byebye() == 0
    assert late.hello() == -EMFILE
    clients[0].close()
    assert late.hello() == 0


def test_hello_13_a_closed_connection_does_not_count_for_its_unread_requests(world: World) -> None:
    """HELLO-13: messages in the queues of other users do not count."""
    server, client = world.connect(), world.connect(FakeProcess(uid=2000))
    assert server.acquire(b"a.b") == 0
    world.connect(flags=c.HELLO_POLICY_HOLDER, items=NAME + i.world(c.POLICY_TALK))
    assert client.send(dst=server.id, flags=c.MSG_EXPECT_REPLY, cookie=1, cookie_reply=1 << 60) == 0
    assert client.connection.user.connections == 1
    client.close()
    assert client.connection.user.connections == 0
    assert server.receive().cookie == 1


def test_hello_14_a_removed_endpoint_is_eshutdown(world: World, fresh: Client) -> None:
    """HELLO-14: after the checks of the request."""
    world.control.close()
    assert fresh.hello(flags=1 << 4) == -EINVAL
    assert fresh.hello() == -ESHUTDOWN
    fresh.close()
    assert len(world.domain.users) == 0


def test_hello_15_others_hear_of_it_before_it_returns(world: World) -> None:
    """HELLO-15: of all but monitors; an activator takes its name."""
    watcher = observer(world)
    client = world.connect()
    monitor = world.connect(flags=c.HELLO_MONITOR)
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=NAME)
    assert monitor.id == client.id + 1
    assert received(watcher) == [
        (c.ITEM_ID_ADD, client.id, c.HELLO_ACCEPT_FD),
        (c.ITEM_ID_ADD, activator.id, c.HELLO_ACTIVATOR),
        (c.ITEM_NAME_ADD, 0, 0, activator.id, c.NAME_ACTIVATOR),
    ]


def test_hello_15_nobody_hears_of_himself_or_before_he_can_match(world: World) -> None:
    """HELLO-15"""
    client = observer(world)
    assert received(client) == []


@pytest.mark.parametrize("role", SPECIAL[:2])
def test_hello_16_a_policy_that_exists_ends_the_connection_again(world: World, role: int) -> None:
    """HELLO-16, POL-21: and others saw it come and go."""
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=NAME)
    watcher = observer(world)
    client = world.open()
    assert client.hello(flags=role, items=NAME) == -EEXIST
    (bus,) = world.domain.buses.values()
    assert (len(bus.policy), len(bus.names), sorted(bus.connections)) == (1, 0, [holder.id, watcher.id])
    id = holder.id + 2
    expected: list[tuple[int, ...]] = [(c.ITEM_ID_ADD, id, role), (c.ITEM_ID_REMOVE, id, role)]
    if role == c.HELLO_ACTIVATOR:
        expected[1:1] = [
            (c.ITEM_NAME_ADD, 0, 0, id, c.NAME_ACTIVATOR),
            (c.ITEM_NAME_REMOVE, id, c.NAME_ACTIVATOR, 0, 0),
        ]
    assert received(watcher) == expected
    assert client.hello() == 0


@pytest.mark.parametrize("items", [i.world(1) + NAME, NAME + i.world(9), NAME + i.access(9, 1)])
def test_hello_16_an_invalid_policy_ends_the_connection_again(world: World, items: bytes) -> None:
    """HELLO-16"""
    watcher = observer(world)
    assert world.open().hello(flags=c.HELLO_POLICY_HOLDER, items=items) == -EINVAL
    assert [record[0] for record in received(watcher)] == [c.ITEM_ID_ADD, c.ITEM_ID_REMOVE]


def test_hello_17_what_comes_back(world: World) -> None:
    """HELLO-17: byte for byte."""
    control = world.open_control(FakeProcess())
    assert world.make_bus(control, b"1000-x", c.MAKE_ACCESS_GROUP, 128, c.ATTACH_PIDS) == 0
    client = world.open(bus="1000-x")
    send, recv = c.ATTACH_ALL, c.ATTACH_CREDS | c.ATTACH_NAMES
    assert client.hello(send=send, recv=recv, pool_size=16 << 12, free=False) == 0
    assert client.last == pack(
        "<QQQQQQQQQQQ16s",
        104,
        c.HELLO_ACCEPT_FD,
        0,
        0,
        c.ATTACH_PIDS | 1 << 63,
        recv,
        c.MAKE_ACCESS_GROUP,
        1,
        16 << 12,
        0,
        40,
        world.domain.buses["1000-x"].id128,
    )
    assert bytes(client.pool[:40]) == pack("<QQQQQ", 40, 32, c.ITEM_BLOOM_PARAMETER, 128, 1)
    assert len(client.pool) == 16 << 12 and not any(client.pool[40:])


def test_hello_19_the_slice_stays_until_it_is_freed(world: World, fresh: Client) -> None:
    """HELLO-19: for ever at a policy holder."""
    assert fresh.hello(free=False) == 0
    assert fresh.connection.pool.busy == 40
    assert fresh.free(0) == 0
    assert fresh.connection.pool.busy == 0
    holder = world.open()
    assert holder.hello(flags=c.HELLO_POLICY_HOLDER, items=NAME, free=False) == 0
    assert holder.free(0) == -EOPNOTSUPP


def test_hello_20_the_makers_real_uid_is_whom_others_talk_to(world: World) -> None:
    """HELLO-20, POL-10: not the effective one, and not who holds the file now."""
    maker = FakeProcess(uid=2000, euid=3000)
    receiver = world.connect(maker)
    maker.uid = maker.euid = 4000
    for uid, expected in ((2000, 0), (3000, -EPERM), (4000, -EPERM)):
        assert world.connect(FakeProcess(uid=uid)).send(dst=receiver.id) == expected


def test_hello_20_passive_checks_use_the_credentials_of_hello(world: World) -> None:
    """HELLO-20, POL-14, POL-15: effective uid, gid and groups as they were."""
    sender = world.connect()
    assert sender.acquire(b"a.b") == 0
    grants = i.group(c.POLICY_TALK, 77)
    world.connect(flags=c.HELLO_POLICY_HOLDER, items=NAME + grants)
    in_group = FakeProcess(uid=2000, aux=(5, 77))
    receivers = [world.connect(in_group), world.connect(FakeProcess(uid=2000))]
    in_group.aux = ()
    for receiver in receivers:
        assert receiver.add_match(1) == 0
    assert sender.send(dst=c.DST_ID_BROADCAST, flags=c.MSG_SIGNAL, items=i.bloom_filter()) == 0
    assert [receiver.recv() == 0 for receiver in receivers] == [True, False]


def test_hello_21_a_failed_hello_can_be_tried_again(world: World, fresh: Client) -> None:
    """HELLO-21"""
    for how in ({"pool_size": 1}, {"flags": 6}, {"send": 1 << 30}, {"items": make_item(0x4242, b"")}):
        assert fresh.hello(**how) < 0
    assert fresh.hello() == 0


def test_hello_22_monitors_need_no_matches_and_may_have_none(world: World) -> None:
    """HELLO-22, MON-1"""
    monitor, sender = world.connect(flags=c.HELLO_MONITOR), world.connect()
    assert monitor.receive().kinds() == [c.ITEM_ID_ADD]
    assert monitor.add_match(1) == -EOPNOTSUPP
    assert sender.send(dst=c.DST_ID_BROADCAST, flags=c.MSG_SIGNAL, items=i.bloom_filter()) == 0
    assert monitor.receive().src_id == sender.id


def test_hello_a_caller_that_is_gone_gets_esrch(world: World) -> None:
    """HELLO-20: its credentials cannot be read any more; nothing leaks."""
    process = FakeProcess()
    client = world.open(process)
    process.alive = False
    assert client.hello(items=CREDS) == -ESRCH
    assert len(world.domain.users) == 1
