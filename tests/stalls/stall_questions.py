"""Policies, matches, lists and metadata at the limits: what one user may have, and what 32 KiB of a command hold."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack

import pytest

from kdbusfs.abi.limits import MATCH_MAX
from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World
from tests.support.core_scenes import bloom, id_change, id_rule, mask, name_change, name_rule

from .measure import stretch

SEE, TALK = c.POLICY_SEE, c.POLICY_TALK
ROOM = 32768 - 128
"""Bytes of items in the longest commands."""
GROUPS = tuple(range(300000, 365536))
"""As many supplementary groups as a thread can have."""


def fill(*items: bytes) -> bytes:
    """As many of `items`, again and again, as a command holds."""
    whole = b""
    while True:
        for item in items:
            if len(whole) + len(item) > ROOM:
                return whole
            whole += item


def numbered(number: int) -> bytes:
    """A short element of a name, another for each number."""
    letters = b"abcdefghijklmnopqrstuvwxyz"
    return bytes((letters[number // 676], letters[number // 26 % 26], letters[number % 26]))


def accesses(kind: int, level: int = TALK) -> bytes:
    """A wildcard entry of as many accesses as fit, for others."""
    name = i.name(b"a.*")
    return name + b"".join(i.access(kind, level, 100000 + number) for number in range((ROOM - len(name)) // 40))


def own(client: Client, first: int, count: int, long: bool = False) -> None:
    for number in range(first, first + count):
        name = b"a." + numbered(number)
        assert client.acquire(name + b"n" * 250 if long else name) == 0
    client.process.memory.clear()


def named(number: int) -> bytes:
    return b"a." + numbered(number)


def endpoint(world: World, name: bytes, policy: bytes) -> Client:
    client = world.open()
    assert client.make_endpoint(name, c.MAKE_ACCESS_WORLD, policy) == 0
    return client


def broadcast(sender: Client, items: bytes) -> Callable[[], None]:
    def run() -> None:
        assert sender.send(dst=c.DST_ID_BROADCAST, flags=c.MSG_SIGNAL, items=items) == 0

    return run


def full_filter(size: int) -> bytes:
    return make_item(c.ITEM_BLOOM_FILTER, pack("<Q", 0) + b"\xff" * (size - 1) + b"\x7f")


@pytest.mark.parametrize("kind", [c.POLICY_ACCESS_USER, c.POLICY_ACCESS_GROUP])
def test_pol_10_a_broadcast_through_a_full_policy(kind: int) -> None:
    """POL-10, BC-1: 256 names, 1000 receivers with 25 kinds of credentials, 810 accesses."""
    world = World()
    sender = world.connect()
    own(sender, 0, 256)
    endpoint(world, b"1000-e", accesses(kind))
    processes = [FakeProcess(uid=1000, gid=2000 + number, aux=GROUPS) for number in range(25)]
    for number in range(1000):
        client = world.connect(processes[number % 25], endpoint="1000-e", pool_size=4096)
        client.add_match(1, mask(0))
        client.process.memory.clear()
    what = "users" if kind == c.POLICY_ACCESS_USER else "groups"
    stretch(world, f"SEND: broadcast to 1000 of an endpoint with 810 {what}", broadcast(sender, bloom()))


def test_pol_10_a_broadcast_to_many_endpoints() -> None:
    """POL-10: each of 1000 receivers with a policy of its own, without an answer that could be shared."""
    world = World()
    sender = world.connect()
    own(sender, 0, 256)
    policy = b"".join(i.name(named(number)) + i.user(TALK, 5) for number in range(256))
    for number in range(1000):
        endpoint(world, b"1000-e%d" % number, policy if number < 30 else i.name(b"a.*"))
        client = world.connect(endpoint=f"1000-e{number}", pool_size=4096)
        client.add_match(1, mask(0))
    stretch(world, "SEND: broadcast to 1000 endpoints", broadcast(sender, bloom()))


@pytest.mark.parametrize("size", [8, 4096])
def test_match_12_a_broadcast_beside_matches_that_all_but_accept(size: int) -> None:
    """MATCH-6, MATCH-12: 40 connections with 256 entries, each of which has all bits but one of the filter."""
    world = World(bloom=size)
    sender = world.connect()
    own(sender, 0, 256)
    wanted = mask((1 << 8 * size) - 1, size=size) + id_rule(sender.id)
    receivers = [world.connect(pool_size=4096) for _ in range(40)]
    for receiver in receivers:
        for cookie in range(MATCH_MAX):
            assert receiver.add_match(cookie, wanted) == 0
        receiver.process.memory.clear()
    stretch(world, f"SEND: broadcast beside 40 x 256 masks of {size} bytes", broadcast(sender, full_filter(size)))

    def unicast() -> None:
        assert sender.send(dst=receivers[0].id, flags=c.MSG_SIGNAL, items=full_filter(size)) < 0

    stretch(world, f"SEND: signal to 256 masks of {size} bytes", unicast)


def test_match_8_a_broadcast_beside_matches_of_names() -> None:
    """MATCH-8, MATCH-12: all 1024 rules of 40 connections are names of the sender, but the last of each entry."""
    world = World()
    sender = world.connect()
    own(sender, 0, 256)
    every = b"".join(name_rule(named(number)) for number in range(255)) + name_rule(b"x.y")
    for _ in range(40):
        receiver = world.connect(pool_size=4096)
        for cookie in range(4):
            assert receiver.add_match(cookie, every) == 0
    stretch(world, "SEND: broadcast beside 40 x 1024 rules of names", broadcast(sender, bloom()))


def test_match_6_a_filter_of_32768_bits_with_entries_everywhere() -> None:
    """MATCH-6: entries under each bit of the filter; the index has to look at all of them."""
    world = World(bloom=4096)
    sender = world.connect()
    own(sender, 0, 256)
    bit = 0
    for _ in range(32):
        receiver = world.connect(pool_size=4096)
        for cookie in range(MATCH_MAX):
            assert receiver.add_match(cookie, mask(1 << bit | 1 << 32767, size=4096)) == 0
            bit += 1
        receiver.process.memory.clear()
    stretch(world, "SEND: broadcast beside entries of 8192 bits", broadcast(sender, full_filter(4096)))


def test_bc_1_a_broadcast_of_nothing_to_1000() -> None:
    """BC-1, MON-1: copies that take no access to the client's memory, to receivers and to monitors."""
    world = World()
    sender = world.connect()
    for number in range(1000):
        flags = c.HELLO_MONITOR if number % 2 else 0
        client = world.connect(pool_size=4096, flags=flags)
        if not flags:
            client.add_match(1, mask(0))
    stretch(world, "SEND: broadcast without payload to 500, with 500 monitors", broadcast(sender, bloom()))


@pytest.mark.parametrize("kind", [0, c.POLICY_ACCESS_USER, c.POLICY_ACCESS_GROUP])
def test_list_9_lists_of_256000_names(kind: int) -> None:
    """LIST-9: on the bus, and through a policy of 810 accesses, with 65536 groups."""
    world = World()
    for number in range(40):
        client = world.connect(pool_size=4096)
        own(client, 256 * number, 256)
    where = "bus"
    if kind:
        endpoint(world, b"1000-e", accesses(kind, SEE))
        where = "1000-e"
    spy = world.connect(FakeProcess(uid=100001, gid=1, aux=GROUPS), endpoint=where, pool_size=1 << 24)

    def run() -> None:
        fixed = pack("<QQQQQQ", 0, c.NAME_LIST_NAMES | c.NAME_LIST_UNIQUE, 0, 0, 0, 0)
        assert spy.command(c.CMD_NAME_LIST, fixed) == 0
        assert spy.free(spy.out(32)) == 0

    what = {0: "on the bus", c.POLICY_ACCESS_USER: "by 810 users", c.POLICY_ACCESS_GROUP: "by 810 groups"}[kind]
    stretch(world, f"NAME_LIST: 10240 names {what}", run)


def test_list_9_a_list_through_as_many_entries_as_fit() -> None:
    """LIST-9: an entry for each of 500 names, each with a group, and 65536 groups that are not it."""
    world = World()
    for first in (0, 250):
        own(world.connect(pool_size=4096), first, 250)
    policy = b"".join(i.name(named(number)) + i.group(SEE, 100000 + number) for number in range(500))
    endpoint(world, b"1000-e", policy)
    spy = world.connect(FakeProcess(uid=100001, gid=1, aux=GROUPS), endpoint="1000-e", pool_size=1 << 24)
    stretch(world, "NAME_LIST: 500 names by 500 entries of a group", lambda: spy.list_names(c.NAME_LIST_NAMES))


def test_info_5_the_most_metadata_of_a_connection() -> None:
    """INFO-5: 256 names of 255 bytes and 65536 groups; and the same in a message."""
    world = World()
    owner = world.connect(FakeProcess(aux=GROUPS))
    own(owner, 0, 256, long=True)
    asker = world.connect(pool_size=1 << 22, recv=c.ATTACH_ALL)
    asker.world.domain.attach_flags_mask = c.ATTACH_ALL

    def info() -> None:
        owner.connection.owned_names = None
        assert asker.conn_info(id=owner.id, flags=c.ATTACH_ALL) == 0
        assert asker.free(asker.out(40)) == 0

    stretch(world, "CONN_INFO: 256 long names, 65536 groups", info)

    def send() -> None:
        owner.connection.owned_names = None
        assert owner.send(dst=asker.id) == 0

    stretch(world, "SEND: 256 long names, 65536 groups", send)

    def receive() -> None:
        assert asker.recv() == 0

    stretch(world, "RECV: 256 long names, 65536 groups", receive)


MATCHES = {
    "names": b"".join(name_rule(b"a." + numbered(number)) for number in range(1000)),
    "one name": fill(name_rule(b"a.b")),
    "ids": fill(id_rule(c.MATCH_ID_ANY), id_rule(7)),
    "short masks": fill(mask(1, size=8)),
    "masks of all lengths": b"".join(mask(*[number] * number, size=8) for number in range(1, 88)),
    "one long mask and short ones": mask(*range(2048), size=8) + b"".join(mask(n, size=8) for n in range(650)),
    "notifications": fill(id_change(c.ITEM_ID_ADD)),
    "name changes": fill(name_change(c.ITEM_NAME_ADD, name=b"a.b")),
    "long names": b"".join(name_rule(b"a." + numbered(number) + b"n" * 250) for number in range(119)),
}


@pytest.mark.parametrize("what", MATCHES)
def test_match_14_a_match_of_32_kib(what: str) -> None:
    """MATCH-14, LIM-8: the rules are checked and brought together in one turn."""
    world = World(bloom=8)
    client = world.connect()

    def run() -> None:
        assert client.add_match(1, MATCHES[what], c.MATCH_REPLACE) == 0

    stretch(world, f"MATCH_ADD: {what}", run)


@pytest.mark.parametrize("size", [8, 4096])
def test_match_13_the_removal_of_256_entries(size: int) -> None:
    """MATCH-13: one cookie for all."""
    world = World(bloom=size)
    client = world.connect()
    other = world.connect()
    for number in range(MATCH_MAX):
        assert other.add_match(1, mask(1 << (number * 97 % (8 * size)), size=size)) == 0

    def run() -> None:
        for number in range(MATCH_MAX):
            assert client.add_match(1, mask(1 << (number * 89 % (8 * size)) | 1, size=size)) == 0
        client.process.memory.clear()
        world.host.turn.watch()
        assert client.remove_match(1) == 0

    stretch(world, f"MATCH_REMOVE: 256 masks of {size} bytes", run)


POLICIES = {
    "users": accesses(c.POLICY_ACCESS_USER),
    "groups": accesses(c.POLICY_ACCESS_GROUP),
    "names": b"".join(i.name(named(number)) for number in range(ROOM // 24)),
    "long names": b"".join(i.name(named(number) + b"n" * 250) for number in range(ROOM // 272)),
}


@pytest.mark.parametrize("what", POLICIES)
def test_epu_1_policies_of_32_kib(what: str) -> None:
    """EPM-5, EPU-1, UPD-4, HELLO-15"""
    world = World()
    maps = {number: number for number in range(1000, 102000)}
    end = world.open(FakeProcess(uid=1000, uid_map=maps))
    items = POLICIES[what]
    assert end.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD, items) == 0

    def update() -> None:
        assert end.update_endpoint(items) == 0

    stretch(world, f"ENDPOINT_UPDATE: {what}", update)

    def make() -> None:
        client = world.open()
        assert client.make_endpoint(b"1000-f", c.MAKE_ACCESS_WORLD, items) == 0
        client.close()

    stretch(world, f"ENDPOINT_MAKE: {what}, and its end", make)
    if "names" in what:
        return
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=i.name(b"a.*"))

    def hold() -> None:
        assert holder.update(items) == 0

    stretch(world, f"CONN_UPDATE: {what}", hold)
    holder.close()
    activator = i.name(b"a.b") + items[len(i.name(b"a.*")) :]
    for flags, name in ((c.HELLO_ACTIVATOR, "activator"), (c.HELLO_POLICY_HOLDER, "policy holder")):

        def hello(flags: int = flags) -> None:
            world.connect(flags=flags, items=activator[:ROOM]).close()

        stretch(world, f"HELLO and close: {name} with {what}", hello)


def test_hello_4_hellos_with_everything() -> None:
    """HELLO-4, HELLO-20: 32 KiB of items, 65536 groups."""
    world = World()
    items = fill(id_rule(1))
    stretch(world, "HELLO and close: 32 KiB of items", lambda: world.connect(items=items).close())
    process = FakeProcess(aux=GROUPS)
    stretch(world, "HELLO and close: 65536 groups", lambda: world.connect(process).close())


@pytest.mark.parametrize("item", [make_item(99, b""), make_item(99, b"x"), i.string(c.ITEM_MAKE_NAME, b"n" * 63)])
def test_item_1_commands_with_the_most_items(item: bytes) -> None:
    """ITEM-1, LIM-8: the walk over 32 KiB of items, whatever the command says of them."""
    world = World()
    client = world.connect()
    control = world.open_control(FakeProcess(uid=3000))
    items = fill(item)
    kind = "the smallest" if len(item) == 16 else f"{len(item)} bytes"
    stretch(world, f"CONN_UPDATE: items of {kind}", lambda: client.update(items))
    stretch(world, f"MATCH_ADD: items of {kind}", lambda: client.add_match(1, items))
    stretch(world, f"NAME_ACQUIRE: items of {kind}", lambda: client.command(c.CMD_NAME_ACQUIRE, bytes(32), items))
    stretch(world, f"BUS_MAKE: items of {kind}", lambda: world.make_bus(control, b"3000-x", extra=items[: ROOM - 200]))
    end = world.open()
    stretch(world, f"ENDPOINT_MAKE: items of {kind}", lambda: end.make_endpoint(b"1000-e", items=items[:32000]))
    stretch(world, f"SEND: items of {kind}", lambda: client.send(items=items[:8128]))
    stretch(world, f"SEND: a command with items of {kind}", lambda: client.send(send_items=items))


def test_send_9_messages_with_the_most_items() -> None:
    """SEND-9 to SEND-12, LIM-2: 128 vectors, and the longest names."""
    world = World()
    client = world.connect()
    zeros = make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 7, 0))

    def run(items: bytes = zeros * 128) -> None:
        assert client.send(dst=client.id, items=items) == 0
        assert client.recv() == 0

    stretch(world, "SEND and RECV: 128 vectors", run)


def test_pol_9_a_name_that_810_groups_may_own() -> None:
    """POL-9, NAME-1: 255 bytes, and 65536 groups none of which is right."""
    world = World()
    endpoint(world, b"1000-e", accesses(c.POLICY_ACCESS_GROUP, c.POLICY_OWN))
    client = world.connect(FakeProcess(aux=GROUPS), endpoint="1000-e")
    name = b"a." + b"n" * 253
    stretch(world, "NAME_ACQUIRE: 810 accesses, 65536 groups", lambda: client.acquire(name))
    bad = b"a." * 126 + b"a1."
    stretch(world, "NAME_ACQUIRE: 255 bytes that are no name", lambda: client.acquire(bad))
