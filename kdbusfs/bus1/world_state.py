"""What the peers of a mount share: their users, and the order of everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from .limits import Maxima, User
from .queue import Transaction

if TYPE_CHECKING:
    from ..base.account import Account
    from ..base.handle import Handle
    from ..base.ports import Turn
    from .peer import Peer

PEER_COST: Final = 16384
"""What an open file is charged to its user's memory with, in bytes."""


class Ends(Protocol):
    """Carries out the ends of files that were closed, those of one user one after the other."""

    def begin(self, user: int, end: Callable[[], None]) -> None:
        """Carry out `end`, or have it carried out by whoever is busy with an earlier one."""


class WorldState:
    """What one mount has of bus1.

    account_of: gives the account of memory of a real uid, whatever its clients use; forget_if_idle: is told when
    something of one was given back, perhaps the last;
    changed: handles whose `poll()` may have changed, for whoever serves them to take after each entry;
    maxima: what users that are met from now on may have (B1-LIM-1); time: of the last transaction;
    peer_ids: how many peers there have been.
    """

    def __init__(
        self,
        turn: Turn,
        account_of: Callable[[int], Account],
        forget_if_idle: Callable[[Account], None],
        ends: Ends,
        changed: list[Handle],
        maxima: Maxima | None = None,
    ) -> None:
        self.turn = turn
        self._account_of = account_of
        self._forget_if_idle = forget_if_idle
        self.ends = ends
        self.changed = changed
        self.maxima = maxima if maxima is not None else Maxima()
        self.is_active = True
        self.time = 0
        self.users: dict[int, User] = {}
        self.peers: dict[int, Peer] = {}
        self.peer_ids = 0

    def closed(self, peer: Peer) -> None:
        """The file of `peer` is gone, and everything that it had."""
        del self.peers[peer.peer_id]
        user = peer.limits.user
        user.peers -= 1
        user.account.uncharge(PEER_COST)
        self.forget(user)

    def user_of(self, uid: int) -> User:
        """The user of a real uid, made if there is none."""
        user = self.users.get(uid)
        if user is None:
            user = self.users[uid] = User(uid, self._account_of(uid), self.maxima.copy())
        return user

    def forget(self, user: User) -> None:
        """Drop a user who has no peer any more."""
        if not user.peers:
            del self.users[user.uid]
            self._forget_if_idle(user.account)

    # Order

    def commit(self, transaction: Transaction) -> None:
        """Give `transaction` its place behind all others (B1-ORD-1)."""
        self.time += 1
        transaction.time = self.time

    def moment(self) -> Transaction:
        """A transaction that is committed now."""
        self.time += 1
        return Transaction(self.time)

    def counts(self) -> dict[str, object]:
        """Numbers that must come back to their start."""
        return {"peers": len(self.peers), "users": len(self.users)}
