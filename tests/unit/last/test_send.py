"""SEND of the last ABI: what is refused, in which order, and where a message goes (L-49 to L-72)."""

from __future__ import annotations

from errno import (
    E2BIG,
    EBADF,
    EBADMSG,
    EBADSLT,
    ECOMM,
    ECONNRESET,
    EDESTADDRREQ,
    EDOM,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMLINK,
    EMSGSIZE,
    ENOTUNIQ,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EREMOTEIO,
    ESRCH,
    ETIMEDOUT,
    ETXTBSY,
)
from struct import pack, unpack_from

import pytest

from kdbusfs.abi.last import constants as c
from kdbusfs.abi.last.items import make_item
from kdbusfs.base.call import ERESTARTSYS, PENDING
from tests.support import core_scenes
from tests.support.fake_host import FakeFile, FakeProcess, sealed_memfd
from tests.support.last_client import LastClient, LastWorld, bloom, dst_name, pass_files, pass_memfd

Pair = tuple[LastClient, LastClient]
KERNEL_ADDRESS = 0xFFFFFFFF81000000


def cancel(fd: int) -> bytes:
    return make_item(c.ITEM_CANCEL_FD, pack("<i", fd))


def vec(size: int, address: int) -> bytes:
    return make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", size, address))


def memfd(size: int, fd: int, start: int = 0) -> bytes:
    return make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", start, size, fd, 0))


def restart(world: LastWorld, client: LastClient) -> None:
    """A signal came for its blocked SEND."""
    (call,) = list(world.domain.waiting)
    world.domain.interrupt(call)
    (done,) = world.domain.completed
    assert done.result == -ERESTARTSYS
    world.domain.completed.clear()


def result(world: LastWorld) -> int:
    """Of the only call that has come to an end."""
    (done,) = world.domain.completed
    world.domain.completed.clear()
    return done.result


def test_l_50_the_order_of_what_is_wrong(pair: Pair) -> None:
    """L-51 first, then src_id, header, items, and files at last."""
    sender, receiver = pair
    more = make_item(c.ITEM_FDS, pack("<i", 99))
    wrong = vec(3 << 20, 8) + more
    assert sender.send(send_items=cancel(99), dst=receiver.id, src=77, payload_type=0, items=wrong) == -EBADF
    assert sender.send(dst=receiver.id, src=77, payload_type=0, items=wrong) == -EINVAL
    assert sender.send(dst=receiver.id, payload_type=0, items=wrong) == -EINVAL
    assert sender.send(dst=receiver.id, items=vec(3 << 20, 8) + more) == -EMSGSIZE
    assert sender.send(dst=receiver.id, items=more) == -EBADF
    assert sender.send(dst=999, items=more) == -EBADF  # before the destination
    assert sender.send(dst=999) == -ENXIO


def test_l_51_a_cancel_fd_is_looked_at_in_any_case(pair: Pair) -> None:
    sender, receiver = pair
    files = {10: FakeFile(pollable=False), 11: FakeFile()}
    sender.process.files.update(files)
    assert sender.send(dst=receiver.id, send_items=cancel(9)) == -EBADF
    assert sender.send(dst=receiver.id, send_items=cancel(10)) == -EINVAL
    assert sender.send(dst=receiver.id, send_items=cancel(11) + cancel(11)) == -EINVAL
    assert sender.send(dst=receiver.id, send_items=cancel(11)) == 0
    assert [file.open_count for file in files.values()] == [0, 0]


def test_l_53_54_55_56_headers(pair: Pair) -> None:
    sender, receiver = pair
    everybody, signal, expect = c.DST_ID_BROADCAST, c.MSG_SIGNAL, c.MSG_EXPECT_REPLY
    late = vec(3 << 20, 8)  # EMSGSIZE at the scan, which comes later
    assert sender.send(dst=receiver.id, payload_type=0, items=late) == -EINVAL
    assert sender.send(dst=everybody, items=late) == -EBADMSG
    assert sender.send(dst=everybody, flags=signal, cookie_reply=1, items=late) == -ENOTUNIQ
    assert sender.send(dst=receiver.id, flags=expect, cookie_reply=0, items=late) == -EINVAL
    assert sender.send(dst=receiver.id, flags=expect | signal, cookie_reply=1, items=late) == -ENOTUNIQ
    assert sender.send(dst=receiver.id, send_flags=1, items=late) == -EINVAL
    assert sender.send(dst=receiver.id, flags=signal, cookie_reply=1, items=late) == -EINVAL
    assert sender.request(receiver.id, 0) == 0  # cookie 0 is one


def test_l_57_items(pair: Pair) -> None:
    sender, receiver = pair
    process = sender.process
    full = pass_memfd(process, 8) * 16

    def send(items: bytes, **more: int) -> int:
        return sender.send(dst=more.get("dst", receiver.id), flags=more.get("flags", 0), items=items)

    assert send(vec(2 << 20, 8) + vec(1, 8)) == -EMSGSIZE
    assert send(vec(8, KERNEL_ADDRESS)) == -EFAULT
    assert send(vec(8, KERNEL_ADDRESS) + memfd(8, 99)) == -EFAULT
    assert send(memfd(c.U64_MAX, 99, start=1)) == -EMSGSIZE
    assert send(full + pass_memfd(process, 8)) == -E2BIG
    assert send(full) == 0
    assert send(pass_files(process, *[FakeFile()] * 17)) == -EMFILE
    assert send(pass_files(process, *[FakeFile()] * 16)) == 0
    assert send(bloom(size=63)) == -EFAULT
    assert send(bloom(size=72)) == -EDOM
    assert send(dst_name(b"bad")) == -EINVAL
    assert send(dst_name(b"a.b") + bloom(), dst=c.DST_ID_BROADCAST, flags=c.MSG_SIGNAL) == -EBADMSG
    assert send(make_item(c.ITEM_NEGOTIATE, bytes(8))) == -EINVAL  # L-17
    receiver.drain()
    assert send(vec(1, 0) * 1000) == 0  # no limit of their number


def test_l_58_what_is_wrong_with_the_whole(pair: Pair) -> None:
    sender, receiver = pair
    files = pass_files(sender.process, FakeFile())
    assert sender.send(dst=receiver.id, flags=c.MSG_SIGNAL) == -EBADMSG
    assert sender.send(dst=receiver.id, items=bloom()) == -EBADMSG
    assert sender.send(items=bloom()) == -EBADMSG  # before EDESTADDRREQ
    assert sender.send() == -EDESTADDRREQ
    assert sender.signal(items=files) == -ENOTUNIQ
    assert sender.signal(items=pass_files(sender.process, *[FakeFile()] * 17)) == -EMFILE
    assert sender.signal(items=pass_files(sender.process)) == 0


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (FakeFile(), -EMEDIUMTYPE),
        (FakeFile(seal_bits=7, length=8), -ETXTBSY),
        (sealed_memfd(7), -EFAULT),
        (FakeFile(is_path=True), -EBADF),
        (sealed_memfd(8), 0),
    ],
)
def test_l_59_memfds(pair: Pair, file: FakeFile, expected: int) -> None:
    sender, receiver = pair
    assert sender.send(dst=receiver.id, items=pass_memfd(sender.process, 8, file=file)) == expected
    assert file.open_count == (1 if expected == 0 else 0)
    assert sender.send(dst=receiver.id, items=memfd(8, 99)) == -EBADF
    # L-58 comes first.
    assert sender.send(items=pass_memfd(sender.process, 8, file=file)) == -EDESTADDRREQ


def test_l_60_descriptors(pair: Pair) -> None:
    sender, receiver = pair
    for file, expected in (
        (FakeFile(is_path=True), 0),
        (FakeFile(is_bus_file=True), -EOPNOTSUPP),
        (FakeFile(is_control=True), -EOPNOTSUPP),
        (FakeFile(is_unix_socket=True), -EOPNOTSUPP),
    ):
        assert sender.send(dst=receiver.id, items=pass_files(sender.process, file)) == expected
    for fd in (-1, 99):
        assert sender.send(dst=receiver.id, items=make_item(c.ITEM_FDS, pack("<i", fd))) == -EBADF
    # In the order of the items.
    bad = make_item(c.ITEM_FDS, pack("<i", 99))
    assert sender.send(dst=receiver.id, items=bad + pass_memfd(sender.process, 8, file=FakeFile())) == -EBADF
    assert sender.send(dst=receiver.id, items=pass_memfd(sender.process, 8, file=FakeFile()) + bad) == -EMEDIUMTYPE


def test_l_61_every_message_has_a_greater_number(world: LastWorld) -> None:
    sender, receiver = world.last(), world.last(recv=c.ATTACH_TIMESTAMP)
    for _ in range(3):
        assert sender.send(dst=receiver.id) == 0
    numbers = [unpack_from("<Q", message.item(c.ITEM_TIMESTAMP))[0] for message in receiver.drain()]
    assert numbers == sorted(set(numbers))


def test_l_62_destinations(world: LastWorld) -> None:
    sender = world.last()
    monitor = world.last(flags=c.HELLO_MONITOR)
    assert sender.send(dst=monitor.id) == -ENXIO
    assert sender.send(items=dst_name(b"a.b")) == -ESRCH
    assert sender.acquire(b"a.b") == 0
    assert sender.send(items=dst_name(b"a.b")) == 0


def test_l_64_a_broadcast_reaches_its_sender(world: LastWorld) -> None:
    sender, old = world.last(), world.connect()
    assert sender.add_match(1) == 0
    assert old.add_match(1) == 0
    assert sender.signal(cookie=5) == 0
    assert sender.cookies() == [5]
    assert old.connection.queue.count == 1


def test_l_64_but_not_who_may_not_talk_to_itself(world: LastWorld) -> None:
    sender = world.last(FakeProcess(uid=2000, euid=2001))
    assert sender.add_match(1) == 0
    assert sender.signal() == 0
    assert sender.cookies() == []


def test_l_65_a_signal_to_one_that_does_not_want_it_is_no_error(world: LastWorld) -> None:
    sender, receiver = world.last(), world.last(pool_size=4096)
    monitor = world.last(flags=c.HELLO_MONITOR)
    monitor.drain()
    assert sender.signal(receiver.id, cookie=1) == 0
    assert receiver.cookies() == []
    assert receiver.add_match(1) == 0
    assert sender.signal(receiver.id, cookie=2) == 0
    assert receiver.cookies() == [2]
    assert sender.signal(receiver.id, cookie=3, items=sender.vec(bytes(3000))) == 0  # does not fit
    assert receiver.connection.traffic.lost == 0
    stranger = world.last(FakeProcess(uid=2000))
    assert receiver.connection.credentials.ids().euid == 1000
    foreign = world.last(FakeProcess(uid=3000))
    assert foreign.add_match(1) == 0
    assert stranger.signal(foreign.id, cookie=4) == 0
    assert foreign.cookies() == []
    assert [cookie for cookie in monitor.cookies() if cookie] == [1, 2, 3, 4]


def test_l_63_66_a_reply_that_nobody_waits_for(pair: Pair) -> None:
    caller, service = pair
    assert service.reply(caller.id, 5) == -EBADSLT
    assert caller.request(service.id, 5) == 0
    assert service.reply(caller.id, 6) == -EBADSLT
    assert service.reply(caller.id, 5) == 0
    assert service.reply(caller.id, 5) == -EBADSLT
    (reply,) = caller.drain()
    assert reply.cookie_reply == 5


def test_l_67_a_call_is_taken_up_again_wherever_it_went(world: LastWorld) -> None:
    caller, service, other = world.last(), world.last(), world.last()
    assert caller.request(service.id, 7, sync=True) == PENDING
    restart(world, caller)
    assert caller.request(other.id, 7, sync=True) == PENDING
    assert other.cookies() == []
    assert service.cookies() == [7]
    assert service.reply(caller.id, 7) == 0
    assert result(world) == 0


def test_l_68_a_call_that_is_late_is_not_sent(world: LastWorld) -> None:
    caller, service = world.last(), world.last()
    now = world.host.clock.now
    for deadline in (now, now - 1, 1 << 63):
        assert caller.request(service.id, 7, timeout=deadline, sync=True) == -ETIMEDOUT
        assert caller.request(999, 7, timeout=deadline, sync=True) == -ETIMEDOUT
    assert service.cookies() == []
    assert not core_scenes.slots(caller)


def test_l_69_rights_and_slots(world: LastWorld) -> None:
    caller, service = world.last(), world.last()
    assert world.last(FakeProcess(uid=2000)).request(service.id, 1) == -EPERM
    for number in range(128):
        assert caller.request(service.id, number) == 0
    assert caller.request(service.id, 128) == -EMLINK


def test_l_70_delivery(world: LastWorld) -> None:
    sender, deaf = world.last(), world.last(flags=0)
    assert sender.send(dst=deaf.id, items=pass_files(sender.process, FakeFile())) == -ECOMM
    assert sender.send(dst=deaf.id, items=vec(8, 8)) == -EFAULT
    assert deaf.cookies() == []
    assert core_scenes.at_rest(deaf)
    assert sender.send(dst=deaf.id) == 0
    gone = world.last()
    sender.process.meanwhile = gone.close
    assert sender.send(dst=gone.id, items=sender.vec(b"x")) == -ECONNRESET


def test_l_72_what_a_call_gives_back(world: LastWorld) -> None:
    caller, service = world.last(), world.last()
    assert caller.request(service.id, 7, sync=True) == PENDING
    waiting = caller.last_call.deferred
    assert waiting is not None
    assert service.cookies() == [7]
    files = pass_files(service.process, FakeFile()) + pass_memfd(service.process, 8)
    assert service.reply(caller.id, 7, service.vec(b"answer") + files) == 0
    assert result(world) == 0
    caller.last_call = waiting
    message = caller.last_message()
    assert caller.payloads(message) == [b"answer"]
    assert message.header[6:] == (1, 7)
    installation = message.installation
    assert installation is not None
    assert installation.flags_offset == 48
    assert len(installation.entries) == 2
    # Its struct does not travel back: all of it goes into the memory of the caller, in one piece.
    ((address, data),) = waiting.writes
    assert (address, data) == (waiting.address + 32, pack("<QQQ", message.offset, message.size, 0))
    installation.done()
    assert caller.free(message.offset) == 0
    assert core_scenes.at_rest(caller)
    assert core_scenes.at_rest(service)


def test_l_72_descriptors_for_who_takes_none(world: LastWorld) -> None:
    caller, service = world.last(flags=0), world.last()
    assert caller.request(service.id, 7, sync=True) == PENDING
    assert service.cookies() == [7]
    assert service.reply(caller.id, 7, pass_files(service.process, FakeFile())) == -ECOMM
    assert result(world) == -EREMOTEIO
    assert core_scenes.at_rest(caller)
