"""A process that has all files a user may have ends: all are closed, and the user can open files again (CLOSE-1)."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from kdbusfs.client import Connection, make_bus
from tests.support.actors import Actors, Link, until

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

FILES = 16384
CLOSER = 3500
PATIENT = 60.0  # seconds
OPEN = ("open_files", "open_directories")


def open_all(path: str) -> list[int]:
    """Open as many files as the user may have."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    files = []
    with contextlib.suppress(OSError):  # EMFILE
        for _ in range(FILES):
            files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    return files


@pytest.mark.parametrize("kind", ["endpoint", "directory"])
def test_close_1_all_files_of_a_user_at_once(domain_mount: DomainMount, actors: Actors, kind: str) -> None:
    """CLOSE-1, FS-17: the user's next open succeeds, and nothing is left."""

    def play(link: Link) -> int:
        with make_bus(domain_mount.path, "closes") as bus, Connection(bus) as other:
            path = bus.path if kind == "endpoint" else os.path.dirname(bus.path)
            for _ in range(2):
                files = open_all(path)
                os.closerange(min(files), max(files) + 1)
                os.close(os.open(path, os.O_RDONLY))
                other.send(other.id, b"x")
                other.receive(PATIENT).free()
            return len(files)

    before = domain_mount.stats()
    count = actors(play, uid=CLOSER).result()
    assert count > 400
    until("all to come back", lambda: all(domain_mount.stats()[name] == before[name] for name in OPEN))


def test_close_1_a_connection_among_many_other_files(domain_mount: DomainMount, actors: Actors) -> None:
    """CLOSE-1, CLOSE-3: its end takes effect before the next command of the process that closed it."""

    def play(link: Link) -> None:
        with make_bus(domain_mount.path, "closes") as bus, Connection(bus) as other:
            for _ in range(5):
                files = open_all(bus.path)[:300]
                leaver = Connection(files[150], pool_size=1 << 16)
                other.send(leaver.id, b"x")
                leaver.pool = memoryview(b"")  # a map of copies would keep it
                os.closerange(min(files), max(files) + 1)
                with pytest.raises(OSError, match="No such device"):
                    other.send(leaver.id, b"x")
                leaver.fd = -1

    actors(play, uid=CLOSER).result()


def test_close_3_the_end_of_a_process_with_many_connections(domain_mount: DomainMount, actors: Actors) -> None:
    """CLOSE-1, CLOSE-3: whoever has seen it end finds all of them gone, the last one first."""

    def play(link: Link) -> None:
        with make_bus(domain_mount.path, "closes") as bus, Connection(bus) as other:
            ready, ids = os.pipe()
            pid = os.fork()
            if pid == 0:
                kept = [Connection(bus.path, pool_size=1 << 16) for _ in range(200)]
                os.write(ids, b"".join(each.id.to_bytes(8, "little") for each in kept))
                signal.pause()
            packed = os.read(ready, 1 << 16)
            gone = [int.from_bytes(packed[at : at + 8], "little") for at in range(0, len(packed), 8)]
            assert len(gone) == 200
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            for id in reversed(gone):
                with pytest.raises(OSError, match="No such device"):
                    other.send(id, b"x")

    actors(play, uid=CLOSER).result()
