"""LAY: the exact bytes of a message in its receiver's pool."""

from __future__ import annotations

from struct import pack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import Client, Pair, Received, World
from tests.support.core_scenes import (
    bloom,
    drain,
    dst_name,
    expire,
    pass_files,
    pass_memfd,
    request,
    signal,
)
from tests.support.fake_host import FakeFile


def zeros(size: int) -> bytes:
    return make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", size, 0))


def raw(client: Client, message: Received) -> bytes:
    return bytes(client.pool[message.offset : message.offset + message.size])


def off(size: int, offset: int) -> bytes:
    return pack("<QQQQ", 32, c.ITEM_PAYLOAD_OFF, size, offset)


def header(size: int, *, flags: int = 0, priority: int = 0, dst: int, src: int, cookie: int = 1) -> bytes:
    return pack("<QQqQQQQQ", size, flags, priority, dst, src, c.PAYLOAD_DBUS, cookie, 0)


def test_lay_1_payload_has_a_slice_when_sent_and_the_message_when_received(pair: Pair) -> None:
    sender, receiver = pair
    pool = receiver.connection.pool
    sender.send(dst=receiver.id, items=sender.vec(b"x" * 100))
    assert (pool.slices, pool.busy) == (1, 104)
    message = receiver.receive()
    assert (pool.slices, pool.busy) == (2, 104 + 96)
    sender.send(dst=receiver.id)
    assert pool.slices == 2
    receiver.receive()
    assert pool.slices == 3
    assert message.offset % 8 == 0


def test_lay_2_lay_4_lay_8_the_whole_message_byte_by_byte(pair: Pair) -> None:
    sender, receiver = pair
    items = sender.vec(b"hello") + sender.vec(b"world!")
    sender.send(dst=receiver.id, flags=c.MSG_NO_AUTO_START, priority=-3, cookie=77, cookie_reply=0, items=items)
    message = receiver.receive()
    expected = header(128, flags=2, priority=-3, dst=receiver.id, src=sender.id, cookie=77)
    expected += off(5, 0) + off(6, 5)
    assert raw(receiver, message) == expected
    assert bytes(receiver.pool[:11]) == b"helloworld!"
    assert message.offset == 16


def test_lay_3_order_of_items(world: World) -> None:
    sender = world.connect(items=make_item(c.ITEM_CONN_DESCRIPTION, b"me\0"))
    receiver = world.connect(recv=c.ATTACH_ALL)
    receiver.acquire(b"a.b")
    process = sender.process
    items = pass_files(process, FakeFile(), FakeFile()) + sender.vec(b"1") + pass_memfd(process, 8)
    items += dst_name(b"a.b") + sender.vec(b"2")
    sender.send(items=items)
    kinds = receiver.receive().kinds()
    assert kinds[:5] == [
        c.ITEM_DST_NAME,
        c.ITEM_PAYLOAD_OFF,
        c.ITEM_PAYLOAD_MEMFD,
        c.ITEM_PAYLOAD_OFF,
        c.ITEM_FDS,
    ]
    assert kinds[5:] == [c.ITEM_CREDS, c.ITEM_PIDS, c.ITEM_AUXGROUPS, c.ITEM_CONN_DESCRIPTION, c.ITEM_TIMESTAMP]


def test_lay_3_a_bloom_filter_is_not_passed_on(pair: Pair) -> None:
    sender, receiver = pair
    receiver.add_match(1)
    assert signal(sender, bits=5) == 0
    message = receiver.receive()
    assert message.items == []
    assert raw(receiver, message) == header(64, flags=4, dst=c.DST_ID_BROADCAST, src=sender.id)
    assert bloom() not in bytes(receiver.pool)


def test_lay_4_dst_id_is_as_the_sender_wrote_it(pair: Pair) -> None:
    sender, receiver = pair
    receiver.acquire(b"a.b")
    sender.send(items=dst_name(b"a.b"))
    sender.send(dst=receiver.id, items=dst_name(b"a.b"))
    sender.send(dst=receiver.id)
    assert [message.dst_id for message in drain(receiver)] == [0, receiver.id, receiver.id]


def test_lay_4_timeout_and_priority_travel_unchanged(pair: Pair) -> None:
    sender, receiver = pair
    request(sender, receiver.id, 9, timeout=123456789012, priority=-(1 << 63))
    message = receiver.receive()
    assert (message.cookie_reply, message.priority, message.flags) == (123456789012, -(1 << 63), 1)


def test_lay_5_msg_size_is_the_aligned_size_of_the_message_without_payload(pair: Pair) -> None:
    sender, receiver = pair
    receiver.acquire(b"abc.def")
    sender.send(items=dst_name(b"abc.def") + sender.vec(bytes(100)))
    message = receiver.receive()
    assert message.size == message.header[0] == 64 + 24 + 32
    assert receiver.out(56) == message.size


def test_lay_6_lay_7_items_have_their_exact_size_and_zero_padding(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    monitor = world.connect(flags=c.HELLO_MONITOR)
    receiver.acquire(b"a.bc")
    drain(monitor)
    receiver.pool[:4096] = b"\xff" * 4096
    sender.send(dst=receiver.id, items=dst_name(b"a.bc"))
    expected = pack("<QQ", 16 + 5, c.ITEM_DST_NAME) + b"a.bc\0" + bytes(3)
    for client in (receiver, monitor):
        message = client.receive()
        assert raw(client, message)[64:] == expected


def test_lay_8_offsets_are_from_the_start_of_the_pool(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=sender.vec(b"first..."))
    sender.send(dst=receiver.id, items=sender.vec(b"second"))
    receiver.receive()
    message = receiver.receive()
    assert message.item(c.ITEM_PAYLOAD_OFF) == pack("<QQ", 6, 8)
    assert receiver.payloads(message) == [b"second"]


def test_lay_9_a_zero_vec_has_no_offset_and_its_full_size(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=zeros(1003) + sender.vec(b"abc") + zeros(16))
    message = receiver.receive()
    assert [payload for _, payload in message.items] == [
        pack("<QQ", 1003, c.U64_MAX),
        pack("<QQ", 3, 3),
        pack("<QQ", 16, c.U64_MAX),
    ]
    assert bytes(receiver.pool[:6]) == b"\0\0\0abc"


def test_lay_10_vectors_are_stored_back_to_back(pair: Pair) -> None:
    sender, receiver = pair
    parts = [b"a", b"bcd", b"efghi", b"j" * 17]
    sender.send(dst=receiver.id, items=b"".join(sender.vec(part) for part in parts))
    message = receiver.receive()
    assert [payload for _, payload in message.items] == [
        pack("<QQ", 1, 0),
        pack("<QQ", 3, 1),
        pack("<QQ", 5, 4),
        pack("<QQ", 17, 9),
    ]
    assert receiver.payloads(message) == parts


def test_lay_11_an_odd_memfd_shifts_later_vectors_by_its_size_mod_8(pair: Pair) -> None:
    sender, receiver = pair
    items = sender.vec(b"ab") + pass_memfd(sender.process, 13) + sender.vec(b"cd")
    sender.send(dst=receiver.id, items=items)
    message = receiver.receive()
    assert message.items[0][1] == pack("<QQ", 2, 0)
    assert message.items[2][1] == pack("<QQ", 2, 2 + 5)
    assert bytes(receiver.pool[:9]) == b"ab\0\0\0\0\0cd"


def test_lay_12_the_payload_slice_is_aligned_and_nothing_is_merged(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=sender.vec(b"abc") * 3)
    assert receiver.connection.pool.busy == 16
    sender.send(dst=receiver.id, items=sender.vec(b"xyz"))
    assert receiver.receive().kinds() == [c.ITEM_PAYLOAD_OFF] * 3
    assert receiver.receive().item(c.ITEM_PAYLOAD_OFF) == pack("<QQ", 3, 16)


def test_lay_13_a_payload_of_no_bytes_has_no_slice(pair: Pair) -> None:
    sender, receiver = pair
    pool = receiver.connection.pool
    for items in (zeros(8), zeros(1 << 20) + zeros(16), pass_memfd(sender.process, 16)):
        assert sender.send(dst=receiver.id, items=items) == 0
        assert pool.slices == 0
    assert [len(message.items) for message in drain(receiver)] == [1, 2, 1]


def test_lay_14_a_memfd_item_is_as_sent_with_a_new_descriptor(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=pass_memfd(sender.process, 32, start=7))
    assert receiver.recv(flags=c.RECV_PEEK) == 0
    peeked = receiver.last_message()
    assert raw(receiver, peeked)[64:] == pack("<QQQQiI", 40, c.ITEM_PAYLOAD_MEMFD, 7, 32, -1, 0)
    assert peeked.installation is None
    message = receiver.receive()
    assert message.installation is not None
    ((file, memory, place),) = message.installation.entries
    assert file is sender.process.files[max(sender.process.files)]
    assert memory is receiver.memory
    assert place == message.offset + 64 + 16 + 16


def test_lay_15_lay_16_memfds_are_installed_in_item_order_and_the_array_last(pair: Pair) -> None:
    sender, receiver = pair
    process = sender.process
    first, second = FakeFile(), FakeFile()
    items = pass_files(process, first, second) + pass_memfd(process, 8) + sender.vec(b"x") + pass_memfd(process, 16)
    sender.send(dst=receiver.id, items=items)
    message = receiver.receive()
    assert message.kinds() == [3, 2, 3, 4]
    assert message.item(c.ITEM_FDS) == b"\xff" * 8
    assert message.installation is not None
    files = [entry[0] for entry in message.installation.entries]
    assert files == [process.files[5], process.files[6], first, second]
    places = [entry[2] - message.offset for entry in message.installation.entries]
    memfd, vec = 40, 32
    assert places == [
        64 + 32,
        64 + memfd + vec + 32,
        64 + memfd + vec + memfd + 16,
        64 + memfd + vec + memfd + 16 + 4,
    ]


def test_lay_15_an_odd_number_of_descriptors_is_padded_with_zeros(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=pass_files(sender.process, FakeFile()))
    receiver.pool[:256] = b"\xee" * 256
    message = receiver.receive()
    assert raw(receiver, message)[64:] == pack("<QQiI", 20, c.ITEM_FDS, -1, 0)


def test_lay_17_lay_18_id_notifications_byte_by_byte(world: World) -> None:
    watcher = world.connect()
    watcher.add_match(1)
    peer = world.connect(flags=c.HELLO_ACCEPT_FD)
    message = watcher.receive()
    expected = pack("<QQqQQQQQ", 96, 0, 0, c.DST_ID_BROADCAST, 0, 0, 0, 0)
    assert raw(watcher, message) == expected + pack("<QQQQ", 32, c.ITEM_ID_ADD, peer.id, c.HELLO_ACCEPT_FD)
    peer.close()
    message = watcher.receive()
    assert raw(watcher, message) == expected + pack("<QQQQ", 32, c.ITEM_ID_REMOVE, peer.id, c.HELLO_ACCEPT_FD)


@pytest.mark.parametrize("dead", [False, True])
def test_lay_17_lay_19_reply_notifications_byte_by_byte(pair: Pair, dead: bool) -> None:
    client, server = pair
    request(client, server.id, 0x1234, timeout=1)
    if dead:
        server.close()
    else:
        expire(client.world, 5)
    message = client.receive()
    expected = pack("<QQqQQQQQ", 80, 0, 0, client.id, 0, 0, 0, 0x1234)
    kind = c.ITEM_REPLY_DEAD if dead else c.ITEM_REPLY_TIMEOUT
    assert raw(client, message) == expected + pack("<QQ", 16, kind)


@pytest.mark.parametrize("name", [b"a.b", b"abc.defg", b"a.bcdef", b"com.example.Thing"])
def test_lay_20_name_notifications_round_their_size_up(world: World, name: bytes) -> None:
    watcher = world.connect()
    watcher.add_match(1)
    watcher.acquire(name, c.NAME_ALLOW_REPLACEMENT)
    message = watcher.receive()
    size = (16 + 32 + len(name) + 1 + 7) & ~7
    item = pack("<QQQQQQ", size, c.ITEM_NAME_ADD, 0, 0, watcher.id, c.NAME_ALLOW_REPLACEMENT)
    item += (name + b"\0").ljust(size - 48, b"\0")
    assert raw(watcher, message)[64:] == item
    assert message.size == 64 + size


def test_lay_17_a_timestamp_follows_the_notification_only_on_request(world: World) -> None:
    watcher = world.connect(recv=c.ATTACH_ALL)
    watcher.add_match(1)
    world.connect()
    assert watcher.receive().kinds() == [c.ITEM_ID_ADD, c.ITEM_TIMESTAMP]


def test_lay_21_no_stale_bytes_are_left_in_a_message(world: World) -> None:
    sender, receiver = world.connect(), world.connect(recv=c.ATTACH_ALL)
    receiver.acquire(b"a.bc")
    receiver.pool[:] = b"\xff" * len(receiver.pool)
    sender.send(items=dst_name(b"a.bc") + sender.vec(b"abc") + pass_files(sender.process, FakeFile()))
    message = receiver.receive()  # the walk over the items checks their padding
    assert raw(receiver, message)[:64] == header(message.size, dst=0, src=sender.id)
