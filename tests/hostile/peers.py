"""What one user can make the core do with bus1 at its limits: `python -m tests.hostile.peers MOUNT`, as root.

Each scene runs in a process of its own, as user ATTACKER, while another user's messages on a bus go on.  The program
says of each how long the longest turn of the daemon was (cpu).  It fails if a scene or an honest call fails, or if a
turn takes longer than TURN_MS; `make stalls` and the unit tests measure in more detail.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from errno import EDQUOT
from pathlib import Path
from typing import NoReturn

from kdbusfs.abi.v3 import constants as c
from kdbusfs.bus1.destroy import FRESH_MAX
from kdbusfs.client import Connection, make_bus
from kdbusfs.client.bus1 import Peer

ATTACKER = 7401
PEERS = 3000
HANDLES = 65000
"""Of one user; a little less than he may have."""
TURN_MS = 25.0
"""Far above what a turn takes, for the machine may have other work."""
FRESH = 8
"""Ids of nodes that are yet to be made are multiples of it."""
PATIENCE = 120.0  # seconds

Scene = Callable[[str, int], None]
SCENES: list[Scene] = []


def scene(function: Scene) -> Scene:
    SCENES.append(function)
    return function


def crowd(path: str, count: int) -> tuple[Peer, list[Peer], list[int]]:
    """A peer with a handle to a node of each of `count` others."""
    centre = Peer(path, map_size=1 << 16)
    others = [Peer(path, map_size=1 << 16) for _ in range(count)]
    return centre, others, [other.transfer(FRESH, centre) for other in others]


@scene
def multicast(path: str, count: int) -> None:
    """One message to all; then one of which all destinations but the last are gone."""
    centre, others, ids = crowd(path, count)
    centre.send(ids, b"x" * 64)
    for other in others[:-1]:
        other.disconnect()
    centre.send(ids, b"x", go_on=True)


@scene
def multicast_with_handles(path: str, count: int) -> None:
    """A message with many handles to some peers."""
    centre, _, ids = crowd(path, 16)
    centre.send(ids, b"x", handles=[(1 + number) * FRESH for number in range(HANDLES // 32)])


@scene
def destroy_fresh(path: str, count: int) -> None:
    """Nodes that are made and destroyed by one command, as many as it takes; then too many."""
    peer = Peer(path, map_size=1 << 16)
    ids = [(1 + number) * FRESH for number in range(HANDLES)]
    for first in range(0, HANDLES - HANDLES % FRESH_MAX, FRESH_MAX):
        peer.destroy(*ids[first : first + FRESH_MAX])
    other = Peer(path, map_size=1 << 16)
    try:
        other.destroy(*ids)
    except OSError as error:
        assert error.errno == EDQUOT


@scene
def destroy_all(path: str, count: int) -> None:
    """Nodes that exist are destroyed by one command."""
    peer = Peer(path, map_size=1 << 16)
    ids = [(1 + number) * FRESH for number in range(HANDLES)]
    for id in ids:
        peer.transfer(id)
    peer.destroy(*ids)


@scene
def send_fresh(path: str, count: int) -> None:
    """Nodes that are made by one message."""
    peer = Peer(path, map_size=1 << 20)
    peer.send([FRESH], b"x", handles=[(2 + number) * FRESH for number in range(HANDLES // 3)])
    message = peer.receive()
    assert message is not None
    peer.free(message)


@scene
def destroy_held(path: str, count: int) -> None:
    """One node that everybody holds ends."""
    centre = Peer(path, map_size=1 << 16)
    kept = [Peer(path, map_size=1 << 16) for _ in range(count)]
    own = centre.transfer(FRESH)
    for other in kept:
        centre.transfer(own, other)
    centre.destroy(own)


@scene
def peers_end(path: str, count: int) -> None:
    """A process with many peers ends, each of which holds a node of the next."""
    peers = [Peer(path, map_size=1 << 16) for _ in range(count)]
    for number, peer in enumerate(peers):
        peer.transfer(FRESH, peers[number - 1])


@scene
def notices(path: str, count: int) -> None:
    """A peer with as many notifications as it can have ends."""
    peer = Peer(path, map_size=1 << 16)
    for first in range(0, HANDLES, 1000):
        peer.destroy(*[(1 + first + number) * FRESH for number in range(1000)])
    peer.reset(flush=True)


def attack(act: Scene, mount: Path, count: int) -> NoReturn:
    """The life of an attacker; exits with 0 if the scene took place."""
    try:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        os.setgroups([])
        os.setresgid(ATTACKER, ATTACKER, ATTACKER)
        os.setresuid(ATTACKER, ATTACKER, ATTACKER)
        act(str(mount / "bus1"), count)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main() -> int:
    mount = Path(sys.argv[1])

    def longest_turn() -> float:
        stats: dict[str, int] = json.loads((mount / ".kdbusfs/stats").read_bytes())
        return stats["longest_turn_us"] / 1000

    failed = 0
    with make_bus(mount, "honest", access=c.MAKE_ACCESS_WORLD) as bus, Connection(bus) as honest:

        def exchange() -> float:
            start = time.monotonic()
            honest.send(honest.id, b"x" * 64)
            with honest.receive(PATIENCE):
                pass
            return time.monotonic() - start

        for act in SCENES:
            pid = os.fork()
            if pid == 0:
                attack(act, mount, PEERS)
            worst, status = 0.0, None
            limit = time.monotonic() + PATIENCE
            while status is None and time.monotonic() < limit:
                worst = max(worst, exchange())
                ended, code = os.waitpid(pid, os.WNOHANG)
                status = code if ended else None
            if status is None:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
            for _ in range(100):  # what follows from the end
                worst = max(worst, exchange())
            turn = longest_turn()
            wrong = status != 0 or turn > TURN_MS
            failed += wrong
            print(
                f"{act.__name__}: {'failed' if status else 'done'}, longest turn so far {turn:.1f} ms,"
                f" longest honest exchange {1000 * worst:.0f} ms",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
