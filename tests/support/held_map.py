"""A client that holds the lock of its own memory map: `held_map.py BUS FILE UID`.

One thread faults in a page of FILE, another maps memory repeatedly.  After the page's server has failed some reads,
the kernel waits for the next one with the lock held, the second thread waits for the lock, and any reader of the
process' command line waits behind it.  It prints "ready", and "held" once that is so.  After a line of input it issues
HELLO, and prints "done".
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import time

from kdbusfs.client import Connection
from tests.support.hostile_memory import _libc, memory, put_file

STILL = 0.5  # seconds without progress


def main() -> None:
    bus, file, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    page = memory(1)
    put_file(page, os.open(file, os.O_RDONLY), 0)
    count = 0

    def map_on() -> None:
        nonlocal count
        while True:
            address = _libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
            _libc.munmap(address, mmap.PAGESIZE)
            count += 1
            time.sleep(0.001)

    _libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _libc.strlen.argtypes = [ctypes.c_void_p]
    threading.Thread(target=_libc.strlen, args=(page,), daemon=True).start()
    threading.Thread(target=map_on, daemon=True).start()
    print("ready", flush=True)
    before, since = -1, time.monotonic()
    while time.monotonic() - since < STILL:
        if count != before:
            before, since = count, time.monotonic()
        time.sleep(0.01)
    print("held", flush=True)
    sys.stdin.readline()
    connection = Connection(bus)
    print("done", connection.id, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
