"""A client whose memory blocks its readers: `hostile_memory.py KIND BUS FILE [COUNT [UID]]`.

It prints "ready", continues after a line of input, and at the end prints one line of JSON: the errno of each command,
and the messages to itself that it received.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable
from struct import pack

from kdbusfs.abi.last import constants as last
from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.client import Connection, raw
from tests.support.silent_fuse import PAGE, PAGES

UID = 4711
COOKIE = 99
REPLIER = "com.example.Replier"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_MAP_FIXED = 0x10
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]


def memory(pages: int) -> int:
    """Anonymous memory; returns its address."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _libc.mmap(None, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    assert address
    return int(address)


def put_file(address: int, fd: int, page: int) -> None:
    """Map one page of the file into memory."""
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    assert _libc.mmap(address, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, page * PAGE) == address


def write(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


class Client:
    def __init__(self, bus: str, file: str) -> None:
        self.bus = bus
        self.connection = Connection(bus, pool_size=1 << 20)
        # Last: a process that serves the file itself would deadlock when it closes it.
        self.file = os.open(file, os.O_RDONLY)

    def page(self, number: int) -> int:
        address = memory(1)
        put_file(address, self.file, number)
        return address

    def send(self, message: int) -> int:
        command = raw.Block(pack("<9Q", 72, 0, 0, 0, 0, message, 0, 0, 0))
        return raw.ioctl(self.connection.fd, c.CMD_SEND, command.address)

    def payload(self, number: int = 0) -> int:
        """The payload vector of a message to itself is in the page."""
        items = make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", PAGE, self.page(number)))
        header = pack("<QQqQQQQQ", 64 + len(items), 0, 0, self.connection.id, 0, c.PAYLOAD_DBUS, COOKIE, 0)
        return self.send(raw.Block(header + items).address)

    def message(self, number: int = 0) -> int:
        """The message is in the page."""
        return self.send(self.page(number))

    def tail(self, number: int = 0) -> int:
        """The items of a command are in the page; its fixed part comes with the request."""
        address = memory(2)
        put_file(address + PAGE, self.file, number)
        command = address + PAGE - 40
        write(command, pack("<5Q", 80, 7, 0, 0, 0))
        return raw.ioctl(self.connection.fd, c.CMD_MATCH_ADD, command)

    def write_back(self, number: int = 0) -> int:
        """The struct to which kernel flags are written: reads succeed, writes wait."""
        address = memory(1)
        write(address, pack("<5Q", 40, 7, 0, 0xFFFFFFFFFFFF, 0))
        self.hold_writes(address)
        return raw.ioctl(self.connection.fd, c.CMD_MATCH_ADD, address)

    def reply_back(self, number: int = 0) -> int:
        """The same for a synchronous SEND of the last kdbus, whose reply is reported by a write to its struct."""
        connection = Connection(self.bus, family="last")
        items = make_item(last.ITEM_DST_NAME, REPLIER.encode() + b"\0")
        header = pack("<QQqQQQQQ", 64 + len(items), c.MSG_EXPECT_REPLY, 0, 0, 0, c.PAYLOAD_DBUS, COOKIE, (1 << 63) - 1)
        message = raw.Block(header + items)
        address = memory(1)
        write(address, pack("<7Q", 56, c.SEND_SYNC_REPLY, 0, message.address, 0, 0, 0))
        self.hold_writes(address)
        return raw.ioctl(connection.fd, last.CMD_SEND, address)

    def hold_writes(self, address: int) -> None:
        """Writes to this page wait for a line of input."""
        fd = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC)
        assert fd >= 0
        fcntl.ioctl(fd, 0xC018AA3F, pack("<3Q", 0xAA, 1, 0))  # UFFDIO_API, pagefault_flag_wp
        fcntl.ioctl(fd, 0xC020AA00, pack("<4Q", address, PAGE, 2, 0))  # UFFDIO_REGISTER, mode wp
        fcntl.ioctl(fd, 0xC018AA06, pack("<3Q", address, PAGE, 1))  # UFFDIO_WRITEPROTECT

        def let_write() -> None:
            sys.stdin.readline()
            fcntl.ioctl(fd, 0xC018AA06, pack("<3Q", address, PAGE, 0))

        threading.Thread(target=let_write).start()

    def last_recv(self, number: int = 0) -> int:
        """The struct of a RECV of the last kdbus: the kernel copies nothing in."""
        connection = Connection(self.bus, family="last")
        return raw.ioctl(connection.fd, last.CMD_RECV, self.page(number))

    def recv(self, number: int = 0) -> int:
        """The struct of a RECV of v3: the kernel copies it in the context of this thread."""
        return raw.ioctl(self.connection.fd, c.CMD_RECV, self.page(number))

    def hello(self, number: int = 0) -> int:
        """The same for a HELLO."""
        fd = os.open(self.bus, os.O_RDWR)
        return raw.ioctl(fd, c.CMD_HELLO, self.page(number))

    def received(self) -> list[tuple[int, int, bool]]:
        """For each message: cookie, first word, and whether the whole page has it.

        No message is freed: a FREE cannot report to a client that is blocked.
        """
        found = []
        while (message := self.connection.recv()) is not None:
            data = message.data()
            word: int = struct.unpack_from("<Q", data)[0]
            found.append((message.cookie, word, bytes(data) == pack("<Q", word) * (PAGE // 8)))
        return found


def main() -> None:
    kind, bus, file = sys.argv[1:4]
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    uid = int(sys.argv[5]) if len(sys.argv) > 5 else UID
    if kind not in ("write_back", "reply_back"):  # userfaultfd for faults of others is for root
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    client = Client(bus, file)
    print("ready", flush=True)
    sys.stdin.readline()
    command: Callable[[int], int] = getattr(client, kind)
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda number=number: results.append(command(number * PAGES // count)))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"results": sorted(results), "received": client.received()}), flush=True)


if __name__ == "__main__":
    main()
