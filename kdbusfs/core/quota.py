"""The quota of a queue: how many accounted messages each user may have there (QUO-2, QUO-4)."""

from __future__ import annotations

from errno import ENOBUFS
from typing import TYPE_CHECKING

from ..abi.limits import CONN_MAX_MSGS_PER_USER
from ..base.errors import CommandError

if TYPE_CHECKING:
    from .users import User


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
