"""Commands, messages, rules and policies as bytes in the layouts of kdbus.h."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple, Protocol

from ..abi.v3 import constants as c
from ..abi.v3 import layouts
from ..abi.v3.commands import COMMANDS
from ..abi.v3.items import RawItem, make_item
from .raw import Buffer, pin


class HasFileno(Protocol):
    def fileno(self) -> int: ...


FileLike = int | HasFileno


def fileno(file: FileLike) -> int:
    """The number of a descriptor, given as the number or as an object with `fileno()`."""
    return file if isinstance(file, int) else file.fileno()


# Payload of messages.


@dataclass(frozen=True, slots=True)
class Zero:
    """`size` zero bytes of payload, which are not stored."""

    size: int


@dataclass(frozen=True, slots=True)
class Vec:
    """`size` bytes of payload at `address` of this process' memory, readable or not."""

    size: int
    address: int


@dataclass(frozen=True, slots=True)
class Memfd:
    """`size` bytes of payload at offset `start` of a sealed memfd; without `size`, up to its end."""

    file: FileLike
    start: int = 0
    size: int | None = None


Part = Buffer | Zero | Vec | Memfd
Payload = Buffer | Sequence[Part]


def _part_item(part: Part, pins: list[object]) -> bytes:
    if isinstance(part, Zero):
        return make_item(c.ITEM_PAYLOAD_VEC, layouts.VEC.pack(part.size, 0))
    if isinstance(part, Vec):
        return make_item(c.ITEM_PAYLOAD_VEC, layouts.VEC.pack(part.size, part.address))
    if isinstance(part, Memfd):
        fd = fileno(part.file)
        size = os.fstat(fd).st_size - part.start if part.size is None else part.size
        return make_item(c.ITEM_PAYLOAD_MEMFD, layouts.MEMFD.pack(part.start, size, fd, 0))
    size = part.nbytes if isinstance(part, memoryview) else len(part)
    if not size:
        return b""  # a vector of no bytes is not legal (ITEM-4)
    address, pinned = pin(part)
    pins.append(pinned)
    return make_item(c.ITEM_PAYLOAD_VEC, layouts.VEC.pack(size, address))


def payload_items(payload: Payload, pins: list[object]) -> bytes:
    """The items of `payload`, one for each part that is not empty.

    Adds objects to `pins` that the caller has to keep until the message was sent: they pin the payload's memory.
    """
    if isinstance(payload, Buffer):
        return _part_item(payload, pins)
    return b"".join([_part_item(part, pins) for part in payload])


def fds_item(files: Iterable[FileLike]) -> bytes:
    """An item with these descriptors, in order."""
    numbers = [fileno(file) for file in files]
    return make_item(c.ITEM_FDS, b"".join([layouts.I32.pack(number) for number in numbers]))


def bloom_item(filter_bytes: Buffer, generation: int = 0) -> bytes:
    """The item of a signal's bloom filter."""
    return make_item(c.ITEM_BLOOM_FILTER, layouts.U64.pack(generation) + filter_bytes)


def text(value: str | bytes) -> bytes:
    """The bytes of a string with its NUL, as in items."""
    return (os.fsencode(value) if isinstance(value, str) else value) + b"\0"


def string_item(kind: int, value: str | bytes) -> bytes:
    """An item that contains a string."""
    return make_item(kind, text(value))


def u64_item(kind: int, value: int) -> bytes:
    """An item that contains one u64."""
    return make_item(kind, layouts.U64.pack(value))


def more_items(items: Iterable[RawItem]) -> bytes:
    """Items given as (type, payload)."""
    return b"".join([make_item(kind, payload) for kind, payload in items])


def message(
    *,
    dst_id: int,
    items: bytes = b"",
    flags: int = 0,
    priority: int = 0,
    src_id: int = 0,
    payload_type: int = c.PAYLOAD_DBUS,
    cookie: int = 0,
    timeout_ns: int = 0,
) -> bytes:
    """A struct kdbus_msg with its items.  `timeout_ns` is also the member cookie_reply of a reply."""
    size = layouts.MSG_SIZE + len(items)
    return layouts.MSG.pack(size, flags, priority, dst_id, src_id, payload_type, cookie, timeout_ns) + items


_WORDS: Final = {command.size: Struct(f"<{command.size // 8}Q") for command in COMMANDS.values()}


def command(number: int, *words: int, items: bytes = b"") -> bytes:
    """The bytes of a v3 command: its size, `words` as the next members, zeroes for the rest, and its items."""
    layout = _WORDS[COMMANDS[number].size]
    members = [layout.size + len(items), *[word & c.U64_MAX for word in words]]
    return layout.pack(*members, *[0] * (layout.size // 8 - len(members))) + items


# Policy.


class Access(NamedTuple):
    """A right to a name: `kind`: POLICY_ACCESS_USER, _GROUP, _WORLD; `access`: POLICY_SEE, _TALK, _OWN."""

    kind: int
    access: int
    id: int = 0


def user(uid: int, access: int) -> Access:
    """A right of one user."""
    return Access(c.POLICY_ACCESS_USER, access, uid)


def group(gid: int, access: int) -> Access:
    """A right of one group."""
    return Access(c.POLICY_ACCESS_GROUP, access, gid)


def world(access: int) -> Access:
    """A right of all users."""
    return Access(c.POLICY_ACCESS_WORLD, access)


Policy = Mapping[str, Iterable[Access]] | Iterable[tuple[str, Iterable[Access]]]
"""Rights by name: a mapping, or pairs in which a name may occur more than once."""


def access_items(rights: Iterable[Access]) -> bytes:
    """The items of `rights`, which follow the item of their name."""
    pack = layouts.POLICY_ACCESS.pack
    return b"".join(
        [make_item(c.ITEM_POLICY_ACCESS, pack(right.kind, right.access, right.id)) for right in rights]
    )


def policy_items(policy: Policy) -> bytes:
    """The items of a policy: each name followed by the rights to it."""
    pairs = policy.items() if isinstance(policy, Mapping) else policy
    return b"".join([string_item(c.ITEM_NAME, name) + access_items(rights) for name, rights in pairs])


# Rules of matches.


class Rule(NamedTuple):
    """One rule of a match: the item's type and payload."""

    kind: int
    payload: bytes


def bloom_rule(*masks: Buffer) -> Rule:
    """Signals whose filter has all bits of the mask; one mask for each generation."""
    return Rule(c.ITEM_BLOOM_MASK, b"".join([bytes(mask) for mask in masks]))


def sender_rule(sender: int | str = c.MATCH_ID_ANY) -> Rule:
    """Signals of one connection, given by its id or by a name that it owns."""
    if isinstance(sender, str):
        return Rule(c.ITEM_NAME, text(sender))
    return Rule(c.ITEM_ID, layouts.U64.pack(sender))


def _name_rule(kind: int) -> Callable[..., Rule]:
    def make(name: str | None = None, *, old_id: int = c.MATCH_ID_ANY, new_id: int = c.MATCH_ID_ANY) -> Rule:
        payload = layouts.NAME_CHANGE.pack(old_id, 0, new_id, 0)
        return Rule(kind, payload if name is None else payload + text(name))

    return make


def _id_rule(kind: int) -> Callable[..., Rule]:
    def make(id: int = c.MATCH_ID_ANY) -> Rule:
        return Rule(kind, layouts.ID_CHANGE.pack(id, 0))

    return make


name_added_rule: Final = _name_rule(c.ITEM_NAME_ADD)
"""Notifications that a name (by default any) has got its first owner."""
name_removed_rule: Final = _name_rule(c.ITEM_NAME_REMOVE)
"""Notifications that a name has no owner any more."""
name_changed_rule: Final = _name_rule(c.ITEM_NAME_CHANGE)
"""Notifications that a name has changed its owner."""
id_added_rule: Final = _id_rule(c.ITEM_ID_ADD)
"""Notifications that a connection (by default any) has issued HELLO."""
id_removed_rule: Final = _id_rule(c.ITEM_ID_REMOVE)
"""Notifications that a connection has ended."""
