"""mount(2), umount2(2) and unshare(2)."""

from __future__ import annotations

import ctypes
import os
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_CLONE_FILES: Final = 0x400
_CLONE_NEWNS: Final = 0x20000


def mount(source: str, target: str, kind: str = "none", flags: int = 0, data: str = "") -> None:
    """Mount at `target`.  Raises OSError, with `target` as its file name."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), os.fsencode(kind), flags, os.fsencode(data))
    _check(result, target)


def detach(target: str) -> None:
    """Unmount `target` lazily (MNT_DETACH), without following a symbolic link.  Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW), target)


def enter_new_mount_namespace() -> None:
    """Give this process a copy of its mount namespace.  Raises OSError."""
    _check(_libc.unshare(_CLONE_NEWNS), "mount namespace")


def unshare_descriptors() -> None:
    """Give this thread a copy of its process' descriptor table.  Raises OSError."""
    _check(_libc.unshare(_CLONE_FILES), "descriptor table")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
