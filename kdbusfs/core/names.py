"""Well-known names of a bus: who owns them, who waits for them, which activator stands behind them.

Sources: NAME-1 to NAME-21, ACT-1 to ACT-8.
"""

from __future__ import annotations

from errno import E2BIG, EALREADY, EEXIST, EINVAL, ESRCH
from re import ASCII
from re import compile as compile_pattern
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.limits import CONN_MAX_NAMES, NAME_MAX_LEN
from ..base.errors import KdbusError

if TYPE_CHECKING:
    from .connection import Connection
    from .notify import Notifier

NAME_COST: Final = 1024
"""What owning a name, or waiting for one, is charged with, in bytes."""

_ELEMENT: Final = rb"[A-Za-z_-][A-Za-z0-9_-]*"
_NAME: Final = compile_pattern(_ELEMENT + rb"(?:\." + _ELEMENT + rb")+", ASCII)
_WILDCARD: Final = compile_pattern(_ELEMENT + rb"(?:\." + _ELEMENT + rb")*\.\*", ASCII)


def is_valid_name(name: bytes, *, wildcard: bool = False) -> bool:
    """Whether `name` (without NUL) is a well-known name (NAME-1), or with `wildcard` also one like a.b.* (NAME-2)."""
    if len(name) > NAME_MAX_LEN:
        return False
    return bool(_NAME.fullmatch(name) or (wildcard and _WILDCARD.fullmatch(name)))


class NameEntry:
    """A name that is owned: `id` numbers names of a bus in the order in which they came up.

    waiters: who waits for it, first come first, with the flags that it will own the name with.
    """

    __slots__ = ("activator", "flags", "id", "name", "owner", "waiters")

    def __init__(self, number: int, name: bytes, owner: Connection, flags: int) -> None:
        self.id = number
        self.name = name
        self.owner = owner
        self.flags = flags
        self.activator: Connection | None = None
        self.waiters: dict[Connection, int] = {}


class NameRegistry:
    """The names of one bus, shared by all its endpoints (NAME-20)."""

    __slots__ = ("_entries", "_last_id", "_notifier")

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._entries: dict[bytes, NameEntry] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: bytes) -> NameEntry | None:
        """The entry of an owned name."""
        return self._entries.get(name)

    def acquire(self, connection: Connection, name: bytes, flags: int) -> int:
        """Own `name`, or wait for it; gives back `flags`, with NAME_IN_QUEUE for a waiter (NAME-4 to NAME-9).

        Permission has been checked.  Raises KdbusError: EALREADY (owner already), EEXIST (taken),
        E2BIG (waits for 256 names), ENOBUFS (memory of the user).
        """
        connection.user.account.check(NAME_COST)
        entry = self._entries.get(name)
        if entry is None:
            self._add(connection, name, flags)
            return flags
        if entry.owner is connection:
            raise KdbusError(EALREADY, "owns the name already")
        if connection.is_activator:
            self._register_activator(entry, connection)
            return flags
        if entry.flags & c.NAME_ACTIVATOR:
            assert entry.activator is not None
            connection.take_over_messages(entry.activator, name_id=0)
            self._change_owner(entry, connection, flags)
            return flags
        if flags & c.NAME_REPLACE_EXISTING and entry.flags & c.NAME_ALLOW_REPLACEMENT:
            if entry.flags & c.NAME_QUEUE and len(entry.owner.waiting_for) < CONN_MAX_NAMES:
                self._wait(entry, entry.owner, entry.flags)
            self._stop_waiting(entry, connection)
            self._change_owner(entry, connection, flags)
            return flags
        if flags & c.NAME_QUEUE:
            if len(connection.waiting_for) >= CONN_MAX_NAMES and connection not in entry.waiters:
                raise KdbusError(E2BIG, "waits for too many names")
            self._wait(entry, connection, flags)
            return flags | c.NAME_IN_QUEUE
        raise KdbusError(EEXIST, "name is taken")

    def release(self, connection: Connection, name: bytes) -> None:
        """Give `name` up, or wait for it no more.  Raises KdbusError(ESRCH) for anybody else (NAME-14)."""
        entry = self._entries.get(name)
        if entry is None:
            raise KdbusError(ESRCH, "nobody owns the name")
        if entry.owner is connection:
            self._pass_on(entry)
        elif not self._stop_waiting(entry, connection):
            raise KdbusError(ESRCH, "neither owner nor waiting")

    def forward(self, receiver: Connection, name: bytes) -> None:
        """Let a message that was queued at `receiver` go where it had gone if it had come sooner.

        It was addressed to `name`, which changed hands while its copy was held up (ACT-4, NAME-17).
        """
        entry = self._entries.get(name)
        if entry is None or entry.owner is receiver:
            return
        if receiver.is_activator:
            entry.owner.take_over_messages(receiver, name_id=0)
        elif entry.owner.is_activator:
            entry.owner.take_over_messages(receiver, name_id=entry.id)

    def remove_connection(self, connection: Connection) -> None:
        """All that a disconnect means for names (NAME-18, ACT-8)."""
        entry = connection.activator_of
        if entry is not None:
            connection.activator_of = None
            entry.activator = None
        for entry in list(connection.waiting_for.values()):
            self._stop_waiting(entry, connection)
        for entry in list(connection.names.values()):
            self._pass_on(entry)

    def _add(self, connection: Connection, name: bytes, flags: int) -> None:
        self._last_id += 1
        entry = NameEntry(self._last_id, name, connection, flags)
        if connection.is_activator:
            self._register_activator(entry, connection)
        self._entries[name] = entry
        connection.own(entry)
        self._notifier.name_change(c.ITEM_NAME_ADD, 0, 0, connection.id, flags, name)

    def _register_activator(self, entry: NameEntry, connection: Connection) -> None:
        """ACT-1, ACT-2: one activator for each name, one name for each activator."""
        if connection.activator_of is not None:
            raise KdbusError(EINVAL, "activator of another name")
        if entry.activator is not None:
            raise KdbusError(EEXIST, "name has an activator")
        entry.activator = connection
        connection.activator_of = entry

    def _change_owner(self, entry: NameEntry, connection: Connection, flags: int) -> None:
        old = entry.owner
        self._notifier.name_change(
            c.ITEM_NAME_CHANGE, old.id, entry.flags, connection.id, flags, entry.name
        )
        old.disown(entry)
        entry.owner = connection
        entry.flags = flags
        connection.own(entry)

    def _pass_on(self, entry: NameEntry) -> None:
        """The owner lets go: to the first waiter, else back to the activator, else the name is free (NAME-15)."""
        if entry.waiters:
            waiter, flags = next(iter(entry.waiters.items()))
            self._stop_waiting(entry, waiter)
            self._change_owner(entry, waiter, flags)
            return
        activator = entry.activator
        if activator is not None and activator is not entry.owner:
            activator.take_over_messages(entry.owner, name_id=entry.id)
            self._change_owner(entry, activator, c.NAME_ACTIVATOR)
            return
        owner = entry.owner
        self._notifier.name_change(c.ITEM_NAME_REMOVE, owner.id, entry.flags, 0, 0, entry.name)
        owner.disown(entry)
        del self._entries[entry.name]

    def _wait(self, entry: NameEntry, connection: Connection, flags: int) -> None:
        """Join the waiters; who waits already gets new flags and keeps its place (NAME-11)."""
        if connection not in entry.waiters:
            connection.waiting_for[entry.name] = entry
            connection.user.account.add(NAME_COST)
        entry.waiters[connection] = flags

    def _stop_waiting(self, entry: NameEntry, connection: Connection) -> bool:
        if entry.waiters.pop(connection, None) is None:
            return False
        del connection.waiting_for[entry.name]
        connection.user.account.uncharge(NAME_COST)
        return True
