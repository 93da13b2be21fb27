"""Clients for the tests of the channel; as a program, one client."""

from __future__ import annotations

import ctypes
import signal
import struct
import sys
import threading
from typing import Any

from kdbusfs.abi.v3 import constants as c

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def ioctl(fd: int, number: int, argument: Any = 0) -> int:
    """The result, or -errno.  argument: a number, or a ctypes buffer."""
    address = argument if isinstance(argument, int) else ctypes.addressof(argument)
    result: int = _libc.ioctl(fd, number, address)
    return result if result >= 0 else -ctypes.get_errno()


def aligned(data: bytes, offset: int = 0) -> Any:
    """A buffer that begins with `data`, at an address `offset` bytes past a multiple of 8."""
    raw = ctypes.create_string_buffer(len(data) + 16)
    start = ((ctypes.addressof(raw) + 7) & ~7) + offset
    buffer = (ctypes.c_char * len(data)).from_address(start)
    buffer._keep = raw  # type: ignore[attr-defined]
    buffer.raw = data
    return buffer


def send_struct(message: int, flags: int = 0, size: int = 72) -> Any:
    """A struct kdbus_cmd_send."""
    return aligned(struct.pack("<QQQQQQQQQ", size, flags, 0, 0, 0, message, 0, 0, 0))


def sync_send(fd: int) -> int:
    """A synchronous SEND."""
    message = aligned(struct.pack("<Q", 64) + bytes(56))
    return ioctl(fd, c.CMD_SEND, send_struct(ctypes.addressof(message), c.SEND_SYNC_REPLY))


def main() -> None:
    path, action = sys.argv[1:3]
    fd = open(path, "rb", buffering=0)  # noqa: SIM115 - for the life of the process
    if action == "threaded":
        # A thread other than the first waits; its id is printed.
        def wait() -> None:
            print(threading.get_native_id(), flush=True)
            print(sync_send(fd.fileno()), flush=True)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        return
    if action in ("restart", "no-restart"):
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        signal.siginterrupt(signal.SIGUSR1, action == "no-restart")
    print("waiting", flush=True)
    print(sync_send(fd.fileno()), flush=True)


if __name__ == "__main__":
    main()
