"""Clients that serve the page of their own message and are killed.

`python -m tests.hostile.undead MOUNT [ROUNDS [UIDS]]`, as root.  UIDS users (8) together make ROUNDS (1000) of them.
Each must end within END_PATIENCE, no reader may be left stuck, and another user's messages must go on meanwhile: the
program says the longest time that one took.  A user who causes too many preemptions is blocked for a minute, so each
makes one client every BEAT seconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, make_bus
from tests.support.undead import client_of_own_page

FIRST_UID = 7301
END_PATIENCE = 10.0  # seconds
BEAT = 1.25  # seconds between two clients of a user
STALL = 5.0  # seconds that a call of another user may take, on a machine that has other work too
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def client(bus: str, directory: str, uid: int, writing: int) -> NoReturn:
    """The process that is killed: it tells before it gives its command."""
    undead = client_of_own_page(bus, directory, uid)
    os.write(writing, b"+")
    os._exit(undead.payload() or 1)


def ends(pid: int) -> bool:
    limit = time.monotonic() + END_PATIENCE
    while time.monotonic() < limit:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    return False


def one_round(bus: str, directory: str, uid: int, delay: float) -> bool:
    """Whether the client has ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            client(bus, directory, uid, writing)
        finally:
            os._exit(2)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    ended = ends(pid)
    _libc.umount2(os.fsencode(directory), _MNT_DETACH)
    return ended


def attack(bus: str, uid: int, rounds: int) -> NoReturn:
    """The life of one user; exits with 0 if all of his clients ended."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="undead-") as directory:
        os.chmod(directory, 0o755)
        for number in range(rounds):
            start = time.monotonic()
            # Before the reader is preempted, about then, and when it is stuck.
            failed += not one_round(bus, directory, uid, (0.005, 0.02, 0.2)[number % 3])
            time.sleep(max(0.0, start + BEAT - time.monotonic()))
    os._exit(1 if failed else 0)


class Honest:
    """Another user's messages to himself, for as long as the attack lasts."""

    def __init__(self, bus: BusOwner) -> None:
        self.connection = Connection(bus)
        self.worst = 0.0
        self.count = 0
        self.fault: OSError | TimeoutError | None = None

    def exchange(self) -> None:
        start = time.monotonic()
        try:
            self.connection.send(self.connection.id, b"x" * 64)
            with self.connection.receive(10 * STALL):
                pass
        except (OSError, TimeoutError) as fault:
            self.fault = fault
        self.worst = max(self.worst, time.monotonic() - start)
        self.count += 1


def main() -> int:
    mount = Path(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    users = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    bus = make_bus(mount, "undead", access=c.MAKE_ACCESS_WORLD)
    honest = Honest(bus)

    def stats() -> dict[str, int]:
        found: dict[str, int] = json.loads((mount / ".kdbusfs/stats").read_bytes())
        return found

    before = stats()
    attackers = []
    for number in range(users):
        pid = os.fork()
        if pid == 0:
            attack(str(bus.path), FIRST_UID + number, rounds // users)
        attackers.append(pid)
    failed = 0
    while attackers:
        honest.exchange()
        time.sleep(0.005)
        for pid in attackers[:]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                attackers.remove(pid)
                failed += status != 0
    limit = time.monotonic() + END_PATIENCE
    while stats()["stuck"] and time.monotonic() < limit:
        time.sleep(0.05)
    after = stats()
    changed = {name: after[name] - before[name] for name in ("preempted", "abandoned", "blocked")}
    print(f"{rounds // users * users} clients of {users} users: {changed}, {after['stuck']} readers left stuck")
    print(f"{failed} users had clients that did not end in {END_PATIENCE:g} s")
    print(f"{honest.count} messages of another user beside it, the slowest took {honest.worst * 1000:.1f} ms")
    if honest.fault is not None:
        print(f"one of them failed: {honest.fault}")
    return int(bool(failed or after["stuck"] or honest.fault is not None or honest.worst > STALL))


if __name__ == "__main__":
    sys.exit(main())
