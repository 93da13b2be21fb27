"""Accounting: what each user has of connections, buses, memory, and of slots in another's queue.

A user is a real uid in the domain, or all who use one custom endpoint (EPM-7, QUO-3).
"""

from __future__ import annotations

from errno import EMFILE, ENOBUFS

from ..abi.limits import CONN_MAX_MSGS_PER_USER, USER_MAX_BUSES, USER_MAX_CONN
from ..base.errors import CommandError


class Total:
    """What all accounts of a domain hold together, in bytes."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class Account:
    """What a uid makes the daemon hold, in bytes: pools as far as used, messages, names, matches, policies.

    kdbus had no such bound: there the memory was the client's own.  A uid may hold up to `limit`, and no more than it
    leaves of the total for all others together.  So however many uids somebody commands, each next one gets at most
    half of what the one before left, and there is room for whoever needs little.
    """

    __slots__ = ("limit", "total", "uid", "used")

    def __init__(self, uid: int, limit: int, total: Total | None = None) -> None:
        self.uid = uid
        self.limit = limit
        self.total = total if total is not None else Total(2 * limit)
        self.used = 0

    def charge(self, size: int) -> None:
        """Raises CommandError(ENOBUFS) beyond the limit."""
        used = self.used + size
        total = self.total
        total_used = total.used + size
        if used > self.limit or used > total.limit - total_used:
            raise CommandError(ENOBUFS, "memory limit of this user")
        self.used = used
        total.used = total_used

    def check(self, size: int) -> None:
        """Whether there is room for `size` bytes.  Raises CommandError(ENOBUFS)."""
        used = self.used + size
        if used > self.limit or used > self.total.limit - self.total.used - size:
            raise CommandError(ENOBUFS, "memory limit of this user")

    def add(self, size: int) -> None:
        """Charge what cannot be refused any more."""
        self.used += size
        self.total.used += size

    def uncharge(self, size: int) -> None:
        self.used -= size
        self.total.used -= size


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


class QueueQuota:
    """How many accounted messages each user has in one queue (QUO-2, QUO-4)."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[User, int] = {}

    def take(self, user: User) -> None:
        """Raises CommandError(ENOBUFS) for the 17th accounted message of a user."""
        count = self._counts.get(user, 0)
        if count >= CONN_MAX_MSGS_PER_USER:
            raise CommandError(ENOBUFS, "too many messages of this user in the queue")
        self._counts[user] = count + 1

    def give_back(self, user: User) -> None:
        count = self._counts.get(user, 0)
        if count > 1:
            self._counts[user] = count - 1
        else:
            self._counts.pop(user, None)
