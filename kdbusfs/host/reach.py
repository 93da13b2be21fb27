"""Tests by use whether this process may do to another what a daemon does to its clients.

For a child that was forked after this module was imported: its memory has `_WORD` at the same address.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from errno import EPERM

_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_DETACH = 17
_PTRACE_O_SUSPEND_SECCOMP = 1 << 21
_WALL = 0x40000000  # __WALL
_SYS_PIDFD_GETFD = 438  # the same on all machines
_WORD = ctypes.create_string_buffer(b"kdbusfs\0", 8)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = _libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong]


class _Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


@dataclass(frozen=True, slots=True)
class Reach:
    """The result of each attempt: 0, or the errno.

    memory: process_vm_readv(2); descriptors: pidfd_getfd(2); trace: ptrace(2), PTRACE_SEIZE; seccomp: the same with
    PTRACE_O_SUSPEND_SECCOMP, which a client with a seccomp filter needs.
    """

    memory: int = 0
    descriptors: int = 0
    trace: int = 0
    seccomp: int = 0


def reach(pid: int) -> Reach:
    """Try all of it with the child `pid`, which is stopped for a moment.  It must have one thread."""
    return Reach(_read(pid), _take(pid), _seize(pid, 0), _seize(pid, _PTRACE_O_SUSPEND_SECCOMP))


def _read(pid: int) -> int:
    copy = ctypes.create_string_buffer(8)
    here = _Part(ctypes.addressof(copy), 8)
    there = _Part(ctypes.addressof(_WORD), 8)
    count = _libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, ctypes.c_ulong(0))
    return 0 if count == 8 else ctypes.get_errno() or EPERM


def _take(pid: int) -> int:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as fault:
        return fault.errno or EPERM
    try:
        fd = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, 0, 0)
        if fd < 0:
            return ctypes.get_errno()
        os.close(fd)
        return 0
    finally:
        os.close(pidfd)


def _seize(pid: int, options: int) -> int:
    if _libc.ptrace(_PTRACE_SEIZE, pid, None, options) < 0:
        return ctypes.get_errno()
    _libc.ptrace(_PTRACE_INTERRUPT, pid, None, 0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, _WALL)
    _libc.ptrace(_PTRACE_DETACH, pid, None, 0)
    return 0
