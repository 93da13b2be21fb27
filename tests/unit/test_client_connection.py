"""The client's connections, messages and owners, over a system that answers with prepared bytes."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3 import layouts
from kdbusfs.abi.v3.commands import COMMANDS
from kdbusfs.abi.v3.items import RawItem, make_item, parse_items
from kdbusfs.client import (
    Connection,
    Lost,
    Memfd,
    Message,
    NameChange,
    NameInfo,
    OwnedName,
    Pids,
    ReceivedMemfd,
    Zero,
    deadline,
    make_bus,
    make_endpoint,
    own_name,
    raw,
    sealed_memfd,
    sender_rule,
    world,
)

POOL_SIZE = 1 << 16
BUS_ID = UUID(int=0x1234)
Answer = Callable[[memoryview], int]


@dataclass
class Fake:
    """A bus that keeps its commands and answers with what `answers` has for them, else with success."""

    pool: bytearray = field(default_factory=lambda: bytearray(POOL_SIZE))
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    commands: list[tuple[int, bytes]] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    polls: list[int] = field(default_factory=list)
    messages: list[tuple[bytes, list[RawItem], list[bytes]]] = field(default_factory=list)

    def open(self, path: str) -> int:
        self.opened.append(path)
        return 1000 + len(self.opened)

    def close(self, fd: int) -> None:
        self.closed.append(fd)

    def map_pool(self, fd: int, size: int) -> memoryview:
        assert size == len(self.pool)
        return memoryview(self.pool).toreadonly()

    def poll(self, fd: int, events: int, timeout: float | None) -> int:
        assert events == select.POLLIN
        return self.polls.pop(0)

    def ioctl(self, fd: int, number: int, address: int) -> int:
        if number == c.CMD_BYEBYE:
            self.commands.append((number, b""))
            command = memoryview(b"")
        else:
            assert address % 8 == 0
            size = layouts.U64.unpack(raw.look(address, 8))[0]
            command = raw.look(address, size)
            self.commands.append((number, bytes(command)))
        if number == c.CMD_SEND:
            self.take_message(layouts.CMD_SEND.unpack_from(command)[5])
        answers = self.answers.get(number)
        return answers.pop(0)(command) if answers else 0

    def take_message(self, address: int) -> None:
        """Reads what a SEND points to while it is there: the message, its items, the vectors' bytes."""
        assert address % 8 == 0
        size = layouts.U64.unpack(raw.look(address, 8))[0]
        data = bytes(raw.look(address, size))
        items = parse_items(data, layouts.MSG_SIZE, size)
        vectors = [layouts.VEC.unpack(payload) for kind, payload in items if kind == c.ITEM_PAYLOAD_VEC]
        payload = [bytes(raw.look(at, length)) if at else bytes(length) for length, at in vectors]
        self.messages.append((data, items, payload))

    def answer(self, number: int, *answers: Answer) -> None:
        self.answers.setdefault(number, []).extend(answers)

    def put(self, offset: int, data: bytes) -> None:
        self.pool[offset : offset + len(data)] = data

    def issued(self, number: int) -> list[bytes]:
        return [command for issued, command in self.commands if issued == number]


def fails(error: int) -> Answer:
    return lambda command: error


def stores(offset: int, *words: int) -> Answer:
    """Leaves words in the command from `offset` on, and succeeds."""

    def answer(command: memoryview) -> int:
        for i, word in enumerate(words):
            layouts.U64.pack_into(command, offset + 8 * i, word)
        return 0

    return answer


def says_hello(command: memoryview) -> int:
    fields = list(layouts.CMD_HELLO.unpack_from(command))
    fields[4] = c.ATTACH_PIDS | c.FLAG_KERNEL
    fields[6:8] = c.MAKE_ACCESS_WORLD, 42
    fields[9:12] = 512, 40, BUS_ID.bytes
    layouts.CMD_HELLO.pack_into(command, 0, *fields)
    return 0


@pytest.fixture
def bus() -> Fake:
    fake = Fake()
    item = make_item(c.ITEM_BLOOM_PARAMETER, layouts.BLOOM_PARAMETER.pack(64, 3))
    fake.put(512, layouts.U64.pack(40) + item)
    fake.answer(c.CMD_HELLO, says_hello)
    return fake


@pytest.fixture
def connection(bus: Fake) -> Iterator[Connection]:
    with Connection("/bus", pool_size=POOL_SIZE, system=bus) as connection:
        bus.commands.clear()
        yield connection


def test_hello_says_what_it_was_asked_to(bus: Fake) -> None:
    connection = Connection(
        "/run/bus",
        pool_size=POOL_SIZE,
        accept_fd=False,
        attach_send=c.ATTACH_PIDS,
        attach_recv=c.ATTACH_CREDS,
        flags=c.HELLO_ACTIVATOR,
        name="org.example.Echo",
        policy=[world(c.POLICY_TALK)],
        description="a-test",
        items=[(0x7777, b"more")],
        system=bus,
    )
    assert bus.opened == ["/run/bus"]
    ((_, hello), (_, free)) = bus.commands
    fields = layouts.CMD_HELLO.unpack_from(hello)
    assert fields[:9] == (
        len(hello), c.HELLO_ACTIVATOR, 0, 0, c.ATTACH_PIDS, c.ATTACH_CREDS, 0, 0, POOL_SIZE
    )  # fmt: skip
    assert parse_items(hello, layouts.CMD_HELLO.size, len(hello)) == [
        (c.ITEM_NAME, b"org.example.Echo\0"),
        (c.ITEM_POLICY_ACCESS, layouts.POLICY_ACCESS.pack(c.POLICY_ACCESS_WORLD, c.POLICY_TALK, 0)),
        (c.ITEM_CONN_DESCRIPTION, b"a-test\0"),
        (0x7777, b"more"),
    ]
    assert layouts.U64.unpack_from(free, 8)[0] == 512
    assert (connection.id, connection.bus_flags, connection.id128) == (42, c.MAKE_ACCESS_WORLD, BUS_ID)
    assert connection.attach_required == c.ATTACH_PIDS
    assert (connection.bloom_size, connection.n_hash) == (64, 3)
    assert len(connection.bloom("word")) == 64


def test_by_default_it_is_open_to_all_but_asks_for_nothing(bus: Fake) -> None:
    Connection("/bus", pool_size=POOL_SIZE, system=bus)
    fields = layouts.CMD_HELLO.unpack_from(bus.issued(c.CMD_HELLO)[0])
    assert (fields[1], fields[4], fields[5]) == (c.HELLO_ACCEPT_FD, c.ATTACH_ANY, 0)
    assert fields[0] == layouts.CMD_HELLO.size


def test_a_policy_holder_keeps_its_slice() -> None:
    """HELLO-19."""
    fake = Fake()
    item = make_item(c.ITEM_BLOOM_PARAMETER, layouts.BLOOM_PARAMETER.pack(64, 3))
    fake.put(512, layouts.U64.pack(40) + item)
    fake.answer(c.CMD_HELLO, says_hello)
    Connection("/bus", pool_size=POOL_SIZE, flags=c.HELLO_POLICY_HOLDER, name="a.b", system=fake)
    assert not fake.issued(c.CMD_FREE)


def test_a_failed_hello_closes_the_descriptor_and_raises_its_errno() -> None:
    fake = Fake()
    fake.answer(c.CMD_HELLO, fails(errno.ECONNREFUSED))
    with pytest.raises(ConnectionRefusedError, match="HELLO"):
        Connection("/bus", system=fake)
    assert fake.closed == [1001]


def test_a_descriptor_may_be_given_instead_of_a_path(bus: Fake) -> None:
    with Connection(77, pool_size=POOL_SIZE, system=bus) as connection:
        assert connection.fileno() == 77
    assert (bus.opened, bus.closed) == ([], [77])
    connection.close()
    assert bus.closed == [77]


def test_send_describes_payload_and_all_fields(bus: Fake, connection: Connection) -> None:
    with sealed_memfd(b"sealed") as memfd, open(os.devnull) as null:
        cookie = connection.send(
            "org.example.Echo",
            [b"text", Zero(24), Memfd(memfd)],
            dst_id=9,
            priority=-3,
            fds=[null],
            expect_reply=True,
            timeout_ns=12345,
            no_auto_start=True,
            payload_type=7,
            src_id=42,
            items=[(0x7777, b"x")],
        )
        ((message, items, payload),) = bus.messages
        flags = c.MSG_EXPECT_REPLY | c.MSG_NO_AUTO_START
        assert layouts.MSG.unpack_from(message) == (len(message), flags, -3, 9, 42, 7, cookie, 12345)
        assert [kind for kind, _ in items] == [
            c.ITEM_DST_NAME, c.ITEM_PAYLOAD_VEC, c.ITEM_PAYLOAD_VEC, c.ITEM_PAYLOAD_MEMFD, c.ITEM_FDS, 0x7777
        ]  # fmt: skip
        assert items[4][1] == layouts.I32.pack(null.fileno())
        assert payload == [b"text", bytes(24)]
    assert layouts.CMD_SEND.unpack_from(bus.issued(c.CMD_SEND)[0])[:5] == (72, 0, 0, 0, 0)


def test_cookies_count_up_unless_given(bus: Fake, connection: Connection) -> None:
    assert [connection.send(1), connection.send(1), connection.send(1, cookie=99), connection.send(1)] == [
        1, 2, 99, 3
    ]  # fmt: skip
    assert [layouts.MSG.unpack_from(message)[6] for message, _, _ in bus.messages] == [1, 2, 99, 3]


def test_replies_carry_the_cookie_of_the_request(bus: Fake, connection: Connection) -> None:
    message_at(bus, 1024, src_id=5, cookie=77)
    connection.reply(Message(connection.pool, 1024, 0, None), b"answer")
    connection.send(5, reply_to=78)
    assert [layouts.MSG.unpack_from(message)[3::4] for message, _, _ in bus.messages] == [(5, 77), (5, 78)]
    assert bus.messages[0][2] == [b"answer"]


def test_signals_have_a_filter_and_the_flag(bus: Fake, connection: Connection) -> None:
    connection.broadcast(b"news", bloom=connection.bloom("weather"), priority=4)
    connection.broadcast()
    connection.send(5, bloom=(2, b"\1" * 64))
    connection.send(5, signal=True)
    headers = [layouts.MSG.unpack_from(message) for message, _, _ in bus.messages]
    assert [(flags, dst_id) for _, flags, _, dst_id, *_ in headers] == [
        (c.MSG_SIGNAL, c.DST_ID_BROADCAST),
        (c.MSG_SIGNAL, c.DST_ID_BROADCAST),
        (c.MSG_SIGNAL, 5),
        (c.MSG_SIGNAL, 5),
    ]
    filters = [
        payload for _, items, _ in bus.messages for kind, payload in items if kind == c.ITEM_BLOOM_FILTER
    ]
    assert filters == [
        bytes(8) + connection.bloom("weather"),
        bytes(72),
        layouts.U64.pack(2) + b"\1" * 64,
    ]


def message_at(
    bus: Fake, offset: int, *items: RawItem, src_id: int = 5, flags: int = 0, cookie: int = 8, reply: int = 0
) -> bytes:
    """Puts a message into the pool as LAY-2 has it."""
    data = b"".join([make_item(kind, payload) for kind, payload in items])
    header = layouts.MSG.pack(64 + len(data), flags, -1, 42, src_id, c.PAYLOAD_DBUS, cookie, reply)
    bus.put(offset, header + data)
    return header + data


def received(bus: Fake, offset: int, size: int, return_flags: int = 0) -> None:
    bus.answer(c.CMD_RECV, stores(layouts.CMD_RECV.size - 24, offset, size, return_flags))


def freed(bus: Fake) -> list[int]:
    return [layouts.U64.unpack_from(command, 8)[0] for command in bus.issued(c.CMD_FREE)]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_message_holds_its_payload_until_its_block_ends(bus: Fake, connection: Connection) -> None:
    memfd, first, second = sealed_memfd(b"0123456789").take(), os.dup(0), os.dup(0)
    bus.put(4096, b"hello world")
    data = message_at(
        bus,
        1024,
        (c.ITEM_DST_NAME, b"org.example.Echo\0"),
        (c.ITEM_PAYLOAD_OFF, layouts.VEC.pack(6, 4096)),
        (c.ITEM_PAYLOAD_OFF, layouts.VEC.pack(3, c.U64_MAX)),
        (c.ITEM_PAYLOAD_MEMFD, layouts.MEMFD.pack(2, 5, memfd, 0)),
        (c.ITEM_PAYLOAD_OFF, layouts.VEC.pack(5, 4102)),
        (c.ITEM_FDS, layouts.I32.pack(first) + layouts.I32.pack(second) + layouts.I32.pack(-24)),
        (c.ITEM_PIDS, layouts.PIDS.pack(1, 2, 3)),
        (c.ITEM_OWNED_NAME, layouts.U64.pack(c.NAME_QUEUE) + b"a.b\0"),
        flags=c.MSG_EXPECT_REPLY,
        reply=999,
    )
    received(bus, 1024, len(data), c.RECV_RETURN_INCOMPLETE_FDS)
    message = connection.recv()
    assert message is not None
    with message:
        assert (message.src_id, message.dst_id, message.cookie, message.priority) == (5, 42, 8, -1)
        assert (message.timeout_ns, message.expects_reply, message.size) == (999, True, len(data))
        assert message.return_flags == c.RECV_RETURN_INCOMPLETE_FDS
        assert message.dst_name == "org.example.Echo"
        assert message.notification is None
        text, zeroes, file, more = message.payload
        assert isinstance(text, memoryview) and bytes(text) == b"hello " and text.readonly
        assert zeroes == Zero(3)
        assert isinstance(file, ReceivedMemfd) and file.read() == b"23456"
        assert isinstance(more, memoryview) and bytes(more) == b"world"
        assert message.data() == b"hello \0\0\x0023456world"
        assert [fd.fd for fd in message.fds] == [first, second, -24]
        assert [fd.installed for fd in message.fds] == [True, True, False]
        with pytest.raises(ValueError, match="-24"):
            message.fds[2].fileno()
        assert message.fds[1].take() == second
        assert message.metadata.pids == Pids(1, 2, 3)
        assert message.metadata.owned_names == (OwnedName("a.b", c.NAME_QUEUE),)
        assert freed(bus) == []
    assert freed(bus) == [1024]
    with pytest.raises(ValueError, match="released"):
        bytes(text)
    assert [is_open(fd) for fd in (memfd, first, second)] == [False, False, True]
    os.close(second)
    message.free()
    assert freed(bus) == [1024]


def test_notifications_are_decoded(bus: Fake, connection: Connection) -> None:
    item = (c.ITEM_NAME_ADD, layouts.NAME_CHANGE.pack(0, 0, 7, c.NAME_QUEUE) + b"a.b\0")
    data = message_at(bus, 1024, item, src_id=c.SRC_ID_KERNEL)
    received(bus, 1024, len(data))
    with connection.receive() as message:
        assert message.notification == NameChange(c.ITEM_NAME_ADD, "a.b", 0, 0, 7, c.NAME_QUEUE)


def test_recv_without_a_message_is_none(bus: Fake, connection: Connection) -> None:
    bus.answer(c.CMD_RECV, fails(errno.EAGAIN), fails(errno.ENOMSG))
    assert connection.recv() is None
    with pytest.raises(OSError, match="RECV") as raised:
        connection.recv(priority=-7)
    assert raised.value.errno == errno.ENOMSG
    words = [layouts.CMD_RECV.unpack_from(command)[1:5:3] for command in bus.issued(c.CMD_RECV)]
    assert words == [(0, 0), (c.RECV_USE_PRIORITY, -7)]


def test_lost_messages_are_reported_once(bus: Fake, connection: Connection) -> None:
    def lost(command: memoryview) -> int:
        layouts.U64.pack_into(command, layouts.CMD_RECV_DROPPED_OFFSET, 17)
        return errno.EOVERFLOW

    bus.answer(c.CMD_RECV, lost)
    with pytest.raises(Lost) as raised:
        connection.recv()
    assert raised.value.count == 17


def test_peek_and_drop(bus: Fake, connection: Connection) -> None:
    data = message_at(bus, 1024, (c.ITEM_FDS, layouts.I32.pack(-1)))
    received(bus, 1024, len(data))
    message = connection.recv(peek=True)
    assert message is not None
    message.free()
    assert connection.recv(drop=True) is None
    flags = [layouts.CMD_RECV.unpack_from(command)[1] for command in bus.issued(c.CMD_RECV)]
    assert flags == [c.RECV_PEEK, c.RECV_DROP]
    assert freed(bus) == [1024]


def test_an_interrupted_call_is_issued_again_and_gives_the_reply(bus: Fake, connection: Connection) -> None:
    """SYNC-3."""
    bus.put(4096, b"answer")
    data = message_at(bus, 1024, (c.ITEM_PAYLOAD_OFF, layouts.VEC.pack(6, 4096)), reply=1)
    bus.answer(c.CMD_SEND, fails(errno.EINTR), stores(layouts.CMD_SEND_REPLY_OFFSET, 1024, len(data), 0))
    before = deadline(5)
    with connection.call("org.example.Echo", b"question", timeout=5, cancel_fd=3) as reply:
        assert (reply.data(), reply.cookie_reply) == (b"answer", 1)
    first, second = bus.messages
    assert first[0][:48] == second[0][:48]
    _, flags, _, dst_id, _, _, cookie, timeout_ns = layouts.MSG.unpack_from(first[0])
    assert (flags, dst_id, cookie) == (c.MSG_EXPECT_REPLY, 0, 1)
    assert before <= timeout_ns <= deadline(5)
    assert freed(bus) == [1024]
    for command in bus.issued(c.CMD_SEND):
        assert layouts.CMD_SEND.unpack_from(command)[1] == c.SEND_SYNC_REPLY
        assert parse_items(command, 72, len(command)) == [(c.ITEM_CANCEL_FD, layouts.I32.pack(3))]


def test_errors_are_those_of_the_ioctl(bus: Fake, connection: Connection) -> None:
    bus.answer(c.CMD_SEND, fails(errno.ESRCH), fails(errno.ETIMEDOUT), fails(errno.EXFULL))
    with pytest.raises(ProcessLookupError):
        connection.send("a.b")
    with pytest.raises(TimeoutError):
        connection.call(3, timeout_ns=1)
    with pytest.raises(OSError, match="SEND") as raised:
        connection.send(3)
    assert raised.value.errno == errno.EXFULL


def test_waiting_tells_messages_from_time_and_death(bus: Fake, connection: Connection) -> None:
    bus.polls = [select.POLLIN, 0, select.POLLERR | select.POLLHUP]
    assert connection.wait(1) is True
    assert connection.wait(1) is False
    with pytest.raises(ConnectionResetError):
        connection.wait()


def test_receive_asks_again_after_a_spurious_wake_up(bus: Fake, connection: Connection) -> None:
    """POLL-5."""
    bus.polls = [select.POLLIN, select.POLLIN]
    bus.answer(c.CMD_RECV, fails(errno.EAGAIN), fails(errno.EAGAIN))
    data = message_at(bus, 1024)
    received(bus, 1024, len(data))
    with connection.receive(5) as message:
        assert message.payload == []
    bus.answer(c.CMD_RECV, fails(errno.EAGAIN))
    with pytest.raises(TimeoutError):
        connection.receive(0)


def test_names(bus: Fake, connection: Connection) -> None:
    bus.answer(c.CMD_NAME_ACQUIRE, stores(8, c.NAME_QUEUE | c.NAME_IN_QUEUE))
    assert connection.acquire("a.b", flags=c.NAME_QUEUE) == c.NAME_QUEUE | c.NAME_IN_QUEUE
    connection.release("a.b")
    for number in (c.CMD_NAME_ACQUIRE, c.CMD_NAME_RELEASE):
        (command,) = bus.issued(number)
        assert parse_items(command, 32, len(command)) == [(c.ITEM_NAME, b"a.b\0")]
    assert layouts.U64.unpack_from(bus.issued(c.CMD_NAME_ACQUIRE)[0], 8)[0] == c.NAME_QUEUE


def test_lists_and_infos_are_freed(bus: Fake, connection: Connection) -> None:
    item = make_item(c.ITEM_OWNED_NAME, layouts.U64.pack(1) + b"a.b\0")
    bus.put(2048, layouts.U64.pack(32 + len(item)) + layouts.NAME_INFO.pack(24 + len(item), 1, 3) + item)
    bus.answer(c.CMD_NAME_LIST, stores(32, 2048, 32 + len(item)))
    assert connection.list_names(c.NAME_LIST_UNIQUE) == [NameInfo(3, 1, "a.b", 1)]
    bus.put(3072, layouts.INFO.pack(24, 3, 1))
    for number in (c.CMD_CONN_INFO, c.CMD_BUS_CREATOR_INFO):
        bus.answer(number, *[stores(40, 3072, 24)] * 2)
    assert connection.conn_info(3, c.ATTACH_PIDS).id == 3
    assert connection.conn_info("a.b").flags == 1
    assert connection.creator_info(c.ATTACH_CREDS).items == []
    assert freed(bus) == [2048, 3072, 3072, 3072]
    by_id, by_name = bus.issued(c.CMD_CONN_INFO)
    assert layouts.CMD_INFO.unpack(by_id)[1:5] == (c.ATTACH_PIDS, 0, 0, 3)
    assert parse_items(by_name, 56, len(by_name)) == [(c.ITEM_NAME, b"a.b\0")]
    assert layouts.CMD_NAME_LIST.unpack(bus.issued(c.CMD_NAME_LIST)[0])[1] == c.NAME_LIST_UNIQUE
    assert layouts.CMD_INFO.unpack(bus.issued(c.CMD_BUS_CREATOR_INFO)[0])[1] == c.ATTACH_CREDS


def test_a_slice_is_freed_even_if_it_makes_no_sense(bus: Fake, connection: Connection) -> None:
    bus.put(3072, layouts.INFO.pack(4, 3, 1))
    bus.answer(c.CMD_CONN_INFO, stores(40, 3072, 24))
    with pytest.raises(ValueError, match="does not fit"):
        connection.conn_info(3)
    assert freed(bus) == [3072]


def test_matches(bus: Fake, connection: Connection) -> None:
    connection.add_match(7, sender_rule("a.b"), sender_rule(3), replace=True)
    connection.add_match(8)
    connection.remove_match(7)
    first, second = bus.issued(c.CMD_MATCH_ADD)
    assert [layouts.U64.unpack_from(first, at)[0] for at in (8, 16)] == [7, c.MATCH_REPLACE]
    assert parse_items(first, 40, len(first)) == [
        (c.ITEM_NAME, b"a.b\0"),
        (c.ITEM_ID, layouts.U64.pack(3)),
    ]
    assert (len(second), layouts.U64.unpack_from(second, 8)[0]) == (40, 8)
    (removed,) = bus.issued(c.CMD_MATCH_REMOVE)
    assert (len(removed), layouts.U64.unpack_from(removed, 8)[0]) == (40, 7)


def test_update_and_byebye(bus: Fake, connection: Connection) -> None:
    connection.update(attach_send=c.ATTACH_ANY, attach_recv=c.ATTACH_PIDS)
    connection.update(name="a.b", policy=[world(c.POLICY_SEE)])
    flags, policy = bus.issued(c.CMD_CONN_UPDATE)
    assert parse_items(flags, 32, len(flags)) == [
        (c.ITEM_ATTACH_FLAGS_SEND, layouts.U64.pack(c.ATTACH_ANY)),
        (c.ITEM_ATTACH_FLAGS_RECV, layouts.U64.pack(c.ATTACH_PIDS)),
    ]
    assert [kind for kind, _ in parse_items(policy, 32, len(policy))] == [c.ITEM_NAME, c.ITEM_POLICY_ACCESS]
    bus.answer(c.CMD_BYEBYE, lambda command: errno.EBUSY)
    with pytest.raises(OSError, match="BYEBYE"):
        connection.byebye()
    connection.byebye()


def test_messages_outlive_their_connection_without_harm(bus: Fake, connection: Connection) -> None:
    fd = os.dup(0)
    bus.put(4096, b"text")
    data = message_at(
        bus, 1024, (c.ITEM_PAYLOAD_OFF, layouts.VEC.pack(4, 4096)), (c.ITEM_FDS, layouts.I32.pack(fd))
    )
    received(bus, 1024, len(data))
    message = connection.receive()
    connection.close()
    assert message.data() == b"text"
    message.free()
    assert not is_open(fd)
    assert freed(bus) == []


def test_the_slices_of_a_dead_connection_need_no_freeing(bus: Fake, connection: Connection) -> None:
    data = message_at(bus, 1024)
    bus.answer(c.CMD_FREE, fails(errno.ECONNRESET), fails(errno.ENXIO))
    for _ in range(2):
        received(bus, 1024, len(data))
    connection.receive().free()
    with pytest.raises(OSError, match="FREE"):
        connection.receive().free()


@pytest.mark.parametrize("offset", [POOL_SIZE - 63, POOL_SIZE, c.U64_MAX - 8])
def test_messages_outside_of_the_pool_are_refused(connection: Connection, offset: int) -> None:
    with pytest.raises(ValueError, match="message at"):
        Message(connection.pool, offset, 0, None)


def test_payload_outside_of_the_pool_is_refused(bus: Fake, connection: Connection) -> None:
    message_at(bus, 1024, (c.ITEM_PAYLOAD_OFF, layouts.VEC.pack(10, POOL_SIZE - 9)))
    with pytest.raises(ValueError, match="payload of 10"):
        Message(connection.pool, 1024, 0, None)


def test_bus_owners(bus: Fake) -> None:
    with make_bus(
        "/run/kdbusfs",
        "test",
        bloom=(128, 2),
        access=c.MAKE_ACCESS_WORLD,
        attach_recv=c.ATTACH_PIDS,
        attach_send=c.ATTACH_ANY,
        items=[(0x7777, b"x")],
        system=bus,
    ) as owner:
        name = own_name("test")
        assert name == f"{os.geteuid()}-test"
        assert (owner.name, owner.path) == (name, f"/run/kdbusfs/{name}/bus")
        assert (owner.directory, os.fspath(owner)) == (f"/run/kdbusfs/{name}", owner.path)
        assert bus.closed == []
    assert (bus.opened, bus.closed) == (["/run/kdbusfs/control"], [1001])
    (command,) = bus.issued(c.CMD_BUS_MAKE)
    assert layouts.U64.unpack_from(command, 8)[0] == c.MAKE_ACCESS_WORLD
    assert parse_items(command, 32, len(command)) == [
        (c.ITEM_MAKE_NAME, name.encode() + b"\0"),
        (c.ITEM_BLOOM_PARAMETER, layouts.BLOOM_PARAMETER.pack(128, 2)),
        (c.ITEM_ATTACH_FLAGS_RECV, layouts.U64.pack(c.ATTACH_PIDS)),
        (c.ITEM_ATTACH_FLAGS_SEND, layouts.U64.pack(c.ATTACH_ANY)),
        (0x7777, b"x"),
    ]


def test_a_bus_that_cannot_be_made_leaves_nothing_open(bus: Fake) -> None:
    bus.answer(c.CMD_BUS_MAKE, fails(errno.EEXIST))
    with pytest.raises(FileExistsError, match="BUS_MAKE"):
        make_bus("/run/kdbusfs", "1-other", prefix=False, system=bus)
    assert b"\x001-other\0" in bus.issued(c.CMD_BUS_MAKE)[0]
    assert bus.closed == [1001]


def test_endpoint_owners(bus: Fake) -> None:
    policy = {"a.b": [world(c.POLICY_SEE)]}
    with make_endpoint("/run/0-x/bus", "custom", policy=policy, system=bus) as owner:
        assert owner.path == f"/run/0-x/{own_name('custom')}"
        owner.update({"c.d": []})
        owner.update()
    assert bus.opened == ["/run/0-x/bus"]
    (made,) = bus.issued(c.CMD_ENDPOINT_MAKE)
    kinds = [kind for kind, _ in parse_items(made, 32, len(made))]
    assert kinds == [c.ITEM_MAKE_NAME, c.ITEM_NAME, c.ITEM_POLICY_ACCESS]
    first, second = bus.issued(c.CMD_ENDPOINT_UPDATE)
    assert parse_items(first, 32, len(first)) == [(c.ITEM_NAME, b"c.d\0")]
    assert len(second) == COMMANDS[c.CMD_ENDPOINT_UPDATE].size
