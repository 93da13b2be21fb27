"""The scheduling boost of the daemon: the reader has it only while it is kept waiting, all other threads always."""

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
        not os.path.exists("/proc/thread-self/schedstat"), reason="the kernel does not report how long threads wait"
    ),
]


def nice_values(pid: int) -> list[int]:
    """The nice values of all threads of a process, sorted."""
    found = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        # A thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{tid}/stat") as stat:
            found.append(int(stat.read().rpartition(")")[2].split()[16]))
    return sorted(found)


@pytest.fixture
def cpu(domain_mount: DomainMount, actors: Actors) -> int:
    """The only cpu that the daemon may run on, which a client that keeps it busy shares."""
    if nice_values(domain_mount.pid)[0] >= 0:
        pytest.skip("the daemon may not raise its priority")
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

    actors(ask, name="busy client").hear("ready")
    return cpu


def test_the_reader_has_the_boost_while_it_is_kept_waiting(
    domain_mount: DomainMount, actors: Actors, cpu: int
) -> None:
    """It drops the boost when it is no longer kept waiting; every other thread always has it"""

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
