"""Races: commands that run while another command is blocked on its client's memory (`ports.Caller`)."""

from __future__ import annotations

from errno import EBADFD, ECANCELED, ECONNRESET, EFAULT, ENOBUFS, EPERM, EPIPE, ETIMEDOUT
from struct import pack

import pytest

from kdbusfs.abi.limits import CONN_MAX_MSGS
from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.base.errors import AbandonedError
from tests.support.core_client import PENDING, Client, FakeProcess, World
from tests.support.core_scenes import (
    at_rest,
    cancel_fd,
    cookies,
    drain,
    dst_name,
    expire,
    id_rule,
    listening,
    observer,
    reply,
    request,
    results,
    signal,
    slots,
)
from tests.support.fake_host import FakeFile


@pytest.fixture
def slow(world: World) -> Client:
    """A connection with a process of its own, so that only its own accesses block."""
    return world.connect(FakeProcess(uid=1000))


@pytest.fixture
def peer(world: World) -> Client:
    return world.connect()


def test_the_receiver_closes(slow: Client, peer: Client) -> None:
    slow.process.meanwhile = peer.close
    assert slow.send(dst=peer.id, items=slow.vec(bytes(100))) == -ECONNRESET
    assert at_rest(slow) and at_rest(peer)


def test_the_receiver_says_byebye(slow: Client, peer: Client) -> None:
    slow.process.meanwhile = peer.byebye
    assert request(slow, peer.id, 1, items=slow.vec(bytes(100))) == -ECONNRESET
    assert at_rest(slow) and at_rest(peer)


def test_the_receiver_closes_and_the_copy_fails(slow: Client, peer: Client) -> None:
    slow.process.meanwhile = peer.close
    bad = make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 8, 0xDEAD000))
    assert slow.send(dst=peer.id, items=bad) == -EFAULT
    assert at_rest(peer)


def test_the_bus_ends(world: World, slow: Client, peer: Client) -> None:
    slow.process.meanwhile = world.control.close
    assert request(slow, peer.id, 1, items=slow.vec(bytes(100))) == -ECONNRESET
    assert at_rest(slow) and at_rest(peer)


def test_the_sender_of_a_request_leaves(slow: Client, peer: Client) -> None:
    """Its tracker would leak."""
    slow.process.meanwhile = slow.byebye
    assert request(slow, peer.id, 1, items=slow.vec(bytes(100))) == -ECONNRESET
    assert cookies(peer) == []
    assert at_rest(slow) and at_rest(peer)


def test_the_sender_of_a_plain_message_leaves(slow: Client, peer: Client) -> None:
    slow.process.meanwhile = slow.byebye
    assert slow.send(dst=peer.id, cookie=5, items=slow.vec(bytes(100))) == 0
    assert cookies(peer) == [5]
    assert at_rest(slow) and at_rest(peer)


def test_the_queue_gets_full(world: World, slow: Client, peer: Client) -> None:
    queue = peer.connection.queue
    queue.count = CONN_MAX_MSGS - 1
    other = world.connect()
    slow.process.meanwhile = lambda: other.send(dst=peer.id, cookie=1)
    assert slow.send(dst=peer.id, cookie=2, items=slow.vec(bytes(100))) == -ENOBUFS
    queue.count = 1
    assert cookies(peer) == [1]
    assert at_rest(peer)


def test_messages_are_queued_in_the_order_in_which_their_copies_end(world: World, slow: Client, peer: Client) -> None:
    other = world.connect()
    slow.process.meanwhile = lambda: other.send(dst=peer.id, cookie=1, items=other.vec(b"first"))
    assert slow.send(dst=peer.id, cookie=2, items=slow.vec(b"second")) == 0
    assert cookies(peer) == [1, 2]
    assert at_rest(peer)


def test_a_listener_leaves_during_a_broadcast(world: World, slow: Client) -> None:
    first, second = observer(world), observer(world)
    drain(first)
    slow.process.meanwhile = first.close
    assert signal(slow, cookie=7, items=slow.vec(bytes(100))) == 0
    assert 7 in cookies(second)
    assert at_rest(first) and at_rest(second)


def test_who_comes_leaves_or_thinks_again_during_a_broadcast(world: World, slow: Client) -> None:
    """MATCH-1: the matches at the time of the SEND count."""
    first, leaver, remover, late = observer(world), observer(world), observer(world), world.connect()
    for client in (first, leaver, remover):
        drain(client)

    def others() -> None:
        leaver.byebye()
        remover.remove_match(1)
        late.add_match(1, id_rule(c.MATCH_ID_ANY))

    slow.process.meanwhile = others
    assert signal(slow, cookie=7, items=slow.vec(bytes(100))) == 0
    assert 7 in cookies(first)
    assert leaver.connection.traffic.lost == 0 and not len(leaver.connection.queue)
    assert 7 in cookies(remover)
    assert cookies(late) == []
    assert all(at_rest(client) for client in (first, leaver, remover, late))


def test_a_monitor_leaves_while_it_gets_its_copy(world: World, slow: Client, peer: Client) -> None:
    monitor = world.connect(flags=c.HELLO_MONITOR)
    slow.process.meanwhile = monitor.close
    assert slow.send(dst=peer.id, cookie=7, items=slow.vec(bytes(100))) == 0
    assert cookies(peer) == [7]
    assert at_rest(monitor) and at_rest(peer)


NAME = make_item(c.ITEM_NAME, b"a.b\0")


def test_the_name_of_an_activator_is_taken_over(world: World, slow: Client) -> None:
    """ACT-4, ACT-6: what is sent to the name reaches its taker, as if it had been sent before the take-over"""
    waker = world.connect(flags=c.HELLO_ACTIVATOR, items=NAME)
    taker = world.connect()
    slow.process.meanwhile = lambda: taker.acquire(b"a.b")
    assert request(slow, 0, 5, sync=True, items=dst_name(b"a.b") + slow.vec(b"hello")) == PENDING
    message = taker.receive()
    assert (message.cookie, taker.payloads(message)) == (5, [b"hello"])
    assert taker.free(message.offset) == 0
    assert reply(taker, slow.id, 5) == 0
    assert results(world) == [0]
    assert at_rest(waker) and at_rest(taker)


def test_the_name_of_an_activator_is_taken_over_and_passed_on(world: World, slow: Client) -> None:
    """ACT-4, NAME-15: then its present owner gets the message"""
    waker = world.connect(flags=c.HELLO_ACTIVATOR, items=NAME)
    taker, waiter = world.connect(), world.connect()

    def change_hands() -> None:
        assert taker.acquire(b"a.b") == 0
        assert waiter.acquire(b"a.b", c.NAME_QUEUE) == 0
        taker.close()

    slow.process.meanwhile = change_hands
    assert request(slow, 0, 5, items=dst_name(b"a.b") + slow.vec(b"hello")) == 0
    assert cookies(waiter) == [5]
    assert reply(waiter, slow.id, 5) == 0
    assert at_rest(waker) and at_rest(waiter)


def test_a_name_goes_back_to_its_activator(world: World, slow: Client, peer: Client) -> None:
    """NAME-17: what is sent to the name goes along"""
    waker = world.connect(flags=c.HELLO_ACTIVATOR, items=NAME)
    assert peer.acquire(b"a.b") == 0
    assert slow.send(dst=peer.id, cookie=4) == 0
    slow.process.meanwhile = lambda: peer.release_name(b"a.b")
    assert slow.send(items=dst_name(b"a.b") + slow.vec(b"hello"), cookie=5) == 0
    assert cookies(waker) == [5]
    assert cookies(peer) == [4]
    assert at_rest(waker) and at_rest(peer)


def test_a_name_gets_another_owner(world: World, slow: Client, peer: Client) -> None:
    """NAME-16: what is sent to the name stays"""
    other = world.connect()
    assert peer.acquire(b"a.b") == 0
    assert other.acquire(b"a.b", c.NAME_QUEUE) == 0
    slow.process.meanwhile = lambda: peer.release_name(b"a.b")
    assert slow.send(items=dst_name(b"a.b") + slow.vec(b"hello"), cookie=5) == 0
    assert cookies(peer) == [5]
    assert cookies(other) == []


def test_a_name_gets_free(world: World, slow: Client, peer: Client) -> None:
    assert peer.acquire(b"a.b") == 0
    slow.process.meanwhile = lambda: peer.release_name(b"a.b")
    assert slow.send(items=dst_name(b"a.b") + slow.vec(b"hello"), cookie=5) == 0
    assert cookies(peer) == [5]


@pytest.mark.parametrize("readable", [True, False])
def test_an_awaited_reply_comes_from_another_thread(slow: Client, peer: Client, readable: bool) -> None:
    """REP-7: a request has one reply; the second one is refused."""
    assert request(peer, slow.id, 1, sync=True) == PENDING
    done: list[int] = []

    def answer_first() -> None:
        assert reply(slow, peer.id, 1, cookie=10, items=slow.vec(b"first")) == 0
        done.extend(results(slow.world))

    slow.process.meanwhile = answer_first
    late = slow.vec(b"late") if readable else make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 8, 0xDEAD000))
    assert reply(slow, peer.id, 1, cookie=11, items=late) == -EPERM
    assert done == [0] and results(slow.world) == []
    assert cookies(slow) == [1]
    assert slots(peer) == 0 and at_rest(slow)
    assert not peer.connection.requests.trackers


def test_the_deadline_of_an_awaited_reply_passes(world: World, slow: Client, peer: Client) -> None:
    deadline = world.host.clock.now + 5
    assert request(peer, slow.id, 1, sync=True, timeout=deadline) == PENDING
    slow.process.meanwhile = lambda: expire(world, deadline)
    assert reply(slow, peer.id, 1, items=slow.vec(b"late")) == -EPERM
    assert results(world) == [-ETIMEDOUT]
    assert cookies(slow) == [1]
    assert at_rest(slow) and at_rest(peer)


def test_who_awaits_a_reply_closes(world: World, slow: Client, peer: Client) -> None:
    assert request(peer, slow.id, 1, sync=True) == PENDING
    slow.process.meanwhile = peer.close
    assert reply(slow, peer.id, 1, items=slow.vec(b"late")) == -EPERM
    assert results(world) == [-ECONNRESET]
    assert cookies(slow) == [1]
    assert at_rest(slow) and at_rest(peer)


def test_a_send_that_was_cancelled_before_it_blocks(world: World, slow: Client, peer: Client) -> None:
    """SYNC-1: the event of the descriptor comes only once."""
    cancel = cancel_fd(slow.process, FakeFile())

    def cancelled() -> None:
        ((_, token, _),) = world.host.watched
        world.domain.cancelled(token)

    slow.process.meanwhile = cancelled
    items = slow.vec(bytes(100))
    assert request(slow, peer.id, 1, sync=True, send_items=cancel, items=items) == PENDING
    assert results(world) == [-ECANCELED]
    assert not world.host.watched[0][2].open
    assert cookies(peer) == [1]
    assert at_rest(slow) and at_rest(peer)


def test_a_connection_that_left_gets_no_match(world: World, slow: Client) -> None:
    slow.process.meanwhile = slow.byebye
    assert slow.add_match(1) == -ECONNRESET
    assert not len(slow.connection.matches)
    assert not listening(world)


def test_a_policy_holder_that_left_gets_no_policy(world: World) -> None:
    name = make_item(c.ITEM_NAME, b"a.b\0")
    holder = world.connect(FakeProcess(uid=1000), flags=c.HELLO_POLICY_HOLDER, items=name, free=False)
    bus = world.domain.buses["1000-test"]
    holder.process.meanwhile = world.control.close
    assert holder.update(name) == -ECONNRESET
    assert len(bus.policy) == 0


def test_a_file_becomes_one_bus_only(world: World) -> None:
    control = world.open_control(FakeProcess(uid=1000))
    inner: list[int] = []
    control.process.meanwhile = lambda: inner.append(world.make_bus(control, b"1000-b"))
    assert world.make_bus(control, b"1000-a") == 0
    assert inner == [-EBADFD]
    assert sorted(world.domain.buses) == ["1000-a", "1000-test"]
    control.close()
    assert list(world.domain.buses) == ["1000-test"]


def test_a_name_of_a_bus_is_taken_once(world: World) -> None:
    slow, quick = world.open_control(FakeProcess(uid=1000)), world.open_control(FakeProcess(uid=1000))
    inner: list[int] = []

    def make() -> None:
        slow.process.meanwhile = lambda: inner.append(world.make_bus(quick, b"1000-a"))

    # The first access is the write-back of kernel_flags, before the name is looked at; the next one is after that.
    slow.process.meanwhile = make
    assert world.make_bus(slow, b"1000-a") < 0
    assert inner == [0]
    quick.close()
    assert list(world.domain.buses) == ["1000-test"]


def test_a_file_becomes_one_connection_only(world: World) -> None:
    fresh = world.open(FakeProcess(uid=1000))
    inner: list[int] = []
    fresh.process.meanwhile = lambda: inner.append(fresh.hello())
    assert fresh.hello() == 0
    assert inner == [-EBADFD]
    assert len(world.domain.buses["1000-test"].connections) == 1
    fresh.close()
    assert not world.domain.buses["1000-test"].connections


# A client that is killed meanwhile: `AbandonedError` says so, when its files may be closed already.


def dies(client: Client, *, closes: bool = True) -> None:
    """The next access to the client's memory blocks until the client is killed."""

    def die() -> None:
        if closes:
            client.close()
        raise AbandonedError("killed")

    client.process.meanwhile = die


@pytest.mark.parametrize("closes", [True, False])
def test_a_killed_sender_queues_nothing(slow: Client, peer: Client, closes: bool) -> None:
    dies(slow, closes=closes)
    assert slow.send(dst=peer.id, cookie=5, items=slow.vec(bytes(100))) == -EFAULT
    assert cookies(peer) == []
    assert at_rest(slow) and at_rest(peer)


@pytest.mark.parametrize("closes", [True, False])
def test_a_killed_sender_of_a_request_leaves_no_tracker(slow: Client, peer: Client, closes: bool) -> None:
    """REP-1."""
    dies(slow, closes=closes)
    assert request(slow, peer.id, 1, items=slow.vec(bytes(100))) == -EFAULT
    assert cookies(peer) == []
    assert slots(slow) == 0
    assert at_rest(slow) and at_rest(peer)


def test_a_killed_sender_whose_metadata_are_read_queues_nothing(world: World, peer: Client) -> None:
    """Not even where a message that lacks metadata would be better than none (SEND-39)."""
    slow = world.connect(FakeProcess(uid=1000))
    monitor = world.connect(flags=c.HELLO_MONITOR, recv=c.ATTACH_CREDS)
    drain(monitor)
    dies(slow)
    assert slow.send(dst=peer.id, cookie=5) == -EFAULT
    assert cookies(peer) == []
    assert [message for message in drain(monitor) if message.cookie == 5] == []
    assert at_rest(slow) and at_rest(peer)


def test_a_killed_sender_of_a_broadcast_reaches_nobody_else(world: World, slow: Client) -> None:
    first, second = observer(world), observer(world)
    for client in (first, second):
        drain(client)
    dies(slow, closes=False)
    assert signal(slow, cookie=7, items=slow.vec(bytes(100))) == -EFAULT
    assert 7 not in cookies(first) + cookies(second)
    assert first.connection.traffic.lost == second.connection.traffic.lost == 0
    assert at_rest(first) and at_rest(second)


def test_a_requester_is_told_of_a_replier_that_is_killed(world: World, slow: Client) -> None:
    """REP-10: its file is closed before the copy of its reply ends; REP-16: or a sibling has it, too."""
    for closes, told in ((False, -EFAULT), (True, -EPIPE)):
        peer = world.connect()
        assert request(peer, slow.id, 3, sync=True) == PENDING
        drain(slow)
        dies(slow, closes=closes)
        assert reply(slow, peer.id, 3, items=slow.vec(bytes(100))) in (-EFAULT, -EPERM)
        assert results(world)[-1] == told
        assert at_rest(peer)


def test_a_killed_maker_makes_nothing(world: World) -> None:
    """FS-24, CLOSE-1: its file is closed already: a bus that it made would leak."""
    process = FakeProcess(uid=1000)
    control = world.open_control(process)
    dies(control)
    assert world.make_bus(control, b"1000-late") == -EFAULT
    assert "1000-late" not in world.domain.buses
    connections = len(world.domain.buses["1000-test"].connections)
    fresh = world.open(process)
    dies(fresh)
    assert fresh.hello() == -EFAULT
    assert len(world.domain.buses["1000-test"].connections) == connections
    assert len(world.domain.users) == 1
