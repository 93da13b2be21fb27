"""When cyclic garbage is looked for (host/garbage.py)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from kdbusfs.host import garbage
from kdbusfs.host.garbage import TOO_MANY, YOUNG, Collector


class Node:
    """One of a cycle."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


def garbage_of_one() -> weakref.ref[Node]:
    return weakref.ref(Node())


def some(count: int) -> list[list[int]]:
    return [[number] for number in range(count)]


def test_young_garbage_is_found() -> None:
    lost = garbage_of_one()
    assert lost() is not None
    Collector(lambda: 0).look_at_young()
    assert lost() is None


def test_too_many_young_objects_wait_until_the_mount_is_idle() -> None:
    collector = Collector(lambda: 0)
    lost = garbage_of_one()
    kept = some(2 * TOO_MANY)
    collector.look_at_young()
    assert lost() is not None
    del kept
    collector.look_at_all()
    assert lost() is None


def test_too_many_old_objects_are_not_looked_at() -> None:
    collector = Collector(lambda: 0)
    kept, node = some(2 * TOO_MANY), Node()
    lost = weakref.ref(node)
    gc.collect(0)  # puts them among the older ones
    del node
    collector.look_at_all()
    assert lost() is not None
    del kept
    collector.look_at_all()
    assert lost() is None


def test_a_look_is_asked_for_when_there_are_enough() -> None:
    collector = Collector(lambda: 0)
    gc.collect(0)
    collector.notice()
    assert not collector._due.is_set()
    kept = some(YOUNG + 100)
    collector.notice()
    assert collector._due.is_set() and kept


def test_idle_is_when_nothing_comes_after_something_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_QUIET", 0.001)
    monkeypatch.setattr(garbage, "_BETWEEN_FULL", 0.0)
    came = [0, 5, 6, 6, 6, 6]
    collector = Collector(lambda: came.pop(0))
    assert [collector._is_idle() for _ in range(4)] == [False, False, True, False]
    assert not came


def test_a_busy_mount_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_BETWEEN_FULL", 0.0)
    collector = Collector(lambda: 1)
    collector._due.set()
    assert not collector._is_idle()


def test_from_begin_to_close() -> None:
    collector = Collector(lambda: 0)
    gc.enable()
    collector.begin()
    try:
        assert not gc.isenabled()
        lost = garbage_of_one()
        gc.collect(0)
        assert lost() is None
        assert collector.collections >= 1 and collector.longest_us >= 0
    finally:
        collector.close()
    assert collector._thread is not None and not collector._thread.is_alive()
    assert collector._measure not in gc.callbacks


def test_without_a_thread_python_collects_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError

    gc.enable()
    monkeypatch.setattr(garbage, "new_thread", refuse)
    collector = Collector(lambda: 0)
    collector.begin()
    assert gc.isenabled()
    collector.close()
