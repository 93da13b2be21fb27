"""The channel and its requests against a kernel that is a socket: every request and answer byte for byte."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kdbusfs.abi.last import constants as last
from kdbusfs.abi.v3 import constants as c
from kdbusfs.base.account import Account
from kdbusfs.base.call import PENDING, Call, Installation
from kdbusfs.base.errors import CommandError
from kdbusfs.base.ports import Memory
from kdbusfs.core.message import Resources
from kdbusfs.fuse.channel import (
    EVENT,
    FORGET,
    FREED,
    INTERRUPT,
    IOCTL,
    NOTHING,
    RELEASE,
    REQUEST_ARG,
    REQUEST_CMD,
    REQUEST_COMMAND_ERROR,
    REQUEST_COMMAND_LEN,
    REQUEST_FH,
    REQUEST_FREED,
    REQUEST_MESSAGE_ERROR,
    REQUEST_MESSAGE_LEN,
    REQUEST_PIDFD,
    REQUEST_SIZE,
    REQUEST_TID,
    REQUEST_UNIQUE,
    TIMER,
    TREE,
    Amendments,
    Channel,
)
from kdbusfs.fuse.error_log import ErrorLog
from kdbusfs.fuse.files import OpenFiles
from kdbusfs.fuse.requests import Requests, SharedState
from kdbusfs.fuse.responder import ClientFiles, JobContext
from kdbusfs.fuse.server import LINGER_NS, Server, Wakeup
from kdbusfs.host.installer import Installer as RealInstaller
from kdbusfs.host.job import Job
from kdbusfs.host.vault import Vault
from kdbusfs.native import calls
from kdbusfs.native._native import ffi, lib
from tests.support import channel_fakes as fakes
from tests.support.channel_client import aligned

FUSE_GETATTR = 3
FUSE_FORGET = 2
FUSE_RELEASE = 18
FUSE_RELEASEDIR = 29
FUSE_LOOKUP = 1
FUSE_IOCTL = 39
FUSE_POLL = 40
FUSE_INTERRUPT = 36
FUSE_NOTIFY_REPLY = 41
FUSE_NOTIFY_RETRIEVE = 5  # a code of notifications
NODEID = 7
SCHEDULE_NOTIFY = 1
IOCTL_DIR = 16
libc = ctypes.CDLL(None)
SAME_UNIQUE = b"\xab" * 8


class Kernel:
    """The other end of the channel."""

    def __init__(self) -> None:
        self.fuse, self.reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.calls = 0
        """How often the channel had a request of its own made."""
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._pump = threading.Thread(target=self._take_answers, daemon=True)
        self._pump.start()
        self.tree, self.tree_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.tree.settimeout(240)
        self.wakeup = Wakeup()
        self.channel = Channel(self.reader.fileno(), self.tree_end.fileno(), self.wakeup.event_fd)
        self.unique = 0

    def _take_answers(self) -> None:
        """Sort out what is no answer but wants a request: FUSE_NOTIFY_RETRIEVE."""
        while raw := self.fuse.recv(1 << 20):
            _, error, unique = struct.unpack_from("<IiQ", raw)
            if (unique, error) != (0, FUSE_NOTIFY_RETRIEVE):
                self._answers.put(raw)
                continue
            notify_unique, nodeid, offset, size = struct.unpack_from("<QQQI", raw, 16)
            assert (len(raw), nodeid, offset, size) == (48, NODEID, 0, 0)
            self.calls += 1
            reply = struct.pack("<IIQQIIIHH40x", 80, FUSE_NOTIFY_REPLY, notify_unique, nodeid, 0, 0, 0, 0, 0)
            # The test may have closed the other end meanwhile.
            with contextlib.suppress(BrokenPipeError):
                self.fuse.send(reply)

    def close(self) -> None:
        self.channel.close()
        self.reader.shutdown(socket.SHUT_RDWR)
        self._pump.join(240)
        for end in (self.fuse, self.reader, self.tree, self.tree_end):
            end.close()
        self.wakeup.close()

    resent = 0
    """Bit 63 for requests that came to another daemon before."""

    def ask(self, opcode: int, body: bytes = b"", tid: int | None = None, uid: int = 0) -> int:
        self.unique = (self.unique + 2) | self.resent
        tid = threading.get_native_id() if tid is None else tid
        header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, self.unique, NODEID, uid, 0, tid, 0, 0)
        self.fuse.send(header + body)
        return self.unique

    def ioctl(
        self,
        fh: int,
        cmd: int,
        address: int,
        data: bytes = b"",
        *,
        tid: int | None = None,
        flags: int = 0,
        out_size: int | None = None,
        uid: int = 0,
    ) -> int:
        if out_size is None:
            out_size = (cmd >> 16) & 0x3FFF if cmd >> 31 else 0
        body = struct.pack("<QIIQII", fh, flags, cmd, address, len(data), out_size) + data
        return self.ask(FUSE_IOCTL, body, tid, uid)

    def command(self, fh: int, cmd: int, buffer: Any, **kwargs: Any) -> int:
        """An ioctl whose struct lies in our own memory."""
        size = (cmd >> 16) & 0x3FFF
        return self.ioctl(fh, cmd, ctypes.addressof(buffer), buffer.raw[:size], **kwargs)

    def poll(self, fh: int, kh: int = 5, flags: int = SCHEDULE_NOTIFY) -> int:
        return self.ask(FUSE_POLL, struct.pack("<QQII", fh, kh, flags, 0xFFFF))

    def step(self, result: int = NOTHING, timeout_ms: int = 60_000) -> int:
        return self.channel.step(time.monotonic_ns() + timeout_ms * 1_000_000, result)

    def answer(self) -> tuple[int, int, bytes]:
        """unique, error and body of the next message."""
        raw = self._answers.get(timeout=120)
        length, error, unique = struct.unpack_from("<IiQ", raw)
        assert length == len(raw)
        return unique, error, raw[16:]

    def result(self) -> tuple[int, int, bytes]:
        """unique, result and struct of the next message, which answers an ioctl."""
        unique, error, body = self.answer()
        assert error == 0
        return unique, struct.unpack_from("<i", body)[0], body[16:]

    def is_empty(self) -> bool:
        return self._answers.empty()

    def is_silent(self) -> bool:
        time.sleep(0.05)
        return self.is_empty()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture(params=[False, True], ids=["no file is open", "a file is open"])
def waiting(request: pytest.FixtureRequest, kernel: Kernel) -> Kernel:
    """A channel that waits for all descriptors, or one that sleeps in its read and is called."""
    if request.param:
        use_file(kernel)
        # Before it sleeps for the first time it tries whether it can be called.
        assert kernel.step(timeout_ms=1) == TIMER
    return kernel


def use_file(kernel: Kernel) -> None:
    unique = kernel.ioctl(kernel.channel.slot_new(), 0x9577, 0)
    assert kernel.step() == IOCTL
    kernel.channel.flush(-errno.ENOTTY)
    assert kernel.result()[:2] == (unique, -errno.ENOTTY)


def recv_struct(size: int = 72, tail: bytes = b"") -> Any:
    return aligned(struct.pack("<Q", size) + bytes(64) + tail)


# Commands and their memory


HEAD = struct.Struct("=QQQIIIiiIiI")
"""unique, fh, arg, cmd, tid, length and errno of the command, pidfd, length and errno of the message, freed."""


def current_request(kernel: Kernel) -> tuple[int, ...]:
    return HEAD.unpack(calls.current_request(kernel.channel.address)[0])


def test_members_of_the_head_are_where_they_are_looked_for() -> None:
    members = {
        REQUEST_UNIQUE: "unique",
        REQUEST_FH: "fh",
        REQUEST_ARG: "arg",
        REQUEST_CMD: "cmd",
        REQUEST_TID: "tid",
        REQUEST_COMMAND_LEN: "command_len",
        REQUEST_COMMAND_ERROR: "command_error",
        REQUEST_PIDFD: "pidfd",
        REQUEST_MESSAGE_LEN: "message_len",
        REQUEST_MESSAGE_ERROR: "message_error",
        REQUEST_FREED: "freed",
    }
    assert {offset: ffi.offsetof("struct kfs_channel", name) for offset, name in members.items()} == {
        offset: offset for offset in members
    }
    assert REQUEST_SIZE == HEAD.size == lib.KFS_REQUEST_HEAD_SIZE


def test_fixed_struct_needs_no_client_memory(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    unique = kernel.ioctl(fh, c.CMD_RECV, 0x1000, recv_struct().raw, tid=0)
    assert kernel.step() == IOCTL
    head = current_request(kernel)
    assert head[:8] == (unique, fh, 0x1000, c.CMD_RECV, 0, 72, 0, -1)
    assert kernel.channel.command[:72] == recv_struct().raw


def test_tail_is_read_behind_the_struct(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    tail = bytes(range(256)) * 4
    kernel.command(fh, c.CMD_RECV, recv_struct(72 + len(tail), tail))
    assert kernel.step() == IOCTL
    length, error, pidfd = current_request(kernel)[5:8]
    assert (length, error) == (72 + len(tail), 0)
    assert kernel.channel.command[72:length] == tail
    assert pidfd >= 0
    kernel.channel.slot_free(fh)
    with pytest.raises(OSError):
        os.fstat(pidfd)


@pytest.mark.parametrize(
    ("cmd", "size", "expected"),
    [
        (c.CMD_RECV, 71, errno.EINVAL),
        (c.CMD_RECV, 0, errno.EINVAL),
        (c.CMD_RECV, 32769, errno.EMSGSIZE),
        (c.CMD_RECV, 2**64 - 1, errno.EMSGSIZE),
        (c.CMD_FREE, 8193, errno.EMSGSIZE),
        (c.CMD_MATCH_REMOVE, 48, errno.EMSGSIZE),
    ],
)
def test_size_is_checked_before_anything_is_read(kernel: Kernel, cmd: int, size: int, expected: int) -> None:
    """GEN-6, GEN-7."""
    fh = kernel.channel.slot_new()
    kernel.command(fh, cmd, recv_struct(size))
    assert kernel.step() == IOCTL
    length, error, pidfd = current_request(kernel)[5:8]
    assert (length, error, pidfd) == ((cmd >> 16) & 0x3FFF, expected, -1)


@pytest.mark.parametrize("offset", [1, 4, 7])
def test_unaligned_argument(kernel: Kernel, offset: int) -> None:
    """GEN-5."""
    fh = kernel.channel.slot_new()
    kernel.ioctl(fh, c.CMD_RECV, 0x10000 + offset, recv_struct(80).raw, tid=0)
    assert kernel.step() == IOCTL
    assert current_request(kernel)[6] == errno.EFAULT


@pytest.mark.parametrize("address", [8, 2**64 - 80, 2**64 - 72])
def test_unreadable_tail(kernel: Kernel, address: int) -> None:
    fh = kernel.channel.slot_new()
    kernel.ioctl(fh, c.CMD_RECV, address, recv_struct(32768).raw)
    assert kernel.step() == IOCTL
    assert current_request(kernel)[5:7] == (72, errno.EFAULT)


def test_caller_outside_of_the_pid_namespace(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    kernel.command(fh, c.CMD_RECV, recv_struct(80), tid=0)
    assert kernel.step() == IOCTL
    assert current_request(kernel)[5:8] == (72, errno.ESRCH, -1)


def test_caller_that_is_gone(kernel: Kernel) -> None:
    done = threading.Event()
    tids: list[int] = []

    def wait() -> None:
        tids.append(threading.get_native_id())
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    while not tids:
        time.sleep(0.001)
    fh = kernel.channel.slot_new()
    buffer = recv_struct(80, bytes(8))
    kernel.command(fh, c.CMD_RECV, buffer, tid=tids[0])
    assert kernel.step() == IOCTL
    assert current_request(kernel)[6] == 0
    done.set()
    thread.join()
    while os.path.exists(f"/proc/self/task/{tids[0]}"):
        time.sleep(0.001)
    kernel.command(fh, c.CMD_RECV, buffer, tid=tids[0])
    assert kernel.step() == IOCTL
    assert current_request(kernel)[5:8] == (72, errno.ESRCH, -1)
    # The slot serves the next thread none the worse.
    kernel.command(fh, c.CMD_RECV, buffer)
    assert kernel.step() == IOCTL
    assert current_request(kernel)[6] == 0
    assert kernel.channel.counters()["pidfds"] == 3


def send(message: int) -> Any:
    return aligned(struct.pack("<QQQQQQQQQ", 72, 0, 0, 0, 0, message, 0, 0, 0))


@pytest.mark.parametrize("size", [64, 200, 1024, 1025, 8191, 8192])
@pytest.mark.parametrize("to_page_end", [8, 64, 1032, 4096])
def test_message_of_a_send(kernel: Kernel, size: int, to_page_end: int) -> None:
    fh = kernel.channel.slot_new()
    content = struct.pack("<Q", size) + bytes(at % 251 for at in range(size - 8))
    room = ctypes.create_string_buffer(4096 * 4)
    address = ((ctypes.addressof(room) + 4095) & ~4095) + 4096 - to_page_end
    ctypes.memmove(address, content, size)
    kernel.command(fh, c.CMD_SEND, send(address))
    assert kernel.step() == IOCTL
    native = kernel.channel.native
    assert (native.message_len, native.message_error) == (size, 0)
    assert calls.current_request(kernel.channel.address)[2] == content


@pytest.mark.parametrize(
    ("size", "expected"), [(63, errno.EINVAL), (8193, errno.EMSGSIZE), (2**64 - 1, errno.EMSGSIZE)]
)
def test_message_of_illegal_size(kernel: Kernel, size: int, expected: int) -> None:
    """SEND-3."""
    fh = kernel.channel.slot_new()
    message = aligned(struct.pack("<Q", size) + bytes(1024))
    kernel.command(fh, c.CMD_SEND, send(ctypes.addressof(message)))
    assert kernel.step() == IOCTL
    assert current_request(kernel)[6] == 0
    assert (kernel.channel.native.message_len, kernel.channel.native.message_error) == (0, expected)


@pytest.mark.parametrize("address", [0, 8, 0x7FFF_FFFF_F001, 2**64 - 8])
def test_message_that_cannot_be_read(kernel: Kernel, address: int) -> None:
    """SEND-2: the command itself is fine."""
    fh = kernel.channel.slot_new()
    kernel.command(fh, c.CMD_SEND, send(address))
    assert kernel.step() == IOCTL
    assert current_request(kernel)[6] == 0
    assert kernel.channel.native.message_error == errno.EFAULT


def test_message_cut_off_by_the_end_of_the_mapping(kernel: Kernel) -> None:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    base = libc.mmap(None, 8192, 3, 0x22, -1, ctypes.c_long(0))
    libc.munmap(ctypes.c_void_p(base + 4096), 4096)
    ctypes.memmove(base + 4096 - 64, struct.pack("<Q", 72), 8)
    fh = kernel.channel.slot_new()
    kernel.command(fh, c.CMD_SEND, send(base + 4096 - 64))
    assert kernel.step() == IOCTL
    assert kernel.channel.native.message_error == errno.EFAULT
    ctypes.memmove(base + 4096 - 64, struct.pack("<Q", 64), 8)
    kernel.command(fh, c.CMD_SEND, send(base + 4096 - 64))
    assert kernel.step() == IOCTL
    assert (kernel.channel.native.message_len, kernel.channel.native.message_error) == (64, 0)
    libc.munmap(ctypes.c_void_p(base), 4096)


def test_unknown_command_touches_no_memory(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    for cmd in (c.CMD_BYEBYE, 0x9577, 0xC0489577):
        kernel.ioctl(fh, cmd, 0xDEAD_BEEF, bytes((cmd >> 16) & 0x3FFF), tid=0)
        assert kernel.step() == IOCTL
        assert current_request(kernel)[3:8] == (cmd, 0, 0, 0, -1)


# Answers


def test_struct_travels_back_with_an_error(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    unique = kernel.command(fh, c.CMD_RECV, recv_struct())
    assert kernel.step() == IOCTL
    kernel.channel.command[24:32] = b"returned"
    kernel.step(-errno.EAGAIN, timeout_ms=0)
    expected = bytearray(recv_struct().raw)
    expected[24:32] = b"returned"
    assert kernel.result() == (unique, -errno.EAGAIN, bytes(expected))


def test_write_only_command_answers_without_a_struct(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    unique = kernel.command(fh, c.CMD_FREE, aligned(struct.pack("<QQQQQ", 40, 0, 0, 0, 0)))
    assert kernel.step() == IOCTL
    kernel.step(0, timeout_ms=0)
    assert kernel.result() == (unique, 0, b"")


@pytest.mark.parametrize("flags", [0, IOCTL_DIR])
def test_nothing_of_another_client_travels_back(kernel: Kernel, flags: int) -> None:
    fh = kernel.channel.slot_new()
    kernel.command(fh, c.CMD_RECV, aligned(struct.pack("<Q", 72) + b"S" * 64))
    assert kernel.step() == IOCTL
    kernel.step(0, timeout_ms=0)
    kernel.result()
    unique = kernel.ioctl(fh, 0x80086601, 0, out_size=64, flags=flags)
    assert kernel.step(timeout_ms=20) == (TIMER if flags else IOCTL)
    if not flags:
        kernel.step(-errno.ENOTTY, timeout_ms=0)
    assert kernel.result() == (unique, -errno.ENOTTY, bytes(64))


def test_file_that_is_not_the_cores_has_no_ioctls(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    for stranger in (0, 1, fh & 0xFFFFFFFF, 1 << 63 | fh, 2**64 - 1):
        unique = kernel.command(stranger, c.CMD_RECV, recv_struct())
        assert kernel.step(timeout_ms=5) == TIMER
        assert kernel.result()[:2] == (unique, -errno.ENOTTY)


def test_file_of_an_earlier_daemon_is_reset_and_hung_up(kernel: Kernel) -> None:
    """A directory of an earlier one, whose fh has bit 63, is ready as every directory."""
    fh = kernel.channel.slot_new()
    for lost in (fh + 1, fh + (1 << 32), 1 << 62):
        unique = kernel.command(lost, c.CMD_RECV, recv_struct())
        assert kernel.step(timeout_ms=5) == TIMER
        assert kernel.result() == (unique, -errno.ECONNRESET, b"")
        unique = kernel.poll(lost)
        assert kernel.step(timeout_ms=5) == TIMER
        assert kernel.answer() == (unique, 0, struct.pack("<II", select.POLLHUP | select.POLLERR, 0))
    directory = kernel.poll(1 << 63 | 1 << 32 | 5)
    assert kernel.step(timeout_ms=5) == TIMER
    unique, error, body = kernel.answer()
    assert (unique, error) == (directory, 0) and body[0] & select.POLLIN


def test_what_the_successor_needs_is_kept_before_a_poll_is_answered(kernel: Kernel) -> None:
    vault = Vault.create()
    kernel.channel.keep(vault.kept())
    first, second = kernel.channel.slot_new(), kernel.channel.slot_new()
    kernel.poll(first, kh=11)
    kernel.poll(second, kh=12)
    assert kernel.step(timeout_ms=5) == TIMER
    kernel.channel.slot_free(second)
    assert list(Vault(vault.fd).poll_handles()) == [11]
    assert list(vault.poll_handles()) == []

    successor = Kernel()
    successor.channel.keep(vault.kept())
    fh = successor.channel.slot_new()
    assert fh & 0xFFFFFFFF == first & 0xFFFFFFFF
    assert fh >> 32 == (second >> 32) + 1
    with pytest.raises(OSError):
        successor.channel.keep(vault.kept())
    successor.close()
    vault.close()


def test_malformed_ioctl_is_a_protocol_fault(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    for in_size, out_size in ((100, 0), (0, 40000)):
        body = struct.pack("<QIIQII", fh, 0, c.CMD_RECV, 0, in_size, out_size)
        unique = kernel.ask(FUSE_IOCTL, body)
        assert kernel.step(timeout_ms=5) == TIMER
        assert kernel.answer() == (unique, -errno.EIO, b"")


# Open files and polls


def test_fhs_are_never_given_out_twice(kernel: Kernel) -> None:
    channel = kernel.channel
    seen = set()
    for _ in range(3):
        fhs = [channel.slot_new() for _ in range(300)]
        assert channel.slots == 300
        seen.update(fhs)
        for fh in fhs:
            channel.slot_free(fh)
    assert len(seen) == 900
    assert min(seen) >= 1 << 32
    assert len({fh & 0xFFFFFFFF for fh in seen}) == 300
    channel.slot_free(min(seen))
    assert channel.slots == 0


def test_poll_never_leaves_c(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    kernel.channel.set_events(fh, fakes.READABLE)
    first, stranger = kernel.poll(fh), kernel.poll(77)
    assert kernel.step(timeout_ms=20) == TIMER
    assert kernel.answer() == (first, 0, struct.pack("<II", fakes.READABLE, 0))
    assert kernel.answer() == (stranger, 0, struct.pack("<II", fakes.READABLE, 0))


def notification(kh: int) -> tuple[int, int, bytes]:
    return 0, 1, struct.pack("<Q", kh)


def test_poller_is_woken_once_and_only_by_news(kernel: Kernel) -> None:
    channel, fh = kernel.channel, kernel.channel.slot_new()
    channel.set_events(fh, fakes.IDLE)
    channel.set_events(fh, fakes.READABLE)
    channel.set_events(fh, fakes.IDLE)
    assert kernel.is_silent()
    kernel.poll(fh, kh=11)
    kernel.step(timeout_ms=20)
    kernel.answer()
    channel.set_events(fh, fakes.IDLE)
    assert kernel.is_silent()
    channel.set_events(fh, fakes.READABLE)
    assert kernel.answer() == notification(11)
    channel.set_events(fh, fakes.READABLE)
    assert kernel.is_silent()
    # A second message is an edge of its own for whoever has looked since.
    kernel.poll(fh, kh=11)
    kernel.step(timeout_ms=20)
    kernel.answer()
    channel.set_events(fh, fakes.READABLE)
    assert kernel.answer() == notification(11)
    # Becoming empty is no news.
    kernel.poll(fh, kh=11)
    kernel.step(timeout_ms=20)
    kernel.answer()
    channel.set_events(fh, fakes.IDLE)
    assert kernel.is_silent()
    channel.set_events(fh, select.POLLERR | select.POLLHUP)
    assert kernel.answer() == notification(11)


def test_poll_that_does_not_wait_arms_nothing(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    kernel.channel.set_events(fh, fakes.IDLE)
    kernel.poll(fh, flags=0)
    kernel.step(timeout_ms=20)
    kernel.answer()
    kernel.channel.set_events(fh, fakes.READABLE)
    assert kernel.is_silent()


def test_handle_with_two_fhs_is_released_with_the_last(kernel: Kernel) -> None:
    files = OpenFiles(kernel.channel)
    domain = fakes.Domain()
    handle = domain.open()
    first, second = files.add(handle, 1, 0), files.add(handle, 128, 9)
    assert (files.open_answer(first), files.open_answer(second)) == ((1, 0), (128, 9))
    assert files.get(first) is files.get(second) is handle
    for kh, fh in enumerate((first, second)):
        kernel.poll(fh, kh=kh)
    for _ in range(2):
        while kernel.is_empty():
            kernel.step(timeout_ms=20)
        kernel.answer()
    domain.messages = 1
    files.publish(handle)
    assert [kernel.answer(), kernel.answer()] == [notification(0), notification(1)]
    assert files.remove(first)
    assert not files.remove(first)
    assert handle.released == 0
    assert files.remove(second)
    assert handle.released == 1
    assert (len(files), kernel.channel.slots, files.open_answer(first)) == (0, 0, None)
    files.publish(handle)


def close(kernel: Kernel, fh: int, opcode: int = FUSE_RELEASE) -> int:
    return kernel.ask(opcode, struct.pack("<QIIQ", fh, 0, 0, 0))


def test_many_closes_of_files_that_were_not_used_wait_for_other_requests(kernel: Kernel) -> None:
    """CLOSE-1: nobody sees their end.  The first of them, and those that others may see, are carried out at once."""
    channel = kernel.channel
    used, other = channel.slot_new(), channel.slot_new()
    kernel.ioctl(used, 0x9577, 0)
    assert kernel.step() == IOCTL
    fhs = [channel.slot_new(user=1 + user) for user in range(49)] + list(range(1, 51))
    uniques = [close(kernel, fh, FUSE_RELEASE if fh >> 32 else FUSE_RELEASEDIR) for fh in fhs]
    last = close(kernel, used)
    polled = kernel.poll(other, kh=1)
    result = -errno.ENOTTY  # of the ioctl
    closed = []
    for _ in range(33):
        assert kernel.step(result) == RELEASE
        result = NOTHING
        closed.append(channel.released)
    assert closed == [*fhs[:32], used]
    assert channel.closed == len(fhs) - 32
    while len(closed) < len(fhs) + 1:
        assert kernel.step() == RELEASE
        closed.append(channel.released)
    assert sorted(closed) == sorted([*fhs, used])
    assert channel.closed == 0
    answers = [kernel.answer()[0] for _ in range(len(fhs) + 3)]
    assert sorted(answers[1:]) == sorted([*uniques, last, polled])
    assert answers.index(polled) < 40, "the poll did not wait for all of them"


def test_closes_that_wait_come_between_others_too(kernel: Kernel) -> None:
    """A daemon that is never idle must not keep them for ever."""
    channel = kernel.channel
    other = channel.slot_new()
    for user in range(40):
        close(kernel, channel.slot_new(user=user))
        kernel.ask(FUSE_FORGET, struct.pack("<Q", 1))
    kinds = [kernel.step() for _ in range(72)]
    assert kinds == [RELEASE, FORGET] * 32 + [FORGET] * 8, "inodes that go with them are no other requests"
    assert channel.closed == 8
    polled = [kernel.poll(other, kh=1) for _ in range(8)]
    assert kernel.step() == RELEASE
    assert channel.closed == 7
    answers = [kernel.answer()[0] for _ in range(32 + 5)]
    assert answers[32:-1] == polled[:4]


def connections(kernel: Kernel, count: int, *, user: int, group: int) -> list[int]:
    """Files that had a command, and whose end only their group may see."""
    fhs = [kernel.channel.slot_new(user=user, group=group) for _ in range(count)]
    for fh in fhs:
        kernel.ioctl(fh, 0x9577, 0, uid=user)
        assert kernel.step() == IOCTL
        kernel.channel.flush(-errno.ENOTTY)
        kernel.channel.slot_can_wait(fh)
        kernel.answer()
    return fhs


def test_whoever_may_see_the_end_of_closed_files_waits_for_it(kernel: Kernel) -> None:
    """CLOSE-1, CLOSE-3: of a process that ends with many connections.  Who is on another bus is served before."""
    channel = kernel.channel
    fhs = connections(kernel, 50, user=1, group=7)
    (witness,) = connections(kernel, 1, user=2, group=7)
    (other,) = connections(kernel, 1, user=3, group=8)
    closes = [close(kernel, fh) for fh in fhs]
    asked = kernel.ioctl(witness, 0x9577, 0, uid=2)
    polled = kernel.poll(witness)
    elsewhere = kernel.ioctl(other, 0x9577, 0, uid=3)
    ended = []
    while kernel.step() == RELEASE:
        ended.append(channel.released)
    assert channel.native.unique == elsewhere
    assert ended == fhs[: len(ended)]
    assert len(ended) <= 32
    channel.flush(0)
    while kernel.step() == RELEASE:
        ended.append(channel.released)
    assert ended == fhs
    assert channel.native.unique == asked
    channel.flush(0)
    assert kernel.step(timeout_ms=5) == TIMER
    answers = [kernel.answer()[0] for _ in range(len(fhs) + 3)]
    assert [each for each in answers if each in (asked, polled, elsewhere)] == [elsewhere, asked, polled]
    assert [each for each in answers if each in closes] == closes


def test_a_killed_client_does_not_wait_for_closes(kernel: Kernel) -> None:
    """One that may see the end of closed files, and was killed, is answered at once."""
    fhs = connections(kernel, 40, user=1, group=7)
    (witness,) = connections(kernel, 1, user=2, group=7)
    for fh in fhs:
        close(kernel, fh)
    asked = kernel.ioctl(witness, 0x9577, 0, uid=2, tid=0x7FFFFFF0)
    kernel.ask(FUSE_INTERRUPT, struct.pack("<Q", asked))
    kinds = [kernel.step() for _ in range(40)]
    assert kinds == [RELEASE] * 40
    assert kernel.step(timeout_ms=5) == TIMER
    answers = [kernel.answer()[:2] for _ in range(41)]
    assert (asked, -errno.EINTR) in answers[:33]


def have_a_turn(kernel: Kernel, fh: int, user: int) -> None:
    """A command of `user` that takes the core for longer than a turn."""
    kernel.ioctl(fh, 0x9577, 0, uid=user)
    assert kernel.step() == IOCTL
    time.sleep(0.002)
    # The next request is there before the answer, so that there is no moment without one.


def test_a_user_who_had_his_turn_waits_for_others(kernel: Kernel) -> None:
    """Commands, tree requests and closes of one user come after those of others that the kernel gave later."""
    channel = kernel.channel
    (greedy,) = connections(kernel, 1, user=1, group=7)
    (other,) = connections(kernel, 1, user=2, group=8)
    closed = connections(kernel, 3, user=1, group=7)
    have_a_turn(kernel, greedy, 1)
    kernel.ask(FUSE_GETATTR, struct.pack("<IIQ", 0, 0, 0), uid=1)
    own = kernel.ioctl(greedy, 0x9577, 0, uid=1)
    for fh in closed:
        close(kernel, fh)
    later = kernel.ioctl(other, 0x9577, 0, uid=2)
    assert kernel.step(-errno.ENOTTY) == IOCTL
    assert channel.native.unique == later
    assert channel.owners()["held"] == 2
    channel.flush(0)
    for fh in closed:
        assert (kernel.step(), channel.released) == (RELEASE, fh)
    server = serve_tree(kernel, tree_answer(b"attributes"))
    assert kernel.step() == TREE
    server.join(240)
    assert kernel.step() == IOCTL
    assert channel.native.unique == own
    assert channel.owners()["held"] == 0


def test_users_who_wait_are_served_in_turn(kernel: Kernel) -> None:
    """The many requests of one are not in front of the few of another."""
    channel = kernel.channel
    files = {user: connections(kernel, 1, user=user, group=user)[0] for user in (1, 2, 3)}
    for user in (1, 2):
        have_a_turn(kernel, files[user], user)
        channel.flush(0)
    asked = {kernel.ioctl(files[1], 0x9577, 0, uid=1): 1 for _ in range(3)}
    asked |= {kernel.ioctl(files[2], 0x9577, 0, uid=2): 2 for _ in range(3)}
    kernel.ioctl(files[3], 0x9577, 0, uid=3)
    assert kernel.step() == IOCTL
    assert channel.native.uid == 3
    served = []
    for _ in asked:
        assert kernel.step(0) == IOCTL
        served.append(asked[channel.native.unique])
        time.sleep(0.002)
    assert served == [1, 2] * 3


def test_a_user_has_a_bounded_number_of_files_open(kernel: Kernel) -> None:
    """A handle counts once, for who opened it, until the last of its fhs is gone; directories count too."""
    files = OpenFiles(kernel.channel, 2)
    domain = fakes.Domain()
    handle = domain.open()
    first, second = files.add(handle, 1, 0, 1000), files.add(handle, 1, 0, 0)
    files.check_room(1000)
    files.charge(1000)
    with pytest.raises(CommandError) as caught:
        files.check_room(1000)
    assert caught.value.errno == errno.EMFILE
    files.check_room(0)
    files.remove(first)
    with pytest.raises(CommandError):
        files.check_room(1000)
    files.remove(second)
    files.check_room(1000)
    files.discharge(1000)
    for _ in range(2):
        files.charge(1000)
    with pytest.raises(CommandError):
        files.check_room(1000)


# The tree


def serve_tree(kernel: Kernel, *answers: bytes) -> threading.Thread:
    """Answer one request; its unique is filled in where SAME_UNIQUE stands."""

    def serve() -> None:
        request = kernel.tree.recv(1 << 20)
        unique = request[8:16]
        for answer in answers:
            kernel.tree.send(answer.replace(SAME_UNIQUE, unique))

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def tree_answer(body: bytes = b"", error: int = 0, unique: int = int.from_bytes(SAME_UNIQUE, "little")) -> bytes:
    return struct.pack("<IiQ", 16 + len(body), error, unique) + body


def test_tree_requests_are_handed_over_and_answered_in_order(kernel: Kernel) -> None:
    unique = kernel.ask(FUSE_GETATTR, b"attributes of what")
    notice = tree_answer(b"inode 5", error=2, unique=0)
    stale = tree_answer(b"too late", unique=12345)
    thread = serve_tree(kernel, notice, stale, tree_answer(b"attributes"))
    assert kernel.step() == TREE
    thread.join()
    assert kernel.channel.native.reply_len == 0
    assert kernel.answer() == (0, 2, b"inode 5")
    assert kernel.answer() == (unique, 0, b"attributes")
    assert kernel.is_silent()


def test_amended_answer_waits_for_the_next_step(kernel: Kernel) -> None:
    class Tree:
        def ino_of(self, nodeid: int) -> int:
            return nodeid + 1

        def set_up(self, granted: int) -> None:
            raise AssertionError

    no_opens: dict[int, tuple[int, int]] = {}
    amendments = Amendments(Tree(), no_opens.get, passthrough=False)
    unique = kernel.ask(FUSE_LOOKUP, b"bus\0")
    body = struct.pack("<Q32xQ80x", 1000, 1000)
    thread = serve_tree(kernel, tree_answer(body))
    assert kernel.step() == TREE
    thread.join()
    assert kernel.is_silent()
    amendments.apply(kernel.channel)
    kernel.step(timeout_ms=0)
    assert kernel.answer() == (unique, 0, struct.pack("<Q32xQ80x", 1000, 1001))
    amendments.apply(kernel.channel)


def test_error_of_the_tree_is_not_amended(kernel: Kernel) -> None:
    unique = kernel.ask(FUSE_LOOKUP, b"bus\0")
    thread = serve_tree(kernel, tree_answer(error=-errno.ENOENT))
    assert kernel.step() == TREE
    thread.join()
    assert kernel.channel.native.reply_len == 0
    assert kernel.answer() == (unique, -errno.ENOENT, b"")


def test_forget_has_no_answer_and_is_not_for_pyfuse3(kernel: Kernel) -> None:
    kernel.ask(FUSE_FORGET, struct.pack("<Q", 3))
    assert kernel.step() == FORGET
    assert [lookups for _, lookups in kernel.channel.forgotten] == [3]
    assert kernel.is_silent()


def test_release_is_answered_and_is_not_for_pyfuse3(kernel: Kernel) -> None:
    """FUSE: the order of close"""
    unique = kernel.ask(FUSE_RELEASE, struct.pack("<QIIQ", 1 << 32 | 7, 0, 0, 0))
    assert kernel.step() == RELEASE
    assert kernel.channel.released == 1 << 32 | 7
    assert kernel.answer() == (unique, 0, b"")


def test_tree_that_does_not_answer_ends_the_channel(kernel: Kernel) -> None:
    kernel.channel.set_tree_timeout(50)
    unique = kernel.ask(FUSE_GETATTR)
    with pytest.raises(TimeoutError):
        kernel.step()
    assert kernel.answer() == (unique, -errno.EIO, b"")


@pytest.mark.parametrize("busy", [False, True])
def test_tree_that_is_gone_ends_the_channel(waiting: Kernel, busy: bool) -> None:
    waiting.tree.close()
    if busy:
        waiting.ask(FUSE_GETATTR)
    with pytest.raises(BrokenPipeError):
        waiting.step()


# Waiting


def test_deadline_is_noticed_while_requests_keep_coming(waiting: Kernel) -> None:
    fh = waiting.channel.slot_new()
    waiting.ioctl(fh, 0x9577, 0)
    past = time.monotonic_ns() - 1
    assert waiting.channel.step(past, NOTHING) == TIMER
    assert waiting.channel.step(0, NOTHING) == IOCTL


def test_deadline_is_kept(waiting: Kernel) -> None:
    deadline = time.monotonic_ns() + 30_000_000
    assert waiting.channel.step(deadline, NOTHING) == TIMER
    assert time.monotonic_ns() >= deadline


@pytest.mark.parametrize("deadline", [2**63 - 1, 2**63, 2**64 - 1])
def test_a_deadline_may_be_any_u64(waiting: Kernel, deadline: int) -> None:
    timer = threading.Timer(0.02, waiting.wakeup.wake)
    timer.start()
    assert waiting.channel.step(deadline, NOTHING) == EVENT
    timer.join()


def test_event_is_noticed_while_requests_keep_coming(waiting: Kernel) -> None:
    fh = waiting.channel.slot_new()
    waiting.wakeup.wake()
    kinds = []
    for _ in range(64):
        waiting.ioctl(fh, 0x9577, 0)
        kinds.append(waiting.step())
    assert EVENT in kinds
    assert kinds.count(IOCTL) == 63


def test_an_event_ends_a_wait_once(waiting: Kernel) -> None:
    waiting.wakeup.wake()
    waiting.wakeup.wake()
    assert waiting.step() == EVENT
    assert waiting.step(timeout_ms=20) == TIMER


class After:
    """Does something in another thread, after `seconds` or a little more."""

    def __init__(self, seconds: float, action: Callable[[], object]) -> None:
        self._seconds = seconds
        self._action = action
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        time.sleep(self._seconds)
        self._action()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def test_sleep_ends_with_an_event(waiting: Kernel) -> None:
    with After(0.02, waiting.wakeup.wake):
        assert waiting.step() == EVENT
    assert waiting.step(timeout_ms=20) == TIMER


def test_sleep_ends_when_the_tree_is_gone(waiting: Kernel) -> None:
    with After(0.02, waiting.tree.close), pytest.raises(BrokenPipeError):
        waiting.step()


def test_sleep_ends_with_each_of_several_things(waiting: Kernel) -> None:
    def both() -> None:
        waiting.wakeup.wake()
        waiting.tree.close()

    with After(0.02, both):
        assert waiting.step() == EVENT
    with pytest.raises(BrokenPipeError):
        waiting.step()


def test_no_event_is_lost_on_the_way_to_sleep(waiting: Kernel) -> None:
    for at in range(300):
        with After(at % 30 * 1e-5, waiting.wakeup.wake):
            assert waiting.step(timeout_ms=60_000) == EVENT


@contextlib.contextmanager
def rescue(kernel: Kernel) -> Iterator[None]:
    """End a wait whose deadline was lost: with an event, for which no test waits."""
    timer = threading.Timer(60, kernel.wakeup.wake)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def test_no_deadline_is_lost_on_the_way_to_sleep(waiting: Kernel) -> None:
    with rescue(waiting):
        for at in range(300):
            deadline = time.monotonic_ns() + at % 30 * 10_000
            assert waiting.channel.step(deadline, NOTHING) == TIMER
            assert time.monotonic_ns() >= deadline


def test_deadline_that_was_put_off_or_brought_forward_is_kept(waiting: Kernel) -> None:
    fh = waiting.channel.slot_new()
    began = time.monotonic_ns()
    with rescue(waiting):
        for milliseconds in (3_600_000, 20):
            with After(0.005, lambda: waiting.ioctl(fh, 0x9577, 0)):
                found = waiting.channel.step(began + milliseconds * 1_000_000, NOTHING)
                # On a busy machine the request can come after the second deadline.
                if found == TIMER and milliseconds == 20:
                    assert time.monotonic_ns() - began >= 20_000_000
                    found = waiting.step()
                assert found == IOCTL
        assert waiting.channel.step(began + 60_000_000, NOTHING) == TIMER
        assert time.monotonic_ns() - began >= 60_000_000


def test_nobody_is_called_for_requests_with_deadlines(kernel: Kernel) -> None:
    use_file(kernel)
    fh = kernel.channel.slot_new()
    for _ in range(50):
        with After(0.001, lambda: kernel.ioctl(fh, 0x9577, 0)):
            assert kernel.step(timeout_ms=60_000) == IOCTL
    # Once it was tried whether that goes.
    assert kernel.calls == 1


def test_a_file_that_was_closed_is_not_called_by(kernel: Kernel) -> None:
    use_file(kernel)
    assert kernel.step(timeout_ms=20) == TIMER
    kernel.ask(FUSE_RELEASE, struct.pack("<QIIQ", 1 << 32, 0, 0, 0))
    assert kernel.step() == RELEASE
    calls = kernel.calls
    assert calls == 2
    with After(0.02, kernel.wakeup.wake):
        assert kernel.step() == EVENT
    assert kernel.step(timeout_ms=20) == TIMER
    assert kernel.calls == calls


def test_who_waits_for_long_does_not_look_all_the_time(waiting: Kernel) -> None:
    before = time.thread_time_ns()
    assert waiting.step(timeout_ms=200) == TIMER
    assert time.thread_time_ns() - before < 50_000_000


@pytest.mark.parametrize("cpus", [1, None])
def test_requests_come_whether_the_reader_looks_again_or_not(kernel: Kernel, cpus: int | None) -> None:
    """At first they come at once, then so late that looking again is given up, then at once."""
    use_file(kernel)
    fh = kernel.channel.slot_new()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:cpus]))
    try:
        for seconds in [*[0.0] * 50, *[0.002] * 20, *[0.0] * 50]:
            with After(seconds, lambda: kernel.ioctl(fh, 0x9577, 0)):
                assert kernel.step() == IOCTL
        with After(0.01, kernel.wakeup.wake):
            assert kernel.step() == EVENT
    finally:
        os.sched_setaffinity(0, before)


def test_what_watches_over_the_sleep_ends_with_the_channel() -> None:
    def left(kind: str) -> int:
        return len(os.listdir(f"/proc/self/{kind}"))

    threads, descriptors = left("task"), left("fd")
    for _ in range(5):
        kernel = Kernel()
        use_file(kernel)
        assert kernel.step(timeout_ms=5) == TIMER
        kernel.close()
    assert left("fd") == descriptors
    # Threads that have ended may be seen for a moment.
    limit = time.monotonic() + 240
    while left("task") > threads:
        assert time.monotonic() < limit, f"{left('task')} threads, {threads} before"
        time.sleep(0.001)


def test_interrupt_names_the_request(kernel: Kernel) -> None:
    kernel.ask(FUSE_INTERRUPT, struct.pack("<Q", 4711))
    assert kernel.step() == INTERRUPT
    assert kernel.channel.interrupted == 4711
    assert kernel.step(timeout_ms=20) == TIMER
    assert kernel.is_silent()


# Slices that are given back


def publish(kernel: Kernel, fh: int, offset: int, size: int = 64) -> None:
    """Have a RECV of `fh` answered with a slice."""
    kernel.ioctl(fh, c.CMD_RECV, 0x1000, recv_struct().raw, tid=0)
    assert kernel.step() == IOCTL
    struct.pack_into("<QQ", kernel.channel.command, 48, offset, size)
    kernel.channel.flush(0)
    kernel.answer()


def free_struct(offset: int, flags: int = 0, size: int = 40) -> Any:
    return aligned(struct.pack("<QQQQQ", size, offset, flags, 0, 7) + bytes(size - 40))


def take_freed(kernel: Kernel) -> list[tuple[int, ...]]:
    count, kernel.channel.freed_count[0] = kernel.channel.freed_count[0], 0
    return list(FREED.iter_unpack(kernel.channel.freed[: 16 * count]))


def ask_free(kernel: Kernel, fh: int, offset: int, **kwargs: int) -> int:
    """The kind of what comes of a FREE."""
    kernel.command(fh, c.CMD_FREE, free_struct(offset, **kwargs))
    return kernel.step(timeout_ms=20)


def test_free_of_a_published_slice_is_answered_at_once(kernel: Kernel) -> None:
    """FREE-1, GEN-9, GEN-12."""
    fh = kernel.channel.slot_new()
    publish(kernel, fh, 512)
    command = free_struct(512)
    unique = kernel.command(fh, c.CMD_FREE, command)
    assert kernel.step(timeout_ms=20) == TIMER
    assert kernel.result() == (unique, 0, b"")
    assert struct.unpack("<QQQQQ", command.raw) == (40, 512, 0, c.FLAG_KERNEL, 0)
    assert kernel.channel.native.freed == 1
    assert take_freed(kernel) == [(fh, 512)]
    assert take_freed(kernel) == []


def test_what_is_no_plain_free_of_a_published_slice_is_brought(kernel: Kernel) -> None:
    """FREE-1, GEN-11: the core says what is wrong with it."""
    fh, other = kernel.channel.slot_new(), kernel.channel.slot_new()
    publish(kernel, fh, 512)
    assert ask_free(kernel, fh, 504) == IOCTL
    assert ask_free(kernel, other, 512) == IOCTL
    for wrong in ({"flags": 1}, {"size": 48}):
        assert ask_free(kernel, fh, 512, **wrong) == IOCTL
        # What became of it the core alone knows.
        assert ask_free(kernel, fh, 512) == IOCTL
        publish(kernel, fh, 512)
    assert ask_free(kernel, fh, 512) == TIMER
    assert ask_free(kernel, fh, 512) == IOCTL
    publish(kernel, fh, 0, size=0)
    assert ask_free(kernel, fh, 0) == IOCTL


def test_free_with_a_struct_that_cannot_be_written_is_brought(kernel: Kernel) -> None:
    """GEN-9: EFAULT is for the core to say."""
    fh = kernel.channel.slot_new()
    publish(kernel, fh, 512)
    kernel.ioctl(fh, c.CMD_FREE, 0x1000, free_struct(512).raw)
    assert kernel.step(timeout_ms=20) == IOCTL
    assert take_freed(kernel) == []


def test_who_has_left_the_bus_is_told_so_when_it_frees(kernel: Kernel) -> None:
    """GEN-3."""
    fh = kernel.channel.slot_new()
    publish(kernel, fh, 512)
    kernel.channel.set_events(fh, select.POLLHUP | select.POLLERR)
    assert ask_free(kernel, fh, 512) == IOCTL


def test_a_slice_of_a_deferred_answer_can_be_freed(kernel: Kernel) -> None:
    """REP-15."""
    fh = kernel.channel.slot_new()
    out = struct.pack("<QQ", 72, c.SEND_SYNC_REPLY) + bytes(32) + struct.pack("<QQQ", 512, 64, 0)
    kernel.channel.answer(2, 0, out, fh, c.CMD_SEND)
    kernel.channel.answer(4, 0, out[:48] + struct.pack("<QQQ", 1024, 64, 0), 0, c.CMD_SEND)
    kernel.channel.answer(6, -errno.EPIPE, out[:48] + struct.pack("<QQQ", 2048, 64, 0), fh, c.CMD_SEND)
    assert ask_free(kernel, fh, 512) == TIMER
    assert ask_free(kernel, fh, 1024) == IOCTL
    assert ask_free(kernel, fh, 2048) == IOCTL


def free_of_last(kernel: Kernel, fh: int, offset: int) -> int:
    """What FREE of the last ABI leads to: TIMER, if C answers it, or IOCTL."""
    kernel.command(fh, last.CMD_FREE, aligned(struct.pack("<QQQQ", 32, 0, 0, offset)))
    kind = kernel.step(timeout_ms=20)
    if kind == IOCTL:
        kernel.channel.flush(-errno.ENXIO)
    assert kernel.result()[1] == (0 if kind == TIMER else -errno.ENXIO)
    return kind


def test_what_a_waiting_client_gets_is_stored_by_the_pidfd_of_its_file(kernel: Kernel) -> None:
    """L-72: a sync SEND of the last ABI does not travel back."""
    fh = kernel.channel.slot_new()
    assert free_of_last(kernel, fh, 512) == IOCTL
    before = kernel.channel.counters()["pidfds"]
    fixed = struct.pack("<QQQQQQQ", 56, last.SEND_SYNC_REPLY, 0, 0, 512, 64, 0)
    command = aligned(fixed[:32] + bytes(24))
    tid, address = threading.get_native_id(), ctypes.addressof(command) + 32
    assert kernel.channel.store(fh, last.CMD_SEND, 0, tid, 42, address, fixed[32:], fixed)
    assert kernel.result() == (42, 0, b"")
    assert command.raw == fixed
    assert kernel.channel.counters()["pidfds"] == before
    assert free_of_last(kernel, fh, 512) == TIMER
    assert free_of_last(kernel, fh, 512) == IOCTL


@pytest.mark.parametrize("wrong", ["address", "range", "thread", "file"])
def test_what_cannot_be_stored_is_the_fault_of_the_waiting_client(kernel: Kernel, wrong: str) -> None:
    fh = kernel.channel.slot_new()
    assert free_of_last(kernel, fh, 512) == IOCTL
    fixed = struct.pack("<QQQQQQQ", 56, last.SEND_SYNC_REPLY, 0, 0, 512, 64, 0)
    command = aligned(bytes(56))
    address = {"address": 8, "range": (1 << 64) - 8}.get(wrong, ctypes.addressof(command) + 32)
    tid = 0 if wrong == "thread" else threading.get_native_id()
    gone = 1 << 40 if wrong == "file" else fh
    assert kernel.channel.store(gone, last.CMD_SEND, 0, tid, 42, address, fixed[32:], fixed)
    assert kernel.result() == (42, -errno.EFAULT, b"")
    assert command.raw == bytes(56)
    assert free_of_last(kernel, fh, 512) == IOCTL


def test_what_a_client_left_in_its_struct_is_no_slice(kernel: Kernel) -> None:
    """FREE-1, SEND-46: a SEND that waits for no reply leaves `reply` as it is, and what is freed there gives ENXIO."""
    fh = kernel.channel.slot_new()
    left = struct.pack("<QQQ", 512, 64, 0)
    kernel.ioctl(fh, c.CMD_SEND, 0x1000, struct.pack("<Q", 72) + bytes(40) + left, tid=0)
    assert kernel.step() == IOCTL
    kernel.channel.flush(0)
    assert kernel.answer()[2].endswith(left)
    assert ask_free(kernel, fh, 512) == IOCTL


def test_slices_of_a_connection_with_two_files_are_left_to_the_core(kernel: Kernel) -> None:
    """FREE-1: what was told to one of them may have been given back by the other."""
    bench = Bench(kernel)
    publish(kernel, bench.fh, 512)
    other = bench.files.add(bench.handle, 1, 0)
    assert ask_free(kernel, bench.fh, 512) == IOCTL
    for fh in (bench.fh, other):
        publish(kernel, fh, 1024)
        assert ask_free(kernel, fh, 1024) == IOCTL
    bench.files.remove(bench.fh)
    publish(kernel, other, 1024)
    assert ask_free(kernel, other, 1024) == TIMER


def test_more_slices_than_are_kept_in_mind_are_brought(kernel: Kernel) -> None:
    fh = kernel.channel.slot_new()
    offsets = range(512, 512 + 64 * 100, 64)
    for offset in offsets:
        publish(kernel, fh, offset)
    kinds = [ask_free(kernel, fh, offset) for offset in offsets]
    assert {TIMER, IOCTL} == set(kinds)
    assert len(take_freed(kernel)) == kinds.count(TIMER)


def test_freed_slices_reach_the_core_before_anything_else(kernel: Kernel) -> None:
    """FREE-1: a FREE that is answered has had its effect for whoever comes next."""
    bench = Bench(kernel)
    for _ in range(lib.KFS_FREED_MAX):
        publish(kernel, bench.fh, 512)
        assert ask_free(kernel, bench.fh, 512) == TIMER
    # There is no room for more: this one takes the others along.
    publish(kernel, bench.fh, 512)
    assert ask_free(kernel, bench.fh, 512) == IOCTL
    bench.requests.ioctl()
    assert take_freed(kernel) == []


# Requests


class Pool(Memory):
    def __init__(self) -> None:
        self.stored: dict[int, bytes] = {}

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.stored[offset] = bytes(data)

    def pin(self, offset: int) -> tuple[object, object]:
        return f"pointer to {offset}", self


def become_connection(handle: fakes.Handle, call: Call) -> int:
    """A HELLO that succeeds."""
    call.becomes_connection = True
    return 0


class File:
    fd = 42


def installation_of(account: Account) -> tuple[Installation, Pool]:
    """One descriptor to install; `account` has 1 on it until the installation is done."""
    pool = Pool()
    entries: list[Any] = [(File(), pool, 128)]
    return Installation(entries, Resources(account, 1), 64, 1), pool


class Installer(RealInstaller):
    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.through: list[Job] = []
        self.refuses = False
        self.interrupted: list[int] = []

    def interrupt(self, unique: int) -> None:
        self.interrupted.append(unique)

    def submit(self, job: Job) -> None:
        if self.refuses:
            raise CommandError(errno.EAGAIN)
        self.jobs.append(job)

    def finished(self) -> list[Job]:
        through, self.through = self.through, []
        return through


class NoNodes:
    """A tree that knows no file."""

    def node_of(self, fh: int) -> int:
        return 0

    def only_node_of(self, fh: int) -> int:
        return 0


class Bench:
    """Requests over the fake kernel, with one open file."""

    def __init__(self, kernel: Kernel, installer: Installer | None = None) -> None:
        self.kernel = kernel
        self.domain = fakes.Domain()
        self.files = OpenFiles(kernel.channel)
        self.handle = self.domain.open()
        self.fh = self.files.add(self.handle, 1, 0)
        self.errors = ErrorLog()
        files = None
        if installer is not None:
            files = ClientFiles(installer, NoNodes(), None, lambda fh: f"/mount/.conn-{fh}")
        self.shared = SharedState(self.files, self.domain, fakes.Caller, files, self.errors)
        self.requests = Requests(kernel.channel, self.shared)

    def turn(self) -> None:
        """Serve the ioctl that was asked for."""
        assert self.kernel.step() == IOCTL
        self.kernel.channel.flush(self.requests.ioctl())

    def sync_send(self) -> int:
        message = aligned(struct.pack("<Q", 64) + bytes(56))
        command = aligned(struct.pack("<QQQQQQQQQ", 72, 1, 0, 0, 0, ctypes.addressof(message), 0, 0, 0))
        unique = self.kernel.command(self.fh, c.CMD_SEND, command)
        self.turn()
        return unique


@pytest.mark.parametrize("resent", [0, 1 << 63])
def test_deferred_call_is_answered_when_it_completes(kernel: Kernel, resent: int) -> None:
    kernel.resent = resent
    bench = Bench(kernel)
    waiting = bench.sync_send()
    assert kernel.is_silent()
    asking = kernel.ioctl(bench.fh, fakes.COMPLETE, errno.EPIPE)
    bench.turn()
    answers = {kernel.result()[:2], kernel.result()[:2]}
    assert answers == {(waiting, -errno.EPIPE), (asking, fakes.BASE + 1)}
    assert bench.requests.stats()["deferred"] == 0


class Watched(fakes.Handle):
    """It counts how often its readiness was published."""

    published = 0

    def poll(self) -> int:
        self.published += 1
        return super().poll()


def test_others_are_served_while_thousands_are_woken(kernel: Kernel) -> None:
    """And who is served meanwhile leaves nothing unpublished, and publishes nothing twice."""
    bench = Bench(kernel)
    watched = [Watched(bench.domain) for _ in range(3000)]
    for handle in watched:
        bench.files.add(handle, 1, 0)
        handle.published = 0
    bench.domain.changed += watched
    left: list[int] = []

    def meanwhile() -> None:
        left.append(sum(not handle.published for handle in watched))
        if len(left) == 1000:
            late = Watched(bench.domain)
            bench.domain.changed.append(late)
            watched.append(late)
            bench.files.add(late, 1, 0)
            late.published = 0
            bench.requests.drain()

    bench.domain.turn.meanwhile = meanwhile
    bench.requests.drain()
    assert left[:1000] == [3000 - number - 1 for number in range(1000)]
    assert [handle.published for handle in watched] == [1] * 3001
    assert bench.errors.count == 0


@pytest.mark.parametrize("resent", [0, 1 << 63])
def test_interrupt_reaches_the_deferred_call_only(kernel: Kernel, resent: int) -> None:
    kernel.resent = resent
    bench = Bench(kernel)
    waiting = bench.sync_send()
    kernel.ask(FUSE_INTERRUPT, struct.pack("<Q", waiting + 2))
    assert kernel.step() == INTERRUPT
    bench.requests.interrupt()
    assert bench.domain.interrupts == 0
    kernel.ask(FUSE_INTERRUPT, struct.pack("<Q", waiting))
    assert kernel.step() == INTERRUPT
    bench.requests.interrupt()
    unique, result, struct_back = kernel.result()
    assert (unique, result, len(struct_back)) == (waiting, -512, 72)
    bench.requests.interrupt()
    assert bench.domain.interrupts == 1


def test_interrupt_of_what_has_to_be_installed_is_passed_on(kernel: Kernel) -> None:
    """RECV-13: while there are jobs; most interrupts are about none."""
    installer = Installer()
    bench = Bench(kernel, installer)
    for jobs, seen in ((0, []), (1, [22])):
        bench.shared.pending.jobs = jobs
        kernel.ask(FUSE_INTERRUPT, struct.pack("<Q", 22))
        assert kernel.step() == INTERRUPT
        bench.requests.interrupt()
        assert installer.interrupted == seen


def test_fault_of_ours_is_logged_once_and_the_client_gets_eio(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(kernel)
    for _ in range(5):
        unique = kernel.ioctl(bench.fh, fakes.FAIL, 0)
        bench.turn()
        assert kernel.result()[:2] == (unique, -errno.EIO)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert bench.errors.count == 5


def test_faults_are_logged_once_a_minute_for_each_place(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    errors = ErrorLog(clock=lambda: now)

    def here(where: int) -> None:
        try:
            if where:
                raise ValueError
            raise KeyError
        except (ValueError, KeyError):
            errors.report("what")

    for at, where, count in ((0, 0, 1), (1, 1, 2), (59, 0, 2), (60, 0, 3), (61, 1, 4), (62, 1, 4)):
        now = float(at)
        here(where)
        assert len(caplog.records) == count


def test_hello_is_answered_by_a_job_that_swaps(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = Installer()
    bench = Bench(kernel, installer)
    monkeypatch.setitem(fakes._ACTIONS, c.CMD_HELLO, become_connection)
    hello = aligned(struct.pack("<Q", 104) + b"h" * 96)
    unique = kernel.command(bench.fh, c.CMD_HELLO, hello)
    bench.turn()
    assert kernel.is_silent()
    (job,) = installer.jobs
    assert (job.unique, job.result, job.out) == (unique, 0, hello.raw)
    assert (job.swap, job.entries, job.flags_offset) == (f"/mount/.conn-{bench.fh}", [], -1)
    assert (job.tid, job.user) == (threading.get_native_id(), 1000)
    assert bench.requests.jobs == 1
    # The file may be closed meanwhile: what the job needs stays.
    bench.files.remove(bench.fh)
    assert isinstance(job.context, JobContext)
    assert job.context.handle is bench.handle
    installer.through = installer.jobs
    bench.requests.finish_jobs()
    assert bench.requests.jobs == 0


@pytest.mark.parametrize("result", [-errno.EPERM, -errno.ENOTTY])
def test_hello_that_failed_is_answered_at_once(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, result: int) -> None:
    installer = Installer()
    bench = Bench(kernel, installer)
    monkeypatch.setitem(fakes._ACTIONS, c.CMD_HELLO, lambda handle, call: result)
    unique = kernel.command(bench.fh, c.CMD_HELLO, aligned(struct.pack("<Q", 104) + bytes(96)))
    bench.turn()
    assert kernel.result()[:2] == (unique, result)
    assert installer.jobs == []


def receive(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Account, Pool]:
    """A RECV that brings a descriptor: its unique, and what it installs where."""
    account = Account(0, 1)
    installation, pool = installation_of(account)

    def recv(handle: fakes.Handle, call: Call) -> int:
        call.installation = installation
        return 0

    monkeypatch.setitem(fakes._ACTIONS, c.CMD_RECV, recv)
    command = recv_struct()
    unique = bench.kernel.command(bench.fh, c.CMD_RECV, command)
    bench.turn()
    return unique, account, pool


def test_descriptors_are_installed_by_a_job(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = Installer()
    bench = Bench(kernel, installer)
    unique, account, _ = receive(bench, monkeypatch)
    assert kernel.is_silent()
    (job,) = installer.jobs
    entries: list[tuple[int, object]] = [*job.entries]
    assert (job.unique, entries, job.swap) == (unique, [(42, "pointer to 128")], None)
    assert job.flags_offset == 64
    assert job.incomplete_flags == 1
    assert account.used == 1
    installer.through = [job]
    bench.requests.finish_jobs()
    assert account.used == 0


@pytest.mark.parametrize("installer", [None, Installer()])
def test_descriptors_that_cannot_be_installed_are_told(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, installer: Installer | None
) -> None:
    """RECV-13."""
    if installer is not None:
        installer.refuses = True
    bench = Bench(kernel, installer)
    unique, account, pool = receive(bench, monkeypatch)
    assert kernel.result() == (unique, 0, recv_struct().raw[:64] + struct.pack("<Q", 1))
    assert pool.stored == {128: struct.pack("<i", -errno.EPERM)}
    assert account.used == 0
    assert bench.requests.jobs == 0


def test_deferred_call_with_descriptors_is_answered_by_a_job(kernel: Kernel) -> None:
    installer = Installer()
    bench = Bench(kernel, installer)
    unique = bench.sync_send()
    (call,) = bench.domain.waiting
    call.installation, _ = installation_of(Account(0, 1))
    bench.domain.complete(0)
    bench.requests.drain()
    assert kernel.is_silent()
    (job,) = installer.jobs
    assert (job.unique, job.tid, len(job.out)) == (unique, threading.get_native_id(), 72)
    assert job.flags_offset == 64


# A family whose structs do not travel as v3's do


ONE_WAY = 0x40489530
"""A request like SEND, but the kernel does not copy the struct back."""
READ_ONLY = 0x80489531
"""A request like RECV, but the kernel does not copy the struct in."""


class Client(fakes.Caller):
    """Its memory is ours."""

    def __init__(self) -> None:
        self.is_torn = False

    def write(self, address: int, data: bytes) -> None:
        if self.is_torn:
            raise CommandError(errno.EFAULT)
        ctypes.memmove(address, data, len(data))


def foreign(bench: Bench, number: int) -> None:
    """Give the channel of `bench` command `number`, with a struct as RECV's."""
    assert lib.kfs_channel_command(bench.kernel.channel.native, 0, number, 72, 256, 0) == 0


def refuse_files(bench: Bench, monkeypatch: pytest.MonkeyPatch, client: Client, defers: bool) -> Any:
    """The struct of a one-way command after an answer whose descriptors could not be installed."""
    foreign(bench, ONE_WAY)
    bench.requests._call.caller = client
    account = Account(0, 1)

    def send(handle: fakes.Handle, call: Call) -> int:
        waiting = call.defer() if defers else call
        waiting.put(7, 0x200)
        waiting.installation, _ = installation_of(account)
        if not defers:
            return 0
        bench.domain.waiting.append(waiting)
        return PENDING

    monkeypatch.setitem(fakes._ACTIONS, ONE_WAY, send)
    monkeypatch.setattr(bench.requests._caller, "reset", lambda *_: None)
    command = aligned(struct.pack("<9Q", 72, *[0] * 7, 0x100))
    bench.kernel.command(bench.fh, ONE_WAY, command)
    bench.turn()
    if defers:
        assert command.raw == struct.pack("<9Q", 72, *[0] * 7, 0x100)
        bench.domain.complete(0)
        bench.requests.drain()
    return command


@pytest.mark.parametrize("defers", [False, True])
def test_missing_descriptors_are_told_in_a_struct_that_does_not_travel_back(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, defers: bool
) -> None:
    """RECV-14."""
    bench = Bench(kernel)
    command = refuse_files(bench, monkeypatch, Client(), defers)
    assert kernel.result() == (kernel.unique, 0, b"")
    assert command.raw == struct.pack("<9Q", 72, *[0] * 6, 0x200, 0x101)


def test_memory_that_the_results_do_not_fit_in_is_the_clients_fault(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client()
    client.is_torn = True
    refuse_files(Bench(kernel), monkeypatch, client, defers=True)
    assert kernel.result() == (kernel.unique, -errno.EFAULT, b"")


@pytest.mark.parametrize("defers", [False, True])
def test_results_that_do_not_travel_back_go_with_the_job(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, defers: bool
) -> None:
    """Never by the reader for a deferred call: the client may block that."""
    installer = Installer()
    client = Client()
    command = refuse_files(Bench(kernel, installer), monkeypatch, client, defers)
    address = ctypes.addressof(command)
    (job,) = installer.jobs
    assert (job.out, job.address, job.flags_offset, job.incomplete_flags) == (b"", address, 64, 0x101)
    assert job.caller is client
    assert job.writes == ([(address + 56, struct.pack("<Q", 0x200))] if defers else [])
    assert command.raw[56:] == struct.pack("<QQ", 0 if defers else 0x200, 0x100)


def ask_to_read(bench: Bench, address: int) -> tuple[int, bytes]:
    """Errno and struct of a command that the kernel copies nothing in for."""
    bench.kernel.ioctl(bench.fh, READ_ONLY, address)
    assert bench.kernel.step() == IOCTL
    head, data, _ = calls.current_request(bench.kernel.channel.address)
    return HEAD.unpack(head)[6], data


@pytest.mark.parametrize("tail", [b"", b"t" * 24])
def test_a_struct_that_is_not_in_its_request_is_read(kernel: Kernel, tail: bytes) -> None:
    bench = Bench(kernel)
    foreign(bench, READ_ONLY)
    command = aligned(struct.pack("<Q", 72 + len(tail)) + b"r" * 64 + tail)
    assert ask_to_read(bench, ctypes.addressof(command)) == (0, command.raw)
    kernel.channel.flush(0)
    assert kernel.result() == (kernel.unique, 0, command.raw[:72])


@pytest.mark.parametrize(
    ("size", "error"), [(0, errno.EINVAL), (71, errno.EINVAL), (257, errno.EMSGSIZE), (1 << 64 - 1, errno.EMSGSIZE)]
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_size_that_is_refused_travels_nowhere(kernel: Kernel, size: int, error: int, is_cut: bool) -> None:
    """GEN-6: also where the memory ends behind the size."""
    bench = Bench(kernel)
    foreign(bench, READ_ONLY)
    with mmap.mmap(-1, 2 * mmap.PAGESIZE) as pages:
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        at = mmap.PAGESIZE - (8 if is_cut else 1024)
        pages[at : at + 8] = struct.pack("<Q", size)
        if is_cut:
            libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0)
        assert ask_to_read(bench, start + at)[0] == error
        kernel.channel.flush(-error)
        assert kernel.result() == (kernel.unique, -error, b"")


@pytest.mark.parametrize("address", [8, 4, (1 << 64) - 64])
def test_a_struct_that_cannot_be_read(kernel: Kernel, address: int) -> None:
    """GEN-5; and what an earlier request left in the buffer is not shown."""
    bench = Bench(kernel)
    foreign(bench, READ_ONLY)
    kernel.command(bench.fh, c.CMD_RECV, aligned(struct.pack("<Q", 72) + b"s" * 64))
    assert kernel.step() == IOCTL
    assert ask_to_read(bench, address) == (errno.EFAULT, bytes(72))
    kernel.channel.flush(-errno.EFAULT)
    assert kernel.result() == (kernel.unique, -errno.EFAULT, b"")


# The loop


class NoTree:
    def ino_of(self, nodeid: int) -> int:
        raise AssertionError

    def set_up(self, granted: int) -> None:
        raise AssertionError

    def close_file(self, fh: int) -> None:
        raise AssertionError

    def forget_nodes(self, nodes: list[tuple[int, int]]) -> None:
        raise AssertionError


def server_of(bench: Bench, linger_ns: int = LINGER_NS) -> Server:
    kernel = bench.kernel
    amendments = Amendments(NoTree(), bench.files.open_answer, passthrough=False)
    return Server(
        kernel.channel,
        amendments,
        bench.requests,
        bench.domain,
        kernel.wakeup,
        NoTree(),
        errors=bench.errors,
        linger_ns=linger_ns,
    )


def test_stop_shuts_the_domain_down_and_answers_everybody(kernel: Kernel) -> None:
    bench = Bench(kernel)
    server = server_of(bench)
    waiting = bench.sync_send()
    results = []
    thread = threading.Thread(target=lambda: results.append(server.run()))
    thread.start()
    server.stop()
    thread.join(240)
    assert results == [True]
    assert bench.domain.is_shut
    assert kernel.result()[:2] == (waiting, -errno.ECONNRESET)


def test_stop_waits_for_jobs_but_not_for_ever(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = Installer()
    bench = Bench(kernel, installer)
    receive(bench, monkeypatch)
    server = server_of(bench, linger_ns=100_000_000)
    server.stop()
    began = time.monotonic()
    assert server.run()
    assert time.monotonic() - began >= 0.1


def test_failing_tree_ends_the_loop_with_a_word_in_the_log(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(kernel)
    kernel.tree.close()
    assert not server_of(bench).run()
    assert bench.domain.is_shut
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "cannot be served" in caplog.text


def test_calls_that_the_domain_forgot_are_answered_at_the_end(kernel: Kernel) -> None:
    bench = Bench(kernel)
    waiting = bench.sync_send()
    bench.domain.waiting.clear()
    server = server_of(bench)
    server.stop()
    assert server.run()
    assert kernel.result()[:2] == (waiting, -errno.ESHUTDOWN)
