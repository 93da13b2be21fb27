"""What the self-tests of kdbus of August 2015 look at, on a mount: each test begins with the names of those it covers.

The programs of test_last.py cover byebye, message-basic and message-free too, and tests/bench the three benchmarks;
daemon only waits.  All clients here speak the last ABI.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from kdbusfs.abi import commands as k
from kdbusfs.abi.last import constants as last
from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import (
    BusOwner,
    Connection,
    IdChange,
    Lost,
    Memfd,
    Message,
    NameChange,
    NoReply,
    Vec,
    bloom_rule,
    deadline,
    encode,
    id_added_rule,
    id_removed_rule,
    make_bus,
    make_endpoint,
    name_added_rule,
    name_changed_rule,
    name_removed_rule,
    raw,
    sealed_memfd,
    user,
    world,
)
from kdbusfs.client.dialect import LAST
from tests.support.actors import Actors, Link, errno_of, until
from tests.support.forked import Fatal, forked
from tests.support.peer import CLONE_NEWUSER, Peer

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

PATIENCE = 240.0  # seconds
NOBODY = 65534
POOL = 16 << 20
NAME = "foo.test.service"
ACTIVATOR = "foo.test.activator"
LONG = 1 << 62  # a deadline that no test reaches


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    with make_bus(
        domain_mount.path, "scene", family="last", access=c.MAKE_ACCESS_WORLD, attach_send=c.ATTACH_ALL
    ) as made:
        yield made


def join(bus: BusOwner | str, **hello: Any) -> Connection:
    hello.setdefault("attach_recv", c.ATTACH_ALL)
    return Connection(bus if isinstance(bus, str) else bus.path, family="last", **hello)


def got(connection: Connection) -> Message:
    message = connection.recv()
    assert message is not None
    return message


def shout(sender: Connection, bloom: bytes | tuple[int, bytes], cookie: int) -> None:
    sender.send(c.DST_ID_BROADCAST, bloom=bloom, cookie=cookie)


def cookies(connection: Connection) -> list[int]:
    found = []
    while (message := connection.recv()) is not None:
        with message:
            found.append(message.cookie)
    return found


def fill(sender: Connection, destination: int | str, payload: bytes = b"") -> int:
    """Send until that fails, which has to be with ENOBUFS; how many were queued."""
    count = 0
    while not (error := errno_of(sender.send, destination, payload)):
        count += 1
        assert count <= 256
    assert error == errno.ENOBUFS
    return count


def listed(connection: Connection, flags: int) -> list[tuple[int, str | None, int]]:
    return [(record.id, record.name, record.flags) for record in connection.list_names(flags)]


def ioctl(fd: int, kind: int, struct: bytes) -> tuple[int, bytes]:
    return raw.raw_ioctl(fd, LAST.number(kind), struct)


# Files and connections


def test_bus_make(domain_mount: DomainMount) -> None:
    """bus-make: L-3, L-24, L-25, L-30, L-47"""
    path = str(domain_mount.path / "control")
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        name = b"%d-made\0" % os.geteuid()
        bloom = c.ITEM_BLOOM_PARAMETER.to_bytes(8, "little") + (64).to_bytes(8, "little") + (1).to_bytes(8, "little")
        parts = {
            "name": (16 + len(name)).to_bytes(8, "little") + c.ITEM_MAKE_NAME.to_bytes(8, "little") + name,
            "bloom": (32).to_bytes(8, "little") + bloom,
            "shown": (24).to_bytes(8, "little") + c.ITEM_ATTACH_FLAGS_SEND.to_bytes(8, "little") + b"\xff" * 8,
            "foreign": (20).to_bytes(8, "little") + c.ITEM_MAKE_NAME.to_bytes(8, "little") + b"a-b\0",
        }
        items = {what: part + bytes(-len(part) % 8) for what, part in parts.items()}

        def make(fd: int, *what: str, flags: int = 0) -> int:
            return ioctl(fd, k.BUS_MAKE, LAST.command(k.BUS_MAKE, b"".join(items[one] for one in what), flags=flags))[0]

        for wrong in (
            (),
            ("name",),
            ("bloom",),
            ("name", "name", "bloom"),
            ("name", "bloom", "bloom"),
            ("bloom", "foreign"),
        ):
            assert make(first, *wrong) == errno.EINVAL
        assert make(first, "bloom", "shown", "name", flags=1 << 30) == errno.EINVAL
        assert make(first, "bloom", "shown", "name") == 0
        made = domain_mount.path / name[:-1].decode()
        found = {entry: entry.stat() for entry in (made, made / "bus")}
        assert [oct(status.st_mode) for status in found.values()] == ["0o40500", "0o100600"]
        assert {status.st_uid for status in found.values()} == {os.geteuid()}
        assert [entry.name for entry in made.iterdir()] == ["bus"]
        assert make(second, "bloom", "name") == errno.EEXIST
        assert make(first, "bloom", "name") == errno.EBADFD
        with join(f"{domain_mount.path}/{os.geteuid()}-made/bus") as asker:
            info = asker.creator_info(c.ATTACH_CREDS | c.ATTACH_PIDS)
            assert info.name == name[:-1].decode()
            assert info.metadata.pids is not None and info.metadata.pids.pid == os.getpid()
    finally:
        os.close(first)
        os.close(second)


def test_hello_and_byebye(bus: BusOwner) -> None:
    """hello, byebye: L-5, L-10, L-33, L-38, L-41"""
    fd = os.open(bus.path, os.O_RDWR)

    def hello(**members: int) -> int:
        given = {"attach_send": c.ATTACH_ANY, "attach_recv": c.ATTACH_ANY, "pool_size": POOL, **members}
        return ioctl(fd, k.HELLO, LAST.command(k.HELLO, b"", **given))[0]

    struct = LAST.command(k.HELLO, attach_send=c.ATTACH_ANY, pool_size=POOL)
    try:
        number = LAST.number(k.HELLO)
        assert raw.raw_ioctl(fd, number, struct, misalign=1)[0] == errno.EFAULT
        assert ioctl(fd, k.HELLO, (95).to_bytes(8, "little") + struct[8:])[0] == errno.EINVAL
        for wrong in (
            {"flags": 1 << 32},
            {"pool_size": 0},
            {"pool_size": 4097},
            {"attach_send": 1 << 40},
            {"attach_recv": 1 << 40},
            {"flags": c.HELLO_MONITOR | c.HELLO_ACTIVATOR},
            {"flags": c.HELLO_ACTIVATOR | c.HELLO_POLICY_HOLDER},
            {"flags": c.HELLO_ACTIVATOR},
        ):
            assert hello(**wrong) == errno.EINVAL, wrong
        assert hello(flags=c.HELLO_ACCEPT_FD) == 0
        assert hello(flags=c.HELLO_ACCEPT_FD) == errno.EBADFD
    finally:
        os.close(fd)
    with join(bus) as sender, join(bus) as leaving:
        sender.send(leaving.id)
        assert errno_of(leaving.byebye) == errno.EBUSY
        assert len(cookies(leaving)) == 1
        leaving.byebye()
        for again in (leaving.byebye, leaving.recv, leaving.list_names):
            assert errno_of(again) == errno.ECONNRESET
        assert errno_of(sender.send, leaving.id) == errno.ENXIO


def test_an_endpoint_of_its_own(domain_mount: DomainMount, bus: BusOwner, actors: Actors) -> None:
    """endpoint: L-28, L-43, L-122"""
    with (
        make_endpoint(bus, "narrow", family="last", access=c.MAKE_ACCESS_WORLD) as endpoint,
        join(endpoint.path) as reader,
        join(bus) as owner,
    ):
        reader.add_match(1, id_added_rule())
        for rule in (name_added_rule(), name_removed_rule(), name_changed_rule()):
            reader.add_match(2, rule)
        owner.acquire("foo.bar.baz")
        with join(bus) as other, got(reader) as message:
            assert message.notification == IdChange(c.ITEM_ID_ADD, other.id, c.HELLO_ACCEPT_FD)
        assert reader.recv() is None
        assert errno_of(reader.conn_info, "foo.bar.baz") == errno.ESRCH
        assert errno_of(reader.conn_info, owner.id) == errno.ENXIO
        assert listed(reader, c.NAME_LIST_NAMES) == []
        endpoint.update({"foo.bar.baz": [world(c.POLICY_SEE)]})
        owner.release("foo.bar.baz")
        with got(reader) as message:
            change = message.notification
            assert isinstance(change, NameChange) and change.name == "foo.bar.baz"
        owner.acquire("foo.bar.baz")
        assert reader.conn_info("foo.bar.baz").id == reader.conn_info(owner.id).id == owner.id

    def stranger() -> tuple[int, int]:
        return (
            errno_of(make_endpoint, bus, "mine", family="last"),
            errno_of(os.open, f"{domain_mount.path}/0-private/bus", os.O_RDWR),
        )

    with make_bus(domain_mount.path, "private", family="last"):
        assert actors.run(stranger, uid=NOBODY) == (errno.EPERM, errno.EACCES)


def test_a_monitor(bus: BusOwner, actors: Actors) -> None:
    """monitor: L-7, L-34, L-124"""
    with join(bus) as sender, join(bus) as receiver, join(bus, flags=c.HELLO_MONITOR) as monitor:
        sender.send(receiver.id, b"unicast", cookie=3)
        assert (cookies(receiver), cookies(monitor)) == ([3], [3])
        shout(sender, sender.bloom("x"), 4)
        assert (cookies(receiver), cookies(monitor)) == ([], [4])
        for refused in (
            lambda: monitor.acquire(NAME),
            lambda: monitor.send(receiver.id),
            lambda: monitor.add_match(1),
            monitor.byebye,
        ):
            assert errno_of(refused) == errno.EOPNOTSUPP
        assert {record.id for record in monitor.list_names(0xF)} == {sender.id, receiver.id}
    assert actors.run(lambda: errno_of(join, bus, flags=c.HELLO_MONITOR), uid=NOBODY) == errno.EPERM


def test_what_is_known_of_a_connection(bus: BusOwner, actors: Actors) -> None:
    """connection-info, connection-update: L-42 to L-48, L-100"""
    with join(bus, description="this-is-me") as target:
        target.acquire(NAME)

        def look() -> tuple[int, set[str], int]:
            with join(bus) as asker:
                found = asker.conn_info(NAME, c.ATTACH_ANY).metadata
                kinds = {kind for kind in ("creds", "pids", "cgroup", "caps", "description") if getattr(found, kind)}
                wrong = errno_of(asker.conn_info, NAME, 1 << 40)
                assert errno_of(asker.conn_info, 0, 0) == errno.EINVAL
                assert asker.conn_info(target.id).metadata.creds is None
                return asker.conn_info(target.id).id, kinds, wrong

        wanted = {"creds", "pids", "cgroup", "caps", "description"}
        for uid in (None, NOBODY):
            assert actors.run(look, uid=uid) == (target.id, wanted, errno.EINVAL)
    with join(bus) as sender, join(bus) as receiver:
        assert errno_of(receiver.update, attach_recv=1 << 40) == errno.EINVAL
        sender.send(receiver.id)
        receiver.update(attach_recv=0)
        sender.send(receiver.id)
        receiver.update(attach_recv=c.ATTACH_TIMESTAMP)
        sender.send(receiver.id)
        seen = []
        for _ in range(3):
            with got(receiver) as message:
                seen.append((message.metadata.creds is not None, message.metadata.timestamp is not None))
        assert seen == [(True, True), (False, False), (False, True)]


def test_the_pool_is_for_reading(bus: BusOwner) -> None:
    """writable-pool: POOL-3"""
    with join(bus) as client:
        for protection in (mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
            assert errno_of(raw.map_memory, client.fd, POOL, protection=protection) == errno.EACCES
        assert len(raw.map_memory(client.fd, POOL)) == POOL


def test_files_that_are_no_connection_have_no_pool(domain_mount: DomainMount, bus: BusOwner) -> None:
    """L-8: what is mapped of them kills who touches it."""
    control, fresh = (os.open(path, os.O_RDWR) for path in (domain_mount.path / "control", bus.path))
    with make_endpoint(bus, "mapped", family="last") as endpoint:

        for fd in (control, fresh, bus.fd, endpoint.fd):
            with pytest.raises(Fatal) as fatal:
                forked(lambda fd=fd: raw.map_memory(fd, 4096)[0])  # type: ignore[misc]
            assert fatal.value.number == signal.SIGBUS
    os.close(control)
    os.close(fresh)


# Names


def test_names_and_their_flags(bus: BusOwner, actors: Actors) -> None:
    """name-basics, name-conflict, name-queue, name-takeover, chat: L-99, L-106, L-107, L-109, L-111, L-113"""
    primary, queued = last.NAME_PRIMARY, c.NAME_QUEUE | c.NAME_IN_QUEUE
    every = c.NAME_LIST_NAMES | c.NAME_LIST_QUEUED
    with join(bus) as first, join(bus) as second:
        for _ in range(2):
            assert first.acquire(NAME) & primary
        assert listed(second, every) == [(first.id, NAME, primary)]
        assert errno_of(second.acquire, NAME) == errno.EEXIST
        assert errno_of(second.release, NAME) == errno.EADDRINUSE
        for nobodys in ("foo.bar.unknown", "foo", ".", "foo.bar.", "foo..bar"):
            assert errno_of(first.release, nobodys) == errno.ESRCH
        for bad in ("foo", ".", "foo.bar.", "foo..bar"):
            assert errno_of(first.acquire, bad) == errno.EINVAL
        flags = second.acquire(NAME, flags=c.NAME_QUEUE)
        assert flags == queued | last.NAME_ACQUIRED
        assert set(listed(second, every)) == {(first.id, NAME, primary), (second.id, NAME, queued)}
        first.release(NAME)
        assert listed(second, every) == [(second.id, NAME, primary | c.NAME_QUEUE)]
        second.release(NAME)
        assert errno_of(second.release, NAME) == errno.ESRCH
        first.acquire(NAME, flags=c.NAME_ALLOW_REPLACEMENT)
        assert listed(second, every) == [(first.id, NAME, primary | c.NAME_ALLOW_REPLACEMENT)]
        taken = second.acquire(NAME, flags=c.NAME_REPLACE_EXISTING)
        assert taken == primary | last.NAME_ACQUIRED
        assert listed(second, every) == [(second.id, NAME, primary)]
        assert {record.id for record in first.list_names(c.NAME_LIST_UNIQUE)} == {first.id, second.id}
        assert len(first.list_names(0xF)) == 2
        # Who is not the owner of the bus has no right to a name.
        assert actors.run(lambda: errno_of(join(bus).acquire, "foo.bar.other"), uid=NOBODY) == errno.EPERM


def test_an_activator(bus: BusOwner, actors: Actors) -> None:
    """activator: L-99, L-112"""
    activating = c.NAME_ACTIVATOR
    everything = c.NAME_LIST_ACTIVATORS | c.NAME_LIST_NAMES
    rights = [world(c.POLICY_OWN)]
    with (
        join(bus, flags=c.HELLO_ACTIVATOR, name=ACTIVATOR, policy=rights) as activator,
        join(bus) as client,
        join(bus) as service,
    ):
        assert listed(client, everything) == [(activator.id, ACTIVATOR, activating | last.NAME_PRIMARY)]
        client.send(ACTIVATOR, cookie=7)
        assert errno_of(client.send, ACTIVATOR, no_auto_start=True) == errno.EADDRNOTAVAIL
        assert errno_of(client.send, activator.id) == errno.ENXIO
        assert activator.wait(0) and not service.wait(0)
        service.acquire(ACTIVATOR)
        assert set(listed(client, everything)) == {
            (activator.id, ACTIVATOR, activating | c.NAME_IN_QUEUE),
            (service.id, ACTIVATOR, last.NAME_PRIMARY),
        }
        assert cookies(service) == [7] and not activator.wait(0)
        client.send(ACTIVATOR, cookie=8)
        service.release(ACTIVATOR)
        assert cookies(activator) == [8]

        def stranger() -> tuple[int, int, int]:
            made = errno_of(join, bus, flags=c.HELLO_ACTIVATOR, name="foo.test.other")
            with join(bus) as own:
                return made, errno_of(own.send, activator.id), errno_of(own.acquire, ACTIVATOR)

        assert actors.run(stranger, uid=NOBODY) == (errno.EPERM, errno.ENXIO, 0)


# Messages


def test_message_basics(bus: BusOwner) -> None:
    """message-basic, message-prio, message-free: L-64, L-66, L-71, L-92, L-93"""
    with join(bus) as sender, join(bus) as receiver:
        for each in (sender, receiver):
            each.add_match(1, bloom_rule(each.bloom("topic")))
        shout(sender, sender.bloom("topic"), 5)
        assert (cookies(sender), cookies(receiver)) == ([5], [5])
        assert errno_of(sender.send, receiver.id, expect_reply=True) == errno.EINVAL
        assert errno_of(receiver.send, sender.id, reply_to=4711) == errno.EBADSLT
        priorities = (25, -600, 10, -35, -100, 20, -15, -800, -150, 55)
        for number, priority in enumerate(priorities):
            sender.send(receiver.id, priority=priority, cookie=number)
        assert receive_urgent(receiver, -1000) is None
        order = [number for _, number in sorted(zip(priorities, range(10), strict=True))]
        urgent = [receive_urgent(receiver, -100) for _ in range(5)]
        assert urgent == [*order[:4], None]
        assert sorted(cookies(receiver)) == sorted(order[4:])
        for offset in (0, POOL + 1, POOL + 4096):
            assert errno_of(receiver.free, offset) == errno.ENXIO
        receiver.free(POOL)
        listing = LAST.command(k.LIST, flags=c.NAME_LIST_UNIQUE)
        first, second = (ioctl(receiver.fd, k.LIST, listing)[1] for _ in range(2))
        at = [LAST.read(k.LIST, "offset", struct) for struct in (first, second)]
        assert at[0] != at[1]
        for offset in at:
            receiver.free(offset)
            assert errno_of(receiver.free, offset) == errno.ENXIO
        # What the client has there is its own where no reply is waited for.
        message = raw.Block(encode.message(dst_id=receiver.id, items=b"", payload_type=1, cookie=9))
        command = LAST.command(k.SEND, msg_address=message.address, reply=7)
        error, struct = ioctl(sender.fd, k.SEND, command)
        assert (error, LAST.read(k.SEND, "reply", struct), cookies(receiver)) == (0, 7, [9])
        empty = ioctl(receiver.fd, k.LIST, LAST.command(k.LIST, flags=c.NAME_LIST_QUEUED))[1]
        assert (LAST.read(k.LIST, "offset", empty), LAST.read(k.LIST, "size", empty)) == (POOL, 0)


def receive_urgent(connection: Connection, priority: int) -> int | None:
    message = connection.recv(priority=priority)
    if message is None:
        return None
    with message:
        cookie: int = message.cookie
        return cookie


def test_descriptors(domain_mount: DomainMount, bus: BusOwner) -> None:
    """fd-passing: L-57, L-58, L-60, L-70, L-72, L-75, L-91"""
    with ExitStack() as stack:
        sender, receiver = stack.enter_context(join(bus)), stack.enter_context(join(bus))
        deaf = stack.enter_context(join(bus, accept_fd=False))
        null = stack.enter_context(open(os.devnull, "rb"))
        memfd = stack.enter_context(sealed_memfd(b"sealed"))
        assert errno_of(sender.send, deaf.id, fds=[null]) == errno.ECOMM
        sender.send(receiver.id, fds=[null] * 16)
        assert errno_of(sender.send, receiver.id, fds=[null] * 16) == errno.EMFILE  # those in the queue count
        assert errno_of(sender.send, receiver.id, fds=[null] * 17) == errno.EMFILE
        sender.send(receiver.id, [Memfd(memfd)] * 16)
        sender.send(receiver.id, [Memfd(memfd)] * 16)
        for count in (17, 128, 129, 300):
            assert errno_of(sender.send, receiver.id, [Memfd(memfd)] * count) == errno.E2BIG
        with got(receiver) as message:
            assert message.return_flags == 0 and len(message.fds) == 16
            assert all(os.fstat(file.fileno()).st_rdev == os.fstat(null.fileno()).st_rdev for file in message.fds)
        with got(receiver) as message:
            assert message.data() == b"sealed" * 16
        unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
        os.ftruncate(unsealed, 8)
        assert errno_of(sender.send, receiver.id, [Memfd(unsealed)]) == errno.ETXTBSY
        os.close(unsealed)
        control = os.open(domain_mount.path / "control", os.O_RDWR)
        pair = socket.socketpair()
        for bad in (sender.fd, bus.fd, control, pair[0]):
            assert errno_of(sender.send, receiver.id, fds=[bad]) == errno.EOPNOTSUPP
        os.close(control)
        assert errno_of(sender.send, c.DST_ID_BROADCAST, bloom=sender.bloom("x"), fds=[null]) == errno.ENOTUNIQ
        for end in pair:
            end.close()
        # The answer to a call of somebody who takes none.
        answered: list[int] = []

        def answer() -> None:
            with receiver.receive(PATIENCE):
                pass  # the other sixteen
            with receiver.receive(PATIENCE) as request:
                answered.append(errno_of(receiver.reply, request, b"", fds=[null]))

        thread = threading.Thread(target=answer)
        thread.start()
        assert errno_of(deaf.call, receiver.id) == errno.EREMOTEIO
        thread.join(PATIENCE)
        assert answered == [errno.ECOMM]


def test_memory_of_the_kernel(bus: BusOwner) -> None:
    """memory-access: L-57"""
    with join(bus) as sender, join(bus) as receiver:
        for address in (0xFFFFFFFF81000000, 1 << 63, 8):
            assert errno_of(sender.send, receiver.id, [Vec(4096, address)]) == errno.EFAULT
        assert receiver.recv() is None


# Quota


def test_messages_of_an_activator_that_do_not_fit(bus: BusOwner) -> None:
    """message-quota: L-75, L-81, L-94, L-114"""
    with (
        join(bus, flags=c.HELLO_ACTIVATOR, name=ACTIVATOR) as activator,
        join(bus) as service,
        join(bus) as sender,
    ):
        assert fill(sender, ACTIVATOR) == 256
        assert errno_of(service.send, ACTIVATOR) == errno.ENOBUFS  # the same user
        assert errno_of(service.send, activator.id) == errno.ENXIO
        with got(activator):
            pass
        left = 255
        assert fill(sender, service.id) == 256
        with got(service):
            pass
        service.acquire(ACTIVATOR)
        with pytest.raises(Lost) as lost:
            service.recv()
        assert lost.value.count == left - 1
        service.release(ACTIVATOR)
        assert len(cookies(activator)) == 1
        assert len(cookies(service)) == 255
        # And with nothing that fits.
        assert fill(sender, service.id) == 256
        for _ in range(3):
            sender.send(ACTIVATOR)
        service.acquire(ACTIVATOR)
        with pytest.raises(Lost) as lost:
            service.recv()
        assert lost.value.count == 3
        service.release(ACTIVATOR)
        assert activator.recv() is None
        assert len(cookies(service)) == 256
        assert fill(sender, service.id) == 256


def test_notifications_have_their_own_budget(bus: BusOwner) -> None:
    """message-quota: L-73, L-94, L-123"""
    with join(bus) as sender, join(bus) as reader:
        reader.add_match(1, id_added_rule())
        reader.add_match(2, id_removed_rule())
        for _ in range(128):
            with join(bus) as passing:
                passing.byebye()
        sender.send(reader.id, cookie=4711)
        for _ in range(2):
            with join(bus) as passing:
                passing.byebye()
        with pytest.raises(Lost) as lost:
            reader.recv()
        assert lost.value.count == 4
        found = cookies(reader)
        assert (len(found), found[256]) == (257, 4711)


def test_a_third_of_half_of_the_pool(bus: BusOwner) -> None:
    """message-quota: L-74, L-76, L-77"""
    large = bytes(2 << 20)
    with join(bus) as one, join(bus) as other, join(bus) as receiver:
        for _ in range(2):
            one.send(receiver.id, large)
            assert errno_of(one.send, receiver.id, large) == errno.ENOBUFS
            assert errno_of(other.send, receiver.id, large) == errno.ENOBUFS  # the same user
            with got(receiver) as message:
                assert len(message.data()) == 2 << 20


def test_requests_of_a_connection(bus: BusOwner) -> None:
    """message-quota: L-69"""
    with join(bus) as client, join(bus) as service:
        sent = [client.send(service.id, expect_reply=True, timeout_ns=LONG) for _ in range(128)]
        assert errno_of(client.send, service.id, expect_reply=True, timeout_ns=LONG) == errno.EMLINK
        assert cookies(service) == sent
        for cookie in sent:
            service.send(client.id, reply_to=cookie)
        assert len(cookies(client)) == 128
        client.send(service.id, expect_reply=True, timeout_ns=LONG)


# Requests


def test_timeouts(bus: BusOwner) -> None:
    """timeout: REP-4, L-119"""
    with join(bus) as client, join(bus) as service:
        sent = {client.send(service.id, expect_reply=True, timeout_ns=deadline(0.05 * n)) for n in range(1, 5)}
        ended: set[int] = set()
        while len(ended) < len(sent):
            with client.receive(PATIENCE) as message:
                assert isinstance(message.notification, NoReply)
                assert (message.notification.kind, message.flags, message.src_id) == (c.ITEM_REPLY_TIMEOUT, 0, 0)
                assert message.metadata.timestamp is not None
                ended.add(message.cookie_reply)
        assert ended == sent
        assert client.recv() is None


def background(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Runs it in a thread; what came of it, or the errno, will be in the list."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(call())
        except OSError as error:
            found.append(error.errno)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_calls(domain_mount: DomainMount, bus: BusOwner) -> None:
    """sync-byebye, sync-reply: L-41, L-66, L-67"""
    with join(bus) as client, join(bus) as service:
        thread, found = background(lambda: client.call(service.id, timeout=PATIENCE).data())
        with service.receive(PATIENCE) as request:
            assert errno_of(service.send, client.id, reply_to=request.cookie + 1) == errno.EBADSLT
            service.reply(request, b"answer")
            assert errno_of(service.reply, request, b"again") == errno.EBADSLT
        thread.join(PATIENCE)
        assert found == [b"answer"]
        thread, found = background(lambda: client.call(service.id, timeout=PATIENCE))
        with service.receive(PATIENCE):
            until("a blocked call", lambda: domain_mount.stats()["deferred"] == 1)
            client.byebye()
            thread.join(PATIENCE)
        assert found == [errno.ECONNRESET]
    with join(bus) as client, join(bus) as service:
        thread, found = background(lambda: client.call(service.id, timeout=PATIENCE))
        with service.receive(PATIENCE):
            service.byebye()
        thread.join(PATIENCE)
        assert found == [errno.EPIPE]
        assert errno_of(client.call, service.id, timeout=0.01) == errno.ENXIO


@pytest.mark.parametrize("restart", [True, False])
def test_a_signal_does_not_send_twice(bus: BusOwner, actors: Actors, restart: bool) -> None:
    """sync-reply: L-67, SYNC-2, SYNC-3"""

    def call(link: Link) -> tuple[bytes, int]:
        handled: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
        signal.siginterrupt(signal.SIGUSR1, not restart)
        with join(bus) as client:
            link.say(client.id)
            with client.call(NAME, b"once", timeout=PATIENCE) as reply:
                return reply.data(), len(handled)

    with join(bus) as service:
        service.acquire(NAME)
        actor = actors(call)
        actor.hear("its id")
        with service.receive(PATIENCE) as request:
            for _ in range(3):
                actor.kill(signal.SIGUSR1)
                time.sleep(0.05)
            assert not service.wait(0)
            service.reply(request, b"answer")
        data, handled = actor.result()
        assert data == b"answer" and handled >= 1
        assert service.recv() is None


# Policy and metadata


def test_policy(bus: BusOwner, actors: Actors) -> None:
    """policy, policy-priv, policy-ns: L-48, L-64, L-125"""
    with join(bus) as owner, ExitStack() as stack:
        owner.acquire(NAME)

        def stranger() -> tuple[int, int, int, list[int]]:
            with join(bus) as own:
                own.add_match(1, bloom_rule(own.bloom("x")))
                talk = errno_of(own.send, NAME)
                other = errno_of(own.send, owner.id)
                shout(own, own.bloom("x"), 6)
                return talk, other, errno_of(own.acquire, "foo.bar.own"), cookies(own)

        owner.add_match(1, bloom_rule(owner.bloom("x")))
        # A user may talk to itself, and so hears its own broadcasts.
        assert actors.run(stranger, uid=NOBODY) == (errno.EPERM, errno.EPERM, errno.EPERM, [6])
        assert cookies(owner) == [6]  # who owns the bus may talk to anybody
        holder = stack.enter_context(
            join(bus, flags=c.HELLO_POLICY_HOLDER, name=NAME, policy=[user(NOBODY, c.POLICY_TALK)])
        )
        assert actors.run(stranger, uid=NOBODY) == (0, 0, errno.EPERM, [6])
        assert errno_of(join, bus, flags=c.HELLO_POLICY_HOLDER, name=NAME) == errno.EEXIST
        holder.update(name="foo.bar.own", policy=[user(NOBODY, c.POLICY_OWN)])
        assert actors.run(stranger, uid=NOBODY) == (errno.EPERM, errno.EPERM, 0, [6])
        holder.update(name="foo.bar.*", policy=[world(c.POLICY_OWN)])
        assert actors.run(stranger, uid=NOBODY) == (errno.EPERM, errno.EPERM, 0, [6])
        assert errno_of(holder.update, name="foo.*.bar") == errno.EINVAL
        assert errno_of(owner.update, name=NAME) == errno.EOPNOTSUPP
        assert (
            actors.run(lambda: errno_of(join, bus, flags=c.HELLO_POLICY_HOLDER, name="foo.bar.b"), uid=NOBODY)
            == errno.EPERM
        )


def test_metadata_across_user_namespaces(bus: BusOwner) -> None:
    """metadata-ns: L-36, L-101, L-105"""
    container = Peer(CLONE_NEWUSER, (0, 0), ((0, 100_000, 1000),), ((0, 100_000, 1000),))
    with join(bus) as outside, container as inside:
        outside.acquire(NAME)
        connect = f"conn = Connection({bus.path!r}, attach_recv=c.ATTACH_ANY, family='last'); result = conn.id"
        number = inside(connect)
        outside.send(number, b"in")
        seen = inside(
            "with conn.receive(120) as m:\n"
            "  result = (list(m.metadata.creds), m.metadata.caps and m.metadata.caps.effective, m.metadata.pids.pid)"
        )
        assert seen[0] == [65534] * 8 and seen[2] == os.getpid()
        # It lies below the namespace of root's, whose capabilities count there, all the more as he made it.
        assert seen[1] > 0
        info = inside(
            f"m = conn.conn_info({outside.id}, c.ATTACH_ANY).metadata\nresult = (list(m.creds), m.caps.effective)"
        )
        assert info[0] == [65534] * 8 and info[1] > 0
        assert errno_of(outside.conn_info, number, c.ATTACH_ANY) == 0
        found = outside.conn_info(number, c.ATTACH_ANY).metadata
        assert found.creds == (100_000,) * 8
        assert found.caps is not None and (found.caps.effective, found.caps.permitted) == (0, 0)


# Matches


def test_matches(bus: BusOwner) -> None:
    """match-id-add, -id-remove, -replace, -name-add, -name-remove, -name-change, -bloom: L-116, L-118 to L-121"""
    with join(bus) as reader, join(bus) as other:

        def notices() -> list[object]:
            found: list[object] = []
            while (message := reader.recv()) is not None:
                with message:
                    assert message.flags == c.MSG_SIGNAL and message.metadata.timestamp is not None
                    found.append(message.notification)
            return found

        reader.add_match(1, id_added_rule())
        reader.add_match(2, id_removed_rule())
        with join(bus) as passing:
            passing.byebye()
        flags = c.HELLO_ACCEPT_FD
        assert notices() == [IdChange(kind, passing.id, flags) for kind in (c.ITEM_ID_ADD, c.ITEM_ID_REMOVE)]
        # Instead of all that have its cookie.
        reader.add_match(1, name_added_rule("foo.bar.a"), replace=True)
        with join(bus) as passing:
            passing.byebye()
        assert [type(notice) for notice in notices()] == [IdChange]
        reader.remove_match(2)
        assert errno_of(reader.remove_match, 2) == errno.EBADSLT
        reader.add_match(3, name_changed_rule("foo.bar.a"))
        reader.add_match(4, name_removed_rule("foo.bar.a"))
        allow = c.NAME_ALLOW_REPLACEMENT
        other.acquire("foo.bar.a", flags=allow)
        reader.acquire("foo.bar.a", flags=c.NAME_REPLACE_EXISTING)
        reader.release("foo.bar.a")
        shown = [last.NAME_PRIMARY | allow, last.NAME_PRIMARY]
        assert notices() == [
            NameChange(c.ITEM_NAME_ADD, "foo.bar.a", 0, 0, other.id, shown[0]),
            NameChange(c.ITEM_NAME_CHANGE, "foo.bar.a", other.id, shown[0], reader.id, shown[1]),
            NameChange(c.ITEM_NAME_REMOVE, "foo.bar.a", reader.id, shown[1], 0, 0),
        ]
        # Masks of several generations: that of the filter's counts, or the last one.
        low, high = bytes([1]) + bytes(63), bytes([2]) + bytes(63)
        reader.add_match(5, bloom_rule(low + high))
        for generation, bits, heard in (
            (0, low, True),
            (0, high, False),
            (1, high, True),
            (1, low, False),
            (9, high, True),
        ):
            shout(other, (generation, bits), 5)
            assert cookies(reader) == [5] * heard, (generation, bits[0])
