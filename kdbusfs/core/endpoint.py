"""Endpoints: the files of a bus through which connections are made."""

from __future__ import annotations

from errno import EBADMSG, EPERM, ESHUTDOWN
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.commands import COMMANDS
from ..abi.errors import KdbusError
from ..abi.items import Item, find_one
from ..abi.layouts import U64
from .nodes import access_mode, check_uid_prefix
from .policy import PolicyDb
from .quota import User

if TYPE_CHECKING:
    from .bus import Bus
    from .call import Call
    from .connection import Connection
    from .handle import EndpointHandle
    from .ports import Caller

_MAKE: Final = COMMANDS[c.CMD_ENDPOINT_MAKE]
_UPDATE: Final = COMMANDS[c.CMD_ENDPOINT_UPDATE]


class Endpoint:
    """An endpoint file.  A custom one has a policy of its own, and one account for all its users (EPM-7)."""

    def __init__(self, bus: Bus, name: str, access: int, uid: int, gid: int, *, custom: bool) -> None:
        self.bus = bus
        self.name = name
        self.uid = uid
        self.gid = gid
        self.mode = access_mode(access, 0o600, 0o060, 0o006)
        self.ino = 0
        self.active = True
        self.policy: PolicyDb | None = PolicyDb() if custom else None
        self.user: User | None = User(uid, bus.domain.users.memory_limit) if custom else None
        self.connections: dict[int, Connection] = {}

    def set_policy(self, items: list[Item], caller: Caller) -> None:
        """Replace the whole policy (EPU-1).  Raises what `PolicyDb.replace` raises."""
        assert self.policy is not None
        self.policy.replace(self, items, caller, only_one=False, wildcards=True)

    def shut_down(self) -> None:
        """Disconnect all its connections, one after the other, then vanish (FS-26, SHUT-5).  Idempotent."""
        if not self.active:
            return
        self.active = False
        for connection in list(self.connections.values()):
            connection.disconnect()
        del self.bus.endpoints[self.name]
        self.bus.domain.give_ino(self.ino)


def make_endpoint(handle: EndpointHandle, call: Call) -> Endpoint:
    """KDBUS_CMD_ENDPOINT_MAKE (EPM-1 to EPM-6).

    Raises KdbusError: EPERM, EBADMSG (no name), EEXIST (two names, or taken), EINVAL, ESHUTDOWN, ENAMETOOLONG.
    """
    if not handle.privileged:
        raise KdbusError(EPERM, "only for the bus' owner")
    call.check_size(_MAKE)
    call.clear_return_flags(_MAKE)
    items = call.begin(_MAKE)
    name = find_one(items, c.ITEM_MAKE_NAME)
    if name is None:
        raise KdbusError(EBADMSG, "endpoint without a name")
    bus = handle.endpoint.bus
    caller = call.caller
    ids = caller.ids()
    check_uid_prefix(name, caller.domain_uid(ids.euid))
    if not bus.active:
        raise KdbusError(ESHUTDOWN, "bus is gone")
    flags = U64.unpack_from(call.command, _MAKE.flags_offset)[0]
    endpoint = Endpoint(bus, name[:-1].decode("ascii"), flags, ids.euid, ids.egid, custom=True)
    bus.add_endpoint(endpoint)
    try:
        endpoint.set_policy(items, caller)
    except KdbusError:
        endpoint.shut_down()
        raise
    return endpoint


def update_endpoint(endpoint: Endpoint, call: Call) -> int:
    """KDBUS_CMD_ENDPOINT_UPDATE (EPU-1 to EPU-3).  Raises what `PolicyDb.replace` raises."""
    items = call.begin(_UPDATE)
    endpoint.set_policy(items, call.caller)
    call.clear_return_flags(_UPDATE)
    return 0
