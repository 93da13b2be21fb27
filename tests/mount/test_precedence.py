"""How the threads of the daemon are scheduled: all before others, but the reader only while it is kept waiting."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from kdbusfs.client import Connection, make_bus
from tests.support.actors import Actors, Link, until

if TYPE_CHECKING:
    from tests.conftest import DomainMount

LOOPS = 8
PATIENCE = 240.0  # seconds

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(
        not os.path.exists("/proc/thread-self/schedstat"), reason="the kernel does not tell how long threads wait"
    ),
]


def nice_values(pid: int) -> list[int]:
    """Of all threads of a process, in order."""
    found = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        # A thread may end while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{tid}/stat") as stat:
            found.append(int(stat.read().rpartition(")")[2].split()[16]))
    return sorted(found)


@pytest.fixture
def cpu(domain_mount: DomainMount, actors: Actors) -> int:
    """The one that the daemon may run on, and a process that asks it all the time."""
    if nice_values(domain_mount.pid)[0] >= 0:
        pytest.skip("the daemon may not raise itself")
    cpu = min(os.sched_getaffinity(0))
    for tid in os.listdir(f"/proc/{domain_mount.pid}/task"):
        os.sched_setaffinity(int(tid), {cpu})

    def ask(link: Link) -> None:
        os.sched_setaffinity(0, {cpu})
        with make_bus(domain_mount.path, "crowd") as bus, Connection(bus.path) as connection:
            link.say()
            while True:
                connection.send(connection.id, b"x")
                with connection.receive(PATIENCE):
                    pass

    actors(ask, name="who asks").hear("that it asks")
    return cpu


def test_the_reader_takes_precedence_while_it_is_kept_waiting(
    domain_mount: DomainMount, actors: Actors, cpu: int
) -> None:
    """It gives it up when it is left alone; every other thread has it always"""

    def loop(link: Link) -> None:
        os.sched_setaffinity(0, {cpu})
        while True:
            pass

    def is_at(reader: int) -> bool:
        *others, highest = nice_values(domain_mount.pid)
        return set(others) == {-10} and highest == reader

    until("a reader like others", lambda: is_at(0))
    before = domain_mount.stats()["kept_waiting"]
    loops = [actors(loop, name="busy loop") for _ in range(LOOPS)]
    until("a reader before busy loops", lambda: is_at(-10))
    for each in loops:
        each.kill()
    until("a reader like others again", lambda: is_at(0))
    assert domain_mount.stats()["kept_waiting"] > before
