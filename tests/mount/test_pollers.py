"""Many pollers of one file (POLL-2, POLL-3): waking them must not delay others."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from kdbusfs.client import BusOwner, Connection, make_bus
from tests.conftest import DomainMount

DUPLICATES = 100
TOO_MANY = 30000


pytestmark = pytest.mark.mount


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    with make_bus(domain_mount.path, "pollers") as owner:
        yield owner


def muted(domain_mount: DomainMount) -> object:
    return domain_mount.stats()["muted"]


def test_poll_3_a_file_that_far_too_many_wait_for_is_not_woken(domain_mount: DomainMount, bus: BusOwner) -> None:
    with Connection(bus.path) as client, Connection(bus.path) as sender:
        descriptors = [os.dup(client.fileno()) for _ in range(DUPLICATES)]
        pollers = [select.epoll() for _ in range(TOO_MANY // DUPLICATES)]
        for poller in pollers:
            for descriptor in descriptors:
                poller.register(descriptor, select.EPOLLIN)
        assert muted(domain_mount) == 1
        sender.send(client.id, b"hello")
        late = select.poll()
        late.register(client.fileno(), select.POLLIN)
        assert late.poll(0) == [(client.fileno(), select.POLLIN)]
        for poller in pollers:
            poller.close()
        for descriptor in descriptors:
            os.close(descriptor)


def test_poll_3_a_frequent_poller_is_always_woken(domain_mount: DomainMount, bus: BusOwner) -> None:
    with Connection(bus.path) as client, Connection(bus.path) as sender:
        poller = select.epoll()
        poller.register(client.fileno(), select.EPOLLIN | select.EPOLLET)
        often = select.poll()
        often.register(client.fileno(), select.POLLIN)
        for _ in range(TOO_MANY):
            assert often.poll(0) == []
        assert poller.poll(0) == []
        assert muted(domain_mount) == 0
        sender.send(client.id, b"hello")
        assert poller.poll(5) == [(client.fileno(), select.EPOLLIN)]
