"""When memory of the heap is given back (host/heap.py)."""

from __future__ import annotations

import gc
import time

import pytest

from kdbusfs.host import heap
from kdbusfs.host.heap import STEP, Heap

PATIENCE = 240.0  # seconds


class Lib:
    def __init__(self) -> None:
        self.trims = 0

    def kfs_heap_trim(self) -> None:
        self.trims += 1

    def kfs_precedence_again(self) -> None:
        pass


@pytest.fixture
def lib(monkeypatch: pytest.MonkeyPatch) -> Lib:
    lib = Lib()
    monkeypatch.setattr(heap, "lib", lib)
    monkeypatch.setattr(heap, "_PAUSE", 0.0)
    return lib


def settle(looked: Heap) -> None:
    limit = time.monotonic() + PATIENCE
    while looked._trimming:
        assert time.monotonic() < limit, "it does not end"
        time.sleep(0.001)


def test_much_that_was_given_back_is_given_back(lib: Lib) -> None:
    used = 0
    looked = Heap(lambda: used)
    for now, trims in ((0, 0), (3 * STEP, 0), (2 * STEP + 1, 0), (2 * STEP, 1), (STEP + 1, 1), (5 * STEP, 1), (0, 2)):
        used = now
        looked.look()
        settle(looked)
        assert lib.trims == trims


def test_without_a_thread_it_is_tried_again(lib: Lib, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError

    used = STEP
    looked = Heap(lambda: used)
    looked.look()
    used = 0
    with monkeypatch.context() as patch:
        patch.setattr(heap, "new_thread", refuse)
        looked.look()
    assert lib.trims == 0
    looked.look()
    settle(looked)
    assert lib.trims == 1


def test_nothing_stays_frozen() -> None:
    frozen = gc.get_freeze_count()
    heap._clear_free_lists()
    assert gc.get_freeze_count() <= frozen
