"""Errors of kdbusctl: a line that says what to do, and an exit code for scripts."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOTHING: Final = 3
EXIT_DENIED: Final = 4
EXIT_TIMEOUT: Final = 5
EXIT_NO_MOUNT: Final = 32
EXIT_INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    (EXIT_OK, "success"),
    (EXIT_FAILED, "the bus refused the command, or the command failed"),
    (EXIT_USAGE, "wrong usage, or a file with mistakes"),
    (EXIT_NOTHING, "there is no such bus, endpoint, name, connection or peer"),
    (EXIT_DENIED, "no permission"),
    (EXIT_TIMEOUT, "timeout"),
    (EXIT_NO_MOUNT, "no kdbusfs is mounted there, or its daemon does not answer"),
    (EXIT_INTERRUPTED, "interrupted by Ctrl-C, for commands that do not end that way"),
)
"""Every exit code and what it means."""

_CODES: Final = {
    errno.ENOENT: EXIT_NOTHING,
    errno.ESRCH: EXIT_NOTHING,
    errno.ENXIO: EXIT_NOTHING,
    errno.ENOTDIR: EXIT_NOTHING,
    errno.EADDRNOTAVAIL: EXIT_NOTHING,
    errno.ESHUTDOWN: EXIT_NOTHING,
    errno.ECONNRESET: EXIT_NOTHING,
    errno.EPERM: EXIT_DENIED,
    errno.EACCES: EXIT_DENIED,
    errno.ETIMEDOUT: EXIT_TIMEOUT,
    errno.ENOTCONN: EXIT_NO_MOUNT,
    errno.ECONNABORTED: EXIT_NO_MOUNT,
    errno.ENOTTY: EXIT_NO_MOUNT,
}

# Meanings of errno that strerror(3) does not explain here.
_REASONS: Final = {
    errno.ECONNRESET: "the bus has ended",
    errno.ESHUTDOWN: "the bus has ended",
    errno.ENOTCONN: "its daemon has ended",
    errno.ENOTTY: "that is not a kdbusfs",
}


class Failure(Exception):  # noqa: N818 - of the command, not of the program
    """A command failed.  The message is one line; it is escaped when it is printed.

    reason: the message without the attempted action.
    """

    def __init__(self, message: str, exit_code: int = EXIT_FAILED, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.reason = reason or message


def exit_code_of(error: OSError) -> int:
    """The exit code for an OSError."""
    return _CODES.get(error.errno or 0, EXIT_FAILED)


def explain(error: OSError) -> str:
    """The text of an OSError, without its number."""
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    return (error.strerror or str(error) or type(error).__name__).lower()


@contextmanager
def failing(doing: str, hints: dict[int, str] | None = None) -> Iterator[None]:
    """Turn an OSError of the block into a Failure "cannot DOING: REASON"; `hints` have reasons by errno."""
    try:
        yield
    except OSError as error:
        reason = (hints or {}).get(error.errno or 0) or explain(error)
        raise Failure(f"cannot {doing}: {reason}", exit_code_of(error), reason) from error
