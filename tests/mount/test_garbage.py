"""Objects of clients are freed without the cyclic garbage collector."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, bloom_rule, make_bus
from tests.support.actors import Actors

if TYPE_CHECKING:
    from tests.conftest import DomainMount
    from tests.support.footprint import Footprint

pytestmark = pytest.mark.mount

PAGE = os.sysconf("SC_PAGESIZE")
DEATHS = 300
"""Number of clients that are killed in a storm, which takes some seconds."""
SLACK = 4000
"""Allowed difference in the number of objects: those not yet collected, and names that the kernel knows."""


def _storm(path: str) -> None:
    """Repeatedly start clients that hold objects of every kind, and kill them."""
    for _ in range(DEATHS):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError), Connection(path, pool_size=16 * PAGE) as client:
                client.add_match(1, bloom_rule(client.bloom()))
                client.acquire("org.example.Storm", flags=c.NAME_QUEUE)
                client.send(client.id, b"unread")
                client.broadcast(b"heard")
                client.call(client.id, b"for ever", timeout=60.0)
            os._exit(0)
        with contextlib.suppress(OSError):
            Connection(path, pool_size=PAGE).close()
        with contextlib.suppress(OSError):
            os.open(f"{path}.none", os.O_RDWR)
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], 60)[0]
        os.close(pidfd)
        os.waitpid(pid, 0)


def test_a_storm_leaves_no_objects(domain_mount: DomainMount, actors: Actors, footprint: Footprint) -> None:
    """CLOSE-1: collections or not, there are as many as before."""

    def storm() -> None:
        with make_bus(domain_mount.path, "storm") as bus:
            _storm(bus.path)

    def blocks() -> int:
        footprint.settles()
        return int(domain_mount.stats()["blocks"])

    actors.run(storm)
    before = blocks()
    for _ in range(2):
        actors.run(storm)
    after = blocks()
    assert abs(after - before) < SLACK
