"""SYNC: signals during a synchronous SEND, and its restart."""

from __future__ import annotations

from errno import ECANCELED, ECOMM, ECONNRESET, ENXIO, EPERM, EPIPE, EREMOTEIO, ETIMEDOUT

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.base.call import ERESTARTSYS
from tests.support.core_client import PENDING, Pair, World
from tests.support.core_scenes import (
    FAR,
    RequestFields,
    at_rest,
    cancel_fd,
    cookies,
    drain,
    dst_name,
    events,
    expire,
    pass_files,
    reply,
    request,
    results,
    slots,
)
from tests.support.fake_host import FakeFile


def interrupt(world: World) -> None:
    for call in list(world.domain.waiting):
        world.domain.interrupt(call)


def test_sync_1_only_the_cancel_fd_of_a_blocked_send_is_watched(world: World, pair: Pair) -> None:
    client, server = pair
    file = FakeFile()
    cancel = cancel_fd(client.process, file)
    request(client, server.id, 1, send_items=cancel)
    assert world.host.watched == []
    request(client, server.id, 2, sync=True, send_items=cancel)
    assert [watched[0] for watched in world.host.watched] == [file]
    reply(server, client.id, 2)
    assert not world.host.watched[0][2].open


def test_sync_2_a_restarted_send_waits_on_and_queues_nothing(world: World, pair: Pair) -> None:
    client, server = pair
    now = world.host.clock.now
    assert request(client, server.id, 7, sync=True, timeout=now + 9) == PENDING
    interrupt(world)
    assert results(world) == [-ERESTARTSYS]
    assert request(client, server.id, 7, sync=True, timeout=now + 9) == PENDING
    assert cookies(server) == [7]
    assert slots(client) == 1
    expire(world, now + 9)
    assert results(world) == [-ETIMEDOUT]
    assert at_rest(client) and at_rest(server)


def test_sync_2_a_restarted_send_can_be_interrupted_again_and_answered(world: World, pair: Pair) -> None:
    client, server = pair
    for _ in range(5):
        assert request(client, server.id, 7, sync=True) == PENDING
        interrupt(world)
    assert results(world) == [-ERESTARTSYS] * 5
    assert request(client, server.id, 7, sync=True) == PENDING
    assert reply(server, client.id, 7, cookie=8) == 0
    (call,) = world.domain.completed
    client.last_call = call
    assert client.last_message().cookie == 8
    assert cookies(server) == [7]


def test_sync_2_only_the_same_receiver_and_cookie_are_a_restart(world: World, pair: Pair) -> None:
    client, server = pair
    other = world.connect()
    request(client, server.id, 7, sync=True)
    interrupt(world)
    assert request(client, server.id, 8, sync=True) == PENDING
    assert request(client, other.id, 7, sync=True) == PENDING
    assert request(client, server.id, 7) == 0  # not synchronous
    assert cookies(server) == [7, 8, 7]
    assert cookies(other) == [7]


def test_sync_2_a_blocked_send_of_another_thread_is_no_restart(world: World, pair: Pair) -> None:
    client, server = pair
    assert request(client, server.id, 7, sync=True) == PENDING
    assert request(client, server.id, 7, sync=True) == PENDING
    assert cookies(server) == [7, 7]


def test_sync_2_after_the_deadline_the_restart_is_etimedout(world: World, pair: Pair) -> None:
    client, server = pair
    now = world.host.clock.now
    request(client, server.id, 7, sync=True, timeout=now + 5)
    interrupt(world)
    world.host.clock.now = now + 5
    assert request(client, server.id, 7, sync=True, timeout=now + 5) == -ETIMEDOUT
    assert cookies(server) == [7]
    assert at_rest(client) and at_rest(server)


def test_sync_2_a_take_over_between_interruption_and_restart_does_no_harm(world: World) -> None:
    client = world.connect()
    name = make_item(c.ITEM_NAME, b"a.b\0")
    world.connect(flags=c.HELLO_ACTIVATOR, items=name)
    by_name: RequestFields = {"items": dst_name(b"a.b")}
    assert request(client, 0, 7, sync=True, **by_name) == PENDING
    interrupt(world)
    taker = world.connect()
    taker.acquire(b"a.b")
    assert request(client, 0, 7, sync=True, **by_name) == PENDING
    assert cookies(taker) == [7]
    assert reply(taker, client.id, 7) == 0
    assert results(world) == [-ERESTARTSYS, 0]


def test_sync_3_the_tracker_of_an_interrupted_send_goes_silently_at_its_deadline(world: World, pair: Pair) -> None:
    client, server = pair
    now = world.host.clock.now
    file = FakeFile()
    cancel = cancel_fd(client.process, file)
    request(client, server.id, 7, sync=True, timeout=now + 5, send_items=cancel)
    interrupt(world)
    assert file.open_count == 0
    assert world.domain.next_deadline() == now + 5
    expire(world, now + 5)
    assert events(client) == []
    assert reply(server, client.id, 7) == -EPERM
    assert results(world) == [-ERESTARTSYS]
    drain(server)
    assert at_rest(client) and at_rest(server)


@pytest.mark.parametrize("change", [-3, 4])
def test_sync_3_a_call_that_is_made_again_has_the_deadline_that_it_names(world: World, pair: Pair, change: int) -> None:
    client, server = pair
    now = world.host.clock.now
    request(client, server.id, 7, sync=True, timeout=now + 5)
    interrupt(world)
    assert results(world) == [-ERESTARTSYS]
    assert request(client, server.id, 7, sync=True, timeout=now + 5 + change) == PENDING
    assert world.domain.next_deadline() <= now + 5 + change
    expire(world, now + 4 + change)
    assert results(world) == []
    expire(world, now + 5 + change)
    assert results(world) == [-ETIMEDOUT]
    assert cookies(server) == [7]
    assert at_rest(client) and at_rest(server)


@pytest.mark.parametrize("deadline", [1, 1 << 63])
def test_sync_3_a_call_that_is_made_again_too_late_is_etimedout(world: World, pair: Pair, deadline: int) -> None:
    client, server = pair
    world.host.clock.now = 1000
    request(client, server.id, 7, sync=True)
    interrupt(world)
    assert request(client, server.id, 7, sync=True, timeout=deadline) == -ETIMEDOUT
    assert reply(server, client.id, 7) == -EPERM
    drain(server)
    assert at_rest(client) and at_rest(server)


def test_sync_3_calls_that_are_made_again_for_ever_leave_no_deadlines_behind(world: World, pair: Pair) -> None:
    client, server = pair
    for number in range(5000):
        assert request(client, server.id, 7, sync=True, timeout=FAR + number % 2) == PENDING
        interrupt(world)
    assert len(world.domain.deadlines) <= 2048
    assert slots(client) == 1


def test_sync_3_a_cancel_fd_is_watched_again_after_the_restart(world: World, pair: Pair) -> None:
    client, server = pair
    file = FakeFile()
    cancel = cancel_fd(client.process, file)
    request(client, server.id, 7, sync=True, send_items=cancel)
    interrupt(world)
    world.domain.cancelled(world.host.watched[0][1])
    assert results(world) == [-ERESTARTSYS]
    request(client, server.id, 7, sync=True, send_items=cancel)
    assert file.open_count == 1
    world.domain.cancelled(world.host.watched[1][1])
    assert results(world) == [-ECANCELED]
    assert file.open_count == 0


def test_sync_4_a_reply_during_the_interruption_is_kept_for_the_restart(world: World, pair: Pair) -> None:
    client, server = pair
    file = FakeFile()
    request(client, server.id, 7, sync=True)
    interrupt(world)
    items = server.vec(b"answer") + pass_files(server.process, file)
    assert reply(server, client.id, 7, cookie=8, items=items) == 0
    assert reply(server, client.id, 7) == -EPERM
    results(world)
    cancel = FakeFile()
    assert request(client, server.id, 7, sync=True, send_items=cancel_fd(client.process, cancel)) == 0
    assert cancel.open_count == 0
    message = client.last_message()
    assert (message.cookie, client.payloads(message)) == (8, [b"answer"])
    assert message.installation is not None
    message.installation.done()
    assert client.free(message.offset) == 0
    assert cookies(server) == [7]
    assert file.open_count == 0
    assert at_rest(client) and at_rest(server)


def test_sync_4_a_reply_nobody_fetches_goes_at_the_deadline(world: World, pair: Pair) -> None:
    client, server = pair
    now = world.host.clock.now
    file = FakeFile()
    request(client, server.id, 7, sync=True, timeout=now + 5)
    interrupt(world)
    reply(server, client.id, 7, items=server.vec(b"answer") + pass_files(server.process, file))
    assert file.open_count == 1
    drain(server)
    expire(world, now + 5)
    assert file.open_count == 0
    assert at_rest(client) and at_rest(server)


def test_sync_4_a_reply_that_failed_during_the_interruption_fails_the_restart(world: World) -> None:
    client, server = world.connect(flags=0), world.connect()
    request(client, server.id, 7, sync=True)
    interrupt(world)
    assert reply(server, client.id, 7, items=pass_files(server.process, FakeFile())) == -ECOMM
    assert request(client, server.id, 7, sync=True) == -EREMOTEIO
    assert cookies(server) == [7]
    assert at_rest(client) and at_rest(server)


def test_sync_4_an_answered_tracker_does_not_hide_an_older_one_of_the_same_cookie(world: World, pair: Pair) -> None:
    client, server = pair
    assert request(client, server.id, 7, sync=True) == PENDING
    assert request(client, server.id, 7, sync=True) == PENDING
    newest = list(world.domain.waiting)[-1]
    world.domain.interrupt(newest)
    assert reply(server, client.id, 7, cookie=1) == 0  # kept for the restart of the second
    assert reply(server, client.id, 7, cookie=2) == 0  # ends the first
    assert results(world) == [-ERESTARTSYS, 0]


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("who", ["client", "server", "bus"])
def test_sync_5_ends_of_connections_during_an_interruption_leave_nothing(
    world: World, pair: Pair, answered: bool, who: str
) -> None:
    client, server = pair
    file = FakeFile()
    request(client, server.id, 7, sync=True)
    interrupt(world)
    if answered:
        reply(server, client.id, 7, items=pass_files(server.process, file))
    {"client": client, "server": server, "bus": world.control}[who].close()
    expire(world, FAR)
    assert file.open_count == 0
    if who == "client":
        assert slots(client) == 1  # the request is still queued at the server
        drain(server)
    assert at_rest(client) and at_rest(server)
    assert results(world) == [-ERESTARTSYS]


def test_sync_4_a_reply_outlives_its_replier(world: World, pair: Pair) -> None:
    """A reply that was accepted is returned although the replier has left meanwhile."""
    client, server = pair
    request(client, server.id, 7, sync=True, items=b"")
    interrupt(world)
    assert reply(server, client.id, 7, cookie=8) == 0
    drain(server)
    assert server.byebye() == 0
    assert request(client, server.id, 7, sync=True) == 0
    assert client.last_message().cookie == 8
    assert request(client, server.id, 7, sync=True) == -ENXIO


def test_rep_10_rep_11_an_interrupted_send_learns_of_epipe_when_it_is_restarted(world: World, pair: Pair) -> None:
    client, server = pair
    client_2 = world.connect()
    for each in pair[0], client_2:
        request(each, server.id, 7, sync=True)
    interrupt(world)
    assert server.recv(flags=c.RECV_DROP) == 0
    assert request(client, server.id, 7, sync=True) == -EPIPE
    server.close()
    assert request(client_2, server.id, 7, sync=True) == -EPIPE
    assert at_rest(client) and at_rest(client_2) and at_rest(server)


def test_sync_4_dropping_a_request_that_is_answered_does_not_lose_the_answer(world: World, pair: Pair) -> None:
    client, server = pair
    request(client, server.id, 7, sync=True)
    interrupt(world)
    assert reply(server, client.id, 7, cookie=8) == 0
    assert server.recv(flags=c.RECV_DROP) == 0
    assert request(client, server.id, 7, sync=True) == 0
    assert client.last_message().cookie == 8


def test_sync_2_a_restart_by_name_waits_for_whom_the_request_went_to(world: World, pair: Pair) -> None:
    client, server = pair
    server.acquire(b"a.b", c.NAME_ALLOW_REPLACEMENT)
    by_name: RequestFields = {"items": dst_name(b"a.b")}
    assert request(client, 0, 7, sync=True, **by_name) == PENDING
    interrupt(world)
    other = world.connect()
    other.acquire(b"a.b", c.NAME_REPLACE_EXISTING)
    assert request(client, 0, 7, sync=True, **by_name) == PENDING
    assert cookies(other) == []
    assert reply(server, client.id, 7) == 0
    assert results(world) == [-ERESTARTSYS, 0]


def test_sync_5_the_end_of_the_process_ends_the_wait(world: World, pair: Pair) -> None:
    client, server = pair
    request(client, server.id, 7, sync=True)
    client.close()
    assert results(world) == [-ECONNRESET]
    drain(server)
    assert at_rest(server)


def test_shut_2_a_blocked_send_ends_with_econnreset_or_epipe(world: World, pair: Pair) -> None:
    client, server = pair
    other = world.connect()
    request(other, server.id, 1, sync=True)  # server goes before other
    request(server, client.id, 2, sync=True)  # client goes before server
    world.control.close()
    assert sorted(results(world)) == sorted([-EPIPE, -EPIPE])
    world = World()
    client, server = world.connect(), world.connect()
    request(client, server.id, 1, sync=True)  # client goes first
    world.control.close()
    assert results(world) == [-ECONNRESET]


def test_interrupting_a_call_that_ended_does_nothing(world: World, pair: Pair) -> None:
    """SYNC-3: the interruption may come too late (a race)."""
    client, server = pair
    request(client, server.id, 7, sync=True)
    (call,) = world.domain.waiting
    reply(server, client.id, 7)
    world.domain.interrupt(call)
    assert results(world) == [0]
