"""ioctl(2), mmap(2) and descriptors beneath the client, against the real system."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import select
import termios
from collections.abc import Iterator

import pytest

from kdbusfs.client import Descriptor, raw, sealed_memfd


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_raw_ioctl_gives_back_what_the_kernel_wrote(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"12345")
    assert raw.raw_ioctl(pipe[0], termios.FIONREAD, bytes(4)) == (0, b"\5\0\0\0")
    assert raw.raw_ioctl(pipe[0], termios.FIONREAD, bytes(4), misalign=3) == (0, b"\5\0\0\0")


def test_raw_ioctl_gives_the_errno(pipe: tuple[int, int]) -> None:
    assert raw.raw_ioctl(pipe[0], 0x40209500, b"text") == (errno.ENOTTY, b"text")
    assert raw.raw_ioctl(pipe[0], termios.FIONREAD, 8) == (errno.EFAULT, b"")
    assert raw.raw_ioctl(-1, termios.FIONREAD, b"") == (errno.EBADF, b"")


def test_raw_ioctl_takes_an_address(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"123")
    block = raw.Block(b"\xff" * 8)
    assert raw.raw_ioctl(pipe[0], termios.FIONREAD, block.address) == (0, b"")
    assert bytes(block.view) == b"\3\0\0\0\xff\xff\xff\xff"


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1023, 1 << 16])
def test_blocks_are_aligned_copies(size: int) -> None:
    data = os.urandom(size)
    block = raw.Block(data)
    assert block.address % 8 == 0
    assert (bytes(block.view), bytes(raw.look(block.address, size))) == (data, data)


def test_blocks_have_words() -> None:
    block = raw.Block((7).to_bytes(8, "little") + b"\xff" * 8)
    assert (block.words[0], block.words[1]) == (7, (1 << 64) - 1)


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"array"), memoryview(b"..view")[2:]])
def test_pinned_bytes_are_found_at_their_address(data: raw.Buffer) -> None:
    address, pinned = raw.pin(data)
    assert bytes(raw.look(address, len(data))) == bytes(data)
    del pinned


def test_mappings_share_memory_and_are_read_only() -> None:
    fd = os.memfd_create("pool")
    os.truncate(fd, 8192)
    view = raw.map_memory(fd, 8192)
    os.pwrite(fd, b"hello", 4096)
    os.close(fd)
    assert bytes(view[4096:4101]) == b"hello"
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1


def mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("/memfd:kdbus-unmapped" in line for line in maps)


def test_a_mapping_lives_as_long_as_any_view_of_it() -> None:
    fd = os.memfd_create("kdbus-unmapped")
    os.truncate(fd, 4096)
    view = raw.map_memory(fd, 4096)
    os.pwrite(fd, b"text", 0)
    os.close(fd)
    part = view[:4]
    view.release()
    del view
    gc.collect()
    assert (mappings(), bytes(part)) == (1, b"text")
    part.release()
    del part
    gc.collect()
    assert mappings() == 0


def test_writable_mappings_and_refused_ones() -> None:
    fd = os.memfd_create("pool")
    os.truncate(fd, 4096)
    view = raw.map_memory(fd, 4096, protection=mmap.PROT_READ | mmap.PROT_WRITE)
    view[:2] = b"ok"
    assert os.pread(fd, 2, 0) == b"ok"
    os.close(fd)
    with pytest.raises(OSError, match="mmap") as raised:
        raw.map_memory(fd, 4096)
    assert raised.value.errno == errno.EBADF


def test_poll_waits_no_shorter_than_told(pipe: tuple[int, int]) -> None:
    assert raw.LINUX.poll(pipe[0], select.POLLIN, 0.0005) == 0
    os.write(pipe[1], b"x")
    assert raw.LINUX.poll(pipe[0], select.POLLIN, None) == select.POLLIN


def test_an_interrupted_command_is_repeated() -> None:
    class Interrupted(raw.Linux):
        errors = (errno.EINTR, errno.EINTR, errno.EPERM)
        calls = 0

        def ioctl(self, fd: int, number: int, address: int) -> int:
            self.calls += 1
            return self.errors[self.calls - 1]

    system = Interrupted()
    error, block = raw.issue(system, 3, 1, b"command")
    assert (error, bytes(block.view), system.calls) == (errno.EPERM, b"command", 3)


def test_sealed_memfds_carry_all_seals_and_the_data() -> None:
    data = os.urandom(70000)
    with sealed_memfd(data) as file:
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        assert fcntl.fcntl(file.fileno(), fcntl.F_GET_SEALS) == seals
        assert os.pread(file.fileno(), len(data) + 1, 0) == data
        assert not os.get_inheritable(file.fileno())
        with pytest.raises(PermissionError):
            os.pwrite(file.fileno(), b"x", 0)
    assert not file.installed


def test_descriptors_are_closed_once_and_can_be_taken() -> None:
    fd = os.dup(0)
    with Descriptor(fd) as file:
        assert file.take() == fd
        file.close()
    os.close(fd)
    with pytest.raises(ValueError, match="no descriptor"):
        file.take()
