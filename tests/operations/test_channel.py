"""The channel on a real /dev/fuse: pyfuse3 serves the tree only."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdbusfs.abi.v3 import constants as c
from tests.support import channel_fakes as fakes
from tests.support import features, old_kernel
from tests.support.channel_client import aligned, ioctl, send_struct, sync_send
from tests.support.channel_tree import FILE_INO, TEXT, TEXT_NODEID

pytestmark = pytest.mark.mount

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PATIENCE = 240.0  # s
PAGE = mmap.PAGESIZE


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.002)


class Mount:
    """A daemon with a mount in a namespace of its own."""

    def __init__(self, mountpoint: Path, *arguments: str) -> None:
        mountpoint.mkdir()
        script = str(ROOT / "tests/support/channel_daemon.py")
        self.mountpoint = mountpoint
        # Without --fork the daemon is the direct child, and its end ends the mount.
        self.process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                *old_kernel.prefix(),
                sys.executable,
                script,
                mountpoint,
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.watchdog = threading.Timer(60, self.process.kill)
        self.watchdog.start()
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()[1]
        self.path = Path(f"/proc/{self.process.pid}/root{mountpoint}")
        self.bus = str(self.path / "bus")
        self.log = ""

    def wait(self) -> dict[str, object]:
        """The output of the daemon at its end."""
        out, self.log = self.process.communicate(timeout=PATIENCE)
        report: dict[str, object] = json.loads(out)
        return report

    def stop(self) -> dict[str, object]:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        self.watchdog.cancel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    @contextlib.contextmanager
    def client(self, action: str) -> Iterator[subprocess.Popen[str]]:
        """A client that blocks in a synchronous SEND."""
        script = str(ROOT / "tests/support/channel_client.py")
        process = subprocess.Popen(
            [sys.executable, script, self.bus, action], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    mount = Mount(tmp_path / "mount")
    try:
        yield mount
        if mount.process.poll() is None:
            report = mount.stop()
            assert report["served"]
            assert (report["faults"], report["deferred"]) == (0, 0)
        assert "Traceback" not in mount.log
        assert "ERROR" not in mount.log
    finally:
        mount.end()


@pytest.fixture
def fd(mount: Mount) -> Iterator[int]:
    fd = os.open(mount.bus, os.O_RDWR)
    yield fd
    os.close(fd)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def deferred(fd: int) -> int:
    return ioctl(fd, fakes.DEFERRED) - fakes.BASE


# The tree


def test_tree_is_served_by_pyfuse3(mount: Mount) -> None:
    assert sorted(os.listdir(mount.path)) == ["bus", "text"]
    assert (mount.path / "text").read_bytes() == TEXT
    assert os.stat(mount.path / "text").st_ino == TEXT_NODEID
    with pytest.raises(FileNotFoundError):
        os.stat(mount.path / "missing")


def test_every_lookup_makes_an_inode_with_the_same_number(mount: Mount) -> None:
    first, second = os.open(mount.bus, os.O_RDONLY), os.open(mount.bus, os.O_RDONLY)
    try:
        with os.scandir(mount.path) as entries:
            entry = next(each for each in entries if each.name == "bus")
        numbers = [os.fstat(first).st_ino, os.fstat(second).st_ino, os.stat(mount.bus).st_ino, entry.inode()]
        assert numbers == [FILE_INO] * 4
    finally:
        os.close(first)
        os.close(second)
    report = mount.stop()
    assert report["passthrough"] == features.has_passthrough()


def test_tree_that_does_not_answer_ends_the_mount(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "mount", "300")
    try:
        with pytest.raises(OSError) as refused:
            os.stat(mount.path / "stuck")
        assert refused.value.errno == errno.EIO
        report = mount.wait()
        assert report["served"] is False
        assert report["is_shut"]
        assert mount.log.count("ERROR") == 1
        assert "cannot be served any longer: [Errno 110]" in mount.log
    finally:
        mount.end()


# Commands


def test_commands_and_their_memory(mount: Mount, fd: int) -> None:
    tail = bytes(range(200)) * 5
    info = aligned(struct.pack("<Q", 56 + len(tail)) + bytes(48) + tail[: 312 - 56])
    assert ioctl(fd, c.CMD_CONN_INFO, info) == -errno.EMSGSIZE
    info = aligned(struct.pack("<Q", 312) + bytes(48) + tail[: 312 - 56])
    assert ioctl(fd, c.CMD_CONN_INFO, info) == 0
    assert struct.unpack_from("<Q", info.raw, 40) == (sum(tail[:256]),)
    assert info.raw[56:] == tail[:256]


def test_struct_travels_back_with_an_error(fd: int) -> None:
    command = aligned(struct.pack("<Q", 80) + bytes(72))
    assert ioctl(fd, c.CMD_RECV, command) == -errno.EAGAIN
    assert struct.unpack_from("<QQQQ", command.raw) == (80, 0, 0, 80)


@pytest.mark.parametrize("size", [64, 1000, 5000, 8192])
def test_message_is_copied(fd: int, size: int) -> None:
    content = struct.pack("<Q", size) + os.urandom(size - 8)
    message = aligned(content)
    command = send_struct(ctypes.addressof(message))
    assert ioctl(fd, c.CMD_SEND, command) == 0
    assert struct.unpack_from("<Q", command.raw, 32) == (size,)
    assert struct.unpack_from("<Q", command.raw, 48) == (sum(content),)


def test_bad_arguments_are_errors_of_that_command_only(fd: int) -> None:
    """GEN-5, GEN-6, SEND-2."""
    assert ioctl(fd, c.CMD_RECV, 8) == -errno.EFAULT
    assert ioctl(fd, c.CMD_RECV, aligned(struct.pack("<Q", 72) + bytes(64), offset=4)) == -errno.EFAULT
    assert ioctl(fd, c.CMD_RECV, aligned(struct.pack("<Q", 71) + bytes(64))) == -errno.EINVAL
    assert ioctl(fd, c.CMD_RECV, aligned(struct.pack("<Q", 1 << 40) + bytes(64))) == -errno.EMSGSIZE
    assert ioctl(fd, c.CMD_SEND, send_struct(0)) == -errno.EFAULT
    assert ioctl(fd, c.CMD_SEND, send_struct(12)) == -errno.EFAULT
    # The size of the struct extends into unmapped memory.
    area = mmap.mmap(-1, 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(start + PAGE), ctypes.c_size_t(PAGE), 0) == 0
    area[PAGE - 72 : PAGE] = struct.pack("<Q", 4096) + bytes(64)
    assert ioctl(fd, c.CMD_RECV, start + PAGE - 72) == -errno.EFAULT
    area[PAGE - 72 : PAGE] = struct.pack("<Q", 72) + bytes(64)
    assert ioctl(fd, c.CMD_RECV, start + PAGE - 72) == -errno.EAGAIN
    assert libc.mprotect(ctypes.c_void_p(start + PAGE), ctypes.c_size_t(PAGE), 3) == 0


def test_unknown_commands(mount: Mount, fd: int) -> None:
    for number in (0x9577, c.CMD_BYEBYE, 0xC0489577, 0x80086601, 0x5401):
        assert ioctl(fd, number, aligned(bytes(72))) == -errno.ENOTTY
    for name in ("", "text"):
        other = os.open(mount.path / name, os.O_RDONLY)
        assert ioctl(other, c.CMD_RECV, aligned(struct.pack("<Q", 72) + bytes(64))) == -errno.ENOTTY
        os.close(other)


def test_command_is_carried_out_for_the_calling_thread(fd: int) -> None:
    results = []

    def ask() -> None:
        results.append((ioctl(fd, fakes.THREAD), threading.get_native_id()))

    ask()
    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tid for _, tid in results}) == 6
    assert all(told == tid for told, tid in results)


def test_fault_of_the_daemon_is_the_clients_eio(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "mount")
    try:
        with open(mount.bus, "rb", buffering=0) as file:
            for _ in range(10):
                assert ioctl(file.fileno(), fakes.FAIL) == -errno.EIO
            assert ioctl(file.fileno(), fakes.DEFERRED) == fakes.BASE
        assert mount.stop()["faults"] == 10
        assert mount.log.count("Traceback") == 1
    finally:
        mount.end()


# Poll


def test_poll_and_select(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    assert poll.poll(0) == [(fd, select.POLLOUT)]
    ioctl(fd, fakes.PUSH)
    assert poll.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]
    assert select.select([fd], [], [], 0)[0] == [fd]
    ioctl(fd, fakes.POP)
    assert select.select([fd], [], [], 0)[0] == []


def test_sleeping_poller_is_woken(mount: Mount, fd: int) -> None:
    other = os.open(mount.bus, os.O_RDWR)
    for _ in range(20):
        timer = threading.Timer(0.01, ioctl, (other, fakes.PUSH))
        timer.start()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(PATIENCE * 1000) == [(fd, select.POLLIN)]
        timer.join()
        ioctl(fd, fakes.POP)
    os.close(other)


def test_epoll_by_level(mount: Mount, fd: int) -> None:
    other = os.open(mount.bus, os.O_RDWR)
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN)
        assert epoll.poll(0) == []
        for _ in range(200):
            ioctl(other, fakes.PUSH)
            assert epoll.poll(PATIENCE) == [(fd, select.EPOLLIN)]
            assert epoll.poll(PATIENCE) == [(fd, select.EPOLLIN)]
            ioctl(fd, fakes.POP)
            assert epoll.poll(0) == []
    os.close(other)


def test_epoll_by_edge_tells_every_message(mount: Mount, fd: int) -> None:
    other = os.open(mount.bus, os.O_RDWR)
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        assert epoll.poll(0) == []
        # No message is received: each is an edge although the file was readable before.
        for _ in range(200):
            ioctl(other, fakes.PUSH)
            assert epoll.poll(PATIENCE) == [(fd, select.EPOLLIN)]
            assert epoll.poll(0) == []
    os.close(other)


# Waiting


def cpu_time(pid: int) -> int:
    """cpu time of all threads of a process, in ns."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files)


def test_idle_mount_uses_no_cpu(mount: Mount, fd: int) -> None:
    for _ in range(100):
        ioctl(fd, fakes.PUSH)
    # pyfuse3's own threads settle.
    time.sleep(0.2)
    before = cpu_time(mount.process.pid)
    time.sleep(0.5)
    assert cpu_time(mount.process.pid) - before < 1_000_000


def test_deadlines_and_events_reach_a_reader_that_sleeps_or_not(mount: Mount, fd: int) -> None:
    """Calls of one thread expire while another one keeps the reader busy, or does not."""
    for busy in (False, True):
        stop = threading.Event()

        def work(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                ioctl(fd, fakes.OPEN_FILES)

        thread = threading.Thread(target=work)
        if busy:
            thread.start()
        try:
            for _ in range(5):
                assert ioctl(fd, fakes.COMPLETE_AFTER, 50) == 0
                began = time.monotonic()
                assert sync_send(fd) == -errno.ETIMEDOUT
                assert time.monotonic() - began < PATIENCE
        finally:
            stop.set()
            if busy:
                thread.join(PATIENCE)


def test_reader_that_has_slept_is_told_to_stop_when_no_file_is_open(mount: Mount) -> None:
    file = os.open(mount.bus, os.O_RDWR)
    assert ioctl(file, fakes.OPEN_FILES) == fakes.BASE + 1
    os.close(file)
    time.sleep(0.05)
    report = mount.stop()
    assert report["served"]
    assert report["slots"] == 0


# Deferred answers


def test_deferred_call_blocks_its_thread_only(fd: int) -> None:
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(sync_send(fd))) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: deferred(fd) == 5)
    assert results == []
    assert ioctl(fd, fakes.COMPLETE, errno.EPIPE) == fakes.BASE + 5
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [-errno.EPIPE] * 5


def test_deferred_call_expires(fd: int) -> None:
    assert ioctl(fd, fakes.COMPLETE_AFTER, 50) == 0
    began = time.monotonic()
    assert sync_send(fd) == -errno.ETIMEDOUT
    assert 0.02 < time.monotonic() - began < PATIENCE


def test_interrupted_call_is_restarted_by_the_kernel(mount: Mount, fd: int) -> None:
    """SYNC-2: with SA_RESTART the same ioctl is issued again."""
    with mount.client("restart") as client:
        assert line(client) == "waiting"
        for count in range(1, 4):
            until(lambda: deferred(fd) == 1)
            client.send_signal(signal.SIGUSR1)
            expected = fakes.BASE + count
            until(lambda expected=expected: ioctl(fd, fakes.INTERRUPTS) == expected)  # type: ignore[misc]
        until(lambda: deferred(fd) == 1)
        ioctl(fd, fakes.COMPLETE, 0)
        assert line(client) == "0"


def test_interrupted_call_ends_without_restart(mount: Mount, fd: int) -> None:
    """SYNC-3."""
    with mount.client("no-restart") as client:
        assert line(client) == "waiting"
        until(lambda: deferred(fd) == 1)
        client.send_signal(signal.SIGUSR1)
        assert line(client) == str(-errno.EINTR)
    assert deferred(fd) == 0


def test_killed_client_is_let_go(mount: Mount, fd: int) -> None:
    """SYNC-5."""
    with mount.client("wait") as client:
        assert line(client) == "waiting"
        until(lambda: deferred(fd) == 1)
        client.kill()
        assert client.wait(PATIENCE) == -signal.SIGKILL
    assert deferred(fd) == 0
    until(lambda: ioctl(fd, fakes.OPEN_FILES) == fakes.BASE + 1)


def test_thread_stays_until_its_request_is_answered(mount: Mount, fd: int) -> None:
    """The invariant behind access by thread id: killing a caller does not free its id."""
    ioctl(fd, fakes.HOLD_INTERRUPTS, 1)
    with mount.client("threaded") as client:
        tid = int(line(client))
        task = Path(f"/proc/{client.pid}/task/{tid}")
        until(lambda: deferred(fd) == 1)
        client.kill()
        until(lambda: ioctl(fd, fakes.INTERRUPTS) >= fakes.BASE + 1)
        for _ in range(50):
            assert task.exists()
            assert client.poll() is None
            time.sleep(0.005)
        assert ioctl(fd, fakes.COMPLETE, 0) == fakes.BASE + 1
        assert client.wait(PATIENCE) == -signal.SIGKILL
        assert not task.exists()


# Opening and closing


def test_opens_leave_nothing_behind(mount: Mount, fd: int) -> None:
    before = ioctl(fd, fakes.DESCRIPTORS)
    message = aligned(struct.pack("<Q", 64) + bytes(56))
    for _ in range(1000):
        other = os.open(mount.bus, os.O_RDWR)
        assert ioctl(other, c.CMD_SEND, send_struct(ctypes.addressof(message))) == 0
        os.close(other)
    assert ioctl(fd, fakes.OPEN_FILES) == fakes.BASE + 1
    assert ioctl(fd, fakes.DESCRIPTORS) == before
    others = [os.open(mount.bus, os.O_RDWR) for _ in range(500)]
    assert ioctl(fd, fakes.OPEN_FILES) == fakes.BASE + 501
    for other in others:
        assert ioctl(other, c.CMD_SEND, send_struct(ctypes.addressof(message))) == 0
        os.close(other)
    assert ioctl(fd, fakes.OPEN_FILES) == fakes.BASE + 1
    assert ioctl(fd, fakes.DESCRIPTORS) == before


def test_close_takes_effect_before_the_next_command(mount: Mount, fd: int) -> None:
    """CLOSE-1: RELEASE is handled in order."""
    for _ in range(1000):
        os.close(os.open(mount.bus, os.O_RDWR))
        assert ioctl(fd, fakes.OPEN_FILES) == fakes.BASE + 1


def test_death_takes_effect_before_wait_returns(mount: Mount, fd: int) -> None:
    """CLOSE-1, for a client that is killed."""
    for _ in range(20):
        with mount.client("wait") as client:
            assert line(client) == "waiting"
            until(lambda: deferred(fd) == 1)
            client.kill()
            client.wait(PATIENCE)
            assert ioctl(fd, fakes.OPEN_FILES) == fakes.BASE + 1


def test_umount_ends_the_loop(mount: Mount) -> None:
    file = os.open(mount.bus, os.O_RDWR)
    namespace = f"--mount=/proc/{mount.process.pid}/ns/mnt"
    umount = ["nsenter", namespace, "umount", str(mount.mountpoint)]
    busy = subprocess.run(umount, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert busy.returncode != 0
    assert ioctl(file, fakes.OPEN_FILES) == fakes.BASE + 1
    os.close(file)
    subprocess.run(umount, check=True, timeout=PATIENCE)
    report = mount.wait()
    assert report["served"]
    assert report["is_shut"]
    assert report["slots"] == 0
    assert report["lost"] == 0


def test_stop_lets_waiting_clients_go(mount: Mount) -> None:
    with mount.client("wait") as client:
        assert line(client) == "waiting"
        file = os.open(mount.bus, os.O_RDONLY)
        until(lambda: deferred(file) == 1)
        report = mount.stop()
        assert report["served"]
        assert line(client) == str(-errno.ECONNRESET)
        with contextlib.suppress(OSError):  # ENOTCONN if the kernel sends FLUSH at every close: docs/deviations.md
            os.close(file)


def test_abort_of_the_connection_ends_the_loop(mount: Mount) -> None:
    connections = Path("/sys/fs/fuse/connections")
    minor = os.minor(os.stat(mount.path).st_dev)
    namespace = f"--mount=/proc/{mount.process.pid}/ns/mnt"
    abort = Path(f"/proc/{mount.process.pid}/root{connections}/{minor}/abort")
    if not abort.exists():
        command = ["nsenter", namespace, "mount", "-t", "fusectl", "none", str(connections)]
        subprocess.run(command, check=True, timeout=PATIENCE)
    abort.write_text("1")
    assert mount.wait()["served"]
