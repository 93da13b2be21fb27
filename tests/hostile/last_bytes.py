"""Structs of the last kdbus that change while the daemon reads them: `python -m tests.hostile.last_bytes MOUNT`.

The kernel does not copy the struct of its _IOR commands: the daemon reads and writes it in the client's memory.
Threads of one user issue commands on structs that a sibling rewrites all the time: size, flags, offsets and pointers.
Some lie at the end of a mapping, or where nothing is mapped.  The program fails if a result is no errno of the ABI, if
bytes behind a struct change, or if another user's messages do not go on.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import sys
import threading
import time
import traceback
from pathlib import Path
from struct import pack_into
from typing import NoReturn

from kdbusfs.abi.last.commands import COMMANDS
from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, make_bus, raw

UID = 7501
THREADS = 4
ROUNDS = 4000
PATIENCE = 300.0  # seconds
PAGE = mmap.PAGESIZE
GUARD = b"\x5a" * 64
KNOWN = {
    0,
    *(errno.EAGAIN, errno.EALREADY, errno.EBADF, errno.EBADFD, errno.EBADMSG, errno.EBUSY, errno.ECANCELED),
    *(errno.ECOMM, errno.ECONNRESET, errno.EDESTADDRREQ, errno.EDOM, errno.EEXIST, errno.EFAULT, errno.EHOSTUNREACH),
    *(errno.EINVAL, errno.EISCONN, errno.EMEDIUMTYPE, errno.EMFILE, errno.EMLINK, errno.EMSGSIZE, errno.ENAMETOOLONG),
    *(errno.ENOBUFS, errno.ENOENT, errno.ENOMEM, errno.ENOSPC, errno.ENOTCONN, errno.ENOTTY, errno.ENOTUNIQ),
    *(errno.ENXIO, errno.EOPNOTSUPP, errno.EOVERFLOW, errno.EPERM, errno.EPIPE, errno.EPROTO, errno.EREMCHG),
    *(errno.EREMOTE, errno.EREMOTEIO, errno.ESHUTDOWN, errno.ESRCH, errno.ETIMEDOUT, errno.ETXTBSY, errno.EXFULL),
    errno.EBADSLT,
    errno.EINTR,
}
SIZES = (0, 1, 8, 24, 31, 32, 40, 48, 56, 57, 64, 96, 128, 4096, 32768, 32769)
WORDS = (*SIZES, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1)


class Target:
    """A struct at some place, which is rewritten all the time."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 3 * PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.is_over = False
        self._at = 0

    def place(self, at: int) -> int:
        self._at = at
        return self.address + at

    def rewrite(self) -> None:
        """Until it is over: one word after the other becomes something else."""
        chance = random.Random(1)
        while not self.is_over:
            at = self._at + 8 * chance.randrange(8)
            if at + 8 <= 2 * PAGE:
                addresses = (self.address, self.address + PAGE, self.address + chance.randrange(2 * PAGE))
                value = chance.choice((*WORDS, *addresses))
                pack_into("<Q", self.memory, at, value)


def trouble(bus: str, seed: int, rounds: int) -> str:
    """What a thread of the attacker saw that must not be, or nothing."""
    chance = random.Random(seed)
    target = Target()
    connection = Connection(bus, family="last", pool_size=1 << 16)
    writer = threading.Thread(target=target.rewrite)
    writer.start()
    commands = list(COMMANDS.values())
    try:
        for _ in range(rounds):
            command = chance.choice(commands)
            at = chance.choice((0, 8, 512, PAGE - command.size, PAGE - 8, 2 * PAGE - command.size))
            address = target.place(at)
            pack_into("<Q", target.memory, at, chance.choice((command.size, *WORDS)))
            guarded = at + command.size + len(GUARD) <= 3 * PAGE and at >= 2 * PAGE - command.size
            if guarded:
                target.memory[at + command.size : at + command.size + len(GUARD)] = GUARD
            if chance.random() < 0.02:
                address = chance.choice((0, 8, (1 << 47) - 8, 1 << 63, (1 << 64) - 8))
            result = raw.ioctl(connection.fd, command.number, address)
            if result not in KNOWN:
                return f"{command.name}: {errno.errorcode.get(result, result)}"
            if guarded and target.memory[at + command.size : at + command.size + len(GUARD)] != GUARD:
                return f"{command.name}: wrote behind its struct"
            if result == 0 and command.name == "BYEBYE":
                connection.close()
                connection = Connection(bus, family="last", pool_size=1 << 16)
    finally:
        target.is_over = True
        writer.join()
        connection.close()
    return ""


def attack(bus: str, rounds: int) -> NoReturn:
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    found: list[str] = []

    def run(seed: int) -> None:
        try:
            what = trouble(bus, seed, rounds)
        except BaseException:
            what = traceback.format_exc()
        if what:
            found.append(what)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for what in found:
        print(what, flush=True)
    os._exit(1 if found else 0)


def main() -> int:
    mount = Path(sys.argv[1])
    with make_bus(mount, "last", access=c.MAKE_ACCESS_WORLD) as bus, Connection(bus) as honest:
        pid = os.fork()
        if pid == 0:
            attack(str(bus.path), ROUNDS)
        worst, count, limit = 0.0, 0, time.monotonic() + PATIENCE
        ended, status = 0, 1
        while not ended and time.monotonic() < limit:
            start = time.monotonic()
            honest.send(honest.id, b"x" * 64)
            with honest.receive(PATIENCE):
                pass
            worst = max(worst, time.monotonic() - start)
            count += 1
            ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            print(f"the attacker did not end in {PATIENCE:g} s")
            status = 1
    print(f"{THREADS * ROUNDS} commands, {count} honest exchanges, the longest {1000 * worst:.0f} ms")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
