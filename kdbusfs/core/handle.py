"""Open files: which commands each takes, by its state and by the role of its connection (GEN-1 to GEN-4)."""

from __future__ import annotations

from collections.abc import Callable
from errno import E2BIG, EBADFD, ECONNRESET, ENOTTY, EOPNOTSUPP, EPERM, ESHUTDOWN
from select import POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from ..abi import constants as c
from ..abi.commands import COMMANDS
from ..abi.errors import KdbusError
from ..abi.layouts import U64
from ..abi.limits import CONN_MAX_NAMES
from .bus import Bus, make_bus
from .connection import DEAD, Connection
from .endpoint import Endpoint, make_endpoint, update_endpoint
from .hello import hello
from .info import conn_info, conn_update, creator_info, name_list, only_name
from .receive import free, recv
from .send import send

if TYPE_CHECKING:
    from .call import Call
    from .domain import Domain
    from .ports import Caller, Memory

_ACQUIRE: Final = COMMANDS[c.CMD_NAME_ACQUIRE]
_RELEASE: Final = COMMANDS[c.CMD_NAME_RELEASE]
_MATCH_ADD: Final = COMMANDS[c.CMD_MATCH_ADD]
_MATCH_REMOVE: Final = COMMANDS[c.CMD_MATCH_REMOVE]
_MATCH_COOKIE_OFFSET: Final = 8


def _name_acquire(connection: Connection, call: Call) -> int:
    """NAME-3.  Raises KdbusError: EINVAL, E2BIG, EPERM, and those of `NameRegistry.acquire`."""
    call.check_size(_ACQUIRE)
    call.clear_return_flags(_ACQUIRE)
    kernel_flags = bytes(call.command[16:24])
    items = call.begin(_ACQUIRE)
    name = only_name(items)
    if len(connection.names) >= CONN_MAX_NAMES:
        raise KdbusError(E2BIG, "owns too many names")
    if not connection.may_own(name, call.caller):
        raise KdbusError(EPERM, "may not own the name")
    flags = U64.unpack_from(call.command, _ACQUIRE.flags_offset)[0]
    flags = connection.bus.names.acquire(connection, name, flags)
    connection.bus.notifier.flush()
    U64.pack_into(call.command, _ACQUIRE.flags_offset, flags)
    # The struct that is copied back was taken before the negotiation (GEN-14).
    call.command[16:24] = kernel_flags
    return 0


def _name_release(connection: Connection, call: Call) -> int:
    """NAME-14.  Raises KdbusError: EINVAL, ESRCH."""
    call.check_size(_RELEASE)
    call.clear_return_flags(_RELEASE)
    connection.bus.names.release(connection, only_name(call.begin(_RELEASE)))
    connection.bus.notifier.flush()
    return 0


def _match_add(connection: Connection, call: Call) -> int:
    items = call.begin(_MATCH_ADD)
    cookie = U64.unpack_from(call.command, _MATCH_COOKIE_OFFSET)[0]
    flags = U64.unpack_from(call.command, _MATCH_ADD.flags_offset)[0]
    connection.check_active()
    connection.matches.add(cookie, items, replace=bool(flags & c.MATCH_REPLACE))
    call.clear_return_flags(_MATCH_ADD)
    return 0


def _match_remove(connection: Connection, call: Call) -> int:
    call.begin(_MATCH_REMOVE)
    connection.check_active()
    connection.matches.remove(U64.unpack_from(call.command, _MATCH_COOKIE_OFFSET)[0])
    call.clear_return_flags(_MATCH_REMOVE)
    return 0


_ORDINARY: Final = 1
_ACTIVATOR: Final = 2
_POLICY_HOLDER: Final = 4
_MONITOR: Final = 8
_RECEIVERS: Final = _ORDINARY | _MONITOR | _ACTIVATOR
_ANY: Final = 15


class _Entry:
    """A command of a connected file, and which roles may give it."""

    __slots__ = ("command", "number", "roles")

    def __init__(self, number: int, roles: int, command: Callable[[Connection, Call], int]) -> None:
        self.number = number
        self.roles = roles
        self.command = command


def _by_low_byte(*entries: _Entry) -> list[_Entry | None]:
    table: list[_Entry | None] = [None] * 256
    for entry in entries:
        table[entry.number & 0xFF] = entry
    return table


_CONNECTED: Final = _by_low_byte(
    _Entry(c.CMD_SEND, _ORDINARY, send),
    _Entry(c.CMD_RECV, _RECEIVERS, recv),
    _Entry(c.CMD_FREE, _RECEIVERS, free),
    _Entry(c.CMD_NAME_ACQUIRE, _ORDINARY, _name_acquire),
    _Entry(c.CMD_NAME_RELEASE, _ORDINARY, _name_release),
    _Entry(c.CMD_NAME_LIST, _ANY, name_list),
    _Entry(c.CMD_CONN_INFO, _ANY, conn_info),
    _Entry(c.CMD_BUS_CREATOR_INFO, _ANY, creator_info),
    _Entry(c.CMD_CONN_UPDATE, _ORDINARY | _POLICY_HOLDER | _MONITOR, conn_update),
    _Entry(c.CMD_MATCH_ADD, _ORDINARY, _match_add),
    _Entry(c.CMD_MATCH_REMOVE, _ORDINARY, _match_remove),
)
"""The commands of a connected file (GEN-4), by what differs in all numbers."""


def _role(connection: Connection) -> int:
    if connection.is_activator:
        return _ACTIVATOR
    if connection.is_policy_holder:
        return _POLICY_HOLDER
    return _MONITOR if connection.is_monitor else _ORDINARY


@mypyc_attr(allow_interpreted_subclasses=True)
class Handle:
    """What the core keeps for an open file description.

    fhs: the numbers that whoever serves it knows it by; is_copied: its client reads copies, which have to be up to date
    when it is told where something is.
    """

    __slots__ = ("fhs", "is_copied")

    def __init__(self) -> None:
        self.fhs: list[int] = []
        self.is_copied = False

    def ioctl(self, call: Call) -> int:
        """Carry out a command: 0, -errno, or PENDING where the answer comes later."""
        raise NotImplementedError

    def poll(self) -> int:
        """Its readiness now, as POLL* bits."""
        raise NotImplementedError

    def release(self) -> None:
        """Its last descriptor is gone."""
        raise NotImplementedError


class ControlHandle(Handle):
    """An open `control` file, perhaps the owner of a bus (BUS-1, FS-22 to FS-24)."""

    __slots__ = ("_busy", "_domain", "bus")

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        self._domain = domain
        self._busy = False
        self.bus: Bus | None = None

    def ioctl(self, call: Call) -> int:
        """0 or -errno."""
        if not self._domain.active:
            return -ESHUTDOWN
        if call.number != c.CMD_BUS_MAKE:
            return -ENOTTY
        # Busy: a command that is held up by its client's memory is about to make something of this file.
        if self.bus is not None or self._busy:
            return -EBADFD
        self._busy = True
        try:
            self.bus = make_bus(self._domain, call)
        except KdbusError as error:
            return -error.errno
        finally:
            self._busy = False
        return 0

    def poll(self) -> int:
        """FS-23."""
        return POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM

    def release(self) -> None:
        """The last close takes the bus along (FS-24)."""
        if self.bus is not None:
            self.bus.shut_down()
            self.bus = None


class EndpointHandle(Handle):
    """An open endpoint file: fresh, connected, or the owner of a custom endpoint.

    privileged: opened on the default endpoint by the bus' owner or with CAP_IPC_OWNER (PRIV-1);
    memory: backs the pool of the connection that it may become.
    """

    __slots__ = ("_busy", "_role", "connection", "endpoint", "memory", "owned", "privileged")

    def __init__(self, endpoint: Endpoint, memory: Memory, *, privileged: bool) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.memory = memory
        self.privileged = privileged
        self.connection: Connection | None = None
        self.owned: Endpoint | None = None
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
            if self.owned is not None:
                if call.number != c.CMD_ENDPOINT_UPDATE:
                    return -ENOTTY
                return update_endpoint(self.owned, call)
            if call.number not in (c.CMD_HELLO, c.CMD_ENDPOINT_MAKE):
                return -ENOTTY
            return self._become(call)
        except KdbusError as error:
            return -error.errno

    def _become(self, call: Call) -> int:
        # A command that is held up by its client's memory is about to make something of this file.
        if self._busy:
            return -EBADFD
        self._busy = True
        try:
            if call.number == c.CMD_ENDPOINT_MAKE:
                self.owned = make_endpoint(self, call)
                return 0
            result = hello(self, call)
            self.endpoint.bus.domain.changed.append(self)
            return result
        finally:
            self._busy = False

    def _connected(self, connection: Connection, call: Call) -> int:
        """GEN-3, GEN-4: BYEBYE, then liveness, then the command table."""
        role = self._role
        if not role:
            role = self._role = _role(connection)
        if call.number == c.CMD_BYEBYE:
            if role != _ORDINARY:
                return -EOPNOTSUPP
            connection.byebye()
            return 0
        if not connection.active:
            return -ECONNRESET
        entry = _CONNECTED[call.number & 0xFF]
        if entry is None or entry.number != call.number:
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
        if self.connection is not None:
            self.connection.close()
        elif self.owned is not None:
            self.owned.shut_down()
        self.memory.close()


def is_privileged(endpoint: Endpoint, caller: Caller) -> bool:
    """PRIV-1, PRIV-2: judged once, when the file is opened."""
    if endpoint.policy is not None:
        return False
    return caller.ids().euid == endpoint.bus.uid or caller.has_ipc_owner()
