"""Fixtures for clients of a mounted domain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.actors import Actors
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
