"""The family of kdbus v3."""

from __future__ import annotations

from errno import EFAULT, EINVAL, EMSGSIZE, ENOTUNIQ
from struct import Struct
from typing import Final

from librt.strings import BytesWriter, read_i64_le, write_i64_le

from ...base.call import Call
from ...base.errors import CommandError
from ...base.words import I64, U64, align8, u64
from .. import commands as k
from .. import constants as n
from ..family import Family
from ..limits import MSG_MAX_SIZE
from ..message_layout import append_connection_items, owned_name_items, process_items, write_header
from ..rules import Rules
from ..values import NO_ITEMS, ZERO_VEC_OFFSET, Body, Hello, Item, MatchRequest, Metadata, Notice, Query, Sent
from . import constants as c
from .commands import (
    BUS_CREATOR_INFO,
    COMMANDS,
    CONN_INFO,
    FREE,
    HELLO,
    MATCH_ADD,
    MATCH_REMOVE,
    NAME_ACQUIRE,
    RECV,
    SEND,
    Command,
)
from .items import decode_items, make_item
from .layouts import (
    BLOOM_PARAMETER,
    CMD_FREE_OFFSET,
    CREDS,
    ID_CHANGE,
    INFO,
    ITEM_HEADER,
    ITEM_HEADER_SIZE,
    MSG_SIZE,
    NAME_CHANGE,
    NAME_INFO,
    VEC_ITEM_SIZE,
)

_NAME_FLAGS: Final = ~(n.NAME_PRIMARY | n.NAME_ACQUIRED)
_OFFERED_MSG_FLAGS: Final = n.MSG_FLAGS_ALL | n.FLAG_KERNEL
_MEMFD_ITEM: Final = Struct("<QQQQiI")  # item header and kdbus_memfd
_MEMFD_ITEM_FD_OFFSET: Final = 32
_NULS: Final = bytes(8)
_NO_PLACES: Final[list[int]] = []

# Members that only one command has, as indices of u64 in its struct.
_KERNEL_MSG_FLAGS: Final = 3  # of SEND; its reply is at 6: offset, size, return flags
_SEND_REPLY: Final = 6
_RECV_PRIORITY_OFFSET: Final = 32
_RECV_DROPPED: Final = 5  # then kdbus_msg_info: offset, size, return flags
_MATCH_COOKIE_OFFSET: Final = 8
_INFO_ID_OFFSET: Final = 32
_INFO_RESULT: Final = 5
_LIST_RESULT: Final = 4
_HELLO_ATTACH_SEND: Final = 4
_HELLO_BUS_FLAGS: Final = 6
_HELLO_ID: Final = 7
_HELLO_OFFSET: Final = 9
_HELLO_ITEMS_SIZE: Final = 10
_HELLO_ID128: Final = 11


class V3(Family):
    """kdbus v3 (GEN, ITEM, LAY)."""

    def __init__(self) -> None:
        self.name = "v3"
        self.rules = Rules()
        self.received_flags_offset = self.replied_flags_offset = 64  # of kdbus_msg_info.return_flags
        self.incomplete_files = n.RECV_RETURN_INCOMPLETE_FDS
        # The low byte is enough to find a command of this family, and the whole number is compared.
        self._by_low_byte: list[Command | None] = [None] * 256
        self._by_kind: list[Command | None] = [None] * k.COUNT
        for command in COMMANDS.values():
            self._by_low_byte[command.number & 0xFF] = command
            self._by_kind[command.kind] = command

    def commands(self) -> list[k.Command]:
        return list(COMMANDS.values())

    def find(self, number: int) -> int:
        command = self._by_low_byte[number & 0xFF]
        if command is not None and command.number == number:
            return command.kind
        return k.BYEBYE if number == c.CMD_BYEBYE else -1

    # Decoding

    def _begin(self, command: Command, call: Call) -> list[Item]:
        """The checks that precede every command: size, flag negotiation, items (GEN-5 to GEN-11)."""
        data = call.data
        length = len(data)
        if call.error or length < command.size:
            _refuse_size(command, call)
        size = u64(data, 0)
        if size != length or size > command.max_size:
            _refuse_size(command, call)
        if command.resets_first:
            call.put(command.return_flags_word, 0)
        call.flags = flags = u64(data, command.flags_offset)
        # Tell which flags are valid, then refuse the others (GEN-9, GEN-11).
        call.put(command.kernel_flags_word, command.offered)
        if flags & ~command.flags:
            raise CommandError(EINVAL, "unknown flags")
        if length == command.size:
            return NO_ITEMS
        return decode_items(data, command.size, length)

    def _of(self, kind: int) -> Command:
        command = self._by_kind[kind]
        assert command is not None
        return command

    def decode(self, kind: int, call: Call) -> list[Item]:
        return self._begin(self._of(kind), call)

    def decode_hello(self, call: Call) -> Hello:
        items = self._begin(HELLO, call)
        data = call.data
        return Hello(u64(data, 32), u64(data, 40), u64(data, 64), items)

    def decode_send(self, call: Call) -> Sent:
        """SEND-1 to SEND-9: of the message what can be judged without the sender."""
        command_items = self._begin(SEND, call)
        if call.message_error or call.message is None:
            error = call.message_error or EFAULT
            raise CommandError(EINVAL if error == EMSGSIZE else error, "message not readable")
        data = call.message
        size = len(data)
        if size < MSG_SIZE or size > MSG_MAX_SIZE or size != u64(data, 0):
            raise _bad_message_size(data)
        flags = u64(data, 8)
        call.put(_KERNEL_MSG_FLAGS, _OFFERED_MSG_FLAGS)
        if flags & ~n.MSG_FLAGS_ALL:
            raise CommandError(EINVAL, "unknown message flags")
        items = decode_items(data, MSG_SIZE, size)
        sent = Sent(
            size,
            flags,
            read_i64_le(data, 16),
            u64(data, 24),
            u64(data, 32),
            u64(data, 40),
            u64(data, 48),
            u64(data, 56),
            items,
            command_items,
        )
        _check_header(sent, sync=bool(call.flags & n.SEND_SYNC_REPLY))
        return sent

    def decode_recv(self, call: Call) -> int:
        self._begin(RECV, call)
        priority: int = I64.unpack_from(call.data, _RECV_PRIORITY_OFFSET)[0]
        return priority

    def decode_free(self, call: Call) -> int:
        if self._begin(FREE, call):
            raise CommandError(EINVAL, "FREE takes no items")
        return u64(call.data, CMD_FREE_OFFSET)

    def decode_query(self, call: Call) -> Query:
        items = self._begin(CONN_INFO, call)
        return Query(u64(call.data, _INFO_ID_OFFSET), call.flags, items)

    def decode_creator_query(self, call: Call) -> int:
        self._begin(BUS_CREATOR_INFO, call)
        return call.flags

    def decode_match(self, kind: int, call: Call) -> MatchRequest:
        items = self._begin(MATCH_ADD if kind == k.MATCH_ADD else MATCH_REMOVE, call)
        return MatchRequest(u64(call.data, _MATCH_COOKIE_OFFSET), items)

    # Results

    def done(self, kind: int, call: Call) -> None:
        command = self._of(kind)
        call.put(command.return_flags_word, 0)
        if command.keeps_offer:
            call.put(command.kernel_flags_word, u64(call.data, 8 * command.kernel_flags_word))

    def hello_done(
        self,
        call: Call,
        *,
        required: int,
        bus_flags: int,
        connection_id: int,
        bus_id: bytes,
        offset: int,
        size: int,
    ) -> None:
        self.done(k.HELLO, call)
        call.put(_HELLO_ATTACH_SEND, required | n.FLAG_KERNEL)
        call.put(_HELLO_BUS_FLAGS, bus_flags)
        call.put(_HELLO_ID, connection_id)
        call.put(_HELLO_OFFSET, offset)
        call.put(_HELLO_ITEMS_SIZE, size)
        call.put(_HELLO_ID128, u64(bus_id, 0))
        call.put(_HELLO_ID128 + 1, u64(bus_id, 8))
        call.tells_offset = True

    def acquired(self, call: Call, flags: int) -> None:
        self.done(k.NAME_ACQUIRE, call)
        call.put(NAME_ACQUIRE.flags_offset // 8, flags & _NAME_FLAGS)

    def received(self, call: Call, lost: int, offset: int, size: int) -> None:
        call.put(_RECV_DROPPED, lost)
        call.put(_RECV_DROPPED + 1, offset)
        call.put(_RECV_DROPPED + 2, size)
        call.put(_RECV_DROPPED + 3, 0)
        call.put(RECV.return_flags_word, 0)
        call.tells_offset = True

    def replied(self, call: Call, offset: int, size: int) -> None:
        call.put(SEND.return_flags_word, 0)
        call.put(_SEND_REPLY, offset)
        call.put(_SEND_REPLY + 1, size)
        call.put(_SEND_REPLY + 2, 0)
        call.tells_offset = True

    def listed(self, kind: int, call: Call, offset: int, size: int) -> None:
        word = _LIST_RESULT if kind == k.LIST else _INFO_RESULT
        call.put(word, offset)
        call.put(word + 1, size)
        self.done(kind, call)
        call.tells_offset = True

    # Layout

    def message_size(self, body: Body, metadata_size: int) -> int:
        size = MSG_SIZE + metadata_size
        notice = body.notice
        if notice is not None:
            return size + _notice_size(notice)
        if body.dst_name is not None:
            size += align8(ITEM_HEADER_SIZE + len(body.dst_name) + 1)
        for part in body.parts:
            size += _MEMFD_ITEM.size if part.is_memfd else VEC_ITEM_SIZE
        if body.file_count:
            size += align8(ITEM_HEADER_SIZE + 4 * body.file_count)
        return size

    def write_message(self, writer: BytesWriter, body: Body, payload_offset: int, metadata: bytes) -> list[int]:
        write_header(writer, body, self.message_size(body, len(metadata)), body.flags)
        places = _NO_PLACES
        if body.notice is not None:
            _write_notice(writer, body.notice)
        else:
            places = _write_items(writer, body, payload_offset)
        if metadata:
            writer.write(metadata)
        return places

    def metadata(self, metadata: Metadata) -> bytes:
        chunks = process_items(metadata, CREDS, metadata.auxgroups)
        names = metadata.names
        if metadata.valid & n.ATTACH_NAMES and names is not None:
            chunks.append(owned_name_items(names, "v3", n.U64_MAX, 0))
        append_connection_items(chunks, metadata)
        return b"".join(chunks)

    def hello_items(self, bloom_size: int, bloom_hashes: int) -> bytes:
        item = make_item(n.ITEM_BLOOM_PARAMETER, BLOOM_PARAMETER.pack(bloom_size, bloom_hashes))
        return U64.pack(8 + len(item)) + item

    def connection_info(self, connection_id: int, flags: int, metadata: bytes) -> bytes:
        return INFO.pack(INFO.size + len(metadata), connection_id, flags) + metadata

    def bus_info(self, bus_id: int, flags: int, name: bytes, metadata: bytes) -> bytes:
        body = make_item(n.ITEM_MAKE_NAME, name + b"\0") + metadata
        return INFO.pack(INFO.size + len(body), bus_id, flags) + body

    def write_record(
        self, writer: BytesWriter, owner_id: int, owner_flags: int, name: bytes | None, name_flags: int
    ) -> None:
        """LIST-2: the size of the record counts the padding, that of the item does not."""
        if name is None:
            writer.write(NAME_INFO.pack(NAME_INFO.size, owner_flags, owner_id))
            return
        size = ITEM_HEADER_SIZE + 8 + len(name) + 1
        padded = align8(size)
        write_i64_le(writer, NAME_INFO.size + padded)
        write_i64_le(writer, owner_flags)
        write_i64_le(writer, owner_id)
        write_i64_le(writer, size)
        write_i64_le(writer, n.ITEM_OWNED_NAME)
        write_i64_le(writer, name_flags)
        writer.write(name)
        writer.write(_NULS[: 1 + padded - size])

    def list_header(self, size: int) -> bytes:
        return U64.pack(8 + size)


def _refuse_size(command: Command, call: Call) -> None:
    """GEN-5 to GEN-7."""
    if call.error:
        raise CommandError(call.error, "command not readable")
    if len(call.data) < 8:
        raise CommandError(EFAULT, "command struct without a size")
    size = u64(call.data, 0)
    if size < command.size:
        raise CommandError(EINVAL, "command struct too small")
    if size > command.max_size:
        raise CommandError(EMSGSIZE, "command struct too big")
    raise CommandError(EFAULT, "command struct cut off")


def _bad_message_size(data: bytes) -> CommandError:
    """What is wrong with a message whose size is not that of `data`, or out of range."""
    if len(data) >= 8 and MSG_SIZE <= u64(data, 0) <= MSG_MAX_SIZE:
        return CommandError(EFAULT, "message cut off")
    return CommandError(EINVAL, "message too small or too big")


def _check_header(sent: Sent, *, sync: bool) -> None:
    """SEND-5 to SEND-7."""
    if sent.payload_type == n.PAYLOAD_KERNEL:
        raise CommandError(EINVAL, "payload type of the kernel")
    if sent.flags & n.MSG_EXPECT_REPLY:
        if sent.timeout_ns == 0 or sent.cookie == 0:
            raise CommandError(EINVAL, "request without timeout or cookie")
        if sent.dst_id == n.DST_ID_BROADCAST:
            raise CommandError(ENOTUNIQ, "request as broadcast")
        if sent.flags & n.MSG_SIGNAL:
            raise CommandError(EINVAL, "request as signal")
    elif sync:
        raise CommandError(EINVAL, "SYNC_REPLY without EXPECT_REPLY")


def _write_items(writer: BytesWriter, body: Body, payload_offset: int) -> list[int]:
    """The items of a sender's message (LAY-3, LAY-7 to LAY-16)."""
    base = len(writer) - MSG_SIZE
    if body.dst_name is not None:
        writer.write(make_item(n.ITEM_DST_NAME, body.dst_name + b"\0"))
    places: list[int] | None = None
    for part in body.parts:
        if part.is_memfd:
            if places is None:
                places = []
            places.append(len(writer) - base + _MEMFD_ITEM_FD_OFFSET)
            writer.write(_MEMFD_ITEM.pack(40, n.ITEM_PAYLOAD_MEMFD, part.start, part.size, -1, 0))
            continue
        write_i64_le(writer, VEC_ITEM_SIZE)
        write_i64_le(writer, n.ITEM_PAYLOAD_OFF)
        write_i64_le(writer, part.size)
        write_i64_le(writer, -1 if part.start == ZERO_VEC_OFFSET else payload_offset + part.start)
    if body.file_count:
        if places is None:
            places = []
        at = len(writer) - base + ITEM_HEADER_SIZE
        writer.write(make_item(n.ITEM_FDS, b"\xff" * (4 * body.file_count)))
        for index in range(body.file_count):
            places.append(at + 4 * index)
    return places if places is not None else _NO_PLACES


def _notice_size(notice: Notice) -> int:
    kind = notice.kind
    if kind in (n.ITEM_ID_ADD, n.ITEM_ID_REMOVE):
        return ITEM_HEADER.size + ID_CHANGE.size
    if kind in (n.ITEM_REPLY_TIMEOUT, n.ITEM_REPLY_DEAD):
        return ITEM_HEADER.size
    return align8(ITEM_HEADER.size + NAME_CHANGE.size + len(notice.name) + 1)


def _write_notice(writer: BytesWriter, notice: Notice) -> None:
    """LAY-18 to LAY-20: the size of a name change counts its padding."""
    kind = notice.kind
    size = _notice_size(notice)
    writer.write(ITEM_HEADER.pack(size, kind))
    if kind == n.ITEM_ID_ADD:
        writer.write(ID_CHANGE.pack(notice.new_id, notice.new_flags))
    elif kind == n.ITEM_ID_REMOVE:
        writer.write(ID_CHANGE.pack(notice.old_id, notice.old_flags))
    elif kind not in (n.ITEM_REPLY_TIMEOUT, n.ITEM_REPLY_DEAD):
        change = NAME_CHANGE.pack(notice.old_id, notice.old_flags, notice.new_id, notice.new_flags)
        writer.write((change + notice.name + b"\0").ljust(size - ITEM_HEADER.size, b"\0"))
