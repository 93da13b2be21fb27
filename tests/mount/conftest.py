"""Fixtures for clients of a mounted domain."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdbusfs.client import make_bus
from kdbusfs.fuse.mount import Mount, mount_table, unmount
from tests.support.actors import Actors, Link
from tests.support.chatter import chatter
from tests.support.commands import connection_of
from tests.support.footprint import Footprint

REST_PATIENCE = 240.0  # seconds within which a new daemon must become idle

if TYPE_CHECKING:
    from tests.conftest import DomainMount


@pytest.fixture
def actors(domain_mount: DomainMount) -> Iterator[Actors]:
    """Runs functions in client processes, which end with the test, before the daemon."""
    clients = Actors()
    try:
        yield clients
    finally:
        clients.clean_up()


@pytest.fixture
def footprint(domain_mount: DomainMount) -> Footprint:
    """The resources of the daemon before the test begins."""
    limit = time.monotonic() + REST_PATIENCE
    while not (found := Footprint(domain_mount)).is_idle:
        assert time.monotonic() < limit, f"waited {REST_PATIENCE:g} s for the daemon to rest: {domain_mount.stats()}"
        time.sleep(0.02)
    return found


@pytest.fixture
def place(private_mounts: None) -> Iterator[Path]:
    """A directory that every user may enter.  Mounts in it, and their daemons, end with the test."""
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        left = [entry for entry in mount_table() if Path(entry.path).is_relative_to(path)]
        for entry in reversed(left):
            mount = Mount(entry.path, entry.device)
            if entry.type.startswith("fuse."):
                with contextlib.suppress(OSError):
                    (connection_of(mount) / "abort").write_text("1")
            unmount(mount, 5.0)
        shutil.rmtree(path)


@pytest.fixture
def healthy(domain_mount: DomainMount, actors: Actors, footprint: Footprint) -> Iterator[None]:
    """A pair of clients that talk on their own bus; afterwards no resource is left, and nothing was logged."""

    def own(link: Link) -> None:
        with make_bus(domain_mount.path, "healthy") as bus:
            link.say(bus.path)
            link.hear("the end", 3600)

    owner = actors(own)
    pair = actors(chatter(owner.hear("its bus")), name="healthy pair")
    pair.hear("its connections")
    yield
    pair.say()
    assert pair.result() > 0
    actors.clean_up()
    footprint.settles()
