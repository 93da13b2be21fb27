"""The layouts of one ABI family: commands, and their results in the pool.

Everywhere else in the client, kinds of items and flags have the values of v3, whatever a connection speaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from struct import Struct
from typing import Final

from ..abi import commands as k
from ..abi.last import commands as last_commands
from ..abi.last import layouts as last_layouts
from ..abi.last.items import NUMBER_OF
from ..abi.v3 import commands as v3_commands
from ..abi.v3 import constants as c
from ..abi.v3 import layouts
from ..abi.v3.items import RawItem
from . import decode
from .raw import Buffer

_U64: Final = layouts.U64


class Dialect:
    """The client's side of one family.

    name: as `Connection` takes it; payload_in_message: whether payload offsets count from the start of the message,
    and not of the pool; tells_lost_with_message: whether one RECV can return a message and a count of lost ones.
    """

    def __init__(
        self,
        name: str,
        commands: Iterable[k.Command],
        members: Mapping[int, Mapping[str, int]],
        *,
        numbers: Mapping[int, int],
        wide: bool,
        payload_in_message: bool,
    ) -> None:
        """members: for each kind of command, the index of each member in the struct as an array of u64; numbers: the
        item kinds of v3 that have other numbers here; wide: whether ids in metadata are u64."""
        self.name = name
        self.payload_in_message = self.tells_lost_with_message = payload_in_message
        self._commands = {command.kind: command for command in commands}
        self._members = members
        self._numbers = numbers
        self._kinds = {number: kind for kind, number in numbers.items()}
        self._creds = last_layouts.CREDS if wide else layouts.CREDS
        self._wide = wide

    def number(self, kind: int) -> int:
        """The ioctl request number of a kind of command."""
        return self._commands[kind].number

    def at(self, kind: int, member: str) -> int:
        """The offset of a member in the struct of a command, in bytes."""
        return 8 * self._members[kind][member]

    def command(self, kind: int, items: bytes = b"", **members: int) -> bytes:
        """The bytes of a command with these members, and with `items`, whose kinds are those of v3."""
        size = self._commands[kind].size
        words = [0] * (size // 8)
        words[0] = size + len(items)
        for name, value in members.items():
            if value:
                words[self._members[kind][name]] = value & c.U64_MAX
        return Struct(f"<{len(words)}Q").pack(*words) + self.to_wire(items)

    def read(self, kind: int, member: str, struct: Buffer) -> int:
        """A member of `struct` after the command."""
        value: int = _U64.unpack_from(struct, self.at(kind, member))[0]
        return value

    def to_wire(self, items: bytes) -> bytes:
        """`items` with the kinds of v3 translated to the numbers of this family."""
        if not self._numbers:
            return items
        translated = bytearray(items)
        at = 0
        while at + layouts.ITEM_HEADER_SIZE <= len(items):
            size, kind = layouts.ITEM_HEADER.unpack_from(items, at)
            _U64.pack_into(translated, at + 8, self._numbers.get(kind, kind))
            at += max(layouts.align8(size), layouts.ITEM_HEADER_SIZE)
        return bytes(translated)

    def items_of(self, buffer: Buffer, start: int, end: int) -> list[RawItem]:
        """Copies of the items in `buffer[start:end]`, translated to v3: its kinds, and 32-bit ids in metadata."""
        items = decode.items_of(buffer, start, end)
        if not self._numbers:
            return items
        return [self._to_v3(self._kinds.get(number, number), payload) for number, payload in items]

    def _to_v3(self, kind: int, payload: bytes) -> RawItem:
        if self._wide and kind == c.ITEM_CREDS:
            return kind, layouts.CREDS.pack(*[value & 0xFFFFFFFF for value in self._creds.unpack(payload)])
        if self._wide and kind == c.ITEM_AUXGROUPS:
            wide = Struct(f"<{len(payload) // 8}Q").unpack(payload)
            return kind, Struct(f"<{len(wide)}I").pack(*[value & 0xFFFFFFFF for value in wide])
        return kind, payload

    def bloom_parameters(self, pool: Buffer, offset: int, size: int) -> tuple[int, int]:
        """Size in bytes and number of hashes, from the slice of HELLO at `offset`."""
        if not self.payload_in_message:
            return decode.bloom_parameters(pool, offset)
        for kind, payload in self.items_of(pool, offset, offset + size):
            if kind == c.ITEM_BLOOM_PARAMETER:
                bloom_size, n_hash = layouts.BLOOM_PARAMETER.unpack(payload)
                return bloom_size, n_hash
        raise ValueError("no bloom parameters")

    def name_list(self, pool: Buffer, offset: int, size: int) -> list[decode.NameInfo]:
        """The records of the list at `offset`.  Raises ValueError if one does not fit."""
        if not self.payload_in_message:
            return decode.name_list(pool, offset)
        return list(self._records(pool, offset, offset + size))

    def _records(self, pool: Buffer, at: int, end: int) -> Iterator[decode.NameInfo]:
        while at < end:
            size, id, conn_flags = layouts.INFO.unpack_from(pool, at)
            if size < layouts.INFO.size or at + size > end:
                raise ValueError(f"record of {size} bytes at {at} does not fit")
            name, flags = None, 0
            for kind, payload in decode.items_of(pool, at + layouts.INFO.size, at + size):
                if kind == c.ITEM_OWNED_NAME:
                    name, flags = decode.owned_name(payload)
            yield decode.NameInfo(id, conn_flags, name, flags)
            at += size

    def info(self, pool: Buffer, offset: int) -> decode.Info:
        """The result of CONN_INFO or BUS_CREATOR_INFO at `offset`."""
        return decode.info(pool, offset, self.items_of)


_MAKE: Final = {"flags": 1}
_NOTHING: Final[Mapping[str, int]] = {}

V3: Final = Dialect(
    "v3",
    v3_commands.COMMANDS.values(),
    {
        k.BUS_MAKE: _MAKE,
        k.ENDPOINT_MAKE: _MAKE,
        k.ENDPOINT_UPDATE: _NOTHING,
        k.HELLO: {
            "flags": 1,
            "attach_send": 4,
            "attach_recv": 5,
            "bus_flags": 6,
            "id": 7,
            "pool_size": 8,
            "offset": 9,
            "items_size": 10,
            "id128": 11,
        },
        k.UPDATE: _NOTHING,
        k.SEND: {"flags": 1, "msg_address": 5, "reply": 6},
        k.RECV: {"flags": 1, "priority": 4, "dropped_msgs": 5, "msg": 6},
        k.FREE: {"offset": 1},
        k.NAME_ACQUIRE: {"flags": 1, "acquired": 1},
        k.NAME_RELEASE: _NOTHING,
        k.LIST: {"flags": 1, "offset": 4, "size": 5},
        k.CONN_INFO: {"attach_flags": 1, "id": 4, "offset": 5},
        k.BUS_CREATOR_INFO: {"attach_flags": 1, "offset": 5},
        k.MATCH_ADD: {"cookie": 1, "flags": 2},
        k.MATCH_REMOVE: {"cookie": 1},
    },
    numbers={},
    wide=False,
    payload_in_message=False,
)
"""kdbus v3."""

LAST: Final = Dialect(
    "last",
    last_commands.COMMANDS.values(),
    {
        k.BUS_MAKE: _MAKE,
        k.ENDPOINT_MAKE: _MAKE,
        k.ENDPOINT_UPDATE: _NOTHING,
        k.HELLO: {
            "flags": 1,
            "attach_send": 3,
            "attach_recv": 4,
            "bus_flags": 5,
            "id": 6,
            "pool_size": 7,
            "offset": 8,
            "items_size": 9,
            "id128": 10,
        },
        k.UPDATE: _NOTHING,
        k.BYEBYE: _NOTHING,
        k.SEND: {"flags": 1, "msg_address": 3, "reply": 4},
        k.RECV: {"flags": 1, "priority": 3, "dropped_msgs": 4, "msg": 5},
        k.FREE: {"offset": 3},
        k.NAME_ACQUIRE: {"flags": 1, "acquired": 2},
        k.NAME_RELEASE: _NOTHING,
        k.LIST: {"flags": 1, "offset": 3, "size": 4},
        k.CONN_INFO: {"id": 3, "attach_flags": 4, "offset": 5},
        k.BUS_CREATOR_INFO: {"attach_flags": 4, "offset": 5},
        k.MATCH_ADD: {"flags": 1, "cookie": 3},
        k.MATCH_REMOVE: {"cookie": 3},
    },
    numbers=NUMBER_OF,
    wide=True,
    payload_in_message=True,
)
"""The last kdbus, of August 2015."""

DIALECTS: Final = {dialect.name: dialect for dialect in (V3, LAST)}
