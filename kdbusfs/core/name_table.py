"""The well-known names of a bus that are owned, with all that is known of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..base.ports import Turn
    from .connection import Connection

NAME_COST: Final = 1024
"""Bytes charged for owning a name, or for waiting for one."""

_PARTS: Final = 64


class NameEntry:
    """A name that is owned: `id` numbers names of a bus in the order in which they came up.

    waiters: connections in its queue, in order, each with the flags of its request;
    heir: the connection that gets the name when messages have moved there, with heir_flags; the name counts as taken
    until then.
    """

    __slots__ = ("activator", "flags", "heir", "heir_flags", "id", "name", "owner", "waiters")

    def __init__(self, number: int, name: bytes, owner: Connection, flags: int) -> None:
        self.id = number
        self.name = name
        self.owner = owner
        self.flags = flags
        self.activator: Connection | None = None
        self.heir: Connection | None = None
        self.heir_flags = 0
        self.waiters: dict[Connection, int] = {}


class NameTable:
    """The names of one bus, shared by all its endpoints (NAME-20).

    In parts: a dictionary of a quarter of a million entries takes 10 ms when it grows.
    """

    __slots__ = ("_count", "_last_id", "_parts")

    def __init__(self) -> None:
        self._parts: list[dict[bytes, NameEntry]] = [{} for _ in range(_PARTS)]
        self._count = 0
        self._last_id = 0

    def __len__(self) -> int:
        return self._count

    def next_id(self) -> int:
        """A number that no name of the bus had before."""
        self._last_id += 1
        return self._last_id

    def find(self, name: bytes) -> NameEntry | None:
        """The entry of an owned name."""
        return self._parts[hash(name) % _PARTS].get(name)

    def add(self, entry: NameEntry) -> None:
        """Add an entry whose name has none yet."""
        self._parts[hash(entry.name) % _PARTS][entry.name] = entry
        self._count += 1

    def remove(self, entry: NameEntry) -> None:
        del self._parts[hash(entry.name) % _PARTS][entry.name]
        self._count -= 1

    def clear(self, turn: Turn) -> None:
        """Remove all of them: the bus is gone.  Other commands may run meanwhile."""
        self._count = 0
        for part in self._parts:
            while part:
                part.popitem()
                turn.spend()
