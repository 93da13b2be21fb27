"""Fixtures for clients of a mounted domain."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdbusfs.fuse.mount import Mount, mount_table, unmount
from tests.support.actors import Actors
from tests.support.commands import connection_of
from tests.support.footprint import Footprint

if TYPE_CHECKING:
    from tests.conftest import DomainMount


@pytest.fixture
def actors(domain_mount: DomainMount) -> Iterator[Actors]:
    """Runs functions in client processes, all of which end with the test, before the daemon does."""
    clients = Actors()
    try:
        yield clients
    finally:
        clients.clean_up()


@pytest.fixture
def footprint(domain_mount: DomainMount) -> Footprint:
    """What the daemon holds before the test begins."""
    found = Footprint(domain_mount)
    assert found.is_idle
    return found


@pytest.fixture
def place(private_mounts: None) -> Iterator[Path]:
    """A directory that everybody may enter; what a test mounts in it is gone afterwards, and its daemon too."""
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
