"""NAME, ACT: ownership of names against a naive model of owners, waiters and activators, with its notifications."""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EALREADY, EEXIST, ESRCH

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import Client, World
from tests.support.core_scenes import events, name_change

ADD, REMOVE, CHANGE = c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE
NAMES = (b"a.a", b"a.b")
clients = st.integers(0, 3)
names = st.sampled_from(NAMES)


@dataclass
class Name:
    """A name as the model knows it: who owns it with which flags, and who waits."""

    owner: Client | None = None
    flags: int = 0
    waiters: list[tuple[Client, int]] = field(default_factory=list)
    activator: Client | None = None


class NamesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.watcher = self.world.connect()
        for kind in (ADD, REMOVE, CHANGE):
            self.watcher.add_match(1, name_change(kind))
        self.clients = [self.world.connect() for _ in range(4)]
        self.names = {name: Name() for name in NAMES}
        self.expected: list[tuple[object, ...]] = []

    def pass_to(self, name: bytes, client: Client, flags: int) -> None:
        entry = self.names[name]
        assert entry.owner is not None
        self.expected.append((CHANGE, entry.owner.id, entry.flags, client.id, flags, name))
        entry.owner, entry.flags = client, flags
        entry.waiters = [waiter for waiter in entry.waiters if waiter[0] is not client]

    def let_go(self, name: bytes) -> None:
        entry = self.names[name]
        assert entry.owner is not None
        if entry.waiters:
            self.pass_to(name, *entry.waiters[0])
        elif entry.activator is not None and entry.activator is not entry.owner:
            self.pass_to(name, entry.activator, c.NAME_ACTIVATOR)
        else:
            self.expected.append((REMOVE, entry.owner.id, entry.flags, 0, 0, name))
            entry.owner, entry.flags = None, 0

    @rule(number=clients, name=names, flags=st.integers(0, 7))
    def acquire(self, number: int, name: bytes, flags: int) -> None:
        client, entry = self.clients[number], self.names[name]
        result = client.acquire(name, flags)
        if entry.owner is None:
            assert result == 0
            self.expected.append((ADD, 0, 0, client.id, flags, name))
            entry.owner, entry.flags = client, flags
        elif entry.owner is client:
            assert result == -EALREADY
        elif entry.owner is entry.activator:
            assert result == 0
            self.pass_to(name, client, flags)
        elif flags & c.NAME_REPLACE_EXISTING and entry.flags & c.NAME_ALLOW_REPLACEMENT:
            assert result == 0
            if entry.flags & c.NAME_QUEUE:
                entry.waiters.append((entry.owner, entry.flags))
            self.pass_to(name, client, flags)
        elif flags & c.NAME_QUEUE:
            assert result == 0
            assert client.out(8) == flags | c.NAME_IN_QUEUE
            places = [waiter for waiter, _ in entry.waiters]
            if client in places:
                entry.waiters[places.index(client)] = (client, flags)
            else:
                entry.waiters.append((client, flags))
        else:
            assert result == -EEXIST

    @rule(number=clients, name=names)
    def release(self, number: int, name: bytes) -> None:
        client, entry = self.clients[number], self.names[name]
        result = client.release_name(name)
        if entry.owner is client:
            assert result == 0
            self.let_go(name)
        elif any(waiter is client for waiter, _ in entry.waiters):
            assert result == 0
            entry.waiters = [waiter for waiter in entry.waiters if waiter[0] is not client]
        else:
            assert result == -ESRCH

    @rule(number=clients, bye=st.booleans())
    def leave(self, number: int, bye: bool) -> None:
        client = self.clients[number]
        for entry in self.names.values():
            entry.waiters = [waiter for waiter in entry.waiters if waiter[0] is not client]
        for name in list(client.connection.names):
            self.let_go(name)
        if bye:
            assert client.byebye() == 0
        client.close()
        self.clients[number] = self.world.connect()

    @rule(name=names)
    def activate(self, name: bytes) -> None:
        entry = self.names[name]
        client = self.world.open()
        result = client.hello(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, name + b"\0"))
        if entry.activator is not None:
            assert result == -EEXIST
            return
        assert result == 0
        entry.activator = client
        if entry.owner is None:
            self.expected.append((ADD, 0, 0, client.id, c.NAME_ACTIVATOR, name))
            entry.owner, entry.flags = client, c.NAME_ACTIVATOR

    @precondition(lambda self: any(entry.activator for entry in self.names.values()))
    @rule(name=names)
    def deactivate(self, name: bytes) -> None:
        entry = self.names[name]
        client = entry.activator
        if client is None:
            return
        entry.activator = None
        if entry.owner is client:
            self.let_go(name)
        client.close()

    @invariant()
    def agrees(self) -> None:
        assert events(self.watcher) == self.expected
        self.expected = []
        registry = self.world.domain.buses["1000-test"].names
        assert len(registry) == sum(entry.owner is not None for entry in self.names.values())
        for name, entry in self.names.items():
            found = registry.find(name)
            if found is None:
                assert entry.owner is None
                continue
            assert entry.owner is not None
            assert (found.owner.id, found.flags) == (entry.owner.id, entry.flags)
            assert [(waiter.id, flags) for waiter, flags in found.waiters.items()] == [
                (client.id, flags) for client, flags in entry.waiters
            ]
        for client in self.clients:
            assert {name for name, entry in self.names.items() if entry.owner is client} == set(
                client.connection.names
            )
            assert set(client.connection.waiting_for) == {
                name for name, entry in self.names.items() if client in [waiter for waiter, _ in entry.waiters]
            }


TestNames = NamesMachine.TestCase
