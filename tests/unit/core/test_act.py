"""ACT: activators hold a name and queue its messages until a program acquires it."""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENXIO, EOPNOTSUPP, EPERM, EPIPE
from struct import pack
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import PENDING, Client, FakeProcess, World
from tests.support.core_scenes import (
    FAR,
    at_rest,
    cookies,
    drain,
    dst_name,
    events,
    expire,
    observer,
    pass_files,
    pass_memfd,
    reply,
    request,
    results,
    slots,
)
from tests.support.fake_host import FakeFile, sealed_memfd

ADD, REMOVE, CHANGE = c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE
ID_ADD, ID_REMOVE, DEAD = c.ITEM_ID_ADD, c.ITEM_ID_REMOVE, c.ITEM_REPLY_DEAD
N = b"com.example"
BY_NAME = dst_name(N)
FLAG = c.NAME_ACTIVATOR


def activator(world: World, name: bytes = N, *, access: bytes = b"", flags: int = 0, **more: Any) -> Client:
    items = make_item(c.ITEM_NAME, name + b"\0") + access
    return world.connect(flags=c.HELLO_ACTIVATOR | flags, items=items, **more)


def access(kind: int, level: int, ident: int = 0) -> bytes:
    return make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", kind, level, ident))


def test_act_1_a_free_name_is_owned_with_the_flag(world: World) -> None:
    watcher = observer(world)
    waker = activator(world)
    assert events(watcher) == [(ID_ADD, waker.id, 2), (ADD, 0, 0, waker.id, FLAG, N)]


def test_act_1_a_name_with_an_owner_is_only_registered_and_inherited(world: World) -> None:
    owner = world.connect()
    owner.acquire(N)
    watcher = observer(world)
    waker = activator(world)
    assert events(watcher) == [(ID_ADD, waker.id, 2)]
    owner.release_name(N)
    assert events(watcher) == [(CHANGE, owner.id, 0, waker.id, FLAG, N)]


@pytest.mark.parametrize("owned", [False, True])
def test_act_2_a_second_activator_is_eexist_and_leaves_the_first_alone(world: World, owned: bool) -> None:
    owner = world.connect()
    if owned:
        owner.acquire(N)
    waker = activator(world)
    watcher = observer(world)
    second = world.open()
    items = make_item(c.ITEM_NAME, N + b"\0")
    assert second.hello(flags=c.HELLO_ACTIVATOR, items=items) == -EEXIST
    assert [event[0] for event in events(watcher)] == [ID_ADD, ID_REMOVE]
    if not owned:
        assert owner.acquire(N) == 0
    assert owner.release_name(N) == 0
    assert events(watcher)[-1] == (CHANGE, owner.id, 0, waker.id, FLAG, N)
    waker.close()
    assert second.hello(flags=c.HELLO_ACTIVATOR, items=items) == 0


def test_act_2_pol_8_an_activator_has_one_name_and_no_wildcard(world: World) -> None:
    client = world.open()
    two = make_item(c.ITEM_NAME, b"a.b\0") + make_item(c.ITEM_NAME, b"a.c\0")
    assert client.hello(flags=c.HELLO_ACTIVATOR, items=two) == -EINVAL
    assert client.hello(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, b"a.*\0")) == -EINVAL


def test_act_3_messages_wait_at_the_activator_which_may_read_them(world: World) -> None:
    waker = activator(world)
    client = world.connect()
    assert waker.handle.poll() & 1 == 0
    assert client.send(items=BY_NAME, cookie=1) == 0
    assert waker.handle.poll() & 1 == 1
    assert client.send(dst=waker.id) == -ENXIO
    assert waker.receive(flags=c.RECV_PEEK).cookie == 1
    assert cookies(waker) == [1]


def test_act_3_limits_and_policy_are_those_of_any_destination(world: World) -> None:
    activator(world)
    stranger = world.connect(FakeProcess(uid=2000, pid=200))
    assert stranger.send(items=BY_NAME) == -EPERM
    client = world.connect()
    assert [client.send(items=BY_NAME) for _ in range(32)] == [0] * 32
    assert client.send(items=BY_NAME) != 0


def test_act_4_a_taker_gets_all_messages_in_order_with_their_payload(world: World) -> None:
    waker = activator(world, flags=c.HELLO_ACCEPT_FD)
    client, taker = observer(world), world.connect()
    drain(client)
    file, memfd = FakeFile(), sealed_memfd(8)
    for cookie in range(1, 6):
        client.send(items=BY_NAME + client.vec(b"payload %d" % cookie), cookie=cookie, priority=-cookie)
    items = pass_files(client.process, file) + pass_memfd(client.process, 8, file=memfd)
    client.send(items=BY_NAME + items, cookie=6)
    world.domain.changed.clear()
    assert taker.acquire(N) == 0
    assert taker.handle.poll() & 1 and not waker.handle.poll() & 1
    assert taker.handle in world.domain.changed and waker.handle in world.domain.changed
    assert taker.connection.pool.slices == 5  # payloads only
    assert events(client) == [(CHANGE, waker.id, FLAG, taker.id, 0, N)]
    for cookie in range(1, 6):
        message = taker.receive()
        assert (message.cookie, message.src_id, message.priority) == (cookie, client.id, -cookie)
        assert taker.payloads(message) == [b"payload %d" % cookie]
        assert taker.free(message.offset) == 0
    assert cookies(taker) == [6]
    assert (file.open_count, memfd.open_count) == (0, 0)
    assert at_rest(taker) and at_rest(waker)


def test_act_4_nothing_but_the_payload_is_copied(world: World) -> None:
    """The bytes behind it, in its last 8 bytes, belong to another message: an information leak if copied."""
    waker, sender, taker = activator(world), world.connect(), world.connect()
    assert sender.send(items=BY_NAME + sender.vec(b"S" * 64)) == 0
    assert waker.free(waker.receive().offset) == 0
    assert sender.send(items=BY_NAME + sender.vec(b"hello")) == 0
    assert b"helloSSS" in bytes(waker.pool)
    assert taker.acquire(N) == 0
    assert b"hello" in bytes(taker.pool) and b"S" not in bytes(taker.pool)


def test_act_4_messages_of_a_restricted_queue_keep_their_order_by_priority(world: World) -> None:
    activator(world)
    client, taker = world.connect(), world.connect()
    for cookie, priority in ((1, 0), (2, -9), (3, 5), (4, -9)):
        client.send(items=BY_NAME, cookie=cookie, priority=priority)
    taker.acquire(N)
    order = [taker.receive(flags=c.RECV_USE_PRIORITY, priority=9).cookie for _ in range(4)]
    assert order == [2, 4, 1, 3]


def test_act_4_messages_come_behind_what_the_taker_has_already(world: World) -> None:
    activator(world)
    client, taker = world.connect(), world.connect()
    client.send(items=BY_NAME, cookie=1)
    client.send(dst=taker.id, cookie=2)
    taker.acquire(N)
    client.send(items=BY_NAME, cookie=3)
    assert cookies(taker) == [2, 1, 3]


def test_act_5_what_cannot_move_is_lost_and_counted_and_the_rest_moves(world: World) -> None:
    waker = activator(world, flags=c.HELLO_ACCEPT_FD)
    client = world.connect()
    taker = world.connect(flags=0, pool_size=4096)
    file, memfd = FakeFile(), sealed_memfd(8)
    client.send(items=BY_NAME, cookie=1)
    client.send(items=BY_NAME + pass_files(client.process, file), cookie=2)
    client.send(items=BY_NAME + client.vec(bytes(5000)) + pass_memfd(client.process, 8, file=memfd), cookie=3)
    client.send(items=BY_NAME + client.vec(b"fits"), cookie=4)
    client.send(items=BY_NAME + client.vec(bytes(5000)), cookie=5)
    assert taker.acquire(N) == 0
    assert taker.connection.traffic.lost == 3
    assert (file.open_count, memfd.open_count) == (0, 0)
    assert taker.recv() != 0 and taker.out(40) == 3
    assert cookies(taker) == [1, 4]
    assert at_rest(waker) and at_rest(taker)


def test_act_5_a_lost_request_gives_its_slot_back_when_its_tracker_ends(world: World) -> None:
    activator(world, flags=c.HELLO_ACCEPT_FD)
    client, taker = world.connect(), world.connect(flags=0)
    file = FakeFile()
    request(client, 0, 1, items=BY_NAME + pass_files(client.process, file))
    taker.acquire(N)
    assert file.open_count == 0
    assert slots(client) == 1
    taker.close()
    expire(world, FAR)
    assert events(client) == [(c.ITEM_REPLY_TIMEOUT, 1)]
    assert slots(client) == 0


def test_act_6_the_obligation_to_reply_moves_along(world: World) -> None:
    waker = activator(world)
    client, taker = world.connect(), world.connect()
    request(client, 0, 1, items=BY_NAME)
    assert request(client, 0, 2, items=BY_NAME, sync=True) == PENDING
    drain(waker)  # read or not, the taker has to answer
    request(client, 0, 3, items=BY_NAME)
    taker.acquire(N)
    assert cookies(taker) == [3]
    assert [reply(taker, client.id, cookie) for cookie in (1, 2, 3)] == [0, 0, 0]
    assert results(world) == [0]
    assert [message.cookie_reply for message in drain(client)] == [1, 3]
    assert at_rest(waker) and at_rest(taker)
    assert not slots(client)


def test_act_6_obligations_to_the_taker_itself_stay(world: World) -> None:
    waker = activator(world)
    taker = world.connect()
    request(taker, 0, 1, items=BY_NAME)
    taker.acquire(N)
    assert cookies(taker) == [1]
    assert reply(taker, taker.id, 1) == -EPERM
    waker.close()
    assert events(taker) == [(DEAD, 1)]
    assert not slots(taker)


@pytest.mark.parametrize("by_close", [False, True])
def test_act_7_the_name_goes_to_a_waiter_and_then_back(world: World, by_close: bool) -> None:
    waker = activator(world)
    owner, waiter = world.connect(), world.connect()
    owner.acquire(N)
    waiter.acquire(N, c.NAME_QUEUE)
    watcher = world.connect()
    watcher.add_match(1, make_item(CHANGE, pack("<QQQQ", c.U64_MAX, 0, c.U64_MAX, 0)))
    for client in (owner, waiter):
        if by_close:
            client.close()
        else:
            client.release_name(N)
    assert events(watcher) == [
        (CHANGE, owner.id, 0, waiter.id, c.NAME_QUEUE, N),
        (CHANGE, waiter.id, c.NAME_QUEUE, waker.id, FLAG, N),
    ]


def test_act_7_take_over_and_hand_back_can_go_on_for_ever(world: World) -> None:
    waker = activator(world)
    client = world.connect()
    for cookie in range(1, 50):
        request(client, 0, cookie, items=BY_NAME + client.vec(b"x" * 100))
        taker = world.connect()
        taker.acquire(N)
        if cookie % 3:
            assert reply(taker, client.id, cookie) == 0
            assert taker.recv(flags=c.RECV_DROP) == 0
        taker.close()
        if not cookie % 3:
            assert cookies(waker) == [cookie]
        drain(client)
    expire(world, FAR)  # requests without a reply
    assert len(events(client)) == 16
    assert at_rest(waker) and at_rest(client)


def test_act_8_an_activator_that_leaves_while_another_owns_the_name(world: World) -> None:
    waker = activator(world)
    owner = world.connect()
    owner.acquire(N)
    watcher = observer(world)
    waker.close()
    assert events(watcher) == [(ID_REMOVE, waker.id, 2)]
    owner.release_name(N)
    assert events(watcher) == [(REMOVE, owner.id, 0, 0, 0, N)]


def test_act_8_an_activator_that_leaves_with_its_name_and_messages(world: World) -> None:
    waker = activator(world)
    client = world.connect()
    file = FakeFile()
    other = observer(world)
    request(client, 0, 1, items=BY_NAME)
    assert request(client, 0, 2, items=BY_NAME, sync=True) == PENDING
    assert client.send(items=BY_NAME + pass_files(client.process, file)) != 0  # it accepts none
    client.send(items=BY_NAME + client.vec(b"x"))
    waker.close()
    assert events(client) == [(DEAD, 1)]
    assert results(world) == [-EPIPE]
    assert events(other) == [(REMOVE, waker.id, FLAG, 0, 0, N), (ID_REMOVE, waker.id, 2)]
    assert at_rest(client) and at_rest(waker)
    assert world.domain.buses["1000-test"].names.find(N) is None


def test_act_9_the_activators_policy_holds_while_another_owns_the_name(world: World) -> None:
    talk = access(c.POLICY_ACCESS_USER, c.POLICY_TALK, 2000)
    waker = activator(world, access=talk)
    owner = world.connect()
    owner.acquire(N)
    friend = world.connect(FakeProcess(uid=2000, pid=200))
    assert friend.send(items=BY_NAME) == 0
    assert friend.send(dst=owner.id) == 0
    waker.close()
    assert friend.send(items=BY_NAME) == -EPERM


def test_act_10_what_an_activator_may_not_do(world: World) -> None:
    waker, client = activator(world), world.connect()
    refused = [
        waker.acquire(b"a.b"),
        waker.release_name(N),
        waker.send(dst=client.id),
        waker.byebye(),
        waker.update(),
        waker.add_match(1),
    ]
    assert refused == [-EOPNOTSUPP] * 6


def test_act_11_a_message_the_activator_peeked_at_stays_readable_there(world: World) -> None:
    waker = activator(world)
    client, taker = world.connect(), world.connect()
    client.send(items=BY_NAME + client.vec(b"payload"), cookie=5)
    peeked = waker.receive(flags=c.RECV_PEEK)
    taker.acquire(N)
    message = taker.receive()
    assert taker.payloads(message) == [b"payload"]
    for _ in range(5):
        taker.release_name(N)
        client.send(items=BY_NAME + client.vec(b"\xff" * 7))
        taker.acquire(N)
    assert waker.payloads(peeked) == [b"payload"]
    assert waker.read_message(peeked.offset, peeked.size, 0).cookie == 5
    assert waker.free(peeked.offset) == 0
    assert at_rest(waker)
