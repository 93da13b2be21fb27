"""NAME_ACQUIRE and NAME_RELEASE (NAME-3, NAME-14): the checks before `core/names.py` decides."""

from __future__ import annotations

from errno import E2BIG, EPERM
from typing import TYPE_CHECKING

from ..abi.commands import NAME_ACQUIRE, NAME_RELEASE
from ..abi.limits import CONN_MAX_NAMES
from ..base.errors import CommandError
from .name_syntax import only_name
from .names import acquire, release
from .notify import flush
from .rights import may_own

if TYPE_CHECKING:
    from ..base.call import Call
    from .connection import Connection


def name_acquire(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_NAME_ACQUIRE.  Raises CommandError: EINVAL, E2BIG, EPERM, and those of `names.acquire`."""
    family = connection.family
    name = only_name(family.decode(NAME_ACQUIRE, call))
    checks_late = family.rules.name_check_late
    if not checks_late and len(connection.names) >= CONN_MAX_NAMES:
        raise CommandError(E2BIG, "owns too many names")
    if not may_own(connection, name, call.caller):
        raise CommandError(EPERM, "may not own the name")
    if checks_late:
        _check_entries(connection, name)
    flags = acquire(connection, name, call.flags)
    flush(connection.bus)
    family.acquired(call, flags)
    return 0


def _check_entries(connection: Connection, name: bytes) -> None:
    """L-108: owned names and those that it waits for count.  Raises CommandError(E2BIG)."""
    owned, awaited = connection.names, connection.waiting_for
    if len(owned) + len(awaited) >= CONN_MAX_NAMES and name not in owned and name not in awaited:
        raise CommandError(E2BIG, "owns and waits for too many names")


def name_release(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_NAME_RELEASE.  Raises CommandError: EINVAL, and those of `names.release`."""
    family = connection.family
    items = family.decode(NAME_RELEASE, call)
    name = items[0].text if family.rules.releases_any else only_name(items)
    release(connection, name)
    flush(connection.bus)
    return 0
