"""RECV: order, priorities, PEEK and DROP, the lost counter."""

from __future__ import annotations

from errno import EAGAIN, EINVAL, ENOBUFS, ENOMSG, ENXIO, EOPNOTSUPP, EOVERFLOW
from struct import pack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import Client, FakeProcess, Pair, World
from tests.support.core_scenes import (
    at_rest,
    cookies,
    drain,
    dst_name,
    expire,
    pass_files,
    pass_memfd,
    request,
    signal,
)
from tests.support.fake_host import FakeFile

PEEK, DROP, PRIORITY = c.RECV_PEEK, c.RECV_DROP, c.RECV_USE_PRIORITY


def dirty_recv(client: Client, flags: int = 0, priority: int = 0) -> int:
    """RECV with a struct whose results are all set already."""
    return client.command(c.CMD_RECV, pack("<QQQQqQQQQ", 0, flags, 5, 5, priority, 5, 5, 5, 5))


def results(client: Client) -> list[int]:
    """kernel_flags, return_flags, dropped_msgs, offset, msg_size, msg.return_flags"""
    return [client.out(at) for at in (16, 24, 40, 48, 56, 64)]


KERNEL_FLAGS = 7 | c.FLAG_KERNEL


def test_recv_1_an_empty_queue_is_eagain_and_only_kernel_flags_are_written(pair: Pair) -> None:
    _, receiver = pair
    for flags in (0, PEEK, DROP, PRIORITY):
        assert dirty_recv(receiver, flags) == -EAGAIN
        assert results(receiver) == [KERNEL_FLAGS, 5, 5, 5, 5, 5]
    assert dirty_recv(receiver, 8) == -EINVAL
    assert results(receiver) == [KERNEL_FLAGS, 5, 5, 5, 5, 5]


def test_recv_2_the_oldest_comes_first_whatever_its_priority(pair: Pair) -> None:
    sender, receiver = pair
    for cookie, priority in ((1, 5), (2, -5), (3, 0), (4, -5)):
        sender.send(dst=receiver.id, cookie=cookie, priority=priority)
    assert cookies(receiver) == [1, 2, 3, 4]


def test_recv_3_with_use_priority_the_most_urgent_comes_first_the_oldest_of_equals(pair: Pair) -> None:
    sender, receiver = pair
    for cookie, priority in ((1, 5), (2, -5), (3, 0), (4, -5), (5, 0)):
        sender.send(dst=receiver.id, cookie=cookie, priority=priority)
    order = []
    while receiver.recv(flags=PRIORITY, priority=10) == 0:
        order.append(receiver.last_message().cookie)
    assert order == [2, 4, 3, 5, 1]


def test_recv_3_nothing_urgent_enough_is_enomsg(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, priority=5)
    assert dirty_recv(receiver, PRIORITY, 4) == -ENOMSG
    assert results(receiver) == [KERNEL_FLAGS, 5, 5, 5, 5, 5]
    assert receiver.recv(flags=PRIORITY | DROP, priority=4) == -ENOMSG
    assert receiver.recv(flags=PRIORITY, priority=5) == 0


def test_recv_3_mixed_ways_of_receiving_keep_both_orders(pair: Pair) -> None:
    sender, receiver = pair
    for cookie, priority in ((1, 5), (2, -5), (3, 0), (4, -5), (5, 0), (6, 5)):
        sender.send(dst=receiver.id, cookie=cookie, priority=priority)
    assert receiver.receive(flags=PRIORITY, priority=9).cookie == 2
    assert receiver.receive().cookie == 1
    assert receiver.receive().cookie == 3
    assert receiver.receive(flags=PRIORITY, priority=9).cookie == 4
    assert receiver.receive(flags=PRIORITY, priority=9).cookie == 5
    assert receiver.receive(flags=PRIORITY, priority=9).cookie == 6


def test_recv_4_incoming_results_and_an_unused_priority_are_ignored(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, priority=100)
    assert dirty_recv(receiver, 0, -1) == 0
    assert results(receiver)[:3] == [KERNEL_FLAGS, 0, 0]
    assert results(receiver)[5] == 0


def test_recv_5_drop_releases_the_message_and_returns_nothing(pair: Pair) -> None:
    sender, receiver = pair
    file = FakeFile()
    sender.send(dst=receiver.id, items=pass_files(sender.process, file) + sender.vec(b"x"))
    sender.send(dst=receiver.id, cookie=2)
    assert dirty_recv(receiver, DROP | PEEK) == 0
    assert results(receiver) == [KERNEL_FLAGS, 0, 0, 0, 0, 0]
    assert receiver.last_call.installation is None
    assert file.open_count == 0
    assert receiver.connection.pool.slices == 0
    assert cookies(receiver) == [2]


def test_recv_5_drop_never_reports_lost_messages(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id)
    receiver.connection.traffic.lost = 4
    assert receiver.recv(flags=DROP) == 0
    assert receiver.connection.traffic.lost == 4


def test_recv_5_drop_takes_the_most_urgent_on_request(pair: Pair) -> None:
    sender, receiver = pair
    for cookie, priority in ((1, 5), (2, -5), (3, 0)):
        sender.send(dst=receiver.id, cookie=cookie, priority=priority)
    assert receiver.recv(flags=DROP | PRIORITY, priority=0) == 0
    assert cookies(receiver) == [1, 3]


def test_recv_6_dropping_a_message_nobody_peeked_at_frees_its_payload(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=sender.vec(bytes(1000)))
    assert receiver.connection.pool.busy == 1000
    assert receiver.recv(flags=DROP) == 0
    assert receiver.connection.pool.busy == 0


@pytest.mark.parametrize("flags", [0, PEEK, PRIORITY])
def test_recv_7_recv_18_lost_messages_are_told_once_before_the_next_message(world: World, flags: int) -> None:
    sender, receiver = world.connect(), world.connect()
    receiver.add_match(1)
    for cookie in range(40):
        signal(sender, cookie=cookie)
    assert dirty_recv(receiver, flags, 9) == -EOVERFLOW
    assert results(receiver) == [KERNEL_FLAGS, 0, 8, 0, 0, 0]
    assert len(receiver.connection.queue) == 32
    assert receiver.receive(flags=flags, priority=9).cookie == 0
    assert receiver.out(40) == 0


def test_recv_8_lost_messages_are_not_told_before_a_message_is_there(pair: Pair) -> None:
    sender, receiver = pair
    receiver.connection.traffic.lost = 2
    assert receiver.recv() == -EAGAIN
    sender.send(dst=receiver.id, priority=3)
    assert receiver.recv(flags=PRIORITY, priority=2) == -ENOMSG
    assert receiver.recv() == -EOVERFLOW
    assert receiver.out(40) == 2


def test_recv_9_what_counts_as_lost(world: World) -> None:
    sender = world.connect()
    receiver = world.connect(pool_size=4096, flags=0)
    receiver.add_match(1)

    def lost() -> int:
        return receiver.connection.traffic.lost

    assert sender.send(dst=receiver.id, items=sender.vec(bytes(3000))) != 0
    assert sender.send(dst=receiver.id, items=pass_files(sender.process, FakeFile())) != 0
    assert lost() == 0
    signal(sender, items=sender.vec(bytes(3000)))
    assert lost() == 1
    while len(receiver.connection.queue) < 256:
        sender.acquire(b"a.b")
        sender.release_name(b"a.b")
    before = lost()
    sender.acquire(b"a.c")
    assert lost() == before + 1
    request(receiver, sender.id, 1, timeout=1)
    expire(world, 2)  # its REPLY_TIMEOUT finds the queue full
    assert lost() == before + 1


def test_recv_10_peek_shows_the_message_and_leaves_it_queued(pair: Pair) -> None:
    sender, receiver = pair
    file = FakeFile()
    items = sender.vec(b"payload") + pass_memfd(sender.process, 8) + pass_files(sender.process, file, file)
    sender.send(dst=receiver.id, cookie=4, items=items)
    peeked = receiver.receive(flags=PEEK)
    assert peeked.cookie == 4
    assert receiver.payloads(peeked) == [b"payload"]
    assert peeked.item(c.ITEM_FDS) == b"\xff" * 8
    assert peeked.item(c.ITEM_PAYLOAD_MEMFD)[16:] == b"\xff\xff\xff\xff\0\0\0\0"
    assert peeked.installation is None
    assert len(receiver.connection.queue) == 1
    assert file.open_count == 2
    assert receiver.free(peeked.offset) == 0
    assert receiver.free(peeked.offset) == -ENXIO
    assert receiver.receive().cookie == 4


def test_recv_11_every_peek_is_a_slice_of_its_own_and_all_go_back(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=sender.vec(b"payload"))
    messages = [receiver.receive(flags=PEEK) for _ in range(5)] + [receiver.receive()]
    assert len({message.offset for message in messages}) == 6
    assert len({message.item(c.ITEM_PAYLOAD_OFF) for message in messages}) == 1
    for message in messages:
        assert receiver.payloads(message) == [b"payload"]
        assert receiver.free(message.offset) == 0
    assert at_rest(receiver)


def test_recv_12_a_peeked_message_stays_readable_after_its_drop(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=sender.vec(b"payload"))
    peeked = receiver.receive(flags=PEEK)
    assert receiver.recv(flags=DROP) == 0
    for _ in range(10):
        sender.send(dst=receiver.id, items=sender.vec(b"\xff" * 64))
    assert receiver.payloads(peeked) == [b"payload"]
    assert receiver.read_message(peeked.offset, peeked.size, 0).header == peeked.header
    assert receiver.free(peeked.offset) == 0
    drain(receiver)
    assert at_rest(receiver)


def test_recv_13_recv_14_recv_dequeues_and_hands_the_files_over(pair: Pair) -> None:
    sender, receiver = pair
    file = FakeFile()
    sender.send(dst=receiver.id, items=pass_files(sender.process, file))
    message = receiver.receive()
    assert len(receiver.connection.queue) == 0
    assert message.return_flags == 0 and receiver.out(24) == 0
    assert message.installation is not None and message.installation.flags_offset == 64
    assert file.open_count == 1
    message.installation.done()
    assert file.open_count == 0


def test_recv_13_the_files_of_an_installation_outlive_the_connection(pair: Pair) -> None:
    sender, receiver = pair
    file = FakeFile()
    sender.send(dst=receiver.id, items=pass_files(sender.process, file))
    installation = receiver.receive().installation
    assert installation is not None
    receiver.close()
    assert file.open_count == 1
    installation.done()
    assert file.open_count == 0


def test_recv_15_without_room_for_the_message_it_stays_queued(world: World) -> None:
    sender = world.connect()
    file = FakeFile()
    receiver = world.connect(pool_size=4096)
    filler = world.connect()
    while receiver.conn_info(id=filler.id) == 0:
        pass
    sender.send(dst=receiver.id, cookie=6, items=pass_files(sender.process, file))
    assert dirty_recv(receiver) == -ENOBUFS
    assert results(receiver) == [KERNEL_FLAGS, 5, 5, 5, 5, 5]
    assert receiver.recv(flags=PEEK) == -ENOBUFS
    assert receiver.last_call.installation is None
    assert file.open_count == 1
    assert len(receiver.connection.queue) == 1
    for offset in range(0, 120, 24):
        assert receiver.free(offset) == 0
    assert receiver.receive().cookie == 6


def test_recv_16_monitors_and_activators_receive_and_holders_do_not(world: World) -> None:
    name = make_item(c.ITEM_NAME, b"a.b\0")
    sender = world.connect()
    monitor = world.connect(flags=c.HELLO_MONITOR)
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=name)
    drain(monitor)
    sender.send(cookie=3, items=dst_name(b"a.b"))
    assert (cookies(monitor), cookies(activator)) == ([3], [3])
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=make_item(c.ITEM_NAME, b"a.c\0"), free=False)
    assert holder.recv() == -EOPNOTSUPP


def test_recv_17_any_process_that_holds_the_file_may_receive(world: World) -> None:
    sender, receiver = world.connect(), world.connect(recv=c.ATTACH_CREDS)
    sender.send(dst=receiver.id)
    receiver.process = FakeProcess(uid=7000, pid=700, uid_map={0: 1000})
    message = receiver.receive()
    assert message.item(c.ITEM_CREDS)[:4] == pack("<I", 0)


def test_recv_19_items_are_validated_and_otherwise_ignored(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id)
    fixed = pack("<QQQQqQQQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert receiver.command(c.CMD_RECV, fixed, make_item(c.ITEM_ID, b"123")) == -EINVAL
    assert receiver.command(c.CMD_RECV, fixed, make_item(99, b"123")) == 0


def test_poll_changes_are_announced_when_the_queue_gets_empty(pair: Pair) -> None:
    """POLL-2: the change of readiness must be announced."""
    sender, receiver = pair
    sender.send(dst=receiver.id)
    changed = receiver.world.domain.changed
    changed.clear()
    receiver.receive()
    assert receiver.handle in changed
    sender.send(dst=receiver.id)
    changed.clear()
    receiver.recv(flags=DROP)
    assert receiver.handle in changed
