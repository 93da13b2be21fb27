"""Jobs that wait for another one of their user, and whose clients are killed meanwhile (host/installer.py)."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kdbusfs.base.ports import Caller
from kdbusfs.host import injection, installer
from kdbusfs.host.installer import Installer
from kdbusfs.host.job import Job
from kdbusfs.host.user_threads import Pool
from kdbusfs.native._native import ffi, lib

PATIENCE = 240.0  # seconds
HEADER = struct.Struct("=IiQ")


class SlowLib:
    """A client that does not let go of its installer, until `released`."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.dying: set[int] = set()
        self.traced: set[int] = set()
        self.released = threading.Event()

    def kfs_tracer_new(self) -> object:
        return object()

    def kfs_tracer_free(self, tracer: object) -> int:
        return 0

    def kfs_tracer_sweep(self, tracer: object, dead: Any) -> int:
        return 0

    def kfs_is_dying(self, tid: int) -> int:
        return int(tid in self.dying)

    def kfs_answer_error(self, fuse_fd: int, unique: int, error: int) -> int:
        return lib.kfs_answer_error(fuse_fd, unique, error)

    def kfs_inject(self, tracer: object, injection: Any) -> int:
        self.begun.append(injection.tid)
        if injection.tid in self.traced:
            injection.answered = 0
            return -errno.EPERM
        assert self.released.wait(PATIENCE)
        injection.answered = 1
        return 0

    def kfs_answer_ioctl(self, fuse_fd: int, unique: int, result: int, out: Any, size: int) -> int:
        raise AssertionError("the client is answered already")


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.005)


class HeldMemory(Caller):
    """A client whose memory takes a write only when `released`."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()

    def write(self, address: int, data: bytes) -> None:
        self.reached.set()
        assert self.released.wait(PATIENCE)


class Scene:
    def __init__(self, lib: SlowLib) -> None:
        self.lib = lib
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.answers, self.fuse = os.pipe2(os.O_NONBLOCK)
        self.pool = Pool()
        self.installer = Installer(self.pool, self.fuse, self.event)
        self.finished: list[Job] = []

    def submit(self, tid: int, **changed: Any) -> Job:
        slot = ffi.new("int32_t *")
        values: dict[str, Any] = {"out": bytes(72), "entries": [(0, slot)], "flags_offset": 64, **changed}
        job = Job(tid=tid, user=7, unique=2 * tid, result=0, **values)
        self.installer.submit(job)
        return job

    def answered(self) -> list[tuple[int, int]]:
        """Errno and unique of each answer since the last look."""
        try:
            data = os.read(self.answers, 4096)
        except BlockingIOError:
            return []
        return [(-error, unique) for _, error, unique in HEADER.iter_unpack(data)]

    def end(self) -> list[Job]:
        self.lib.released.set()
        assert self.pool.close()
        finished = self.installer.finished()
        for fd in (self.event, self.answers, self.fuse):
            os.close(fd)
        return finished


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    slow = SlowLib()
    for module in (installer, injection):
        monkeypatch.setattr(module, "lib", slow)
    yield Scene(slow)


def test_a_killed_client_does_not_wait_for_another_one_of_its_user(scene: Scene) -> None:
    """RECV-13: it is answered at once, and its job ends like all others, without having begun."""
    first, second, third = (scene.submit(tid) for tid in (1, 2, 3))
    until(lambda: scene.lib.begun == [1])
    scene.lib.dying = {2}
    scene.installer.interrupt(second.unique)
    assert scene.answered() == [(errno.EINTR, second.unique)]
    scene.installer.interrupt(second.unique)
    assert scene.answered() == []
    assert scene.end() == [first, second, third]
    assert scene.lib.begun == [1, 3]
    assert (first.abandoned, second.abandoned, third.abandoned) == (False, True, False)


def test_a_signal_that_does_not_kill_changes_nothing_but_the_next_may(scene: Scene) -> None:
    """The kernel tells of the first alone."""
    scene.submit(1)
    second = scene.submit(2)
    until(lambda: scene.lib.begun == [1])
    scene.installer.interrupt(second.unique)
    time.sleep(0.1)
    assert scene.answered() == []
    scene.lib.dying = {2}
    found: list[tuple[int, int]] = []

    def look() -> bool:
        found.extend(scene.answered())
        return bool(found)

    until(look)
    assert found == [(errno.EINTR, second.unique)]
    scene.end()
    assert scene.lib.begun == [1]


def test_who_is_served_already_and_who_is_unknown_are_left_alone(scene: Scene) -> None:
    first = scene.submit(1)
    until(lambda: scene.lib.begun == [1])
    scene.lib.dying = {1}
    scene.installer.interrupt(first.unique)
    scene.installer.interrupt(999)
    assert scene.answered() == []
    assert scene.end() == [first]
    assert not first.abandoned


def test_who_is_killed_while_his_own_memory_is_awaited_is_answered(scene: Scene) -> None:
    """L-72, RECV-13: he may be the one who serves it, and could not end; nothing is done with his thread's number."""
    memory = HeldMemory()
    job = scene.submit(1, out=b"", caller=memory, writes=[(8, b"results")])
    assert memory.reached.wait(PATIENCE)
    scene.installer.interrupt(job.unique)
    assert scene.answered() == []
    scene.lib.dying = {1}
    until(lambda: job.abandoned)
    assert scene.answered() == [(errno.EINTR, job.unique)]
    memory.released.set()
    assert scene.end() == [job] and not scene.lib.begun


def test_who_is_killed_while_his_flags_are_stored_is_answered(scene: Scene) -> None:
    """RECV-14: the kernel has told of the tracer's interruption, and does not tell of the kill."""
    scene.lib.traced = {1}
    memory = HeldMemory()
    job = scene.submit(1, out=b"", caller=memory)
    assert memory.reached.wait(PATIENCE)
    scene.lib.dying = {1}
    until(lambda: job.abandoned)
    assert scene.answered() == [(errno.EINTR, job.unique)]
    memory.released.set()
    assert scene.end() == [job] and scene.lib.begun == [1]


def test_an_interrupted_job_is_done_when_its_turn_comes(scene: Scene) -> None:
    scene.submit(1)
    second = scene.submit(2)
    until(lambda: scene.lib.begun == [1])
    scene.installer.interrupt(second.unique)
    scene.lib.released.set()
    until(lambda: scene.lib.begun == [1, 2])
    scene.end()
    assert not second.abandoned
