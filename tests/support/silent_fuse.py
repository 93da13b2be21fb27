"""A FUSE file system with one file, `pages`, whose server holds reads back: `silent_fuse.py PATH`.

Input lines: `answer` makes it answer the pending reads and all later ones; `fail` makes it fail the pending ones.  It
prints "ready" when it is mounted, and for each line of input the number of reads that were pending.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys

PAGES = 512
PAGE = 4096
_HEADER = struct.Struct("<IIQQIIIHH")
_LOOKUP, _GETATTR, _OPEN, _READ, _RELEASE, _FLUSH, _INIT = 1, 3, 14, 15, 18, 25, 26
_KEEP_CACHE = 2  # else an open would wait for the pages that are being read
_SILENT = (2, 36, 42)  # forgets and interrupts have no answer


def content(offset: int, size: int) -> bytes:
    """The content of the file: every page is filled with its number."""
    whole = b"".join(struct.pack("<Q", page) * (PAGE // 8) for page in range(offset // PAGE, PAGES))
    return whole[offset % PAGE : offset % PAGE + size]


def attributes(ino: int) -> bytes:
    mode = 0o40755 if ino == 1 else 0o100444
    size = PAGES * PAGE
    return struct.pack("<6Q10I", ino, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, PAGE, 0)


class Server:
    def __init__(self, path: str) -> None:
        self.fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if libc.mount(b"silent", path.encode(), b"fuse.silent", 0, options):
            raise OSError(ctypes.get_errno(), "mount")
        self.answers = False
        self.held: list[tuple[int, int, int]] = []

    def reply(self, unique: int, data: bytes, error: int = 0) -> None:
        try:
            os.write(self.fuse, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)
        except FileNotFoundError:
            pass  # no reader waits any more

    def serve(self) -> None:
        request = os.read(self.fuse, 135168)
        _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
        body = request[_HEADER.size :]
        if opcode in _SILENT:
            return
        if opcode == _INIT:
            self.reply(unique, struct.pack("<4I2H2I36x", 7, 31, PAGE, 0, 16, 12, 65536, 1))
        elif opcode == _LOOKUP and body == b"pages\0":
            self.reply(unique, struct.pack("<4Q2I", 2, 1, 1000, 1000, 0, 0) + attributes(2))
        elif opcode == _GETATTR:
            self.reply(unique, struct.pack("<Q2I", 1000, 0, 0) + attributes(node))
        elif opcode == _OPEN:
            self.reply(unique, struct.pack("<Q2I", 1, _KEEP_CACHE, 0))
        elif opcode == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            self.held.append((unique, offset, size))
            if self.answers:
                self.release()
        elif opcode in (_RELEASE, _FLUSH):
            self.reply(unique, b"")
        else:
            self.reply(unique, b"", errno.ENOENT if opcode == _LOOKUP else errno.ENOSYS)

    def release(self) -> int:
        held, self.held = self.held, []
        for unique, offset, size in held:
            self.reply(unique, content(offset, size))
        return len(held)

    def fail(self) -> int:
        held, self.held = self.held, []
        for unique, _, _ in held:
            self.reply(unique, b"", errno.EIO)
        return len(held)

    def run(self) -> None:
        while True:
            ready, _, _ = select.select([self.fuse, sys.stdin], [], [])
            if self.fuse in ready:
                self.serve()
                continue
            line = sys.stdin.readline()
            if not line:
                return
            if line == "fail\n":
                print(self.fail(), flush=True)
            else:
                self.answers = True
                print(self.release(), flush=True)


if __name__ == "__main__":
    server = Server(sys.argv[1])
    print("ready", flush=True)
    server.run()
