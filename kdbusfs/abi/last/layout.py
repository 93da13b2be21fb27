"""What a pool holds: messages in one slice, records, and how flags of names are shown (L-83 to L-106)."""

from __future__ import annotations

from struct import Struct
from typing import Final

from librt.strings import BytesWriter, write_i64_le

from ...base.words import U64, align8
from .. import constants as n
from ..message_layout import write_header
from ..values import ZERO_VEC_OFFSET, Body, Notice, Part
from . import constants as c
from .items import make_item
from .layouts import (
    ID_CHANGE,
    INFO,
    ITEM_HEADER_SIZE,
    MEMFD_FD_OFFSET,
    MSG_SIZE,
    NAME_CHANGE,
    VEC_ITEM_SIZE,
)

_MEMFD_ITEM: Final = Struct("<QQQQiI")  # item header and kdbus_memfd
_NULS: Final = bytes(8)
_NO_PLACES: Final[list[int]] = []
KEPT_NAME_FLAGS: Final = n.NAME_ALLOW_REPLACEMENT | n.NAME_QUEUE | n.NAME_ACTIVATOR


def name_flags(flags: int) -> int:
    """Of a name's owner (L-106)."""
    return flags & KEPT_NAME_FLAGS | n.NAME_PRIMARY


def auxgroups(packed: bytes) -> bytes:
    """u32 as u64 (L-20)."""
    wide = bytearray(2 * len(packed))
    for i in range(4):
        wide[i::8] = packed[i::4]
    return bytes(wide)


def record(owner_id: int, flags: int, items: bytes) -> bytes:
    """A struct kdbus_info, with its padding counted (L-45, L-98)."""
    size = align8(INFO.size + len(items))
    return (INFO.pack(size, owner_id, flags) + items).ljust(size, b"\0")


def message_size(body: Body, metadata_size: int) -> int:
    """Bytes of header and items, without what pads the last one (L-88)."""
    size = MSG_SIZE
    last = 0
    if body.notice is not None:
        last = _notice_size(body.notice)
        size += align8(last)
    else:
        for part in body.parts:
            size += _MEMFD_ITEM.size if part.is_memfd else VEC_ITEM_SIZE
        for index, kind in body.extras:
            extra = _extra_size(body, kind)
            size += align8(extra)
            last = extra if index == len(body.parts) else 0
    return size + metadata_size if metadata_size else size - (-last % 8)


def _extra_size(body: Body, kind: int) -> int:
    if kind == n.ITEM_FDS:
        return ITEM_HEADER_SIZE + 4 * body.file_count
    if kind == n.ITEM_BLOOM_FILTER:
        return ITEM_HEADER_SIZE + 8 + body.bloom_size
    assert body.dst_name is not None
    return ITEM_HEADER_SIZE + len(body.dst_name) + 1


def write_message(writer: BytesWriter, body: Body, metadata: bytes) -> list[int]:
    """Header, the items in the sender's order, metadata, padded; then comes the payload (L-83 to L-89).

    Gives back where in the message the numbers of descriptors go: of memfds in their order, then of the FDS item.
    """
    size = message_size(body, len(metadata))
    notice = body.notice
    # Broadcast notifications are signals (L-119).
    flags = n.MSG_SIGNAL if notice is not None and body.dst_id == n.DST_ID_BROADCAST else body.flags
    write_header(writer, body, size, flags)
    places = _NO_PLACES
    if notice is not None:
        _write_notice(writer, notice)
    else:
        places = _write_items(writer, body, align8(size))
    if metadata:
        writer.write(metadata)
    padding = -size % 8
    if padding and metadata:
        writer.write(_NULS[:padding])
    return places


def _write_items(writer: BytesWriter, body: Body, payload_offset: int) -> list[int]:
    """L-84 to L-86, L-90: every descriptor is -1."""
    base = len(writer) - MSG_SIZE
    memfds: list[int] = []
    files: list[int] = []
    at = 0
    parts = body.parts
    for index, kind in body.extras:
        for part in parts[at:index]:
            _write_part(writer, part, base, payload_offset, memfds)
        at = index
        if kind == n.ITEM_FDS:
            first = len(writer) - base + ITEM_HEADER_SIZE
            files += [first + 4 * number for number in range(body.file_count)]
            writer.write(make_item(c.ITEM_FDS, b"\xff" * (4 * body.file_count)))
        elif kind == n.ITEM_BLOOM_FILTER:
            assert body.bloom is not None
            generation, bits = body.bloom
            writer.write(
                make_item(c.ITEM_BLOOM_FILTER, U64.pack(generation) + bits.to_bytes(body.bloom_size, "little"))
            )
        else:
            assert body.dst_name is not None
            writer.write(make_item(c.ITEM_DST_NAME, body.dst_name + b"\0"))
    for part in parts[at:]:
        _write_part(writer, part, base, payload_offset, memfds)
    return memfds + files if memfds or files else _NO_PLACES


def _write_part(writer: BytesWriter, part: Part, base: int, payload_offset: int, memfds: list[int]) -> None:
    if part.is_memfd:
        memfds.append(len(writer) - base + ITEM_HEADER_SIZE + MEMFD_FD_OFFSET)
        writer.write(_MEMFD_ITEM.pack(_MEMFD_ITEM.size, c.ITEM_PAYLOAD_MEMFD, part.start, part.size, -1, 0))
        return
    write_i64_le(writer, VEC_ITEM_SIZE)
    write_i64_le(writer, c.ITEM_PAYLOAD_OFF)
    write_i64_le(writer, part.size)
    write_i64_le(writer, -1 if part.start == ZERO_VEC_OFFSET else payload_offset + part.start)


def _notice_size(notice: Notice) -> int:
    """L-121: exact."""
    kind = notice.kind
    if kind in (n.ITEM_ID_ADD, n.ITEM_ID_REMOVE):
        return ITEM_HEADER_SIZE + ID_CHANGE.size
    if kind in (n.ITEM_REPLY_TIMEOUT, n.ITEM_REPLY_DEAD):
        return ITEM_HEADER_SIZE
    return ITEM_HEADER_SIZE + NAME_CHANGE.size + len(notice.name) + 1


def _write_notice(writer: BytesWriter, notice: Notice) -> None:
    kind = notice.kind
    payload = b""
    if kind == n.ITEM_ID_ADD:
        payload = ID_CHANGE.pack(notice.new_id, notice.new_flags)
    elif kind == n.ITEM_ID_REMOVE:
        payload = ID_CHANGE.pack(notice.old_id, notice.old_flags)
    elif kind not in (n.ITEM_REPLY_TIMEOUT, n.ITEM_REPLY_DEAD):
        old_flags = name_flags(notice.old_flags) if notice.old_id else 0
        new_flags = name_flags(notice.new_flags) if notice.new_id else 0
        payload = NAME_CHANGE.pack(notice.old_id, old_flags, notice.new_id, new_flags) + notice.name + b"\0"
    writer.write(make_item(kind, payload))
