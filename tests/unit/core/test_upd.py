"""CONN_UPDATE (UPD)."""

from __future__ import annotations

from errno import E2BIG, EEXIST, EINVAL, EOPNOTSUPP, EPERM

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World

SEND, RECV = c.ITEM_ATTACH_FLAGS_SEND, c.ITEM_ATTACH_FLAGS_RECV
OWN_ALL = i.world(c.POLICY_OWN)


def holder(world: World, items: bytes = b"") -> Client:
    return world.connect(flags=c.HELLO_POLICY_HOLDER, items=i.name(b"a.b") + items)


def owns(world: World, name: bytes, uid: int = 2000) -> bool:
    """Whether a stranger may own `name`."""
    client = world.connect(FakeProcess(uid=uid))
    result = client.acquire(name)
    client.close()
    assert result in (0, -EPERM)
    return result == 0


@pytest.mark.parametrize("kind", [SEND, RECV])
def test_upd_1_attach_flags_are_for_ordinary_connections_and_monitors(world: World, kind: int) -> None:
    """UPD-1"""
    item = i.u64(kind, 0)
    assert world.connect().update(item) == 0
    assert world.connect(flags=c.HELLO_MONITOR).update(item) == 0
    assert holder(world).update(item) == -EOPNOTSUPP
    assert world.connect(flags=c.HELLO_ACTIVATOR, items=i.name(b"c.d")).update(item) == -EOPNOTSUPP


def test_upd_1_policies_are_for_policy_holders(world: World) -> None:
    """UPD-1"""
    for item in (i.name(b"x.y"), OWN_ALL):
        assert world.connect().update(item) == -EOPNOTSUPP
        assert world.connect(flags=c.HELLO_MONITOR).update(item) == -EOPNOTSUPP
    assert holder(world).update(i.name(b"x.y") + OWN_ALL) == 0


def test_upd_1_other_items_are_einval_in_item_order(world: World) -> None:
    """UPD-1"""
    client = world.connect()
    for item in (make_item(0x4242, b""), i.string(c.ITEM_CONN_DESCRIPTION, b"x"), i.u64(c.ITEM_ID, 1)):
        assert client.update(item) == -EINVAL
        assert holder(World()).update(item) == -EINVAL
    assert client.update(OWN_ALL + make_item(0x4242, b"")) == -EOPNOTSUPP
    assert client.update(make_item(0x4242, b"") + OWN_ALL) == -EINVAL
    assert client.update(i.u64(SEND, 1 << 20) + OWN_ALL) == -EINVAL


def shown(world: World, client: Client) -> bool:
    """Whether its credentials travel with its messages."""
    reader = world.connect()
    assert reader.conn_info(id=client.id, flags=c.ATTACH_CREDS) == 0
    return reader.out(48) > 24


def test_upd_2_the_requirement_of_the_bus_still_holds() -> None:
    """UPD-2: EINVAL here; nothing changes, not even the recv flags of the same call."""
    world = World(required=c.ATTACH_PIDS)
    client = world.connect(send=c.ATTACH_ALL, recv=c.ATTACH_PIDS)
    for flags in (0, c.ATTACH_ALL & ~c.ATTACH_PIDS):
        assert client.update(i.u64(RECV, 0) + i.u64(SEND, flags)) == -EINVAL
    assert shown(world, client)
    assert client.send(dst=client.id) == 0
    assert client.receive().kinds() == [c.ITEM_PIDS]
    assert client.update(i.u64(SEND, c.ATTACH_PIDS)) == 0
    assert not shown(world, client)


def test_upd_3_the_last_of_repeated_items_wins(world: World) -> None:
    """UPD-3: ~0 means all; no items, no effect."""
    client = world.connect(recv=0)
    assert client.update(i.u64(SEND, c.ATTACH_ANY) + i.u64(SEND, 0)) == 0
    assert not shown(world, client)
    assert client.update() == 0
    assert not shown(world, client)
    assert client.update(i.u64(SEND, 0) + i.u64(SEND, c.ATTACH_ANY)) == 0
    assert shown(world, client)
    assert client.update(i.u64(SEND, c.ATTACH_ALL + 1) + i.u64(SEND, 0)) == -EINVAL, "every item is checked"


def test_upd_4_an_update_replaces_the_entry(world: World) -> None:
    """UPD-4, POL-18: under another name, too."""
    client = holder(world, OWN_ALL)
    assert owns(world, b"a.b")
    assert client.update(i.name(b"c.d") + OWN_ALL) == 0
    assert not owns(world, b"a.b") and owns(world, b"c.d")
    assert client.update(i.name(b"c.d")) == 0, "an entry that grants nothing"
    assert not owns(world, b"c.d")
    assert len(world.domain.buses["1000-test"].policy) == 1
    assert client.update() == 0, "no items leave it alone"
    assert len(world.domain.buses["1000-test"].policy) == 1


def test_upd_4_errors_leave_the_old_entry(world: World) -> None:
    """UPD-4, POL-4 to POL-6"""
    other = world.connect(flags=c.HELLO_POLICY_HOLDER, items=i.name(b"taken.name"))
    client = holder(world, OWN_ALL)
    assert client.update(i.name(b"x.y") + OWN_ALL + i.name(b"z.z")) == -E2BIG
    assert client.update(i.name(b"a.b") * 2) == -E2BIG
    assert client.update(OWN_ALL) == -EINVAL
    assert client.update(OWN_ALL + i.name(b"x.y")) == -EINVAL
    assert client.update(i.name(b"bad")) == -EINVAL
    assert client.update(i.name(b"x.y") + i.world(3)) == -EINVAL
    assert client.update(i.name(b"taken.name")) == -EEXIST
    assert owns(world, b"a.b")
    other.close()
    assert client.update(i.name(b"taken.name")) == 0


def test_upd_4_a_wildcard_may_follow_a_name(world: World) -> None:
    """UPD-4, POL-7"""
    client = holder(world)
    assert client.update(i.name(b"a.*") + OWN_ALL) == 0
    assert owns(world, b"a.b") and owns(world, b"a.c") and not owns(world, b"a.b.c")


def test_upd_5_whoever_holds_the_file_may_update(world: World) -> None:
    """UPD-5: with ids of his own user namespace."""
    client = holder(world)
    client.process = FakeProcess(uid=3000, uid_map={7: 2000})
    assert client.update(i.name(b"a.b") + i.user(c.POLICY_OWN, 8)) == -EINVAL
    assert client.update(i.name(b"a.b") + i.user(c.POLICY_OWN, 7)) == 0
    assert owns(world, b"a.b", 2000) and not owns(world, b"a.b", 2001)


def test_upd_6_recv_flags_narrow_what_is_queued(world: World) -> None:
    """UPD-6, META-4: flags that are taken back hide items, flags that are added create none."""
    client = world.connect(recv=c.ATTACH_CREDS | c.ATTACH_PIDS)
    sender = world.connect()
    for _ in range(2):
        assert sender.send(dst=client.id) == 0
    assert client.update(i.u64(RECV, c.ATTACH_PIDS | c.ATTACH_AUXGROUPS)) == 0
    assert client.receive().kinds() == [c.ITEM_PIDS]
    assert client.update(i.u64(RECV, c.ATTACH_ALL)) == 0
    assert client.receive().kinds() == [c.ITEM_CREDS, c.ITEM_PIDS]
