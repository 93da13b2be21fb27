"""The longest turns of the core at the limits: other commands can run every few hundred microseconds of cpu time.

`FakeTurn` measures the cpu time of this thread between two calls of `Turn.spend` that may pause.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from errno import EAGAIN, ECONNRESET, EEXIST, EMFILE, ENXIO, EOVERFLOW, EPIPE, ESRCH
from struct import pack

import pytest

from kdbusfs.abi import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.core.disconnect import disconnect
from tests.support.core_client import PENDING, Client, FakeProcess, World
from tests.support.core_scenes import (
    at_rest,
    cookies,
    drain,
    dst_name,
    event,
    events,
    expire,
    id_change,
    name_change,
    observer,
    reply,
    request,
    results,
)

TURN_MAX_NS = 5_000_000
NAMES = 256
REQUESTS = 128
MATCHES = 256
ACTIVATOR = make_item(c.ITEM_NAME, b"a.act\0") + make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", 3, 1, 0))


@pytest.fixture(autouse=True)
def without_garbage() -> Iterator[None]:
    """Without the garbage collector: it would scan all objects of the test run."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def longest(world: World, deed: Callable[[], object]) -> int:
    """The longest cpu time of `deed` between two pauses, in ns."""
    turn = world.host.turn
    turn.watch()
    deed()
    turn.stop()
    return turn.longest_ns


def forget_commands(world: World) -> None:
    """Forget the memory of fake processes: an access searches all that was ever placed there."""
    world.owner.memory.clear()


def named(world: World, count: int, names: int = NAMES) -> list[Client]:
    clients = [world.connect() for _ in range(count)]
    for number, client in enumerate(clients):
        for index in range(names):
            assert client.acquire(b"a.n%dx%d" % (number, index)) == 0
        forget_commands(world)
    return clients


def listening(world: World, count: int) -> list[Client]:
    clients = [world.connect(pool_size=4096) for _ in range(count)]
    for client in clients:
        assert client.add_match(1) == 0
    return clients


def test_shut_1_the_end_of_a_bus(world: World) -> None:
    clients = named(world, 20)
    for client in clients:
        for cookie in range(MATCHES):
            client.add_match(cookie)
        forget_commands(world)
    waiting = listening(world, 300)
    assert longest(world, world.control.close) < TURN_MAX_NS
    assert world.host.turn.pauses > 320
    for client in (*clients, *waiting):
        client.close()
    assert len(world.domain.users) == 0


def test_shut_5_the_end_of_an_endpoint(world: World) -> None:
    owner = world.open()
    assert owner.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD, make_item(c.ITEM_NAME, b"a.*\0")) == 0
    inside = [world.connect(endpoint="1000-e") for _ in range(300)]
    outside = listening(world, 100)
    drain(outside[0])
    assert longest(world, owner.close) < TURN_MAX_NS
    assert outside[0].recv() == -EOVERFLOW
    assert events(outside[0])[:2] == [(c.ITEM_ID_REMOVE, client.id, 1) for client in inside[:2]]


def test_note_6_the_end_of_an_owner_of_many_names_among_many_listeners(world: World) -> None:
    (owner,) = named(world, 1)
    watcher, *others = listening(world, 400)
    assert longest(world, owner.close) < TURN_MAX_NS
    assert watcher.recv() == -EOVERFLOW
    seen = events(watcher)
    assert [each[0] for each in seen] == [c.ITEM_NAME_REMOVE] * NAMES
    assert [each[-1] for each in seen] == [b"a.n0x%d" % index for index in range(NAMES)]
    assert {client.connection.traffic.lost for client in others} == {1}


def test_name_18_the_end_of_who_waits_for_many_names(world: World) -> None:
    owners, waiter = named(world, 1), world.connect()
    for number in range(len(owners)):
        for index in range(NAMES):
            assert waiter.acquire(b"a.n%dx%d" % (number, index), c.NAME_QUEUE) == 0
        forget_commands(world)
    assert longest(world, waiter.close) < TURN_MAX_NS
    for owner in owners:
        owner.close()
    assert len(world.domain.buses["1000-test"].names) == 0


def test_close_2_the_end_of_who_owes_many_replies(world: World) -> None:
    server = world.connect(pool_size=1 << 22)
    clients = [world.connect(pool_size=1 << 16) for _ in range(60)]
    for client in clients:
        for cookie in range(REQUESTS):
            assert request(client, server.id, cookie + 1) == 0
            server.free(server.receive().offset)
        forget_commands(world)
    assert longest(world, server.close) < TURN_MAX_NS
    for client in clients:
        forget_commands(world)
        assert events(client) == [(c.ITEM_REPLY_DEAD, cookie + 1) for cookie in reversed(range(REQUESTS))]
        assert at_rest(client)


def test_rep_4_many_requests_that_expire_at_once(world: World) -> None:
    server = world.connect(pool_size=1 << 22)
    clients = [world.connect(pool_size=1 << 16) for _ in range(60)]
    now = world.host.clock.now
    for client in clients:
        for cookie in range(REQUESTS):
            assert request(client, server.id, cookie + 1, timeout=now + 1) == 0
            server.free(server.receive().offset)
        forget_commands(world)
    assert longest(world, lambda: expire(world, now + 1)) < TURN_MAX_NS
    assert world.domain.next_deadline() == 0
    for client in clients:
        forget_commands(world)
        assert events(client) == [(c.ITEM_REPLY_TIMEOUT, cookie + 1) for cookie in reversed(range(REQUESTS))]
        assert at_rest(client)


def test_act_4_a_full_queue_moves_to_the_taker_of_a_name(world: World) -> None:
    waker = world.connect(flags=c.HELLO_ACTIVATOR, items=ACTIVATOR, pool_size=1 << 26)
    sender = world.connect(FakeProcess(uid=2000))
    payload = sender.vec(bytes(2 << 20))
    for cookie in range(15):
        assert sender.send(items=dst_name(b"a.act") + payload, cookie=cookie) == 0
    taker = world.connect(pool_size=1 << 26)
    assert longest(world, lambda: taker.acquire(b"a.act")) < TURN_MAX_NS
    assert world.host.turn.pauses > 15 * 16
    assert cookies(taker) == list(range(15))
    assert at_rest(waker) and at_rest(taker)


# What others can observe half done


class Meanwhile:
    """Runs `deed` once, at pause number `at` of the command that is running."""

    def __init__(self, world: World, deed: Callable[[], object], at: int = 1) -> None:
        self.turn = world.host.turn
        self.deed = deed
        self.left = at
        self.turn.meanwhile = self

    def __call__(self) -> None:
        self.left -= 1
        if not self.left:
            self.turn.meanwhile = None
            self.deed()


@pytest.fixture
def waker(world: World) -> Client:
    """An activator with two messages: cookies 1 and 2, the second a request."""
    waker = world.connect(flags=c.HELLO_ACTIVATOR, items=ACTIVATOR)
    sender = world.connect(FakeProcess(uid=2000))
    world.sender = sender  # type: ignore[attr-defined]
    assert sender.send(items=dst_name(b"a.act") + sender.vec(b"first"), cookie=1) == 0
    assert request(sender, 0, 2, items=dst_name(b"a.act") + sender.vec(b"second")) == 0
    return waker


def test_act_4_a_name_that_is_being_taken_over_counts_as_taken(world: World, waker: Client) -> None:
    taker, other, late = world.connect(), world.connect(), world.connect()
    seen: list[int] = []

    def others() -> None:
        seen.append(other.acquire(b"a.act"))
        seen.append(other.acquire(b"a.act", c.NAME_REPLACE_EXISTING))
        seen.append(late.acquire(b"a.act", c.NAME_QUEUE))

    Meanwhile(world, others)
    assert taker.acquire(b"a.act", c.NAME_ALLOW_REPLACEMENT) == 0
    assert seen == [-EEXIST, -EEXIST, 0]
    assert cookies(taker) == [1, 2]
    taker.close()
    assert list(late.connection.names) == [b"a.act"]
    assert at_rest(waker)


def test_act_4_what_is_sent_during_a_take_over_comes_after_what_was_there(world: World, waker: Client) -> None:
    taker = world.connect()
    sender: Client = world.sender  # type: ignore[attr-defined]
    Meanwhile(world, lambda: sender.send(items=dst_name(b"a.act") + sender.vec(b"third"), cookie=3))
    assert taker.acquire(b"a.act") == 0
    assert cookies(taker) == [1, 2, 3]
    assert at_rest(waker)


@pytest.mark.parametrize("at", [1, 2])
def test_act_4_the_taker_leaves_in_the_middle(world: World, waker: Client, at: int) -> None:
    taker, late = world.connect(), world.connect()
    sender: Client = world.sender  # type: ignore[attr-defined]

    def others() -> None:
        assert late.acquire(b"a.act", c.NAME_QUEUE) == 0
        taker.byebye() if not len(taker.connection.queue) else disconnect(taker.connection)

    Meanwhile(world, others, at)
    assert taker.acquire(b"a.act") == -ECONNRESET
    # Messages that had moved are gone with the taker; the rest goes to the first waiter.
    assert cookies(late) == [1, 2][at - 1 :]
    assert reply(late, sender.id, 2) == 0
    assert [message.cookie_reply for message in drain(sender)] == [2]
    assert at_rest(waker) and at_rest(taker) and at_rest(late) and at_rest(sender)


@pytest.mark.parametrize("at", [1, 2])
def test_act_8_the_activator_leaves_in_the_middle(world: World, waker: Client, at: int) -> None:
    taker, sender = world.connect(), world.sender  # type: ignore[attr-defined]
    Meanwhile(world, waker.close, at)
    assert taker.acquire(b"a.act") == 0
    assert list(taker.connection.names) == [b"a.act"]
    assert cookies(taker) == [1, 2][: at - 1]
    assert events(sender) == [(c.ITEM_REPLY_DEAD, 2)]
    assert at_rest(waker) and at_rest(taker) and at_rest(sender)


def test_name_17_the_owner_leaves_while_messages_go_back(world: World, waker: Client) -> None:
    taker = world.connect()
    assert taker.acquire(b"a.act") == 0
    Meanwhile(world, lambda: disconnect(taker.connection))
    assert taker.release_name(b"a.act") == 0
    assert list(waker.connection.names) == [b"a.act"]
    again = world.connect()
    assert again.acquire(b"a.act") == 0
    assert cookies(again) == [1, 2]
    assert at_rest(waker) and at_rest(taker)


@pytest.mark.parametrize("leaves", [False, True])
def test_act_7_the_waiter_leaves_while_messages_go_back(world: World, waker: Client, leaves: bool) -> None:
    """ACT-7, CLOSE-2: releasing the name, and leaving, have their usual effects."""
    taker, waiter = world.connect(), world.connect()
    assert taker.acquire(b"a.act") == 0
    entry = taker.connection.names[b"a.act"]

    def others() -> None:
        if entry.heir is waker.connection and not entry.waiters:
            assert waiter.acquire(b"a.act", c.NAME_QUEUE) == 0
        elif entry.heir is waiter.connection and waiter.connection.active:
            disconnect(waiter.connection)

    world.host.turn.meanwhile = others
    if leaves:
        assert taker.connection.queue.count == 2
        taker.close()
    else:
        assert taker.release_name(b"a.act") == 0
    world.host.turn.meanwhile = None
    assert not waiter.connection.active
    assert list(waker.connection.names) == [b"a.act"]
    assert at_rest(taker) and at_rest(waiter)
    assert taker.memory.closed == leaves


@pytest.mark.parametrize("at", range(1, 6))
def test_shut_1_the_bus_ends_while_an_owner_leaves(world: World, at: int) -> None:
    """SHUT-1, NAME-18: there is no heir left, and nothing stays charged."""
    owner, waiter, waker = world.connect(), world.connect(), world.connect(flags=c.HELLO_ACTIVATOR, items=ACTIVATOR)
    for name in (b"a.act", b"a.b"):
        assert owner.acquire(name) == 0
        assert waiter.acquire(name, c.NAME_QUEUE) == 0
    assert waiter.acquire(b"a.c") == 0
    assert owner.acquire(b"a.c", c.NAME_QUEUE) == 0
    assert request(world.connect(), owner.id, 1) == 0
    drain(owner)
    Meanwhile(world, world.control.close, at)
    assert owner.byebye() == 0
    assert world.host.turn.meanwhile is None and not world.domain.buses
    for client in (owner, waiter, waker):
        assert not client.connection.names and not client.connection.waiting_for and at_rest(client)
        client.close()
    assert owner.connection.user.account.used == waiter.connection.user.account.used


def test_act_4_a_name_is_taken_again_while_a_late_message_follows_it_back(world: World, waker: Client) -> None:
    """ACT-4, NAME-17: then the message comes to the new owner, and not to the activator."""
    first, second = world.connect(), world.connect()
    sender: Client = world.sender  # type: ignore[attr-defined]
    assert first.acquire(b"a.act") == 0
    drain(first)

    def released() -> None:
        assert first.release_name(b"a.act") == 0
        Meanwhile(world, lambda: second.acquire(b"a.act"))

    sender.process.meanwhile = released
    assert sender.send(items=dst_name(b"a.act") + sender.vec(b"late"), cookie=3) == 0
    assert world.host.turn.meanwhile is None
    assert list(second.connection.names) == [b"a.act"]
    assert (cookies(first), cookies(second)) == ([], [3])
    assert not len(waker.connection.queue)


def test_act_4_the_owner_leaves_while_a_late_message_follows_the_name(world: World, waker: Client) -> None:
    """ACT-4, NAME-15: then the message goes to the heir, and does not stay with the activator."""
    first, second = world.connect(), world.connect()
    sender: Client = world.sender  # type: ignore[attr-defined]

    def taken() -> None:
        assert first.acquire(b"a.act") == 0
        assert second.acquire(b"a.act", c.NAME_QUEUE) == 0
        Meanwhile(world, lambda: disconnect(first.connection))

    sender.process.meanwhile = taken
    assert sender.send(items=dst_name(b"a.act") + sender.vec(b"late"), cookie=3) == 0
    assert world.host.turn.meanwhile is None
    assert list(second.connection.names) == [b"a.act"]
    assert cookies(second) == [3]
    assert not len(waker.connection.queue)


def test_recv_2_a_message_that_is_received_while_it_moves_does_not_move(world: World, waker: Client) -> None:
    taker = world.connect()
    assert taker.acquire(b"a.act") == 0
    got: list[int] = []
    Meanwhile(world, lambda: got.extend(cookies(taker)))
    assert taker.release_name(b"a.act") == 0
    assert got == [1, 2]
    assert cookies(waker) == []
    assert not waker.connection.pool.slices


def test_rep_11_the_receiver_leaves_before_the_request_blocks(world: World, waker: Client) -> None:
    """SYNC-4: its name was taken over while the request was copied, and it leaves while that moves on."""
    taker = world.connect()
    sender: Client = world.sender  # type: ignore[attr-defined]

    def taken() -> None:
        assert taker.acquire(b"a.act") == 0
        Meanwhile(world, waker.close)

    sender.process.meanwhile = taken
    assert request(sender, 0, 7, sync=True, items=dst_name(b"a.act") + sender.vec(b"late")) == -EPIPE
    assert not world.domain.waiting
    assert cookies(taker) == [1, 2]
    assert at_rest(waker)


def test_close_2_whoever_looks_during_an_end_finds_nobody(world: World) -> None:
    leaver, watcher, other = world.connect(), observer(world), world.connect()
    for index in range(3):
        leaver.acquire(b"a.n%d" % index)
    drain(watcher)
    seen: list[object] = []

    def look() -> None:
        seen.append((leaver.recv(), other.send(dst=leaver.id), other.send(items=dst_name(b"a.n0"))))

    Meanwhile(world, look)
    leaver.close()
    assert seen == [(-ECONNRESET, -ENXIO, -ESRCH)]
    kinds = [event(message)[0] for message in drain(watcher)]
    assert kinds == [c.ITEM_NAME_REMOVE] * 3 + [c.ITEM_ID_REMOVE]


def test_note_6_who_tells_something_during_an_end_tells_it_after_that(world: World) -> None:
    leaver, watcher, other = world.connect(), observer(world), world.connect()
    leaver.acquire(b"a.n0")
    leaver.acquire(b"a.n1")
    drain(watcher)
    Meanwhile(world, lambda: other.acquire(b"a.new"), at=2)
    leaver.close()
    assert [(each[0], each[-1]) for each in events(watcher)] == [
        (c.ITEM_NAME_REMOVE, b"a.n0"),
        (c.ITEM_NAME_REMOVE, b"a.n1"),
        (c.ITEM_NAME_ADD, b"a.new"),
        (c.ITEM_ID_REMOVE, leaver.connection.flags),
    ]


def test_close_1_the_ends_of_a_user_come_one_after_the_other(world: World) -> None:
    """The ends of another user do not wait for them."""
    watcher = world.connect(FakeProcess(uid=3000))
    watcher.add_match(1, id_change(c.ITEM_ID_REMOVE))
    watcher.add_match(2, name_change(c.ITEM_NAME_REMOVE))
    first, second = world.connect(), world.connect()
    foreign = world.connect(FakeProcess(uid=2000))
    first.acquire(b"a.n0")

    def others() -> None:
        second.close()
        assert second.connection.active
        foreign.close()
        assert not foreign.connection.active
        assert len(world.domain.ends) == 1

    Meanwhile(world, others)
    first.close()
    assert len(world.domain.ends) == 0
    ids = [each[1] for each in events(watcher) if each[0] == c.ITEM_ID_REMOVE]
    assert ids == [foreign.id, first.id, second.id] or ids == [first.id, foreign.id, second.id]
    assert second.memory.closed


def test_hello_13_a_connection_counts_until_its_end_is_over(world: World) -> None:
    client, other = world.connect(FakeProcess(uid=2000)), world.connect(FakeProcess(uid=2000))
    client.acquire(b"a.n0")
    user = client.connection.user
    user.connections = 1024
    seen: list[int] = []

    def others() -> None:
        other.close()
        seen.append(world.open(FakeProcess(uid=2000)).hello())

    Meanwhile(world, others)
    client.close()
    assert seen == [-EMFILE]
    assert user.connections == 1022
    assert world.open(FakeProcess(uid=2000)).hello() == 0


def test_close_1_a_file_is_closed_while_its_bus_ends(world: World) -> None:
    client = world.connect(FakeProcess(uid=2000))
    sender = world.connect()
    assert sender.send(dst=client.id, items=sender.vec(b"unread")) == 0
    closed: list[bool] = []

    def others() -> None:
        if client.connection.is_ending and not closed:
            client.close()
            closed.append(client.memory.closed)
        world.host.turn.meanwhile = others

    world.host.turn.meanwhile = others
    world.control.close()
    world.host.turn.meanwhile = None
    assert closed == [False]
    assert client.memory.closed and at_rest(client)
    sender.close()
    assert len(world.domain.users) == 0


def test_rep_4_others_deadlines_are_met_while_many_expire(world: World) -> None:
    """SYNC-3, NOTE-10: a blocked call does not wait for the notifications of others."""
    server, client, other = world.connect(), world.connect(), world.connect()
    now = world.host.clock.now
    for cookie in (1, 2, 3):
        request(client, server.id, cookie, timeout=now + 1)
    assert request(other, server.id, 4, sync=True, timeout=now + 5) == PENDING
    seen: list[int] = []

    def others() -> None:
        world.host.clock.now = now + 5
        world.domain.expire(now + 5)
        assert world.domain.next_deadline() == 0

    Meanwhile(world, others, at=2)
    expire(world, now + 1)
    seen += results(world)
    assert len(seen) == 1
    assert events(client) == [(c.ITEM_REPLY_TIMEOUT, cookie) for cookie in (3, 2, 1)]


def test_rep_4_a_request_that_is_answered_before_it_is_told_of_its_deadline(world: World) -> None:
    server, client, other = world.connect(), world.connect(), world.connect()
    now = world.host.clock.now
    request(client, server.id, 1, timeout=now + 1)
    request(other, server.id, 2, timeout=now + 1)

    def others() -> None:
        assert reply(server, other.id, 2) == 0

    Meanwhile(world, others, at=3)
    expire(world, now + 1)
    assert events(client) == [(c.ITEM_REPLY_TIMEOUT, 1)]
    assert [message.cookie_reply for message in drain(other)] == [2]
    assert other.recv() == -EAGAIN
