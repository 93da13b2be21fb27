"""Users: the subjects of accounting for connections, buses and memory (EPM-7, NS-5, QUO-3).

A user is a real uid in the domain, or everybody who uses one custom endpoint.
"""

from __future__ import annotations

from errno import EMFILE

from ..abi.limits import USER_MAX_BUSES, USER_MAX_CONN
from ..base.account import Account, Total
from ..base.errors import CommandError


class User:
    """Counters of one user.  The users of a custom endpoint hold their memory on the account of its maker."""

    __slots__ = ("account", "buses", "connections", "uid")

    def __init__(self, uid: int, account: Account) -> None:
        self.uid = uid
        self.account = account
        self.connections = 0
        self.buses = 0

    def add_connection(self) -> None:
        """Raises CommandError(EMFILE) beyond 1024 connections (HELLO-13)."""
        if self.connections >= USER_MAX_CONN:
            raise CommandError(EMFILE, "too many connections of this user")
        self.connections += 1

    def add_bus(self) -> None:
        """Raises CommandError(EMFILE) beyond 16 buses (BUS-7)."""
        if self.buses >= USER_MAX_BUSES:
            raise CommandError(EMFILE, "too many buses of this user")
        self.buses += 1

    @property
    def idle(self) -> bool:
        return not (self.connections or self.buses or self.account.used)


class Users:
    """The accounts of a domain by real uid (NS-5); one exists while it has anything on it."""

    __slots__ = ("_users", "memory", "memory_limit")

    def __init__(self, memory_limit: int, memory: Total) -> None:
        self.memory_limit = memory_limit
        self.memory = memory
        self._users: dict[int, User] = {}

    def __len__(self) -> int:
        self._forget_idle()
        return len(self._users)

    def get(self, uid: int) -> User:
        user = self._users.get(uid)
        if user is None:
            self._forget_idle()
            user = self._users[uid] = User(uid, Account(uid, self.memory_limit, self.memory))
        return user

    def forget_if_idle(self, account: Account) -> None:
        """Remove the user of `account` if nothing is charged to it any more."""
        user = self._users.get(account.uid)
        if user is not None and user.account is account and user.idle:
            del self._users[account.uid]

    def _forget_idle(self) -> None:
        """The last charge of a user who has left may have been a message."""
        for uid in [uid for uid, user in self._users.items() if user.idle]:
            del self._users[uid]
