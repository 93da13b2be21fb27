"""REP: trackers of expected replies, and the synchronous SEND."""

from __future__ import annotations

from errno import (
    ECANCELED,
    ECOMM,
    ECONNRESET,
    EFAULT,
    EMLINK,
    ENOBUFS,
    ENXIO,
    EPERM,
    EPIPE,
    EREMOTEIO,
    ETIMEDOUT,
    EXFULL,
)
from struct import pack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import PENDING, Client, FakeProcess, Pair, Received, World
from tests.support.core_scenes import (
    FAR,
    at_rest,
    cancel_fd,
    cookies,
    drain,
    dst_name,
    event,
    events,
    expire,
    id_change,
    pass_files,
    pass_memfd,
    reply,
    request,
    results,
    slots,
)
from tests.support.fake_host import FakeFile

DEAD, TIMEOUT = c.ITEM_REPLY_DEAD, c.ITEM_REPLY_TIMEOUT


@pytest.fixture
def pair(world: World) -> tuple[Client, Client]:
    """A requester and a replier."""
    return world.connect(), world.connect()


def sync_reply(client: Client) -> Received:
    """The reply that ended the last blocked SEND of `client`."""
    (call,) = client.world.domain.completed
    client.world.domain.completed.clear()
    assert call.result == 0
    client.last_call = call
    client.last = call.returned(72)
    return client.last_message()


def vec(size: int, address: int = 0) -> bytes:
    return make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", size, address))


def test_rep_1_a_request_entitles_its_receiver_to_one_reply_with_that_cookie(world: World, pair: Pair) -> None:
    client, server = pair
    other = world.connect()
    assert request(client, server.id, 7) == 0
    assert reply(other, client.id, 7) == -EPERM
    assert reply(server, other.id, 7) == -EPERM
    assert reply(server, client.id, 8) == -EPERM
    assert reply(server, client.id, 7, cookie=70) == 0
    assert reply(server, client.id, 7, cookie=71) == -EPERM
    (message,) = drain(client)
    assert (message.cookie, message.cookie_reply, message.src_id) == (70, 7, server.id)
    drain(server)
    assert at_rest(client) and at_rest(server)


def test_rep_1_a_request_that_was_not_delivered_has_no_tracker(world: World) -> None:
    client, server = world.connect(), world.connect(pool_size=4096)
    assert request(client, server.id, 7, items=vec(3000, client.process.place(bytes(3000)))) == -EXFULL
    assert slots(client) == 0
    assert reply(server, client.id, 7) == -EPERM


def test_rep_2_lim_13_the_129th_pending_request_is_emlink(world: World) -> None:
    client = world.connect()
    servers = [world.connect() for _ in range(8)]
    for cookie in range(128):
        assert request(client, servers[cookie % 8].id, cookie + 1) == 0
    assert request(client, servers[0].id, 500) == -EMLINK
    assert request(client, servers[0].id, 500, sync=True) == -EMLINK
    assert reply(servers[0], client.id, 1) == 0
    assert request(client, servers[1].id, 500) == -EMLINK  # REP-3: still queued at its receiver
    servers[0].receive()
    assert request(client, servers[1].id, 500) == 0
    assert request(client, servers[1].id, 501) == -EMLINK


def test_rep_3_a_timed_out_request_keeps_its_slot_until_it_is_dequeued(world: World, pair: Pair) -> None:
    client, server = pair
    for cookie in range(1, 33):
        assert request(client, server.id, cookie, timeout=world.host.clock.now + 1) == 0
    expire(world, world.host.clock.now + 1)
    assert not client.connection.requests.trackers
    assert slots(client) == 32
    for left in range(31, 15, -1):
        server.receive()
        assert slots(client) == left
    for left in range(15, -1, -1):
        assert server.recv(flags=c.RECV_DROP) == 0
        assert slots(client) == left


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("end", ["reply", "drop", "timeout", "peer", "cancel", "interrupt"])
@pytest.mark.parametrize("dequeued", [False, True])
def test_rep_2_rep_3_every_end_of_a_request_gives_exactly_one_slot_back(
    sync: bool, end: str, dequeued: bool
) -> None:
    world = World()
    client, server = world.connect(), world.connect()
    file = FakeFile()
    cancel = cancel_fd(client.process, file) if sync else b""
    assert request(client, server.id, 5, sync=sync, timeout=world.host.clock.now + 9, send_items=cancel) == (
        PENDING if sync else 0
    )
    assert slots(client) == 1
    if dequeued and end != "drop":
        drain(server)
        assert slots(client) == 1
    if end == "reply":
        assert reply(server, client.id, 5) == 0
    elif end == "drop":
        assert server.recv(flags=c.RECV_DROP) == 0
    elif end == "timeout":
        expire(world, world.host.clock.now + 9)
    elif end == "peer":
        server.close()
    elif end == "cancel" and sync:
        world.domain.cancelled(world.host.watched[0][1])
    elif end == "interrupt" and sync:
        (call,) = world.domain.waiting
        world.domain.interrupt(call)
        expire(world, world.host.clock.now + 9)
    else:
        expire(world, world.host.clock.now + 9)
    if end not in ("drop", "peer"):
        assert slots(client) == (0 if dequeued else 1)
        drain(server)
        assert at_rest(server)
    assert slots(client) == 0
    assert file.open_count == 0
    assert not world.domain.waiting
    if sync and end == "reply":
        sync_reply(client)
    client.close()
    assert client.connection.user.account.used == server.connection.pool._charged


def test_rep_4_timeout_is_absolute_and_reported_once(world: World, pair: Pair) -> None:
    client, server = pair
    now = world.host.clock.now
    request(client, server.id, 7, timeout=now + 100)
    assert world.domain.next_deadline() == now + 100
    expire(world, now + 99)
    assert events(client) == []
    expire(world, now + 100)
    assert events(client) == [(TIMEOUT, 7)]
    assert world.domain.next_deadline() == 0
    assert reply(server, client.id, 7) == -EPERM


def test_rep_4_a_deadline_in_the_past_delivers_and_times_out_at_once(world: World, pair: Pair) -> None:
    client, server = pair
    assert request(client, server.id, 7, timeout=1) == 0
    assert world.domain.next_deadline() == 1
    expire(world, world.host.clock.now)
    assert events(client) == [(TIMEOUT, 7)]
    assert cookies(server) == [7]


def test_rep_5_with_bit_63_async_never_times_out_and_sync_at_once(world: World, pair: Pair) -> None:
    client, server = pair
    assert request(client, server.id, 1, timeout=c.U64_MAX) == 0
    expire(world, (1 << 63) - 1)
    assert events(client) == []
    assert request(client, server.id, 2, timeout=1 << 63, sync=True) == -ETIMEDOUT
    assert cookies(server) == [1, 2]
    assert reply(server, client.id, 2) == -EPERM
    assert reply(server, client.id, 1) == 0


def test_rep_6_the_request_stays_queued_after_its_timeout(world: World, pair: Pair) -> None:
    client, server = pair
    request(client, server.id, 7, timeout=1)
    expire(world, 2)
    assert cookies(server) == [7]


def test_rep_7_a_reply_that_cannot_be_delivered_uses_its_tracker_up(world: World) -> None:
    client, server = world.connect(flags=0), world.connect()
    request(client, server.id, 7)
    assert reply(server, client.id, 7, items=pass_files(server.process, FakeFile())) == -ECOMM
    assert reply(server, client.id, 7) == -EPERM
    drain(server)
    assert at_rest(client) and at_rest(server)
    expire(world, FAR)
    assert events(client) == []


def test_rep_8_of_equal_cookies_the_newest_is_answered_first(world: World, pair: Pair) -> None:
    client, server = pair
    now = world.host.clock.now
    request(client, server.id, 7, timeout=now + 1)
    request(client, server.id, 7, timeout=now + 2)
    assert reply(server, client.id, 7) == 0
    drain(client)
    expire(world, now + 1)
    assert events(client) == [(TIMEOUT, 7)]
    expire(world, now + 2)
    assert events(client) == []


def test_rep_8_the_same_cookie_at_two_repliers_is_two_trackers(world: World, pair: Pair) -> None:
    client, server = pair
    other = world.connect()
    request(client, server.id, 7)
    request(client, other.id, 7)
    assert reply(server, client.id, 7) == 0
    assert reply(server, client.id, 7) == -EPERM
    assert reply(other, client.id, 7) == 0


def test_rep_9_a_reply_may_be_addressed_by_the_requesters_name(world: World, pair: Pair) -> None:
    client, server = pair
    client.acquire(b"a.b")
    world.connect().acquire(b"a.c")
    request(client, server.id, 7)
    assert reply(server, 0, 7, items=dst_name(b"a.c")) == -EPERM
    assert reply(server, 0, 7, items=dst_name(b"a.b")) == 0


def test_rep_10_dropping_a_request_is_reply_dead_or_epipe_at_once(world: World, pair: Pair) -> None:
    client, server = pair
    request(client, server.id, 7)
    assert server.recv(flags=c.RECV_DROP) == 0
    assert events(client) == [(DEAD, 7)]
    assert request(client, server.id, 8, sync=True) == PENDING
    assert server.recv(flags=c.RECV_DROP) == 0
    assert results(world) == [-EPIPE]
    assert events(client) == []
    assert reply(server, client.id, 7) == reply(server, client.id, 8) == -EPERM
    assert at_rest(client) and at_rest(server)


def test_rep_10_dropping_a_request_that_is_tracked_no_more_says_nothing(world: World, pair: Pair) -> None:
    client, server = pair
    request(client, server.id, 7, timeout=1)
    expire(world, 2)
    drain(client)
    assert server.recv(flags=c.RECV_DROP) == 0
    assert events(client) == []


def test_rep_10_one_may_drop_a_request_to_oneself(world: World) -> None:
    client = world.connect()
    request(client, client.id, 7)
    assert client.recv(flags=c.RECV_DROP) == 0
    assert events(client) == [(DEAD, 7)]
    assert request(client, client.id, 8, sync=True) == PENDING
    assert client.recv(flags=c.RECV_DROP) == 0
    assert results(world) == [-EPIPE]
    assert at_rest(client)


def test_rep_11_the_repliers_end_is_reply_dead_or_epipe(world: World, pair: Pair) -> None:
    client, server = pair
    other = world.connect()
    request(client, server.id, 7)
    drain(server)
    request(other, server.id, 8, sync=True)
    drain(server)
    assert server.byebye() == 0
    assert events(client) == [(DEAD, 7)]
    assert results(world) == [-EPIPE]
    assert at_rest(client) and at_rest(other) and at_rest(server)


def test_rep_12_an_unread_request_is_reported_once(world: World, pair: Pair) -> None:
    client, server = pair
    request(client, server.id, 7)
    request(client, server.id, 8, timeout=1)
    expire(world, 2)
    request(client, server.id, 9, sync=True)
    drain(client)
    server.close()
    assert events(client) == [(DEAD, 7)]  # not for the one that timed out, nor for the sync one
    assert results(world) == [-EPIPE]
    assert at_rest(client)


def test_rep_11_rep_12_first_what_is_unread_then_the_rest_newest_first(world: World, pair: Pair) -> None:
    """As kdbus looks through the queue, then through the trackers of each requester (as for NOTE-10)."""
    client, server = pair
    other = world.connect()
    name = b"com.example"
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, name + b"\0"))
    request(client, c.DST_ID_NAME, 1, items=dst_name(name))
    for cookie in (2, 3):
        request(client, server.id, cookie)
    assert server.acquire(name) == 0
    activator.close()
    drain(server)
    request(other, server.id, 4)
    request(client, server.id, 5)
    request(client, server.id, 6)
    server.close()
    assert events(client) == [(DEAD, 5), (DEAD, 6), (DEAD, 3), (DEAD, 2), (DEAD, 1)]
    assert events(other) == [(DEAD, 4)]


def test_rep_13_a_requester_that_leaves_is_unknown_to_its_replier(world: World, pair: Pair) -> None:
    client, server = pair
    request(client, server.id, 7)
    client.close()
    assert reply(server, client.id, 7) == -ENXIO
    assert cookies(server) == [7]
    assert at_rest(server) and at_rest(client)
    expire(world, FAR)


def test_rep_14_own_end_of_a_blocked_send_is_econnreset(world: World, pair: Pair) -> None:
    client, server = pair
    assert request(client, server.id, 7, sync=True) == PENDING
    assert client.byebye() == 0
    assert results(world) == [-ECONNRESET]
    drain(server)
    assert at_rest(server) and at_rest(client)


def test_rep_14_sync_1_a_readable_cancel_fd_is_ecanceled(world: World, pair: Pair) -> None:
    client, server = pair
    file = FakeFile()
    cancel = cancel_fd(client.process, file)
    assert request(client, server.id, 7, sync=True, send_items=cancel) == PENDING
    ((_, token, cancellation),) = world.host.watched
    assert cancellation.open
    world.domain.cancelled(token)
    assert results(world) == [-ECANCELED]
    assert (cancellation.open, file.open_count) == (False, 0)
    world.domain.cancelled(token)  # a late event
    assert results(world) == []
    assert reply(server, client.id, 7) == -EPERM


def test_rep_14_timeout_of_a_blocked_send_is_etimedout_and_no_notification(world: World, pair: Pair) -> None:
    client, server = pair
    now = world.host.clock.now
    assert request(client, server.id, 7, sync=True, timeout=now + 5) == PENDING
    assert world.domain.next_deadline() == now + 5
    expire(world, now + 4)
    assert results(world) == []
    expire(world, now + 5)
    assert results(world) == [-ETIMEDOUT]
    assert events(client) == []
    assert reply(server, client.id, 7) == -EPERM
    assert world.domain.next_deadline() == 0


def test_rep_14_the_first_reason_wins(world: World, pair: Pair) -> None:
    client, server = pair
    cancel = cancel_fd(client.process, FakeFile())
    assert request(client, server.id, 7, sync=True, send_items=cancel) == PENDING
    ((_, token, _),) = world.host.watched
    assert reply(server, client.id, 7) == 0
    world.domain.cancelled(token)
    expire(world, FAR)
    assert results(world) == [0]


def test_gen_20_a_blocked_send_does_not_block_the_file(world: World, pair: Pair) -> None:
    client, server = pair
    assert request(client, server.id, 7, sync=True) == PENDING
    assert request(client, server.id, 8, sync=True) == PENDING
    assert client.send(dst=server.id, cookie=9) == 0
    assert reply(server, client.id, 8) == 0
    assert [call.result for call in world.domain.completed] == [0]
    assert cookies(server) == [7, 8, 9]


def test_rep_15_a_sync_reply_goes_straight_into_the_pool_and_the_struct(world: World, pair: Pair) -> None:
    client, server = pair
    assert request(client, server.id, 7, sync=True) == PENDING
    file, process = FakeFile(), server.process
    items = server.vec(b"hello") + pass_memfd(process, 16) + pass_files(process, file)
    assert reply(server, client.id, 7, cookie=9, priority=5, items=items) == 0
    assert client.handle.poll() & 1 == 0 and len(client.connection.queue) == 0
    message = sync_reply(client)
    assert message.return_flags == 0
    assert (message.src_id, message.cookie, message.cookie_reply) == (server.id, 9, 7)
    assert client.payloads(message) == [b"hello"]
    assert message.kinds() == [c.ITEM_PAYLOAD_OFF, c.ITEM_PAYLOAD_MEMFD, c.ITEM_FDS]
    assert message.installation is not None and len(message.installation.entries) == 2
    assert client.out(56) == message.size
    message.installation.done()
    assert file.open_count == 0
    assert client.free(message.offset) == 0
    drain(server)
    assert at_rest(client) and at_rest(server)


def test_rep_15_a_sync_reply_ignores_quota_full_queue_and_lost_counter(world: World, pair: Pair) -> None:
    client, server = pair
    while server.send(dst=client.id) == 0:
        pass
    client.connection.traffic.lost = 3
    assert request(client, server.id, 7, sync=True) == PENDING
    assert reply(server, client.id, 7) == 0
    assert sync_reply(client).cookie_reply == 7
    assert client.connection.traffic.lost == 3


def test_rep_16_descriptors_the_requester_does_not_take_are_ecomm_and_eremoteio(world: World) -> None:
    client, server = world.connect(flags=0), world.connect()
    file = FakeFile()
    assert request(client, server.id, 7, sync=True) == PENDING
    assert reply(server, client.id, 7, items=pass_files(server.process, file)) == -ECOMM
    assert results(world) == [-EREMOTEIO]
    assert file.open_count == 0
    assert reply(server, client.id, 7) == -EPERM


@pytest.mark.parametrize(
    ("size", "readable", "errno"), [(3000, True, EXFULL), (5000, True, ENOBUFS), (100, False, EFAULT)]
)
def test_rep_16_pool_12_other_failures_are_returned_to_both(
    world: World, size: int, readable: bool, errno: int
) -> None:
    client, server = world.connect(pool_size=4096), world.connect()
    assert request(client, server.id, 7, sync=True) == PENDING
    address = server.process.place(bytes(size)) if readable else 0xDEAD000
    assert reply(server, client.id, 7, items=vec(size, address)) == -errno
    assert results(world) == [-errno]
    drain(server)
    assert at_rest(client) and at_rest(server)


def test_rep_16_no_room_for_the_message_slice_fails_the_requester(world: World) -> None:
    client, server = world.connect(pool_size=4096, free=False), world.connect()
    while client.conn_info(id=client.id) == 0:
        pass
    assert request(client, server.id, 7, sync=True) == PENDING
    assert reply(server, client.id, 7) == 0
    assert results(world) == [-ENOBUFS]
    assert slots(client) == 1
    drain(server)
    assert slots(client) == 0


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_rep_17_after_the_wait_the_tracker_is_gone(world: World, pair: Pair, how: str) -> None:
    client, server = pair
    cancel = cancel_fd(client.process, FakeFile())
    now = world.host.clock.now
    request(client, server.id, 7, sync=True, send_items=cancel, timeout=now + 1)
    if how == "cancel":
        world.domain.cancelled(world.host.watched[0][1])
    else:
        expire(world, now + 1)
    assert reply(server, client.id, 7) == -EPERM
    drain(server)
    assert at_rest(client) and at_rest(server)


def test_rep_18_a_deadline_in_the_past_delivers_and_leaves_no_tracker(world: World, pair: Pair) -> None:
    client, server = pair
    file = FakeFile()
    cancel = cancel_fd(client.process, file)
    assert request(client, server.id, 7, sync=True, timeout=1, send_items=cancel) == -ETIMEDOUT
    assert file.open_count == 0
    assert reply(server, client.id, 7) == -EPERM
    assert cookies(server) == [7]
    assert at_rest(client) and at_rest(server)


def test_rep_19_expiry_leaves_other_blocked_sends_alone(world: World, pair: Pair) -> None:
    client, server = pair
    now = world.host.clock.now
    request(client, server.id, 1, timeout=now + 1)
    request(client, server.id, 2, sync=True, timeout=now + 2)
    expire(world, now + 1)
    assert results(world) == []
    assert events(client) == [(TIMEOUT, 1)]


def test_note_10_timeouts_due_together_come_newest_request_first(world: World, pair: Pair) -> None:
    client, server = pair
    now = world.host.clock.now
    for cookie, timeout in ((1, now + 3), (2, now + 1), (3, now + 2)):
        request(client, server.id, cookie, timeout=timeout)
    expire(world, now + 3)
    assert events(client) == [(TIMEOUT, 3), (TIMEOUT, 2), (TIMEOUT, 1)]


def test_rep_11_note_6_reply_dead_precedes_id_remove(world: World, pair: Pair) -> None:
    client, server = pair
    client.add_match(1, id_change(c.ITEM_ID_REMOVE))
    request(client, server.id, 1)
    request(client, server.id, 2)
    server.close()
    seen = [event(message)[0] for message in drain(client)]
    assert seen == [DEAD, DEAD, c.ITEM_ID_REMOVE]


def test_answered_requests_with_far_deadlines_do_not_pile_up(world: World, pair: Pair) -> None:
    """REP-4: the heap has at most about twice as many deadlines as there are trackers."""
    client, server = pair
    for cookie in range(1, 5000):
        request(client, server.id, cookie)
        assert server.recv(flags=c.RECV_DROP) == 0
        assert client.recv(flags=c.RECV_DROP) == 0
    assert len(world.domain.deadlines) < 2500
    assert world.domain.next_deadline() == 0


def test_rep_1_a_stranger_may_be_asked_only_with_permission(world: World) -> None:
    stranger = world.connect(FakeProcess(uid=2000, pid=200))
    server = world.connect()
    assert request(stranger, server.id, 1, sync=True) == -EPERM
    assert slots(stranger) == 0 and not world.domain.waiting
