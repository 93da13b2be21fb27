"""What ends with everything that one user may have, and the cpu time of the longest turn of a daemon meanwhile.

It wants compiled modules.  The measure is `longest_turn_us` of `stats`: cpu time of the thread that owned the core.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator

import pytest

from kdbusfs.client import BusOwner, Connection, deadline, make_bus
from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

TURN_MAX_US = 5000
PATIENCE = 120.0
CONNECTIONS = 1000
NAMES = 256
REQUESTS = 128
POOL = 1 << 16
FAR = 1000.0
FILES = 16384


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with make_bus(domain_mount.path, "stalls") as owner:
        yield owner


def connect(bus: BusOwner, count: int) -> list[Connection]:
    return [Connection(bus.path, pool_size=POOL) for _ in range(count)]


def own(connections: list[Connection], names: int = NAMES) -> None:
    for number, connection in enumerate(connections):
        for index in range(names):
            connection.acquire(f"a.n{number}x{index}")


def listen(connections: list[Connection]) -> None:
    for connection in connections:
        connection.add_match(1)


def longest_turn(domain_mount: DomainMount, deed: Callable[[], object], connections: int) -> int:
    """Do it, wait until only `connections` are left, and give the longest turn of the daemon's life."""
    deed()
    limit = time.monotonic() + PATIENCE
    while True:
        stats = domain_mount.stats()
        left = sum(len(bus["connections"]) for bus in stats["buses"])
        if left <= connections and not stats["yielded"]:
            return int(stats["longest_turn_us"])
        assert time.monotonic() < limit, f"{left} connections are left, {stats['yielded']} threads have yielded"
        time.sleep(0.1)


def test_shut_1_a_bus_with_everything(domain_mount: DomainMount, bus: BusOwner) -> None:
    connections = connect(bus, CONNECTIONS)
    own(connections)
    listen(connections)
    assert longest_turn(domain_mount, bus.close, 0) < TURN_MAX_US
    for connection in connections:
        connection.close()


def test_note_6_an_owner_of_names_among_listeners(domain_mount: DomainMount, bus: BusOwner) -> None:
    owner, *others = connect(bus, CONNECTIONS)
    own([owner])
    listen(others)
    assert longest_turn(domain_mount, owner.close, CONNECTIONS - 1) < TURN_MAX_US
    for connection in others:
        connection.close()


def test_close_1_all_files_of_a_process(domain_mount: DomainMount, bus: BusOwner) -> None:
    connections = connect(bus, CONNECTIONS)
    own(connections[:100])
    listen(connections)

    def close() -> None:
        for connection in connections:
            os.close(connection.fd)
            connection.fd = -1

    assert longest_turn(domain_mount, close, 0) < TURN_MAX_US


def test_rep_11_who_owes_many_replies(domain_mount: DomainMount, bus: BusOwner) -> None:
    server = Connection(bus.path, pool_size=1 << 20)
    clients = connect(bus, 300)
    for client in clients:
        for _ in range(REQUESTS):
            client.send(server.id, b"", expect_reply=True, timeout_ns=deadline(FAR))
            message = server.recv()
            assert message is not None
            message.free()
    assert longest_turn(domain_mount, server.close, len(clients)) < TURN_MAX_US
    for client in clients:
        client.close()


def test_close_1_as_many_files_as_a_user_may_have(domain_mount: DomainMount, bus: BusOwner) -> None:
    """Files and directories that never had a command: each close is a turn of its own, whatever comes first."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files = []
    for path in (bus.path, bus.directory):
        with contextlib.suppress(OSError):  # a quarter of what the daemon may have open
            for _ in range(FILES // 2):
                files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    assert len(files) > 1000

    def close() -> None:
        for file in files:
            os.close(file)

    assert longest_turn(domain_mount, close, 0) < TURN_MAX_US
