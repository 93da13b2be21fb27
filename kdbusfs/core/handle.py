"""Open files: what each is, and which commands it takes in its state (GEN-1 to GEN-4, BUS-1, PRIV-1)."""

from __future__ import annotations

from errno import EBADFD, ENOTTY, ESHUTDOWN
from select import POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from typing import TYPE_CHECKING

from ..abi import commands as k
from ..abi import families
from ..base.errors import CommandError
from ..base.handle import Handle
from .connection import DEAD
from .disconnect import close, disconnect
from .dispatch import dispatch
from .hello import answer_hello, hello
from .make import make_bus, make_endpoint, update_endpoint
from .opener import Opener
from .shutdown import shut_down_bus, shut_down_endpoint

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..base.call import Call
    from ..base.ports import Caller, Memory
    from .bus import Bus
    from .connection import Connection
    from .domain_state import DomainState
    from .endpoint import Endpoint


class ControlHandle(Handle):
    """An open `control` file, perhaps the owner of a bus (BUS-1, FS-22 to FS-24)."""

    __slots__ = ("_busy", "_domain", "_family", "bus")

    def __init__(self, domain: DomainState) -> None:
        super().__init__(k.CONTROL_FILE)
        self._domain = domain
        self._busy = False
        self._family: Family | None = None
        self.bus: Bus | None = None

    def ioctl(self, call: Call) -> int:
        """0 or -errno."""
        family = self._family or families.find(self.file_kind, call)
        kind = family.find(call.number) if family is not None else -1
        if family is not None and family.rules.unknown_first:
            if kind != k.BUS_MAKE:
                return -ENOTTY if kind < 0 else -EBADFD  # L-3, L-4
            if self.bus is not None:
                return -EBADFD
        if not self._domain.active:
            return -ESHUTDOWN
        if family is None or kind != k.BUS_MAKE:
            return -ENOTTY
        # Busy: another command on this file is blocked on client memory, and is going to turn it into something.
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
        """FS-23; L-9."""
        if self._family is not None and not self._family.rules.control_polls_ready:
            return DEAD
        return POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM

    def release(self) -> None:
        """The last close ends the bus (FS-24)."""
        bus, self.bus = self.bus, None
        if bus is not None:
            assert bus.creator is not None
            self._domain.ends.begin(bus.creator.account.uid, lambda: shut_down_bus(bus))


class EndpointHandle(Handle):
    """An open endpoint file: fresh, connected, or the owner of a custom endpoint.

    privileged: opened on the default endpoint by the bus' owner or with CAP_IPC_OWNER (PRIV-1);
    opener: who opened it; family: the ABI that it speaks, once it is a connection or owns an endpoint;
    memory: backs the pool of the connection that it may become.
    """

    __slots__ = ("_busy", "connection", "endpoint", "family", "memory", "opener", "owned", "privileged")

    def __init__(self, endpoint: Endpoint, memory: Memory, opener: Opener, *, privileged: bool) -> None:
        super().__init__(k.ENDPOINT_FILE, endpoint.bus.id)
        self.endpoint = endpoint
        self.memory = memory
        self.opener = opener
        self.privileged = privileged
        self.connection: Connection | None = None
        self.owned: Endpoint | None = None
        self.family: Family | None = None
        self._busy = False

    @property
    def user(self) -> int:
        """The real uid of who made its connection, also on a custom endpoint; 0 before HELLO."""
        return self.connection.credentials.ids().uid if self.connection is not None else 0

    def ioctl(self, call: Call) -> int:
        """0, -errno, or PENDING."""
        try:
            if self.connection is not None:
                return dispatch(self.connection, call)
            family = self.family or families.find(self.file_kind, call)
            kind = family.find(call.number) if family is not None else -1
            if family is None or kind < 0:
                return -ENOTTY
            if self.owned is not None:
                return self._owner(self.owned, family, kind, call)
            return self._fresh(family, kind, call)
        except CommandError as error:
            return -error.errno

    def _owner(self, owned: Endpoint, family: Family, kind: int, call: Call) -> int:
        """EPM-3; L-3, L-6."""
        rules = family.rules
        if rules.endpoint_ends and kind not in (k.BUS_MAKE, k.ENDPOINT_MAKE, k.HELLO) and not owned.active:
            return -ESHUTDOWN
        if kind != k.ENDPOINT_UPDATE:
            return -rules.wrong_state
        return update_endpoint(owned, family, call)

    def _fresh(self, family: Family, kind: int, call: Call) -> int:
        """GEN-1; L-3, L-6."""
        rules = family.rules
        if rules.endpoint_ends and kind in (k.BUS_MAKE, k.ENDPOINT_MAKE, k.HELLO) and not self.endpoint.active:
            return -ESHUTDOWN
        if kind not in (k.HELLO, k.ENDPOINT_MAKE):
            return -rules.wrong_state
        return self._become(family, kind, call)

    def _become(self, family: Family, kind: int, call: Call) -> int:
        # Another command on this file is blocked on client memory, and is going to turn it into something.
        if self._busy:
            return -EBADFD
        self._busy = True
        try:
            if kind == k.ENDPOINT_MAKE:
                self.owned = make_endpoint(self.endpoint, family, call, privileged=self.privileged)
                self.family = family
                return 0
            self.connection, offset, size = hello(
                self, self.endpoint, self.memory, family, call, self.opener, privileged=self.privileged
            )
            self.family = family
            answer_hello(self.connection, call, offset, size)
            call.becomes_connection = True
            self.endpoint.bus.domain.changed.append(self)
            return 0
        finally:
            self._busy = False

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
        disconnect(connection)
        if connection.is_ending:
            # The end of its bus or endpoint is running, and includes this one.
            connection.when_ended = self._close
        else:
            self._close()

    def _close(self) -> None:
        assert self.connection is not None
        close(self.connection)
        self.memory.close()

    def _remove(self) -> None:
        assert self.owned is not None
        shut_down_endpoint(self.owned)
        self.memory.close()


def is_privileged(endpoint: Endpoint, caller: Caller) -> bool:
    """PRIV-1, PRIV-2: evaluated once, when the file is opened."""
    if endpoint.policy is not None:
        return False
    return caller.ids().euid == endpoint.bus.uid or caller.has_ipc_owner()
