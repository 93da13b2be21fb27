"""Ownership of well-known names: acquire, release, queue, and activators (NAME-3 to NAME-21, ACT-1 to ACT-8)."""

from __future__ import annotations

from errno import E2BIG, EALREADY, ECONNRESET, EEXIST, EINVAL, ESRCH
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.limits import CONN_MAX_NAMES
from ..base.errors import CommandError
from .name_table import NAME_COST, NameEntry
from .takeover import owed_by_name, take_over_messages

if TYPE_CHECKING:
    from .connection import Connection
    from .reply import Tracker

_NOW_OWNS: Final = c.NAME_PRIMARY | c.NAME_ACQUIRED
_NOW_WAITS: Final = c.NAME_IN_QUEUE | c.NAME_ACQUIRED
_MAX_FORWARDS: Final = 16
"""How often a message follows its name in one command.  Clients that pass a name on for ever cannot block a SEND."""


def acquire(connection: Connection, name: bytes, flags: int) -> int:
    """Own `name`, or wait for it (NAME-4 to NAME-9; L-107 to L-112).

    Returns `flags`, with NAME_PRIMARY for an owner or NAME_IN_QUEUE for a waiter, and NAME_ACQUIRED if this
    call has changed that.  Permission has been checked.  Other commands may run while messages of an activator move.
    Raises CommandError: EALREADY (owner already), EEXIST (taken), E2BIG (waits for 256 names), ENOBUFS (memory of
    the user), ECONNRESET (it left meanwhile).
    """
    bus = connection.bus
    _check(connection)
    connection.user.account.check(NAME_COST)
    entry = bus.names.find(name)
    if entry is None:
        _add(connection, name, flags)
        return flags | _NOW_OWNS
    if connection in (entry.owner, entry.heir):
        if not connection.family.rules.acquires_again:
            raise CommandError(EALREADY, "owns the name already")
        return _change_flags(entry, connection, flags)
    if connection.is_activator:
        _register_activator(entry, connection)
        return flags | _NOW_WAITS
    if entry.flags & c.NAME_ACTIVATOR and entry.heir is None:
        _take_from_activator(entry, connection, flags)
        connection.check_active()
        return flags | _NOW_OWNS
    if flags & c.NAME_REPLACE_EXISTING and entry.flags & c.NAME_ALLOW_REPLACEMENT and entry.heir is None:
        owner = entry.owner
        if entry.flags & c.NAME_QUEUE and owner.active and len(owner.waiting_for) < CONN_MAX_NAMES:
            _wait(entry, entry.owner, entry.flags, first=owner.family.rules.queues_replaced_first)
        _stop_waiting(entry, connection)
        _change_owner(entry, connection, flags)
        return flags | _NOW_OWNS
    if connection in entry.waiters and connection.family.rules.acquires_again:
        return _wait_again(entry, connection, flags)
    if flags & c.NAME_QUEUE:
        if len(connection.waiting_for) >= CONN_MAX_NAMES and connection not in entry.waiters:
            raise CommandError(E2BIG, "waits for too many names")
        _wait(entry, connection, flags)
        return flags | _NOW_WAITS
    raise CommandError(EEXIST, "name is taken")


def release(connection: Connection, name: bytes) -> None:
    """Release `name`, or leave its queue (NAME-14; L-113, L-114).

    Raises CommandError: ESRCH when it has no owner; ESRCH or EADDRINUSE when the caller neither owns it nor waits.
    Other commands may run while messages move back to an activator.
    """
    bus = connection.bus
    _check(connection)
    entry = bus.names.find(name)
    if entry is None:
        raise CommandError(ESRCH, "nobody owns the name")
    if entry.owner is connection and entry.heir is None:
        _pass_on(entry)
    elif not _stop_waiting(entry, connection):
        raise CommandError(connection.family.rules.not_an_owner, "neither owner nor waiting")


def forward(receiver: Connection, name: bytes) -> None:
    """Move a message that was queued at `receiver` to the connection that owns its destination name now.

    It was addressed to `name`, which changed hands during the copy of the payload, a race (ACT-4, NAME-17).  Other
    commands may run while it moves, and the name may change hands again: then it moves on to the next owner, if such
    a change moves messages.  The first waiter counts as the owner when the owner is leaving.
    """
    bus = receiver.bus
    for _ in range(_MAX_FORWARDS):
        entry = bus.names.find(name)
        if entry is None:
            return
        owner = entry.owner if entry.owner.active else _first_waiter(entry)
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


def give_up_names(connection: Connection) -> None:
    """The effects of a disconnect on names (NAME-18, ACT-8)."""
    _forget_activator(connection)
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
        # Other commands may have run.  Where the bus has ended meanwhile, `forget_names` does the rest.
        if _owns(connection, entry):
            _pass_on(entry, owed)


def forget_names(connection: Connection) -> None:
    """As `give_up_names`, when the whole bus ends: no heirs and no notifications."""
    _forget_activator(connection)
    connection.user.account.uncharge(NAME_COST * (len(connection.names) + len(connection.waiting_for)))
    connection.names.clear()
    connection.waiting_for.clear()


def _change_flags(entry: NameEntry, connection: Connection, flags: int) -> int:
    """The owner, or heir, asks again with other flags (L-109)."""
    if connection is entry.heir:
        entry.heir_flags = flags
    else:
        entry.flags = flags
        connection.owned_names = None
    return flags | c.NAME_PRIMARY


def _wait_again(entry: NameEntry, connection: Connection, flags: int) -> int:
    """A waiter asks again with other flags, perhaps to leave the queue (L-110)."""
    if flags & c.NAME_QUEUE:
        entry.waiters[connection] = flags
        return flags | c.NAME_IN_QUEUE
    _stop_waiting(entry, connection)
    return flags


def _forget_activator(connection: Connection) -> None:
    entry = connection.activator_of
    if entry is not None:
        connection.activator_of = None
        entry.activator = None


def _add(connection: Connection, name: bytes, flags: int) -> None:
    bus = connection.bus
    entry = NameEntry(bus.names.next_id(), name, connection, flags)
    if connection.is_activator:
        _register_activator(entry, connection)
    bus.names.add(entry)
    connection.own(entry)
    bus.notifications.name_change(c.ITEM_NAME_ADD, 0, 0, connection.id, flags, name)


def _register_activator(entry: NameEntry, connection: Connection) -> None:
    """ACT-1, ACT-2: one activator for each name, one name for each activator."""
    if connection.activator_of is not None:
        raise CommandError(EINVAL, "activator of another name")
    if entry.activator is not None:
        raise CommandError(EEXIST, "name has an activator")
    entry.activator = connection
    connection.activator_of = entry


def _change_owner(entry: NameEntry, connection: Connection, flags: int) -> None:
    old = entry.owner
    connection.bus.notifications.name_change(
        c.ITEM_NAME_CHANGE, old.id, entry.flags, connection.id, flags, entry.name
    )
    old.disown(entry)
    entry.owner = connection
    entry.flags = flags
    connection.own(entry)


def _take_from_activator(entry: NameEntry, connection: Connection, flags: int) -> None:
    """ACT-4.  While messages move the name stays with its activator, so that what comes meanwhile moves, too.

    The name counts as taken meanwhile.  When `connection` leaves, the first waiter gets the name.
    """
    activator = entry.owner
    heir, heir_flags = connection, flags
    while True:
        entry.heir, entry.heir_flags = heir, heir_flags
        take_over_messages(heir, activator, 0)
        entry.heir = None
        if not _owns(activator, entry):
            break  # it has left, and the heir has inherited
        if heir.active:
            _stop_waiting(entry, heir)
            _change_owner(entry, heir, heir_flags)
            # More messages have arrived than the first move was willing to wait for.
            take_over_messages(heir, activator, 0)
            break
        waiter = _first_waiter(entry)
        if waiter is None:
            break
        heir, heir_flags = waiter, entry.waiters[waiter]


def _pass_on(entry: NameEntry, owed: dict[int, list[Tracker]] | None = None) -> None:
    """The owner releases the name: to the first waiter, else to the activator, else it is free (NAME-15).

    owed: the obligations of the owner by name, when many names are passed on.
    """
    bus = entry.owner.bus
    owner = entry.owner
    heir = _first_heir(entry)
    if heir is None and _returns(entry, owner, owed):
        return
    heir = _first_heir(entry)
    if heir is not None:
        flags = entry.heir_flags if heir is entry.heir else entry.waiters[heir]
        _stop_waiting(entry, heir)
        _change_owner(entry, heir, flags)
        return
    bus.notifications.name_change(c.ITEM_NAME_REMOVE, owner.id, entry.flags, 0, 0, entry.name)
    owner.disown(entry)
    bus.names.remove(entry)


def _returns(entry: NameEntry, owner: Connection, owed: dict[int, list[Tracker]] | None) -> bool:
    """Give the name back to its activator (NAME-17).  Returns whether nothing else remains to be done.

    Other commands may run meanwhile.  For them the name still belongs to `owner`.
    """
    activator = entry.activator
    if activator is None or activator is owner:
        return False
    entry.heir, entry.heir_flags = activator, c.NAME_ACTIVATOR
    take_over_messages(activator, owner, entry.id, None if owed is None else owed.get(entry.id, []))
    entry.heir = None
    if not _owns(owner, entry):
        return True  # it left in the middle of this, and has passed the name on
    if not activator.active:
        return False
    _change_owner(entry, activator, c.NAME_ACTIVATOR)
    waiter = _first_waiter(entry)
    if waiter is not None:
        _take_from_activator(entry, waiter, entry.waiters[waiter])
    return True


def _check(connection: Connection) -> None:
    """A bus that is ending does not maintain its names.  Raises CommandError(ECONNRESET)."""
    connection.check_active()
    if connection.bus.notifications.is_over:
        raise CommandError(ECONNRESET, "bus is gone")


def _owns(connection: Connection, entry: NameEntry) -> bool:
    """Whether that is still so, after other commands have run."""
    bus = connection.bus
    return entry.owner is connection and bus.names.find(entry.name) is entry and not bus.notifications.is_over


def _first_heir(entry: NameEntry) -> Connection | None:
    """The next owner apart from the activator: a take-over that is running, else the first waiter."""
    heir = entry.heir
    if heir is not None and heir.active and not heir.is_activator:
        return heir
    return _first_waiter(entry)


def _first_waiter(entry: NameEntry) -> Connection | None:
    """The first in the queue; connections that are leaving do not count."""
    for waiter in entry.waiters:
        if waiter.active:
            return waiter
    return None


def _wait(entry: NameEntry, connection: Connection, flags: int, *, first: bool = False) -> None:
    """Join the queue, or its head if `first`; a waiter gets the new flags and keeps its place (NAME-11)."""
    if connection not in entry.waiters:
        connection.waiting_for[entry.name] = entry
        connection.user.account.charge_unchecked(NAME_COST)
    if first:
        entry.waiters = {connection: flags, **entry.waiters}
    else:
        entry.waiters[connection] = flags


def _stop_waiting(entry: NameEntry, connection: Connection) -> bool:
    if entry.waiters.pop(connection, None) is None:
        return False
    del connection.waiting_for[entry.name]
    connection.user.account.uncharge(NAME_COST)
    return True
