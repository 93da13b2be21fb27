"""A client of bus1 (`bus1.h`): a peer by the file of a mount, one method for each command.

Every method raises OSError with the errno of its command.

    with Peer("/run/bus/bus1") as parent, Peer("/run/bus/bus1") as child:
        handle = parent.transfer(0x100, child)  # makes a node, and gives the child a handle
        child.send([handle], b"hello")
        message = parent.receive()
        assert message is not None and message.data == b"hello" and message.destination == 0x100
        parent.free(message)
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


class Limits(NamedTuple):
    """What a peer may have at once, and its flags."""

    flags: int
    slices: int
    handles: int
    inflight_bytes: int
    inflight_fds: int


@dataclass(frozen=True, slots=True)
class Message:
    """What RECV has brought.

    type: MSG_*; destination: the id that it is for or about; uid, gid, pid, tid: of the sender as it sent; offset: of
    the slice in the pool, which stays until it is given to `free`; fds: numbers of descriptors, which are the
    receiver's to close; -1 where they were not asked for.
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

    def disconnect(self) -> None:
        """The same for all who have a descriptor; what was received stays readable until `close`."""
        ioctl(self._fd, abi.CMD_PEER_DISCONNECT, bytes(8))

    def query(self) -> Limits:
        """Flags and limits of the peer."""
        _, *limits = _RESET.unpack(ioctl(self._fd, abi.CMD_PEER_QUERY, bytes(_RESET.size)))
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
        ioctl(self._fd, abi.CMD_PEER_RESET, fixed)

    def transfer(self, handle: int, to: Peer | int | None = None) -> int:
        """Give a reference to `handle` to another peer, or to this one; the id that it is known by there."""
        target = abi.U64_MAX if to is None else to if isinstance(to, int) else to.fileno()
        fixed = _TRANSFER.pack(0, handle, target, abi.HANDLE_INVALID)
        given: int = _TRANSFER.unpack(ioctl(self._fd, abi.CMD_HANDLE_TRANSFER, fixed))[3]
        return given

    def release(self, handle: int) -> None:
        """Give a reference back."""
        ioctl(self._fd, abi.CMD_HANDLE_RELEASE, _U64.pack(handle))

    def destroy(self, *nodes: int, release: bool = False) -> None:
        """End nodes of its own; release: give back a reference of each, too."""
        ids = _u64s(nodes)
        flags = abi.NODES_DESTROY_FLAG_RELEASE_HANDLES if release else 0
        ioctl(self._fd, abi.CMD_NODES_DESTROY, _DESTROY.pack(flags, ctypes.addressof(ids), len(nodes)))

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
        ioctl(self._fd, abi.CMD_SEND, fixed)
        return [-value & abi.U64_MAX for value in errors]

    def receive(self, *, peek: bool = False, seed: bool = False, install: bool = False) -> Message | None:
        """What is at the front of the queue, or the seed; None if there is nothing.

        peek: it stays there; install: the descriptors that it brings become the caller's.
        """
        flags = (abi.RECV_FLAG_PEEK if peek else 0) | (abi.RECV_FLAG_SEED if seed else 0)
        flags |= abi.RECV_FLAG_INSTALL_FDS if install else 0
        try:
            got = ioctl(self._fd, abi.CMD_RECV, _U64.pack(flags) + _U64.pack(self._map_size) + _NO_MESSAGE)
        except BlockingIOError as fault:
            if fault.errno != errno.EAGAIN:
                raise
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
        return Message(type, flags, destination, uid, gid, pid, tid, offset, data, handles, fds, secctx)

    def free(self, message: Message | int) -> None:
        """Give the slice of a message back: its offset may be used for another one then."""
        offset = message if isinstance(message, int) else message.offset
        ioctl(self._fd, abi.CMD_SLICE_RELEASE, _U64.pack(offset))


def _u64s(values: Iterable[int]) -> ctypes.Array[ctypes.c_uint64]:
    array = tuple(values)
    return (ctypes.c_uint64 * len(array))(*array)


__all__ = ["Limits", "Message", "Peer"]
