"""PoolMemory: sizes, stores, mappings that grow, and seals."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import signal
import subprocess
import sys
from errno import EINVAL, ENOMEM

import pytest

from kdbusfs.base.errors import CommandError
from kdbusfs.host.memory import PoolMemory
from kdbusfs.native import calls

PAGE = os.sysconf("SC_PAGE_SIZE")


def pool_maps() -> int:
    gc.collect()
    with open("/proc/self/maps") as file:
        return file.read().count("memfd:kdbus-conn")


def errno_of(call: object, *arguments: object) -> int:
    with pytest.raises(CommandError) as info:
        call(*arguments)  # type: ignore[operator]
    return info.value.errno


def test_stores_land_where_they_belong() -> None:
    memory = PoolMemory()
    memory.resize(PAGE * 4)
    memory.store(8, b"bytes")
    memory.store(PAGE - 3, bytearray(b"bytearray"))
    memory.store(PAGE * 4 - 4, memoryview(b"xxview")[2:])
    text = os.pread(memory.fd, PAGE * 4 + 1, 0)
    assert len(text) == PAGE * 4
    assert text[8:13] == b"bytes"
    assert text[PAGE - 3 : PAGE + 6] == b"bytearray"
    assert text[-4:] == b"view"
    assert len(text.replace(b"\0", b"")) == 5 + 9 + 4
    memory.close()


def test_nothing_is_stored_beyond_the_pool() -> None:
    memory = PoolMemory()
    assert errno_of(memory.store, 0, b"x") == ENOMEM
    memory.resize(PAGE)
    assert errno_of(memory.store, PAGE - 1, b"xy") == ENOMEM
    assert errno_of(memory.pin, PAGE - 3) == ENOMEM
    other = PoolMemory()
    other.resize(PAGE)
    assert errno_of(memory.copy_from, 0, PAGE + 1, other, 0) == ENOMEM
    assert errno_of(memory.copy_from, 1, PAGE, other, 0) == ENOMEM
    assert errno_of(memory.copy_from, 0, PAGE, other, 1) == ENOMEM


@pytest.mark.parametrize("size", [PAGE, 16 << 20, 1 << 40, 1 << 62, (1 << 63) - PAGE])
def test_any_size_is_sparse_and_usable(size: int) -> None:
    """POOL-1."""
    memory = PoolMemory()
    memory.resize(size)
    memory.store(0, b"start")
    memory.store(size - 3, b"end")
    pointer, keep = memory.pin(16)
    pointer[0] = -7
    assert os.pread(memory.fd, 4, 16) == (-7).to_bytes(4, "little", signed=True)
    assert os.fstat(memory.fd).st_blocks * 512 <= 4 << 20
    del pointer, keep
    memory.close()


@pytest.mark.parametrize("size", [0, -1, 1 << 63, (1 << 64) - PAGE, 1 << 64])
def test_sizes_that_the_kernel_refuses(size: int) -> None:
    memory = PoolMemory()
    assert errno_of(memory.resize, size) == EINVAL
    memory.resize(PAGE)
    memory.close()


def test_every_size_is_that_of_fresh_memory() -> None:
    """HELLO-21: a HELLO that failed after the pool got its size can be tried again with another one."""
    before = len(os.listdir("/proc/self/fd"))
    memory = PoolMemory()
    memory.resize(PAGE)
    memory.mapped(PAGE)
    memory.store(0, b"former")
    memory.resize(PAGE * 2)
    assert os.pread(memory.fd, PAGE * 3, 0) == bytes(PAGE * 2)
    memory.store(PAGE, b"x")
    memory.mapped(PAGE * 2)
    memory.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_address_space_that_is_not_there_is_enomem() -> None:
    memory = PoolMemory()
    memory.resize(1 << 62)
    assert errno_of(memory.mapped, 1 << 60) == ENOMEM
    memory.store(8, b"still usable")
    memory.mapped(PAGE)
    memory.close()


def test_the_mapping_starts_small_grows_and_keeps_what_is_pinned() -> None:
    before = pool_maps()
    memory = PoolMemory()
    memory.resize(64 << 20)
    assert pool_maps() == before
    first, keep = memory.pin(0)
    assert pool_maps() == before + 1
    second, keep_second = memory.pin(50 << 20)
    assert keep is not keep_second
    assert pool_maps() == before + 2
    first[0] = 11
    second[0] = 22
    assert os.pread(memory.fd, 4, 0)[0] == 11
    assert os.pread(memory.fd, 4, 50 << 20)[0] == 22
    del keep_second
    memory.close()
    memory.close()
    # The job's own thread may store after the pool was closed.
    first[0] = 33
    assert pool_maps() == before + 1
    del keep
    assert pool_maps() == before


def test_pools_exchange_payload() -> None:
    """ACT-4."""
    one, two = PoolMemory(), PoolMemory()
    one.resize(1 << 20)
    two.resize(1 << 20)
    one.store(4000, b"payload" * 1000)
    two.copy_from(100, 7000, one, 4000)
    assert os.pread(two.fd, 7002, 99) == b"\0" + b"payload" * 1000 + b"\0"
    one.close()
    two.close()


def test_a_holder_of_the_memfd_can_neither_cut_nor_grow_nor_seal_it() -> None:
    memory = PoolMemory()
    memory.resize(PAGE * 4)
    memory.mapped(PAGE * 4)
    fd = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDWR)
    for size in (0, PAGE, PAGE * 5):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", PAGE * 4)
    with pytest.raises(PermissionError):
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, 0x10
        )  # F_SEAL_FUTURE_WRITE would keep the daemon from mapping more
    os.close(fd)
    memory.store(PAGE * 4 - 1, b"x")
    memory.close()


def test_maps_of_clients_keep_the_memory() -> None:
    """POOL-6."""
    memory = PoolMemory()
    memory.resize(PAGE)
    memory.store(0, b"kept")
    client = mmap.mmap(memory.fd, PAGE, prot=mmap.PROT_READ)
    memory.close()
    assert client[:4] == b"kept"
    client.close()


def test_closed_pools_leave_no_descriptor_and_no_map() -> None:
    before = len(os.listdir("/proc/self/fd")), pool_maps()
    for _ in range(50):
        memory = PoolMemory()
        memory.resize(1 << 20)
        memory.pin(0)
        memory.close()
    assert (len(os.listdir("/proc/self/fd")), pool_maps()) == before
    assert errno_of(memory.mapped, 4) == ENOMEM


def test_what_is_stored_twice_is_there_once_the_page_is() -> None:
    """The first store to a page goes another way than the next."""
    memory = PoolMemory()
    memory.resize(1 << 20)
    memory.mapped(1)
    for data in (b"first", b"again"):
        memory.store(4094, data)
        memory.store(200_000, data)
        assert os.pread(memory.fd, 5, 4094) == os.pread(memory.fd, 5, 200_000) == data
    memory.store(0, b"start")
    memory.store(0, b"Start")
    memory.store(65_530, b"beyond the mapping")
    memory.store(65_530, b"Beyond")
    assert os.pread(memory.fd, 5, 0) == b"Start"
    assert os.pread(memory.fd, 18, 65_530) == b"Beyond the mapping"
    memory.close()


WITHOUT_ITS_PAGE = """
import ctypes, mmap, os, sys
from errno import ENOMEM
from kdbusfs.native import calls
fd = os.memfd_create("pool")
os.ftruncate(fd, 8192)
pages = mmap.mmap(fd, 8192)
address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
os.ftruncate(fd, 4096)
for _ in range(3):
    assert calls.copy(address, 4094, b"over the edge") == -ENOMEM
    assert calls.copy(address, 0, b"inside") == 0
assert pages[:6] == b"inside"
print("alive", flush=True)
ctypes.memset(address + 4096, 0, 1)
"""


def test_a_page_that_cannot_be_had_is_enomem_and_every_other_bus_error_is_fatal() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_ITS_PAGE], stdout=subprocess.PIPE, timeout=120, check=False)
    assert done.stdout == b"alive\n"
    assert done.returncode == -signal.SIGBUS


def test_calls_check_their_arguments() -> None:
    with pytest.raises(TypeError):
        calls.copy(0, 0)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        calls.copy(0, 0, "text")  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        calls.set_events(0, 1 << 64, 0)
