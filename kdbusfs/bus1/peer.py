"""Peers: a queue, a pool and a table of handles (B1-IDEA-1)."""

from __future__ import annotations

from errno import EDQUOT, EMSGSIZE, ENOBUFS, ENXIO, ESHUTDOWN, EXFULL
from select import POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from typing import TYPE_CHECKING, Final

from ..base.errors import CommandError
from ..base.handle import Handle
from ..base.pool import Pool
from . import abi
from .limits import NOTICE_COST, Limits
from .message import STAGED
from .queue import Queue

if TYPE_CHECKING:
    from ..base.identity import Pids
    from ..base.pool import Slice
    from ..base.ports import Memory, Reader
    from .limits import User
    from .message import Delivery
    from .naming import Naming
    from .nodes import NodeHandle
    from .queue import Entry
    from .world_state import WorldState

_WRITABLE: Final = POLLOUT | POLLWRNORM
_READABLE: Final = POLLIN | POLLRDNORM
_GROUPS: Final = 1 << 63
"""What the peers of user 0 have as their group."""
FILE_KIND: Final = 2
"""Of bus1's files: which commands they take (`base.handle.Handle`)."""


class Peer(Handle):
    """The state of an open file of bus1; `PeerFile` (`bus1/file.py`) carries out its commands.

    view: the namespaces of who opened it, in which it sees credentials (B1-FILE-3); pids: the numbers of that thread,
    by pid namespace; table: its handles by id, those that it has references to; next_id: the number in the next id that
    it is given (B1-NODE-5); namings: its commands under way that name ids; seed: the message that SEND with SEED has
    left; flushed_at: up to which time what was queued is gone, though it may still be there.
    """

    __slots__ = (
        "_is_readable",
        "flags",
        "flushed_at",
        "is_active",
        "limits",
        "memory",
        "namings",
        "next_id",
        "peer_id",
        "pids",
        "pool",
        "queue",
        "seed",
        "table",
        "view",
        "world",
    )

    def __init__(
        self, world: WorldState, peer_id: int, user: User, view: Reader, pids: dict[int, Pids], memory: Memory
    ) -> None:
        super().__init__(FILE_KIND, _GROUPS + user.uid)
        self.end_can_wait = True
        self.world = world
        self.peer_id = peer_id
        self.view = view
        self.pids = pids
        self.memory = memory
        self.limits = Limits(user)
        self.pool = Pool(abi.SLICE_MAX, memory, user.account)
        self.queue = Queue()
        self.table: dict[int, NodeHandle] = {}
        self.next_id = 1
        self.flags = 0
        self.flushed_at = 0
        self.is_active = True
        self.seed: Delivery | None = None
        self.namings: list[Naming] = []
        self._is_readable = False

    # The file

    def check_active(self) -> None:
        """Raises CommandError(ESHUTDOWN): it is disconnected."""
        if not self.is_active:
            raise CommandError(ESHUTDOWN, "disconnected")

    def poll(self) -> int:
        """B1-FILE-6."""
        if not self.is_active:
            return POLLHUP
        return _WRITABLE | (_READABLE if self._is_readable else 0)

    def update(self) -> None:
        """Its queue has changed: wake who polls if it reads otherwise now."""
        is_readable = self.queue.is_readable()
        if is_readable != self._is_readable:
            self._is_readable = is_readable
            self.world.changed.append(self)

    def freed(self, offset: int) -> None:
        """The published slice at `offset` was given back by a SLICE_RELEASE that is answered already."""
        self.free_slice(offset)

    # Handles

    def find(self, id: int) -> NodeHandle | None:
        """The handle with that id; None for an id that a node can be made with.  Raises CommandError(ENXIO)."""
        handle = self.table.get(id)
        if handle is None and id & abi.HANDLE_FLAGS:
            raise CommandError(ENXIO, "no such handle")
        return handle

    def enter(self, handle: NodeHandle) -> None:
        """It has a reference to a handle that it had none to."""
        id = handle.identify()
        self.table[id] = handle
        for naming in self.namings:
            naming.touched(id)

    def forget(self, handle: NodeHandle) -> None:
        """It has no reference to a handle any more."""
        id = handle.id
        del self.table[id]
        for naming in self.namings:
            naming.touched(id)

    def give_back(self, handle: NodeHandle, count: int) -> None:
        """`count` references of its own to a handle less (B1-HAND-1)."""
        handle.give_back(count)
        self.limits.discharge_handles(count)

    # What comes in

    def notify(self, entry: Entry) -> None:
        """Queue a notification that is a transaction by itself."""
        self.limits.user.account.charge_unchecked(NOTICE_COST)
        self.queue.append(entry)
        self.update()

    def stage_notice(self, entry: Entry) -> None:
        """Queue a notification of a transaction that is not committed yet."""
        self.limits.user.account.charge_unchecked(NOTICE_COST)
        if self.queue.stage(entry):
            entry.transaction.add(self)

    def stage(self, delivery: Delivery) -> None:
        """Queue a message that is not committed yet."""
        delivery.state = STAGED
        if self.queue.stage(delivery):
            delivery.transaction.add(self)

    def withdraw(self, entry: Entry) -> None:
        """Take a notification out."""
        self.queue.remove(entry)
        self.forget_notice()
        self.update()

    def forget_notice(self) -> None:
        """A notification is not queued any more."""
        self.limits.user.account.uncharge(NOTICE_COST)

    # The pool

    def allocate(self, size: int) -> Slice:
        """A slice for a message.  Raises CommandError: EMSGSIZE, EXFULL, EDQUOT (B1-SEND-3)."""
        if size > abi.SLICE_MAX:
            raise CommandError(EMSGSIZE, "greater than a pool")
        try:
            return self.pool.allocate(size)
        except CommandError as error:
            if error.errno != ENOBUFS:
                raise
            code = EDQUOT if self.pool.has_room(size) else EXFULL
            raise CommandError(code, error.reason) from None

    def release_slice(self, part: Slice) -> None:
        """The queue needs `part` no more; it stays as long as the client does (B1-POOL-2)."""
        self.pool.release(part)
        if not part.published:
            self.limits.discharge_slice()

    def free_slice(self, offset: int) -> None:
        """The client needs its slice at `offset` no more.  Raises CommandError(ENXIO) (B1-HAND-7)."""
        if not self.pool.free(offset).held:
            self.limits.discharge_slice()
