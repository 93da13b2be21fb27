"""Matches: which broadcasts, signals and notifications a connection wants (MATCH-1 to MATCH-16)."""

from __future__ import annotations

from errno import EDOM, EINVAL, EMFILE, ENOENT
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.errors import KdbusError
from ..abi.items import Item
from ..abi.layouts import ID_CHANGE, NAME_CHANGE, U64
from ..abi.limits import MATCH_MAX
from .match_index import ANYONE, NO_BIT
from .names import is_valid_name

if TYPE_CHECKING:
    from .connection import Connection
    from .message import Message

USER_MESSAGES: Final = 0
"""The class of rules for messages of connections; a notification's class is its item type."""

_MATCH_COST: Final = 1024
_RULE_COST: Final = 512
"""What an entry, and each of its rules, is charged with in bytes, with its place in the index; the payload counts
twice, for the bits of a mask stand there again."""

_NAME_CHANGES: Final = (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE)
CLASSES: Final = (USER_MESSAGES, *_NAME_CHANGES, c.ITEM_ID_ADD, c.ITEM_ID_REMOVE)


class Rule:
    """One item of a match.

    rule_class: USER_MESSAGES or the notification it is for.  What a message must have, at least, to be accepted:
    key, an id or name, or ANYONE; bits, of its bloom filter.
    """

    __slots__ = ("bits", "key", "rule_class")

    def __init__(self, rule_class: int, key: int | bytes = ANYONE, bits: int = 0) -> None:
        self.rule_class = rule_class
        self.key = key
        self.bits = bits

    def accepts(self, message: Message, source: Connection | None) -> bool:
        raise NotImplementedError


class BloomRule(Rule):
    """Every bit of the mask must be in the filter; one mask for each generation (MATCH-5, MATCH-6)."""

    __slots__ = ("_masks",)

    def __init__(self, payload: bytes, bloom_size: int) -> None:
        if not payload or len(payload) % bloom_size:
            raise KdbusError(EDOM, "bloom mask is no multiple of the bus' bloom size")
        self._masks = [
            int.from_bytes(payload[at : at + bloom_size], "little")
            for at in range(0, len(payload), bloom_size)
        ]
        bits = self._masks[0]
        for mask in self._masks[1:]:
            bits &= mask
        super().__init__(USER_MESSAGES, bits=bits)

    def accepts(self, message: Message, source: Connection | None) -> bool:
        if message.bloom is None:
            return False
        generation, bits = message.bloom
        masks = self._masks
        mask = masks[generation] if generation < len(masks) else masks[-1]
        return bits & mask == mask


class IdRule(Rule):
    """The sender's id (MATCH-7)."""

    __slots__ = ("_id",)

    def __init__(self, payload: bytes) -> None:
        self._id: int = U64.unpack(payload)[0]
        super().__init__(USER_MESSAGES, self._id)

    def accepts(self, message: Message, source: Connection | None) -> bool:
        return self._id in (message.src_id, c.MATCH_ID_ANY)


class NameRule(Rule):
    """A name that the sender owns when it sends (MATCH-8)."""

    __slots__ = ("_name",)

    def __init__(self, payload: bytes) -> None:
        if not is_valid_name(payload[:-1]):
            raise KdbusError(EINVAL, "invalid name in a match")
        self._name = payload[:-1]
        super().__init__(USER_MESSAGES, self._name)

    def accepts(self, message: Message, source: Connection | None) -> bool:
        return source is not None and self._name in source.names


class IdChangeRule(Rule):
    """An id that comes or goes (MATCH-9)."""

    __slots__ = ("_id",)

    def __init__(self, kind: int, payload: bytes) -> None:
        self._id: int = ID_CHANGE.unpack(payload)[0]
        super().__init__(kind, self._id)

    def accepts(self, message: Message, source: Connection | None) -> bool:
        changed = message.notify_new_id if self.rule_class == c.ITEM_ID_ADD else message.notify_old_id
        return self._id in (changed, c.MATCH_ID_ANY)


class NameChangeRule(Rule):
    """A name that gets, changes or loses its owner (MATCH-10)."""

    __slots__ = ("_name", "_new_id", "_old_id")

    def __init__(self, kind: int, payload: bytes) -> None:
        self._old_id, _, self._new_id, _ = NAME_CHANGE.unpack_from(payload)
        self._name = payload[NAME_CHANGE.size : -1] if len(payload) > NAME_CHANGE.size else None
        super().__init__(kind, self._rarest_key())

    def _rarest_key(self) -> int | bytes:
        """0 is no key to tell notifications apart by: it is the old id of every NAME_ADD."""
        if self._name is not None:
            return self._name
        return self._new_id if self._new_id not in (0, c.MATCH_ID_ANY) else self._old_id or ANYONE

    def accepts(self, message: Message, source: Connection | None) -> bool:
        return (
            self._old_id in (message.notify_old_id, c.MATCH_ID_ANY)
            and self._new_id in (message.notify_new_id, c.MATCH_ID_ANY)
            and (self._name is None or self._name == message.notify_name)
        )


def _make_rule(kind: int, payload: bytes, bloom_size: int) -> Rule:
    if kind == c.ITEM_BLOOM_MASK:
        return BloomRule(payload, bloom_size)
    if kind == c.ITEM_NAME:
        return NameRule(payload)
    if kind == c.ITEM_ID:
        return IdRule(payload)
    if kind in _NAME_CHANGES:
        return NameChangeRule(kind, payload)
    if kind in (c.ITEM_ID_ADD, c.ITEM_ID_REMOVE):
        return IdChangeRule(kind, payload)
    raise KdbusError(EINVAL, "item that is no match rule")


class Match:
    """An entry: all its rules must accept (MATCH-1); without rules it accepts everything (MATCH-2).

    classes: what it can match at all; key, bits: what a message must have for it, as for `Rule`; bit: the one of
    `bits` that the bus' index has it filed under.
    """

    __slots__ = ("bit", "bits", "classes", "connection", "cookie", "key", "rules", "size")

    def __init__(self, connection: Connection, cookie: int, items: list[Item]) -> None:
        bloom_size = connection.bus.bloom_size
        self.connection = connection
        self.cookie = cookie
        self.rules = [_make_rule(kind, payload, bloom_size) for kind, payload in items]
        self.size = _MATCH_COST + sum(_RULE_COST + 2 * len(payload) for _, payload in items)
        self.classes = self._find_classes()
        self.key: int | bytes = ANYONE
        self.bits = 0
        self.bit = NO_BIT
        for rule in self.rules:
            if self.key == ANYONE:
                self.key = rule.key
            self.bits = self.bits | rule.bits if self.bits else rule.bits  # no copy of the only one

    def accepts(self, message: Message, source: Connection | None) -> bool:
        """Of a message of one of its classes; `source` is None for a notification."""
        return all(rule.accepts(message, source) for rule in self.rules)

    def _find_classes(self) -> tuple[int, ...]:
        """Rules of different classes together match nothing (MATCH-3)."""
        if not self.rules:
            return CLASSES
        first = self.rules[0].rule_class
        return (first,) if all(rule.rule_class == first for rule in self.rules) else ()


class MatchDb:
    """The matches of one connection; the bus has those of all in `Bus.listeners`."""

    __slots__ = ("_connection", "_entries")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._entries: dict[Match, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def accept_signal(self, message: Message, source: Connection) -> bool:
        """Whether any entry accepts what `source` sends to this connection alone (SEND-41)."""
        return any(USER_MESSAGES in entry.classes and entry.accepts(message, source) for entry in self._entries)

    def add(self, cookie: int, items: list[Item], *, replace: bool) -> None:
        """MATCH_ADD.  Raises KdbusError: EINVAL, EDOM (rules), EMFILE (257th entry), ENOBUFS (MATCH-14)."""
        connection = self._connection
        entry = Match(connection, cookie, items)
        if replace:
            self._remove(cookie)
        if len(self._entries) >= MATCH_MAX:
            raise KdbusError(EMFILE, "too many matches")
        connection.user.account.charge(entry.size)
        self._entries[entry] = None
        for rule_class in entry.classes:
            connection.bus.listeners[rule_class].add(entry)

    def remove(self, cookie: int) -> None:
        """MATCH_REMOVE: all entries with that cookie.  Raises KdbusError(ENOENT) when there is none (MATCH-13)."""
        if not self._remove(cookie):
            raise KdbusError(ENOENT, "no match with that cookie")

    def clear(self) -> None:
        """The connection is gone."""
        for entry in list(self._entries):
            self._forget(entry)

    def _remove(self, cookie: int) -> bool:
        found = [entry for entry in self._entries if entry.cookie == cookie]
        for entry in found:
            self._forget(entry)
        return bool(found)

    def _forget(self, entry: Match) -> None:
        del self._entries[entry]
        connection = self._connection
        connection.user.account.uncharge(entry.size)
        for rule_class in entry.classes:
            connection.bus.listeners[rule_class].remove(entry)
