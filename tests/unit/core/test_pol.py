"""Policy (POL)."""

from __future__ import annotations

from errno import E2BIG, EEXIST, EINVAL, EOPNOTSUPP, EPERM
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.base.ports import Reader
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, MessageFields, World
from tests.support.core_scenes import signal

SEE, TALK, OWN = c.POLICY_SEE, c.POLICY_TALK, c.POLICY_OWN
BROADCAST: MessageFields = {"dst": c.DST_ID_BROADCAST, "flags": c.MSG_SIGNAL, "items": i.bloom_filter()}


def hold(world: World, name: bytes, *accesses: bytes, process: FakeProcess | None = None) -> Client:
    return world.connect(process, flags=c.HELLO_POLICY_HOLDER, items=i.name(name) + b"".join(accesses))


def own(client: Client, name: bytes = b"a.b") -> int:
    """The result of ACQUIRE; the name is released again."""
    result = client.acquire(name)
    if result == 0:
        assert client.release_name(name) == 0
    return result


def stranger(world: World, uid: int = 2000, **how: Any) -> Client:
    return world.connect(FakeProcess(uid=uid, **how))


def test_pol_1_one_entry_for_a_name_whoever_owns_it(world: World) -> None:
    """POL-1: a wildcard is an entry of its own; each bus and endpoint has its own entries."""
    first = hold(world, b"a.b")
    for client in (world.open(), world.open(FakeProcess(uid=5, ipc_owner=True))):
        assert client.hello(flags=c.HELLO_POLICY_HOLDER, items=i.name(b"a.b")) == -EEXIST
    hold(world, b"a.b.*")
    assert world.open().hello(flags=c.HELLO_POLICY_HOLDER, items=i.name(b"a.b.*")) == -EEXIST
    for name in (b"1000-e", b"1000-f"):
        assert world.open().make_endpoint(name, items=i.name(b"a.b") + i.name(b"a.b.*")) == 0
    assert world.make_bus(world.open_control(FakeProcess()), b"1000-other") == 0
    assert world.open(bus="1000-other").hello(flags=c.HELLO_POLICY_HOLDER, items=i.name(b"a.b")) == 0
    first.close()
    hold(world, b"a.b")


@pytest.mark.parametrize(
    "bad",
    [
        i.access(0, OWN),
        i.access(4, OWN),
        i.access(c.U64_MAX, OWN),
        i.access(257, OWN),
        i.world(3),
        i.world(c.U64_MAX),
        i.world(256),
        i.user(OWN, 1001),
        i.group(OWN, 1001),
        i.user(OWN, 0xFFFFFFFF),
        i.group(OWN, 1 << 32 | 0xFFFFFFFF),
    ],
)
def test_pol_2_unknown_kinds_rights_and_ids_are_einval(world: World, bad: bytes) -> None:
    """POL-2"""
    process = FakeProcess(uid=1000, uid_map={0: 1000, 7: 7})
    assert world.open(process).hello(flags=c.HELLO_POLICY_HOLDER, items=i.name(b"a.b") + bad) == -EINVAL
    owner = world.open(process)
    assert owner.make_endpoint(b"1000-ep", items=i.name(b"a.b") + i.world(OWN) + bad) == -EINVAL


def test_pol_2_ids_are_cut_to_32_bits_and_world_ignores_them(world: World) -> None:
    """POL-2"""
    hold(world, b"a.b", i.user(OWN, 5 << 32 | 2000))
    hold(world, b"c.d", i.access(c.POLICY_ACCESS_WORLD, OWN, c.U64_MAX))
    assert own(stranger(world)) == 0 and own(stranger(world, 2001)) == -EPERM
    assert own(stranger(world, 2001), b"c.d") == 0
    hold(world, b"e.f", i.access(c.POLICY_ACCESS_GROUP, OWN, 5 << 32 | 77))
    assert own(world.connect(FakeProcess(uid=9, gid=77)), b"e.f") == 0


@pytest.mark.parametrize(
    ("who", "granted"),
    [
        ({"uid": 2000}, True),
        ({"uid": 9, "euid": 2000}, True),
        ({"uid": 2000, "euid": 9}, False),
        ({"uid": 9, "gid": 77}, True),
        ({"uid": 9, "aux": (1, 77, 3)}, True),
        ({"uid": 9, "gid": 78, "aux": (76,)}, False),
        ({"uid": 77}, False),
        ({"uid": 9, "gid": 2000, "aux": (2000,)}, False),
    ],
)
def test_pol_3_users_by_euid_groups_by_egid_and_supplementary_groups(
    world: World, who: dict[str, Any], granted: bool
) -> None:
    """POL-3"""
    hold(world, b"a.b", i.user(OWN, 2000), i.group(OWN, 77))
    assert own(stranger(world, **who)) == (0 if granted else -EPERM)


@pytest.mark.parametrize("order", [1, -1])
def test_pol_3_the_highest_right_of_any_item_counts(world: World, order: int) -> None:
    """POL-3: in any order; higher includes lower."""
    hold(world, b"a.b", *[i.world(SEE), i.user(TALK, 2000), i.user(OWN, 3000)][::order])
    service = world.connect()
    assert service.acquire(b"a.b") == 0
    for uid, talk in ((2000, 0), (3000, 0), (4000, -EPERM)):
        assert stranger(world, uid).send(dst=service.id) == talk
    assert service.release_name(b"a.b") == 0
    for uid, result in ((2000, -EPERM), (3000, 0), (4000, -EPERM)):
        assert own(stranger(world, uid)) == result


def test_pol_4_accesses_belong_to_the_name_before_them(world: World) -> None:
    """POL-4: none is fine, one before any name is not; other items are ignored."""
    items = i.name(b"a.b") + i.user(SEE, 1) + i.name(b"c.d") + i.name(b"e.f") + i.world(SEE)
    peer = world.connect()
    for name in (b"a.b", b"c.d", b"e.f"):
        assert peer.acquire(name) == 0
    assert world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD, items + make_item(0x4242, b"")) == 0
    client = world.connect(FakeProcess(uid=2), endpoint="1000-ep")
    assert [client.conn_info(name=name) == 0 for name in (b"a.b", b"c.d", b"e.f")] == [False, False, True]
    for bad in (
        i.world(SEE),
        i.world(SEE) + i.name(b"a.b"),
        i.name(b"a"),
        i.name(b""),
        i.name(b"*"),
        i.name(b"a*"),
    ):
        assert world.open().make_endpoint(b"1000-bad", items=bad) == -EINVAL


def test_pol_5_one_name_for_activators_and_holders(world: World) -> None:
    """POL-5: EINVAL at HELLO, E2BIG on update; as many as fit for endpoints."""
    two = i.name(b"a.b") + i.name(b"c.d")
    for role in (c.HELLO_ACTIVATOR, c.HELLO_POLICY_HOLDER):
        assert world.open().hello(flags=role, items=two) == -EINVAL
    assert hold(world, b"x.y").update(two) == -E2BIG
    many = b"".join(i.name(b"n.x%d" % number) for number in range(1300))
    assert world.open().make_endpoint(b"1000-ep", items=many) == 0


def test_pol_6_setting_is_all_or_nothing(world: World) -> None:
    """POL-6: own entries may be named again, those of others and twice the same may not."""
    holder, other = hold(world, b"a.b", i.world(OWN)), hold(world, b"c.d", i.world(OWN))
    client = stranger(world)
    assert holder.update(i.name(b"c.d")) == -EEXIST
    assert own(client) == own(client, b"c.d") == 0
    assert holder.update(i.name(b"a.b") + i.user(OWN, 5)) == 0
    assert own(client) == -EPERM
    owner = world.open()
    assert owner.make_endpoint(b"1000-ep", items=i.name(b"a.b")) == 0
    assert owner.update_endpoint(i.name(b"x.y") + i.name(b"z.z") + i.name(b"x.y")) == -EEXIST
    assert owner.update_endpoint(i.name(b"x.y") + i.name(b"a.b") + i.name(b"x.*") + i.name(b"x.y.*")) == 0
    other.close()


def test_pol_7_a_wildcard_matches_exactly_one_level(world: World) -> None:
    """POL-7: as documented; the reference never matches."""
    hold(world, b"a.b.*", i.world(OWN))
    client = stranger(world)
    for name, result in (
        (b"a.b.c", 0),
        (b"a.b.x-1", 0),
        (b"a.b", -EPERM),
        (b"a.b.c.d", -EPERM),
        (b"a.bc.d", -EPERM),
        (b"a.c", -EPERM),
        (b"x.a.b.c", -EPERM),
    ):
        assert own(client, name) == result, name
    hold(world, b"z.*", i.world(OWN))
    assert own(client, b"z.z") == 0 and own(client, b"z.z.z") == -EPERM


def test_pol_8_no_wildcards_for_activators_but_for_endpoints(world: World) -> None:
    """POL-8"""
    assert world.open().hello(flags=c.HELLO_ACTIVATOR, items=i.name(b"a.*")) == -EINVAL
    assert world.open().make_endpoint(b"1000-ep", items=i.name(b"a.*") + i.world(SEE)) == 0
    assert world.connect().acquire(b"a.b") == 0
    assert world.connect(endpoint="1000-ep").conn_info(name=b"a.b") == 0
    assert world.connect().acquire(b"x.*") == -EINVAL


@pytest.mark.parametrize("endpoint", [None, SEE, TALK, OWN])
@pytest.mark.parametrize("bus", [None, SEE, TALK, OWN])
def test_pol_9_owning_needs_own_in_the_endpoint_and_in_the_bus(
    world: World, endpoint: int | None, bus: int | None
) -> None:
    """POL-9, CEP-2: no bypass for the bus' owner on a custom endpoint."""
    rights = [i.name(b"a.b") + i.world(level) if level is not None else b"" for level in (endpoint, bus)]
    assert world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD, rights[0]) == 0
    if bus is not None:
        hold(world, b"a.b", i.world(bus))
    expected = 0 if endpoint == bus == OWN else -EPERM
    for process in (FakeProcess(uid=2000), world.owner, FakeProcess(uid=0, ipc_owner=True)):
        assert own(world.connect(process, endpoint="1000-ep")) == expected
    assert own(stranger(world)) == (0 if bus == OWN else -EPERM)
    assert own(world.connect()) == 0, "privileged"


def test_pol_10_talking_needs_privilege_the_same_user_or_a_name(world: World) -> None:
    """POL-10, POL-11"""
    receiver = stranger(world, 2000)
    assert world.connect().send(dst=receiver.id) == 0
    assert stranger(world, 2000).send(dst=receiver.id) == 0
    assert stranger(world, 5, euid=2000).send(dst=receiver.id) == 0
    assert stranger(world, 2000, euid=5).send(dst=receiver.id) == -EPERM
    other = stranger(world, 3000)
    assert other.send(dst=receiver.id) == -EPERM
    hold(world, b"a.b", i.user(TALK, 3000), i.user(OWN, 2000))
    assert other.send(dst=receiver.id) == -EPERM, "it does not own the name yet"
    assert receiver.acquire(b"a.b") == 0
    assert other.send(dst=receiver.id) == 0
    assert stranger(world, 3001).send(dst=receiver.id) == -EPERM


@pytest.mark.parametrize("endpoint", [None, SEE, TALK])
def test_pol_10_on_a_custom_endpoint_the_endpoint_comes_first(world: World, endpoint: int | None) -> None:
    """POL-10, CEP-2: then the same user, or the bus' policy."""
    receiver = world.connect()
    assert receiver.acquire(b"a.b") == 0
    rights = i.name(b"a.b") + i.world(endpoint) if endpoint is not None else b""
    assert world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD, rights) == 0
    same, other = (world.connect(FakeProcess(uid=uid), endpoint="1000-ep") for uid in (1000, 2000))
    talks = endpoint == TALK
    assert same.send(dst=receiver.id) == (0 if talks else -EPERM)
    assert other.send(dst=receiver.id) == -EPERM
    hold(world, b"a.b", i.user(TALK, 2000))
    assert other.send(dst=receiver.id) == (0 if talks else -EPERM)


def test_pol_11_by_default_strangers_own_nothing_and_reach_nobody(world: World) -> None:
    """POL-11"""
    client, other = stranger(world, 2000), stranger(world, 3000)
    assert own(client) == -EPERM
    assert client.send(dst=other.id) == other.send(dst=client.id) == -EPERM
    assert client.send(dst=client.id) == 0


def test_pol_12_any_owned_name_opens_the_way(world: World) -> None:
    """POL-12: also when addressed by another one; but no name that it only waits for."""
    receiver, client = world.connect(), stranger(world)
    hold(world, b"open.name", i.world(TALK))
    owner = world.connect()
    assert owner.acquire(b"open.name") == 0
    assert receiver.acquire(b"closed.name") == receiver.acquire(b"open.name", c.NAME_QUEUE) == 0
    to_name = i.string(c.ITEM_DST_NAME, b"closed.name")
    assert client.send(dst=receiver.id) == client.send(items=to_name) == -EPERM
    owner.close()
    assert client.send(dst=receiver.id) == client.send(items=to_name) == 0


def test_pol_13_what_a_thread_does_is_judged_by_its_credentials_now(world: World) -> None:
    """POL-13: SEND, ACQUIRE, CONN_INFO, LIST; all but the privilege of the file."""
    receiver = world.connect()
    assert receiver.acquire(b"c.d") == 0
    hold(world, b"a.b", i.user(OWN, 2000))
    hold(world, b"c.d", i.user(TALK, 2000))
    client = stranger(world, 3000)
    assert own(client) == client.send(dst=receiver.id) == -EPERM
    client.process.euid = 2000
    assert own(client) == client.send(dst=receiver.id) == 0
    client.process.euid = 1000
    assert own(client) == -EPERM
    assert client.send(dst=receiver.id) == 0, "the same user as the receiver"

    assert (
        world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD, i.name(b"c.d") + i.user(SEE, 2000)) == 0
    )
    inside = world.connect(FakeProcess(uid=3000), endpoint="1000-ep")
    for euid, visible in ((3000, False), (2000, True)):
        inside.process.euid = euid
        assert (inside.conn_info(name=b"c.d") == 0) is visible
        assert (inside.conn_info(id=receiver.id) == 0) is visible
        assert bool(inside.list_names(c.NAME_LIST_NAMES)) is visible


def test_pol_14_what_a_connection_receives_is_judged_by_those_of_hello(world: World) -> None:
    """POL-14, POL-15: broadcasts, signals and notifications; the sender needs no right."""
    sender = stranger(world, 2000)
    hold(world, b"a.b", i.user(OWN, 2000), i.user(TALK, 3000))
    assert sender.acquire(b"a.b") == 0
    receiver, later = stranger(world, 3000), stranger(world, 4000)
    receiver.process.uid, later.process.uid = 4000, 3000
    for client in (receiver, later):
        assert client.add_match(1, i.u64(c.ITEM_ID, sender.id)) == 0
    assert sender.send(**BROADCAST) == 0
    assert signal(sender, receiver.id) == 0
    assert signal(sender, later.id) == -EPERM
    assert [len(client.connection.queue) for client in (receiver, later)] == [2, 0]


def test_pol_14_notifications_too(world: World) -> None:
    """POL-14, NOTE-5"""
    assert (
        world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD, i.name(b"a.b") + i.user(SEE, 3000)) == 0
    )
    clients = [world.connect(FakeProcess(uid=uid), endpoint="1000-ep") for uid in (3000, 4000)]
    for client in clients:
        client.process.uid = 7000 - client.process.uid
        assert client.add_match(1) == 0
    assert world.connect().acquire(b"a.b") == 0
    assert [len(client.connection.queue) for client in clients] == [1, 0]


def test_pol_16_expected_replies_need_no_right(world: World) -> None:
    """POL-16: from and to anybody, also through a custom endpoint."""
    assert world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD) == 0
    client = world.connect()
    for service in (stranger(world), world.connect(FakeProcess(uid=2000), endpoint="1000-ep")):
        assert service.send(dst=client.id) == -EPERM
        timeout = world.host.clock.now + 10**9
        assert client.send(dst=service.id, flags=c.MSG_EXPECT_REPLY, cookie=3, cookie_reply=timeout) == 0
        assert service.send(dst=client.id, cookie_reply=4) == -EPERM
        assert service.send(dst=client.id, cookie_reply=3) == 0
        assert service.send(dst=client.id, cookie_reply=3) == -EPERM, "once"


def test_pol_17_only_custom_endpoints_hide_anything(world: World) -> None:
    """POL-17: SEE in the bus' policy has no effect, and none is needed."""
    hold(world, b"a.b", i.user(SEE, 9))
    peer = world.connect()
    assert peer.acquire(b"a.b") == peer.acquire(b"c.d") == 0
    client = stranger(world)
    assert client.conn_info(name=b"a.b") == client.conn_info(id=peer.id) == 0
    assert {record[2] for record in client.list_names(c.NAME_LIST_NAMES)} == {b"a.b", b"c.d"}
    for level, visible in ((SEE, True), (TALK, True), (OWN, True)):
        owner = world.open()
        assert owner.make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD, i.name(b"c.d") + i.user(level, 2000)) == 0
        inside = world.connect(client.process, endpoint="1000-ep")
        assert (inside.conn_info(id=peer.id) == 0) is visible
        assert inside.conn_info(name=b"a.b") < 0
        assert [record[2] for record in inside.list_names(c.NAME_LIST_NAMES)] == [b"c.d"]
        owner.close()


def test_pol_18_changes_act_on_the_next_check(world: World) -> None:
    """POL-18, POL-19: an update and the end of the holder."""
    holder, client = hold(world, b"a.b"), stranger(world)
    assert own(client) == -EPERM
    assert holder.update(i.name(b"a.b") + i.world(OWN)) == 0
    assert own(client) == 0
    assert client.acquire(b"a.b") == 0
    holder.close()
    assert client.list_names(c.NAME_LIST_NAMES)[0][2] == b"a.b", "who owns it keeps it"
    assert client.release_name(b"a.b") == 0
    assert own(client) == -EPERM


def test_pol_19_an_activators_entry_goes_before_its_name(world: World) -> None:
    """POL-19, ACT-9: it stays while somebody else owns the name."""
    items = i.name(b"a.b") + i.world(OWN)
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=items)
    client = stranger(world)
    assert client.acquire(b"a.b") == 0
    assert stranger(world).acquire(b"a.b") == -EEXIST
    activator.close()
    assert len(world.domain.buses["1000-test"].policy) == 0
    assert stranger(world).acquire(b"a.b") == -EPERM


def test_pol_20_a_holder_reserves_nothing(world: World) -> None:
    """POL-20: it owns no name itself."""
    holder = hold(world, b"a.b", i.user(OWN, 2000))
    assert world.connect().list_names(c.NAME_LIST_NAMES | c.NAME_LIST_ACTIVATORS) == []
    assert holder.conn_info(name=b"a.b") < 0
    assert own(stranger(world, 2000)) == 0 and own(stranger(world, 2001)) == -EPERM
    assert own(world.connect()) == 0


@pytest.mark.parametrize(
    "roles",
    [
        (c.HELLO_ACTIVATOR, c.HELLO_POLICY_HOLDER),
        (c.HELLO_POLICY_HOLDER, c.HELLO_ACTIVATOR),
        (c.HELLO_ACTIVATOR, c.HELLO_ACTIVATOR),
    ],
)
def test_pol_21_an_activator_always_has_an_entry(world: World, roles: tuple[int, int]) -> None:
    """POL-21, ACT-2: even one that grants nothing excludes another."""
    first = world.connect(flags=roles[0], items=i.name(b"a.b"))
    second = world.open()
    assert second.hello(flags=roles[1], items=i.name(b"a.b")) == -EEXIST
    first.close()
    assert second.hello(flags=roles[1], items=i.name(b"a.b")) == 0


def test_pol_22_an_activators_entry_cannot_be_changed(world: World) -> None:
    """POL-22"""
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=i.name(b"a.b"))
    assert activator.update(i.name(b"a.b") + i.world(OWN)) == -EOPNOTSUPP
    assert stranger(world).acquire(b"a.b") == -EPERM


def test_pol_23_an_exact_entry_hides_the_wildcard(world: World) -> None:
    """POL-23: even where it grants nothing."""
    hold(world, b"a.*", i.world(OWN))
    client = stranger(world)
    assert own(client) == 0
    exact = hold(world, b"a.b")
    assert own(client) == -EPERM
    exact.close()
    assert own(client) == 0


def test_cep_1_a_fresh_endpoint_denies_everything_but_hello(world: World) -> None:
    """CEP-1"""
    assert world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD) == 0
    peer = world.connect()
    assert peer.acquire(b"a.b") == 0
    for process in (FakeProcess(uid=2000), FakeProcess(uid=1000), FakeProcess(uid=0, ipc_owner=True)):
        client = world.connect(process, endpoint="1000-ep")
        assert client.add_match(1) == 0
        assert own(client, b"x.y") == client.send(dst=peer.id) == client.send(dst=client.id) == -EPERM
        assert client.list_names(c.NAME_LIST_NAMES) == []
        world.connect().close()
        assert peer.release_name(b"a.b") == peer.acquire(b"a.b") == 0
        assert len(client.connection.queue) == 0


def test_cep_3_others_reach_it_under_the_normal_rules(world: World) -> None:
    """CEP-3"""
    assert world.open().make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD) == 0
    inside = world.connect(FakeProcess(uid=2000), endpoint="1000-ep")
    assert world.connect().send(dst=inside.id) == 0
    assert stranger(world, 2000).send(dst=inside.id) == 0
    assert stranger(world, 3000).send(dst=inside.id) == -EPERM


def test_cep_4_no_special_connections_and_no_nested_endpoints(world: World) -> None:
    """CEP-4"""
    assert world.open().make_endpoint(b"1000-ep") == 0
    client = world.open(endpoint="1000-ep")
    assert client.hello(flags=c.HELLO_MONITOR) == -EOPNOTSUPP
    for role in (c.HELLO_ACTIVATOR, c.HELLO_POLICY_HOLDER):
        assert client.hello(flags=role, items=i.name(b"a.b")) == -EPERM
    assert client.make_endpoint(b"1000-nested") == -EPERM


def test_cep_5_updates_act_at_once(world: World) -> None:
    """CEP-5: for notifications, too."""
    owner = world.open()
    assert owner.make_endpoint(b"1000-ep") == 0
    inside, peer = world.connect(endpoint="1000-ep"), world.connect()
    assert inside.add_match(1) == 0
    for items, seen in ((b"", 0), (i.name(b"a.b") + i.world(SEE), 2), (b"", 2)):
        assert owner.update_endpoint(items) == 0
        assert own(peer) == 0
        assert len(inside.connection.queue) == seen


def test_ns_1_rights_go_by_global_ids(world: World) -> None:
    """NS-1, NS-3: uid 0 of a child namespace is an ordinary foreign user."""
    child: dict[str, Any] = {"uid": 100000, "user_ns": 2, "uid_map": {0: 100000, 1000: 101000}}
    client = stranger(world, **child)
    assert own(client) == -EPERM
    assert client.send(dst=world.connect().id) == -EPERM
    same_number = stranger(world, 101000, user_ns=2, uid_map={1000: 101000})
    assert same_number.send(dst=world.connect(FakeProcess(uid=1000)).id) == -EPERM
    hold(world, b"a.b", i.user(OWN, 100000))
    assert own(client) == 0


def test_ns_4_ids_in_policies_are_those_of_the_uploader(world: World) -> None:
    """NS-4"""
    uploader = FakeProcess(uid=5, ipc_owner=True, user_ns=2, uid_map={0: 100000})
    hold(world, b"a.b", i.user(OWN, 0), process=uploader)
    assert own(stranger(world, 100000)) == 0 and own(stranger(world, 0)) == -EPERM
    bad = i.name(b"c.d") + i.user(OWN, 100000)
    assert world.open(uploader).hello(flags=c.HELLO_POLICY_HOLDER, items=bad) == -EINVAL


def test_ns_2_endpoint_names_go_by_the_domains_namespace(world: World) -> None:
    """NS-2: BUS-5 and EPM-3 hold the rest; has_ipc_owner is a port of the host, which knows that namespace."""
    process = FakeProcess(uid=101000, ipc_owner=True, domain_uids={101000: 1000})
    assert world.open(process).make_endpoint(b"101000-e") == -EINVAL
    assert world.open(process).make_endpoint(b"1000-e") == 0


def test_ns_5_accounts_go_by_global_real_uid(world: World) -> None:
    """NS-5: the number that a namespace gives it does not matter."""
    first = FakeProcess(uid=100000, user_ns=2, uid_map={0: 100000})
    second = FakeProcess(uid=200000, user_ns=3, uid_map={0: 200000})
    same = FakeProcess(uid=100000)
    for process in (first, second, same):
        world.connect(process)
    assert world.domain.stats()["users"] == 3, "two besides the owner of the bus"
    assert world.domain.users.get(100000).connections == 2


def test_ns_6_nothing_but_root_user_and_pid_namespaces_is_asked_for() -> None:
    """NS-6: a reader has no other namespaces."""
    members = {name for name in vars(Reader) if not name.startswith("_")}
    namespaces = {"user_ns", "user_chain", "pid_ns", "root"}
    assert members == namespaces | {"uid_from_global", "gid_from_global", "gids_from_global", "maps_uid"}
