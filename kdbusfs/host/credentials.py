"""What /proc tells of a thread, as text: parsing only, no system calls."""

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

# Places in /proc/TID/stat, counted from the field behind the command's name, which is number 3 of proc(5).
_ARG_START = 48 - 3
_ARG_END = 49 - 3


class Status:
    """The text of /proc/TID/status; fields are looked up when asked for.

    The command's name, the only field that a client chooses, comes first and has its newlines escaped, so
    that no client can write a field of its own.
    """

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text

    def field(self, name: bytes) -> bytes | None:
        """The value of line `name`, without the white space around it; None where there is no such line."""
        start = self._text.find(b"\n" + name + b":\t")
        if start < 0:
            return None
        start += len(name) + 3
        end = self._text.find(b"\n", start)
        return self._text[start : end if end >= 0 else None].strip()

    def numbers(self, name: bytes) -> tuple[int, ...]:
        """The decimal numbers of line `name`; () where there is no such line."""
        value = self.field(name)
        return tuple(map(int, value.split())) if value else ()

    def ids(self) -> Creds:
        """The eight ids; those that the daemon's user namespace does not map are the overflow id."""
        uid = self.numbers(b"Uid")
        gid = self.numbers(b"Gid")
        return Creds(*uid, *gid)

    def groups(self) -> tuple[int, ...]:
        """The supplementary groups in kernel order (META-8)."""
        text = self.field(b"Groups")
        if not text:
            return ()
        # There may be 65536, with a blank between two.
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
    """Start and end address of the argument area, from /proc/TID/stat; (0, 0) where it is not told."""
    # The name may hold anything, closing parentheses included; none follows it.
    fields = stat[stat.rfind(b")") + 1 :].split()
    if len(fields) <= _ARG_END:
        return 0, 0
    return int(fields[_ARG_START]), int(fields[_ARG_END])


def parse_cgroup(text: bytes) -> bytes | None:
    """The path in the hierarchy that was mounted first, from /proc/TID/cgroup (META-12); None for an empty
    text.

    Hierarchies are numbered as they are mounted; 0 is that of cgroup v2, which counts where there is no
    other.
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
    """`path` as seen from directory `root`, both as the daemon sees them; `path` itself where it is not
    below.
    """
    if root != b"/" and path.startswith(root + b"/"):
        return path[len(root) :]
    return path


def mount_type(mountinfo: bytes, mount: bytes) -> bytes | None:
    """The type of the mount with the decimal id `mount` in the text of a mountinfo file; None where it is not
    there.
    """
    start = 0 if mountinfo.startswith(mount + b" ") else mountinfo.find(b"\n" + mount + b" ") + 1
    if start == 0 and not mountinfo.startswith(mount + b" "):
        return None
    end = mountinfo.find(b"\n", start)
    # Paths have their blanks escaped, so the lone dash is the one before the type.
    tail = mountinfo[start : end if end >= 0 else None].partition(b" - ")[2]
    return tail.split(b" ", 1)[0] or None
