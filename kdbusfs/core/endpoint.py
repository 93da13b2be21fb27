"""Endpoints: the files of a bus through which connections are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .nodes import access_mode
from .policy import PolicyDb

if TYPE_CHECKING:
    from ..abi.values import Item
    from ..base.ports import Caller
    from .bus import Bus
    from .connection import Connection
    from .users import User

ENDPOINT_COST: Final = 2048
"""Bytes charged for a custom endpoint."""


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

    def remove(self) -> None:
        """Leave the bus.  Idempotent."""
        if self.bus.endpoints.get(self.name) is not self:
            return
        self.bus.remove_endpoint(self)
        if self.user is not None:
            self.user.account.uncharge(ENDPOINT_COST)
        self._drop_policy()
