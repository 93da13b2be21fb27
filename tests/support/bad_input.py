"""Errors that any command can have, for every kind of descriptor, with the errno that each must give."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3 import layouts
from kdbusfs.abi.v3.commands import COMMANDS, Command
from kdbusfs.abi.v3.items import make_item
from kdbusfs.client import Connection, encode, make_bus, make_endpoint, raw

POOL = 1 << 18
KERNEL_ADDRESS = 0xFFFF_8880_0000_0000
_UNKNOWN = (0x9599, 0x4008_9550, 0xC028_9530, 0x5401)
UNKNOWN_ITEM = make_item(0x7777, bytes(8))

NAMES = {**{command.number: command.name for command in COMMANDS.values()}, c.CMD_BYEBYE: "BYEBYE"}

_CONNECTED = frozenset(NAMES) - {c.CMD_BUS_MAKE, c.CMD_ENDPOINT_MAKE, c.CMD_HELLO, c.CMD_ENDPOINT_UPDATE}
_ASKING = frozenset((c.CMD_NAME_LIST, c.CMD_CONN_INFO, c.CMD_BUS_CREATOR_INFO))
_RECEIVING = _ASKING | {c.CMD_RECV, c.CMD_FREE}

# For each kind of descriptor: the commands that it takes, and the errno of other commands of connections and of
# unknown ones
# (GEN-1 to GEN-4, FS-22, BUS-1, BYE-4).
KINDS: dict[str, tuple[frozenset[int], int, int]] = {
    "control": (frozenset((c.CMD_BUS_MAKE,)), errno.ENOTTY, errno.ENOTTY),
    "bus owner": (frozenset(), errno.ENOTTY, errno.ENOTTY),
    "fresh": (frozenset((c.CMD_HELLO, c.CMD_ENDPOINT_MAKE)), errno.ENOTTY, errno.ENOTTY),
    "endpoint owner": (frozenset((c.CMD_ENDPOINT_UPDATE,)), errno.ENOTTY, errno.ENOTTY),
    "ordinary": (_CONNECTED, errno.EOPNOTSUPP, errno.ENOTTY),
    "activator": (_RECEIVING, errno.EOPNOTSUPP, errno.ENOTTY),
    "monitor": (_RECEIVING | {c.CMD_CONN_UPDATE}, errno.EOPNOTSUPP, errno.ENOTTY),
    "policy holder": (_ASKING | {c.CMD_CONN_UPDATE}, errno.EOPNOTSUPP, errno.ENOTTY),
    "dead": (frozenset(), errno.ECONNRESET, errno.ECONNRESET),
    "directory": (frozenset(), errno.ENOTTY, errno.ENOTTY),
    "statistics": (frozenset(), errno.ENOTTY, errno.ENOTTY),
    "mask": (frozenset(), errno.ENOTTY, errno.ENOTTY),
}


def refusal(kind: str, number: int) -> int:
    """The errno of a command that this kind of descriptor does not take at all; 0 if it does."""
    taken, connected, unknown = KINDS[kind]
    if number in taken:
        return 0
    if kind == "bus owner" and number == c.CMD_BUS_MAKE:
        return errno.EBADFD
    if kind == "dead" and number == c.CMD_BYEBYE:
        return errno.EALREADY
    return connected if number in _CONNECTED else unknown


class Files:
    """One descriptor of each kind, which is replaced when a command has changed its kind.

    path: of the endpoint that they belong to; without it, the endpoint of a new bus.
    """

    def __init__(self, root: os.PathLike[str], path: str | None = None) -> None:
        self._root = os.fspath(root)
        self._bus = make_bus(root, "bad", bloom=(64, 1))
        self.path = path or self._bus.path
        self._made: dict[str, Any] = {}
        self._count = 0

    def _connect(self, **arguments: Any) -> Connection:
        return Connection(self.path, pool_size=POOL, **arguments)

    def _dead(self) -> Connection:
        connection = self._connect()
        connection.byebye()
        return connection

    def _make(self, kind: str) -> Any:
        self._count += 1
        special = {"activator": c.HELLO_ACTIVATOR, "policy holder": c.HELLO_POLICY_HOLDER, "monitor": c.HELLO_MONITOR}
        if kind in special:
            name = None if kind == "monitor" else f"org.example.Bad{self._count}"
            return self._connect(flags=special[kind], name=name)
        plain = {
            "control": f"{self._root}/control",
            "fresh": self.path,
            "directory": os.path.dirname(self.path),
            "statistics": f"{self._root}/.kdbusfs/stats",
            "mask": f"{self._root}/.kdbusfs/parameters/attach_flags_mask",
        }
        if kind in plain:
            return os.open(plain[kind], os.O_RDONLY)
        others: dict[str, Callable[[], Any]] = {
            "bus owner": lambda: self._bus,
            "endpoint owner": lambda: make_endpoint(self.path, f"bad{self._count}"),
            "ordinary": self._connect,
            "dead": self._dead,
        }
        return others[kind]()

    def __getitem__(self, kind: str) -> Any:
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    def fd(self, kind: str) -> int:
        return encode.fileno(self[kind])

    def renew(self, kind: str) -> None:
        """Replace a descriptor whose kind has changed."""
        made = self._made.pop(kind)
        os.close(made) if isinstance(made, int) else made.close()


class Memory:
    """Addresses of every bad kind; `edge` is the end of readable memory."""

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        zero = os.open("/dev/zero", os.O_RDWR)
        self._view = raw.map_memory(zero, 8 * page, protection=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
        os.close(zero)
        self._address, self._pin = raw.pin(self._view)
        raw._ffi.cdef("int mprotect(void *address, size_t size, int protection);")
        libc: Any = raw._ffi.dlopen(None)

        def protect(at: int, how: int) -> int:
            result: int = libc.mprotect(raw._ffi.cast("void *", at), page, how)
            return result

        self._protect = protect
        self.unmapped = self._address + 4 * page
        self.edge = self.unmapped
        self.read_only = self._address + 6 * page
        assert self._protect(self.unmapped, mmap.PROT_NONE if hasattr(mmap, "PROT_NONE") else 0) == 0

    def before_edge(self, data: bytes) -> int:
        """The address of a copy of `data` that ends at the end of readable memory."""
        at = self.edge - len(data)
        self._view[at - self._address : self.edge - self._address] = data
        return at

    def as_read_only(self, data: bytes) -> int:
        """The address of a copy of `data` in read-only memory."""
        at = self.read_only - self._address
        self._protect(self.read_only, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view[at : at + len(data)] = data
        self._protect(self.read_only, mmap.PROT_READ)
        return self.read_only


def pointer_cases(command: Command, memory: Memory, refused: int) -> Iterator[tuple[str, bytes | int, int, set[int]]]:
    """Name, argument, misalignment, and errnos: GEN-5, GEN-11, and checks that the kernel makes first."""
    good = encode.command(command.number)
    for name, address in (
        ("NULL", 0),
        ("unmapped", memory.unmapped),
        ("kernel's", KERNEL_ADDRESS),
        ("the last page", 2**64 - 4096),
        ("over the edge", memory.before_edge(good) + 8),
    ):
        yield name, address, 0, {errno.EFAULT}
    for misalign in (1, 4):
        yield f"misaligned by {misalign}", good, misalign, {refused or errno.EFAULT}
    # The kernel may also fail to copy out the answer of a refused command.
    read_only = memory.as_read_only(good)
    yield "read-only", read_only, 0, {refused, errno.EFAULT} if refused else {errno.EFAULT}
    longer = encode.command(command.number, items=bytes(16))
    if command.max_size > command.size:
        at = memory.before_edge(longer[: command.size])
        yield "items behind the edge", at, 0, {refused or errno.EFAULT}


def size_cases(command: Command, refused: int) -> Iterator[tuple[str, bytes, int, set[int]]]:
    """GEN-6, GEN-7"""
    rest = encode.command(command.number)[8:] + bytes(command.max_size)
    for size in (0, 8, command.size - 1):
        yield f"size {size}", layouts.U64.pack(size) + rest, 0, {refused or errno.EINVAL}
    for size in (command.max_size + 1, 2**32, 2**63, 2**64 - 1):
        yield f"size {size}", layouts.U64.pack(size) + rest, 0, {refused or errno.EMSGSIZE}


def content_cases(command: Command, refused: int) -> Iterator[tuple[str, bytes, int, set[int]]]:
    """GEN-9, ITEM-1"""
    for bit in (40, 63):
        block = bytearray(encode.command(command.number))
        layouts.U64.pack_into(block, command.flags_offset, 1 << bit)
        yield f"flag {bit}", bytes(block), 0, {refused or errno.EINVAL}
    if command.max_size == command.size:
        return
    for name, items in (
        ("short item", layouts.ITEM_HEADER.pack(15, 1)),
        ("item of size 0", layouts.ITEM_HEADER.pack(0, 1)),
        ("item beyond the end", layouts.ITEM_HEADER.pack(17, 1)),
        ("item that wraps", layouts.ITEM_HEADER.pack(2**64 - 8, 1) + bytes(16)),
        ("half a header", bytes(8)),
        ("second item cut", UNKNOWN_ITEM + layouts.ITEM_HEADER.pack(64, 1)),
    ):
        yield name, encode.command(command.number, items=items), 0, {refused or errno.EINVAL}


def try_everything(files: Files) -> tuple[int, list[str]]:
    """Every case of every command on every kind of descriptor; returns their number, and the wrong answers."""
    memory = Memory()
    wrong = []
    count = 0
    for kind in KINDS:
        for command in COMMANDS.values():
            refused = refusal(kind, command.number)
            general = itertools.chain(size_cases(command, refused), content_cases(command, refused))
            # One at a time: cases about pointers share the memory.
            cases = itertools.chain(general, pointer_cases(command, memory, refused))
            for name, argument, misalign, expected in cases:
                error, _ = raw.raw_ioctl(files.fd(kind), command.number, argument, misalign=misalign)
                count += 1
                if error not in expected:
                    wanted = [errno.errorcode.get(each, each) for each in expected]
                    wrong.append(f"{kind}, {command.name}, {name}: {errno.errorcode.get(error, error)}, not {wanted}")
                if (error == 0 or name == "read-only") and kind != "bus owner":
                    files.renew(kind)
        odd: tuple[tuple[int, int, tuple[bytes | int, ...]], ...] = (
            # It does not look at its argument (BYE-5).
            *[(c.CMD_BYEBYE, refusal(kind, c.CMD_BYEBYE), (0, KERNEL_ADDRESS)) for _ in (0,) if kind != "ordinary"],
            # Unknown, or of another size (FS-22, GEN-1).
            *[(each, errno.ECONNRESET if kind == "dead" else errno.ENOTTY, (bytes(4096),)) for each in _UNKNOWN],
        )
        for number, wanted_error, arguments in odd:
            for argument in arguments:
                error, _ = raw.raw_ioctl(files.fd(kind), number, argument)
                if error != wanted_error:
                    wrong.append(f"{kind}, {number:#x}: {errno.errorcode.get(error, error)}")
    return count, wrong
