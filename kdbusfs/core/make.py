"""BUS_MAKE, ENDPOINT_MAKE and ENDPOINT_UPDATE (BUS-2 to BUS-12, EPM-1 to EPM-6, EPU-1 to EPU-3)."""

from __future__ import annotations

from errno import EBADMSG, EEXIST, EINVAL, EPERM, ESHUTDOWN
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.commands import BUS_MAKE, ENDPOINT_MAKE, ENDPOINT_UPDATE
from ..abi.limits import BUS_BLOOM_MAX_SIZE, BUS_BLOOM_MIN_SIZE
from ..base.errors import CommandError
from .bus import Bus
from .endpoint import ENDPOINT_COST, Endpoint
from .metadata import sanitize_attach_flags
from .nodes import check_uid_prefix
from .shutdown import shut_down_endpoint
from .users import User

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..abi.values import Item
    from ..base.call import Call
    from .domain_state import DomainState

_SINGLE_ITEMS: Final = (
    c.ITEM_MAKE_NAME,
    c.ITEM_BLOOM_PARAMETER,
    c.ITEM_ATTACH_FLAGS_SEND,
    c.ITEM_ATTACH_FLAGS_RECV,
)


def make_bus(domain: DomainState, family: Family, call: Call) -> Bus:
    """KDBUS_CMD_BUS_MAKE (BUS-2 to BUS-12).

    Raises CommandError: EBADMSG, EEXIST, EINVAL, EMFILE; ENAMETOOLONG for the name.
    """
    items = family.decode(BUS_MAKE, call)
    domain.turn.spend(len(items))
    found = _single_items(items)
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
    # Check again: `collect` may block on the client, and other commands may have run.
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


def make_endpoint(parent: Endpoint, family: Family, call: Call, *, privileged: bool) -> Endpoint:
    """KDBUS_CMD_ENDPOINT_MAKE (EPM-1 to EPM-6), given on `parent` by a file that is `privileged` or not.

    Raises CommandError: EPERM, EBADMSG (no name), EEXIST (two names, or taken), EINVAL, ESHUTDOWN, ENAMETOOLONG.
    """
    if not privileged:
        raise CommandError(EPERM, "only for the bus' owner")
    items = family.decode(ENDPOINT_MAKE, call)
    bus = parent.bus
    bus.domain.turn.spend(len(items))
    name = _only_name(items)
    caller = call.caller
    ids = caller.ids()
    check_uid_prefix(name, caller.domain_uid(ids.euid))
    if not bus.active:
        raise CommandError(ESHUTDOWN, "bus is gone")
    flags = call.flags
    account = bus.domain.users.get(caller.user).account
    user = User(ids.euid, account)
    endpoint = Endpoint(bus, name.decode("ascii"), flags, ids.euid, ids.egid, user)
    account.charge(ENDPOINT_COST)
    try:
        bus.add_endpoint(endpoint)
    except CommandError:
        account.uncharge(ENDPOINT_COST)
        bus.domain.users.forget_if_idle(account)
        raise
    try:
        endpoint.set_policy(items, caller)
    except CommandError:
        shut_down_endpoint(endpoint)
        raise
    return endpoint


def _only_name(items: list[Item]) -> bytes:
    found: bytes | None = None
    for item in items:
        if item.kind == c.ITEM_MAKE_NAME:
            if found is not None:
                raise CommandError(EEXIST, "second name")
            found = item.text
    if found is None:
        raise CommandError(EBADMSG, "endpoint without a name")
    return found


def update_endpoint(endpoint: Endpoint, family: Family, call: Call) -> int:
    """KDBUS_CMD_ENDPOINT_UPDATE (EPU-1 to EPU-3).  Raises what `PolicyDb.replace` raises."""
    items = family.decode(ENDPOINT_UPDATE, call)
    endpoint.bus.domain.turn.spend(len(items))
    endpoint.set_policy(items, call.caller)
    family.done(ENDPOINT_UPDATE, call)
    return 0
