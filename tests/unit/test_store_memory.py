"""Pools that clients have copies of: which pages have to be stored, and the native storer."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time

from hypothesis import given
from hypothesis import strategies as st

from kdbusfs.host.copies import PageSet, size_of
from kdbusfs.host.memory import PoolMemory
from kdbusfs.host.store_memory import Storer
from kdbusfs.native._native import ffi

PAGE = os.sysconf("SC_PAGE_SIZE")
NOTIFY_STORE = 4

spans = st.tuples(st.integers(0, 40 * PAGE), st.integers(0, 6 * PAGE))


@given(st.lists(spans, max_size=30))
def test_page_set_has_the_pages_of_all_parts_once(parts: list[tuple[int, int]]) -> None:
    """Disjoint, in order, with pages between them that are not in it."""
    pages = PageSet()
    wanted: set[int] = set()
    for offset, size in parts:
        pages.add(offset, size)
        wanted.update(range(offset // PAGE, -(-(offset + size) // PAGE)) if size else ())
    found = pages.parts()
    assert [p for offset, size in found for p in range(offset // PAGE, (offset + size) // PAGE)] == sorted(wanted)
    assert all(a + size < b for (a, size), (b, _) in itertools.pairwise(found))
    assert bool(pages) == bool(wanted)
    pages.clear()
    assert not pages and not pages.parts()


def pool(size: int = 16 * PAGE) -> PoolMemory:
    memory = PoolMemory()
    memory.resize(size)
    memory.copy_to(77)
    return memory


def taken(memory: PoolMemory, slots: list[int]) -> list[tuple[int, int, int]] | None:
    stores = memory.take_stores(slots)
    if stores is None:
        return None
    return [(stores.array[i].nodeid, stores.array[i].offset, stores.array[i].size) for i in range(stores.count)]


def test_the_size_is_told_by_the_last_byte() -> None:
    """It stays what it is, whatever the kernel has of that page."""
    memory = pool()
    memory.store(16 * PAGE - 1, b"x")
    stores = size_of(78, memory.size, memory.last_byte())
    row = stores.array[0]
    assert (stores.count, stores.slots, row.nodeid, row.offset, row.size) == (1, 0, 78, 16 * PAGE - 1, 1)
    assert ffi.buffer(row.data, 1)[:] == b"x"
    memory.close()


def test_huge_pools_take_no_address_space() -> None:
    memories = [pool(1 << 42) for _ in range(64)]
    kept = []
    for memory in memories:
        memory.store(0, b"x")
        stores = memory.take_stores([])
        assert stores is not None
        assert [stores.array[i].offset for i in range(stores.count)] == [0]
        kept.append(stores)
    for memory in memories:
        memory.close()


def test_every_way_of_writing_is_noticed() -> None:
    memory, source = pool(), pool()
    assert taken(memory, []) is None
    memory.store(PAGE - 1, b"ab")
    assert taken(memory, []) == [(77, 0, 2 * PAGE)]
    memory.copy_from(5 * PAGE, 8, source, 0)
    assert taken(memory, []) == [(77, 5 * PAGE, PAGE)]
    memory.written(3 * PAGE, 8)
    assert taken(memory, []) == [(77, 3 * PAGE, PAGE)]
    memory.mapped(9 * PAGE)
    assert taken(memory, []) is None
    memory.store(0, b"x")
    assert taken(memory, [8 * PAGE + 4]) == [(77, 8 * PAGE, PAGE), (77, 0, PAGE)]
    assert memory.read(0, 2) == b"x\0"
    memory.close()
    source.close()
    assert memory.read(0, 2) == b""


def test_who_has_no_copy_yet_needs_no_store() -> None:
    memory = PoolMemory()
    memory.resize(PAGE)
    memory.store(0, b"x")
    assert taken(memory, [8]) is None
    memory.copy_to(78)
    assert taken(memory, []) is None
    memory.copy_to(79)
    memory.store(0, b"x")
    memory.forget_copies(78)
    assert taken(memory, []) == [(79, 0, PAGE)]
    memory.store(0, b"x")
    memory.forget_copies(79)
    memory.copy_to(80)
    assert taken(memory, []) is None
    memory.close()


def test_storer_stores_and_then_answers() -> None:
    """The notification as FUSE defines it, with the pool's content; the answer after it; then it is done."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    event_fd = os.eventfd(0, os.EFD_NONBLOCK)
    ours.settimeout(240)
    storer = Storer(theirs.fileno(), event_fd)
    memory = pool()
    memory.store(PAGE + 100, b"content")
    assert storer.take(PoolMemory(), []) is None and storer.take(None, []) is None
    storer.announce()
    stores = storer.take(memory, [])
    assert stores is not None and storer.answer(stores, 42, -5, b"out")
    note = ours.recv(1 << 20)
    assert struct.unpack_from("=IiQQQII", note) == (len(note), NOTIFY_STORE, 0, 77, PAGE, PAGE, 0)
    assert len(note) == 40 + PAGE and note[40 + 100 :].startswith(b"content\0")
    assert ours.recv(1 << 20) == struct.pack("=IiQiIII", 35, 0, 42, -5, 0, 0, 0) + b"out"
    limit = time.monotonic() + 240
    while storer.jobs and time.monotonic() < limit:
        time.sleep(0.001)
    assert storer.jobs == 0
    assert os.eventfd_read(event_fd) == 1
    storer.close()
    memory.close()
    os.close(event_fd)
    ours.close()
    theirs.close()
