"""What every family lays out alike in a pool: the header of a message (LAY-2), and items of metadata (META-1)."""

from __future__ import annotations

from struct import Struct

from librt.strings import BytesWriter, write_i64_le

from ..base.words import U64, signed
from . import constants as n
from .items import make_item
from .layouts import AUDIT, PIDS, TIMESTAMP
from .values import Body, Metadata, OwnedNames


def write_header(writer: BytesWriter, body: Body, size: int, flags: int) -> None:
    """struct kdbus_msg without its items; its fields are those of `layouts.MSG`."""
    write_i64_le(writer, size)
    write_i64_le(writer, flags)
    write_i64_le(writer, body.priority)
    write_i64_le(writer, signed(body.dst_id))
    write_i64_le(writer, body.src_id)
    write_i64_le(writer, signed(body.payload_type))
    write_i64_le(writer, signed(body.cookie))
    write_i64_le(writer, signed(body.cookie_reply))


def process_items(metadata: Metadata, creds: Struct, auxgroups: bytes) -> list[bytes]:
    """The items about the sender's process, each padded, in the order of their numbers.

    creds: layout of the eight ids; auxgroups: the payload of that item.
    """
    valid = metadata.valid
    items: list[bytes] = []
    if valid & n.ATTACH_CREDS and metadata.creds is not None:
        items.append(make_item(n.ITEM_CREDS, creds.pack(*metadata.creds)))
    if valid & n.ATTACH_PIDS and metadata.pids is not None:
        items.append(make_item(n.ITEM_PIDS, PIDS.pack(*metadata.pids)))
    if valid & n.ATTACH_AUXGROUPS:
        items.append(make_item(n.ITEM_AUXGROUPS, auxgroups))
    if valid & n.ATTACH_TID_COMM:
        items.append(make_item(n.ITEM_TID_COMM, metadata.tid_comm + b"\0"))
    if valid & n.ATTACH_PID_COMM:
        items.append(make_item(n.ITEM_PID_COMM, metadata.pid_comm + b"\0"))
    if valid & n.ATTACH_EXE:
        items.append(make_item(n.ITEM_EXE, metadata.exe + b"\0"))
    if valid & n.ATTACH_CMDLINE:
        items.append(make_item(n.ITEM_CMDLINE, metadata.cmdline + b"\0"))
    if valid & n.ATTACH_CGROUP:
        items.append(make_item(n.ITEM_CGROUP, metadata.cgroup + b"\0"))
    if valid & n.ATTACH_CAPS:
        items.append(make_item(n.ITEM_CAPS, metadata.caps))
    if valid & n.ATTACH_SECLABEL:
        items.append(make_item(n.ITEM_SECLABEL, metadata.seclabel + b"\0"))
    if valid & n.ATTACH_AUDIT:
        items.append(make_item(n.ITEM_AUDIT, AUDIT.pack(*metadata.audit)))
    return items


def owned_name_items(names: OwnedNames, family: str, kept_flags: int, added_flags: int) -> bytes:
    """The items of a connection's names, made once for each family, with the kept and the added flags."""
    items = names.laid_out.get(family)
    if items is None:
        items = b"".join(
            [
                make_item(n.ITEM_OWNED_NAME, U64.pack(flags & kept_flags | added_flags) + name + b"\0")
                for flags, name in names.names
            ]
        )
        names.laid_out[family] = items
    return items


def append_connection_items(items: list[bytes], metadata: Metadata) -> None:
    """Append the items behind the names: description and timestamp."""
    if metadata.valid & n.ATTACH_CONN_DESCRIPTION:
        items.append(make_item(n.ITEM_CONN_DESCRIPTION, metadata.description + b"\0"))
    if metadata.valid & n.ATTACH_TIMESTAMP:
        items.append(make_item(n.ITEM_TIMESTAMP, TIMESTAMP.pack(*metadata.timestamp)))
