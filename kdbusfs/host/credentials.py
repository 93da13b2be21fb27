"""Parsers for texts of /proc/TID; no system calls."""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from kdbusfs.base.identity import NO_ID, Creds
from kdbusfs.native._native import ffi, lib

CAP_IPC_OWNER = 15

_new: Final[Any] = ffi.new_allocator(should_clear_after_alloc=False)
_buffer: Final[Any] = ffi.buffer
_CAPS = Struct("<I8I")
_CAP_SETS = (b"CapInh", b"CapPrm", b"CapEff", b"CapBnd")  # in the order of the item (META-13)

# Indices into /proc/TID/stat from the field behind comm, which is field 3 in proc(5).
_ARG_START = 48 - 3
_ARG_END = 49 - 3


class Status:
    """The text of /proc/TID/status; fields are parsed on demand.

    A client controls only the name, which comes first and has its newlines escaped, so it cannot forge a field.
    """

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text

    def field(self, name: bytes) -> bytes | None:
        """The value of line `name`, stripped; None if there is no such line."""
        start = self._text.find(b"\n" + name + b":\t")
        if start < 0:
            return None
        start += len(name) + 3
        end = self._text.find(b"\n", start)
        return self._text[start : end if end >= 0 else None].strip()

    def numbers(self, name: bytes) -> tuple[int, ...]:
        """The decimal numbers of line `name`; () if there is no such line."""
        value = self.field(name)
        return tuple(map(int, value.split())) if value else ()

    def ids(self) -> Creds:
        """The eight ids; an id that is not mapped in the daemon's user namespace is the overflow id."""
        uid = self.numbers(b"Uid")
        gid = self.numbers(b"Gid")
        return Creds(*uid, *gid)

    def groups(self) -> tuple[int, ...]:
        """The supplementary groups in kernel order (META-8)."""
        text = self.field(b"Groups")
        if not text:
            return ()
        # Up to 65536, separated by blanks.
        limit = text.count(b" ") + 1
        ids = _new("uint32_t[]", limit)
        count: int = lib.kfs_ids_parse(text, len(text), ids, limit)
        return Struct(f"={count}I").unpack(_buffer(ids, 4 * count))

    def seccomp(self) -> int:
        """The seccomp mode: 0 none, 1 strict, 2 filter."""
        return int(self.field(b"Seccomp") or b"0")

    def caps(self, last_cap: int) -> bytes:
        """`struct kdbus_caps` with its four sets, bits above `last_cap` cleared (META-13)."""
        mask = (1 << (last_cap + 1)) - 1
        words: list[int] = []
        for name in _CAP_SETS:
            value = int(self.field(name) or b"0", 16) & mask
            words += (value & 0xFFFFFFFF, value >> 32)
        return _CAPS.pack(last_cap, *words)


def parse_argument_area(stat: bytes) -> tuple[int, int]:
    """Start and end address of the argument area, from /proc/TID/stat; (0, 0) if it is hidden."""
    # The name may contain parentheses; the last one ends it.
    fields = stat[stat.rfind(b")") + 1 :].split()
    if len(fields) <= _ARG_END:
        return 0, 0
    return int(fields[_ARG_START]), int(fields[_ARG_END])


def parse_cgroup(text: bytes) -> bytes | None:
    """The path in the first hierarchy, from /proc/TID/cgroup (META-12); None for an empty text.

    The lowest number was mounted first; 0 is cgroup v2, used if there is no other.
    """
    best: tuple[int, bytes] | None = None
    for line in text.split(b"\n"):
        number, _, rest = line.partition(b":")
        if not number.isdigit():
            continue
        key = int(number) or NO_ID
        if best is None or key < best[0]:
            best = key, rest.partition(b":")[2]
    return best[1] if best else None


def strip_root(path: bytes, root: bytes) -> bytes:
    """`path` relative to root directory `root`; `path` itself if it is not below it."""
    if root != b"/" and path.startswith(root + b"/"):
        return path[len(root) :]
    return path
