"""The kernel's features that a daemon uses, found out by use: for `kdbusfs --check`.

The daemon does not ask here: it tries each feature where it needs it, and continues without.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from kdbusfs.fuse import protocol
from kdbusfs.fuse.mount import UNMOUNT_PATIENCE, mount, open_device, unmount
from kdbusfs.fuse.mount_error import MountError
from kdbusfs.native import _native

_KDBUSFS = "kdbusfs"
_MINOR = 31  # of FUSE's protocol: the least that has all that is tested here
_INIT_SIZE = 64
_HEADS = struct.Struct("<IIIIHHIIHHII")
_UNUSED_NODE = 1 << 62
_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SYS_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
_ATTRIBUTES = struct.Struct("<IIQiIQQQ")  # size policy flags nice priority runtime deadline period
_SLICE_NS = 200_000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: whether it works, None if that could not be tested; and the consequence of its absence."""

    name: str
    works: bool | None
    without: str


def features(place: str | None) -> list[Feature]:
    """Test all features. place: a directory to mount a file system at for a moment; None if mounting is impossible."""
    fuse = _fuse_features(place) if place is not None else None
    return [
        *(Feature(name, probe(), without) for name, probe, without in _PROBES),
        Feature("FUSE passthrough", fuse and fuse[0], "each pool is copied once more, into its client's page cache"),
        Feature("FUSE_NOTIFY_PRUNE", fuse and fuse[1], "names of buses that are gone stay in memory until it is short"),
    ]


def _thread_pidfds() -> bool:
    try:
        os.close(os.pidfd_open(threading.get_native_id(), os.O_EXCL))
    except OSError:
        return False
    return True


def _pidfd_info() -> bool:
    ids = _native.ffi.new("uint32_t[11]")
    pidfd = os.pidfd_open(os.getpid())
    try:
        return bool(_native.lib.kfs_thread_ids(pidfd, os.getpid(), ids) == 0)
    finally:
        os.close(pidfd)


def _slices() -> bool:
    """In a thread that ends: the call changes that thread only."""
    machine = os.uname().machine
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)

    def attempt() -> None:
        size = ctypes.c_ulong(_ATTRIBUTES.size)
        none = ctypes.c_ulong(0)
        if _libc.syscall(_SYS_SCHED_GETATTR[machine], none, buffer, size, none) == 0:
            fields = list(_ATTRIBUTES.unpack(buffer.raw))
            fields[5] = _SLICE_NS
            buffer.raw = _ATTRIBUTES.pack(*fields)
            _libc.syscall(_SYS_SCHED_SETATTR[machine], none, buffer, none)
            _libc.syscall(_SYS_SCHED_GETATTR[machine], none, buffer, size, none)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return bool(_ATTRIBUTES.unpack(buffer.raw)[5] == _SLICE_NS)


def _statx_mount() -> bool:
    identity = _native.ffi.new("uint64_t[3]")
    return bool(_native.lib.kfs_proc_root(os.getpid(), identity) == 0 and identity[2])


_PROBES: tuple[tuple[str, Callable[[], bool], str], ...] = (
    ("pidfds of threads", _thread_pidfds, "a thread is told by its number and the pidfd of its process"),
    ("PIDFD_GET_INFO", _pidfd_info, "credentials are read from /proc, which takes longer"),
    ("scheduling slices", _slices, "on a busy machine calls wait longer for their turn"),
    ("mount ids by statx", _statx_mount, "no metadata about files outside of the daemon's root directory"),
)


def _fuse_features(place: str) -> tuple[bool | None, bool | None]:
    """Whether the kernel offers passthrough to a mount, and whether it supports FUSE_NOTIFY_PRUNE."""
    try:
        fuse_fd = open_device()
    except MountError:
        return None, None
    try:
        mounted = mount(fuse_fd, _KDBUSFS, place, 0, _KDBUSFS)
    except MountError:
        os.close(fuse_fd)
        return None, None
    try:
        request = os.read(fuse_fd, protocol.MAX_WRITE + (1 << 12))
        offered = _begin(fuse_fd, request)
        return offered and _has_backing(fuse_fd), _prunes(fuse_fd)
    except OSError:  # somebody else has unmounted it
        return None, None
    finally:
        # A process that looks at the mount gets an error instead of waiting for an answer.
        os.close(fuse_fd)
        unmount(mounted, UNMOUNT_PATIENCE)


def _begin(fuse_fd: int, request: bytes) -> bool:
    """Answer FUSE_INIT. Whether passthrough is offered."""
    unique = struct.unpack_from("<Q", request, 8)[0]
    body = _HEADS.pack(7, _MINOR, 0, 0, 0, 0, protocol.MAX_WRITE, 1, 0, 0, 0, 0).ljust(_INIT_SIZE, b"\0")
    reply = bytearray(protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(body), 0, unique) + body)
    granted = protocol.amend_init(memoryview(request), memoryview(reply), True)
    os.write(fuse_fd, reply)
    return bool(granted & protocol.PASSTHROUGH)


def _has_backing(fuse_fd: int) -> bool:
    memfd = os.memfd_create(_KDBUSFS)
    try:
        number: int = _native.lib.kfs_backing_open(fuse_fd, memfd)
        if number > 0:
            _native.lib.kfs_backing_close(fuse_fd, number)
        return number > 0
    finally:
        os.close(memfd)


def _prunes(fuse_fd: int) -> bool:
    with contextlib.suppress(OSError):
        for notice in protocol.prune_notices([_UNUSED_NODE]):
            os.write(fuse_fd, notice)
        return True
    return False
