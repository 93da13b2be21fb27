"""A bus: its endpoints, connections, names, matches, policy."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from errno import EEXIST
from itertools import count
from typing import TYPE_CHECKING

from ..base.errors import CommandError
from ..base.ports import ProcessMetadata
from .match import CLASSES, USER_MESSAGES
from .match_index import MatchIndex
from .name_table import NameTable
from .nodes import access_mode
from .notifications import Notifications
from .policy import PolicyDb

if TYPE_CHECKING:
    from .connection import Connection
    from .domain_state import DomainState
    from .endpoint import Endpoint
    from .users import User


class Bus:
    """One bus of a domain; a directory of the mount.

    flags: of BUS_MAKE, verbatim (BUS-10); attach_flags_required: what every connection must agree to send;
    attach_flags_owner: which creator metadata may be asked for; listeners: for each class of matches those of all
    connections; monitors, connections: by id.
    """

    def __init__(self, domain: DomainState, name: str, flags: int, uid: int, gid: int) -> None:
        self.domain = domain
        self.name = name
        self.flags = flags
        self.uid = uid
        self.gid = gid
        self.mode = access_mode(flags, 0o500, 0o050, 0o005)
        self.id = 0
        self.ino = 0
        self.id128 = b""
        self.active = True
        self.bloom_size = 0
        self.bloom_n_hash = 0
        self.attach_flags_required = 0
        self.attach_flags_owner = 0
        self.creator: User | None = None
        self.creator_metadata = ProcessMetadata()
        self.endpoints: dict[str, Endpoint] = {}
        self._by_ino: dict[int, Endpoint] = {}
        self._inos: list[int] = []
        self.connections: dict[int, Connection] = {}
        self.monitors: dict[int, Connection] = {}
        self.listeners = {rule_class: MatchIndex(domain.turn) for rule_class in CLASSES}
        self.user_listeners = self.listeners[USER_MESSAGES]
        self.policy = PolicyDb()
        self.notifications = Notifications()
        self.names = NameTable()
        self._connection_ids = count(1)

    def next_connection_id(self) -> int:
        """1, 2, 3...; never reused (HELLO-10)."""
        return next(self._connection_ids)

    def add_connection(self, connection: Connection) -> None:
        self.connections[connection.id] = connection
        connection.endpoint.connections[connection.id] = connection
        if connection.is_monitor:
            self.monitors[connection.id] = connection

    def remove_connection(self, connection: Connection) -> None:
        """From now on it cannot be addressed."""
        del self.connections[connection.id]
        del connection.endpoint.connections[connection.id]
        self.monitors.pop(connection.id, None)

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Raises CommandError(EEXIST) for a name that is taken."""
        if endpoint.name in self.endpoints:
            raise CommandError(EEXIST, "endpoint exists")
        endpoint.ino = self.domain.inos.take()
        self.endpoints[endpoint.name] = endpoint
        insort(self._inos, endpoint.ino)
        self._by_ino[endpoint.ino] = endpoint

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        del self.endpoints[endpoint.name]
        del self._inos[bisect_left(self._inos, endpoint.ino)]
        del self._by_ino[endpoint.ino]
        self.domain.inos.give(endpoint.ino)

    def endpoints_behind(self, ino: int, count: int) -> list[Endpoint]:
        """Those with a greater inode number, the first `count` in the order of these: there may be 16384 (FS-12)."""
        first = bisect_right(self._inos, ino)
        return [self._by_ino[each] for each in self._inos[first : first + count]]
