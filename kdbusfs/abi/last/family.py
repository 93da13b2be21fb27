"""The family of the last kdbus (August 2015)."""

from __future__ import annotations

from errno import EADDRINUSE, EBADFD, EBADSLT, EFAULT, EINVAL, EMSGSIZE, EXFULL
from typing import Final

from librt.strings import BytesWriter, read_i64_le

from ...base.call import Call
from ...base.errors import CommandError, OnlyNegotiated
from ...base.words import I64, U64, u64
from .. import commands as k
from .. import constants as n
from ..family import Family
from ..message_layout import append_connection_items, owned_name_items, process_items
from ..rules import Rules
from ..values import NO_ITEMS, Body, Hello, Item, MatchRequest, Metadata, Query, Sent
from . import commands as table
from . import constants as c
from . import layouts
from .items import Accepted, decode_items, make_item
from .layout import (
    KEPT_NAME_FLAGS,
    auxgroups,
    message_size,
    record,
    write_message,
)

_FLAGS: Final = layouts.CMD_FLAGS_OFFSET // 8
_RETURN_FLAGS: Final = layouts.CMD_RETURN_FLAGS_OFFSET // 8
_MSG_FLAGS_OFFSET: Final = 8
_MSG_INFO_FLAGS: Final = 16
_MSG_FLAGS: Final = n.MSG_FLAGS_ALL | c.FLAG_NEGOTIATE


def _rules() -> Rules:
    rules = Rules()
    rules.wrong_state = EBADFD  # L-3
    rules.bad_pool_size = EINVAL  # L-33
    rules.no_tracker = EBADSLT  # L-66
    rules.no_match = EBADSLT  # L-116
    rules.pool_full = EXFULL  # L-78
    rules.not_an_owner = EADDRINUSE  # L-113
    rules.basic_metadata = (  # L-103
        n.ATTACH_TIMESTAMP
        | n.ATTACH_CREDS
        | n.ATTACH_PIDS
        | n.ATTACH_AUXGROUPS
        | n.ATTACH_NAMES
        | n.ATTACH_CONN_DESCRIPTION
    )
    rules.control_polls_ready = False  # L-9
    rules.acquires_again = True  # L-109, L-110
    rules.activators_update = True  # L-48
    rules.agrees_to_all = True  # L-26
    rules.checks_both = True  # L-43
    rules.checks_byebye = True  # L-5, L-41
    rules.drops_signals = True  # L-65
    rules.empty_at_end = True  # L-92
    rules.endpoint_ends = True  # L-6
    rules.examines_late = True  # L-50
    rules.foreign_caps = True  # L-105
    rules.hears_itself = True  # L-64
    rules.hello_items_first = True  # L-34
    rules.ids_everywhere = True  # L-122
    rules.lists_entries = True  # L-99
    rules.lost_with_message = True  # L-94
    rules.name_check_late = True  # L-108
    rules.one_slice = True  # L-83
    rules.opener_counts = True  # L-36, L-37, L-46, L-101
    rules.poll_tells_lost = True  # L-9
    rules.queues_replaced_first = True  # L-111
    rules.refuses_late = True  # L-68
    rules.releases_any = True  # L-113
    rules.resumes_any = True  # L-67
    rules.unknown_first = True  # L-4
    return rules


class Last(Family):
    """The last kdbus (L-1 to L-128)."""

    def __init__(self) -> None:
        self.name = "last"
        self.rules = _rules()
        self.received_flags_offset = layouts.CMD_RECV_MSG_OFFSET + _MSG_INFO_FLAGS
        self.replied_flags_offset = layouts.CMD_SEND_REPLY_OFFSET + _MSG_INFO_FLAGS
        self.incomplete_files = c.RECV_RETURN_INCOMPLETE_FDS
        self._by_low_byte: list[table.Command | None] = [None] * 256
        self._by_kind: list[table.Command | None] = [None] * k.COUNT
        for command in table.COMMANDS.values():
            self._by_low_byte[command.number & 0xFF] = command
            self._by_kind[command.kind] = command

    def commands(self) -> list[k.Command]:
        return list(table.COMMANDS.values())

    def find(self, number: int) -> int:
        command = self._by_low_byte[number & 0xFF]
        return command.kind if command is not None and command.number == number else -1

    # Decoding

    def _of(self, kind: int) -> table.Command:
        command = self._by_kind[kind]
        assert command is not None
        return command

    def _begin(self, command: table.Command, call: Call) -> list[Item]:
        """What precedes every command: size, flags, items, negotiation, items that are missing (L-10 to L-15).

        An item that asks which types there are is answered, and then passed over (L-17).

        Raises CommandError, and OnlyNegotiated where there is nothing else to do.
        """
        data = call.data
        length = len(data)
        if call.error or length < command.size:
            _refuse_size(call, command.size)
        size = u64(data, 0)
        if size != length or size > command.max_size:
            _refuse_size(call, command.size)
        flags = u64(data, layouts.CMD_FLAGS_OFFSET)
        call.flags = flags & ~c.FLAG_NEGOTIATE
        if flags == call.flags:
            # Now, when nothing has happened yet that would have to be undone where it cannot be written (L-11).
            call.put(_RETURN_FLAGS, 0)
            return self._look(command, call, flags)
        try:
            self._look(command, call, flags)
        except CommandError:
            call.put(_RETURN_FLAGS, 0)
            raise
        call.put(_FLAGS, command.flags & ~c.FLAG_NEGOTIATE)
        if command.kind == k.SEND:
            return NO_ITEMS
        raise OnlyNegotiated

    def _look(self, command: table.Command, call: Call, flags: int) -> list[Item]:
        data = call.data
        if flags & ~command.flags:
            raise CommandError(EINVAL, "unknown flags")
        items = _decode(call, data, command.size, call.address, command.accepted)
        if items:
            items = [item for item in items if item.kind != n.ITEM_NEGOTIATE]
        if not flags & c.FLAG_NEGOTIATE:
            for kind in command.mandatory:
                if not any(item.kind == kind for item in items):
                    raise CommandError(EINVAL, "item is missing")
        return items

    def decode(self, kind: int, call: Call) -> list[Item]:
        return self._begin(self._of(kind), call)

    def decode_hello(self, call: Call) -> Hello:
        items = self._begin(table.HELLO, call)
        data = call.data
        return Hello(
            u64(data, layouts.CMD_HELLO_ATTACH_SEND_OFFSET),
            u64(data, layouts.CMD_HELLO_ATTACH_RECV_OFFSET),
            u64(data, layouts.CMD_HELLO_POOL_SIZE_OFFSET),
            items,
        )

    def decode_send(self, call: Call) -> Sent:
        """L-10, L-16, L-49, L-52.  What the header says is judged later (L-50)."""
        command_items = self._begin(table.SEND, call)
        asks = u64(call.data, layouts.CMD_FLAGS_OFFSET) & c.FLAG_NEGOTIATE
        address = u64(call.data, layouts.CMD_SEND_MSG_ADDRESS_OFFSET)
        if asks and not address:
            call.put(_RETURN_FLAGS, 0)
            raise OnlyNegotiated
        try:
            sent, message_asks = _decode_message(call, address, command_items)
            if message_asks and not asks:
                raise CommandError(EINVAL, "message that negotiates in a command that does not")
        except CommandError:
            call.put(_RETURN_FLAGS, 0)
            raise
        if asks:
            call.put(_RETURN_FLAGS, 0)
            raise OnlyNegotiated
        return sent

    def decode_recv(self, call: Call) -> int:
        self._begin(table.RECV, call)
        if call.flags & n.RECV_DROP and call.flags & n.RECV_USE_PRIORITY:
            raise CommandError(EINVAL, "DROP by priority")  # L-95
        priority: int = I64.unpack_from(call.data, layouts.CMD_RECV_PRIORITY_OFFSET)[0]
        return priority

    def decode_free(self, call: Call) -> int:
        self._begin(table.FREE, call)
        return u64(call.data, layouts.CMD_FREE_OFFSET)

    def decode_query(self, call: Call) -> Query:
        items = self._begin(table.CONN_INFO, call)
        data = call.data
        wanted = _attach_flags(u64(data, layouts.CMD_INFO_ATTACH_FLAGS_OFFSET))
        return Query(u64(data, layouts.CMD_INFO_ID_OFFSET), wanted, items)

    def decode_creator_query(self, call: Call) -> int:
        self._begin(table.BUS_CREATOR_INFO, call)
        return _attach_flags(u64(call.data, layouts.CMD_INFO_ATTACH_FLAGS_OFFSET))

    def decode_match(self, kind: int, call: Call) -> MatchRequest:
        items = self._begin(self._of(kind), call)
        return MatchRequest(u64(call.data, layouts.CMD_MATCH_COOKIE_OFFSET), items)

    # Results.  The return flags are 0 since the command was decoded.

    def done(self, kind: int, call: Call) -> None:
        pass

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
        """L-38."""
        call.put(layouts.CMD_HELLO_BUS_FLAGS_OFFSET // 8, bus_flags)
        call.put(layouts.CMD_HELLO_ID_OFFSET // 8, connection_id)
        call.put(layouts.CMD_HELLO_OFFSET // 8, offset)
        call.put(layouts.CMD_HELLO_ITEMS_SIZE_OFFSET // 8, size)
        call.put(layouts.CMD_HELLO_ID128_OFFSET // 8, u64(bus_id, 0))
        call.put(layouts.CMD_HELLO_ID128_OFFSET // 8 + 1, u64(bus_id, 8))
        call.tells_offset = True

    def acquired(self, call: Call, flags: int) -> None:
        """L-107."""
        call.put(_RETURN_FLAGS, flags & (_SHOWN_NAME_FLAGS | n.NAME_ACQUIRED))

    def received(self, call: Call, lost: int, offset: int, size: int) -> None:
        """L-94, L-96."""
        call.put(_RETURN_FLAGS, c.RECV_RETURN_DROPPED_MSGS if lost else 0)
        call.put_all(layouts.CMD_RECV_DROPPED_OFFSET // 8, (lost, offset, size, 0))
        call.tells_offset = True

    def replied(self, call: Call, offset: int, size: int) -> None:
        """L-72."""
        call.put_all(layouts.CMD_SEND_REPLY_OFFSET // 8, (offset, size, 0))
        call.tells_offset = True

    def listed(self, kind: int, call: Call, offset: int, size: int) -> None:
        at = layouts.CMD_LIST_OFFSET if kind == k.LIST else layouts.CMD_INFO_OFFSET
        call.put_all(at // 8, (offset, size))
        call.tells_offset = True

    # Layout

    def message_size(self, body: Body, metadata_size: int) -> int:
        return message_size(body, metadata_size)

    def write_message(self, writer: BytesWriter, body: Body, payload_offset: int, metadata: bytes) -> list[int]:
        """L-83 to L-90: the payload goes right behind what is written here."""
        return write_message(writer, body, metadata)

    def metadata(self, metadata: Metadata) -> bytes:
        """L-102; without the padding behind the last item (L-88)."""
        valid = metadata.valid
        groups = auxgroups(metadata.auxgroups) if valid & n.ATTACH_AUXGROUPS else b""
        chunks = process_items(metadata, layouts.CREDS, groups)
        last_size = u64(chunks[-1], 0) if chunks else 0
        names = metadata.names
        if valid & n.ATTACH_NAMES and names is not None and names.names:
            chunks.append(owned_name_items(names, self.name, KEPT_NAME_FLAGS, n.NAME_PRIMARY))
            last_size = len(names.names[-1][1]) + 1
        count = len(chunks)
        append_connection_items(chunks, metadata)
        if len(chunks) > count:
            last_size = u64(chunks[-1], 0)
        whole = b"".join(chunks)
        return whole[: len(whole) - -last_size % 8]

    def hello_items(self, bloom_size: int, bloom_hashes: int) -> bytes:
        """L-39: no size before it."""
        return make_item(c.ITEM_BLOOM_PARAMETER, layouts.BLOOM_PARAMETER.pack(bloom_size, bloom_hashes))

    def connection_info(self, connection_id: int, flags: int, metadata: bytes) -> bytes:
        return record(connection_id, flags, metadata)

    def bus_info(self, bus_id: int, flags: int, name: bytes, metadata: bytes) -> bytes:
        return record(bus_id, flags, make_item(c.ITEM_MAKE_NAME, name + b"\0") + metadata)

    def write_record(
        self, writer: BytesWriter, owner_id: int, owner_flags: int, name: bytes | None, flags: int
    ) -> None:
        """L-98."""
        item = b"" if name is None else make_item(n.ITEM_OWNED_NAME, U64.pack(flags & _SHOWN_NAME_FLAGS) + name + b"\0")
        writer.write(record(owner_id, owner_flags, item))

    def list_header(self, size: int) -> bytes:
        return b""


_SHOWN_NAME_FLAGS: Final = n.NAME_ALLOW_REPLACEMENT | n.NAME_QUEUE | n.NAME_IN_QUEUE | n.NAME_ACTIVATOR | n.NAME_PRIMARY


def _attach_flags(wanted: int) -> int:
    """L-42."""
    if wanted == n.ATTACH_ANY:
        return n.ATTACH_ALL
    if wanted & ~n.ATTACH_ALL:
        raise CommandError(EINVAL, "unknown attach flags")
    return wanted


def _refuse_size(call: Call, least: int) -> None:
    """L-10."""
    if call.error:
        raise CommandError(call.error, "command not readable")
    raise _bad_size(call.data, least)


def _bad_size(data: bytes, least: int) -> CommandError:
    """What is wrong with a struct whose size is not that of `data`, or out of range."""
    if len(data) < 8:
        return CommandError(EFAULT, "struct without a size")
    size = u64(data, 0)
    if size < least:
        return CommandError(EINVAL, "struct too small")
    if size > table.MAX_SIZE:
        return CommandError(EMSGSIZE, "struct too big")
    return CommandError(EFAULT, "struct cut off")


def _decode(call: Call, data: bytes, start: int, address: int, accepted: Accepted) -> list[Item]:
    """The items of a struct at `address` of the client.  One that asks which types there are gets its answer (L-15)."""
    length = len(data)
    if length == start:
        return NO_ITEMS
    found = decode_items(data, start, length, accepted)
    at, end = found.asked_at, found.asked_end
    if at:
        asked = data[at:end]
        answer = b"".join(
            [asked[i : i + 8] if u64(asked, i) in accepted.kinds else bytes(8) for i in range(0, len(asked), 8)]
        )
        if answer != asked:
            call.caller.write(address + at, answer)
    return found.items


def _decode_message(call: Call, address: int, command_items: list[Item]) -> tuple[Sent, bool]:
    """The message at `address`, and whether it asks which flags there are."""
    data = call.message
    if call.message_error or data is None:
        raise CommandError(call.message_error or EFAULT, "message not readable")
    size = len(data)
    if size < layouts.MSG_SIZE or size > table.MAX_SIZE or size != u64(data, 0):
        raise _bad_size(data, layouts.MSG_SIZE)
    flags = u64(data, _MSG_FLAGS_OFFSET)
    if flags & ~_MSG_FLAGS:
        raise CommandError(EINVAL, "unknown message flags")
    items = _decode(call, data, layouts.MSG_SIZE, address, table.MESSAGE)
    asks = bool(flags & c.FLAG_NEGOTIATE)
    if asks:
        call.caller.write(address + _MSG_FLAGS_OFFSET, U64.pack(n.MSG_FLAGS_ALL))
    sent = Sent(
        size,
        flags & n.MSG_FLAGS_ALL,
        read_i64_le(data, 16),
        u64(data, 24),
        u64(data, 32),
        u64(data, 40),
        u64(data, 48),
        u64(data, 56),
        items,
        command_items,
    )
    return sent, asks
