"""The daemon's own client, which uses the whole path of a command once before the daemon reports readiness.

It is a child, forked while the daemon has one thread and has loaded little, and waits for the mount.  Then it makes a
bus, says HELLO, maps its pool and sends itself a descriptor, and reports each step.  Its bus is in a domain beside the
served one (`fuse.tree.Guest`): invisible to other clients, and without effect on the ids that they get.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EACCES, EINTR, EIO, EROFS, ETIMEDOUT
from typing import NoReturn

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.abi.v3.layouts import (
    BLOOM_PARAMETER,
    CMD_FREE_OFFSET,
    CMD_HELLO,
    CMD_RECV,
    CMD_RECV_MSG_OFFSET,
    CMD_SEND,
    ITEM_HEADER,
    ITEM_HEADER_SIZE,
    MSG,
    MSG_SIZE,
    align8,
)
from kdbusfs.patience import Patience, cpu_time_of

_POOL_SIZE = 16 * mmap.PAGESIZE
_BLOOM = (64, 1)  # bytes, hashes
_PR_SET_PDEATHSIG = 1
_MAP_FAILED = ctypes.c_void_p(-1).value
_COOKIE = 1
_BUS_MAKE = struct.Struct("<QQQQ")  # size flags kernel_flags return_flags
_FREE = struct.Struct("<QQQQQ")  # size offset flags kernel_flags return_flags
_FD = struct.Struct("<i")
_REPORT = struct.Struct("<ii")  # step, errno

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


class Step(enum.IntEnum):
    """The steps of the client, in this order, and the properties that are checked in between."""

    ENTER = 0
    MAKE = 1
    OPEN = 2
    HELLO = 3
    MAP = 4
    PROTECT = 5
    SEND = 6
    RECEIVE = 7
    DESCRIPTOR = 8

    @property
    def text(self) -> str:
        """The place in a message."""
        return _TEXTS[self]


_TEXTS = {
    Step.ENTER: "opening its control file",
    Step.MAKE: "making a bus",
    Step.OPEN: "opening an endpoint",
    Step.HELLO: "HELLO",
    Step.MAP: "mapping a pool",
    Step.PROTECT: "having a pool that its client cannot write to",
    Step.SEND: "sending a descriptor",
    Step.RECEIVE: "receiving a message",
    Step.DESCRIPTOR: "receiving a descriptor",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result: the errno of each step that failed, and the duration of all in seconds.

    stuck: how long a step was waited for in vain, and which; else empty.
    """

    failed: dict[Step, int] = field(default_factory=dict)
    seconds: float = 0.0
    stuck: str = ""


class Rehearsal:
    """The client, from the daemon's side.  Made while the process has one thread; `close` in any case."""

    def __init__(self) -> None:
        self._is_closed = False
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = os.fork()
        except OSError:
            self._ours.close()
            theirs.close()
            raise
        if self.pid == 0:
            _live(self._ours, theirs)
        theirs.close()

    @property
    def bus_name(self) -> str:
        """The name of the bus that the client makes."""
        return _bus_name(self.pid)

    def perform(self, path: str, on_step: Callable[[Step], None] = lambda step: None) -> Outcome:
        """Have the client use the domain at `path`.  `on_step` is called when a step begins.  Never raises."""
        failed: dict[Step, int] = {}
        began = time.monotonic()
        patience = Patience(lambda: time.process_time() + cpu_time_of(self.pid))
        step = Step.ENTER
        try:
            self._ours.send(os.fsencode(path))
            for step in Step:
                patience.step(step.text)
                on_step(step)
                failed.update(self._report(step, patience))
                if step in failed and step not in _PASSABLE:
                    break
        except TimeoutError:
            failed[step] = ETIMEDOUT
            return Outcome(failed, time.monotonic() - began, str(patience))
        except OSError as fault:
            failed[step] = fault.errno or EIO
        return Outcome(failed, time.monotonic() - began)

    def _report(self, step: Step, patience: Patience) -> dict[Step, int]:
        """The client's message about `step`: its errno, or nothing.

        Raises OSError; TimeoutError if there is no message.
        """
        self._ours.settimeout(patience.interval)
        while True:
            try:
                report = self._ours.recv(_REPORT.size)
            except TimeoutError:
                if patience.is_over:
                    raise
                continue
            if not report:
                return {step: EIO}
            at, error = _REPORT.unpack(report)
            return {Step(at): error} if error else {}

    def give_up(self) -> None:
        """Make `perform`, in another thread, return soon: the client is not waited for any longer."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the client, whatever it does, and wait for that as long as it cannot be delayed.

        Not by waitpid(2) at once: that would consume the stops of a thread that an installer traces.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(self.pid)
            try:
                # A client that waits for an answer of the daemon ends with the mount.
                if select.select([pidfd], [], [], 1.0)[0]:
                    os.waitpid(self.pid, 0)
            finally:
                os.close(pidfd)


_PASSABLE = frozenset((Step.PROTECT, Step.DESCRIPTOR))
"""Steps after whose failure the client continues."""


def _bus_name(pid: int) -> str:
    """A name with the uid of its maker, as for every bus (BUS-5), and unique."""
    return f"{os.geteuid()}-kdbusfs-rehearsal-{pid}"


def _live(ours: socket.socket, theirs: socket.socket) -> NoReturn:
    """Run the child: of the daemon it has only the socket."""
    try:
        ours.close()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        kept = os.dup2(theirs.fileno(), 3, inheritable=False) if theirs.fileno() != 3 else 3
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        theirs = socket.socket(fileno=kept)
        path = theirs.recv(1 << 16)
        if path:
            _Client(path.decode(errors="surrogateescape"), theirs).act()
            theirs.recv(1)
    finally:
        os._exit(0)


class _Client:
    """Carry out the client's steps; each is reported with 0 or its errno."""

    def __init__(self, path: str, report: socket.socket) -> None:
        self._path = path
        self._report = report
        self._sent = os.pipe2(os.O_CLOEXEC)[0]  # sockets cannot be sent

    def act(self) -> None:
        """All steps, up to the first failure that none can follow."""
        step = Step.ENTER
        try:
            control = os.open(f"{self._path}/control", os.O_RDONLY | os.O_CLOEXEC)
            self._say(step)
            step = Step.MAKE
            name = _bus_name(os.getpid())
            self._make(control, name)
            self._say(step)
            step = Step.OPEN
            endpoint = _open(f"{self._path}/{name}/bus")
            self._say(step)
            step = Step.HELLO
            conn_id, offset = self._hello(endpoint)
            self._say(step)
            step = Step.MAP
            pool = _map(endpoint, mmap.PROT_READ)
            item = ctypes.string_at(pool + offset + 8 + ITEM_HEADER_SIZE, BLOOM_PARAMETER.size)
            if BLOOM_PARAMETER.unpack(item) != _BLOOM:
                raise OSError(EIO, "the pool has something else than was put there")
            self._say(step)
            step = Step.PROTECT
            self._say(step, _protection(endpoint))
            step = Step.SEND
            self._send(endpoint, conn_id)
            self._say(step)
            step = Step.RECEIVE
            number = self._receive(endpoint, pool)
            self._say(step)
            step = Step.DESCRIPTOR
            self._say(step, -number if number < 0 else 0)
        except OSError as fault:
            self._say(step, fault.errno or EIO)

    def _say(self, step: Step, error: int = 0) -> None:
        self._report.send(_REPORT.pack(step, error))

    def _make(self, control: int, name: str) -> None:
        items = make_item(c.ITEM_BLOOM_PARAMETER, BLOOM_PARAMETER.pack(*_BLOOM))
        items += make_item(c.ITEM_MAKE_NAME, name.encode() + b"\0")
        _command(control, c.CMD_BUS_MAKE, _BUS_MAKE.pack(_BUS_MAKE.size + len(items), 0, 0, 0) + items)

    def _hello(self, endpoint: int) -> tuple[int, int]:
        size = CMD_HELLO.size
        fields = (size, c.HELLO_ACCEPT_FD, 0, 0, 0, 0, 0, 0, _POOL_SIZE, 0, 0, bytes(16))
        done = CMD_HELLO.unpack(_command(endpoint, c.CMD_HELLO, CMD_HELLO.pack(*fields)))
        return done[7], done[9]

    def _send(self, endpoint: int, conn_id: int) -> None:
        item = make_item(c.ITEM_FDS, _FD.pack(self._sent))
        head = MSG.pack(MSG_SIZE + len(item), 0, 0, conn_id, 0, c.PAYLOAD_DBUS, _COOKIE, 0)
        message = ctypes.create_string_buffer(head + item, len(head) + len(item))
        address = ctypes.addressof(message)
        _command(endpoint, c.CMD_SEND, CMD_SEND.pack(72, 0, 0, 0, 0, address) + bytes(24))

    def _receive(self, endpoint: int, pool: int) -> int:
        """The number of the descriptor that arrived, or a negative errno."""
        done = _command(endpoint, c.CMD_RECV, CMD_RECV.pack(CMD_RECV.size, 0, 0, 0, 0, 0, 0, 0, 0))
        offset, size, _ = struct.unpack_from("<QQQ", done, CMD_RECV_MSG_OFFSET)
        message = ctypes.string_at(pool + offset, size)
        at, number = MSG_SIZE, -EIO
        while at + ITEM_HEADER_SIZE <= size:
            item_size, kind = ITEM_HEADER.unpack_from(message, at)
            if kind == c.ITEM_FDS:
                (number,) = _FD.unpack_from(message, at + ITEM_HEADER_SIZE)
            at += align8(max(item_size, ITEM_HEADER_SIZE))
        free = bytearray(_FREE.size)
        struct.pack_into("<Q", free, 0, _FREE.size)
        struct.pack_into("<Q", free, CMD_FREE_OFFSET, offset)
        _command(endpoint, c.CMD_FREE, bytes(free))
        if number >= 0 and not os.path.sameopenfile(number, self._sent):
            return -EIO
        return number


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as fault:
        if fault.errno != EROFS:
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _command(fd: int, number: int, command: bytes) -> bytes:
    """Issue a command; returns its struct.  Raises OSError."""
    words = (ctypes.c_uint64 * (len(command) // 8)).from_buffer_copy(command)
    while _libc.ioctl(fd, number, ctypes.addressof(words)) < 0:
        error = ctypes.get_errno()
        if error != EINTR:
            raise OSError(error, os.strerror(error))
    return bytes(words)


def _map(fd: int, protection: int) -> int:
    address = _libc.mmap(None, _POOL_SIZE, protection, mmap.MAP_SHARED, fd, 0)
    if address is None or address == _MAP_FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(address)


def _protection(endpoint: int) -> int:
    """0 if a pool is read-only for clients, else EACCES: the errno that is missing."""
    try:
        _map(endpoint, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError:
        return 0
    return EACCES
