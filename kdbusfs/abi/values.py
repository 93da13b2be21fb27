"""What commands come as from their family, and what the core hands to a family to be laid out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from .constants import U64_MAX

if TYPE_CHECKING:
    from ..base.identity import Creds, Pids

NO_NUMBERS: Final[tuple[int, ...]] = ()

ZERO_VEC_OFFSET: Final = U64_MAX
"""Where the bytes of a vector are that consists of zeros only: nowhere."""


@mypyc_attr(acyclic=True, free_list_len=1)
class Item:
    """One item of a client's list.

    kind: `constants.ITEM_*`, or ITEM_UNKNOWN; size: bytes of its payload; text: its string without the NUL, or the
    bytes of a mask or filter; has_text: whether there is one, where that is optional; numbers: its members, in the
    order of kdbus.h, empty where the payload has a length that the command has to judge.
    """

    __slots__ = ("has_text", "kind", "numbers", "size", "text")

    def __init__(
        self, kind: int, size: int, text: bytes, numbers: tuple[int, ...] = NO_NUMBERS, *, has_text: bool = True
    ) -> None:
        self.kind = kind
        self.size = size
        self.text = text
        self.has_text = has_text
        self.numbers = numbers


NO_ITEMS: Final[list[Item]] = []


class Hello:
    """HELLO as decoded; flags of the call, and the attach flags, are not judged yet."""

    __slots__ = ("attach_recv", "attach_send", "items", "pool_size")

    def __init__(self, attach_send: int, attach_recv: int, pool_size: int, items: list[Item]) -> None:
        self.attach_send = attach_send
        self.attach_recv = attach_recv
        self.pool_size = pool_size
        self.items = items


class Query:
    """CONN_INFO as decoded: the id that is asked for, 0: the name among `items`; attach_flags: what is wanted."""

    __slots__ = ("attach_flags", "id", "items")

    def __init__(self, wanted: int, attach_flags: int, items: list[Item]) -> None:
        self.id = wanted
        self.attach_flags = attach_flags
        self.items = items


class MatchRequest:
    """MATCH_ADD or MATCH_REMOVE as decoded."""

    __slots__ = ("cookie", "items")

    def __init__(self, cookie: int, items: list[Item]) -> None:
        self.cookie = cookie
        self.items = items


@mypyc_attr(acyclic=True, free_list_len=1)
class Sent:
    """A SEND as decoded: the message's header, its items in order, and those of the command.

    timeout_ns is the union with cookie_reply; size: bytes of the whole message.
    """

    __slots__ = (
        "command_items",
        "cookie",
        "dst_id",
        "flags",
        "items",
        "payload_type",
        "priority",
        "size",
        "src_id",
        "timeout_ns",
    )

    def __init__(
        self,
        size: int,
        flags: int,
        priority: int,
        dst_id: int,
        src_id: int,
        payload_type: int,
        cookie: int,
        timeout_ns: int,
        items: list[Item],
        command_items: list[Item],
    ) -> None:
        self.size = size
        self.flags = flags
        self.priority = priority
        self.dst_id = dst_id
        self.src_id = src_id
        self.payload_type = payload_type
        self.cookie = cookie
        self.timeout_ns = timeout_ns
        self.items = items
        self.command_items = command_items


@mypyc_attr(acyclic=True)
class Part:
    """One payload item of a message.  Of a vector: `start` is its offset in the payload slice, or ZERO_VEC_OFFSET.
    Of a memfd: `start` is as sent."""

    __slots__ = ("is_memfd", "size", "start")

    def __init__(self, size: int, start: int, *, is_memfd: bool = False) -> None:
        self.size = size
        self.start = start
        self.is_memfd = is_memfd


@mypyc_attr(acyclic=True)
class Notice:
    """What the bus itself has to say: kind: ITEM_NAME_*, ITEM_ID_* or ITEM_REPLY_*; the ids and flags of before and
    after, 0 where there is none; name: of a name change."""

    __slots__ = ("kind", "name", "new_flags", "new_id", "old_flags", "old_id")

    def __init__(
        self, kind: int, old_id: int = 0, old_flags: int = 0, new_id: int = 0, new_flags: int = 0, name: bytes = b""
    ) -> None:
        self.kind = kind
        self.old_id = old_id
        self.old_flags = old_flags
        self.new_id = new_id
        self.new_flags = new_flags
        self.name = name


@mypyc_attr(acyclic=True)
class Body:
    """A message as a receiver's family lays it out (`Family.write_message`).

    payload_type and cookie_reply as sent; dst_name: None for a message to an id; parts: its payload in the order of
    the sender; file_count: descriptors in its FDS item; bloom: filter as (generation, bits), of bloom_size bytes;
    extras: where those three stand that are there: the number of parts before each, and its kind;
    notice: of the bus' own messages, which have nothing else.
    """

    __slots__ = (
        "bloom",
        "bloom_size",
        "cookie",
        "cookie_reply",
        "dst_id",
        "dst_name",
        "extras",
        "file_count",
        "flags",
        "notice",
        "parts",
        "payload_type",
        "priority",
        "src_id",
    )

    def __init__(
        self,
        flags: int = 0,
        priority: int = 0,
        dst_id: int = 0,
        src_id: int = 0,
        cookie: int = 0,
        cookie_reply: int = 0,
        payload_type: int = 0,
    ) -> None:
        self.flags = flags
        self.priority = priority
        self.dst_id = dst_id
        self.src_id = src_id
        self.cookie = cookie
        self.cookie_reply = cookie_reply
        self.payload_type = payload_type
        self.dst_name: bytes | None = None
        self.parts: list[Part] = NO_PARTS
        self.file_count = 0
        self.bloom: tuple[int, int] | None = None
        self.bloom_size = 0
        self.extras: list[tuple[int, int]] = NO_EXTRAS
        self.notice: Notice | None = None


NO_PARTS: Final[list[Part]] = []
NO_EXTRAS: Final[list[tuple[int, int]]] = []


class OwnedNames:
    """The names that a connection owned at one moment, in order of acquisition, with their flags.

    Immutable, and shared by everything that was sent at that moment; `laid_out` has their items by family, made once.
    """

    __slots__ = ("laid_out", "names")

    def __init__(self, names: list[tuple[int, bytes]]) -> None:
        self.names = names
        self.laid_out: dict[str, bytes] = {}


class Metadata:
    """The metadata that one reader gets with a message, ids as that reader sees them.

    valid: which kinds there are, as `constants.ATTACH_*`; caps: the last capability, then four sets, as u32;
    auxgroups: of u32;
    timestamp: sequence number, CLOCK_MONOTONIC and CLOCK_REALTIME in ns.
    """

    __slots__ = (
        "audit",
        "auxgroups",
        "caps",
        "cgroup",
        "cmdline",
        "creds",
        "description",
        "exe",
        "names",
        "pid_comm",
        "pids",
        "seclabel",
        "tid_comm",
        "timestamp",
        "valid",
    )

    def __init__(self, valid: int) -> None:
        self.valid = valid
        self.creds: Creds | None = None
        self.pids: Pids | None = None
        self.auxgroups = b""
        self.tid_comm = b""
        self.pid_comm = b""
        self.exe = b""
        self.cmdline = b""
        self.cgroup = b""
        self.caps = b""
        self.seclabel = b""
        self.audit: tuple[int, int] = (0, 0)
        self.names: OwnedNames | None = None
        self.description = b""
        self.timestamp: tuple[int, int, int] = (0, 0, 0)
