"""Random commands of all kinds, which also run inside each other's memory accesses and yields; invariants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from struct import pack

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.core.connection import Connection
from kdbusfs.core.whole_delivery import WholeDelivery
from tests.support.core_client import Client, World
from tests.support.core_scenes import (
    cancel_fd,
    dst_name,
    expire,
    id_change,
    mask,
    name_change,
    pass_files,
    pass_memfd,
    reply,
    request,
    signal,
)
from tests.support.fake_host import FakeFile, FakeProcess, sealed_memfd
from tests.support.last_client import NeutralClient

NAMES = (b"a.b", b"a.c")
UIDS = (1000, 1000, 1000, 2000)
STEPS = 120
NESTED = 3
ROLES = (0, 0, 0, 0, 0, 0, 0, 0, c.HELLO_ACTIVATOR, c.HELLO_POLICY_HOLDER, c.HELLO_MONITOR)


class Play:
    """Clients with random commands.  A file with a running command is not closed: the kernel holds it.

    old: how probable it is that a client speaks v3; otherwise it speaks the last ABI.
    """

    def __init__(self, chance: Random, old: float = 1.0) -> None:
        self.chance = chance
        self.old = old
        self.world = World()
        self.clients: list[Client] = []
        self.endpoints: list[Client] = []
        self.busy: Counter[Client] = Counter()
        self.files: list[FakeFile] = []
        self.made = 0
        self.nested = 0
        self.world.host.turn.meanwhile = self.at_pause

    def at_pause(self) -> None:
        """A yield of the core (`Turn.spend`): other commands run."""
        if self.nested < NESTED and self.chance.random() < 0.2:
            self.nested += 1
            try:
                self.others()
            finally:
                self.nested -= 1

    def step(self, deeds: tuple[Callable[[Play, Client], None], ...] | None = None) -> None:
        client = self.chance.choice(self.clients) if self.clients and self.chance.random() < 0.93 else self.enter()
        if client is None:
            return
        if not client.connection.active and not self.busy[client] and self.chance.random() < 0.5:
            self.clients.remove(client)
            client.close()
            return
        if sum(self.busy.values()) < NESTED and self.chance.random() < 0.7:
            client.process.meanwhile = self.others
        self.busy[client] += 1
        try:
            self.chance.choice(deeds or self.deeds)(self, client)
        finally:
            self.busy[client] -= 1
            client.process.meanwhile = None

    def others(self) -> None:
        for _ in range(self.chance.randrange(1, 4)):
            self.step(self.chance.choice((self.deeds, self.changes)))
        if self.chance.random() < 0.03:
            self.world.control.close()

    def enter(self) -> Client | None:
        """Open another connection, perhaps a special one or through a custom endpoint."""
        places = self.places()
        if not places:
            return None
        role = self.chance.choice(ROLES)
        self.made += 1
        process = FakeProcess(uid=self.chance.choice(UIDS), pid=1000 + self.made)
        client = self.open(process, self.chance.choice(places))
        items = b""
        if role & (c.HELLO_ACTIVATOR | c.HELLO_POLICY_HOLDER):
            items = self.group(self.name())
        if sum(self.busy.values()) < NESTED and self.chance.random() < 0.3:
            process.meanwhile = self.others
        flags = role | self.chance.choice((0, c.HELLO_ACCEPT_FD))
        size, recv = self.chance.choice((4096, 1 << 16)), self.chance.choice((0, c.ATTACH_ALL))
        result = client.hello(flags=flags, items=items, pool_size=size, recv=recv, free=False)
        process.meanwhile = None
        if result:
            client.close()
            return None
        self.clients.append(client)
        return client

    def open(self, process: FakeProcess, endpoint: str) -> Client:
        """A file whose program speaks either ABI."""
        client = self.world.open(process, endpoint=endpoint)
        return client if self.chance.random() < self.old else NeutralClient(self.world, process, client.endpoint)

    def places(self) -> list[str]:
        """The endpoints that can be opened."""
        bus = self.world.domain.buses.get("1000-test")
        if bus is None:
            return []
        return [name for name, endpoint in bus.endpoints.items() if endpoint.active]

    def name(self) -> bytes:
        return self.chance.choice(NAMES)

    def group(self, name: bytes) -> bytes:
        level = self.chance.randrange(3)
        return make_item(c.ITEM_NAME, name + b"\0") + make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", 3, level, 0))

    def file(self) -> FakeFile:
        self.files.append(FakeFile())
        return self.files[-1]

    def content(self, client: Client) -> bytes:
        items = b""
        if self.chance.random() < 0.7:
            items += client.vec(bytes(self.chance.randrange(1, 1500)))
        if self.chance.random() < 0.1:
            items += make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 8, 0xDEAD000))
        if self.chance.random() < 0.2:
            self.files.append(sealed_memfd(9))
            items += pass_memfd(client.process, 9, file=self.files[-1])
        if self.chance.random() < 0.2:
            items += pass_files(client.process, self.file())
        return items

    def to(self) -> tuple[int, bytes]:
        """A destination: its id, and its name as an item."""
        if self.chance.random() < 0.7:
            return 0, dst_name(self.name())
        return self.chance.choice(self.clients).id, b""

    # Commands

    def send(self, client: Client) -> None:
        dst, item = self.to()
        client.send(dst=dst, items=item + self.content(client), priority=self.chance.randrange(3))

    def ask(self, client: Client) -> None:
        dst, item = self.to()
        deadline = self.world.host.clock.now + self.chance.choice((-5, 10, 200, 10**9))
        send_items = b""
        sync = self.chance.random() < 0.5
        if sync and self.chance.random() < 0.5:
            send_items = cancel_fd(client.process, self.file())
        items = item + self.content(client)
        cookie = self.chance.randrange(1, 4)
        request(client, dst, cookie, timeout=deadline, sync=sync, items=items, send_items=send_items)
        assert client.last_call is not None
        if client.last_call.installation is not None:  # a restarted call that found its reply
            client.last_call.installation.done()

    def answer(self, client: Client) -> None:
        owed = list(client.connection.requests.owed)
        if owed:
            one = self.chance.choice(owed)
            reply(client, one.requester.id, one.cookie, items=self.content(client))

    def tell(self, client: Client) -> None:
        dst = self.chance.choice((c.DST_ID_BROADCAST, self.to()[0]))
        signal(client, dst, items=client.vec(bytes(self.chance.randrange(1, 500))))

    def receive(self, client: Client) -> None:
        flags = self.chance.choice((0, 0, 0, c.RECV_PEEK, c.RECV_DROP, c.RECV_USE_PRIORITY))
        for _ in range(self.chance.randrange(1, 8)):
            if client.recv(flags=flags, priority=1) or flags & c.RECV_DROP:
                return
            message = client.last_message()
            if message.installation is not None:
                message.installation.done()
            if self.chance.random() < 0.9:
                client.free(message.offset)

    def names(self, client: Client) -> None:
        if self.chance.random() < 0.6:
            client.acquire(self.name(), self.chance.randrange(8))
        else:
            client.release_name(self.name())

    def matches(self, client: Client) -> None:
        rules = (b"", mask(0), id_change(c.ITEM_ID_ADD), name_change(c.ITEM_NAME_CHANGE))
        client.add_match(self.chance.randrange(3), self.chance.choice(rules), self.chance.randrange(2))
        if self.chance.random() < 0.3:
            client.remove_match(self.chance.randrange(3))

    def update(self, client: Client) -> None:
        if self.chance.random() < 0.5:
            client.update(self.group(self.name()))
        else:
            client.update(make_item(c.ITEM_ATTACH_FLAGS_RECV, pack("<Q", self.chance.choice((0, c.ATTACH_ALL)))))

    def endpoint(self, client: Client) -> None:
        """Make one, update one, or end one."""
        what = self.chance.random()
        if self.endpoints and what < 0.5:
            owner = self.endpoints.pop(self.chance.randrange(len(self.endpoints)))
            if what < 0.2:
                owner.close()
                return
            if sum(self.busy.values()) < NESTED:
                owner.process.meanwhile = self.others
            owner.update_endpoint(self.group(self.name()))
            owner.process.meanwhile = None
            self.endpoints.append(owner)
        elif self.places():
            self.made += 1
            owner = self.open(FakeProcess(uid=1000), self.places()[0])
            policy = b"" if isinstance(owner, NeutralClient) else self.group(self.name())  # L-28
            if owner.make_endpoint(b"1000-e%d" % self.made, items=policy) == 0:
                self.endpoints.append(owner)
            else:
                owner.close()

    def time_passes(self, client: Client) -> None:
        expire(self.world, self.world.host.clock.now + self.chance.randrange(30))

    def interrupt(self, client: Client) -> None:
        for call in list(self.world.domain.waiting):
            if self.chance.random() < 0.5:
                self.world.domain.interrupt(call)

    def cancel(self, client: Client) -> None:
        for _, token, cancellation in self.world.host.watched:
            if cancellation.open and self.chance.random() < 0.3:
                self.world.domain.cancelled(token)

    def leave(self, client: Client) -> None:
        if self.chance.random() < 0.3:
            client.byebye()
        elif self.busy[client] == 1 and self.chance.random() < 0.5:  # only this
            self.clients.remove(client)
            client.close()

    deeds: tuple[Callable[[Play, Client], None], ...] = (
        *(send, ask, answer, tell, receive, names) * 3,
        *(matches, update, endpoint, time_passes, interrupt, cancel, leave),
    )

    changes: tuple[Callable[[Play, Client], None], ...] = (names, leave)

    # Invariants

    def check(self) -> None:
        domain = self.world.domain
        for call in domain.completed:
            if call.installation is not None:
                call.installation.done()
        domain.completed.clear()
        for bus in domain.buses.values():
            for connection in bus.connections.values():
                _check_connection(connection)
        for tracker in domain.waiting.values():
            assert tracker.is_linked and tracker.requester.active and tracker.call is not None
            assert tracker.replying.active

    def end(self) -> None:
        domain = self.world.domain
        self.world.host.turn.meanwhile = None
        for client in self.clients:
            client.close()
        for owner in self.endpoints:
            owner.close()
        self.check()
        self.world.control.close()
        assert not domain.buses and not domain.waiting
        assert not domain.next_deadline()
        assert len(domain.users) == 0
        assert [file.open_count for file in self.files if file.open_count] == []


def _check_connection(connection: Connection) -> None:
    assert connection.active
    for name, entry in connection.names.items():
        assert entry.owner is connection and connection.bus.names.find(name) is entry
        assert all(waiter.active and name in waiter.waiting_for for waiter in entry.waiters)
        assert entry.activator is None or (entry.activator.active and entry.activator.activator_of is entry)
        if connection.is_activator:
            assert entry.activator is connection and not entry.waiters
    entries = connection.queue.entries()
    assert len(entries) == connection.queue.count
    for tracker in connection.requests.owed:
        assert tracker.replying is connection and tracker.is_linked and tracker.requester.active
    for tracker in connection.requests.trackers:
        assert tracker.is_linked and tracker.requester is connection
        assert tracker.has_outcome or tracker in tracker.replying.requests.owed
    if connection.is_activator and not connection.names:
        assert not entries  # the owner of the name has them
    delivery = connection.delivery
    if isinstance(delivery, WholeDelivery):
        accounted = list(entries)
        replies = [tracker.reply for tracker in connection.requests.trackers if tracker.reply is not None]
        assert all(entry.user is not None and entry.payload is not None for entry in accounted)
        assert delivery.accounted == sum(entry.charged for entry in accounted + replies)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.sampled_from((0.0, 0.5, 0.5, 1.0)))
def test_nothing_is_left_of_any_play(seed: int, old: float) -> None:
    play = Play(Random(seed), old)
    for _ in range(STEPS):
        play.step()
        play.check()
    play.end()


