"""SEND: validation of messages, destinations, permission, delivery."""

from __future__ import annotations

from collections.abc import Callable
from errno import (
    E2BIG,
    EADDRNOTAVAIL,
    EBADF,
    EBADMSG,
    ECOMM,
    EDESTADDRREQ,
    EDOM,
    EEXIST,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMLINK,
    EMSGSIZE,
    ENOBUFS,
    ENOTUNIQ,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EREMCHG,
    ESRCH,
    ETXTBSY,
    EXFULL,
)
from struct import pack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import PENDING, Client, FakeProcess, Pair, World
from tests.support.core_scenes import (
    FAR,
    at_rest,
    bloom,
    cancel_fd,
    cookies,
    drain,
    dst_name,
    id_rule,
    observer,
    pass_files,
    pass_memfd,
    reply,
    request,
    results,
    signal,
)
from tests.support.fake_host import FakeFile, sealed_memfd


def vec(size: int, address: int = 0) -> bytes:
    return make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", size, address))


# SEND-1 to SEND-8: the message as a whole


def test_send_2_message_that_could_not_be_read_is_efault(pair: Pair) -> None:
    sender, receiver = pair
    call = sender.call(c.CMD_SEND, bytes(72))
    call.message_error = EFAULT
    assert sender.run(call) == -EFAULT
    assert cookies(receiver) == []


def test_send_3_sizes_outside_64_to_8192_are_einval(pair: Pair) -> None:
    sender, receiver = pair
    for size in (0, 63, 8193):
        body = bytearray(sender.message(dst=receiver.id))
        body[:8] = pack("<Q", size)
        assert sender.send_raw(bytes(body)) == -EINVAL
    assert sender.send(dst=receiver.id) == 0


def test_send_3_a_message_that_the_channel_finds_too_long_is_einval(pair: Pair) -> None:
    sender, _ = pair
    call = sender.call(c.CMD_SEND, bytes(72))
    call.message_error = EMSGSIZE
    assert sender.run(call) == -EINVAL


def test_send_3_lim_1_a_message_of_8192_bytes_passes_and_one_byte_more_does_not(pair: Pair) -> None:
    sender, receiver = pair
    room = 8192 - 64 - 16
    body = sender.message(dst=receiver.id, items=make_item(c.ITEM_FDS, bytes(room)))
    assert len(body) == 8192
    assert sender.send_raw(body) == -EMFILE  # the item's own limit, so the size was fine
    longer = make_item(c.ITEM_FDS, bytes(room + 8))
    assert sender.send(dst=receiver.id, items=longer) == -EINVAL


def test_send_4_message_flags_are_negotiated_before_they_are_refused(pair: Pair) -> None:
    sender, receiver = pair
    for flags, result in ((0, 0), (8, -EINVAL), (c.FLAG_KERNEL, -EINVAL)):
        assert sender.send(dst=receiver.id, flags=flags) == result
        assert sender.out(24) == 7 | c.FLAG_KERNEL
    body = bytearray(sender.message(dst=receiver.id))
    body[:8] = pack("<Q", 63)
    assert sender.send_raw(bytes(body)) == -EINVAL
    assert sender.out(24) == 0


def test_send_5_payload_type_0_is_einval_and_every_other_travels(pair: Pair) -> None:
    sender, receiver = pair
    assert sender.send(dst=receiver.id, payload_type=0) == -EINVAL
    for payload_type in (1, 12345, c.PAYLOAD_DBUS, c.U64_MAX):
        assert sender.send(dst=receiver.id, payload_type=payload_type) == 0
        assert receiver.receive().payload_type == payload_type


def test_send_6_a_request_needs_timeout_and_cookie_and_one_receiver(pair: Pair) -> None:
    sender, receiver = pair
    assert request(sender, receiver.id, 0) == -EINVAL
    assert request(sender, receiver.id, 1, timeout=0) == -EINVAL
    expect = c.MSG_EXPECT_REPLY
    assert sender.send(dst=c.DST_ID_BROADCAST, flags=expect, cookie_reply=FAR) == -ENOTUNIQ
    assert sender.send(dst=receiver.id, flags=expect | c.MSG_SIGNAL, cookie_reply=FAR) == -EINVAL
    # in this order
    assert sender.send(dst=c.DST_ID_BROADCAST, flags=expect | c.MSG_SIGNAL, cookie_reply=FAR) == -ENOTUNIQ
    assert sender.send(dst=c.DST_ID_BROADCAST, flags=expect, cookie=0, cookie_reply=FAR) == -EINVAL


def test_send_7_sync_reply_without_expect_reply_is_einval(pair: Pair) -> None:
    sender, receiver = pair
    assert sender.send(dst=receiver.id, send_flags=c.SEND_SYNC_REPLY) == -EINVAL
    assert cookies(receiver) == []


def test_send_8_items_are_validated_before_the_header(pair: Pair) -> None:
    sender, receiver = pair
    negative = make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 0, 8, -1, 0))
    assert sender.send(dst=receiver.id, payload_type=0, items=negative) == -EBADF
    assert sender.send(dst=receiver.id, flags=8, items=negative) == -EINVAL  # SEND-4 comes first
    assert sender.out(24) == 7 | c.FLAG_KERNEL


def test_send_1_negotiation_of_the_command_comes_before_the_message(pair: Pair) -> None:
    sender, receiver = pair
    assert sender.send(dst=receiver.id, flags=8, send_flags=2) == -EINVAL
    assert sender.out(16) == 1 | c.FLAG_KERNEL
    assert sender.out(24) == 0
    assert cookies(receiver) == []


# SEND-9 to SEND-23: items in their order


def test_send_9_lim_2_the_129th_item_is_e2big_but_errors_of_earlier_items_win(pair: Pair) -> None:
    sender, receiver = pair
    assert sender.send(dst=receiver.id, items=vec(8) * 128) == 0
    assert sender.send(dst=receiver.id, items=vec(8) * 129) == -E2BIG
    unknown = make_item(0x77, b"")
    assert sender.send(dst=receiver.id, items=vec(8) * 128 + unknown) == -E2BIG
    assert sender.send(dst=receiver.id, items=vec(8) * 127 + unknown + vec(8)) == -EINVAL
    assert len(drain(receiver)) == 1


def test_send_10_lim_4_vectors_may_sum_up_to_2_mib_and_no_more(world: World) -> None:
    sender, receiver = world.connect(), world.connect(pool_size=8 << 20)
    assert sender.send(dst=receiver.id, items=vec(2 << 20)) == 0
    assert sender.send(dst=receiver.id, items=vec(2 << 20) + vec(1)) == -EMSGSIZE
    assert sender.send(dst=receiver.id, items=vec(c.U64_MAX)) == -EMSGSIZE
    data = bytes(range(256)) * 8192
    assert sender.send(dst=receiver.id, items=sender.vec(data)) == 0
    receiver.receive()
    assert receiver.payloads(receiver.receive()) == [data]


def test_send_11_a_vector_at_address_0_stores_only_its_size_mod_8(pair: Pair) -> None:
    sender, receiver = pair
    assert sender.send(dst=receiver.id, items=vec(1003)) == 0
    assert receiver.connection.pool.busy == 8
    assert sender.send(dst=receiver.id, items=vec(1000)) == 0
    assert receiver.connection.pool.busy == 8


def test_send_12_unreadable_payload_is_efault_after_the_permission_check(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    bad = vec(100, 0xDEAD000)
    assert sender.send(dst=receiver.id, items=bad) == -EFAULT
    assert at_rest(receiver)
    foreign = world.connect(FakeProcess(uid=2000, pid=200))
    assert foreign.send(dst=receiver.id, items=bad) == -EPERM


def test_send_12_bc_2_unreadable_payload_of_a_broadcast_is_lost_at_each_receiver(world: World) -> None:
    sender, first, second = world.connect(), observer(world), observer(world)
    drain(first)
    assert signal(sender, items=vec(100, 0xDEAD000)) == 0
    assert (first.connection.traffic.lost, second.connection.traffic.lost) == (1, 1)
    assert at_rest(first) and at_rest(second)


def test_send_13_memfds_are_checked_in_this_order(pair: Pair) -> None:
    sender, receiver = pair
    process = sender.process

    def memfd(size: int, start: int = 0, file: FakeFile | None = None) -> int:
        return sender.send(dst=receiver.id, items=pass_memfd(process, size, start=start, file=file))

    assert sender.send(
        dst=receiver.id, items=make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 0, 8, 999, 0))
    ) == -EBADF
    overflow = make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 2, c.U64_MAX - 1, 999, 0))
    assert sender.send(dst=receiver.id, items=overflow) == -EMSGSIZE
    assert memfd(8, file=FakeFile(is_path=True)) == -EBADF
    assert memfd(8, file=FakeFile(length=8)) == -EMEDIUMTYPE
    for bits in range(15):
        assert memfd(9, file=FakeFile(seal_bits=bits, length=8)) == -ETXTBSY
    assert memfd(9, file=sealed_memfd(8)) == -EBADF
    assert memfd(1, start=8, file=sealed_memfd(8)) == -EBADF
    assert memfd(3, start=5, file=sealed_memfd(8)) == 0
    assert memfd(1 << 40, file=sealed_memfd(1 << 40)) == 0
    drain(receiver)
    assert all(file.open_count == 0 for file in process.files.values())


def test_send_14_memfds_reach_receivers_without_accept_fd_and_broadcasts(world: World) -> None:
    sender = world.connect()
    receiver = world.connect(flags=0)
    assert sender.send(dst=receiver.id, items=pass_memfd(sender.process, 8)) == 0
    receiver.add_match(1)
    assert signal(sender, items=pass_memfd(sender.process, 8)) == 0
    assert [message.kinds() for message in drain(receiver)] == [[c.ITEM_PAYLOAD_MEMFD]] * 2


def test_send_15_lim_3_descriptors_are_one_array_of_253_for_one_receiver(pair: Pair) -> None:
    sender, receiver = pair
    process = sender.process
    many = [FakeFile() for _ in range(254)]
    assert sender.send(dst=receiver.id, items=pass_files(process, *many[:253])) == 0
    assert sender.send(dst=receiver.id, items=pass_files(process, *many)) == -EMFILE
    assert sender.send(dst=receiver.id, items=pass_files(process, many[0]) * 2) == -EEXIST
    assert sender.send(dst=receiver.id, items=make_item(c.ITEM_FDS, b"") * 2) == -EEXIST
    assert signal(sender, items=pass_files(process, many[0])) == -ENOTUNIQ
    for number in (-1, 9999):
        assert sender.send(dst=receiver.id, items=make_item(c.ITEM_FDS, pack("<i", number))) == -EBADF
    assert sender.send(dst=receiver.id, items=pass_files(process, FakeFile(is_path=True))) == 0
    drain(receiver)
    assert not any(file.open_count for file in process.files.values())


def test_send_16_descriptors_that_could_carry_descriptors_are_refused_one_by_one(pair: Pair) -> None:
    sender, receiver = pair
    process = sender.process
    good = FakeFile()
    for bad in (FakeFile(is_bus_file=True), FakeFile(is_unix_socket=True)):
        assert sender.send(dst=receiver.id, items=pass_files(process, good, bad)) == -EOPNOTSUPP
        assert bad.open_count == 0
        number = max(process.files)
        in_order = make_item(c.ITEM_FDS, pack("<ii", number, -1))
        assert sender.send(dst=receiver.id, items=in_order) == -EOPNOTSUPP
        in_order = make_item(c.ITEM_FDS, pack("<ii", -1, number))
        assert sender.send(dst=receiver.id, items=in_order) == -EBADF
    assert good.open_count == 0


def test_send_17_an_empty_array_vanishes(pair: Pair) -> None:
    sender, _ = pair
    receiver = sender.world.connect(flags=0)
    assert sender.send(dst=receiver.id, items=make_item(c.ITEM_FDS, b"")) == 0
    assert receiver.receive().items == []


def test_send_18_the_sender_may_close_its_descriptors_right_after(pair: Pair) -> None:
    sender, receiver = pair
    file = FakeFile()
    assert sender.send(dst=receiver.id, items=pass_files(sender.process, file)) == 0
    sender.process.files.clear()
    message = receiver.receive()
    assert message.installation is not None
    assert [entry[0] for entry in message.installation.entries] == [file]
    message.installation.done()
    message.installation.done()
    assert file.open_count == 0


def test_send_19_one_bloom_filter_of_the_size_of_the_bus(pair: Pair) -> None:
    sender, receiver = pair

    def filters(items: bytes) -> int:
        return sender.send(dst=receiver.id, flags=c.MSG_SIGNAL, items=items)

    assert filters(bloom() * 2) == -EEXIST
    assert filters(make_item(c.ITEM_BLOOM_FILTER, bytes(8 + 63))) == -EFAULT
    assert filters(bloom(size=56)) == -EDOM
    assert filters(bloom(size=0)) == -EDOM
    assert filters(make_item(c.ITEM_BLOOM_FILTER, bytes(7))) == -EINVAL
    assert filters(bloom()) == -EPERM  # valid, but without a match


def test_send_20_one_valid_destination_name(pair: Pair) -> None:
    sender, receiver = pair
    assert receiver.acquire(b"com.example") == 0
    assert sender.send(items=dst_name(b"com.example") * 2) == -EEXIST
    for name in (b"com", b"com.", b"com.*", b"com.1a", b"a." + b"b" * 254):
        assert sender.send(items=dst_name(name)) == -EINVAL
    assert sender.send(items=dst_name(b"com.example")) == 0


@pytest.mark.parametrize(
    "kind",
    [c.ITEM_PAYLOAD_OFF, c.ITEM_CANCEL_FD, c.ITEM_NAME, c.ITEM_CREDS, c.ITEM_TIMESTAMP, c.ITEM_BLOOM_MASK, 0, 99],
)
def test_send_21_other_items_are_einval(pair: Pair, kind: int) -> None:
    sender, receiver = pair
    sizes = {c.ITEM_PAYLOAD_OFF: 16, c.ITEM_CANCEL_FD: 4, c.ITEM_CREDS: 32, c.ITEM_TIMESTAMP: 24}
    payload = b"a.b\0" if kind == c.ITEM_NAME else b"\1" * sizes.get(kind, 8)
    assert sender.send(dst=receiver.id, items=make_item(kind, payload)) == -EINVAL


def test_send_22_errors_come_in_the_order_of_the_items(pair: Pair) -> None:
    sender, _ = pair
    assert sender.send(dst=c.DST_ID_BROADCAST, items=pass_files(sender.process, FakeFile())) == -ENOTUNIQ
    unknown = make_item(99, b"")
    assert sender.send(dst=2, items=unknown + dst_name(b"bad")) == -EINVAL
    assert sender.send(dst=2, items=bloom(size=8) + unknown) == -EDOM


def test_send_23_files_are_let_go_of_on_every_error(world: World) -> None:
    sender, receiver = world.connect(), world.connect(flags=0)
    file, memfd = FakeFile(), sealed_memfd(8)
    items = pass_files(sender.process, file) + pass_memfd(sender.process, 8, file=memfd)
    foreign = FakeProcess(uid=2000, pid=200, files=sender.process.files)
    stranger = world.connect(foreign)
    attempts: tuple[tuple[int, Callable[[], int]], ...] = (
        (-EINVAL, lambda: sender.send(dst=receiver.id, items=items + make_item(99, b""))),
        (-EINVAL, lambda: sender.send(dst=receiver.id, items=items, src=77)),
        (-EDESTADDRREQ, lambda: sender.send(items=items)),
        (-ENXIO, lambda: sender.send(dst=999, items=items)),
        (-EPERM, lambda: stranger.send(dst=receiver.id, items=items)),
        (-ECOMM, lambda: sender.send(dst=receiver.id, items=items)),
        (-EPERM, lambda: reply(sender, receiver.id, 5, items=items)),
        (-EINVAL, lambda: sender.send(dst=receiver.id, items=items, send_items=make_item(99, b""))),
    )
    for result, attempt in attempts:
        assert attempt() == result
        assert (file.open_count, memfd.open_count) == (0, 0)
    assert at_rest(receiver)


# SEND-24 to SEND-30: cross checks, src_id, CANCEL_FD


def test_send_24_neither_id_nor_name_is_edestaddrreq(pair: Pair) -> None:
    assert pair[0].send() == -EDESTADDRREQ


def test_send_25_a_broadcast_has_no_name_is_a_signal_and_expects_nothing(pair: Pair) -> None:
    sender, _ = pair
    broadcast = c.DST_ID_BROADCAST
    name = dst_name(b"a.b")
    assert sender.send(dst=broadcast, items=name) == -EBADMSG
    assert sender.send(dst=broadcast) == -EBADMSG
    assert sender.send(dst=broadcast, flags=c.MSG_SIGNAL, items=bloom(), cookie_reply=1) == -ENOTUNIQ
    assert sender.send(dst=broadcast, flags=c.MSG_SIGNAL, items=bloom() + name, cookie_reply=1) == -EBADMSG
    assert sender.send(dst=broadcast, items=bloom(), cookie_reply=1) == -EBADMSG


def test_send_26_signal_and_bloom_filter_go_together(pair: Pair) -> None:
    sender, receiver = pair
    for dst in (receiver.id, c.DST_ID_BROADCAST):
        assert sender.send(dst=dst, flags=c.MSG_SIGNAL) == -EBADMSG
        assert sender.send(dst=dst, items=bloom()) == -EBADMSG


def test_send_27_id_and_name_together_are_legal(pair: Pair) -> None:
    sender, receiver = pair
    receiver.acquire(b"a.b")
    assert sender.send(dst=receiver.id, items=dst_name(b"a.b")) == 0
    message = receiver.receive()
    assert message.dst_id == receiver.id
    assert message.item(c.ITEM_DST_NAME) == b"a.b\0"


def test_send_28_src_id_is_0_or_the_own_and_the_senders_buffer_stays(pair: Pair) -> None:
    sender, receiver = pair
    assert sender.send(dst=receiver.id, src=receiver.id) == -EINVAL
    for src in (0, sender.id):
        body = sender.message(dst=receiver.id, src=src)
        assert sender.send_raw(body) == 0
        assert receiver.receive().src_id == sender.id
        assert sender.last_call.message == body


def test_send_29_cancel_fd_counts_only_for_sync_replies(pair: Pair) -> None:
    sender, receiver = pair
    closed = make_item(c.ITEM_CANCEL_FD, pack("<i", 999))
    assert sender.send(dst=receiver.id, send_items=closed * 2) == 0
    assert request(sender, receiver.id, 5, send_items=closed) == 0
    assert sender.send(dst=receiver.id, send_items=make_item(99, b"")) == -EINVAL
    process = sender.process
    file, regular = FakeFile(), FakeFile(pollable=False)
    good = cancel_fd(process, file)
    assert request(sender, receiver.id, 6, sync=True, send_items=good * 2) == -EEXIST
    assert request(sender, receiver.id, 6, sync=True, send_items=cancel_fd(process, regular)) == -EINVAL
    assert request(sender, receiver.id, 6, sync=True, send_items=good + make_item(99, b"")) == -EINVAL
    assert (file.open_count, regular.open_count) == (0, 0)
    assert request(sender, receiver.id, 6, sync=True, send_items=good) == PENDING
    assert file.open_count == 1


def test_send_29_errors_of_cancel_fds_come_in_the_order_of_the_items(pair: Pair) -> None:
    sender, receiver = pair
    process = sender.process
    good, regular = cancel_fd(process, FakeFile()), cancel_fd(process, FakeFile(pollable=False))
    assert request(sender, receiver.id, 6, sync=True, send_items=regular + good) == -EINVAL
    assert request(sender, receiver.id, 6, sync=True, send_items=good + regular) == -EEXIST
    assert all(file.open_count == 0 for file in process.files.values())


def test_send_30_a_closed_or_path_cancel_fd_is_ebadf(pair: Pair) -> None:
    sender, receiver = pair
    path = FakeFile(is_path=True)
    for item in (
        make_item(c.ITEM_CANCEL_FD, pack("<i", 999)),
        make_item(c.ITEM_CANCEL_FD, pack("<i", -1)),
        cancel_fd(sender.process, path),
    ):
        assert request(sender, receiver.id, 5, sync=True, send_items=item) == -EBADF
    assert path.open_count == 0
    assert at_rest(receiver) and at_rest(sender)


def test_send_1_the_destination_is_looked_at_after_src_id_and_cancel_fd(pair: Pair) -> None:
    sender, _ = pair
    closed = make_item(c.ITEM_CANCEL_FD, pack("<i", 999))
    assert request(sender, 999, 5, sync=True, send_items=closed) == -EBADF
    assert request(sender, 999, 5, sync=True, send_items=closed, src=77) == -EINVAL
    assert request(sender, 999, 5, sync=True) == -ENXIO


# SEND-31 to SEND-49: sequence numbers, destinations, permission, delivery


def seqnum(client: Client) -> int:
    return int.from_bytes(client.receive().item(c.ITEM_TIMESTAMP)[:8], "little")


def test_send_31_every_valid_send_takes_a_sequence_number_even_if_it_fails_later(world: World) -> None:
    sender, receiver = world.connect(), world.connect(recv=c.ATTACH_TIMESTAMP)
    sender.send(dst=receiver.id)
    first = seqnum(receiver)
    assert sender.send(dst=999) == -ENXIO
    assert sender.send(dst=receiver.id, payload_type=0) == -EINVAL  # takes none
    assert signal(sender) == 0
    sender.send(dst=receiver.id)
    assert seqnum(receiver) == first + 3


def test_send_32_a_broadcast_returns_0_whatever_happens(world: World) -> None:
    sender = world.connect()
    assert signal(sender) == 0
    receiver = observer(world)
    for _ in range(300):
        assert signal(sender) == 0
    assert receiver.connection.traffic.lost > 0


def test_send_33_act_3_mon_4_only_ordinary_connections_have_an_address(world: World) -> None:
    sender = world.connect()
    name = make_item(c.ITEM_NAME, b"a.b\0")
    assert sender.send(dst=999) == -ENXIO
    for flags, items in ((c.HELLO_MONITOR, b""), (c.HELLO_ACTIVATOR, name), (c.HELLO_POLICY_HOLDER, name)):
        special = world.connect(flags=flags, items=items)
        assert sender.send(dst=special.id) == -ENXIO
        special.close()


def test_send_34_a_name_without_owner_is_esrch_and_an_activator_is_an_owner(world: World) -> None:
    sender = world.connect()
    assert sender.send(items=dst_name(b"a.b")) == -ESRCH
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, b"a.b\0"))
    assert sender.send(items=dst_name(b"a.b")) == 0
    assert len(activator.connection.queue) == 1


def test_send_35_36_the_id_is_compared_before_no_auto_start_is(world: World) -> None:
    sender, other = world.connect(), world.connect()
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, b"a.b\0"))
    flags, name = c.MSG_NO_AUTO_START, dst_name(b"a.b")
    assert sender.send(dst=other.id, flags=flags, items=name) == -EREMCHG
    assert sender.send(dst=activator.id, flags=flags, items=name) == -EADDRNOTAVAIL
    assert sender.send(flags=flags, items=name) == -EADDRNOTAVAIL
    assert sender.send(dst=activator.id, items=name) == 0
    other.acquire(b"a.b")
    assert sender.send(flags=flags, items=name) == 0
    assert sender.send(dst=other.id, flags=flags) == 0


def test_send_37_an_invisible_name_is_eperm_and_a_missing_one_esrch(world: World) -> None:
    owner = world.open()
    assert owner.make_endpoint(b"1000-custom", c.MAKE_ACCESS_WORLD) == 0
    world.connect().acquire(b"a.b")
    client = world.connect(endpoint="1000-custom")
    assert client.send(items=dst_name(b"a.b")) == -EPERM
    assert client.send(items=dst_name(b"a.c")) == -ESRCH


def test_send_38_one_may_send_to_oneself_by_id_and_by_name(world: World) -> None:
    process = FakeProcess(uid=2000, pid=200)
    client = world.connect(process)
    assert client.send(dst=client.id, cookie=7) == 0
    owner = world.connect()
    owner.acquire(b"a.b")
    assert owner.send(items=dst_name(b"a.b"), cookie=8) == 0
    assert (cookies(client), cookies(owner)) == ([7], [8])


def test_send_39_metadata_that_cannot_be_gathered_fail_a_unicast_only(world: World) -> None:
    process = FakeProcess(uid=1000, pid=300)
    sender = world.connect(process)
    receiver = world.connect(recv=c.ATTACH_CREDS)
    receiver.add_match(1, id_rule(sender.id))
    monitor = world.connect(flags=c.HELLO_MONITOR, recv=c.ATTACH_CREDS)
    process.failing = c.ATTACH_CREDS
    assert sender.send(dst=receiver.id) == -EFAULT
    assert cookies(receiver) == [] and cookies(monitor) == []
    assert signal(sender, cookie=9) == 0
    assert cookies(receiver) == [9] and cookies(monitor) == [9]


def test_send_40_a_request_needs_permission_before_it_needs_a_slot(world: World) -> None:
    receiver = world.connect()
    stranger = world.connect(FakeProcess(uid=2000, pid=200))
    assert request(stranger, receiver.id, 1) == -EPERM
    assert stranger.connection.requests.count == 0
    friend = world.connect()
    process = friend.process
    for cookie in range(1, 129):
        target = receiver if cookie <= 20 else world.connect()
        assert request(friend, target.id, cookie) == 0
    assert request(friend, world.connect().id, 500) == -EMLINK
    assert process.uid == 1000


def test_send_41_a_unicast_signal_needs_a_match_and_the_receivers_right_to_talk(world: World) -> None:
    stranger = world.connect(FakeProcess(uid=2000, pid=200))
    receiver = world.connect(FakeProcess(uid=3000, pid=300))
    assert signal(stranger, receiver.id) == -EPERM
    receiver.add_match(1, id_rule(stranger.id))
    assert signal(stranger, receiver.id) == -EPERM
    privileged = world.connect()
    privileged.add_match(1)
    assert signal(stranger, privileged.id, cookie=3, cookie_reply=44) == 0
    assert signal(privileged, receiver.id) == -EPERM
    same = world.connect(FakeProcess(uid=2000, pid=201))
    same.add_match(1, id_rule(stranger.id))
    assert signal(stranger, same.id, cookie=4) == 0
    assert cookies(same) == [4]


def test_send_41_the_receivers_right_is_judged_by_its_credentials_of_hello(world: World) -> None:
    sender = world.connect(FakeProcess(uid=2000, pid=200))
    process = FakeProcess(uid=2000, pid=300)
    receiver = world.connect(process)
    receiver.add_match(1)
    process.euid = 4000
    assert signal(sender, receiver.id) == 0


def test_send_42_a_reply_needs_a_tracker_and_no_policy(world: World) -> None:
    client = world.connect()
    server = world.connect(FakeProcess(uid=2000, pid=200))
    assert reply(server, client.id, 5) == -EPERM
    assert reply(client, server.id, 5) == -EPERM  # privilege does not help
    assert request(client, server.id, 5) == 0
    assert server.send(dst=client.id) == -EPERM
    assert reply(server, client.id, 6) == -EPERM
    assert reply(server, client.id, 5) == 0
    assert reply(server, client.id, 5) == -EPERM


def test_send_43_a_plain_message_is_judged_by_the_callers_present_credentials(world: World) -> None:
    receiver = world.connect(FakeProcess(uid=2000, pid=200))
    process = FakeProcess(uid=3000, pid=300)
    sender = world.connect(process)
    assert sender.send(dst=receiver.id) == -EPERM
    process.euid = 2000
    assert sender.send(dst=receiver.id) == 0


def test_send_44_mon_6_monitors_see_what_is_permitted_even_if_delivery_fails(world: World) -> None:
    monitor = world.connect(flags=c.HELLO_MONITOR | c.HELLO_ACCEPT_FD)
    sender, receiver = world.connect(), world.connect(flags=0)
    stranger = world.connect(FakeProcess(uid=2000, pid=200))
    drain(monitor)
    assert sender.send(dst=receiver.id, cookie=1, items=pass_files(sender.process, FakeFile())) == -ECOMM
    assert stranger.send(dst=receiver.id, cookie=2) == -EPERM
    assert sender.send(dst=receiver.id, cookie=3, payload_type=0) == -EINVAL
    assert sender.send(dst=999, cookie=4) == -ENXIO
    assert cookies(monitor) == [1]


def test_send_45_delivery_errors_come_in_their_order(world: World) -> None:
    sender = world.connect()
    file = FakeFile()
    files = pass_files(sender.process, file)
    receiver = world.connect(flags=0, pool_size=4096)
    others = [world.connect(FakeProcess(uid=1000 + n, pid=n, ipc_owner=True)) for n in range(1, 20)]
    bad = vec(3000, 0xDEAD000)
    assert sender.send(dst=receiver.id, items=files + bad) == -ECOMM
    assert sender.send(dst=receiver.id, items=bad) == -EXFULL
    assert sender.send(dst=receiver.id, items=vec(5000, 0xDEAD000)) == -ENOBUFS
    assert sender.send(dst=receiver.id, items=vec(300, 0xDEAD000)) == -EFAULT
    for number in range(32):
        assert sender.send(dst=receiver.id, cookie=number) == 0
    assert sender.send(dst=receiver.id, items=vec(300, 0xDEAD000)) == -EFAULT  # before the quota
    assert sender.send(dst=receiver.id) == -ENOBUFS
    for other in others:
        while len(receiver.connection.queue) < 256 and other.send(dst=receiver.id) == 0:
            pass
    assert sender.send(dst=receiver.id, items=files) == -ENOBUFS  # before ECOMM
    assert file.open_count == 0


def test_send_46_return_flags_and_reply_are_stored_on_success_only(pair: Pair) -> None:
    sender, receiver = pair
    dirty = pack("<QQQQQQQQQ", 0, 0, 7, 7, 7, 0, 7, 7, 7)
    for dst, result in ((receiver.id, 0), (999, -ENXIO)):
        call = sender.call(c.CMD_SEND, dirty)
        call.message = bytes(sender.message(dst=dst))
        assert sender.run(call) == result
        assert sender.out(32) == (0 if result == 0 else 7)
        assert [sender.out(at) for at in (48, 56, 64)] == [7, 7, 7]


def test_send_47_the_message_is_readable_when_send_returns(pair: Pair) -> None:
    sender, receiver = pair
    before = receiver.handle.poll()
    sender.world.domain.changed.clear()
    assert sender.send(dst=receiver.id) == 0
    assert receiver.handle.poll() != before
    assert receiver.handle in sender.world.domain.changed


def test_send_48_messages_keep_their_order(pair: Pair) -> None:
    sender, receiver = pair
    other = sender.world.connect()
    for cookie in range(1, 16, 2):
        sender.send(dst=receiver.id, cookie=cookie)
        other.send(dst=receiver.id, cookie=cookie + 1)
    assert cookies(receiver) == list(range(1, 17))


@pytest.mark.parametrize("priority", [-(1 << 63), -1, 0, 1, (1 << 63) - 1])
def test_send_49_any_signed_priority_travels(pair: Pair, priority: int) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, priority=priority)
    assert receiver.receive().priority == priority


def test_a_sync_send_completes_through_the_domain(pair: Pair) -> None:
    """REP-14: the answer of a blocked SEND comes as a completed call."""
    sender, receiver = pair
    assert request(sender, receiver.id, 3, sync=True) == PENDING
    assert reply(receiver, sender.id, 3) == 0
    assert results(sender.world) == [0]
