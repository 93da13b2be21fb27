"""A FUSE server with two files whose ioctl hands out descriptors through the real Installer.

usage: installer_daemon.py MOUNTPOINT RESULTS.  Mounts in a private mount namespace, prints "ready", serves
until its standard input is closed, and prints one JSON object with its observations.
RESULTS is shared with the clients: 64 slots with the int32 numbers and the inode numbers they stand for.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import select
import struct
import sys
import time
from typing import Any

from kdbusfs.base.errors import CommandError
from kdbusfs.base.ports import Caller
from kdbusfs.host.installer import Installer
from kdbusfs.host.job import Job
from kdbusfs.host.user_threads import Pool
from kdbusfs.native import _native

SLOT_SIZE = 8192
ROOT, PUBLIC, PRIVATE = 1, 2, 3
NODES = {b"dev": PUBLIC, b"private": PRIVATE}
LOOKUP, FORGET, GETATTR, OPEN, STATFS, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 17, 18, 25, 26
INTERRUPT, DESTROY, IOCTL, BATCH_FORGET = 36, 38, 39, 42
NOFLUSH = 1 << 5
SWAP, KEPT, STATS = 1, 2, 4
INCOMPLETE = 1
IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
COMMAND = struct.Struct("=QIIiIQQQQQQ")
COMMAND_NUMBER = 0xC0489531
ONE_WAY_NUMBER = 0x40489531
"""The same, but the kernel does not copy the struct out."""
TOKEN = 24
"""Its offset in the struct."""


class Client(Caller):
    """A client's memory, for results that the kernel does not copy out."""

    def __init__(self, tid: int) -> None:
        self.tid = tid

    def write(self, address: int, data: bytes) -> None:
        pidfd = _native.lib.kfs_thread_open(self.tid)
        if pidfd < 0:
            raise CommandError(-pidfd)
        result = _native.lib.kfs_client_write(pidfd, self.tid, address, data, len(data))
        os.close(pidfd)
        if result < 0:
            raise CommandError(-result)


class Daemon:
    def __init__(self, mountpoint: str, results: str) -> None:
        self.mountpoint = mountpoint
        self.fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.fuse},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        for done in (
            libc.unshare(0x20000),
            libc.mount(b"none", b"/", None, 0x44000, None),
            libc.mount(b"installer", mountpoint.encode(), b"fuse", 0, options.encode()),
        ):
            if done != 0:
                raise OSError(ctypes.get_errno(), "cannot mount")
        with open(results, "r+b") as file:
            self.results = mmap.mmap(file.fileno(), 0)
        self.base = _native.ffi.from_buffer(self.results)
        self.pool = Pool()
        self.installer = Installer(self.pool, self.fuse, self.event)
        self.pending: list[tuple[float, Job]] = []
        self.outstanding = self.jobs = self.refused_opens = 0
        self.errors: dict[int, int] = {}
        self.kept = os.memfd_create("kept")

    def answer(self, unique: int, body: bytes = b"", error: int = 0) -> None:
        with contextlib.suppress(FileNotFoundError):  # the request is gone
            os.write(self.fuse, OUT_HEADER.pack(16 + len(body), -error, unique) + body)

    def attributes(self, node: int) -> bytes:
        mode = 0o40755 if node == ROOT else 0o100666
        return struct.pack("=6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def files(self, request: tuple[Any, ...]) -> list[int]:
        _, pipes, memfds, _, mode, *_ = request
        if mode & KEPT:
            return [self.kept] * pipes
        made = [os.memfd_create("given") for _ in range(memfds)]
        for _ in range(pipes):
            reader, writer = os.pipe()
            os.close(writer)
            made.append(reader)
        return made

    def ioctl(self, unique: int, uid: int, pid: int, node: int, data: bytes) -> None:
        _, _, number, address, _, out_size = struct.unpack_from("=QIIQII", data)
        if number not in (COMMAND_NUMBER, ONE_WAY_NUMBER):
            return self.answer(unique, struct.pack("=iIII", -errno.ENOTTY, 0, 0, 0))
        request = COMMAND.unpack_from(data, 32)
        slot, _, _, result, mode, token, *_, delay, flags = request
        files = self.files(request)
        base = slot * SLOT_SIZE
        entries = []
        for index, fd in enumerate(files):
            pointer = _native.ffi.cast("int32_t *", self.base + base + 4 * index)
            pointer[0] = -1000
            struct.pack_into("=Q", self.results, base + 2048 + 8 * index, os.fstat(fd).st_ino)
            entries.append((fd, pointer))
        descriptors = len(os.listdir("/proc/self/fd")) if mode & STATS else 0
        out = COMMAND.pack(slot, *request[1:5], token + 1, descriptors, node, self.outstanding, delay, flags)[
            :out_size
        ]
        if mode & STATS:
            return self.answer(unique, struct.pack("=iIII", 0, 0, 0, 0) + out)
        is_one_way = number == ONE_WAY_NUMBER
        job = Job(
            tid=pid,
            user=uid,
            unique=unique,
            result=result,
            out=b"" if is_one_way else out,
            entries=entries,
            address=address,
            flags_offset=64,
            incomplete_flags=flags | INCOMPLETE,
            caller=Client(pid) if is_one_way else None,
            writes=[(address + TOKEN, struct.pack("=Q", token + 1))] if is_one_way else [],
            swap=f"{self.mountpoint}/private" if mode & SWAP else None,
            swapped_node=node,
            context=None if mode & KEPT else files,
        )
        self.outstanding += 1
        self.pending.append((time.monotonic() + delay / 1000, job))
        return None

    def request(self, message: bytes) -> None:
        _, opcode, unique, node, uid, _, pid, _, _ = IN_HEADER.unpack_from(message)
        data = message[40:]
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            return
        if opcode == INIT:
            body = struct.pack(
                "=IIIIHHIIHHII6I", 7, 31, 65536, 0, 65535, 65535, 65536, 1, 16, 0, 0, 0, *[0] * 6
            )
            self.answer(unique, body)
        elif opcode == LOOKUP:
            child = NODES.get(data.split(b"\0")[0])
            if child is None:
                self.answer(unique, error=errno.ENOENT)
            else:
                self.answer(unique, struct.pack("=4Q2I", child, 0, 0, 0, 0, 0) + self.attributes(child))
        elif opcode == GETATTR:
            self.answer(unique, struct.pack("=QII", 0, 0, 0) + self.attributes(node))
        elif opcode == OPEN:
            if node == PRIVATE and pid not in self.installer.tids:
                self.refused_opens += 1
                self.answer(unique, error=errno.EACCES)
            else:
                self.answer(unique, struct.pack("=QIi", node, NOFLUSH, 0))
        elif opcode == IOCTL:
            self.ioctl(unique, uid, pid, node, data)
        elif opcode in (RELEASE, FLUSH, DESTROY):
            self.answer(unique)
        else:
            self.answer(unique, error=errno.ENOSYS)

    def submit_due(self) -> None:
        now = time.monotonic()
        due = [job for when, job in self.pending if when <= now]
        self.pending = [entry for entry in self.pending if entry[0] > now]
        for job in due:
            self.installer.submit(job)

    def finish(self) -> None:
        os.eventfd_read(self.event)
        for job in self.installer.finished():
            self.outstanding -= 1
            self.jobs += 1
            self.errors[job.error] = self.errors.get(job.error, 0) + 1
            for fd in job.context or ():  # type: ignore[attr-defined]
                os.close(fd)

    def serve(self) -> None:
        poll = select.epoll()
        for fd in (self.fuse, self.event, 0):
            poll.register(fd, select.EPOLLIN)
        print("ready", flush=True)
        while True:
            for fd, _ in poll.poll(0.005 if self.pending else None):
                if fd == 0:
                    return
                if fd == self.event:
                    self.finish()
                    continue
                try:
                    message = os.read(self.fuse, 1 << 18)
                except (FileNotFoundError, InterruptedError):
                    continue
                self.request(message)
            if self.pending:
                self.submit_due()


def main() -> None:
    daemon = Daemon(sys.argv[1], sys.argv[2])
    daemon.serve()
    ended = daemon.pool.close()
    seen = {
        "jobs": daemon.jobs,
        "errors": daemon.errors,
        "refused_opens": daemon.refused_opens,
        "ended": ended,
    }
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
