"""Clients and daemons in time namespaces and frozen control groups."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Iterator

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, make_bus
from tests.conftest import DomainMount
from tests.mount.test_hostile_memory import PATIENCE, Program, outcome, until
from tests.support.cgroups import group

pytestmark = pytest.mark.mount


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    with make_bus(domain_mount.path, "around", access=c.MAKE_ACCESS_WORLD) as bus:
        yield bus


@pytest.mark.parametrize(("offset", "is_due"), [(-60, True), (60, False)])
def test_rep_4_deadlines_count_in_the_clock_of_the_host(bus: BusOwner, offset: int, is_due: bool) -> None:
    """REP-4, REP-18: kdbus compares with the kernel's own clock, whatever clock the client sees."""
    if subprocess.run(["unshare", "-T", "true"], stderr=subprocess.DEVNULL, timeout=120).returncode:
        pytest.skip("no time namespaces")
    before = ("unshare", "-T", "--monotonic", str(offset))
    for base in (0, time.monotonic_ns()):
        client = Program("waiting", str(bus.path), "1" if base else "30", before=before)
        try:
            client.tell(str(base and time.monotonic_ns()))
            if base or is_due:
                found = outcome(client)
                assert found["errno"] == errno.ETIMEDOUT
                assert found["took"] >= 0.9 if base else found["took"] < 20
        finally:
            client.end()


def test_a_client_freezes_when_its_daemon_does_not_or_later(domain_mount: DomainMount, bus: BusOwner) -> None:
    """SYNC-1, SYNC-2: the freezer interrupts a wait, and the daemon has to answer that."""
    client = Program("waiting", str(bus.path), "600")
    with group("freezer") as clients, group("freezer") as daemons:
        try:
            clients.add(client.process.pid)
            daemons.add(domain_mount.pid)
            client.tell("0")
            until(lambda: int(domain_mount.stats()["waiting"]) == 1)
            clients.freeze(True)
            until(lambda: clients.is_frozen)
            clients.freeze(False)
            until(lambda: int(domain_mount.stats()["waiting"]) == 1)

            daemons.freeze(True)
            until(lambda: daemons.is_frozen)
            clients.freeze(True)
            time.sleep(0.3)
            assert not clients.is_frozen
            daemons.freeze(False)
            until(lambda: clients.is_frozen)
        finally:
            daemons.freeze(False)
            clients.freeze(False)
            daemons.dismiss(domain_mount.pid)
            client.process.kill()
            client.process.wait(PATIENCE)
            client.end()
