"""The ports of the core: LinuxHost and the fakes of the core's tests are held to the same contract (base.ports)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EBADF, EFAULT, EINVAL, ESRCH
from struct import unpack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.base import ports
from kdbusfs.base.errors import CommandError
from kdbusfs.base.identity import NO_ID
from kdbusfs.core.send import CancelToken
from kdbusfs.host.host import LinuxHost
from kdbusfs.host.memory import PoolMemory
from tests.operations.host_child import Child
from tests.support.fake_host import FakeCaller, FakeFile, FakeHost, FakeMemory, FakeProcess, sealed_memfd

PAGE = os.sysconf("SC_PAGE_SIZE")
KINDS = {
    "memfd": "sealed()",
    "unsealable": "os.open('/dev/null', os.O_RDONLY)",
    "pipe": "os.pipe()[0]",
    "socket": "keep(socket.socket(socket.AF_UNIX)).fileno()",
    "path": "os.open('/', os.O_PATH)",
    "directory": "os.open('/', os.O_RDONLY)",
}
PROGRAM = """
import fcntl, socket
kept = []
def keep(each):
    kept.append(each)
    return each
def sealed():
    fd = os.memfd_create('x', 3)
    os.ftruncate(fd, 12345)
    fcntl.fcntl(fd, 1033, 15)
    return fd
"""


class Side:
    """A host, and a client process with one thread."""

    host: ports.Host
    caller: ports.Caller
    pid: int

    def memory(self) -> ports.Memory:
        """A new pool."""
        raise NotImplementedError

    def contents(self, memory: ports.Memory) -> bytes:
        """All bytes of a pool."""
        raise NotImplementedError

    def place(self, data: bytes) -> int:
        """The address of `data` in the client's memory."""
        raise NotImplementedError

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the client's memory."""
        raise NotImplementedError

    def descriptor(self, kind: str) -> int:
        """A descriptor of the client for a file of KINDS."""
        raise NotImplementedError

    def kill(self) -> None:
        """End the client."""
        raise NotImplementedError

    def close(self) -> None:
        """Clean up."""


class Fake(Side):
    """The fakes."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.process = FakeProcess()
        self.caller = FakeCaller(self.process)
        self.pid = self.process.pid

    def memory(self) -> ports.Memory:
        return FakeMemory()

    def contents(self, memory: ports.Memory) -> bytes:
        assert isinstance(memory, FakeMemory)
        return bytes(memory.data)

    def place(self, data: bytes) -> int:
        return self.process.place(data)

    def read(self, address: int, size: int) -> bytes:
        return self.process.read(address, size)

    def descriptor(self, kind: str) -> int:
        made = {
            "memfd": sealed_memfd(12345),
            "socket": FakeFile(is_unix_socket=True),
            "path": FakeFile(is_path=True),
            "directory": FakeFile(pollable=False),
        }
        number = 3 + len(self.process.files)
        self.process.files[number] = made.get(kind, FakeFile())
        return number

    def kill(self) -> None:
        self.process.alive = False


class Real(Side):
    """Linux."""

    def __init__(self) -> None:
        self.child = Child(PROGRAM)
        self.pid = self.child.pid
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.linux = LinuxHost(event_fd=self.event)
        self.host = self.linux
        self.child.ask("1")  # it has begun
        self.caller = self.linux.caller(self.pid)

    def memory(self) -> ports.Memory:
        return self.linux.memory()

    def contents(self, memory: ports.Memory) -> bytes:
        assert isinstance(memory, PoolMemory)
        return os.pread(memory.fd, memory.size + 1, 0)

    def place(self, data: bytes) -> int:
        return int(self.child.ask(f"memory({PAGE}, {data!r})"))

    def read(self, address: int, size: int) -> bytes:
        return bytes.fromhex(self.child.ask(f"ctypes.string_at({address}, {size}).hex()"))

    def descriptor(self, kind: str) -> int:
        return int(self.child.ask(KINDS[kind]))

    def kill(self) -> None:
        self.child.end()
        self.caller = self.linux.caller(self.pid)

    def close(self) -> None:
        if self.child.process.poll() is None:
            self.child.end()
        self.linux.close()
        os.close(self.event)


@pytest.fixture(params=[Fake, Real])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    made: Side = request.param()
    yield made
    made.close()


def errno_of(call: object, *arguments: object) -> int:
    with pytest.raises(CommandError) as info:
        call(*arguments)  # type: ignore[operator]
    return info.value.errno


def test_a_pool_is_zero_bytes_of_the_size_that_was_asked_for(side: Side) -> None:
    memory = side.memory()
    memory.resize(2 * PAGE)
    assert side.contents(memory) == bytes(2 * PAGE)
    memory.close()


def test_what_is_stored_lies_where_it_was_put(side: Side) -> None:
    memory = side.memory()
    memory.resize(PAGE)
    memory.store(8, b"bytes")
    memory.store(100, bytearray(b"array"))
    memory.store(PAGE - 4, memoryview(b"xxview")[2:])
    expected = bytearray(PAGE)
    expected[8:13], expected[100:105], expected[-4:] = b"bytes", b"array", b"view"
    assert side.contents(memory) == expected
    memory.close()


def test_payload_is_copied_from_pool_to_pool(side: Side) -> None:
    """ACT-4"""
    source, target = side.memory(), side.memory()
    for memory in (source, target):
        memory.resize(PAGE)
    source.store(16, b"0123456789")
    target.copy_from(40, 5, source, 18)
    assert side.contents(target) == bytes(40) + b"23456" + bytes(PAGE - 45)
    source.close()
    target.close()


def test_payload_is_gathered_in_the_order_of_its_vectors(side: Side) -> None:
    """SEND-11"""
    memory = side.memory()
    memory.resize(PAGE)
    memory.store(0, b"\xff" * 64)
    address = side.place(b"abcdefgh")
    side.caller.copy_payload(memory, 4, [(address + 2, 3), (0, 5), (address, 8)])
    assert side.contents(memory)[:64] == b"\xff" * 4 + b"cde" + bytes(5) + b"abcdefgh" + b"\xff" * 44
    memory.close()


def test_memory_that_is_not_the_clients_is_efault(side: Side) -> None:
    memory = side.memory()
    memory.resize(PAGE)
    assert errno_of(side.caller.copy_payload, memory, 0, [(8, 16)]) == EFAULT
    assert errno_of(side.caller.copy_payload, memory, 0, [(side.place(b"x"), 1), (8, 16)]) == EFAULT
    assert errno_of(side.caller.write, 8, b"x") == EFAULT
    memory.close()


def test_what_is_written_is_seen_by_the_client(side: Side) -> None:
    address = side.place(bytes(64))
    side.caller.write(address + 8, b"written")
    assert side.read(address, 24) == bytes(8) + b"written" + bytes(9)


def test_a_deferred_caller_is_the_same_thread(side: Side) -> None:
    deferred = side.caller.defer()
    address = side.place(bytes(16))
    deferred.write(address, b"later")
    assert side.read(address, 5) == b"later"
    assert deferred.ids() == side.caller.ids()


def test_a_thread_that_is_gone_is_esrch(side: Side) -> None:
    memory = side.memory()
    memory.resize(PAGE)
    address = side.place(bytes(16))
    number = side.descriptor("pipe")
    side.kill()
    assert errno_of(side.caller.ids) == ESRCH
    assert errno_of(side.caller.write, address, b"x") == ESRCH
    assert errno_of(side.caller.copy_payload, memory, 0, [(address, 8)]) == ESRCH
    assert errno_of(side.caller.take_file, number) == ESRCH
    assert errno_of(side.caller.collect, ports.ProcessMetadata(), c.ATTACH_CREDS) == ESRCH
    memory.close()


@pytest.mark.parametrize(
    ("kind", "seals", "is_unix_socket", "is_path"),
    [
        ("memfd", 0xF, False, False),
        ("unsealable", None, False, False),
        ("socket", None, True, False),
        ("path", None, False, True),
    ],
)
def test_kinds_of_files(side: Side, kind: str, seals: int | None, is_unix_socket: bool, is_path: bool) -> None:
    """SEND-13, SEND-16"""
    file = side.caller.take_file(side.descriptor(kind))
    assert (file.seals(), file.is_unix_socket, file.is_path) == (seals, is_unix_socket, is_path)
    assert not file.is_bus_file
    if seals is not None:
        assert file.size() == 12345
    file.close()


def test_a_number_without_a_descriptor_is_ebadf(side: Side) -> None:
    assert errno_of(side.caller.take_file, 999) == EBADF


def test_a_watched_file_belongs_to_its_watch(side: Side) -> None:
    """SYNC-1: ending the watch closes the descriptor; twice is once."""
    watch = side.host.watch(side.caller.take_file(side.descriptor("pipe")), CancelToken())
    watch.close()
    watch.close()


def test_a_file_that_cannot_be_polled_is_einval_and_stays_its_owners(side: Side) -> None:
    file = side.caller.take_file(side.descriptor("directory"))
    assert errno_of(side.host.watch, file, CancelToken()) == EINVAL
    file.close()


def test_ids_of_the_own_namespace_are_translated_to_themselves(side: Side) -> None:
    """NS-1, NS-4, META-6"""
    caller = side.caller
    for to_inside in (caller.uid_from_global, caller.gid_from_global):
        assert [to_inside(id) for id in (0, 77, NO_ID)] == [0, 77, NO_ID]
    for to_global in (caller.uid_to_global, caller.gid_to_global):
        assert [to_global(id) for id in (0, 77, NO_ID)] == [0, 77, None]
    assert unpack("<3I", caller.gids_from_global((5, 0, 9))) == (5, 0, 9)
    assert caller.maps_uid(77)
    assert caller.domain_uid(77) == 77


def test_who_the_caller_is(side: Side) -> None:
    caller = side.caller
    assert caller.user == caller.ids().uid
    assert len(caller.ids()) == 8
    assert caller.pids_of(side.pid) == {caller.pid_ns: side.pid}
    assert caller.pids_of(0) is None and caller.pids_of(-1) is None
    assert caller.user_ns > 0 and caller.pid_ns > 0
    assert isinstance(caller.has_ipc_owner(), bool)


def test_metadata_are_collected_once(side: Side) -> None:
    """META-3"""
    metadata = ports.ProcessMetadata()
    side.caller.collect(metadata, c.ATTACH_CREDS | c.ATTACH_PIDS)
    assert metadata.collected == metadata.valid == c.ATTACH_CREDS | c.ATTACH_PIDS
    assert metadata.creds == side.caller.ids()
    assert metadata.pids[side.caller.pid_ns].pid == side.pid
    metadata.creds = None
    side.caller.collect(metadata, c.ATTACH_CREDS | c.ATTACH_PID_COMM)
    assert metadata.collected == c.ATTACH_CREDS | c.ATTACH_PIDS | c.ATTACH_PID_COMM
    assert metadata.creds is None, "it was collected before"
    assert metadata.pid_comm


def test_the_rest_of_the_host(side: Side) -> None:
    """BUS-9, HELLO-2, REP-4"""
    host = side.host
    one, other = host.random_uuid(), host.random_uuid()
    assert len(one) == len(other) == 16 and one != other
    assert host.page_size == PAGE
    assert 0 < host.clock.monotonic() <= host.clock.monotonic()
    assert host.clock.realtime() > 10**18
    assert isinstance(host.turn.pause(), bool)
