"""The state of a connection, from HELLO to the last close."""

from __future__ import annotations

from collections.abc import Callable
from errno import ECONNRESET
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.values import OwnedNames
from ..base.errors import CommandError
from .match import MatchDb
from .name_table import NAME_COST
from .queue import Queue
from .reply import Requests
from .traffic import Traffic

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..base.handle import Handle
    from ..base.pool import Pool
    from ..base.ports import ProcessMetadata, Reader
    from .delivery import Delivery
    from .endpoint import Endpoint
    from .metadata import ConnMetadata
    from .name_table import NameEntry
    from .policy import PinnedCredentials
    from .users import User

_READY_TO_SEND: Final = POLLOUT | POLLWRNORM
_READY_TO_RECEIVE: Final = POLLIN | POLLRDNORM | _READY_TO_SEND
DEAD: Final = POLLERR | POLLHUP

ORDINARY: Final = 1
ACTIVATOR: Final = 2
POLICY_HOLDER: Final = 4
MONITOR: Final = 8
"""Roles: each connection has one.  Bits, so that a set of roles is a number (`core/dispatch.py`)."""


def _role(flags: int) -> int:
    """The role that the flags of HELLO ask for."""
    if flags & c.HELLO_ACTIVATOR:
        return ACTIVATOR
    if flags & c.HELLO_POLICY_HOLDER:
        return POLICY_HOLDER
    return MONITOR if flags & c.HELLO_MONITOR else ORDINARY


class Connection:
    """One connection to a bus, from HELLO to BYEBYE or the last close.

    role: ORDINARY, ACTIVATOR, POLICY_HOLDER or MONITOR; flags: of HELLO;
    family: the ABI that it speaks, in which it gets its messages; delivery: how it takes them;
    names: well-known names it owns, in order of acquisition, and name_changes: how often they changed;
    waiting_for: names it is queued for;
    requests: its own, and those that it has to answer; traffic: its counters;
    is_ending: it has left its bus, and other commands run before all effects of that are there; when_ended: callback
    for the moment when they are;
    reader: the namespaces in which it sees ids, whichever thread gives its commands; None: those of that thread;
    metadata: of its maker at HELLO, or what it faked; credentials: of its maker, for passive checks (POL-14).
    """

    __slots__ = (
        "accepts_files",
        "activator_of",
        "active",
        "attach_flags_recv",
        "attach_flags_send",
        "bus",
        "credentials",
        "delivery",
        "description",
        "endpoint",
        "faked",
        "family",
        "flags",
        "handle",
        "id",
        "is_ending",
        "matches",
        "metadata",
        "name_changes",
        "names",
        "owned_names",
        "pool",
        "privileged",
        "queue",
        "reader",
        "requests",
        "role",
        "traffic",
        "user",
        "waiting_for",
        "when_ended",
    )

    def __init__(
        self,
        handle: Handle,
        endpoint: Endpoint,
        family: Family,
        delivery: Delivery,
        conn_id: int,
        flags: int,
        attach_flags: tuple[int, int],
        description: bytes | None,
        metadata: ProcessMetadata,
        credentials: PinnedCredentials,
        user: User,
        pool: Pool,
        *,
        faked: bool,
        privileged: bool,
    ) -> None:
        self.handle: Handle | None = handle
        self.family = family
        self.delivery = delivery
        self.endpoint = endpoint
        self.bus = endpoint.bus
        self.id = conn_id
        self.flags = flags
        self.accepts_files = bool(flags & c.HELLO_ACCEPT_FD)
        self.role = _role(flags)
        self.attach_flags_send, self.attach_flags_recv = attach_flags
        self.description = description
        self.metadata = metadata
        self.credentials = credentials
        self.user = user
        self.pool = pool
        self.faked = faked
        self.privileged = privileged
        self.reader: Reader | None = None
        self.active = False
        self.is_ending = False
        self.when_ended: Callable[[], None] | None = None
        self.queue = Queue()
        self.matches = MatchDb()
        self.names: dict[bytes, NameEntry] = {}
        self.name_changes = 0
        self.owned_names: OwnedNames | None = None
        self.waiting_for: dict[bytes, NameEntry] = {}
        self.activator_of: NameEntry | None = None
        self.requests = Requests()
        self.traffic = Traffic()

    @property
    def is_ordinary(self) -> bool:
        return self.role == ORDINARY

    @property
    def is_activator(self) -> bool:
        return self.role == ACTIVATOR

    @property
    def is_policy_holder(self) -> bool:
        return self.role == POLICY_HOLDER

    @property
    def is_monitor(self) -> bool:
        return self.role == MONITOR

    def check_active(self) -> None:
        """Raises CommandError(ECONNRESET) when it has left the bus, perhaps while the present command was blocked."""
        if not self.active:
            raise CommandError(ECONNRESET, "disconnected")

    # Names

    def own(self, entry: NameEntry) -> None:
        """Record a name as owned, the newest one."""
        self.names[entry.name] = entry
        self.name_changes += 1
        self.owned_names = None
        self.user.account.charge_unchecked(NAME_COST)

    def disown(self, entry: NameEntry) -> None:
        del self.names[entry.name]
        self.name_changes += 1
        self.owned_names = None
        self.user.account.uncharge(NAME_COST)

    def names_now(self) -> OwnedNames:
        """The names with their flags (META-15); cached until they change."""
        names = self.owned_names
        if names is None:
            names = self.owned_names = OwnedNames([(entry.flags, name) for name, entry in self.names.items()])
        return names

    def describe(self, metadata: ConnMetadata, kinds: int) -> bool:
        """Add the missing ones of `kinds` to `metadata`: names, description.  Returns whether names were added."""
        kinds &= ~metadata.collected
        if kinds & c.ATTACH_NAMES:
            metadata.collected |= c.ATTACH_NAMES
            if self.names:
                metadata.names = self.names_now()
                metadata.valid |= c.ATTACH_NAMES
        if kinds & c.ATTACH_CONN_DESCRIPTION:
            metadata.collected |= c.ATTACH_CONN_DESCRIPTION
            if self.description is not None:
                metadata.description = self.description
                metadata.valid |= c.ATTACH_CONN_DESCRIPTION
        return bool(kinds & c.ATTACH_NAMES)

    # Readiness

    def poll(self) -> int:
        """POLL-2, POLL-3; L-9."""
        if not self.active:
            return DEAD
        if self.queue.count or (self.traffic.lost and self.family.rules.poll_tells_lost):
            return _READY_TO_RECEIVE
        return _READY_TO_SEND

    def lose(self) -> None:
        """Count a message that could not be queued, and whose sender is not told."""
        self.traffic.lost += 1
        if self.traffic.lost == 1 and self.family.rules.poll_tells_lost:
            self.wake()

    def wake(self) -> None:
        """Wake up the pollers."""
        handle = self.handle
        if handle is not None:
            self.bus.domain.changed.append(handle)
