"""The commands of a connected file, by their kind, and which roles may give each (GEN-3, GEN-4)."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADFD, ECONNRESET, ENOTTY, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

from ..abi import commands as k
from .connection import ACTIVATOR, MONITOR, ORDINARY, POLICY_HOLDER
from .disconnect import byebye
from .info import conn_info, conn_update, creator_info, name_list
from .match import match_add, match_remove
from .name_commands import name_acquire, name_release
from .receive import free, recv
from .send import send

if TYPE_CHECKING:
    from ..base.call import Call
    from .connection import Connection

_RECEIVERS: Final = ORDINARY | MONITOR | ACTIVATOR
_ANY: Final = ORDINARY | ACTIVATOR | POLICY_HOLDER | MONITOR


class _Entry:
    """A command, and the roles that may give it."""

    __slots__ = ("command", "kind", "roles")

    def __init__(self, kind: int, roles: int, command: Callable[[Connection, Call], int]) -> None:
        self.kind = kind
        self.roles = roles
        self.command = command


def _by_kind(*entries: _Entry) -> list[_Entry | None]:
    table: list[_Entry | None] = [None] * k.COUNT
    for entry in entries:
        table[entry.kind] = entry
    return table


_COMMANDS: Final = _by_kind(
    _Entry(k.SEND, ORDINARY, send),
    _Entry(k.RECV, _RECEIVERS, recv),
    _Entry(k.FREE, _RECEIVERS, free),
    _Entry(k.NAME_ACQUIRE, ORDINARY, name_acquire),
    _Entry(k.NAME_RELEASE, ORDINARY, name_release),
    _Entry(k.LIST, _ANY, name_list),
    _Entry(k.CONN_INFO, _ANY, conn_info),
    _Entry(k.BUS_CREATOR_INFO, _ANY, creator_info),
    _Entry(k.UPDATE, _ANY, conn_update),
    _Entry(k.MATCH_ADD, ORDINARY, match_add),
    _Entry(k.MATCH_REMOVE, ORDINARY, match_remove),
)


def dispatch(connection: Connection, call: Call) -> int:
    """Carry out a command of `connection`: BYEBYE, then liveness, then the table (GEN-3, GEN-4).

    Returns 0, -errno or PENDING.  Raises CommandError.
    """
    kind = connection.family.find(call.number)
    if kind == k.BYEBYE:
        return _byebye(connection, call)
    if not connection.active:
        return _refuse_dead(connection, kind)
    entry = _COMMANDS[kind] if kind >= 0 else None
    if entry is None:
        return -connection.family.rules.wrong_state if kind >= 0 else -ENOTTY
    if not connection.role & entry.roles:
        return -EOPNOTSUPP
    return entry.command(connection, call)


_SETUP: Final = (k.BUS_MAKE, k.ENDPOINT_MAKE, k.HELLO)


def _refuse_dead(connection: Connection, kind: int) -> int:
    """GEN-3; L-3 to L-5."""
    if connection.family.rules.unknown_first:
        if kind < 0:
            return -ENOTTY
        if kind in _SETUP:
            return -EBADFD
    return -ECONNRESET


def _byebye(connection: Connection, call: Call) -> int:
    """BYE-1; L-5, L-7, L-41.  Raises CommandError: EALREADY, EBUSY, and those of the struct where there is one."""
    rules = connection.family.rules
    if rules.checks_byebye and not connection.active:
        return -ECONNRESET
    if connection.role != ORDINARY:
        return -EOPNOTSUPP
    if rules.checks_byebye:
        connection.family.decode(k.BYEBYE, call)
        connection.check_active()
    byebye(connection)
    return 0
