"""Accounting: what each user has of connections, buses, memory, and of slots in another's queue.

A user is a real uid in the domain, or all who use one custom endpoint (EPM-7, QUO-3).
"""

from __future__ import annotations

from errno import EMFILE, ENOBUFS

from ..abi.errors import KdbusError
from ..abi.limits import CONN_MAX_MSGS_PER_USER, USER_MAX_BUSES, USER_MAX_CONN


class User:
    """Counters of one user.  `memory_limit` bounds what its connections make the daemon hold, in bytes."""

    __slots__ = ("buses", "connections", "memory", "memory_limit", "uid")

    def __init__(self, uid: int, memory_limit: int) -> None:
        self.uid = uid
        self.memory_limit = memory_limit
        self.connections = 0
        self.buses = 0
        self.memory = 0

    def add_connection(self) -> None:
        """Raises KdbusError(EMFILE) beyond 1024 connections (HELLO-13)."""
        if self.connections >= USER_MAX_CONN:
            raise KdbusError(EMFILE, "too many connections of this user")
        self.connections += 1

    def add_bus(self) -> None:
        """Raises KdbusError(EMFILE) beyond 16 buses (BUS-7)."""
        if self.buses >= USER_MAX_BUSES:
            raise KdbusError(EMFILE, "too many buses of this user")
        self.buses += 1

    def charge(self, size: int) -> None:
        """Account `size` bytes of the daemon's memory.  Raises KdbusError(ENOBUFS) beyond the limit."""
        if self.memory + size > self.memory_limit:
            raise KdbusError(ENOBUFS, "memory limit of this user")
        self.memory += size

    def uncharge(self, size: int) -> None:
        self.memory -= size

    @property
    def idle(self) -> bool:
        return not (self.connections or self.buses or self.memory)


class QueueQuota:
    """How many accounted messages each user has in one queue (QUO-2, QUO-4)."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[User, int] = {}

    def take(self, user: User) -> None:
        """Raises KdbusError(ENOBUFS) for the 17th accounted message of a user."""
        count = self._counts.get(user, 0)
        if count >= CONN_MAX_MSGS_PER_USER:
            raise KdbusError(ENOBUFS, "too many messages of this user in the queue")
        self._counts[user] = count + 1

    def give_back(self, user: User) -> None:
        count = self._counts.get(user, 0)
        if count > 1:
            self._counts[user] = count - 1
        else:
            self._counts.pop(user, None)

    def clear(self) -> None:
        """The queue is empty: nobody has anything in it."""
        if self._counts:
            self._counts.clear()
