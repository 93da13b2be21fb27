"""Kernel features that tests need, detected by use."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

_BACKING_OPEN = 0x4010E501
_PID_FROM_PIDNS = 0x8004B706


def has_passthrough() -> bool:
    """Whether FUSE passthrough works (Linux 6.9)."""
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        fcntl.ioctl(device, _BACKING_OPEN, bytes(16))
    except OSError as fault:
        # A device without a mount refuses it with EPERM.
        return fault.errno not in (errno.ENOTTY, errno.EOPNOTSUPP)
    finally:
        os.close(device)
    return True


def has_thread_pidfds() -> bool:
    """Whether thread pidfds exist (Linux 6.9)."""
    try:
        os.close(os.pidfd_open(threading.get_native_id(), os.O_EXCL))
    except OSError:
        return False
    return True


def tells_foreign_pids() -> bool:
    """Whether the kernel translates pids of other namespaces (Linux 6.11)."""
    namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        return bool(fcntl.ioctl(namespace, _PID_FROM_PIDNS, os.getpid()))
    except OSError:
        return False
    finally:
        os.close(namespace)
