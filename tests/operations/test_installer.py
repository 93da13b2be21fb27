"""The installer against real clients that block in an ioctl of a FUSE file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbusfs.base.errors import CommandError
from kdbusfs.base.ports import Caller
from kdbusfs.host.closer import Closer
from kdbusfs.host.installer import Installer
from kdbusfs.host.job import Job
from kdbusfs.host.user_threads import Pool
from kdbusfs.native import _native
from tests.support import old_kernel
from tests.support.promptly import promptly, seconds

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
TIMEOUT = 240
TICK_NS = 50_000
"""What the timer of a tracer fires after, where it is to interrupt what it can."""

mounts = [
    pytest.mark.mount,
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
    ),
]
has_userfaultfd = os.path.exists("/proc/sys/vm/unprivileged_userfaultfd")


def compile_client(path: Path, *flags: str) -> bool:
    source = str(SUPPORT / "installer_client.c")
    done = subprocess.run(["cc", "-O2", "-pthread", *flags, source, "-o", str(path)], capture_output=True)
    return done.returncode == 0


class Daemon:
    """installer_daemon.py in a process of its own, and its clients."""

    def __init__(self, directory: Path, prefix: tuple[str, ...] = old_kernel.prefix()) -> None:
        directory.chmod(0o755)
        self.mountpoint = directory / "mount"
        self.mountpoint.mkdir()
        self.results = directory / "results"
        self.results.write_bytes(bytes(64 * 8192))
        self.results.chmod(0o666)
        self.started: list[subprocess.Popen[str]] = []
        self.client = directory / "client"
        assert compile_client(self.client)
        self.process = subprocess.Popen(
            [
                *prefix,
                sys.executable,
                str(SUPPORT / "installer_daemon.py"),
                str(self.mountpoint),
                str(self.results),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            pytest.fail(self.process.communicate(timeout=TIMEOUT)[1])

    def inside(self, uid: int, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.process.pid), "-m", "-S", str(uid), "-G", str(uid), *command]

    def start(self, *mode: object, uid: int = 0, client: Path | None = None) -> subprocess.Popen[str]:
        words = [str(client or self.client), f"{self.mountpoint}/dev", str(self.results), *map(str, mode)]
        process = subprocess.Popen(
            self.inside(uid, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def run(self, *mode: object, uid: int = 0, client: Path | None = None) -> str:
        return self.wait(self.start(*mode, uid=uid, client=client))

    def wait(self, process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
        return out

    def kill_started(self) -> None:
        """Clean up after a failed test."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=TIMEOUT)
        self.started.clear()

    def descriptors(self) -> int:
        """Number of open descriptors of the daemon, once no job is left."""
        return int(self.run("stats"))

    def stop(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=TIMEOUT)  # closes its input
        assert self.process.returncode == 0 and not err, err
        found: dict[str, Any] = json.loads(out)
        return found


@contextlib.contextmanager
def daemon_serving(prefix: tuple[str, ...]) -> Iterator[Daemon]:
    # pytest's directories are private, and there are clients of other users
    with tempfile.TemporaryDirectory(prefix="installer-") as directory:
        daemon = Daemon(Path(directory), prefix)
        try:
            yield daemon
            seen = daemon.stop()
            assert seen["ended"] and seen["jobs"] > 0
        finally:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.communicate()


@pytest.fixture(scope="module")
def serving() -> Iterator[Daemon]:
    with daemon_serving(old_kernel.prefix()) as daemon:
        yield daemon


@pytest.fixture
def daemon(serving: Daemon) -> Iterator[Daemon]:
    """The daemon; it must not leak descriptors."""
    before = serving.descriptors()
    try:
        yield serving
    finally:
        serving.kill_started()
    assert serving.descriptors() == before


@pytest.fixture(scope="module")
def client32(serving: Daemon) -> Path:
    path = serving.results.with_name("client32")
    if not compile_client(path, "-m32"):
        pytest.skip("no compiler for 32-bit programs")
    return path


class TestInstallation:
    pytestmark = mounts

    def test_numbers_are_the_lowest_free_ones_and_close_on_exec(self, daemon: Daemon) -> None:
        """LAY-16: up to 253 pipes and 128 memfds, whatever the ioctl returns, without touching its struct."""
        daemon.run("basic")

    def test_threads(self, daemon: Daemon) -> None:
        daemon.run("threads", 8, 250)

    @pytest.mark.parametrize(("threads", "times"), [(1, 1500), (8, 250)])
    def test_signals_are_neither_lost_nor_repeated(self, daemon: Daemon, threads: int, times: int) -> None:
        daemon.run("signals", threads, times)

    @pytest.mark.parametrize(("threads", "times"), [(1, 1500), (4, 400)])
    def test_stopped_and_continued(self, daemon: Daemon, threads: int, times: int) -> None:
        daemon.run("stops", threads, times)

    def test_a_seccomp_filter_that_would_kill(self, daemon: Daemon) -> None:
        daemon.run("seccomp")

    def test_a_traced_client_gets_its_answer_and_the_flag(self, daemon: Daemon) -> None:
        """RECV-14, LAY-15."""
        daemon.run("traced")

    def test_the_first_ones_are_installed_at_the_limit(self, daemon: Daemon) -> None:
        """RECV-14: the others are -EMFILE, and the flag is set."""
        daemon.run("rlimits")

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="written for x86-64")
    @pytest.mark.parametrize("mode", ["stack", "gate"])
    def test_unusual_ways_to_make_an_ioctl(self, daemon: Daemon, mode: str) -> None:
        """With foreign data or no page at all below the stack; by the i386 gate of a 64-bit program."""
        daemon.run(mode)

    def test_in_namespaces_of_its_own(self, daemon: Daemon) -> None:
        daemon.run("namespaces", uid=1000)

    @pytest.mark.parametrize(
        "mode",
        [
            ("basic",),
            ("signals", 4, 250),
            ("stops", 2, 400),
            ("rlimits",),
            ("seccomp",),
            ("swap",),
            ("exec-during", 20),
        ],
        ids=lambda mode: mode[0],
    )
    def test_32_bit_client(self, daemon: Daemon, client32: Path, mode: tuple[object, ...]) -> None:
        daemon.run(*mode, client=client32)


class TestOneWay:
    """A command whose struct the kernel does not copy back: results and return flags go into the client's memory."""

    pytestmark = mounts

    @pytest.fixture(scope="class")
    @classmethod
    def one_way(cls, serving: Daemon) -> Path:
        path = serving.results.with_name("client-one-way")
        assert compile_client(path, "-DONE_WAY")
        return path

    @pytest.mark.parametrize(
        "mode",
        [
            ("basic",),
            ("rlimits",),
            ("traced",),
            ("seccomp",),
            ("signals", 4, 250),
            ("stops", 2, 200),
            ("exec-during", 10),
        ],
        ids=lambda mode: mode[0],
    )
    def test_results_and_flags(self, daemon: Daemon, one_way: Path, mode: tuple[object, ...]) -> None:
        """RECV-13, RECV-14."""
        daemon.run(*mode, client=one_way)


class TestSwap:
    pytestmark = mounts

    def test_the_descriptor_of_the_ioctl_is_replaced(self, daemon: Daemon) -> None:
        """Read-only and of the private inode; number and close-on-exec as before; no other one is left."""
        daemon.run("swap")

    def test_what_a_sibling_has_put_in_its_place_stays(self, daemon: Daemon) -> None:
        daemon.run("displaced")

    def test_only_threads_of_the_installer_are_named(self, daemon: Daemon) -> None:
        """A client cannot open the private node."""
        done = subprocess.run(
            daemon.inside(0, "cat", f"{daemon.mountpoint}/private"), capture_output=True, text=True
        )
        assert "Permission denied" in done.stderr


class TestOnTheOldestKernel:
    """Where a pidfd cannot be of a thread, most of all."""

    pytestmark = mounts

    @pytest.fixture(scope="class")
    @classmethod
    def serving(cls, old_kernel_library: Path) -> Iterator[Daemon]:
        with daemon_serving(old_kernel.under("linux-5.10", old_kernel_library)) as daemon:
            yield daemon

    @pytest.mark.parametrize(
        "mode", [("basic",), ("swap",), ("signals", 8, 50), ("stops", 4, 400), ("exec-during", 10)]
    )
    def test_threads(self, daemon: Daemon, mode: tuple[object, ...]) -> None:
        """LAY-16"""
        daemon.run(*mode)


class TestInterruptions:
    """A tracer's timer interrupts whatever system call it meets; here it meets all of them."""

    pytestmark = mounts

    @pytest.fixture(scope="class", params=["", "linux-6.1", "linux-6.12"])
    @classmethod
    def serving(
        cls, request: pytest.FixtureRequest, old_kernel_library: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Daemon]:
        ticks = tmp_path_factory.mktemp("ticks") / "frequent_ticks.so"
        source = str(SUPPORT / "frequent_ticks.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(ticks), source, "-ldl"], check=True)
        preloaded, variables = str(ticks), [f"KDBUSFS_TEST_TICK={TICK_NS}"]
        if request.param:
            preloaded = f"{ticks}:{old_kernel_library}"
            variables.append(f"{old_kernel.VARIABLE}={request.param}")
        with daemon_serving(("env", f"LD_PRELOAD={preloaded}", *variables)) as daemon:
            yield daemon

    @pytest.mark.parametrize(
        "mode", [("threads", 4, 100), ("swap",), ("rlimits",), ("signals", 4, 50), ("stops", 2, 100)]
    )
    def test_nothing_is_lost(self, daemon: Daemon, mode: tuple[object, ...]) -> None:
        """LAY-16"""
        daemon.run(*mode)


class TestDeath:
    pytestmark = mounts

    def test_killed_at_any_moment(self, daemon: Daemon) -> None:
        rand = random.Random(1)
        clients: list[tuple[float, subprocess.Popen[str]]] = []
        for index in range(150):
            clients.append((time.monotonic() + rand.uniform(0.002, 0.03), daemon.start("loop", index)))
            while len(clients) > 5 or (index == 149 and clients):
                clients.sort(key=lambda entry: entry[0])
                due, client = clients.pop(0)
                time.sleep(max(0.0, due - time.monotonic()))
                client.kill()
                _, err = client.communicate(timeout=TIMEOUT)
                assert client.returncode == -signal.SIGKILL, err

    def test_a_sibling_executes_another_program(self, daemon: Daemon) -> None:
        daemon.run("exec-during", 60)

    @pytest.mark.parametrize("leader", [0, 1])
    def test_a_sibling_executed_another_program_before(self, daemon: Daemon, leader: int) -> None:
        """execve(2) of the client and the installer could deadlock."""
        promptly(lambda: seconds(lambda: daemon.run("exec-before", leader)), 1)


@pytest.mark.skipif(not has_userfaultfd, reason="needs userfaultfd")
class TestBlockedMemory:
    pytestmark = mounts

    def test_memory_that_comes_late(self, daemon: Daemon) -> None:
        daemon.run("fault", 300)

    def test_memory_that_comes_too_late(self, daemon: Daemon) -> None:
        """The job ends without descriptors; the client continues when it finally stops; others are not delayed."""

        def play() -> float:
            blocked = daemon.start("fault", 2600)
            time.sleep(0.3)
            took = seconds(lambda: [daemon.run("threads", 2, 100, uid=1000) for _ in range(3)])
            assert blocked.poll() is None or took >= 1.5
            daemon.wait(blocked)
            return took

        promptly(play, 1.5)

    def test_what_a_call_has_made_that_ends_too_late_is_taken_away(self, daemon: Daemon) -> None:
        """The client blocks in the call that makes its sockets."""
        daemon.run("fault", 2600, 1)


class Files:
    """An Installer whose /dev/fuse is one end of a socket pair."""

    def __init__(self, max_workers: int = 8, **bounds: Any) -> None:
        self.fuse, self.answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.answers.settimeout(TIMEOUT)
        self.event = os.eventfd(0)
        self.pool = Pool(max_workers)
        self.installer = Installer(self.pool, self.fuse.fileno(), self.event, **bounds)
        self.closer = Closer(self.pool)
        self.slots = _native.ffi.new("int32_t[]", [-1000] * 4)

    def job(self, **changed: Any) -> Job:
        values: dict[str, Any] = {
            "tid": 1 << 30,
            "user": 7,
            "unique": 42,
            "result": 0,
            "out": bytes(64) + struct.pack("=Q", 4),
            "entries": [(self.event, self.slots + index) for index in range(2)],
            "flags_offset": 64,
            "incomplete_flags": 4 | 1,
        }
        return Job(**{**values, **changed})

    def answer(self) -> tuple[int, int, int]:
        """Unique, result and return flags of the next answer."""
        data = self.answers.recv(4096)
        size, error, unique, result = struct.unpack_from("=IiQi", data)
        assert size == len(data) == 32 + 72 and error == 0
        return unique, result, struct.unpack_from("=Q", data, 32 + 64)[0]

    def finished(self) -> list[Job]:
        assert os.eventfd_read(self.event) > 0
        return self.installer.finished()


@pytest.fixture
def make_files() -> Iterator[Callable[..., Files]]:
    made: list[Files] = []

    def make(**bounds: int) -> Files:
        made.append(Files(**bounds))
        return made[-1]

    yield make
    for files in made:
        files.pool.close()
        files.fuse.close()
        files.answers.close()
        os.close(files.event)


class NoMemory(Caller):
    """A client that has none at its addresses."""

    def __init__(self) -> None:
        self.accesses = 0

    def write(self, address: int, data: bytes) -> None:
        self.accesses += 1
        raise CommandError(errno.EFAULT)


def wait_until(condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{condition} did not hold within {seconds:g} s"
        time.sleep(0.01)


class TestBounds:
    def test_a_thread_that_has_ended(self, make_files: Callable[..., Files]) -> None:
        files = make_files()
        job = files.job(result=-errno.EINVAL)
        files.installer.submit(job)
        assert files.answer() == (42, -errno.EINVAL, 5)
        assert files.finished() == [job]
        assert (job.error, job.installed, job.swapped) == (errno.ESRCH, 0, False)
        assert list(files.slots) == [-errno.ESRCH] * 2 + [-1000] * 2

    def test_a_thread_that_is_in_no_ioctl_is_left_as_it_was(self, make_files: Callable[..., Files]) -> None:
        files = make_files()
        script = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            for number in range(20):
                print(number, file=process.stdin, flush=True)
                assert process.stdout.readline() == f"{number}\n"
                job = files.job(tid=process.pid)
                files.installer.submit(job)
                assert files.answer() == (42, 0, 4)
                assert files.finished() == [job]
                assert job.error == errno.EOPNOTSUPP
        assert process.returncode == 0

    def test_a_swap_whose_file_does_not_open_is_a_plain_answer(
        self, make_files: Callable[..., Files]
    ) -> None:
        files = make_files()
        job = files.job(entries=[], swap="/nonexistent/file")
        files.installer.submit(job)
        assert files.answer() == (42, 0, 4)
        assert files.finished() == [job]
        assert (job.error, job.swapped) == (errno.ENOENT, False)

    def test_a_job_that_makes_no_sense_is_answered(self, make_files: Callable[..., Files]) -> None:
        files = make_files()
        job = files.job(entries=[(1 << 40, files.slots)])
        files.installer.submit(job)
        assert files.answer() == (42, 0, 5)
        assert files.finished() == [job] and job.error == errno.EIO
        files.installer.submit(files.job())
        assert files.answer() == (42, 0, 5)

    @pytest.mark.parametrize("bounds", [{"max_workers": 0}, {"max_queued": 0}])
    def test_beyond_the_bounds_the_answer_has_no_descriptors(
        self, make_files: Callable[..., Files], bounds: dict[str, int]
    ) -> None:
        files = make_files(**bounds)
        job = files.job()
        files.installer.submit(job)
        assert files.finished() == [job]  # at once
        assert files.answer() == (42, 0, 5)
        assert list(files.slots)[:2] == [-errno.EAGAIN] * 2 and job.error == errno.EAGAIN

    def test_memory_that_cannot_be_written(self, make_files: Callable[..., Files]) -> None:
        """A fault of the client is its errno; a flag that cannot be stored does not change the result."""
        files = make_files()
        for writes, result in (([], 0), ([(8, b"results")], -errno.EFAULT)):
            files.installer.submit(files.job(out=b"", caller=NoMemory(), writes=writes))
            data = files.answers.recv(4096)
            assert struct.unpack_from("=IiQi", data) == (32, 0, 42, result)
            assert files.finished()[0].error == errno.ESRCH

    def test_the_reader_does_not_wait_for_the_memory_of_a_client(self, make_files: Callable[..., Files]) -> None:
        files = make_files(max_workers=0)
        memory = NoMemory()
        for writes, result in (([], 0), ([(8, b"results")], -errno.EAGAIN)):
            files.installer.submit(files.job(out=b"", caller=memory, writes=writes))
            assert struct.unpack_from("=IiQi", files.answers.recv(4096)) == (32, 0, 42, result)
        assert memory.accesses == 0

    def test_threads_end_when_there_is_no_work(self, make_files: Callable[..., Files]) -> None:
        files = make_files()

        def each_user_has_one() -> bool:
            for user in range(3):
                files.installer.submit(files.job(user=user))
                files.answer()
            return len(files.installer.tids) == 3

        wait_until(each_user_has_one)  # it takes less than a second at some time
        wait_until(lambda: not files.installer.tids)
        wait_until(lambda: not any(thread.name == "user-1" for thread in threading.enumerate()))
        files.installer.submit(files.job(user=1))
        assert files.answer() == (42, 0, 5)
        assert len(files.installer.tids) == 1

    def test_closing_ends_the_threads(self, make_files: Callable[..., Files]) -> None:
        files = make_files()
        files.installer.submit(files.job())
        assert files.pool.close() is True
        assert files.answer() == (42, 0, 5)
        assert not files.installer.tids
        files.installer.submit(files.job())
        assert files.answer() == (42, 0, 5)
        assert len(files.installer.finished()) == 2


UNPRIVILEGED = """
import ctypes, os, subprocess, sys
sys.path.insert(0, sys.argv[1])
import test_installer
libc = ctypes.CDLL(None)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
sets[0] &= ~(1 << 21)  # CAP_SYS_ADMIN, of the effective set
assert libc.capset(header, sets) == 0
filtered = '''
import ctypes, sys
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
allow = ctypes.create_string_buffer(bytes([6, 0, 0, 0, 0, 0, 0xff, 0x7f]))
program = Program(1, ctypes.addressof(allow))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program)) == 0
'''
echo = "import sys\\nfor line in sys.stdin: print(line.strip(), flush=True)"
files = test_installer.Files()
for script in (echo, filtered + echo):
    process = subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True)
    for _ in range(2):
        print("x", file=process.stdin, flush=True)
        assert process.stdout.readline()
        job = files.job(tid=process.pid)
        files.installer.submit(job)
        files.answer()
        assert files.finished() == [job]
    print(job.error)
    process.communicate()
    assert process.returncode == 0
assert files.pool.close()
"""


def test_without_the_privilege_to_suspend_a_seccomp_filter() -> None:
    """Then a thread that has one is not touched; another one can be."""
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert list(map(int, done.stdout.split())) == [errno.EOPNOTSUPP, errno.EPERM]


def slow_socket() -> tuple[int, socket.socket]:
    """A descriptor whose close(2) takes a second, for its peer does not read; and the peer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(1 << 16))
    except BlockingIOError:
        sender.setblocking(True)
    return sender.detach(), peer


class TestClosing:
    def test_a_file_that_does_not_close_keeps_nobody_else_waiting(
        self, make_files: Callable[..., Files]
    ) -> None:
        def play() -> float:
            files = make_files()
            reader, writer = os.pipe()
            fd, peer = slow_socket()
            started = time.monotonic()
            files.closer.close_later(1, fd)
            files.closer.close_later(2, writer)
            files.installer.submit(files.job(user=1))
            assert os.read(reader, 1) == b""  # the other user's has been closed
            assert files.answer() == (42, 0, 5)  # and jobs of the same user are done
            still_closing = files.closer.closing(1)
            took = time.monotonic() - started
            assert still_closing == 1 or took >= 0.9
            wait_until(lambda: files.closer.closing(1) == 0)
            assert time.monotonic() - started > 0.9
            os.close(reader)
            peer.close()
            return took

        promptly(play, 0.9)

    def test_without_a_thread_it_waits_for_one(self, make_files: Callable[..., Files]) -> None:
        files = make_files(max_workers=1)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        files.installer.submit(files.job(user=1))
        files.answer()
        files.closer.close_later(2, writer)
        assert files.closer.closing(2) == 1
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        wait_until(lambda: not files.installer.tids)
        wait_until(lambda: files.installer.finished() is not None and files.closer.closing(2) == 0)
        assert os.read(reader, 1) == b""
        os.close(reader)
