"""What peers and users may have: slices and handles (B1-LIM), and the memory behind them."""

from __future__ import annotations

from errno import EDQUOT
from typing import TYPE_CHECKING, Final

from ..base.errors import CommandError

if TYPE_CHECKING:
    from ..base.account import Account

HANDLE_COST: Final = 512
"""What a reference to a handle is charged to its user's memory with, in bytes: a handle, perhaps with its node."""
NOTICE_COST: Final = 256
"""What a queued notification is charged with: nobody can refuse those, but whoever lets them lie can make less."""

DEFAULT_SLICES: Final = 16384
DEFAULT_HANDLES: Final = 65536
DEFAULT_INFLIGHT_BYTES: Final = 16 << 20
DEFAULT_INFLIGHT_FDS: Final = 4096


class Maxima:
    """The four limits.  Those of what is in flight are kept and told, and never charged (B1-LIM-5)."""

    __slots__ = ("handles", "inflight_bytes", "inflight_fds", "slices")

    def __init__(
        self,
        slices: int = DEFAULT_SLICES,
        handles: int = DEFAULT_HANDLES,
        inflight_bytes: int = DEFAULT_INFLIGHT_BYTES,
        inflight_fds: int = DEFAULT_INFLIGHT_FDS,
    ) -> None:
        self.slices = slices
        self.handles = handles
        self.inflight_bytes = inflight_bytes
        self.inflight_fds = inflight_fds

    def copy(self) -> Maxima:
        return Maxima(self.slices, self.handles, self.inflight_bytes, self.inflight_fds)


class User:
    """What all peers of one real uid have together (B1-LIM-1).  It exists while it has peers.

    account: of the memory that the daemon holds for that uid.
    """

    __slots__ = ("account", "handles", "maxima", "peers", "slices", "uid")

    def __init__(self, uid: int, account: Account, maxima: Maxima) -> None:
        self.uid = uid
        self.account = account
        self.maxima = maxima
        self.peers = 0
        self.slices = 0
        self.handles = 0


class Limits:
    """What one peer has: each charge has to fit its user's maximum and its own (B1-LIM-2, B1-LIM-3)."""

    __slots__ = ("handles", "maxima", "slices", "user")

    def __init__(self, user: User) -> None:
        self.user = user
        self.maxima = user.maxima.copy()
        self.slices = 0
        self.handles = 0

    def charge_slice(self) -> None:
        """One more slice.  Raises CommandError(EDQUOT)."""
        user = self.user
        if user.slices >= user.maxima.slices:
            raise CommandError(EDQUOT, "slices of this user")
        if self.slices >= self.maxima.slices:
            raise CommandError(EDQUOT, "slices of this peer")
        user.slices += 1
        self.slices += 1

    def discharge_slice(self) -> None:
        self.user.slices -= 1
        self.slices -= 1

    def charge_handles(self, count: int) -> None:
        """`count` more references to handles, or places for some in a message.  Raises CommandError(EDQUOT)."""
        if not count:
            return
        user = self.user
        if user.handles + count > user.maxima.handles:
            raise CommandError(EDQUOT, "handles of this user")
        if self.handles + count > self.maxima.handles:
            raise CommandError(EDQUOT, "handles of this peer")
        charge_memory(user.account, HANDLE_COST * count)
        user.handles += count
        self.handles += count

    def add_handle(self) -> None:
        """One more that nobody can refuse: what an installation that failed gives back."""
        self.user.account.charge_unchecked(HANDLE_COST)
        self.user.handles += 1
        self.handles += 1

    def discharge_handles(self, count: int) -> None:
        self.user.account.uncharge(HANDLE_COST * count)
        self.user.handles -= count
        self.handles -= count


def charge_memory(account: Account, size: int) -> None:
    """Raises CommandError(EDQUOT): the bounds of the daemon look like those of bus1 (B1-LIM-5)."""
    try:
        account.charge(size)
    except CommandError:
        raise CommandError(EDQUOT, "memory limit of this user") from None
