"""Watched CANCEL_FDs, the clock and ids of the host."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import time
import uuid
from collections.abc import Iterator
from errno import EBADF, EINVAL

import pytest

from kdbusfs.base.errors import CommandError
from kdbusfs.host.files import LinuxFile
from kdbusfs.host.host import LinuxHost


class Bench:
    """A host with its eventfd, whose own process is the client."""

    def __init__(self) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.host = LinuxHost(event_fd=self.event)
        self.caller = self.host.caller(os.getpid())

    def take(self, fd: int) -> LinuxFile:
        return self.caller.take_file(fd)

    def wait(self, timeout_ms: int = 10000) -> list[object]:
        poll = select.poll()
        poll.register(self.event, select.POLLIN)
        if not poll.poll(timeout_ms):
            return []
        os.eventfd_read(self.event)
        return self.host.cancelled()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.host.close()
    os.close(bench.event)


def test_readable_files_give_their_tokens(bench: Bench) -> None:
    event = os.eventfd(0)
    reader, writer = os.pipe()
    one, two = socket.socketpair()
    watches = [
        bench.host.watch(bench.take(fd), token)
        for fd, token in ((event, "event"), (reader, "pipe"), (one.fileno(), "socket"))
    ]
    assert bench.wait(50) == []
    os.write(writer, b"x")
    assert bench.wait() == ["pipe"]
    os.eventfd_write(event, 1)
    assert bench.wait() == ["event"]
    two.send(b"x")
    assert bench.wait() == ["socket"]
    for watch in watches:
        watch.close()
        watch.close()
    for fd in (event, reader, writer):
        os.close(fd)
    one.close()
    two.close()


def test_a_file_that_is_readable_already(bench: Bench) -> None:
    event = os.eventfd(1)
    watch = bench.host.watch(bench.take(event), 1)
    assert bench.wait() == [1]
    watch.close()
    os.close(event)


def test_sync_1_a_hang_up_alone_is_not_readable(bench: Bench, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "fifo")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    watch = bench.host.watch(bench.take(reader), "fifo")
    os.close(writer)
    assert bench.wait(50) == []
    time.sleep(0.1)
    # Reported once (edge-triggered).
    assert bench.wait(50) == []
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"x")
    # The new writer is an event of its own, which finds the byte there, too, if it is looked at late.
    assert set(bench.wait()) == {"fifo"}
    watch.close()
    os.close(reader)
    os.close(writer)


def test_one_file_watched_twice(bench: Bench) -> None:
    event = os.eventfd(0)
    watches = [bench.host.watch(bench.take(event), n) for n in range(2)]
    os.eventfd_write(event, 1)
    tokens = bench.wait()
    if len(tokens) < 2:
        tokens += bench.wait()
    assert sorted(tokens) == [0, 1]  # type: ignore[type-var]
    for watch in watches:
        watch.close()
    os.close(event)


def test_a_closed_watch_is_silent_though_the_client_keeps_the_file(bench: Bench) -> None:
    bench.caller.ids()  # opens its pidfd
    before = len(os.listdir("/proc/self/fd"))
    event, other = os.eventfd(0), os.eventfd(0)
    bench.host.watch(bench.take(event), "gone").close()
    # Its number is reused.
    watch = bench.host.watch(bench.take(other), "other")
    os.eventfd_write(event, 1)
    assert bench.wait(100) == []
    os.eventfd_write(other, 1)
    assert bench.wait() == ["other"]
    watch.close()
    os.close(event)
    os.close(other)
    bench.host.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_event_of_a_watch_closed_before_it_was_asked_for(bench: Bench) -> None:
    event, other = os.eventfd(1), os.eventfd(0)
    first = bench.host.watch(bench.take(event), "first")
    poll = select.poll()
    poll.register(bench.event, select.POLLIN)
    assert poll.poll(240_000)
    number = first.file.fd
    first.close()
    second = bench.host.watch(bench.take(other), "second")
    assert second.file.fd == number
    assert bench.wait() == []
    os.eventfd_write(other, 1)
    assert bench.wait() == ["second"]
    second.close()
    os.close(event)
    os.close(other)


def signalfd() -> int:
    """A signalfd without signals."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.signalfd(-1, ctypes.create_string_buffer(128), os.O_CLOEXEC)
    return fd


def test_files_that_cannot_or_must_not_be_polled_are_einval(bench: Bench, tmp_path: os.PathLike[str]) -> None:
    """An epoll descriptor may poll a hostile file system; a signalfd would report the daemon's own signals."""
    regular = os.open(os.path.join(tmp_path, "f"), os.O_CREAT | os.O_RDWR)
    epoll = select.epoll()
    kinds = {
        regular: EINVAL,
        os.open("/", os.O_RDONLY): EINVAL,
        os.memfd_create("x"): EINVAL,
        epoll.fileno(): EINVAL,
        signalfd(): EINVAL,
        os.open("/dev/null", os.O_PATH): EBADF,
    }
    assert all(fd >= 0 for fd in kinds)
    for fd, errno in kinds.items():
        file = bench.take(fd)
        with pytest.raises(CommandError) as info:
            bench.host.watch(file, None)
        assert info.value.errno == errno
        assert file.fd >= 0
        file.close()
    for fd in kinds.keys() - {epoll.fileno()}:
        os.close(fd)
    epoll.close()


def test_clock_and_uuid(bench: Bench) -> None:
    """BUS-9."""
    clock = bench.host.clock
    assert 0 < clock.monotonic() <= clock.monotonic()
    assert clock.realtime() > 1_600_000_000 * 10**9
    ids = {bench.host.random_uuid() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(value) == 16 and uuid.UUID(bytes=value).version == 4 for value in ids)
