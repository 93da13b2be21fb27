"""POOL: the use of pool memory by a client, and its lifetime."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, IdChange, id_removed_rule, make_bus, make_endpoint, raw
from tests.conftest import DomainMount
from tests.support import features
from tests.support.forked import Fatal, forked

pytestmark = pytest.mark.mount

PAGE = os.sysconf("SC_PAGESIZE")
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    with make_bus(domain_mount.path, "test") as owner:
        yield owner


def map_errno(fd: int, size: int, **how: int) -> int:
    try:
        raw.map_memory(fd, size, **how)
    except OSError as error:
        return error.errno or 0
    return 0


def protect_errno(view: memoryview, protection: int) -> int:
    address, _ = raw.pin(view)
    result = _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), protection)
    return ctypes.get_errno() if result else 0


def ended_by(play: Callable[[], object]) -> int:
    """The signal that ends a child in which `play` runs; 0 if none does."""
    try:
        forked(play)
    except Fatal as fatal:
        return fatal.number
    return 0


def test_pool_1_it_has_exactly_its_size_and_is_zero(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=3 * PAGE) as connection:
        assert len(connection.pool) == 3 * PAGE
        used = 40  # the slice of HELLO, which is free now
        assert not any(connection.pool[used:])
        assert ended_by(lambda: raw.map_memory(connection.fd, 4 * PAGE)[3 * PAGE]) == signal.SIGBUS


def test_pool_1_a_huge_one_takes_no_memory_until_it_is_used(bus: BusOwner, domain_mount: DomainMount) -> None:
    def resident() -> int:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{domain_mount.pid}/status").read_text())[1])  # type: ignore[index]

    before = resident()
    connections = [Connection(bus.path, pool_size=1 << 36) for _ in range(8)]
    for each in connections:
        each.send(each.id, b"x")
    assert resident() < before + 20_000
    for each in connections:
        with each.receive(120) as message:
            assert message.data() == b"x"
        each.close()


def test_pool_2_epm_5_before_hello_and_on_an_owner_there_is_nothing_to_see(bus: BusOwner) -> None:
    fresh = os.open(bus.path, os.O_RDWR)
    with make_endpoint(bus, "custom") as endpoint:
        for fd in (fresh, endpoint.fd):
            assert ended_by(lambda fd=fd: raw.map_memory(fd, PAGE)[0]) == signal.SIGBUS  # type: ignore[misc]
    os.close(fresh)


@pytest.mark.old_kernels
def test_pool_3_nobody_writes_to_it(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=PAGE) as connection:
        both = mmap.PROT_READ | mmap.PROT_WRITE
        assert map_errno(connection.fd, PAGE, protection=both) == errno.EACCES
        view = raw.map_memory(connection.fd, PAGE)
        assert protect_errno(view, both) == errno.EACCES
        assert protect_errno(view, mmap.PROT_READ) == 0
        # docs/deviations.md: a private map is writable, and is a copy.
        private = raw.map_memory(connection.fd, PAGE, protection=both, flags=mmap.MAP_PRIVATE)
        connection.send(connection.id, b"the message")
        with connection.receive(120) as message:
            private[:] = bytes(PAGE)
            assert message.data() == b"the message"
            assert b"the message" in bytes(view)


def test_pool_3_not_through_a_duplicate_or_a_child_or_proc_either(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=PAGE) as connection:
        both = mmap.PROT_READ | mmap.PROT_WRITE
        for fd in (os.dup(connection.fd), connection.fd):
            assert forked(lambda fd=fd: map_errno(fd, PAGE, protection=both)) == errno.EACCES  # type: ignore[misc]
        with pytest.raises(OSError):
            os.close(os.open(f"/proc/self/fd/{connection.fd}", os.O_RDWR))
        with pytest.raises(OSError):
            os.pwrite(connection.fd, b"x", 0)
        with pytest.raises(OSError):
            os.ftruncate(connection.fd, 0)


def test_pool_4_a_longer_map_has_nothing_behind_the_end(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=PAGE) as connection:
        assert map_errno(connection.fd, 2 * PAGE) == 0  # docs/deviations.md
        assert ended_by(lambda: raw.map_memory(connection.fd, 2 * PAGE)[PAGE - 1]) == 0
        assert ended_by(lambda: raw.map_memory(connection.fd, 2 * PAGE)[PAGE]) == signal.SIGBUS
        assert map_errno(connection.fd, PAGE, offset=PAGE) == 0
        assert ended_by(lambda: raw.map_memory(connection.fd, PAGE, offset=PAGE)[0]) == signal.SIGBUS


def test_pool_5_parts_of_it_and_several_maps(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=8 * PAGE) as connection:
        parts = [raw.map_memory(connection.fd, PAGE, offset=number * PAGE) for number in range(8)]
        private = raw.map_memory(connection.fd, 8 * PAGE, flags=mmap.MAP_PRIVATE)
        whole = raw.map_memory(connection.fd, 8 * PAGE)
        content = os.urandom(3 * PAGE)
        connection.send(connection.id, content)
        with connection.receive(120) as message:
            assert message.data() == content
            at = bytes(connection.pool).find(content)
            assert at >= 0
            for view in (whole, private):
                assert bytes(view[at : at + len(content)]) == content
            assert b"".join(bytes(part) for part in parts)[at : at + len(content)] == content
        connection.send(connection.id, b"later writes are seen")
        with connection.receive(120):
            assert b"later writes are seen" in bytes(whole)


def test_pool_6_bye_7_shut_4_maps_outlive_everything(domain_mount: DomainMount, bus: BusOwner) -> None:
    connection = Connection(bus.path, pool_size=PAGE, description="some-thing")
    connection.send(connection.id, b"kept for ever")
    message = connection.receive(120)
    part = message.payload[0]
    assert isinstance(part, memoryview) and bytes(part) == b"kept for ever"
    connection.byebye()
    assert bytes(part) == b"kept for ever"
    again = raw.map_memory(connection.fd, PAGE)
    assert b"kept for ever" in bytes(again), "a dead connection's pool can still be mapped"
    assert forked(lambda: bytes(part)) == b"kept for ever"
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{domain_mount.path}/.conn-" in line]
    assert len(lines) == 2 and all(line.split()[1] == "r--s" for line in lines)
    connection.close()
    bus.close()
    assert bytes(part) == b"kept for ever"
    domain_mount.stop()
    assert bytes(part) == b"kept for ever" and b"kept for ever" in bytes(again)


def test_pool_7_what_was_received_does_not_change_until_it_is_freed(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=16 * PAGE) as connection:
        text = bytearray(b"first" * 100)
        connection.send(connection.id, text)
        text[:] = b"other" * 100
        kept = connection.receive(120)
        assert kept.data() == b"first" * 100
        for _ in range(200):
            connection.send(connection.id, os.urandom(1000))
            with connection.receive(120):
                pass
        assert kept.data() == b"first" * 100
        kept.free()


@pytest.mark.old_kernels
def test_pool_9_pool_10_half_of_what_is_free(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=4 * PAGE) as receiver:
        half = 2 * PAGE
        with pytest.raises(OSError) as caught:
            receiver.send(receiver.id, bytes(range(256)) * (half // 256) + b"x")
        assert caught.value.errno == errno.EXFULL
        receiver.send(receiver.id, b"x" * half)
        with pytest.raises(OSError) as caught:
            receiver.send(receiver.id, b"x" * (half // 2 + 1))
        assert caught.value.errno == errno.EXFULL
        with receiver.receive(120) as message:
            assert message.data() == b"x" * half
        receiver.send(receiver.id, b"x" * half)


def test_close_4_a_map_does_not_keep_the_connection(bus: BusOwner) -> None:
    with Connection(bus.path) as observer:
        connection = Connection(bus.path, pool_size=PAGE)
        observer.add_match(1, id_removed_rule(connection.id))
        view = raw.map_memory(connection.fd, PAGE)
        assert view[0] is not None
        connection.close()
        if not features.has_passthrough():  # docs/deviations.md
            observer.send(connection.id, b"x")
            del view
        with observer.receive(120) as message:
            assert message.notification == IdChange(c.ITEM_ID_REMOVE, connection.id, c.HELLO_ACCEPT_FD)
        with pytest.raises(OSError) as caught:
            observer.send(connection.id, b"x")
        assert caught.value.errno == errno.ENXIO
        if features.has_passthrough():
            assert len(bytes(view)) == PAGE
