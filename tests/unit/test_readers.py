"""Who starts spare readers, and when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pytest

from kdbusfs.fuse.channel import END, Channel
from kdbusfs.fuse.ownership import SPARES, Readers

PATIENCE = 10.0


class Seats:
    """A channel whose readers wait until the end; `spares` is what the core is told."""

    def __init__(self) -> None:
        self.spares = SPARES
        self.taken = 0
        self.enough = threading.Semaphore(0)
        self.over = threading.Event()

    def for_thread(self) -> Seats:
        return self

    def take(self) -> int:
        self.taken += 1
        self.enough.release()
        self.over.wait(PATIENCE)
        return END

    def owners(self) -> dict[str, int]:
        return {"spares": self.spares, "stuck": 0, "aside": 0}

    def close(self) -> None: ...

    def starve(self, is_starving: bool) -> None: ...


@pytest.fixture
def seats() -> Iterator[Seats]:
    seats = Seats()
    yield seats
    seats.over.set()


@pytest.fixture
def readers(seats: Seats) -> Iterator[Readers]:
    readers = Readers(cast(Channel, seats), lambda channel: None, lambda fault: None)
    yield readers
    readers.end()


def test_the_owner_starts_no_thread_while_there_are_spares(seats: Seats, readers: Readers) -> None:
    """Starting one takes milliseconds; a turn that steps aside brings a new owner every time."""
    seats.spares = SPARES - 1
    readers.ask_for_spares()
    assert seats.taken == 0
    watching = threading.Thread(target=readers.watch)
    watching.start()
    for _ in range(SPARES + 1):
        assert seats.enough.acquire(timeout=PATIENCE), "the main thread did not start them"
    readers.end()
    watching.join(PATIENCE)
    assert not watching.is_alive()


def test_the_owner_asks_for_nothing_when_there_are_enough(seats: Seats, readers: Readers) -> None:
    readers.ask_for_spares()
    watching = threading.Thread(target=readers.watch)
    watching.start()
    readers.end()
    watching.join(PATIENCE)
    assert seats.taken == 0


def test_the_last_spares_are_waited_for(seats: Seats, readers: Readers) -> None:
    """Who has no successor may access no memory of clients: the owner has to know."""
    seats.spares = 1
    readers.ask_for_spares()
    for _ in range(SPARES + 1):
        assert seats.enough.acquire(timeout=PATIENCE), "they were not started"
