"""Daemons that are killed at random moments, and clients that are blocked in everything then.

    python -m tests.support.kill_storm [KILLS]

prints how long clients waited for their answers.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kdbusfs.client import Connection, make_bus
from tests.support.actors import Actor, Actors, Link
from tests.support.kept import KeptMount

LOST = {errno.ECONNRESET, errno.ENOENT, errno.ESTALE, errno.ENXIO, errno.EPIPE}
"""What a client may be told: of its connection, of a bus that is gone, of a path that the kernel has looked up."""


class Waiter:
    """A client that blocks until the daemon is killed; `wait` returns what it was told.

    Each time around it makes a bus of its own, with two connections.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.bus = make_bus(path, name)
        self.me = Connection(self.bus.path)
        self.peer = Connection(self.bus.path)

    def close(self) -> None:
        for each in (self.me, self.peer, self.bus):
            each.close()

    def send(self) -> str:
        try:
            self.me.call(self.peer.id, b"never answered", timeout=3600)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "answered"

    def poll(self) -> str:
        poll = select.poll()
        poll.register(self.me.fileno(), select.POLLIN)
        ((_, events),) = poll.poll()
        return f"{events:#x}"

    def epoll(self) -> str:
        with select.epoll() as epoll:
            epoll.register(self.me.fileno(), select.EPOLLIN | select.EPOLLET)
            while not (events := dict(epoll.poll()).get(self.me.fileno(), 0)) & select.EPOLLHUP:
                pass
            return f"{events & ~select.EPOLLOUT:#x}"

    def maps(self) -> str:
        """A message that stays mapped is right as long as it is looked at."""
        payload = os.urandom(100_000)
        self.peer.send(self.me.id, payload)
        message = self.me.receive(60)
        poll = select.poll()
        poll.register(self.me.fileno(), select.POLLIN)
        while not poll.poll(5):
            if message.data() != payload:
                return "wrong bytes"
        return "right bytes" if message.data() == payload else "wrong bytes"


EXPECTED = {
    Waiter.send: {"ECONNRESET"},
    Waiter.poll: {"0x18"},
    Waiter.epoll: {"0x18"},
    Waiter.maps: {"right bytes"},
}


def waits(path: Path, name: str, wait: Callable[[Waiter], str]) -> Callable[[Link], None]:
    """Blocks, says what it was told and when, until it is not to block again."""

    def play(link: Link) -> None:
        number = 0
        while link.hear("whether to go on", 3600):
            while True:
                number += 1
                try:
                    waiter = Waiter(path, f"{name}-{number}")
                    break
                except OSError as error:
                    if error.errno not in LOST:
                        raise
            link.say("waits")
            told = wait(waiter)
            link.say((told, time.monotonic()))
            waiter.close()

    return play


def hellos(path: Path, name: str) -> Callable[[Link], Counter[str]]:
    """Connections come and go, each sends itself a descriptor; returns what it was told and how often."""

    def play(link: Link) -> Counter[str]:
        faulthandler.disable()  # SIGBUS is expected, see Storm.without_pool
        found: Counter[str] = Counter()
        read, write = os.pipe()
        number = 0
        while not select.select([link._socket], [], [], 0)[0]:
            number += 1
            try:
                with make_bus(path, f"{name}-{number}") as bus:
                    for _ in range(20):
                        with Connection(bus.path) as connection:
                            connection.send(connection.id, b"x", fds=[read])
                            message = connection.receive(3600)
                            with message:
                                os.write(write, b"!")
                                if message.fds[0].fd < 0:
                                    # The daemon was killed between its answer and the descriptor.
                                    found["none"] += 1
                                    os.read(read, 1)
                                    continue
                                received = os.read(message.fds[0].fileno(), 1)
                                found["right" if received == b"!" else "wrong"] += 1
            except OSError as error:
                found[errno.errorcode[error.errno or 0]] += 1
            except ValueError:
                # The daemon was killed while it made this thread receive the descriptor (docs/deviations.md).
                found["cut off"] += 1
        return found

    return play


class Storm:
    """kills: how many; each comes after some clients block, at a random moment within `within` seconds."""

    def __init__(self, domain: KeptMount, actors: Actors, within: float = 0.5) -> None:
        self._domain = domain
        self._within = within
        self._actors = actors
        path = domain.path
        self._waiters = {wait: actors(waits(path, wait.__name__, wait), name=wait.__name__) for wait in EXPECTED}
        self._others = [self._hello(f"hello{n}") for n in range(2)]
        self.without_pool = 0
        """Clients whose pool was not there, because the daemon was killed in the middle of their HELLO."""
        self.longest = 0.0
        """Seconds that a waiter waited for its answer after a kill."""

    def _hello(self, name: str) -> Actor:
        return self._actors(hellos(self._domain.path, name), name=name)

    def run(self, kills: int) -> Counter[str]:
        """Gives what the clients that come and go were told."""
        for _ in range(kills):
            self._kill()
        for actor in self._waiters.values():
            actor.say(False)
        found: Counter[str] = Counter()
        for actor in self._others:
            self._look_after_others()
            with contextlib.suppress(BrokenPipeError):
                actor.say()
            found += actor.result()
        return found

    def _kill(self) -> None:
        for actor in self._waiters.values():
            actor.say(True)
        for actor in self._waiters.values():
            actor.hear("that it blocks")
        time.sleep(random.uniform(0, self._within))
        begun = time.monotonic()
        self._domain.kill()
        for wait, actor in self._waiters.items():
            told, when = actor.hear("its answer")
            assert told in EXPECTED[wait], (wait.__name__, told)
            self.longest = max(self.longest, when - begun)
        self._look_after_others()

    def _look_after_others(self) -> None:
        for number, actor in enumerate(self._others):
            if actor.has_ended() == -signal.SIGBUS:
                self.without_pool += 1
                self._others[number] = self._hello(f"hello{number}.{self.without_pool}")


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    domain = KeptMount(path)
    actors = Actors()
    try:
        domain.wait_until_ready()
        domain.wait_for_spare()
        storm = Storm(domain, actors)
        begun = time.monotonic()
        found = storm.run(kills)
        print(f"{kills} kills in {time.monotonic() - begun:.0f} s, longest wait {storm.longest * 1000:.0f} ms,")
        print(f"{storm.without_pool} without a pool,", dict(found))
        print("waiting", domain.waiting(), domain.stats())
        print(domain.stop(), domain.log()[-1000:])
    finally:
        actors.clean_up()
        domain.clean_up()


if __name__ == "__main__":
    main()
