"""Matches: which broadcasts, signals and notifications a connection wants (MATCH-1 to MATCH-16)."""

from __future__ import annotations

from errno import EDOM, EINVAL, EMFILE, ENOENT
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.commands import MATCH_ADD, MATCH_REMOVE
from ..abi.limits import MATCH_MAX, MATCH_MAX_RULES
from ..abi.names import is_valid_name
from ..base.errors import CommandError
from .match_index import ANYONE, NO_BIT

if TYPE_CHECKING:
    from ..abi.values import Item
    from ..base.account import Account
    from ..base.call import Call
    from .bus import Bus
    from .connection import Connection
    from .message import Message

USER_MESSAGES: Final = 0
"""The class of rules for messages of connections; a notification's class is its item type."""

_MATCH_COST: Final = 1024
_RULE_COST: Final = 512
"""Bytes charged for an entry, and for each of its rules, with its place in the index.  The payload counts twice,
because the index has the bits of a mask again."""

_NAME_CHANGES: Final = (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE)
_FOR_MESSAGES: Final = (c.ITEM_BLOOM_MASK, c.ITEM_NAME, c.ITEM_ID, c.ITEM_DST_ID)
CLASSES: Final = (USER_MESSAGES, *_NAME_CHANGES, c.ITEM_ID_ADD, c.ITEM_ID_REMOVE)


class Match:
    """An entry: all its rules must accept (MATCH-1); without rules it accepts everything (MATCH-2).

    The rules are merged when the entry is made, so that evaluating them has a bound: one id, one mask for each
    generation, each name once; for a notification one old id, one new id and one name.
    classes: of messages that it can match; empty when its rules contradict each other; rule_count: checks that remain.
    Necessary conditions, for the index: key, an id or name, or ANYONE; bits, of the bloom filter; bit: the one of
    `bits` under which the index of the bus has it.
    """

    __slots__ = (
        "_dst_id",
        "_masks",
        "_name",
        "_names",
        "_new_id",
        "_old_id",
        "_src_id",
        "bit",
        "bits",
        "classes",
        "connection",
        "cookie",
        "key",
        "rule_count",
        "size",
    )

    def __init__(self, connection: Connection, cookie: int, items: list[Item]) -> None:
        """Raises CommandError: EINVAL, EDOM (the first rule that is wrong, MATCH-14)."""
        self.connection = connection
        self.cookie = cookie
        self.size = _MATCH_COST + sum(_RULE_COST + 2 * item.size for item in items)
        self.bit = NO_BIT
        rules = _Rules()
        seen: set[tuple[int, bytes, tuple[int, ...]]] = set()
        for item in items:
            rule = (item.kind, item.text, item.numbers)
            if rule not in seen:
                seen.add(rule)
                rules.add(item, connection.bus.bloom_size)
        self.classes: tuple[int, ...] = rules.classes()
        self.rule_count = rules.count() if self.classes else 0
        self._src_id = rules.src_id
        self._dst_id = rules.dst_id
        self._masks = _merge(rules.masks)
        self._names = list(rules.names)
        self._old_id = rules.old_id
        self._new_id = rules.new_id
        self._name = rules.name
        self.key = rules.key()
        self.bits = 0
        if self._masks:
            self.bits = self._masks[0]
            for mask in self._masks[1:]:
                self.bits &= mask

    def accepts(self, message: Message, source: Connection | None) -> bool:
        """Whether it accepts a message of one of its classes; `source` is None for a notification."""
        if source is None:
            notice = message.notice
            assert notice is not None
            return (
                self._old_id in (notice.old_id, c.MATCH_ID_ANY)
                and self._new_id in (notice.new_id, c.MATCH_ID_ANY)
                and (self._name is None or self._name == notice.name)
            )
        if self._src_id not in (message.src_id, c.MATCH_ID_ANY):
            return False
        if self._dst_id not in (message.dst_id, c.MATCH_ID_ANY):
            return False
        masks = self._masks
        if masks:
            if message.bloom is None:
                return False
            generation, bits = message.bloom
            mask = masks[generation] if generation < len(masks) else masks[-1]
            if bits & mask != mask:
                return False
        return all(name in source.names for name in self._names)


class _Rules:
    """The rules of a MATCH_ADD, merged item by item."""

    __slots__ = ("_contradict", "_kinds", "dst_id", "masks", "name", "names", "new_id", "old_id", "src_id")

    def __init__(self) -> None:
        self._kinds: set[int] = set()
        self._contradict = False
        self.src_id: int = c.MATCH_ID_ANY
        self.dst_id: int = c.MATCH_ID_ANY
        self.masks: list[list[int]] = []
        self.names: dict[bytes, None] = {}
        self.old_id: int = c.MATCH_ID_ANY
        self.new_id: int = c.MATCH_ID_ANY
        self.name: bytes | None = None

    def add(self, item: Item, bloom_size: int) -> None:
        """Raises CommandError: EINVAL (no rule, or a bad name), EDOM (length of a mask)."""
        kind = item.kind
        if kind == c.ITEM_BLOOM_MASK:
            self._add_mask(item.text, bloom_size)
        elif kind == c.ITEM_NAME:
            if not is_valid_name(item.text):
                raise CommandError(EINVAL, "invalid name in a match")
            self.names[item.text] = None
        elif kind == c.ITEM_ID:
            self.src_id = self._both(self.src_id, item.numbers[0])
        elif kind == c.ITEM_DST_ID:
            self.dst_id = self._both(self.dst_id, item.numbers[0])
        elif kind == c.ITEM_ID_ADD:
            self.new_id = self._both(self.new_id, item.numbers[0])
        elif kind == c.ITEM_ID_REMOVE:
            self.old_id = self._both(self.old_id, item.numbers[0])
        elif kind in _NAME_CHANGES:
            self._add_name_change(item)
        else:
            raise CommandError(EINVAL, "item that is no match rule")
        self._kinds.add(USER_MESSAGES if kind in _FOR_MESSAGES else kind)

    def _add_mask(self, payload: bytes, bloom_size: int) -> None:
        """Every bit of the mask must be in the filter; one mask for each generation (MATCH-5, MATCH-6)."""
        if not payload or len(payload) % bloom_size:
            raise CommandError(EDOM, "bloom mask is no multiple of the bus' bloom size")
        self.masks.append(
            [
                int.from_bytes(payload[at : at + bloom_size], "little")
                for at in range(0, len(payload), bloom_size)
            ]
        )

    def _add_name_change(self, item: Item) -> None:
        """A name that gets, changes or loses its owner (MATCH-10)."""
        old_id, _, new_id, _ = item.numbers
        self.old_id = self._both(self.old_id, old_id)
        self.new_id = self._both(self.new_id, new_id)
        if item.has_text:
            name = item.text
            if self.name is not None and self.name != name:
                self._contradict = True
            self.name = name

    def _both(self, known: int, wanted: int) -> int:
        """Merge two conditions on one id (MATCH-7, MATCH-9)."""
        if wanted == c.MATCH_ID_ANY:
            return known
        if known not in (wanted, c.MATCH_ID_ANY):
            self._contradict = True
        return wanted

    def classes(self) -> tuple[int, ...]:
        """Rules of different classes together match nothing (MATCH-3), like those that contradict each other."""
        if not self._kinds:
            return CLASSES
        return tuple(self._kinds) if len(self._kinds) == 1 and not self._contradict else ()

    def count(self) -> int:
        """The number of checks; those of a notification count as one."""
        if not self._kinds:
            return 0
        if USER_MESSAGES not in self._kinds:
            return 1
        ids = (self.src_id != c.MATCH_ID_ANY) + (self.dst_id != c.MATCH_ID_ANY)
        return ids + bool(self.masks) + len(self.names)

    def key(self) -> int | bytes:
        """The key for the index.  0 does not select anything: it is the old id of every NAME_ADD."""
        if self.src_id != c.MATCH_ID_ANY:
            return self.src_id
        if self.names:
            return next(iter(self.names))
        if self.name is not None:
            return self.name
        return self.new_id if self.new_id not in (0, c.MATCH_ID_ANY) else self.old_id or ANYONE


def _merge(masks: list[list[int]]) -> list[int]:
    """One list of masks that is equivalent to all of them; generations behind the end of a list count as its last.

    In one pass over each: 32 KiB hold thousands of short lists beside a long one.
    """
    if len(masks) <= 1:
        return masks[0] if masks else []
    longest = max(len(each) for each in masks)
    merged = [0] * longest
    ended = [0] * (longest + 1)  # what counts from this generation on
    for each in masks:
        for generation, mask in enumerate(each):
            merged[generation] |= mask
        ended[len(each)] |= each[-1]
    lasting = 0
    for generation in range(longest):
        lasting |= ended[generation]
        merged[generation] |= lasting
    return merged


class MatchDb:
    """The matches of one connection; the bus has those of all in `Bus.listeners`.

    It does not refer to its connection: that would be a reference cycle.
    """

    __slots__ = ("_entries", "_rule_count")

    def __init__(self) -> None:
        self._entries: dict[Match, None] = {}
        self._rule_count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def accept_signal(self, message: Message, source: Connection) -> bool:
        """Whether any entry accepts what `source` sends to this connection alone (SEND-41)."""
        return any(USER_MESSAGES in entry.classes and entry.accepts(message, source) for entry in self._entries)

    def add(self, connection: Connection, cookie: int, items: list[Item], *, replace: bool) -> None:
        """MATCH_ADD by `connection`, which has these matches (MATCH-14).

        Raises CommandError: EINVAL, EDOM (rules), EMFILE (257th entry, 1025th rule), ENOBUFS.
        """
        entry = Match(connection, cookie, items)
        if replace:
            self._remove(cookie)
        if len(self._entries) >= MATCH_MAX:
            raise CommandError(EMFILE, "too many matches")
        if self._rule_count + entry.rule_count > MATCH_MAX_RULES:
            raise CommandError(EMFILE, "too many rules in the matches")
        connection.user.account.charge(entry.size)
        self._entries[entry] = None
        self._rule_count += entry.rule_count
        for rule_class in entry.classes:
            connection.bus.listeners[rule_class].add(entry)

    def remove(self, cookie: int, errno: int = ENOENT) -> None:
        """MATCH_REMOVE: all entries with that cookie.  Raises CommandError(errno) when there is none (MATCH-13)."""
        if not self._remove(cookie):
            raise CommandError(errno, "no match with that cookie")

    def clear(self, bus: Bus) -> None:
        """The connection is gone.  Other commands may run meanwhile; if the bus ends then, `forget` does the rest."""
        for entry in list(self._entries):
            if not bus.active:
                return
            self._forget(entry)
            bus.domain.turn.spend(3)

    def forget(self, account: Account) -> None:
        """The whole bus is gone, with its index."""
        account.uncharge(sum(entry.size for entry in self._entries))
        self._entries.clear()
        self._rule_count = 0

    def _remove(self, cookie: int) -> bool:
        found = [entry for entry in self._entries if entry.cookie == cookie]
        for entry in found:
            self._forget(entry)
        return bool(found)

    def _forget(self, entry: Match) -> None:
        del self._entries[entry]
        self._rule_count -= entry.rule_count
        connection = entry.connection
        connection.user.account.uncharge(entry.size)
        for rule_class in entry.classes:
            connection.bus.listeners[rule_class].remove(entry)


def match_add(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_MATCH_ADD.  Raises CommandError: ECONNRESET, and those of `MatchDb.add`."""
    match = connection.family.decode_match(MATCH_ADD, call)
    connection.bus.domain.turn.spend(len(match.items))
    connection.check_active()
    connection.matches.add(connection, match.cookie, match.items, replace=bool(call.flags & c.MATCH_REPLACE))
    connection.family.done(MATCH_ADD, call)
    return 0


def match_remove(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_MATCH_REMOVE.  Raises CommandError: ECONNRESET, ENOENT (MATCH-13), EBADSLT (L-116)."""
    match = connection.family.decode_match(MATCH_REMOVE, call)
    connection.check_active()
    connection.matches.remove(match.cookie, connection.family.rules.no_match)
    connection.family.done(MATCH_REMOVE, call)
    return 0
