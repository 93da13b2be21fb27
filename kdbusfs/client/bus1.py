"""A client of bus1 (`bus1.h`): a peer by the file of a mount, one method for each command.

Every method raises OSError with the errno of its command, and with its name as `filename`.

    with Peer("/run/kdbusfs/bus1") as parent, Peer("/run/kdbusfs/bus1") as child:
        handle = parent.transfer(0x100, child)  # makes a node, and gives the child a handle
        child.send([handle], b"hello")
        with parent.receive(timeout=5) as message:
            assert message.data == b"hello" and message.destination == 0x100

`kdbusfs.bus1` has these names, too.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fcntl import ioctl
from struct import Struct
from types import TracebackType
from typing import Final, NamedTuple

from ..base.words import align8
from ..bus1 import abi

DEFAULT_MAP_SIZE: Final = 16 << 20
_RESET: Final = Struct("<QQIIII")
_TRANSFER: Final = Struct("<QQQQ")
_DESTROY: Final = Struct("<QQQ")
_SEND: Final = Struct("<10Q")
_RECV: Final = Struct("<QQQQQIIIIQQQQQ")
_U64: Final = Struct("<Q")
_NO_MESSAGE: Final = bytes(_RECV.size - 16)
_NAMES: Final = {getattr(abi, name): name.removeprefix("CMD_") for name in vars(abi) if name.startswith("CMD_")}
_FaultType = type[BaseException] | None  # `Message` has a member called type


class Limits(NamedTuple):
    """What a peer may have at once, and its flags."""

    flags: int
    slices: int
    handles: int
    inflight_bytes: int
    inflight_fds: int


@dataclass(frozen=True, slots=True)
class Message:
    """What RECV has brought.  At the end of its `with` block its slice is given back.

    type: MSG_*; destination: the id that it is for or about; uid, gid, pid, tid: of the sender as it sent; offset: of
    the slice in the pool, which stays until it is freed; data: a copy of the bytes; handles: the receiver's ids,
    HANDLE_INVALID for nodes that were destroyed before; fds: numbers of descriptors, which are the receiver's to close;
    -1 where they were not asked for.
    """

    type: int
    flags: int
    destination: int
    uid: int
    gid: int
    pid: int
    tid: int
    offset: int
    data: bytes = b""
    handles: tuple[int, ...] = ()
    fds: tuple[int, ...] = ()
    secctx: bytes | None = None
    _peer: Peer | None = field(default=None, repr=False, compare=False)

    def __enter__(self) -> Message:
        return self

    def __exit__(
        self, kind: _FaultType, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def free(self) -> None:
        """Give its slice back; a notification has none."""
        if self._peer is not None:
            self._peer.free(self)

    @property
    def continues(self) -> bool:
        """Whether the next message is of the same transaction."""
        return bool(self.flags & abi.MSG_FLAG_CONTINUE)


class Peer:
    """An open file of bus1, with its pool mapped.

    file: its path, or a descriptor that becomes the peer's; map_size: how much of the pool is mapped: a message that
    lies behind it cannot be received (ERANGE).
    """

    def __init__(self, file: str | os.PathLike[str] | int, map_size: int = DEFAULT_MAP_SIZE) -> None:
        self._fd = file if isinstance(file, int) else os.open(file, os.O_RDWR | os.O_CLOEXEC)
        self._map_size = map_size
        try:
            self._map = mmap.mmap(self._fd, map_size, mmap.MAP_SHARED, mmap.PROT_READ)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Its descriptor: for poll, and for whoever passes it on."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor; with the last one of the peer its nodes are destroyed and its handles released."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._map.close()
            os.close(fd)

    def _command(self, number: int, fixed: bytes) -> bytes:
        """Issue a command; its struct as it comes back.  Raises OSError."""
        try:
            return ioctl(self._fd, number, fixed)
        except OSError as fault:
            error = fault.errno or 0
            raise OSError(error, os.strerror(error), _NAMES[number]) from None

    def disconnect(self) -> None:
        """The same for all who have a descriptor; what was received stays readable until `close`."""
        self._command(abi.CMD_PEER_DISCONNECT, bytes(8))

    def query(self) -> Limits:
        """Flags and limits of the peer."""
        _, *limits = _RESET.unpack(self._command(abi.CMD_PEER_QUERY, bytes(_RESET.size)))
        return Limits(*limits)

    def reset(
        self,
        *,
        flush: bool = False,
        flush_seed: bool = False,
        flags: int = abi.U64_MAX,
        slices: int = abi.UNCHANGED,
        handles: int = abi.UNCHANGED,
        inflight_bytes: int = abi.UNCHANGED,
        inflight_fds: int = abi.UNCHANGED,
    ) -> None:
        """Change flags and limits, then throw away what it has, or its seed."""
        what = (abi.PEER_RESET_FLAG_FLUSH if flush else 0) | (abi.PEER_RESET_FLAG_FLUSH_SEED if flush_seed else 0)
        fixed = _RESET.pack(what, flags, slices, handles, inflight_bytes, inflight_fds)
        self._command(abi.CMD_PEER_RESET, fixed)

    def transfer(self, handle: int, to: Peer | int | None = None) -> int:
        """Give a reference to `handle` to another peer, or to this one; the id that it is known by there."""
        target = abi.U64_MAX if to is None else to if isinstance(to, int) else to.fileno()
        fixed = _TRANSFER.pack(0, handle, target, abi.HANDLE_INVALID)
        given: int = _TRANSFER.unpack(self._command(abi.CMD_HANDLE_TRANSFER, fixed))[3]
        return given

    def release(self, handle: int) -> None:
        """Give a reference back."""
        self._command(abi.CMD_HANDLE_RELEASE, _U64.pack(handle))

    def destroy(self, *nodes: int, release: bool = False) -> None:
        """End nodes of its own; release: give back a reference of each, too."""
        ids = _u64s(nodes)
        flags = abi.NODES_DESTROY_FLAG_RELEASE_HANDLES if release else 0
        self._command(abi.CMD_NODES_DESTROY, _DESTROY.pack(flags, ctypes.addressof(ids), len(nodes)))

    def send(
        self,
        destinations: Sequence[int],
        data: bytes | Sequence[bytes] = b"",
        handles: Sequence[int] = (),
        fds: Sequence[int] = (),
        *,
        go_on: bool = False,
        seed: bool = False,
    ) -> list[int]:
        """Send one message to all of `destinations`, or none; the errno of each, all 0 without `go_on`.

        An id that this peer does not have, with its two lowest bits clear, makes a node of its own.
        go_on: what is wrong with one destination does not fail the rest; seed: it becomes the peer's own seed.
        """
        parts = [data] if isinstance(data, bytes) else list(data)
        buffers = [ctypes.create_string_buffer(part, len(part)) for part in parts if part]
        vectors = _u64s([word for buffer in buffers for word in (ctypes.addressof(buffer), len(buffer))])
        targets, sent, errors = _u64s(destinations), _u64s(handles), _u64s([0] * len(destinations))
        numbers = (ctypes.c_int32 * len(fds))(*fds)
        flags = (abi.SEND_FLAG_CONTINUE if go_on else 0) | (abi.SEND_FLAG_SEED if seed else 0)
        fixed = _SEND.pack(
            flags,
            *(ctypes.addressof(targets), ctypes.addressof(errors), len(destinations)),
            *(ctypes.addressof(vectors), len(buffers)),
            *(ctypes.addressof(sent), len(handles)),
            *(ctypes.addressof(numbers), len(fds)),
        )
        self._command(abi.CMD_SEND, fixed)
        return [-value & abi.U64_MAX for value in errors]

    def wait(self, timeout: float | None = None) -> bool:
        """Whether something is queued within `timeout` seconds, or ever.  Raises OSError(ESHUTDOWN)."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        for _, events in poll.poll(None if timeout is None else timeout * 1000):
            if events & select.POLLHUP:
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN), "wait")
            return True
        return False

    def receive(self, timeout: float | None = None, *, install: bool = False) -> Message:
        """What is at the front of the queue, waited for.  Raises TimeoutError after `timeout` seconds, else OSError."""
        limit = None if timeout is None else time.monotonic() + timeout
        while (message := self.recv(install=install)) is None:
            left = None if limit is None else max(limit - time.monotonic(), 0.0)
            if not self.wait(left):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), "receive")
        return message

    def recv(self, *, peek: bool = False, seed: bool = False, install: bool = False) -> Message | None:
        """What is at the front of the queue, or the seed; None if there is nothing.  Never waits.

        peek: it stays there; install: the descriptors that it brings become the caller's.
        """
        flags = (abi.RECV_FLAG_PEEK if peek else 0) | (abi.RECV_FLAG_SEED if seed else 0)
        flags |= abi.RECV_FLAG_INSTALL_FDS if install else 0
        try:
            got = self._command(abi.CMD_RECV, _U64.pack(flags) + _U64.pack(self._map_size) + _NO_MESSAGE)
        except BlockingIOError:
            return None
        _, _, type, flags, destination, uid, gid, pid, tid, offset, *counts = _RECV.unpack(got)
        if type != abi.MSG_DATA:
            return Message(type, flags, destination, uid, gid, pid, tid, offset)
        n_bytes, n_handles, n_fds, n_secctx = counts
        at = offset
        data = self._map[at : at + n_bytes]
        at += align8(n_bytes)
        handles = Struct(f"<{n_handles}Q").unpack_from(self._map, at) if n_handles else ()
        at += 8 * n_handles
        fds = Struct(f"<{n_fds}i").unpack_from(self._map, at) if n_fds else ()
        at += align8(4 * n_fds)
        secctx = self._map[at : at + n_secctx] if flags & abi.MSG_FLAG_HAS_SECCTX else None
        return Message(type, flags, destination, uid, gid, pid, tid, offset, data, handles, fds, secctx, self)

    def free(self, message: Message | int) -> None:
        """Give the slice of a message back: its offset may be used for another one then."""
        offset = message if isinstance(message, int) else message.offset
        self._command(abi.CMD_SLICE_RELEASE, _U64.pack(offset))


def _u64s(values: Iterable[int]) -> ctypes.Array[ctypes.c_uint64]:
    array = tuple(values)
    return (ctypes.c_uint64 * len(array))(*array)


__all__ = ["Limits", "Message", "Peer"]
