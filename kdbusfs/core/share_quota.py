"""The quota of the last kdbus: what each user may have queued at one receiver (L-73 to L-77)."""

from __future__ import annotations

from errno import EMFILE, ENOBUFS
from typing import TYPE_CHECKING, Final

from ..base.account import Account
from ..base.errors import CommandError
from .users import User

if TYPE_CHECKING:
    from .queue import QueueEntry

_MAX_MESSAGES: Final = 256
_MAX_FILES: Final = 16
_MAX_BYTES: Final = (1 << 32) - 1

BUS_ITSELF: Final = User(-1, Account(-1, 0))
"""The user that notifications are accounted to."""


class _Use:
    """What one user has queued."""

    __slots__ = ("files", "messages", "size")

    def __init__(self) -> None:
        self.size = 0
        self.messages = 0
        self.files = 0


class ShareQuota:
    """Each user may have a third of what the others leave of half of the pool, 256 messages and 16 descriptors.

    Only queued messages count, and replies to blocked calls that were not taken yet.  size: bytes of all of them.
    """

    __slots__ = ("_by_user", "size")

    def __init__(self) -> None:
        self._by_user: dict[User, _Use] = {}
        self.size = 0

    def take(self, pool_size: int, entry: QueueEntry) -> None:
        """Account `entry` to who sent it.  Raises CommandError: ENOBUFS (bytes, messages), EMFILE (descriptors)."""
        message = entry.message
        user = message.user if message.user is not None else BUS_ITSELF
        size = (entry.head_size + message.payload_size + 7) & ~7
        use = self._by_user.get(user)
        mine = use.size if use is not None else 0
        limit = (pool_size // 2 - self.size + mine) // 3
        if pool_size // 2 < self.size or limit - mine < size or mine + size > _MAX_BYTES:
            raise CommandError(ENOBUFS, "more than a third of what is left of half of the pool")
        if use is None:
            use = _Use()
        if use.messages >= _MAX_MESSAGES:
            raise CommandError(ENOBUFS, "too many messages of this user in the queue")
        if use.files + message.file_count > _MAX_FILES:
            raise CommandError(EMFILE, "too many descriptors of this user in the queue")
        use.size += size
        use.messages += 1
        use.files += message.file_count
        self._by_user[user] = use
        self.size += size
        entry.user = user
        entry.charged = size

    def give_back(self, entry: QueueEntry) -> None:
        """Idempotent."""
        user, entry.user = entry.user, None
        if user is None:
            return
        use = self._by_user[user]
        use.size -= entry.charged
        use.messages -= 1
        use.files -= entry.message.file_count
        self.size -= entry.charged
        if not use.messages:
            del self._by_user[user]
