"""Accounts of memory: how many bytes each user makes the server hold, and how many all of them."""

from __future__ import annotations

from errno import ENOBUFS

from .errors import CommandError


class Total:
    """What all accounts of one server hold together, in bytes."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class Account:
    """What the clients of one uid make the server hold, in bytes: pools as far as used, and whatever else is kept.

    used may reach `limit`, and no more than the uid leaves of the total for all others together.  So however many uids
    one person controls, each further uid gets at most half of what the previous one left, and there is room for
    clients that need little.
    """

    __slots__ = ("limit", "total", "uid", "used")

    def __init__(self, uid: int, limit: int, total: Total | None = None) -> None:
        self.uid = uid
        self.limit = limit
        self.total = total if total is not None else Total(2 * limit)
        self.used = 0

    def charge(self, size: int) -> None:
        """Hold `size` bytes more.  Raises CommandError(ENOBUFS) beyond the limit; nothing is charged then."""
        used = self.used + size
        total = self.total
        total_used = total.used + size
        if used > self.limit or used > total.limit - total_used:
            raise CommandError(ENOBUFS, "memory limit of this user")
        self.used = used
        total.used = total_used

    def check(self, size: int) -> None:
        """Raises CommandError(ENOBUFS) when `size` bytes more would be beyond the limit."""
        used = self.used + size
        if used > self.limit or used > self.total.limit - self.total.used - size:
            raise CommandError(ENOBUFS, "memory limit of this user")

    def charge_unchecked(self, size: int) -> None:
        """Hold `size` bytes more, whatever the limit says: for what cannot be refused any more."""
        self.used += size
        self.total.used += size

    def uncharge(self, size: int) -> None:
        """Hold `size` bytes less."""
        self.used -= size
        self.total.used -= size
