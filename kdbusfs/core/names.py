"""Well-known names of a bus: who owns them, who waits for them, which activator stands behind them.

Sources: NAME-1 to NAME-21, ACT-1 to ACT-8.
"""

from __future__ import annotations

from errno import E2BIG, EALREADY, ECONNRESET, EEXIST, EINVAL, ESRCH
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.limits import CONN_MAX_NAMES
from ..base.errors import CommandError
from .takeover import owed_by_name, take_over_messages

if TYPE_CHECKING:
    from ..base.ports import Turn
    from .connection import Connection
    from .notifications import Notifications
    from .reply import Tracker

_NOW_OWNS: Final = c.NAME_PRIMARY | c.NAME_ACQUIRED
_NOW_WAITS: Final = c.NAME_IN_QUEUE | c.NAME_ACQUIRED
NAME_COST: Final = 1024
"""What owning a name, or waiting for one, is charged with, in bytes."""

_PARTS: Final = 64
_MAX_FORWARDS: Final = 16
"""How often a message follows its name in one command.  Clients that pass a name on for ever cannot hold up a SEND."""


class NameEntry:
    """A name that is owned: `id` numbers names of a bus in the order in which they came up.

    waiters: who waits for it, first come first, with the flags that it will own the name with;
    heir: who gets it once messages have moved there, with heir_flags; it counts as taken meanwhile.
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


class _Entries:
    """The entries of a bus by name, in parts: a dictionary of a quarter of a million takes 10 ms when it grows."""

    __slots__ = ("_count", "_parts")

    def __init__(self) -> None:
        self._parts: list[dict[bytes, NameEntry]] = [{} for _ in range(_PARTS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, name: bytes) -> NameEntry | None:
        return self._parts[hash(name) % _PARTS].get(name)

    def add(self, entry: NameEntry) -> None:
        """File one whose name has none yet."""
        self._parts[hash(entry.name) % _PARTS][entry.name] = entry
        self._count += 1

    def remove(self, entry: NameEntry) -> None:
        del self._parts[hash(entry.name) % _PARTS][entry.name]
        self._count -= 1

    def forget(self, turn: Turn) -> None:
        """All of them.  Others may be served meanwhile: a quarter of a million take 20 ms."""
        self._count = 0
        for part in self._parts:
            while part:
                part.popitem()
                turn.spend()


class NameRegistry:
    """The names of one bus, shared by all its endpoints (NAME-20)."""

    __slots__ = ("_entries", "_last_id", "_notifications")

    def __init__(self, notifications: Notifications) -> None:
        self._notifications = notifications
        self._entries = _Entries()
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: bytes) -> NameEntry | None:
        """The entry of an owned name."""
        return self._entries.get(name)

    def acquire(self, connection: Connection, name: bytes, flags: int) -> int:
        """Own `name`, or wait for it (NAME-4 to NAME-9; L-107 to L-112).

        Gives back `flags`, with NAME_PRIMARY for an owner or NAME_IN_QUEUE for a waiter, and NAME_ACQUIRED where this
        is what has made it so.  Permission has been checked.  Others may be served while messages of an activator move.
        Raises CommandError: EALREADY (owner already), EEXIST (taken), E2BIG (waits for 256 names), ENOBUFS (memory of
        the user), ECONNRESET (it left meanwhile).
        """
        self._check(connection)
        connection.user.account.check(NAME_COST)
        entry = self._entries.get(name)
        if entry is None:
            self._add(connection, name, flags)
            return flags | _NOW_OWNS
        if connection in (entry.owner, entry.heir):
            if not connection.family.rules.acquires_again:
                raise CommandError(EALREADY, "owns the name already")
            return self._change_flags(entry, connection, flags)
        if connection.is_activator:
            self._register_activator(entry, connection)
            return flags | _NOW_WAITS
        if entry.flags & c.NAME_ACTIVATOR and entry.heir is None:
            self._take_from_activator(entry, connection, flags)
            connection.check_active()
            return flags | _NOW_OWNS
        if flags & c.NAME_REPLACE_EXISTING and entry.flags & c.NAME_ALLOW_REPLACEMENT and entry.heir is None:
            owner = entry.owner
            if entry.flags & c.NAME_QUEUE and owner.active and len(owner.waiting_for) < CONN_MAX_NAMES:
                self._wait(entry, entry.owner, entry.flags, first=owner.family.rules.queues_replaced_first)
            self._stop_waiting(entry, connection)
            self._change_owner(entry, connection, flags)
            return flags | _NOW_OWNS
        if connection in entry.waiters and connection.family.rules.acquires_again:
            return self._wait_again(entry, connection, flags)
        if flags & c.NAME_QUEUE:
            if len(connection.waiting_for) >= CONN_MAX_NAMES and connection not in entry.waiters:
                raise CommandError(E2BIG, "waits for too many names")
            self._wait(entry, connection, flags)
            return flags | _NOW_WAITS
        raise CommandError(EEXIST, "name is taken")

    def release(self, connection: Connection, name: bytes) -> None:
        """Give `name` up, or wait for it no more (NAME-14; L-113, L-114).

        Raises CommandError: ESRCH where nobody owns it, ESRCH or EADDRINUSE for anybody else.
        Others may be served while messages move back to an activator.
        """
        self._check(connection)
        entry = self._entries.get(name)
        if entry is None:
            raise CommandError(ESRCH, "nobody owns the name")
        if entry.owner is connection and entry.heir is None:
            self._pass_on(entry)
        elif not self._stop_waiting(entry, connection):
            raise CommandError(connection.family.rules.not_an_owner, "neither owner nor waiting")

    def forward(self, receiver: Connection, name: bytes) -> None:
        """Let a message that was queued at `receiver` go where it had gone if it had come sooner.

        It was addressed to `name`, which changed hands while its copy was held up (ACT-4, NAME-17).  Others may be
        served while it moves, and the name may change hands again: then it goes on to the next owner, if such a change
        takes messages along.  Who waits first counts as the owner once that one is leaving.
        """
        for _ in range(_MAX_FORWARDS):
            entry = self._entries.get(name)
            if entry is None:
                return
            owner = entry.owner if entry.owner.active else self._first_waiter(entry)
            if owner is None or owner is receiver:
                return
            if receiver.is_activator:
                take_over_messages(owner, receiver, 0)
            elif owner.is_activator:
                take_over_messages(owner, receiver, entry.id)
            else:
                return
            if owner.active:
                receiver = owner

    def remove_connection(self, connection: Connection) -> None:
        """All that a disconnect means for names (NAME-18, ACT-8)."""
        self._forget_activator(connection)
        turn = connection.bus.domain.turn
        while connection.waiting_for:
            _, entry = connection.waiting_for.popitem()
            del entry.waiters[connection]
            connection.user.account.uncharge(NAME_COST)
            turn.spend()
        owed: dict[int, list[Tracker]] | None = None
        for entry in list(connection.names.values()):
            if entry.activator is not None and owed is None:
                owed = owed_by_name(connection)
            # Others may have been served.  Where the bus has ended meanwhile, `forget_connection` does the rest.
            if self._owns(connection, entry):
                self._pass_on(entry, owed)

    def forget_connection(self, connection: Connection) -> None:
        """The same where the whole bus ends: nobody inherits, and nobody is told."""
        self._forget_activator(connection)
        connection.user.account.uncharge(NAME_COST * (len(connection.names) + len(connection.waiting_for)))
        connection.names.clear()
        connection.waiting_for.clear()

    def forget(self, turn: Turn) -> None:
        """All of them: the bus is gone.  Others may be served meanwhile."""
        self._entries.forget(turn)

    def _change_flags(self, entry: NameEntry, connection: Connection, flags: int) -> int:
        """Who owns the name, or is about to, wants to own it otherwise (L-109)."""
        if connection is entry.heir:
            entry.heir_flags = flags
        else:
            entry.flags = flags
            connection.owned_names = None
        return flags | c.NAME_PRIMARY

    def _wait_again(self, entry: NameEntry, connection: Connection, flags: int) -> int:
        """Who waits wants to wait otherwise, or no more (L-110)."""
        if flags & c.NAME_QUEUE:
            entry.waiters[connection] = flags
            return flags | c.NAME_IN_QUEUE
        self._stop_waiting(entry, connection)
        return flags

    def _forget_activator(self, connection: Connection) -> None:
        entry = connection.activator_of
        if entry is not None:
            connection.activator_of = None
            entry.activator = None

    def _add(self, connection: Connection, name: bytes, flags: int) -> None:
        self._last_id += 1
        entry = NameEntry(self._last_id, name, connection, flags)
        if connection.is_activator:
            self._register_activator(entry, connection)
        self._entries.add(entry)
        connection.own(entry)
        self._notifications.name_change(c.ITEM_NAME_ADD, 0, 0, connection.id, flags, name)

    def _register_activator(self, entry: NameEntry, connection: Connection) -> None:
        """ACT-1, ACT-2: one activator for each name, one name for each activator."""
        if connection.activator_of is not None:
            raise CommandError(EINVAL, "activator of another name")
        if entry.activator is not None:
            raise CommandError(EEXIST, "name has an activator")
        entry.activator = connection
        connection.activator_of = entry

    def _change_owner(self, entry: NameEntry, connection: Connection, flags: int) -> None:
        old = entry.owner
        self._notifications.name_change(
            c.ITEM_NAME_CHANGE, old.id, entry.flags, connection.id, flags, entry.name
        )
        old.disown(entry)
        entry.owner = connection
        entry.flags = flags
        connection.own(entry)

    def _take_from_activator(self, entry: NameEntry, connection: Connection, flags: int) -> None:
        """ACT-4.  While messages move the name stays with its activator, so that what comes meanwhile moves, too.

        Whoever asks for the name meanwhile finds it taken.  When `connection` leaves, the first waiter gets the name.
        """
        activator = entry.owner
        heir, heir_flags = connection, flags
        while True:
            entry.heir, entry.heir_flags = heir, heir_flags
            take_over_messages(heir, activator, 0)
            entry.heir = None
            if not self._owns(activator, entry):
                break  # it has left, and the heir has inherited
            if heir.active:
                self._stop_waiting(entry, heir)
                self._change_owner(entry, heir, heir_flags)
                # More has come in than was waited for.
                take_over_messages(heir, activator, 0)
                break
            waiter = self._first_waiter(entry)
            if waiter is None:
                break
            heir, heir_flags = waiter, entry.waiters[waiter]

    def _pass_on(self, entry: NameEntry, owed: dict[int, list[Tracker]] | None = None) -> None:
        """The owner lets go: to the first waiter, else back to the activator, else the name is free (NAME-15).

        owed: what the owner owes, by name, where many names are passed on.
        """
        owner = entry.owner
        heir = self._first_heir(entry)
        if heir is None and self._returns(entry, owner, owed):
            return
        heir = self._first_heir(entry)
        if heir is not None:
            flags = entry.heir_flags if heir is entry.heir else entry.waiters[heir]
            self._stop_waiting(entry, heir)
            self._change_owner(entry, heir, flags)
            return
        self._notifications.name_change(c.ITEM_NAME_REMOVE, owner.id, entry.flags, 0, 0, entry.name)
        owner.disown(entry)
        self._entries.remove(entry)

    def _returns(self, entry: NameEntry, owner: Connection, owed: dict[int, list[Tracker]] | None) -> bool:
        """Give the name back to its activator (NAME-17); whether that was all there is to do.

        Others may be served meanwhile.  For them the name still belongs to `owner`.
        """
        activator = entry.activator
        if activator is None or activator is owner:
            return False
        entry.heir, entry.heir_flags = activator, c.NAME_ACTIVATOR
        take_over_messages(activator, owner, entry.id, None if owed is None else owed.get(entry.id, []))
        entry.heir = None
        if not self._owns(owner, entry):
            return True  # it left in the middle of this, and has passed the name on
        if not activator.active:
            return False
        self._change_owner(entry, activator, c.NAME_ACTIVATOR)
        waiter = self._first_waiter(entry)
        if waiter is not None:
            self._take_from_activator(entry, waiter, entry.waiters[waiter])
        return True

    def _check(self, connection: Connection) -> None:
        """A bus that ends keeps no order of its names.  Raises CommandError(ECONNRESET)."""
        connection.check_active()
        if self._notifications.is_over:
            raise CommandError(ECONNRESET, "bus is gone")

    def _owns(self, connection: Connection, entry: NameEntry) -> bool:
        """Whether that has not changed while others were served."""
        return entry.owner is connection and self._entries.get(entry.name) is entry and not self._notifications.is_over

    def _first_heir(self, entry: NameEntry) -> Connection | None:
        """Who inherits but the activator: who is just taking over from that, else the first who waits."""
        heir = entry.heir
        if heir is not None and heir.active and not heir.is_activator:
            return heir
        return self._first_waiter(entry)

    def _first_waiter(self, entry: NameEntry) -> Connection | None:
        """One that is leaving waits no more."""
        for waiter in entry.waiters:
            if waiter.active:
                return waiter
        return None

    def _wait(self, entry: NameEntry, connection: Connection, flags: int, *, first: bool = False) -> None:
        """Join the waiters, `first` before all others; who waits gets new flags and keeps its place (NAME-11)."""
        if connection not in entry.waiters:
            connection.waiting_for[entry.name] = entry
            connection.user.account.charge_unchecked(NAME_COST)
        if first:
            entry.waiters = {connection: flags, **entry.waiters}
        else:
            entry.waiters[connection] = flags

    def _stop_waiting(self, entry: NameEntry, connection: Connection) -> bool:
        if entry.waiters.pop(connection, None) is None:
            return False
        del connection.waiting_for[entry.name]
        connection.user.account.uncharge(NAME_COST)
        return True
