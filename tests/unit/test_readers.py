"""Who starts spare readers, and when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pytest

from kdbusfs.fuse.channel import END, Channel
from kdbusfs.fuse.ownership import SPARES, Readers

PATIENCE = 10.0


class FakeChannel:
    """A channel whose readers wait until the end; `spares` is what the core is told."""

    def __init__(self) -> None:
        self.spares = SPARES
        self.taken = 0
        self.enough = threading.Semaphore(0)
        self.over = threading.Event()

    def for_thread(self) -> FakeChannel:
        return self

    def take(self) -> int:
        self.taken += 1
        self.enough.release()
        self.over.wait(PATIENCE)
        return END

    def owners(self) -> dict[str, int]:
        return {"spares": self.spares, "stuck": 0, "yielded": 0}

    def close(self) -> None: ...

    def starve(self, is_starving: bool) -> None: ...


@pytest.fixture
def channel() -> Iterator[FakeChannel]:
    channel = FakeChannel()
    yield channel
    channel.over.set()


@pytest.fixture
def readers(channel: FakeChannel) -> Iterator[Readers]:
    readers = Readers(cast(Channel, channel), lambda owned: None, lambda fault: None)
    yield readers
    readers.end()


def test_the_owner_starts_no_thread_while_there_are_spares(channel: FakeChannel, readers: Readers) -> None:
    """Starting one takes milliseconds; a turn that yields brings a new owner every time."""
    channel.spares = SPARES - 1
    readers.ask_for_spares()
    assert channel.taken == 0
    watching = threading.Thread(target=readers.watch)
    watching.start()
    for _ in range(SPARES + 1):
        assert channel.enough.acquire(timeout=PATIENCE), "the main thread did not start them"
    readers.end()
    watching.join(PATIENCE)
    assert not watching.is_alive()


def test_the_owner_asks_for_nothing_when_there_are_enough(channel: FakeChannel, readers: Readers) -> None:
    readers.ask_for_spares()
    watching = threading.Thread(target=readers.watch)
    watching.start()
    readers.end()
    watching.join(PATIENCE)
    assert channel.taken == 0


def test_the_last_spares_are_waited_for(channel: FakeChannel, readers: Readers) -> None:
    """Who has no successor may access no memory of clients: the owner has to know."""
    channel.spares = 1
    readers.ask_for_spares()
    for _ in range(SPARES + 1):
        assert channel.enough.acquire(timeout=PATIENCE), "they were not started"
