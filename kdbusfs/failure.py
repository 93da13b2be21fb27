"""Exit codes, as mount(8) and scripts expect them."""

from __future__ import annotations

from kdbusfs.fuse.mount_error import MountError, MountFailure

EXIT_OK = 0
EXIT_USAGE = 1
EXIT_SYSTEM = 2
EXIT_INTERNAL = 4
EXIT_MOUNT = 32

_CODES = {
    MountFailure.USAGE: EXIT_USAGE,
    MountFailure.SYSTEM: EXIT_SYSTEM,
    MountFailure.REFUSED: EXIT_MOUNT,
}


def exit_code_of(error: MountError) -> int:
    """The exit code of a program that ends with `error`."""
    return _CODES[error.failure]
