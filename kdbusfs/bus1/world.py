"""bus1 of one mount: the entry points of the server (B1-FILE)."""

from __future__ import annotations

from errno import EDQUOT, ENOMEM, ESHUTDOWN
from typing import TYPE_CHECKING

from ..base.errors import CommandError
from .abi import POOL_SIZE
from .details import Details, peer_details
from .file import PeerFile
from .limits import charge_memory
from .world_state import PEER_COST, WorldState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..base.ports import Caller, Memory


class World(WorldState):
    """What one mount has of bus1.  Everything is called by one thread at a time."""

    def open(self, caller: Caller, memory: Memory) -> PeerFile:
        """A new peer, with all of its pool (B1-FILE-2, B1-FILE-3).

        memory: of no size yet; it is the peer's from now on.  Raises CommandError: ENOMEM, ESRCH, ESHUTDOWN.
        """
        if not self.is_active:
            raise CommandError(ESHUTDOWN, "the mount goes")
        view = caller.view()
        pids = caller.thread_ids()
        user = self.user_of(caller.user)
        try:
            charge_memory(user.account, PEER_COST)
            try:
                memory.resize(POOL_SIZE)
            except CommandError:
                user.account.uncharge(PEER_COST)
                raise
        except CommandError as error:
            self.forget(user)
            raise CommandError(ENOMEM if error.errno == EDQUOT else error.errno, error.reason) from None
        self.peer_ids += 1
        peer = self.peers[self.peer_ids] = PeerFile(self, self.peer_ids, user, view, pids, memory)
        user.peers += 1
        return peer

    def shut_down(self) -> None:
        """The mount goes: every peer is disconnected."""
        self.is_active = False
        for peer in list(self.peers.values()):
            assert isinstance(peer, PeerFile)
            peer.disconnect()

    def peer_details(
        self, pid_ns: int
    ) -> Iterator[tuple[Details, Iterator[Details], Iterator[Details], Iterator[Details]]]:
        """Each peer that is there now, with its nodes, handles and queue, evaluated lazily (`details.py`)."""
        return peer_details(list(self.peers.values()), pid_ns)
