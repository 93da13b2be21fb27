"""Messages: what all receivers of a SEND share, and what each of them has of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from ..base.identity import NO_PIDS
from ..base.words import align8
from .abi import MSG_DATA
from .limits import charge_memory
from .queue import Entry

if TYPE_CHECKING:
    from ..base.account import Account
    from ..base.identity import Creds, Pids
    from ..base.pool import Slice
    from ..base.ports import File, Turn
    from .nodes import Node, NodeHandle
    from .peer import Peer
    from .queue import Transaction

MESSAGE_COST: Final = 2048
"""What a message is charged with beside its places for handles, in bytes."""
_PLACE_COST: Final = 16
_NO_FILES: Final[list[File]] = []
_NO_PIDS_AT_ALL: Final[dict[int, Pids]] = {}
_NO_HANDLES: Final[list[NodeHandle | None]] = []

# Of a delivery: the slice and the charges are there; it is in the queue, or will be with its transaction; the peer has
# given it up while a RECV was busy with it; it is over.
RESERVED: Final = 0
STAGED: Final = 1
GIVEN_UP: Final = 2
OVER: Final = 3


@mypyc_attr(acyclic=True)
class Message:
    """What a SEND carries: kept, and charged to the sender's user, until the last delivery is over.

    vectors: (address, size) in the sender's memory; creds, pids: of its thread, the latter by pid namespace;
    secctx: its security context, None where there is none.
    """

    __slots__ = ("_account", "_cost", "_users", "creds", "files", "n_bytes", "n_handles", "pids", "secctx", "vectors")

    def __init__(self, account: Account, n_handles: int) -> None:
        """Raises CommandError(EDQUOT)."""
        cost = MESSAGE_COST + _PLACE_COST * n_handles
        charge_memory(account, cost)
        self._account = account
        self._cost = cost
        self._users = 1
        self.n_bytes = 0
        self.n_handles = n_handles
        self.vectors: list[tuple[int, int]] = []
        self.files: list[File] = _NO_FILES
        self.creds: Creds | None = None
        self.pids: dict[int, Pids] = _NO_PIDS_AT_ALL
        self.secctx: bytes | None = None

    def add_file(self, file: File) -> None:
        """Another one that travels along, pinned."""
        if not self.files:
            self.files = []
        self.files.append(file)

    def retain(self) -> Message:
        self._users += 1
        return self

    def release(self) -> None:
        """One user less; the files are closed when nobody needs them any more."""
        self._users -= 1
        if self._users:
            return
        self._account.uncharge(self._cost)
        for file in self.files:
            file.close()

    # Where things lie in a slice (B1-SEND-13)

    @property
    def handles_at(self) -> int:
        return align8(self.n_bytes)

    @property
    def files_at(self) -> int:
        return self.handles_at + 8 * self.n_handles

    @property
    def secctx_at(self) -> int:
        return self.files_at + align8(4 * len(self.files))

    @property
    def size(self) -> int:
        """Of a slice, in bytes."""
        context = self.secctx
        return max(8, self.secctx_at + (align8(len(context)) if context else 0))

    def pids_in(self, pid_ns: int) -> Pids:
        """The sender's numbers as that pid namespace has them."""
        return self.pids.get(pid_ns, NO_PIDS)


class Delivery(Entry):
    """A message at one of its receivers, or the seed of a peer.

    part: its slice; handles: the receiver's, attached, None for nodes that were destroyed already; charged: how many
    handles the receiver is charged with for it; has_context: whether the slice has the security context; state: one of
    those above; is_committed: whether its handles know that it is committed.
    """

    __slots__ = ("charged", "handles", "has_context", "is_committed", "message", "part", "peer", "state")

    def __init__(
        self, transaction: Transaction, node: Node | None, peer: Peer, message: Message, part: Slice, rank: int
    ) -> None:
        super().__init__(MSG_DATA, transaction, node, None, rank)
        self.peer = peer
        self.message = message.retain()
        self.part = part
        self.charged = message.n_handles
        self.handles: list[NodeHandle | None] = _NO_HANDLES
        self.has_context = False
        self.is_committed = False
        self.state = RESERVED

    # Others may be served wherever `turn` is taken.

    def attach(self, nodes: list[Node], turn: Turn) -> None:
        """Let the receiver have a place for each of `nodes`, staged."""
        if not nodes:
            return
        handles = self.handles = []
        for node in nodes:
            if self.state != STAGED:
                return
            if node.is_destroyed:
                handles.append(None)
            else:
                handle = node.handle_of(self.peer)
                handle.stage()
                handles.append(handle)
            turn.spend()

    def commit(self, turn: Turn) -> None:
        """Its transaction is committed: its staged places become places like others.  Idempotent."""
        if self.is_committed:
            return
        self.is_committed = True
        for handle in self.handles:
            if handle is not None:
                handle.commit_place()
        turn.spend(len(self.handles))

    def unstage(self, turn: Turn) -> None:
        """It is not going to be committed as it stands: only the slice and the charges stay."""
        if self.state != STAGED:
            return
        self.state = RESERVED
        handles, self.handles = self.handles, _NO_HANDLES
        for handle in handles:
            if handle is not None:
                handle.unstage()
                turn.spend()

    def drop(self, turn: Turn) -> None:
        """Give up all that it has at its receiver."""
        if self.state == OVER:
            return
        if self.state == STAGED and not self.transaction.time:
            self.unstage(turn)
        is_committed = self.is_committed
        self.is_committed = True
        self.state = OVER
        handles, self.handles = self.handles, _NO_HANDLES
        for handle in handles:
            if handle is not None:
                if not is_committed:
                    handle.commit_place()
                handle.drop_place()
                turn.spend()
        self.end()

    def end(self) -> None:
        """The receiver has its references, or never will: give back the rest of the charges, and the slice."""
        self.state = OVER
        peer = self.peer
        charged, self.charged = self.charged, 0
        peer.limits.discharge_handles(charged)
        peer.release_slice(self.part)
        self.message.release()
