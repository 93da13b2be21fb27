"""Endpoints: the files of a bus through which connections are made."""

from __future__ import annotations

from errno import EBADMSG, EEXIST, EPERM, ESHUTDOWN
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.commands import ENDPOINT_MAKE, ENDPOINT_UPDATE
from ..base.errors import CommandError
from .nodes import access_mode, check_uid_prefix
from .policy import PolicyDb
from .quota import User

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..abi.values import Item
    from ..base.call import Call
    from ..base.ports import Caller
    from .bus import Bus
    from .connection import Connection
    from .handle import EndpointHandle

ENDPOINT_COST: Final = 2048
"""What a custom endpoint is charged with, in bytes."""


class Endpoint:
    """An endpoint file.  A custom one has a policy of its own, and one `user` for all who come through it (EPM-7)."""

    def __init__(self, bus: Bus, name: str, access: int, uid: int, gid: int, user: User | None = None) -> None:
        self.bus = bus
        self.name = name
        self.uid = uid
        self.gid = gid
        self.mode = access_mode(access, 0o600, 0o060, 0o006)
        self.ino = 0
        self.active = True
        self.policy: PolicyDb | None = PolicyDb() if user is not None else None
        self.user = user
        self.connections: dict[int, Connection] = {}

    def set_policy(self, items: list[Item], caller: Caller) -> None:
        """Replace the whole policy (EPU-1); without effect once the endpoint is gone (EPU-2).

        Raises what `PolicyDb.replace` raises.
        """
        assert self.policy is not None and self.user is not None
        self.policy.replace(self, items, caller, self.user.account, only_one=False, wildcards=True)
        if not self.active:
            self._drop_policy()

    def _drop_policy(self) -> None:
        if self.policy is not None and self.user is not None:
            self.policy.remove(self)
            self.bus.domain.users.forget_if_idle(self.user.account)

    def shut_down(self) -> None:
        """Disconnect all its connections, one after the other, then vanish (FS-26, SHUT-5).  Idempotent.

        Others may be served between two of them; nobody comes in any more.
        """
        if not self.active:
            return
        self.active = False
        for connection in list(self.connections.values()):
            connection.disconnect()
        self.remove()

    def remove(self) -> None:
        """Vanish from the bus.  Idempotent."""
        if self.bus.endpoints.get(self.name) is not self:
            return
        del self.bus.endpoints[self.name]
        self.bus.domain.give_ino(self.ino)
        if self.user is not None:
            self.user.account.uncharge(ENDPOINT_COST)
        self._drop_policy()


def make_endpoint(handle: EndpointHandle, family: Family, call: Call) -> Endpoint:
    """KDBUS_CMD_ENDPOINT_MAKE (EPM-1 to EPM-6).

    Raises CommandError: EPERM, EBADMSG (no name), EEXIST (two names, or taken), EINVAL, ESHUTDOWN, ENAMETOOLONG.
    """
    if not handle.privileged:
        raise CommandError(EPERM, "only for the bus' owner")
    items = family.decode(ENDPOINT_MAKE, call)
    name = _only_name(items)
    bus = handle.endpoint.bus
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
        endpoint.shut_down()
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
    endpoint.set_policy(family.decode(ENDPOINT_UPDATE, call), call.caller)
    family.done(ENDPOINT_UPDATE, call)
    return 0
