"""HELLO: from an open endpoint file to a connection on the bus (HELLO-1 to HELLO-22)."""

from __future__ import annotations

from errno import ECONNREFUSED, EINVAL, EOPNOTSUPP, EPERM, ESHUTDOWN
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.names import is_valid_name
from ..base.errors import CommandError
from ..base.pool import Pool
from ..base.ports import ProcessMetadata
from .connection import Connection
from .disconnect import disconnect
from .metadata import fake_process, held_bytes, sanitize_attach_flags
from .names import acquire
from .notify import flush
from .split_delivery import SplitDelivery
from .whole_delivery import WholeDelivery

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..abi.rules import Rules
    from ..abi.values import Hello, Item
    from ..base.call import Call
    from ..base.handle import Handle
    from ..base.ports import Caller, Memory
    from .endpoint import Endpoint
    from .opener import Opener

_IGNORED_ITEMS: Final = frozenset(
    (
        c.ITEM_POLICY_ACCESS,  # taken up by the policy of activators and policy holders
        c.ITEM_BLOOM_MASK,
        c.ITEM_ID,
        c.ITEM_NAME_ADD,
        c.ITEM_NAME_REMOVE,
        c.ITEM_NAME_CHANGE,
        c.ITEM_ID_ADD,
        c.ITEM_ID_REMOVE,
    )
)


class _Request:
    """The role and the items of a HELLO, checked in the order of its family (HELLO-3 to HELLO-7; L-34)."""

    def __init__(
        self, endpoint: Endpoint, flags: int, items: list[Item], *, items_first: bool, privileged: bool
    ) -> None:
        special = flags & c.HELLO_SPECIAL
        if special & (special - 1):
            raise CommandError(EINVAL, "more than one special role")
        self._privileged = privileged
        self._items_first = items_first
        self.takes_name = bool(special & (c.HELLO_ACTIVATOR | c.HELLO_POLICY_HOLDER))
        self.name: bytes | None = None
        self.description: bytes | None = None
        self.identity: dict[int, Item] = {}
        if not items_first:
            self._check_role(endpoint, special)
        for item in items:
            self._item(item)
        self._check_name()
        if items_first:
            self._check_role(endpoint, special)
            self._check_identity()
        self._check_wildcard(flags)

    def _check_name(self) -> None:
        # In a method of its own: in __init__, mypyc infers that `name` is None.
        if self.takes_name and self.name is None:
            raise CommandError(EINVAL, "activator or policy holder without a name")

    def _check_wildcard(self, flags: int) -> None:
        if self.name is not None and flags & c.HELLO_ACTIVATOR and self.name.endswith(b".*"):
            raise CommandError(EINVAL, "activator of a wildcard")

    def _check_role(self, endpoint: Endpoint, special: int) -> None:
        if special & c.HELLO_MONITOR and endpoint.policy is not None:
            raise CommandError(EOPNOTSUPP, "monitor on a custom endpoint")
        if special and not self._privileged:
            raise CommandError(EPERM, "special role without privilege")

    def _check_identity(self) -> None:
        if self.identity and not self._privileged:
            raise CommandError(EPERM, "faked identity without privilege")

    def _item(self, item: Item) -> None:
        kind = item.kind
        if kind == c.ITEM_NAME:
            # A wildcard is a name of policies: it cannot be owned, not even by an activator (POL-8).
            if not self.takes_name or self.name is not None or not is_valid_name(item.text, wildcard=True):
                raise CommandError(EINVAL, "name not allowed, given twice, or invalid")
            self.name = item.text
        elif kind in (c.ITEM_CREDS, c.ITEM_PIDS, c.ITEM_SECLABEL):
            self.identity[kind] = item
            if not self._items_first:
                self._check_identity()
            if kind != c.ITEM_SECLABEL and not item.numbers:
                raise CommandError(EINVAL, "identity item of wrong length")
        elif kind == c.ITEM_CONN_DESCRIPTION:
            if self.description is not None:
                raise CommandError(EINVAL, "second description")
            self.description = item.text
        elif kind not in _IGNORED_ITEMS:
            raise CommandError(EINVAL, "item that no HELLO may have")


def hello(
    handle: Handle,
    endpoint: Endpoint,
    memory: Memory,
    family: Family,
    call: Call,
    opener: Opener,
    *,
    privileged: bool,
) -> tuple[Connection, int, int]:
    """KDBUS_CMD_HELLO, given on `endpoint` by an open file of `opener`: `memory` becomes the pool.

    Returns the connection, and the offset and size of the slice that `answer_hello` returns to the client.
    Raises CommandError in the order of HELLO-1; after a failure the file can try again (HELLO-21).
    """
    wanted = family.decode_hello(call)
    flags, pool_size, items = call.flags, wanted.pool_size, wanted.items
    bus = endpoint.bus
    domain = bus.domain
    rules = family.rules
    domain.turn.spend(len(items))
    _check_pool_size(pool_size, domain.host.page_size, rules)
    request = _Request(endpoint, flags, items, items_first=rules.hello_items_first, privileged=privileged)
    attach_flags = _attach_flags(wanted, bus.attach_flags_required, rules)

    conn_id = bus.next_connection_id()
    memory.resize(pool_size)
    metadata, faked = _identity(call, request)
    counted = opener if rules.opener_counts else None
    taken = _Taken(endpoint, call.caller, counted, metadata if faked else None, memory, pool_size, rules)
    try:
        taken.hold(metadata)
        if not endpoint.active:
            raise CommandError(ESHUTDOWN, "endpoint is gone")
        connection = Connection(
            handle,
            endpoint,
            family,
            WholeDelivery() if rules.one_slice else SplitDelivery(),
            conn_id,
            flags,
            attach_flags,
            request.description,
            metadata,
            taken.credentials,
            taken.user,
            taken.pool,
            faked=faked,
            privileged=privileged,
        )
        if counted is not None:
            connection.reader = call.caller.view(counted.users)
        offset, size = _publish_bloom_parameter(connection)
        _connect(connection, request, items, call)
    except CommandError:
        taken.give_back()
        raise
    return connection, offset, size


def _check_pool_size(size: int, page_size: int, rules: Rules) -> None:
    if not size or size % page_size:
        raise CommandError(rules.bad_pool_size, "pool size is no multiple of the page size")


def _attach_flags(wanted: Hello, required: int, rules: Rules) -> tuple[int, int]:
    """The kinds of metadata to send and to receive.  Raises CommandError: EINVAL, ECONNREFUSED."""
    send = sanitize_attach_flags(wanted.attach_send)
    recv = sanitize_attach_flags(wanted.attach_recv)
    if rules.agrees_to_all:
        send |= required
    elif required & ~send:
        raise CommandError(ECONNREFUSED, "bus requires more metadata")
    return send, recv


class _Taken:
    """What a HELLO charges to the user of the new connection, and gives back if it fails."""

    __slots__ = ("_domain", "_held", "credentials", "pool", "user")

    def __init__(
        self,
        endpoint: Endpoint,
        caller: Caller,
        opener: Opener | None,
        faked: ProcessMetadata | None,
        memory: Memory,
        pool_size: int,
        rules: Rules,
    ) -> None:
        """opener: if that stands for the connection, instead of the caller; faked: what the connection pretends."""
        if opener is None:
            ids, groups, uid = caller.ids(), caller.groups(), caller.user
        else:
            ids, groups = opener.credentials(caller)
            uid = opener.accounted_uid(caller, faked)
        self._domain = endpoint.bus.domain
        self._held = 0
        self.user = endpoint.user or self._domain.users.get(uid)
        self.user.add_connection()
        self.pool = Pool(pool_size, memory, self.user.account, rules.pool_full)
        self.credentials = self._domain.credentials.take(ids, groups)

    def hold(self, metadata: ProcessMetadata) -> None:
        """Charge the user for `metadata`; groups that equal those of the credentials are stored once."""
        groups = self.credentials.groups()
        if metadata.auxgroups == groups:
            metadata.auxgroups = groups
        held = held_bytes(metadata)
        self.user.account.charge(held)
        self._held = held

    def give_back(self) -> None:
        self.pool.close(self._domain.turn)
        self.user.connections -= 1
        self.user.account.uncharge(self._held)
        self._domain.credentials.give_back(self.credentials)
        self._domain.users.forget_if_idle(self.user.account)


def answer_hello(connection: Connection, call: Call, offset: int, size: int) -> None:
    """Write the results into the client's struct (HELLO-17).  Raises CommandError(EFAULT)."""
    bus = connection.bus
    connection.family.hello_done(
        call,
        required=bus.attach_flags_required,
        bus_flags=bus.flags,
        connection_id=connection.id,
        bus_id=bus.id128,
        offset=offset,
        size=size,
    )


def _identity(call: Call, request: _Request) -> tuple[ProcessMetadata, bool]:
    """The connection's process metadata, and whether they are faked (HELLO-11, HELLO-12)."""
    if request.identity:
        creds = request.identity.get(c.ITEM_CREDS)
        pids = request.identity.get(c.ITEM_PIDS)
        seclabel = request.identity.get(c.ITEM_SECLABEL)
        return (
            fake_process(
                call.caller,
                creds.numbers if creds is not None else None,
                pids.numbers if pids is not None else None,
                seclabel.text if seclabel is not None else None,
            ),
            True,
        )
    metadata = ProcessMetadata()
    call.caller.collect(metadata, c.ATTACH_PROCESS)
    return metadata, False


def _publish_bloom_parameter(connection: Connection) -> tuple[int, int]:
    """The slice with the bus' bloom parameters, which the client has to FREE (HELLO-17, HELLO-19)."""
    bus = connection.bus
    data = connection.family.hello_items(bus.bloom_size, bus.bloom_n_hash)
    part = connection.pool.put(data)
    connection.pool.publish(part)
    return part.offset, len(data)


def _connect(connection: Connection, request: _Request, items: list[Item], call: Call) -> None:
    """Register the connection with its bus (HELLO-14 to HELLO-16, NOTE-7).

    Raises CommandError: EEXIST, EINVAL; the connection is then removed again.
    """
    connection.bus.add_connection(connection)
    connection.active = True
    try:
        _introduce(connection, request, items, call)
    except CommandError:
        disconnect(connection)
        raise


def _introduce(connection: Connection, request: _Request, items: list[Item], call: Call) -> None:
    bus = connection.bus
    if not connection.is_monitor:
        bus.notifications.id_change(c.ITEM_ID_ADD, connection.id, connection.flags)
    if connection.is_activator:
        assert request.name is not None
        acquire(connection, request.name, c.NAME_ACTIVATOR)
    flush(bus)
    # Check again: other commands may have run meanwhile.
    connection.check_active()
    if request.takes_name:
        wildcards = connection.is_policy_holder
        bus.policy.replace(connection, items, call.caller, connection.user.account, only_one=True, wildcards=wildcards)
