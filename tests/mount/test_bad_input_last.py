"""Every kind of bad input for every command of the last ABI on every kind of descriptor, of either family."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from struct import pack
from typing import TYPE_CHECKING, Any

import pytest

from kdbusfs.abi import commands as k
from kdbusfs.abi.last import constants as last
from kdbusfs.abi.last.commands import COMMANDS, MAX_SIZE, Command
from kdbusfs.abi.last.items import make_item
from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, encode, make_bus, make_endpoint, raw
from tests.support.actors import Actors, Link
from tests.support.bad_input import KERNEL_ADDRESS, POOL, Files, Memory

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

SETUP = (k.BUS_MAKE, k.ENDPOINT_MAKE, k.HELLO)
ANY = (k.LIST, k.CONN_INFO, k.BUS_CREATOR_INFO, k.UPDATE)
RECEIVING = (*ANY, k.RECV, k.FREE)
EVERYTHING = tuple(command.kind for command in COMMANDS.values())
CONNECTED = tuple(kind for kind in EVERYTHING if kind not in (*SETUP, k.ENDPOINT_UPDATE))

# For each kind of descriptor: the commands that it takes, and the errno of all others (L-3 to L-7).
KINDS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "control": ((k.BUS_MAKE,), errno.EBADFD, errno.EBADFD),
    "bus owner": ((), errno.EBADFD, errno.EBADFD),
    "fresh": ((k.HELLO, k.ENDPOINT_MAKE), errno.EBADFD, errno.EBADFD),
    "endpoint owner": ((k.ENDPOINT_UPDATE,), errno.EBADFD, errno.EBADFD),
    "ordinary": (CONNECTED, 0, errno.EBADFD),
    "activator": (RECEIVING, errno.EOPNOTSUPP, errno.EBADFD),
    "monitor": (RECEIVING, errno.EOPNOTSUPP, errno.EBADFD),
    "policy holder": (ANY, errno.EOPNOTSUPP, errno.EBADFD),
    "dead": ((), errno.ECONNRESET, errno.EBADFD),
}
V3_KINDS = ("bus owner", "endpoint owner", "ordinary", "activator", "monitor", "policy holder", "dead", "mask")


class LastFiles:
    """One descriptor of each kind that speaks the last ABI; replaced when a command has changed its kind."""

    def __init__(self, root: os.PathLike[str]) -> None:
        self._root = os.fspath(root)
        self._bus = make_bus(root, "bad-last", family="last")
        self._made: dict[str, Any] = {}
        self._count = 0

    def _make(self, kind: str) -> Any:
        self._count += 1
        special = {"activator": c.HELLO_ACTIVATOR, "policy holder": c.HELLO_POLICY_HOLDER, "monitor": c.HELLO_MONITOR}
        if kind in special:
            name = None if kind == "monitor" else f"org.example.Bad{self._count}"
            return Connection(self._bus.path, pool_size=POOL, family="last", flags=special[kind], name=name)
        if kind in ("control", "fresh"):
            return os.open(f"{self._root}/control" if kind == "control" else self._bus.path, os.O_RDONLY)
        if kind == "bus owner":
            return self._bus
        if kind == "endpoint owner":
            return make_endpoint(self._bus.path, f"bad{self._count}", family="last")
        connection = Connection(self._bus.path, pool_size=POOL, family="last")
        if kind == "dead":
            connection.byebye()
        return connection

    def fd(self, kind: str) -> int:
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return encode.fileno(self._made[kind])

    def renew(self, kind: str) -> None:
        made = self._made.pop(kind)
        os.close(made) if isinstance(made, int) else made.close()


def refusal(kind: str, command: Command) -> int:
    """The errno of a command that this kind of descriptor does not take at all; 0 if it does."""
    taken, connected, other = KINDS[kind]
    if command.kind in taken:
        return 0
    if kind == "dead" and command.kind == k.ENDPOINT_UPDATE:
        return errno.ECONNRESET
    return connected if command.kind in CONNECTED else other


def blank(command: Command, size: int, flags: int = 0) -> bytes:
    return pack("<QQ", size, flags).ljust(command.size, b"\0")


def cases(command: Command, memory: Memory, refused: int) -> Iterator[tuple[str, bytes | int, int, set[int]]]:
    """Name, argument, misalignment, errnos: L-10 to L-12, L-18."""
    copied = bool(command.number >> 30 & 1)

    def judged(wanted: int) -> set[int]:
        return {refused or wanted}

    for size in (0, 8, command.size - 1):
        yield f"size {size}", blank(command, size), 0, judged(errno.EINVAL)
    for size in (MAX_SIZE + 1, 2**32, 2**63, 2**64 - 1):
        yield f"size {size}", blank(command, size), 0, judged(errno.EMSGSIZE)
    for bit in (20, 62):
        yield f"flag {bit}", blank(command, command.size, 1 << bit), 0, judged(errno.EINVAL)
    for name, items in (
        ("short item", pack("<QQ", 15, 1)),
        ("item of size 0", pack("<QQ", 0, 1)),
        ("item beyond the end", pack("<QQ", 17, 1)),
        ("item that wraps", pack("<QQ", 2**64 - 8, 1) + bytes(16)),
        ("half a header", bytes(8)),
        ("unknown item", make_item(0x7777, bytes(8))),
        ("item of messages", make_item(last.ITEM_PAYLOAD_OFF, bytes(16))),
        ("two negotiations", 2 * make_item(last.ITEM_NEGOTIATE, bytes(8))),
        ("odd negotiation", make_item(last.ITEM_NEGOTIATE, bytes(9))),
    ):
        yield name, blank(command, command.size + len(items)) + items, 0, judged(errno.EINVAL)
    good = blank(command, command.size)
    # The kernel copies before the daemon sees the command.
    for name, address in (("NULL", 0), ("unmapped", memory.unmapped), ("kernel's", KERNEL_ADDRESS)):
        yield name, address, 0, {errno.EFAULT} if copied else {refused, errno.EFAULT} - {0}
    # The struct without its first word: its flags are read as its size.
    short = {refused or errno.EINVAL}
    yield "over the edge", memory.before_edge(good) + 8, 0, {errno.EFAULT} if copied else short
    for misalign in (1, 4):
        yield f"misaligned by {misalign}", good, misalign, judged(errno.EFAULT)
    long = blank(command, command.size + 16)
    yield "items behind the edge", memory.before_edge(long), 0, judged(errno.EFAULT)


def try_everything(root: os.PathLike[str]) -> tuple[int, list[str]]:
    memory, files, others = Memory(), LastFiles(root), Files(root)
    wrong = []
    count = 0

    def attempt(what: str, fd: int, number: int, argument: bytes | int, misalign: int, expected: set[int]) -> int:
        nonlocal count
        count += 1
        error, _ = raw.raw_ioctl(fd, number, argument, misalign=misalign)
        if error not in expected:
            wanted = [errno.errorcode.get(each, each) for each in expected]
            wrong.append(f"{what}: {errno.errorcode.get(error, error)}, not {wanted}")
        return error

    for kind, command in itertools.product(KINDS, COMMANDS.values()):
        for name, argument, misalign, expected in cases(command, memory, refusal(kind, command)):
            what = f"{kind}, {command.name}, {name}"
            if attempt(what, files.fd(kind), command.number, argument, misalign, expected) == 0:
                files.renew(kind)
    for kind, command in itertools.product(V3_KINDS, COMMANDS.values()):
        for flags in (0, last.FLAG_NEGOTIATE):
            argument = blank(command, command.size, flags)
            # On these files liveness is checked first (GEN-3).
            expected = {errno.ECONNRESET if kind == "dead" else errno.ENOTTY}
            attempt(f"v3 {kind}, {command.name}", others.fd(kind), command.number, argument, 0, expected)
    return count, wrong


def test_every_command_on_every_kind_of_descriptor(domain_mount: DomainMount, actors: Actors, healthy: None) -> None:
    """L-3 to L-7, L-10, L-12, L-15, L-18"""

    def play(link: Link) -> tuple[int, list[str]]:
        return try_everything(domain_mount.path)

    count, wrong = actors(play).result(240)
    assert not wrong, "\n".join(wrong)
    assert count > 3000


def test_negotiation_takes_nothing_and_changes_nothing(domain_mount: DomainMount, actors: Actors) -> None:
    """L-14: each descriptor that takes a command returns its valid flags, and does not change"""

    def play(link: Link) -> list[str]:
        files = LastFiles(domain_mount.path)
        found = []
        for kind, command in itertools.product(KINDS, COMMANDS.values()):
            if refusal(kind, command):
                continue
            for _ in range(2):
                error, left = raw.raw_ioctl(
                    files.fd(kind), command.number, blank(command, command.size, last.FLAG_NEGOTIATE)
                )
                flags = int.from_bytes(left[8:16], "little")
                if error or flags != command.flags & ~last.FLAG_NEGOTIATE:
                    found.append(f"{kind}, {command.name}: {error}, flags {flags:#x}")
        return found

    assert actors(play).result(240) == []
