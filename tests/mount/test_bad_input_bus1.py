"""Everything that is wrong, given to every command of bus1, and at random by several processes at once."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Final

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.commands import COMMANDS as KDBUS
from kdbusfs.bus1 import abi
from kdbusfs.client import Connection, make_bus
from kdbusfs.client.bus1 import Peer
from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

PATIENCE: Final = 120.0
KERNEL_ADDRESS: Final = 0xFFFF_8880_0000_0000
SIZES: Final = {number: number >> 16 & 0x3FFF for number in abi.COMMANDS}
WITH_FLAGS: Final = {
    abi.CMD_PEER_QUERY: 0,
    abi.CMD_PEER_RESET: 3,
    abi.CMD_HANDLE_TRANSFER: 0,
    abi.CMD_NODES_DESTROY: 1,
    abi.CMD_SEND: 3,
    abi.CMD_RECV: 7,
}
"""The flags that each knows."""
PROCESSES: Final = 3
SECONDS: Final = float(os.environ.get("BAD_INPUT_SECONDS", "3"))
SEED: Final = int(os.environ.get("BAD_INPUT_SEED", "1"))


@pytest.fixture
def file(domain_mount: DomainMount) -> Iterator[Path]:
    """The file of bus1; nothing is left at the end, and no fault of the daemon's was seen."""
    yield domain_mount.path / "bus1"
    limit = time.monotonic() + PATIENCE
    while domain_mount.stats()["bus1"] != {"peers": 0, "users": 0} or domain_mount.stats()["memory"]:
        assert time.monotonic() < limit, f"peers are left: {domain_mount.stats()}"
        time.sleep(0.05)
    assert domain_mount.stats()["faults"] == 0


def result(fd: int, number: int, argument: bytes | int) -> str:
    """The name of the errno, or "" for success."""
    try:
        fcntl.ioctl(fd, number, argument)
    except OSError as fault:
        return errno.errorcode[fault.errno or 0]
    return ""


def blank(number: int, *words: int) -> bytes:
    return pack(f"<{len(words)}Q", *words).ljust(SIZES[number], b"\0")


@pytest.mark.parametrize("is_active", [True, False])
@pytest.mark.parametrize("number", abi.COMMANDS)
def test_structs_that_cannot_be_read(file: Path, number: int, is_active: bool) -> None:
    """B1-GEN-4"""
    with Peer(file) as peer:
        if not is_active:
            peer.disconnect()
        hole = mmap.mmap(-1, 3 * mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(hole)) + mmap.PAGESIZE
        libc = ctypes.CDLL(None)
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        for bad in (0, 8, KERNEL_ADDRESS, (1 << 64) - 8, address, address - SIZES[number] + 1):
            argument = bad if bad < 1 << 63 else bad - (1 << 64)
            assert libc.ioctl(peer.fileno(), ctypes.c_ulong(number), ctypes.c_void_p(argument)) == -1
            with pytest.raises(OSError) as caught:
                _ioctl_at(peer.fileno(), number, bad)
            assert caught.value.errno == errno.EFAULT, hex(bad)


def _ioctl_at(fd: int, number: int, address: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ioctl(fd, ctypes.c_ulong(number), ctypes.c_void_p(address)) < 0:
        raise OSError(ctypes.get_errno(), "ioctl")


def test_numbers_that_are_none(file: Path, domain_mount: DomainMount) -> None:
    """B1-GEN-1, B1-GEN-2: another size or direction, and those of kdbus; and bus1's on a bus."""
    numbers = {number ^ bit for number in abi.COMMANDS for bit in (1 << 31, 1 << 30, 1 << 16, 1 << 8, 8)}
    numbers |= {*KDBUS, c.CMD_BYEBYE, 0, 0x5401, 0xC0089601}
    with Peer(file) as peer, Peer(file) as gone:
        gone.disconnect()
        for number in numbers - set(abi.COMMANDS):
            room = bytes(max(number >> 16 & 0x3FFF, 8))
            assert result(peer.fileno(), number, room) == "ENOTTY", hex(number)
            assert result(gone.fileno(), number, room) == "ESHUTDOWN", hex(number)
    with make_bus(domain_mount.path, "other") as bus, Connection(bus.path) as connection:
        for number in abi.COMMANDS:
            for fd in (connection.fileno(), bus.fileno()):
                assert result(fd, number, bytes(SIZES[number])) in ("ENOTTY", "EOPNOTSUPP")


@pytest.mark.parametrize("number", WITH_FLAGS)
def test_flags_that_are_none(file: Path, number: int) -> None:
    with Peer(file) as peer:
        for bit in range(64):
            if not WITH_FLAGS[number] >> bit & 1:
                assert result(peer.fileno(), number, blank(number, 1 << bit)) == "EINVAL", bit


def test_numbers_of_things_that_are_too_great(file: Path) -> None:
    """B1-SEND-1, B1-SEND-6, B1-SEND-7, B1-HAND-5: nothing is read, and nothing happens."""
    with Peer(file) as peer:
        fd = peer.fileno()
        great = (1 << 31, 1 << 32, 1 << 61, 1 << 63, (1 << 64) - 1)
        for count in great:
            assert result(fd, abi.CMD_SEND, blank(abi.CMD_SEND, 0, 0, 0, count)) == "EMSGSIZE"
            assert result(fd, abi.CMD_NODES_DESTROY, blank(abi.CMD_NODES_DESTROY, 0, 8, count)) == "EINVAL"
        for count in (65537, *great):
            assert result(fd, abi.CMD_SEND, blank(abi.CMD_SEND, *[0] * 7, count)) == "EDQUOT"
        for count in (1025, *great):
            assert result(fd, abi.CMD_SEND, blank(abi.CMD_SEND, *[0] * 5, count)) == "EMSGSIZE"
        for count in (257, *great):
            assert result(fd, abi.CMD_SEND, blank(abi.CMD_SEND, *[0] * 9, count)) == "EMSGSIZE"
        assert result(fd, abi.CMD_SEND, blank(abi.CMD_SEND, 0, 0, 0, 65537)) == "EINVAL"
        data = ctypes.create_string_buffer(16)
        at = ctypes.addressof(data)
        for size in (1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1):
            vector = ctypes.create_string_buffer(pack("<QQ", at, size), 16)
            fixed = blank(abi.CMD_SEND, *[0] * 4, ctypes.addressof(vector), 1)
            assert result(fd, abi.CMD_SEND, fixed) == "EMSGSIZE", hex(size)
        for reset in (1 << 31, (1 << 32) - 2):
            assert result(fd, abi.CMD_PEER_RESET, pack("<QQIIII", 0, 0, 1, 1, 1, reset)) == "EINVAL"
        assert peer.query() == (0, 16384, 65536, 16 << 20, 4096)
        assert peer.recv() is None


class Player:
    """Gives commands with whatever comes to hand."""

    def __init__(self, file: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.file = file
        self.peers = [Peer(file) for _ in range(3)]
        self.room = mmap.mmap(-1, 4 * mmap.PAGESIZE)
        self.at = ctypes.addressof(ctypes.c_char.from_buffer(self.room))
        self.ids = [8, 16, 0xB, 0x13, 0x1B, 3]

    def word(self) -> int:
        """A number that may be a flag, a count, an id, a descriptor or an address."""
        pick = self.random.random()
        if pick < 0.3:
            return self.random.randrange(4)
        if pick < 0.55:
            return self.random.choice(self.ids)
        if pick < 0.8:
            return self.at + 8 * self.random.randrange(2100)  # sometimes behind its end
        if pick < 0.9:
            return self.random.choice(self.peers).fileno()
        return self.random.choice([1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, (1 << 64) - 2, KERNEL_ADDRESS, 300, 70000])

    def step(self) -> None:
        number = self.random.choice(abi.COMMANDS)
        if number == abi.CMD_PEER_DISCONNECT and self.random.random() < 0.9:
            return
        for _ in range(self.random.randrange(8)):
            offset = 8 * self.random.randrange(2048)
            self.room[offset : offset + 8] = pack("<Q", self.word())
        peer = self.random.choice(self.peers)
        words = [self.word() for _ in range(SIZES[number] // 8)]
        if words[0] > 7 or self.random.random() < 0.5:
            words[0] = 0
        if number == abi.CMD_PEER_RESET and self.random.random() < 0.8:
            words = [words[0] & 3, (1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 1]
        try:
            got = fcntl.ioctl(peer.fileno(), number, pack(f"<{len(words)}Q", *words))
        except OSError as fault:
            if fault.errno == errno.ESHUTDOWN and self.random.random() < 0.2:
                peer.close()
                self.peers[self.peers.index(peer)] = Peer(self.file)
            assert fault.errno != errno.EIO, hex(number)
            return
        if number == abi.CMD_HANDLE_TRANSFER:
            self.ids[self.random.randrange(2, len(self.ids))] = int.from_bytes(got[24:32], "little")


def test_anything_by_several_at_once(file: Path) -> None:
    """EIO would be a fault of the daemon's.  BAD_INPUT_SEED and BAD_INPUT_SECONDS ask for another run."""
    children = []
    for number in range(PROCESSES):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                player = Player(file, SEED * PROCESSES + number)
                limit = time.monotonic() + SECONDS
                while time.monotonic() < limit:
                    player.step()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with Peer(file) as peer:
        peer.send([8], b"still there")
        with peer.receive(PATIENCE) as message:
            assert message.data == b"still there"
