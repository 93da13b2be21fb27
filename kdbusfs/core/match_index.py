"""The index of all matches of a bus: finds those that may accept a message without evaluating the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..abi import constants as c

if TYPE_CHECKING:
    from ..base.ports import Turn
    from .connection import Connection
    from .match import Match
    from .message import Message

ANYONE: Final = c.MATCH_ID_ANY
"""Sentinel: the key of entries that require neither an id nor a name."""
NO_BIT: Final = -1
_BITS_COMPARED: Final = 64
"""How many bits of a mask are compared for the rarest: a mask may have 32768, and MATCH_ADD has to stay cheap."""
_BITS_AT_ONCE: Final = 256
_RULES_IN_A_UNIT: Final = 32


def _lowest_bits(value: int, limit: int) -> list[int]:
    """The numbers of the set bits, the lowest first, at most `limit` of them.

    In a string of digits they are found in one pass; integers of this length would be copied for each bit.
    """
    digits = bin(value)
    last = len(digits) - 1
    found: list[int] = []
    at = digits.rfind("1")
    while at >= 0 and len(found) < limit:
        found.append(last - at)
        at = digits.rfind("1", 0, at)
    return found


class Group:
    """Entries with the same key and bit, by connection: when one has accepted, its others are not evaluated."""

    __slots__ = ("members", "size")

    def __init__(self) -> None:
        self.members: dict[Connection, list[Match]] = {}
        self.size = 0

    def add(self, entry: Match) -> None:
        entries = self.members.get(entry.connection)
        if entries is None:
            self.members[entry.connection] = [entry]
        else:
            entries.append(entry)
        self.size += 1

    def remove(self, entry: Match) -> None:
        entries = self.members[entry.connection]
        entries.remove(entry)
        if not entries:
            del self.members[entry.connection]
        self.size -= 1


class _Bucket:
    """The entries of one key.  One that needs bits of the filter is filed under one of them, the rarest here."""

    __slots__ = ("_by_bit", "_filed_bits", "_maskless")

    def __init__(self) -> None:
        self._maskless = Group()
        self._by_bit: dict[int, Group] = {}
        self._filed_bits = 0

    def groups(self) -> list[Group]:
        return [self._maskless, *self._by_bit.values()]

    def is_empty(self) -> bool:
        return not self._maskless.size and not self._filed_bits

    def add(self, entry: Match) -> None:
        bit = entry.bit = self._rarest(entry.bits)
        if bit == NO_BIT:
            self._maskless.add(entry)
            return
        if bit not in self._by_bit:
            self._by_bit[bit] = Group()
            self._filed_bits |= 1 << bit
        self._by_bit[bit].add(entry)

    def remove(self, entry: Match) -> None:
        bit = entry.bit
        if bit == NO_BIT:
            self._maskless.remove(entry)
            return
        group = self._by_bit[bit]
        group.remove(entry)
        if not group.size:
            del self._by_bit[bit]
            self._filed_bits ^= 1 << bit

    def _rarest(self, bits: int) -> int:
        if not bits:
            return NO_BIT
        unused = bits & ~self._filed_bits
        if unused:
            return _lowest_bits(unused, 1)[0]
        rarest, fewest = NO_BIT, 0
        for bit in _lowest_bits(bits, _BITS_COMPARED):
            count = self._by_bit[bit].size
            if rarest == NO_BIT or count < fewest:
                rarest, fewest = bit, count
        return rarest

    def find(self, message: Message, turn: Turn) -> list[Group]:
        """The groups of entries that may accept the message.  Other commands may run meanwhile."""
        found: list[Group] = []
        if self._maskless.size:
            found.append(self._maskless)
        if self._filed_bits and message.bloom is not None:
            hits = message.bloom[1] & self._filed_bits
            while hits:
                some = _lowest_bits(hits, _BITS_AT_ONCE)
                for bit in some:
                    group = self._by_bit.get(bit)
                    if group is not None:
                        found.append(group)
                done = some[-1] + 1
                hits = (hits >> done) << done
                turn.spend(1 + len(some) // 4)
        return found


class MatchIndex:
    """The entries of one class, of all connections of a bus.

    Each has one place, by a necessary condition: an id, a name, or a bit of the bloom filter.
    """

    __slots__ = ("_buckets", "_count", "_turn")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._buckets: dict[int | bytes, _Bucket] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Match) -> None:
        bucket = self._buckets.get(entry.key)
        if bucket is None:
            bucket = self._buckets[entry.key] = _Bucket()
        bucket.add(entry)
        self._count += 1

    def remove(self, entry: Match) -> None:
        bucket = self._buckets[entry.key]
        bucket.remove(entry)
        if bucket.is_empty():
            del self._buckets[entry.key]
        self._count -= 1

    def forget(self) -> None:
        """All of them: the bus is gone.  Other commands may run meanwhile."""
        self._count = 0
        while self._buckets:
            _, bucket = self._buckets.popitem()
            for group in bucket.groups():
                while group.members:
                    _, entries = group.members.popitem()
                    self._turn.spend(1 + len(entries))

    def receivers(self, message: Message, source: Connection | None) -> list[Connection]:
        """The connections with an entry that accepts, each once (MATCH-1); `source` is None for a notification.

        Other commands may run meanwhile: the entries of a connection count as they are when it is their turn.
        """
        turn = self._turn
        found: dict[Connection, None] = {}
        for key in self._keys(message, source):
            bucket = self._buckets.get(key)
            if bucket is None:
                continue
            for group in bucket.find(message, turn):
                for connection in list(group.members):
                    entries = group.members.get(connection)
                    if entries is None or connection in found:
                        continue
                    looks = 1
                    for entry in entries:
                        looks += 1 + entry.rule_count // _RULES_IN_A_UNIT
                        if entry.accepts(message, source):
                            found[connection] = None
                            break
                    turn.spend(looks)
        return list(found)

    def candidates(self, message: Message, source: Connection | None) -> list[Group]:
        """The groups of entries to evaluate."""
        found: list[Group] = []
        for key in self._keys(message, source):
            bucket = self._buckets.get(key)
            if bucket is not None:
                found += bucket.find(message, self._turn)
        return found

    @staticmethod
    def _keys(message: Message, source: Connection | None) -> list[int | bytes]:
        keys: list[int | bytes] = [ANYONE]
        if source is not None:
            keys.append(message.src_id)
            keys += source.names
        else:
            notice = message.notice
            assert notice is not None
            keys += (notice.new_id, notice.old_id, notice.name)
        return keys
