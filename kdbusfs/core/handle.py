"""Open files: which commands each takes, by its state and by the role of its connection (GEN-1 to GEN-4)."""

from __future__ import annotations

from collections.abc import Callable
from errno import E2BIG, EBADFD, ECONNRESET, ENOTTY, EOPNOTSUPP, EPERM, ESHUTDOWN
from select import POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from typing import TYPE_CHECKING, Final

from ..abi import commands as k
from ..abi import constants as c
from ..abi import families
from ..abi.limits import CONN_MAX_NAMES
from ..base.errors import CommandError
from ..base.handle import Handle
from .bus import Bus, make_bus
from .connection import DEAD, Connection
from .endpoint import Endpoint, make_endpoint, update_endpoint
from .hello import hello
from .info import conn_info, conn_update, creator_info, name_list, only_name
from .receive import free, recv
from .send import send

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..base.call import Call
    from ..base.ports import Caller, Memory
    from .domain import Domain


def _name_acquire(connection: Connection, call: Call) -> int:
    """NAME-3.  Raises CommandError: EINVAL, E2BIG, EPERM, and those of `NameRegistry.acquire`."""
    family = connection.family
    name = only_name(family.decode(k.NAME_ACQUIRE, call))
    if len(connection.names) >= CONN_MAX_NAMES:
        raise CommandError(E2BIG, "owns too many names")
    if not connection.may_own(name, call.caller):
        raise CommandError(EPERM, "may not own the name")
    flags = connection.bus.names.acquire(connection, name, call.flags)
    connection.bus.notifier.flush()
    family.acquired(call, flags)
    return 0


def _name_release(connection: Connection, call: Call) -> int:
    """NAME-14.  Raises CommandError: EINVAL, ESRCH."""
    name = only_name(connection.family.decode(k.NAME_RELEASE, call))
    connection.bus.names.release(connection, name)
    connection.bus.notifier.flush()
    return 0


def _match_add(connection: Connection, call: Call) -> int:
    match = connection.family.decode_match(k.MATCH_ADD, call)
    connection.check_active()
    connection.matches.add(connection, match.cookie, match.items, replace=bool(call.flags & c.MATCH_REPLACE))
    connection.family.done(k.MATCH_ADD, call)
    return 0


def _match_remove(connection: Connection, call: Call) -> int:
    match = connection.family.decode_match(k.MATCH_REMOVE, call)
    connection.check_active()
    connection.matches.remove(match.cookie)
    connection.family.done(k.MATCH_REMOVE, call)
    return 0


_ORDINARY: Final = 1
_ACTIVATOR: Final = 2
_POLICY_HOLDER: Final = 4
_MONITOR: Final = 8
_RECEIVERS: Final = _ORDINARY | _MONITOR | _ACTIVATOR
_ANY: Final = 15


class _Entry:
    """A command of a connected file, and which roles may give it."""

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


_CONNECTED: Final = _by_kind(
    _Entry(k.SEND, _ORDINARY, send),
    _Entry(k.RECV, _RECEIVERS, recv),
    _Entry(k.FREE, _RECEIVERS, free),
    _Entry(k.NAME_ACQUIRE, _ORDINARY, _name_acquire),
    _Entry(k.NAME_RELEASE, _ORDINARY, _name_release),
    _Entry(k.LIST, _ANY, name_list),
    _Entry(k.CONN_INFO, _ANY, conn_info),
    _Entry(k.BUS_CREATOR_INFO, _ANY, creator_info),
    _Entry(k.UPDATE, _ORDINARY | _POLICY_HOLDER | _MONITOR, conn_update),
    _Entry(k.MATCH_ADD, _ORDINARY, _match_add),
    _Entry(k.MATCH_REMOVE, _ORDINARY, _match_remove),
)
"""The commands of a connected file by their kind (GEN-4)."""


def _role(connection: Connection) -> int:
    if connection.is_activator:
        return _ACTIVATOR
    if connection.is_policy_holder:
        return _POLICY_HOLDER
    return _MONITOR if connection.is_monitor else _ORDINARY


class ControlHandle(Handle):
    """An open `control` file, perhaps the owner of a bus (BUS-1, FS-22 to FS-24)."""

    __slots__ = ("_busy", "_domain", "_family", "bus")

    def __init__(self, domain: Domain) -> None:
        super().__init__(k.CONTROL_FILE)
        self._domain = domain
        self._busy = False
        self._family: Family | None = None
        self.bus: Bus | None = None

    def ioctl(self, call: Call) -> int:
        """0 or -errno."""
        if not self._domain.active:
            return -ESHUTDOWN
        family = self._family or families.find(call.number)
        if family is None or family.find(call.number) != k.BUS_MAKE:
            return -ENOTTY
        # Busy: a command that is held up by its client's memory is about to make something of this file.
        if self.bus is not None or self._busy:
            return -EBADFD
        self._busy = True
        try:
            self.bus = make_bus(self._domain, family, call)
            self._family = family
        except CommandError as error:
            return -error.errno
        finally:
            self._busy = False
        return 0

    def poll(self) -> int:
        """FS-23."""
        return POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM

    def release(self) -> None:
        """The last close takes the bus along (FS-24)."""
        bus, self.bus = self.bus, None
        if bus is not None:
            assert bus.creator is not None
            self._domain.ends.begin(bus.creator.account.uid, bus.shut_down)


class EndpointHandle(Handle):
    """An open endpoint file: fresh, connected, or the owner of a custom endpoint.

    privileged: opened on the default endpoint by the bus' owner or with CAP_IPC_OWNER (PRIV-1);
    family: the ABI that it speaks, once it is a connection or owns an endpoint;
    memory: backs the pool of the connection that it may become.
    """

    __slots__ = ("_busy", "_role", "connection", "endpoint", "family", "memory", "owned", "privileged")

    def __init__(self, endpoint: Endpoint, memory: Memory, *, privileged: bool) -> None:
        super().__init__(k.ENDPOINT_FILE)
        self.endpoint = endpoint
        self.memory = memory
        self.privileged = privileged
        self.connection: Connection | None = None
        self.owned: Endpoint | None = None
        self.family: Family | None = None
        self._busy = False
        self._role = 0

    @property
    def user(self) -> int:
        """The real uid of who made its connection, also on a custom endpoint; 0 before HELLO."""
        return self.connection.credentials.ids().uid if self.connection is not None else 0

    def ioctl(self, call: Call) -> int:
        """0, -errno, or PENDING."""
        try:
            if self.connection is not None:
                return self._connected(self.connection, call)
            family = self.family or families.find(call.number)
            if family is None:
                return -ENOTTY
            kind = family.find(call.number)
            if self.owned is not None:
                if kind != k.ENDPOINT_UPDATE:
                    return -ENOTTY
                return update_endpoint(self.owned, family, call)
            if kind not in (k.HELLO, k.ENDPOINT_MAKE):
                return -ENOTTY
            return self._become(family, kind, call)
        except CommandError as error:
            return -error.errno

    def _become(self, family: Family, kind: int, call: Call) -> int:
        # A command that is held up by its client's memory is about to make something of this file.
        if self._busy:
            return -EBADFD
        self._busy = True
        try:
            if kind == k.ENDPOINT_MAKE:
                self.owned = make_endpoint(self, family, call)
                self.family = family
                return 0
            result = hello(self, family, call)
            self.family = family
            call.becomes_connection = True
            self.endpoint.bus.domain.changed.append(self)
            return result
        finally:
            self._busy = False

    def _connected(self, connection: Connection, call: Call) -> int:
        """GEN-3, GEN-4: BYEBYE, then liveness, then the command table."""
        role = self._role
        if not role:
            role = self._role = _role(connection)
        kind = connection.family.find(call.number)
        if kind == k.BYEBYE:
            if role != _ORDINARY:
                return -EOPNOTSUPP
            connection.byebye()
            return 0
        if not connection.active:
            return -ECONNRESET
        entry = _CONNECTED[kind] if kind >= 0 else None
        if entry is None:
            return -ENOTTY
        if not role & entry.roles:
            return -EOPNOTSUPP
        return entry.command(connection, call)

    def freed(self, offset: int) -> None:
        """The published slice at `offset` was given back by a FREE that is answered already (FREE-1)."""
        if self.connection is not None:
            self.connection.pool.free(offset)

    def poll(self) -> int:
        """POLL-1 to POLL-3."""
        return self.connection.poll() if self.connection is not None else DEAD

    def release(self) -> None:
        """The last close (CLOSE-1, FS-25)."""
        ends = self.endpoint.bus.domain.ends
        if self.connection is not None:
            ends.begin(self.user, self._disconnect)
        elif self.owned is not None:
            assert self.owned.user is not None
            ends.begin(self.owned.user.account.uid, self._remove)
        else:
            self.memory.close()

    def _disconnect(self) -> None:
        connection = self.connection
        assert connection is not None
        connection.disconnect()
        if connection.is_ending:
            # Its bus or endpoint has ended, and whoever is busy with that goes on.
            connection.when_ended = self._close
        else:
            self._close()

    def _close(self) -> None:
        assert self.connection is not None
        self.connection.close()
        self.memory.close()

    def _remove(self) -> None:
        assert self.owned is not None
        self.owned.shut_down()
        self.memory.close()


def is_privileged(endpoint: Endpoint, caller: Caller) -> bool:
    """PRIV-1, PRIV-2: judged once, when the file is opened."""
    if endpoint.policy is not None:
        return False
    return caller.ids().euid == endpoint.bus.uid or caller.has_ipc_owner()
