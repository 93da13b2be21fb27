"""HELLO, UPDATE, CONN_INFO and BUS_CREATOR_INFO of the last ABI (L-31 to L-48, L-126)."""

from __future__ import annotations

from errno import EEXIST, EFAULT, EINVAL, EMFILE, ENXIO, EOPNOTSUPP, EPERM, ESHUTDOWN, ESRCH
from struct import pack, unpack_from

import pytest

from kdbusfs.abi.last import constants as c
from kdbusfs.abi.last.items import make_item
from kdbusfs.base.identity import NO_ID
from tests.support.core_client import POOL_SIZE
from tests.support.fake_host import FakeProcess
from tests.support.last_client import LastClient, LastWorld, bus_items, name_item, u64_item

DESCRIPTION = make_item(c.ITEM_CONN_DESCRIPTION, b"who\0")
Pair = tuple[LastClient, LastClient]


def creds(*ids: int) -> bytes:
    return make_item(c.ITEM_CREDS, pack("<8Q", *ids))


def access(level: int) -> bytes:
    return make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", c.POLICY_ACCESS_WORLD, level, 0))


def test_l_31_38_39_what_hello_gives_back(world: LastWorld) -> None:
    client = world.open_last()
    assert client.hello(send=c.ATTACH_ANY, recv=c.ATTACH_CREDS, items=DESCRIPTION, free=False) == 0
    bus = world.domain.buses["1000-test"]
    fields = unpack_from("<QQQQQQQQQQ16s", client.last)
    assert fields[1:5] == (c.HELLO_ACCEPT_FD, 0, c.ATTACH_ANY, c.ATTACH_CREDS)
    assert fields[5:] == (bus.flags, client.id, POOL_SIZE, fields[8], 32, bus.id128)
    assert client.pool[fields[8] : fields[8] + 32] == make_item(c.ITEM_BLOOM_PARAMETER, pack("<QQ", 64, 1))
    assert client.free(fields[8]) == 0
    assert client.free(fields[8]) == -ENXIO


def test_l_32_hello_takes_items_of_its_own_alone(world: LastWorld) -> None:
    client = world.open_last()
    for kind, size in (
        (c.ITEM_BLOOM_MASK, 64),
        (c.ITEM_ID, 8),
        (c.ITEM_NAME_ADD, 32),
        (c.ITEM_ID_ADD, 16),
        (c.ITEM_DST_NAME, 0),
        (c.ITEM_MAKE_NAME, 0),
    ):
        assert client.hello(items=make_item(kind, bytes(size) or b"a.b\0")) == -EINVAL
    assert client.hello(items=DESCRIPTION + DESCRIPTION) == -EINVAL
    assert client.hello(items=DESCRIPTION + access(0) + access(1)) == 0


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_l_33_a_wrong_size_of_the_pool_is_einval(world: LastWorld, size: int) -> None:
    assert world.open_last().hello(pool_size=size) == -EINVAL


def test_l_34_the_order_of_what_is_wrong(world: LastWorld) -> None:
    owner = world.open_last()
    assert owner.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD) == 0
    stranger = world.open_last(FakeProcess(uid=2000))
    custom = world.open_last(endpoint="1000-e")
    name, bad = name_item(b"a.b"), name_item(b"b")
    two = c.HELLO_MONITOR | c.HELLO_ACTIVATOR
    assert stranger.hello(flags=two, pool_size=0) == -EINVAL
    assert stranger.hello(flags=two) == -EINVAL
    assert stranger.hello(items=name) == -EINVAL
    assert stranger.hello(flags=c.HELLO_ACTIVATOR) == -EINVAL  # and not EPERM
    assert stranger.hello(flags=c.HELLO_ACTIVATOR, items=bad) == -EINVAL
    assert custom.hello(flags=c.HELLO_MONITOR, items=name) == -EINVAL  # and not EOPNOTSUPP
    assert custom.hello(flags=c.HELLO_MONITOR) == -EOPNOTSUPP
    assert stranger.hello(flags=c.HELLO_ACTIVATOR, items=name) == -EPERM
    assert stranger.hello(flags=c.HELLO_MONITOR, send=1 << 30) == -EPERM
    assert stranger.hello(items=creds(*[0] * 8), send=1 << 30) == -EPERM
    assert stranger.hello(send=1 << 30) == -EINVAL
    assert stranger.hello(recv=1 << 30) == -EINVAL
    trusted = world.open_last()
    assert trusted.hello(items=creds(*[c.U64_MAX] * 8), recv=1 << 30) == -EINVAL
    assert trusted.hello(items=creds(*[c.U64_MAX] * 8)) == -EINVAL
    assert trusted.hello(items=creds(*[7] * 8)) == 0


def test_l_34_limit_and_end(world: LastWorld) -> None:
    process = FakeProcess(uid=2000)
    late = world.open_last(process)
    clients = [world.last(process, pool_size=4096) for _ in range(1024)]
    assert late.hello() == -EMFILE
    assert clients[0].handle.poll() == 0x4 | 0x100
    clients[0].close()
    world.control.close()
    assert late.hello() == -ESHUTDOWN


def test_l_35_who_may_what_an_owner_may(world: LastWorld) -> None:
    for process in (FakeProcess(uid=5, euid=1000), FakeProcess(uid=2000, ipc_owner=True)):
        world.last(process, flags=c.HELLO_MONITOR)
    assert world.open_last(FakeProcess(uid=1000, euid=2000)).hello(flags=c.HELLO_MONITOR) == -EPERM


def test_l_11_a_hello_that_cannot_be_answered_has_not_happened(world: LastWorld) -> None:
    """Its struct travels back with the answer: what cannot be read is found before."""
    client = world.open_last()
    call = client.call(c.CMD_HELLO, bytes(96))
    call.error = EFAULT
    assert client.run(call) == -EFAULT
    assert not world.domain.buses["1000-test"].connections


def hello_by(world: LastWorld, opener: FakeProcess, other: FakeProcess, **hello: int | bytes) -> LastClient:
    """A connection of whose file one process was the opener, and another one said HELLO on it."""
    client = world.open_last(opener)
    client.process = other
    assert client.hello(**hello) == 0  # type: ignore[arg-type]
    return client


def test_l_36_who_opened_the_file_stands_for_the_connection(world: LastWorld) -> None:
    """L-125: the same user may talk to it: that of open(); and passive checks look at its ids."""
    client = hello_by(world, FakeProcess(uid=2000, gid=2000, aux=(7,)), FakeProcess(uid=3000, gid=3000, aux=(8,)))
    assert client.connection.credentials.ids() == FakeProcess(uid=2000, gid=2000).current_ids()
    assert client.connection.credentials.groups() == ()
    assert world.last(FakeProcess(uid=2000)).send(dst=client.id) == 0
    assert world.last(FakeProcess(uid=3000)).send(dst=client.id) == -EPERM
    # What it does itself it does as who it is now.
    assert client.send(dst=world.last(FakeProcess(uid=3000)).id) == 0
    assert client.conn_info(id=client.id, flags=c.ATTACH_CREDS) == 0
    ((_, payload),) = client.info()[2]
    assert unpack_from("<Q", payload)[0] == 3000
    same = FakeProcess(uid=2000, aux=(7,))
    assert hello_by(world, same, same).connection.credentials.groups() == (7,)
    # v3 looks at HELLO.
    old = world.open(FakeProcess(uid=2000))
    old.process = FakeProcess(uid=3000)
    assert old.hello() == 0
    assert old.connection.credentials.ids().uid == 3000


def test_l_37_who_is_accounted_for_a_connection(world: LastWorld) -> None:
    faked = creds(4000, *[5] * 7)
    acting = FakeProcess(uid=1000, ipc_owner=True)
    client = hello_by(world, FakeProcess(uid=2000), FakeProcess(uid=3000))
    assert client.connection.user.uid == 2000
    assert world.last(acting, items=faked).connection.user.uid == 4000
    assert world.last(items=faked).connection.user.uid == 1000  # an owner of the bus alone
    assert world.last(acting, items=creds(NO_ID, *[5] * 7)).connection.user.uid == 1000
    assert world.last(acting, items=make_item(c.ITEM_SECLABEL, b"label\0")).connection.user.uid == 1000
    owner = world.open_last()
    assert owner.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD) == 0
    custom = world.domain.buses["1000-test"].endpoints["1000-e"]
    assert world.last(acting, endpoint="1000-e").connection.user is custom.user


def test_l_101_the_user_namespace_is_that_of_who_opened_the_file(world: LastWorld) -> None:
    inside = FakeProcess(uid=1000, uid_map={0: 1000, 5: 2000}, user_ns=2, pid_ns=7)
    outside = FakeProcess(uid=1000)
    sender = world.last(FakeProcess(uid=2000, ipc_owner=True))
    for opener, other, seen in ((inside, outside, (5, 100)), (outside, inside, (2000, 0))):
        client = hello_by(world, opener, other, recv=c.ATTACH_CREDS | c.ATTACH_PIDS)
        assert sender.send(dst=client.id) == 0
        (message,) = client.drain()
        uid, pid = (unpack_from("<Q", message.item(kind))[0] for kind in (c.ITEM_CREDS, c.ITEM_PIDS))
        assert (uid, pid) == seen


def test_l_101_who_cannot_be_seen_may_open_a_file(world: LastWorld) -> None:
    """The host says at HELLO whether that is enough for a connection; here it is."""
    hidden = FakeProcess(uid=1000, user_ns=2, uid_map={5: 1000}, is_hidden=True)
    old = world.open(hidden)
    assert old.hello() == 0
    client = world.last(hidden, recv=c.ATTACH_CREDS)
    assert old.send(dst=client.id) == 0
    (message,) = client.drain()
    assert unpack_from("<Q", message.item(c.ITEM_CREDS))[0] == 5


def test_l_46_101_everything_is_seen_as_its_hello_saw_it(world: LastWorld) -> None:
    """Whoever reads has the namespaces of the task that said HELLO."""
    inside = FakeProcess(uid=1000, uid_map={0: 1000, 5: 2000}, user_ns=2, pid_ns=7)
    client = world.last(inside, recv=c.ATTACH_CREDS | c.ATTACH_PIDS)
    client.process = FakeProcess(uid=1000)  # another one, outside, goes on with the file
    assert world.last(FakeProcess(uid=2000, ipc_owner=True)).send(dst=client.id) == 0
    (message,) = client.drain()
    assert unpack_from("<Q", message.item(c.ITEM_CREDS))[0] == 5
    assert unpack_from("<Q", message.item(c.ITEM_PIDS))[0] == 0  # not visible there
    assert client.conn_info(id=client.id, flags=c.ATTACH_CREDS) == 0
    ((_, payload),) = client.info()[2]
    assert unpack_from("<Q", payload)[0] == 0
    assert client.creator_info(c.ATTACH_CREDS) == 0
    client.info()


def test_l_40_a_faked_identity(world: LastWorld) -> None:
    label = make_item(c.ITEM_SECLABEL, b"label\0")
    client = world.last(items=creds(1, 2, 3, 4, 5, 6, 7, 0xFFFFFFFF) + label)
    asker = world.last(recv=c.ATTACH_ALL)
    assert asker.conn_info(id=client.id, flags=c.ATTACH_ANY) == 0
    _, _, items = asker.info()
    assert [kind for kind, _ in items] == [c.ITEM_CREDS, c.ITEM_SECLABEL]
    assert unpack_from("<8Q", items[0][1]) == (1, 2, 3, 4, 5, 6, 7, 0xFFFFFFFF)
    assert client.send(dst=asker.id) == 0
    (message,) = asker.drain()
    assert message.kinds() == [c.ITEM_TIMESTAMP]
    assert world.last(items=label).connection.faked


def test_l_42_43_whom_conn_info_is_about(world: LastWorld) -> None:
    first, second = world.last(), world.last()
    assert first.acquire(b"a.b") == 0
    for wanted in (0, c.ATTACH_ANY, c.ATTACH_NAMES):
        assert second.conn_info(id=first.id, flags=wanted) == 0
        id, flags, items = second.info()
        assert (id, flags) == (first.id, c.HELLO_ACCEPT_FD)
        assert bool(wanted) == bool(items)
    assert second.conn_info(id=first.id, name=b"a.b") == 0
    assert second.conn_info(name=b"a.b") == 0
    assert second.conn_info(id=second.id, name=b"a.b") == -ESRCH
    assert second.conn_info(id=999, name=b"a.b") == -ESRCH
    assert second.conn_info(name=b"a.c") == -ESRCH
    assert second.conn_info(id=first.id, name=b"a.c") == -ESRCH
    assert second.conn_info(id=999) == -ENXIO
    assert second.conn_info() == -EINVAL
    assert second.conn_info(name=b"a") == -EINVAL


def test_l_44_45_what_conn_info_shows(world: LastWorld) -> None:
    target = world.last(send=c.ATTACH_CREDS | c.ATTACH_CONN_DESCRIPTION, items=DESCRIPTION)
    asker = world.last()
    assert asker.conn_info(id=target.id, flags=c.ATTACH_ANY) == 0
    _, _, items = asker.info()  # which looks at the padding
    assert items == [(c.ITEM_CREDS, pack("<8Q", *[1000] * 8)), (c.ITEM_CONN_DESCRIPTION, b"who\0")]
    monitor = world.last(flags=c.HELLO_MONITOR)
    assert asker.conn_info(id=monitor.id) == 0
    assert asker.info()[0] == monitor.id


def test_l_47_bus_creator_info(world: LastWorld) -> None:
    control = world.control_last()
    shown = u64_item(c.ITEM_ATTACH_FLAGS_SEND, c.ATTACH_CREDS)
    assert control.simple(c.CMD_BUS_MAKE, c.MAKE_ACCESS_WORLD, bus_items() + shown) == 0
    client = world.open_last(bus="1000-last")
    assert client.hello() == 0
    assert client.creator_info(c.ATTACH_ANY) == 0
    id, flags, items = client.info()
    assert (id, flags) == (world.domain.buses["1000-last"].id, c.MAKE_ACCESS_WORLD)
    assert items == [(c.ITEM_MAKE_NAME, b"1000-last\0"), (c.ITEM_CREDS, pack("<8Q", *[1000] * 8))]
    assert client.command(c.CMD_BUS_CREATOR_INFO, bytes(56), name_item(b"a.b")) == -EINVAL


def test_l_48_what_each_kind_of_connection_may_update(world: LastWorld) -> None:
    name = name_item(b"com.example")
    send, recv = u64_item(c.ITEM_ATTACH_FLAGS_SEND, 2), u64_item(c.ITEM_ATTACH_FLAGS_RECV, 4)
    policy = name + access(c.POLICY_TALK)
    results = {
        c.HELLO_ACCEPT_FD: (0, 0, -EOPNOTSUPP),
        c.HELLO_MONITOR: (0, 0, -EOPNOTSUPP),
        c.HELLO_ACTIVATOR: (-EOPNOTSUPP, 0, -EOPNOTSUPP),
        c.HELLO_POLICY_HOLDER: (-EOPNOTSUPP, -EOPNOTSUPP, 0),
    }
    for flags, expected in results.items():
        named = flags in (c.HELLO_ACTIVATOR, c.HELLO_POLICY_HOLDER)
        client = world.last(flags=flags, items=name if named else b"")
        assert (client.update(send), client.update(recv), client.update(policy)) == expected
        assert client.connection.attach_flags_recv == (4 if expected[1] == 0 else 0)
        client.close()
    client = world.last()
    assert client.update(send + send) == -EINVAL
    assert client.update(u64_item(c.ITEM_ATTACH_FLAGS_SEND, 1 << 30)) == -EINVAL
    assert client.update(make_item(c.ITEM_CONN_DESCRIPTION, b"x\0")) == -EINVAL
    assert client.update() == 0


def test_l_48_a_policy_that_is_wrong_leaves_the_flags_alone(world: LastWorld) -> None:
    holder = world.last(flags=c.HELLO_POLICY_HOLDER, items=name_item(b"a.b"))
    other = world.last(flags=c.HELLO_POLICY_HOLDER, items=name_item(b"a.c"))
    assert other.update(name_item(b"a.b")) == -EEXIST
    assert holder.update(name_item(b"a.d") + access(1)) == 0


def test_l_126_a_second_activator_leaves_nothing_behind(world: LastWorld) -> None:
    name = name_item(b"com.example")
    world.last(flags=c.HELLO_ACTIVATOR, items=name)
    before = dict(world.domain.buses["1000-test"].connections)
    assert world.open_last().hello(flags=c.HELLO_ACTIVATOR, items=name) == -EEXIST
    assert world.domain.buses["1000-test"].connections == before


def test_a_connection_is_shown_with_its_family(world: LastWorld) -> None:
    world.connect()
    world.last()
    assert [each["family"] for each in world.domain.connection_details(1)] == ["v3", "last"]
