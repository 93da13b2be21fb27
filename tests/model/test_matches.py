"""MATCH, BC, NOTE: the index of the matches of a bus against a naive model that evaluates all of them."""

from __future__ import annotations

from dataclasses import dataclass
from errno import EMFILE, ENOENT
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kdbusfs.abi.limits import MATCH_MAX
from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.values import Notice
from kdbusfs.core.match import CLASSES, USER_MESSAGES
from kdbusfs.core.message import Message
from tests.support.core_client import Client, World
from tests.support.core_scenes import id_change, id_rule, listening, mask, name_change, name_rule

ANY = c.MATCH_ID_ANY
NAME_CHANGES = (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE)
NAMES = (b"a.a", b"a.b", b"b.a")
BLOOM_SIZE = 8
PLACES = (0, 1, 31, 32, 63)
"""The bits that are used: only a few, so that masks and filters often match."""

clients = st.integers(0, 3)
cookies = st.integers(1, 3)
names = st.sampled_from(NAMES)
ids = st.sampled_from((0, 1, 2, 3, 4, 5, ANY))
changed_ids = st.integers(0, 5)
bits = st.sets(st.sampled_from(PLACES)).map(lambda places: sum(1 << place for place in places))


@dataclass(frozen=True)
class Mask:
    """A bloom mask with one value for each generation."""

    values: tuple[int, ...]
    kind: int = USER_MESSAGES

    def item(self) -> bytes:
        return mask(*self.values, size=BLOOM_SIZE)

    def accepts(self, message: Message, source: Client | None) -> bool:
        if message.bloom is None:
            return False
        generation, filtered = message.bloom
        wanted = self.values[min(generation, len(self.values) - 1)]
        return all(filtered >> place & 1 for place in PLACES if wanted >> place & 1)


@dataclass(frozen=True)
class SenderId:
    id: int
    kind: int = USER_MESSAGES

    def item(self) -> bytes:
        return id_rule(self.id)

    def accepts(self, message: Message, source: Client | None) -> bool:
        return self.id == ANY or self.id == message.src_id


@dataclass(frozen=True)
class SenderName:
    name: bytes
    kind: int = USER_MESSAGES

    def item(self) -> bytes:
        return name_rule(self.name)

    def accepts(self, message: Message, source: Client | None) -> bool:
        return source is not None and self.name in source.connection.names


@dataclass(frozen=True)
class Id:
    kind: int
    id: int

    def item(self) -> bytes:
        return id_change(self.kind, self.id)

    def accepts(self, message: Message, source: Client | None) -> bool:
        if self.id == ANY:
            return True
        assert message.notice is not None
        return self.id == (message.notice.new_id if self.kind == c.ITEM_ID_ADD else message.notice.old_id)


@dataclass(frozen=True)
class Name:
    kind: int
    old: int
    new: int
    name: bytes | None

    def item(self) -> bytes:
        return name_change(self.kind, self.old, self.new, self.name)

    def accepts(self, message: Message, source: Client | None) -> bool:
        assert message.notice is not None
        if self.name is not None and self.name != message.notice.name:
            return False
        return self.old in (ANY, message.notice.old_id) and self.new in (ANY, message.notice.new_id)


Rule = Mask | SenderId | SenderName | Id | Name

masks = st.lists(bits, min_size=1, max_size=3).map(lambda values: Mask(tuple(values)))
for_messages = st.one_of(masks, masks, st.builds(SenderId, ids), st.builds(SenderName, names))
for_ids = st.builds(Id, st.sampled_from((c.ITEM_ID_ADD, c.ITEM_ID_REMOVE)), ids)
for_names = st.builds(Name, st.sampled_from(NAME_CHANGES), ids, ids, st.none() | names)
entries = st.one_of(
    st.lists(for_messages, max_size=3),
    st.lists(for_messages, max_size=3),
    st.lists(for_names, min_size=1, max_size=2),
    st.lists(for_ids, min_size=1, max_size=2),
    st.lists(for_messages | for_ids | for_names, max_size=2),
)


def contradictory(rules: list[Rule]) -> bool:
    """Whether two rules for the same kind of message ask for different values of what a message has once."""
    wanted: dict[str, set[object]] = {"id": set(), "old": set(), "new": set(), "name": set()}
    for each in rules:
        if isinstance(each, SenderId | Id):
            wanted["id"] |= {each.id} - {ANY}
        elif isinstance(each, Name):
            wanted["old"] |= {each.old} - {ANY}
            wanted["new"] |= {each.new} - {ANY}
            wanted["name"] |= {each.name} - {None}
    return any(len(values) > 1 for values in wanted.values())


class MatchesMachine(RuleBasedStateMachine):
    """`entries` of a client are (cookie, rules), in the order in which they were added."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(bloom=BLOOM_SIZE)
        self.clients = [self.world.connect() for _ in range(4)]
        self.entries: list[list[tuple[int, list[Rule]]]] = [[] for _ in self.clients]

    @rule(number=clients, cookie=cookies, rules=entries, replace=st.booleans())
    def add(self, number: int, cookie: int, rules: list[Rule], replace: bool) -> None:
        items = b"".join(each.item() for each in rules)
        assert self.clients[number].add_match(cookie, items, c.MATCH_REPLACE if replace else 0) == 0
        if replace:
            self.forget(number, cookie)
        self.entries[number].append((cookie, rules))

    @rule(number=clients, cookie=cookies)
    def remove(self, number: int, cookie: int) -> None:
        found = any(each == cookie for each, _ in self.entries[number])
        assert self.clients[number].remove_match(cookie) == (0 if found else -ENOENT)
        self.forget(number, cookie)

    def forget(self, number: int, cookie: int) -> None:
        self.entries[number] = [entry for entry in self.entries[number] if entry[0] != cookie]

    @rule(number=clients)
    def leave(self, number: int) -> None:
        self.clients[number].close()
        self.clients[number] = self.world.connect()
        self.entries[number] = []

    @rule(number=clients, name=names)
    def acquire(self, number: int, name: bytes) -> None:
        self.clients[number].acquire(name, c.NAME_REPLACE_EXISTING | c.NAME_ALLOW_REPLACEMENT)

    def wanted(self, number: int, kind: int, message: Message, source: Client | None) -> bool:
        return any(
            all(rule.kind == kind and rule.accepts(message, source) for rule in rules)
            for _, rules in self.entries[number]
        )

    def compare(self, kind: int, message: Message, source: Client | None) -> None:
        index = self.world.domain.buses["1000-test"].listeners[kind]
        found = index.receivers(message, source.connection if source else None)
        wanted = [self.wanted(number, kind, message, source) for number in range(len(self.clients))]
        assert sorted(connection.id for connection in found) == sorted(
            client.id for client, wants in zip(self.clients, wanted, strict=True) if wants
        )
        for client, wants in zip(self.clients, wanted, strict=True):
            if source is not None:
                assert client.connection.matches.accept_signal(message, source.connection) is wants

    @rule(number=clients, generation=st.integers(0, 3), filtered=st.none() | bits)
    def send(self, number: int, generation: int, filtered: int | None) -> None:
        message = Message(src_id=self.clients[number].id)
        message.bloom = None if filtered is None else (generation, filtered)
        self.compare(USER_MESSAGES, message, self.clients[number])

    @rule(kind=st.sampled_from(NAME_CHANGES), old=changed_ids, new=changed_ids, name=names)
    def name_changes(self, kind: int, old: int, new: int, name: bytes) -> None:
        notice = Notice(kind, name=name)
        notice.old_id = 0 if kind == c.ITEM_NAME_ADD else old
        notice.new_id = 0 if kind == c.ITEM_NAME_REMOVE else new
        self.compare(kind, Message(notice=notice), None)

    @rule(kind=st.sampled_from((c.ITEM_ID_ADD, c.ITEM_ID_REMOVE)), changed=changed_ids)
    def id_changes(self, kind: int, changed: int) -> None:
        notice = Notice(kind)
        if kind == c.ITEM_ID_ADD:
            notice.new_id = changed
        else:
            notice.old_id = changed
        self.compare(kind, Message(notice=notice), None)

    @invariant()
    def has_what_there_is(self) -> None:
        expected = 0
        for number, client in enumerate(self.clients):
            assert len(client.connection.matches) == len(self.entries[number])
            for _, rules in self.entries[number]:
                kinds = {rule.kind for rule in rules}
                expected += len(CLASSES) if not kinds else len(kinds) == 1 and not contradictory(rules)
        assert listening(self.world) == expected

    def teardown(self) -> None:
        for client in self.clients:
            client.close()
        listeners = self.world.domain.buses["1000-test"].listeners
        assert not any(index._buckets for index in listeners.values())


TestMatches = MatchesMachine.TestCase


@pytest.mark.parametrize("seed", range(2))
def test_as_many_as_there_may_be(seed: int) -> None:
    """MATCH-6, MATCH-12: the maximum of masks, where every bit has entries and the rarest is chosen."""
    chance = Random(seed)
    world = World(bloom=BLOOM_SIZE)
    sender, *receivers = (world.connect() for _ in range(3))
    wanted: dict[int, list[int]] = {}
    for receiver in receivers:
        for _ in range(MATCH_MAX):
            value = sum(1 << place for place in chance.sample(range(8 * BLOOM_SIZE), 4))
            assert receiver.add_match(1, mask(value, size=BLOOM_SIZE)) == 0
            wanted.setdefault(receiver.id, []).append(value)
        assert receiver.add_match(1) == -EMFILE
    index = world.domain.buses["1000-test"].user_listeners
    total = MATCH_MAX * len(receivers)
    message = Message(src_id=sender.id)
    for _ in range(10):
        filtered = sum(1 << place for place in chance.sample(range(8 * BLOOM_SIZE), 12))
        message.bloom = (0, filtered)
        found = index.receivers(message, sender.connection)
        assert {receiver.id for receiver in found} == {
            receiver for receiver, values in wanted.items() if any(filtered & value == value for value in values)
        }
        looked_at = sum(group.size for group in index.candidates(message, sender.connection))
        assert looked_at <= total * 12 // 64 + total // 16
    for receiver in receivers:
        assert receiver.remove_match(1) == 0
    assert not len(index)
