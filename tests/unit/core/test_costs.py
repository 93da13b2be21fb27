"""Complexity of commands at the limits, in counted units: accesses to names, groups and rules."""

from __future__ import annotations

from collections.abc import Iterator
from errno import E2BIG, EMFILE, ENOBUFS, ESRCH

import pytest

from kdbusfs.abi.limits import MATCH_MAX, MATCH_MAX_RULES
from kdbusfs.abi.v3 import constants as c
from kdbusfs.core.name_table import NameEntry
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World
from tests.support.core_scenes import drain, id_rule, mask, name_change, name_rule, signal

POLICY_MAX_ACCESSES = 810
"""What 32 KiB hold beside a name."""


class CountedNames(dict[bytes, NameEntry]):
    """The names of a connection; counts iterations over them and lookups."""

    walks = 0
    looks = 0

    def __iter__(self) -> Iterator[bytes]:
        self.walks += 1
        return super().__iter__()

    def __contains__(self, name: object) -> bool:
        self.looks += 1
        return super().__contains__(name)


class CountedGroups(tuple[int, ...]):
    """Supplementary groups; counts iterations over them."""

    walks = 0

    def __iter__(self) -> Iterator[int]:
        CountedGroups.walks += 1
        return super().__iter__()


def own(client: Client, count: int) -> CountedNames:
    for number in range(count):
        assert client.acquire(b"a.n%s" % bytes([97 + number // 16, 97 + number % 16])) == 0
    names = CountedNames(client.connection.names)
    client.connection.names = names
    return names


def rules_of(client: Client) -> int:
    """The number of checks in its entries.  Lookups of names in compiled code cannot be counted."""
    return sum(entry.rule_count for entry in client.connection.matches._entries)


def full_policy(*last: bytes) -> bytes:
    """A wildcard entry of as many accesses as fit, none for anybody here but the `last`."""
    others = [i.user(c.POLICY_TALK, 100000 + number) for number in range(POLICY_MAX_ACCESSES - len(last))]
    return i.name(b"a.*") + b"".join(others) + b"".join(last)


def test_pol_10_a_broadcast_asks_once_for_all_who_share_endpoint_and_credentials(world: World) -> None:
    """POL-10, BC-1: 256 names, and 810 accesses to check; the names are iterated once for each kind."""
    sender = world.connect()
    ends = [world.open() for _ in range(2)]
    for number, end in enumerate(ends):
        policy = full_policy(i.user(c.POLICY_TALK, 1000) if number else b"")
        assert end.make_endpoint(b"1000-e%d" % number, c.MAKE_ACCESS_WORLD, policy) == 0
    receivers = []
    for number in range(60):
        process = FakeProcess(uid=(1000, 2000, 2001)[number % 3])
        receivers.append(world.connect(process, endpoint=f"1000-e{number // 30}"))
        receivers[-1].add_match(1, mask(0))
    names = own(sender, 256)
    assert signal(sender) == 0
    assert [bool(drain(receiver)) for receiver in receivers] == [
        number >= 30 and number % 3 == 0 for number in range(60)
    ]
    # Two endpoints with three credentials each; and one lookup in the index for matches on a name.
    assert 2 * 3 <= names.walks <= 2 * 3 + 1


def test_pol_18_an_answer_is_asked_for_again_by_the_next_broadcast(world: World) -> None:
    sender, end = world.connect(), world.open()
    assert end.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD, full_policy()) == 0
    receiver = world.connect(endpoint="1000-e")
    receiver.add_match(1, mask(0))
    own(sender, 2)
    for policy, heard in ((full_policy(), 0), (full_policy(i.world(c.POLICY_TALK)), 1), (full_policy(), 0)):
        assert end.update_endpoint(policy) == 0
        assert signal(sender) == 0
        assert len(drain(receiver)) == heard


@pytest.mark.parametrize("kind", [c.POLICY_ACCESS_USER, c.POLICY_ACCESS_GROUP])
def test_list_9_an_entry_is_evaluated_once_for_a_list(world: World, kind: int) -> None:
    """LIST-9, POL-3: 1024 names under one entry of 810 accesses, and a subject with 65536 groups."""
    CountedGroups.walks = 0
    owners = [world.connect() for _ in range(4)]
    for letter, owner in zip((b"a", b"b", b"c", b"d"), owners, strict=True):
        for number in range(256):
            name = b"a.%s%s" % (letter, bytes([97 + number // 16, 97 + number % 16]))
            assert owner.acquire(name) == 0
    end = world.open()
    policy = i.name(b"a.*") + b"".join(
        i.access(kind, c.POLICY_SEE, 100000 + number) for number in range(POLICY_MAX_ACCESSES)
    )
    assert end.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD, policy) == 0
    groups = CountedGroups(range(200000, 265536))
    spy = world.connect(FakeProcess(aux=groups), endpoint="1000-e")
    assert spy.list_names(c.NAME_LIST_NAMES) == []
    assert CountedGroups.walks <= 1
    seer = world.connect(FakeProcess(uid=100001, gid=100001), endpoint="1000-e")
    assert len(seer.list_names(c.NAME_LIST_NAMES)) == 1024


def test_match_1_rules_that_say_nothing_new_cost_nothing(world: World) -> None:
    """MATCH-1, MATCH-7: 256 entries of 1302 rules are evaluated as 256 entries of two or three."""
    sender, receiver = world.connect(), world.connect()
    names = own(sender, 2)
    assert signal(sender) == 0
    known = names.looks
    every = id_rule(c.MATCH_ID_ANY) * 1300 + name_rule(b"a.naa") * 20 + name_rule(b"a.nzz") * 20
    for cookie in range(MATCH_MAX):
        assert receiver.add_match(cookie, every) == 0
    assert signal(sender) == 0
    assert not drain(receiver)
    assert names.looks - known <= 2 * MATCH_MAX
    known = names.looks
    assert signal(sender, receiver.id) < 0
    assert names.looks - known <= 2 * MATCH_MAX
    assert rules_of(receiver) == 2 * MATCH_MAX


def test_match_3_entries_that_can_match_nothing_are_asked_nothing(world: World) -> None:
    """MATCH-3: two ids, two names of one change, or rules of two classes: it counts, and is not evaluated."""
    sender, receiver = world.connect(), world.connect()
    change = c.ITEM_NAME_ADD
    impossible = (
        id_rule(sender.id) + id_rule(999),
        name_change(change, name=b"a.b") + name_change(change, name=b"a.c"),
        name_change(change, old=1) + name_change(change, old=2),
        id_rule(sender.id) + name_change(change),
    )
    for number in range(MATCH_MAX):
        assert receiver.add_match(number % 4, impossible[number % 4]) == 0
    assert receiver.add_match(0) == -EMFILE
    listeners = world.domain.buses["1000-test"].listeners
    assert not any(len(index) for index in listeners.values())
    assert signal(sender) == 0
    assert not drain(receiver)
    assert receiver.remove_match(1) == 0
    assert receiver.add_match(1, id_rule(sender.id)) == 0
    assert signal(sender) == 0
    assert len(drain(receiver)) == 1


def test_match_12_the_rules_of_a_connection_have_a_bound(world: World) -> None:
    """MATCH-12: EMFILE beyond 1024 different rules of all entries; removal gives them back, as does REPLACE."""
    sender, receiver = world.connect(), world.connect()
    names = own(sender, 256)
    many = b"".join(name_rule(name) for name in names)
    for cookie in range(3):
        assert receiver.add_match(cookie, many + name_rule(b"not.owned")) == 0
    rest = MATCH_MAX_RULES - 3 * 257
    assert receiver.add_match(3, b"".join(name_rule(b"x.%s" % name) for name in list(names)[:rest])) == 0
    assert receiver.add_match(4, mask(1)) == -EMFILE
    assert receiver.add_match(4) == 0
    assert receiver.add_match(4, name_rule(b"a.b") + id_rule(1), c.MATCH_REPLACE) == -EMFILE
    known = names.looks
    assert signal(sender) == 0
    assert names.looks - known <= MATCH_MAX_RULES
    assert rules_of(receiver) == MATCH_MAX_RULES
    assert receiver.add_match(0, mask(1) + name_rule(b"a.naa"), c.MATCH_REPLACE) == 0
    assert receiver.remove_match(1) == 0
    assert receiver.add_match(1, many) == 0
    assert signal(sender, bits=1) == 0
    assert len(drain(receiver)) == 1


def test_hello_13_groups_are_charged_to_who_has_them(world: World) -> None:
    """META-8, HELLO-20: 65536 groups take MiB, for each connection and for each message that carries them."""
    many = tuple(range(65536))
    process = FakeProcess(uid=2000, aux=many)
    account = world.domain.users.get(2000).account
    first, second = world.connect(process, pool_size=4096), world.connect(process, pool_size=4096)
    receiver = world.connect(FakeProcess(uid=2000), recv=c.ATTACH_ALL)
    assert first.connection.metadata.auxgroups is second.connection.metadata.auxgroups
    assert first.connection.credentials is second.connection.credentials
    before = account.used
    assert before > 2 * 63 * len(many)
    assert first.send(dst=receiver.id) == 0
    assert account.used - before > 63 * len(many)
    drain(receiver)
    for client in (first, second, receiver):
        client.close()
    assert account.used == 0
    world.domain.users.memory_limit = 1 << 21
    assert world.open(FakeProcess(uid=2001, aux=many)).hello() == -ENOBUFS
    assert len(world.domain.credentials) == 0 and len(world.domain.users) == 1


def test_name_12_a_connection_waits_for_256_names(world: World) -> None:
    """NAME-6, NAME-11, NAME-12: E2BIG beyond that; a replaced owner then gets no place in the queue."""
    owners = [world.connect() for _ in range(2)]
    names = [b"a.%s" % bytes([97 + number // 16, 97 + number % 16]) for number in range(256)]
    for name in names:
        assert owners[0].acquire(name) == 0
    waiter = world.connect()
    for name in names:
        assert waiter.acquire(name, c.NAME_QUEUE) == 0
    assert owners[1].acquire(b"x.y") == 0
    assert waiter.acquire(b"x.y", c.NAME_QUEUE) == -E2BIG
    assert waiter.acquire(names[0], c.NAME_QUEUE) == 0, "it waits for that one already"
    assert waiter.acquire(b"x.z", c.NAME_QUEUE | c.NAME_ALLOW_REPLACEMENT) == 0
    assert owners[1].acquire(b"x.z", c.NAME_REPLACE_EXISTING) == 0
    assert len(waiter.connection.waiting_for) == 256
    assert waiter.release_name(b"x.z") == -ESRCH
    for number in range(256):
        assert waiter.acquire(b"y.%s" % names[number][2:]) == 0
    owners[0].close()
    assert len(waiter.connection.names) == 512
    assert waiter.acquire(b"z.z", c.NAME_QUEUE) == -E2BIG
