"""Threads as clients without pidfds of threads, that is before Linux 6.9.

Other tests that emulate older kernels have the mark `old_kernels`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, Memfd, make_bus, sealed_memfd
from tests.support.actors import errno_of, until
from tests.support.forked import forked

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = [pytest.mark.mount, pytest.mark.parametrize("kernel", ["linux-5.10"], indirect=True)]

POOL = 1 << 20
PATIENT = 30.0  # seconds
_CLONE_FILES = 0x400
_EXIT, _SETRESUID = {"x86_64": (60, 117), "aarch64": (93, 147)}[os.uname().machine]
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    with make_bus(domain_mount.path, "test") as made:
        yield made


def in_thread(play: Callable[[], Any]) -> Any:
    """Run `play` in a thread other than the first; returns its result."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(play()))
    thread.start()
    thread.join(PATIENT)
    return found[0]


def exchange(connection: Connection) -> None:
    """Exchange messages with everything that they can contain."""
    reading, writing = os.pipe()
    with sealed_memfd(b"memfd") as memfd:
        connection.send(connection.id, [b"vector", Memfd(memfd), b"x" * 100_000], fds=[writing])
    with connection.receive(PATIENT) as message:
        assert message.return_flags == 0
        first, _, third = message.payload
        assert isinstance(first, memoryview) and isinstance(third, memoryview)
        assert bytes(first) == b"vector" and bytes(third) == b"x" * 100_000
        assert message.memfds[0].read() == b"memfd"
        os.write(message.fds[0].fileno(), b"through")
    assert os.read(reading, 10) == b"through"
    os.close(reading)
    os.close(writing)


def test_gen_20_another_thread_than_the_first_does_it_all(bus: BusOwner) -> None:
    """GEN-20, SEND-12, SEND-13, RECV-13, POOL-3"""

    def play() -> tuple[list[int], list[str]]:
        def use() -> list[int]:
            with Connection(bus.path, pool_size=POOL) as connection:
                exchange(connection)
                connection.acquire("org.example.Thread")
                assert os.readlink(f"/proc/self/fd/{connection.fd}").find("/.conn-") >= 0, "HELLO swaps"
                return [connection.conn_info(connection.id).id, connection.id]

        first, second = in_thread(use)
        assert first == second
        with Connection(bus.path, pool_size=POOL) as connection:
            for _ in range(3):
                exchange(connection)
                in_thread(lambda: exchange(connection))
        return [first], os.listdir("/proc/self/task")

    ids, threads = forked(play)
    assert ids and len(threads) >= 1


def test_recv_13_a_thread_with_descriptors_of_its_own_gets_no_others(bus: BusOwner) -> None:
    """SEND-12, RECV-13: docs/deviations.md; the descriptor of its process at that number is never used instead"""

    def play() -> dict[str, Any]:
        with Connection(bus.path, pool_size=POOL) as connection, sealed_memfd(b"data") as memfd:
            shared = os.open("/proc/self/comm", os.O_RDONLY)
            replaced = os.open("/proc/self/comm", os.O_RDONLY)

            def use() -> dict[str, Any]:
                assert _libc.unshare(_CLONE_FILES) == 0
                own, end = os.pipe()
                os.dup2(own, replaced)
                found: dict[str, Any] = {
                    "own": errno_of(connection.send, connection.id, b"", fds=[own]),
                    "replaced": errno_of(connection.send, connection.id, b"", fds=[replaced]),
                }
                connection.send(connection.id, [b"text", Memfd(memfd)], fds=[shared])
                with connection.receive(PATIENT) as message:
                    found["flags"] = message.return_flags
                    found["text"] = bytes(message.payload[0])  # type: ignore[arg-type]
                    found["numbers"] = [message.memfds[0].file.fd, message.fds[0].fd]
                found["end"] = end
                return found

            return dict(in_thread(use))

    found = forked(play)
    assert (found["own"], found["replaced"]) == (errno.EBADF, errno.EBADF)
    assert (found["flags"], found["text"]) == (c.RECV_RETURN_INCOMPLETE_FDS, b"text")
    assert found["numbers"] == [-errno.EBADF, -errno.EBADF]


def test_meta_3_of_a_process_whose_first_thread_has_ended(bus: BusOwner) -> None:
    """META-3, SEND-12: its messages arrive, with its own credentials, but without descriptors"""
    reading, writing = os.pipe()

    def state() -> str:
        return Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[0]

    def use() -> None:
        try:
            until("its first thread has ended", lambda: state() == "Z")
            with Connection(bus.path, pool_size=POOL, attach_recv=c.ATTACH_CREDS | c.ATTACH_PIDS) as connection:
                _libc.syscall(_SETRESUID, -1, 77, -1)
                connection.send(connection.id, [b"y" * 5000])
                with connection.receive(PATIENT) as message:
                    creds, pids = message.metadata.creds, message.metadata.pids
                    assert creds is not None and pids is not None
                    told = {"size": len(message.data()), "euid": creds[1]}
                    told["pids"] = pids[:2] == (os.getpid(), threading.get_native_id())
                told["fds"] = errno_of(connection.send, connection.id, b"", fds=[0])
            os.write(writing, json.dumps(told).encode())
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(0)

    pid = os.fork()
    if pid == 0:
        threading.Thread(target=use).start()
        _libc.syscall(_EXIT, 0)
    assert os.waitpid(pid, 0)[1] == 0
    answer = os.read(reading, 1 << 16).decode()
    os.close(reading)
    os.close(writing)
    assert answer == json.dumps({"size": 5000, "euid": 77, "pids": True, "fds": errno.EBADF})
