"""CONN_INFO, BUS_CREATOR_INFO, NAME_LIST and CONN_UPDATE."""

from __future__ import annotations

from errno import EINVAL, ENOBUFS, ENXIO, EOPNOTSUPP, ESRCH
from typing import TYPE_CHECKING, Final

from librt.strings import BytesWriter

from ..abi import constants as c
from ..abi.commands import BUS_CREATOR_INFO, CONN_INFO, LIST, UPDATE
from ..base.errors import CommandError
from .metadata import ConnMetadata, export, sanitize_attach_flags
from .name_syntax import only_name
from .name_table import NameEntry
from .policy import View
from .rights import may_see, may_see_name

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..abi.values import Item
    from ..base.call import Call
    from .connection import Connection

_PIECE: Final = 1 << 15  # bytes
_BYTES_IN_A_UNIT: Final = 1024
"""Bytes that one unit of `Turn.spend` stands for, when the pool has to get its pages first."""
_RECORDS_IN_A_UNIT: Final = 2


def _publish(connection: Connection, data: bytes) -> tuple[int, int]:
    """Put a result into the pool of the connection that asked.  Raises CommandError(ENOBUFS) (POOL-13)."""
    part = connection.pool.put(data)
    connection.pool.publish(part)
    return part.offset, len(data)


def conn_info(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_CONN_INFO (INFO-1 to INFO-8).  Raises CommandError: EINVAL, ESRCH, ENXIO, ENOBUFS."""
    family = connection.family
    query = family.decode_query(call)
    wanted = query.id
    if wanted and query.items and family.rules.checks_both:
        peer = _peer_by_name(connection, call, query.items)
        if peer.id != wanted:
            raise CommandError(ESRCH, "name is owned by another id")
    else:
        peer = _peer_by_id(connection, call, wanted) if wanted else _peer_by_name(connection, call, query.items)
    mask = query.attach_flags & peer.attach_flags_send
    metadata = ConnMetadata()
    peer.describe(metadata, mask)  # no timestamp (INFO-6)
    mask &= _system_mask(connection)
    body = export(peer.metadata, metadata, mask, connection.reader or call.caller, family)
    offset, size = _publish(connection, family.connection_info(peer.id, peer.flags, body))
    family.listed(CONN_INFO, call, offset, size)
    return 0


def _system_mask(connection: Connection) -> int:
    """MASK-1; L-29: the last ABI has no system-wide mask."""
    return c.ATTACH_ALL if connection.family.rules.basic_metadata else connection.bus.domain.attach_flags_mask


def _peer_by_id(connection: Connection, call: Call, wanted: int) -> Connection:
    peer = connection.bus.connections.get(wanted)
    if peer is None or not may_see(connection, peer, call.caller):
        raise CommandError(ENXIO, "no such id, or not visible")
    return peer


def _peer_by_name(connection: Connection, call: Call, items: list[Item]) -> Connection:
    name = only_name(items)
    entry = connection.bus.names.find(name)
    if entry is None or not may_see_name(connection, name, call.caller):
        raise CommandError(ESRCH, "name has no owner, or is not visible")
    return entry.owner


def creator_info(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_BUS_CREATOR_INFO (CRE-1 to CRE-3).  Raises CommandError(ENOBUFS)."""
    family = connection.family
    flags = family.decode_creator_query(call)
    bus = connection.bus
    mask = flags & bus.attach_flags_owner & _system_mask(connection)
    body = export(bus.creator_metadata, None, mask, connection.reader or call.caller, family)
    offset, size = _publish(connection, family.bus_info(bus.id, bus.flags, bus.name.encode(), body))
    family.listed(BUS_CREATOR_INFO, call, offset, size)
    return 0


def name_list(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_NAME_LIST (LIST-1 to LIST-10).  Raises CommandError: EINVAL (any item), ENOBUFS.

    Other commands may run between two connections, and the records of each are of one moment: a name that changes
    hands meanwhile may be listed twice, or not at all.  ECONNRESET when the connection that asked leaves meanwhile.
    """
    family = connection.family
    if family.decode(LIST, call):
        raise CommandError(EINVAL, "NAME_LIST takes no items")
    result = _LongResult(connection)
    try:
        _list_all(result, connection, call, call.flags)
        offset, size = result.publish()
    finally:
        result.close()
    family.listed(LIST, call, offset, size)
    return 0


def _list_all(result: _LongResult, connection: Connection, call: Call, flags: int) -> None:
    turn = connection.bus.domain.turn
    custom = connection.endpoint.policy
    view = View(custom, call.caller) if custom is not None else None
    for peer in list(connection.bus.connections.values()):
        if peer.active:
            count = _write_records(connection.family, result.writer, view, peer, flags)
            result.cut()
            turn.spend(1 + count // _RECORDS_IN_A_UNIT)


class _LongResult:
    """The result of a LIST, which may be too long for one turn: the records that are written to `writer`.

    The pieces are charged to the user until they are in the pool, and never more than the pool has room for.
    """

    __slots__ = ("_charged", "_connection", "_pieces", "_size", "writer")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._charged = 0
        self.writer = BytesWriter()

    def cut(self) -> None:
        """Store what was written, once it is long enough for a piece.  Raises CommandError(ENOBUFS)."""
        if len(self.writer) >= _PIECE:
            self._cut()

    def _cut(self) -> None:
        piece = self.writer.getvalue()
        self.writer = BytesWriter()
        self._size += len(piece)
        if self._size > self._connection.pool.size:
            raise CommandError(ENOBUFS, "result is larger than the pool")
        self._connection.user.account.charge(len(piece))
        self._charged += len(piece)
        self._pieces.append(piece)

    def publish(self) -> tuple[int, int]:
        """Put it into the pool.  Returns its offset and size there.  Other commands may run meanwhile.

        Raises CommandError: ENOBUFS (POOL-13), ENOMEM, ECONNRESET.
        """
        self._cut()
        connection = self._connection
        pool = connection.pool
        turn = connection.bus.domain.turn
        connection.check_active()
        family = connection.family
        header = family.list_header(self._size)
        size = len(header) + self._size
        if not size:
            return pool.size, 0  # L-92
        part = pool.allocate(size)
        try:
            at = part.offset
            for piece in (header, *self._pieces):
                pool.memory.store(at, piece)
                at += len(piece)
                turn.spend(1 + len(piece) // _BYTES_IN_A_UNIT)
            connection.check_active()
        except CommandError:
            pool.release(part)
            raise
        pool.publish(part)
        return part.offset, size

    def close(self) -> None:
        """Give the charge back."""
        self._connection.user.account.uncharge(self._charged)
        self._charged = 0


def _write_records(
    family: Family, writer: BytesWriter, view: View | None, peer: Connection, flags: int
) -> int:
    """Append the records of one connection (LIST-5 to LIST-9).  Returns how many names were checked.

    view: None: no name is hidden.
    """
    if family.rules.lists_entries:
        return _write_entries(family, writer, view, peer, flags)
    activators = flags & c.NAME_LIST_ACTIVATORS
    if peer.is_activator and not activators:
        return 0
    shown: list[tuple[Connection, NameEntry]] = []
    if flags & (c.NAME_LIST_NAMES | c.NAME_LIST_ACTIVATORS):
        for entry in peer.names.values():
            if activators and entry.activator is not None and entry.activator is not peer:
                shown.append((entry.activator, entry))
            if flags & c.NAME_LIST_NAMES or peer.is_activator:
                shown.append((peer, entry))
    if flags & c.NAME_LIST_QUEUED:
        shown += [(peer, entry) for entry in peer.waiting_for.values()]
    if not shown and flags & c.NAME_LIST_UNIQUE:
        family.write_record(writer, peer.id, peer.flags, None, 0)
    for owner, entry in shown:
        if view is None or view.level(entry.name) >= c.POLICY_SEE:
            family.write_record(writer, owner.id, owner.flags, entry.name, entry.flags)
    return len(shown)


def _write_entries(family: Family, writer: BytesWriter, view: View | None, peer: Connection, flags: int) -> int:
    """The same where each record is an entry, of an owner, a waiter or an activator, with its own flags (L-99)."""
    if peer.is_monitor:
        return 0
    shown: list[tuple[bytes, int]] = []
    if peer.is_activator:
        entry = peer.activator_of
        if flags & c.NAME_LIST_ACTIVATORS and entry is not None:
            state = c.NAME_PRIMARY if entry.owner is peer else c.NAME_IN_QUEUE
            shown.append((entry.name, c.NAME_ACTIVATOR | state))
    elif flags & c.NAME_LIST_NAMES:
        shown += [(entry.name, entry.flags | c.NAME_PRIMARY) for entry in peer.names.values()]
    if flags & c.NAME_LIST_QUEUED:
        shown += [(entry.name, entry.waiters[peer] | c.NAME_IN_QUEUE) for entry in peer.waiting_for.values()]
    if not shown and flags & c.NAME_LIST_UNIQUE:
        family.write_record(writer, peer.id, peer.flags, None, 0)
    for name, name_flags in shown:
        if view is None or view.level(name) >= c.POLICY_SEE:
            family.write_record(writer, peer.id, peer.flags, name, name_flags)
    return len(shown)


def conn_update(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_CONN_UPDATE (UPD-1 to UPD-6; L-48).

    Raises CommandError: EOPNOTSUPP, EINVAL, and those of policies.
    """
    rules = connection.family.rules
    if connection.is_activator and not rules.activators_update:
        raise CommandError(EOPNOTSUPP, "attach flags of an activator")
    items = connection.family.decode(UPDATE, call)
    connection.bus.domain.turn.spend(len(items))
    send_flags: int | None = None
    recv_flags: int | None = None
    policy = False
    takes_flags = connection.is_ordinary or connection.is_monitor
    for item in items:
        kind = item.kind
        if kind in (c.ITEM_ATTACH_FLAGS_SEND, c.ITEM_ATTACH_FLAGS_RECV):
            if not takes_flags and not (connection.is_activator and kind == c.ITEM_ATTACH_FLAGS_RECV):
                raise CommandError(EOPNOTSUPP, "attach flags of a policy holder")
            flags = sanitize_attach_flags(item.numbers[0])
            if kind == c.ITEM_ATTACH_FLAGS_SEND:
                send_flags = flags
            else:
                recv_flags = flags
        elif kind in (c.ITEM_NAME, c.ITEM_POLICY_ACCESS):
            if not connection.is_policy_holder:
                raise CommandError(EOPNOTSUPP, "policy of a connection that holds none")
            policy = True
        else:
            raise CommandError(EINVAL, "item that no CONN_UPDATE may have")
    connection.check_active()
    bus = connection.bus
    if send_flags is not None and rules.agrees_to_all:
        send_flags |= bus.attach_flags_required
    elif send_flags is not None and bus.attach_flags_required & ~send_flags:
        raise CommandError(EINVAL, "bus requires more metadata")
    if policy:
        bus.policy.replace(connection, items, call.caller, connection.user.account, only_one=True, wildcards=True)
    if send_flags is not None:
        connection.attach_flags_send = send_flags
    if recv_flags is not None:
        connection.attach_flags_recv = recv_flags
    connection.family.done(UPDATE, call)
    return 0
