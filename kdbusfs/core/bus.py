"""A bus: its endpoints, connections, names, policy, and how a message reaches many."""

from __future__ import annotations

from errno import EBADMSG, EEXIST, EINVAL, ESHUTDOWN
from itertools import count
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.commands import BUS_MAKE
from ..abi.limits import BUS_BLOOM_MAX_SIZE, BUS_BLOOM_MIN_SIZE
from ..base.errors import CommandError
from ..base.ports import ProcessMetadata
from .endpoint import Endpoint
from .match import CLASSES, USER_MESSAGES
from .match_index import MatchIndex
from .metadata import sanitize_attach_flags
from .names import NameRegistry
from .nodes import access_mode, check_uid_prefix
from .notify import Notifier
from .policy import PolicyDb

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..abi.values import Item
    from ..base.call import Call
    from .connection import Connection
    from .domain import Domain
    from .quota import User

_SINGLE_ITEMS: Final = (
    c.ITEM_MAKE_NAME,
    c.ITEM_BLOOM_PARAMETER,
    c.ITEM_ATTACH_FLAGS_SEND,
    c.ITEM_ATTACH_FLAGS_RECV,
)


class Bus:
    """One bus of a domain; a directory of the mount.

    flags: of BUS_MAKE, verbatim (BUS-10); attach_flags_required: what every connection must agree to send;
    attach_flags_owner: which creator metadata may be asked for; listeners: for each class of matches those of all
    connections; monitors, connections: by id.
    """

    def __init__(self, domain: Domain, name: str, flags: int, uid: int, gid: int) -> None:
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
        self.connections: dict[int, Connection] = {}
        self.monitors: dict[int, Connection] = {}
        self.listeners = {rule_class: MatchIndex(domain.turn) for rule_class in CLASSES}
        self.user_listeners = self.listeners[USER_MESSAGES]
        self.policy = PolicyDb()
        self.notifier = Notifier(domain, self.connections, self.monitors, self.listeners)
        self.names = NameRegistry(self.notifier)
        self._connection_ids = count(1)

    def next_connection_id(self) -> int:
        """1, 2, 3...; never given twice (HELLO-10)."""
        return next(self._connection_ids)

    def add_connection(self, connection: Connection) -> None:
        self.connections[connection.id] = connection
        connection.endpoint.connections[connection.id] = connection
        if connection.is_monitor:
            self.monitors[connection.id] = connection

    def remove_connection(self, connection: Connection) -> None:
        """From now on nobody can address it."""
        del self.connections[connection.id]
        del connection.endpoint.connections[connection.id]
        self.monitors.pop(connection.id, None)

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Raises CommandError(EEXIST) for a name that is taken."""
        if endpoint.name in self.endpoints:
            raise CommandError(EEXIST, "endpoint exists")
        endpoint.ino = self.domain.take_ino()
        self.endpoints[endpoint.name] = endpoint

    def shut_down(self) -> None:
        """Remove all connections, then the endpoints, then the directory (FS-24, FS-26, SHUT-1).  Idempotent.

        From the first moment on nobody comes in, and nobody is told of those who leave.  Others may be served while
        the connections end one after the other.
        """
        if not self.active:
            return
        self.active = False
        self.notifier.drop()
        turn = self.domain.turn
        endpoints = list(self.endpoints.values())
        for endpoint in endpoints:
            endpoint.active = False
        for connection in list(self.connections.values()):
            connection.disconnect()
            turn.spend()
        for endpoint in endpoints:
            endpoint.remove()
            turn.spend()
        self.domain.remove_bus(self)
        # No cycles are left for the garbage collector.
        self.names.forget(turn)
        for index in self.listeners.values():
            index.forget()


def make_bus(domain: Domain, family: Family, call: Call) -> Bus:
    """KDBUS_CMD_BUS_MAKE (BUS-2 to BUS-12).

    Raises CommandError: EBADMSG, EEXIST, EINVAL, EMFILE; ENAMETOOLONG for the name.
    """
    found = _single_items(family.decode(BUS_MAKE, call))
    name = found.get(c.ITEM_MAKE_NAME)
    bloom = found.get(c.ITEM_BLOOM_PARAMETER)
    if name is None or bloom is None:
        raise CommandError(EBADMSG, "name or bloom parameters missing")
    bloom_size, n_hash = bloom.numbers
    if not BUS_BLOOM_MIN_SIZE <= bloom_size <= BUS_BLOOM_MAX_SIZE or bloom_size % 8 or n_hash < 1:
        raise CommandError(EINVAL, "bad bloom parameters")
    required = sanitize_attach_flags(_number(found.get(c.ITEM_ATTACH_FLAGS_RECV)))
    shown = sanitize_attach_flags(_number(found.get(c.ITEM_ATTACH_FLAGS_SEND)))
    caller = call.caller
    ids = caller.ids()
    check_uid_prefix(name.text, caller.domain_uid(ids.euid))

    flags = call.flags
    bus = Bus(domain, name.text.decode("ascii"), flags, ids.euid, ids.egid)
    bus.bloom_size = bloom_size
    bus.bloom_n_hash = n_hash
    bus.attach_flags_required = required
    bus.attach_flags_owner = shown
    bus.id = domain.next_bus_id()
    bus.id128 = domain.host.random_uuid()
    if bus.name in domain.buses:
        raise CommandError(EEXIST, "bus exists")
    caller.collect(bus.creator_metadata, c.ATTACH_PROCESS)
    # Looked at again: `collect` may be held up by the client.
    if not domain.active:
        raise CommandError(ESHUTDOWN, "domain is gone")
    if bus.name in domain.buses:
        raise CommandError(EEXIST, "bus exists")
    domain.add_bus(bus, caller.user)
    bus.add_endpoint(Endpoint(bus, "bus", flags, ids.euid, ids.egid))
    return bus


def _single_items(items: list[Item]) -> dict[int, Item]:
    found: dict[int, Item] = {}
    for item in items:
        if item.kind not in _SINGLE_ITEMS:
            raise CommandError(EINVAL, "item that no BUS_MAKE may have")
        if item.kind in found:
            raise CommandError(EEXIST, "item given twice")
        found[item.kind] = item
    return found


def _number(item: Item | None) -> int:
    return item.numbers[0] if item is not None else 0
