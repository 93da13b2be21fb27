"""FUSE messages that pyfuse3 does not handle as needed: numbers, layouts and amendments.

Pure: an amendment changes the answer in place and keeps its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import Struct, error
from typing import Final

LOOKUP: Final = 1
FORGET: Final = 2
OPEN: Final = 14
INIT: Final = 26
BATCH_FORGET: Final = 42
READDIRPLUS: Final = 44

AUTO_INVAL_DATA: Final = 1 << 12
WRITEBACK_CACHE: Final = 1 << 16
INIT_EXT: Final = 1 << 30
DIRECT_IO_ALLOW_MMAP: Final = 1 << 36
PASSTHROUGH: Final = 1 << 37

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7

MAX_BACKGROUND: Final = 65535
"""Limit of background requests: beyond it the kernel postpones RELEASE, and close() loses its order."""

MAX_WRITE: Final = 128 << 10
"""Bytes in one WRITE. Only small parameter files are written."""

IN_HEADER_SIZE: Final = 40
OUT_HEADER: Final = Struct("<IiQ")  # len error unique
_INIT_IN: Final = Struct("<IIIII")  # major minor max_readahead flags flags2
# major minor max_readahead flags max_background congestion
# max_write time_gran max_pages map_alignment flags2 max_stack_depth
_INIT_OUT: Final = Struct("<IIIIHHIIHHII")
_OPEN_OUT: Final = Struct("<QIi")  # fh open_flags backing_id
_ENTRY_NODEID: Final = Struct("<Q")
_ENTRY_INO_OFFSET: Final = 40
_ENTRY_SIZE: Final = 128
_DIRENT: Final = Struct("<QQII")  # ino off namelen type
_U64: Final = Struct("<Q")
_IN_NODEID_OFFSET: Final = 16
_FORGET_ONE: Final = Struct("<QQ")  # nodeid nlookup
_BATCH_COUNT: Final = Struct("<II")
_NOTIFY_POLL: Final = 1
_NOTIFY_RESEND: Final = 7
_NOTIFY_PRUNE: Final = 9
_PRUNE: Final = Struct("<IIQ")  # count padding spare; then the node ids
_PRUNED_AT_ONCE: Final = 256

OpenAnswer = tuple[int, int]
"""open_flags (FOPEN_*) and backing_id in the answer of an OPEN."""


class ProtocolError(Exception):
    """An answer of pyfuse3 that does not conform to the protocol."""


def _body(reply: memoryview, least: int) -> memoryview:
    body = reply[OUT_HEADER.size :]
    if len(body) < least:
        raise ProtocolError(f"answer of {len(body)} bytes, at least {least} expected")
    return body


def parse_forget(opcode: int, request: memoryview) -> list[tuple[int, int]]:
    """Parse a FORGET or BATCH_FORGET: node ids, each with its number of lookups."""
    try:
        if opcode == FORGET:
            (nodeid,) = _U64.unpack_from(request, _IN_NODEID_OFFSET)
            (lookups,) = _U64.unpack_from(request, IN_HEADER_SIZE)
            return [(nodeid, lookups)]
        count, _ = _BATCH_COUNT.unpack_from(request, IN_HEADER_SIZE)
        start = IN_HEADER_SIZE + _BATCH_COUNT.size
        return [_FORGET_ONE.unpack_from(request, start + i * _FORGET_ONE.size) for i in range(count)]
    except error:
        raise ProtocolError("FORGET cut off") from None


def prune_notices(nodeids: Sequence[int]) -> Iterator[bytes]:
    """Messages that make the kernel (Linux 6.18) forget those of `nodeids` that are unused, in this order."""
    for first in range(0, len(nodeids), _PRUNED_AT_ONCE):
        some = nodeids[first : first + _PRUNED_AT_ONCE]
        body = _PRUNE.pack(len(some), 0, 0) + b"".join(map(_U64.pack, some))
        yield OUT_HEADER.pack(OUT_HEADER.size + len(body), _NOTIFY_PRUNE, 0) + body


def poll_notice(poll_handle: int) -> bytes:
    """The message that wakes who polls a file, by the handle that a FUSE_POLL of it gave; any number may be given."""
    return OUT_HEADER.pack(OUT_HEADER.size + _U64.size, _NOTIFY_POLL, 0) + _U64.pack(poll_handle)


def resend_notice() -> bytes:
    """The message (Linux 6.9) that has the kernel queue again what was read and not answered, as unique | 1 << 63."""
    return OUT_HEADER.pack(OUT_HEADER.size, _NOTIFY_RESEND, 0)


def amend_init(request: memoryview, reply: memoryview, passthrough: bool) -> int:
    """Ask for features that pyfuse3 does not know: passthrough, mmap of files with direct I/O, and a limit on
    background requests that is never reached.  Data in a client's page cache must stay there whatever the attributes
    say.

    Returns which of PASSTHROUGH (if requested) and DIRECT_IO_ALLOW_MMAP the kernel offers and the mount then has.
    """
    body = _body(reply, _INIT_OUT.size)
    try:
        offered_low, offered_high = _INIT_IN.unpack_from(request, IN_HEADER_SIZE)[3:]
    except error:
        # A kernel before 7.36 sends no second word of flags.
        offered_low, offered_high = 0, 0
    offered = offered_low | offered_high << 32 if offered_low & INIT_EXT else offered_low
    granted: int = offered & (DIRECT_IO_ALLOW_MMAP | (PASSTHROUGH if passthrough else 0))
    fields = list(_INIT_OUT.unpack_from(body))
    flags = (fields[3] | fields[10] << 32) & ~(AUTO_INVAL_DATA | WRITEBACK_CACHE)
    if granted:
        flags |= INIT_EXT | granted
    fields[3] = flags & 0xFFFFFFFF
    fields[4] = fields[5] = MAX_BACKGROUND
    fields[6] = min(fields[6], MAX_WRITE)
    fields[10] = flags >> 32
    fields[11] = 1 if granted & PASSTHROUGH else 0
    _INIT_OUT.pack_into(body, 0, *fields)
    return granted


def amend_open(reply: memoryview, answer_of: Callable[[int], OpenAnswer | None]) -> None:
    """Set flags and backing in the answer of an OPEN; without effect if `answer_of` returns None."""
    body = _body(reply, _OPEN_OUT.size)
    fh = _OPEN_OUT.unpack_from(body)[0]
    answer = answer_of(fh)
    if answer is not None:
        _OPEN_OUT.pack_into(body, 0, fh, *answer)


def amend_lookup(reply: memoryview, ino_of: Callable[[int], int]) -> None:
    """Set the inode number that programs see; the node id stays private to the mount."""
    body = _body(reply, _ENTRY_SIZE)
    nodeid = _ENTRY_NODEID.unpack_from(body)[0]
    if nodeid:
        _U64.pack_into(body, _ENTRY_INO_OFFSET, ino_of(nodeid))


def amend_readdirplus(reply: memoryview) -> None:
    """Clear the node ids: the kernel then only lists the names, and creates and counts no inodes."""
    body = reply[OUT_HEADER.size :]
    at = 0
    while at < len(body):
        if len(body) - at < _ENTRY_SIZE + _DIRENT.size:
            raise ProtocolError("directory entry cut off")
        name_length = _DIRENT.unpack_from(body, at + _ENTRY_SIZE)[2]
        _ENTRY_NODEID.pack_into(body, at, 0)
        at += (_ENTRY_SIZE + _DIRENT.size + name_length + 7) & ~7
