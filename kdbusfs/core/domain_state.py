"""The state that the buses of a domain share: ports, users, numbers, deadlines, events for the server."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from ..base.ports import ServedDomain
from .deadlines import Deadlines
from .ends import Ends
from .metadata import DEFAULT_MASK
from .nodes import InodeNumbers
from .policy import SharedCredentials
from .users import Users

if TYPE_CHECKING:
    from ..base.account import Total
    from ..base.call import Call
    from ..base.handle import Handle
    from ..base.ports import Host
    from .bus import Bus
    from .reply import Tracker


class DomainState(ServedDomain):
    """What all buses and connections of a domain share.

    host: the ports; turn: of the host; users: with their accounts of memory;
    attach_flags_mask: the system-wide mask of metadata, live (MASK-1);
    changed: handles whose `poll()` may have changed, and completed: deferred calls with their result; the server
    empties both after every call of the core; waiting: the blocked SENDs; ends: of files that were closed;
    inos: the inode numbers of its nodes.
    """

    def __init__(self, host: Host, memory: Total, memory_limit: int) -> None:
        self.host = host
        self.turn = host.turn
        self.users = Users(memory_limit, memory)
        self.credentials = SharedCredentials()
        self.active = True
        self.attach_flags_mask = DEFAULT_MASK
        self.buses: dict[str, Bus] = {}
        self.changed: list[Handle] = []
        self.completed: list[Call] = []
        self.waiting: dict[Call, Tracker] = {}
        self.deadlines = Deadlines()
        self.ends = Ends()
        self._seqnum = 0
        self._bus_ids = count(1)
        self.inos = InodeNumbers()

    def add_bus(self, bus: Bus, uid: int) -> None:
        """Raises CommandError(EMFILE) at the user's limit (BUS-7)."""
        user = self.users.get(uid)
        user.add_bus()
        bus.creator = user
        bus.ino = self.inos.take()
        self.buses[bus.name] = bus

    def remove_bus(self, bus: Bus) -> None:
        del self.buses[bus.name]
        self.inos.give(bus.ino)
        assert bus.creator is not None
        bus.creator.buses -= 1
        self.users.forget_if_idle(bus.creator.account)

    def next_seqnum(self) -> int:
        """One for every SEND and every notification of the domain (META-22)."""
        self._seqnum += 1
        return self._seqnum

    def next_bus_id(self) -> int:
        """BUS-9."""
        return next(self._bus_ids)
