"""SEND: one message to any number of nodes, all or none, at one time (B1-SEND).

Others may be served while the client's memory is read, and between any two of many receivers.  Up to the commit nobody
sees anything of the message: what is charged and allocated at receivers is given back if it fails.  The commit itself
is a matter of a moment.  If ids that the command names have changed by then, because a sibling of the caller released
or made them, they are looked up anew.
"""

from __future__ import annotations

from errno import (
    EBADF,
    EDQUOT,
    EFAULT,
    EINVAL,
    EMFILE,
    EMSGSIZE,
    ENOMEM,
    ENOTUNIQ,
    ENXIO,
    EOPNOTSUPP,
    ESHUTDOWN,
    EXFULL,
)
from struct import Struct
from typing import TYPE_CHECKING, Final

from ..base.errors import AbandonedError, CommandError
from ..base.words import u64
from . import abi
from .arrays import read_all_ids, read_ids, read_numbers, read_vectors
from .flush import give_up
from .message import RESERVED, STAGED, Delivery, Message
from .naming import ROUNDS, Naming
from .nodes import Node
from .queue import Transaction

if TYPE_CHECKING:
    from ..base.call import Call
    from .peer import Peer

_OF_ONE: Final = frozenset((ENXIO, ESHUTDOWN, EDQUOT, EXFULL, ENOMEM, EMSGSIZE))
"""What goes wrong at one destination alone, with CONTINUE (B1-SEND-11)."""
_UNITS_OF_A_COPY: Final = 2


def send(peer: Peer, call: Call) -> int:
    """BUS1_CMD_SEND.  Raises CommandError with the errno of the first check that fails, and nothing has happened."""
    data = call.data
    flags = u64(data, abi.SEND_FLAGS)
    n_destinations = u64(data, abi.SEND_N_DESTINATIONS)
    if flags & ~(abi.SEND_FLAG_CONTINUE | abi.SEND_FLAG_SEED):
        return -EINVAL
    if n_destinations > abi.DESTINATIONS_MAX or u64(data, abi.SEND_N_VECS) > abi.VEC_MAX:
        return -EMSGSIZE
    if u64(data, abi.SEND_N_FDS) > abi.FD_MAX:
        return -EMSGSIZE
    if n_destinations > peer.limits.user.maxima.handles:
        return -EINVAL
    sending = Sending(peer, call)
    try:
        sending.run()
    finally:
        sending.end()
    return 0


class Sending(Naming):
    """A SEND under way."""

    __slots__ = (
        "_call",
        "_caller",
        "_deliveries",
        "_destinations",
        "_errors",
        "_fresh",
        "_handles",
        "_message",
        "_nodes",
        "_peer",
        "_size",
        "_transaction",
        "_turn",
    )

    def __init__(self, peer: Peer, call: Call) -> None:
        super().__init__()
        self._peer = peer
        self._call = call
        self._caller = call.caller
        self._turn = peer.world.turn
        self._transaction = Transaction()
        self._handles: list[int] = []
        self._nodes: list[Node] = []
        self._fresh: dict[int, Node] = {}
        self._message: Message | None = None
        self._size = 0
        self._destinations: list[int] = []
        self._deliveries: list[Delivery] = []
        self._errors: list[int] | None = None

    def run(self) -> None:
        """Carry it out.  Raises CommandError."""
        data = self._call.data
        flags = u64(data, abi.SEND_FLAGS)
        n_destinations = u64(data, abi.SEND_N_DESTINATIONS)
        message = self._gather(data)
        if flags & abi.SEND_FLAG_SEED:
            if flags & abi.SEND_FLAG_CONTINUE or n_destinations:
                raise CommandError(EINVAL, "a seed has no destinations")
            self._sign(message)
            self._deliver(message, None, self._peer, 0)
        elif n_destinations:
            if flags & abi.SEND_FLAG_CONTINUE:
                self._errors = [0] * n_destinations
            address = u64(data, abi.SEND_PTR_DESTINATIONS)
            self._destinations = read_ids(self._caller, address, n_destinations, self._turn)
            self.name(self._destinations, self._turn)
            self._sign(message)
            self._prepare(message, n_destinations)
        self._stage_all()
        self._commit()

    def end(self) -> None:
        """It is over: whatever is not committed goes."""
        turn = self._turn
        if not self._transaction.time:
            self._unstage()
            for delivery in self._deliveries:
                delivery.drop(turn)
                turn.spend()
            for node in self._fresh.values():
                node.discard()
        if self in self._peer.namings:
            self._peer.namings.remove(self)
        message, self._message = self._message, None
        if message is not None:
            message.release()

    # What is sent

    def _gather(self, data: bytes) -> Message:
        """Vectors, handles, descriptors, in this order (B1-SEND-6 to B1-SEND-8)."""
        peer = self._peer
        vectors: list[tuple[int, int]] = []
        n_vecs = u64(data, abi.SEND_N_VECS)
        if n_vecs:
            vectors = read_vectors(self._caller, u64(data, abi.SEND_PTR_VECS), n_vecs)
        n_handles = u64(data, abi.SEND_N_HANDLES)
        if n_handles > peer.limits.user.maxima.handles:
            raise CommandError(EDQUOT, "more handles than anybody can have")
        message = self._message = Message(peer.limits.user.account, n_handles)
        message.vectors = vectors
        for _, size in vectors:
            message.n_bytes += size
        peer.namings.append(self)
        if n_handles:
            self._handles = read_all_ids(self._caller, u64(data, abi.SEND_PTR_HANDLES), n_handles, self._turn)
            self.name(self._handles, self._turn)
            self._bind()
        n_fds = u64(data, abi.SEND_N_FDS)
        if n_fds:
            self._take_files(message, read_numbers(self._caller, u64(data, abi.SEND_PTR_FDS), n_fds))
        return message

    def _take_files(self, message: Message, numbers: list[int]) -> None:
        for number in numbers:
            if number < 0:
                raise CommandError(EBADF, "negative descriptor")
            try:
                file = self._caller.take_file(number)
            except CommandError as error:
                raise CommandError(EDQUOT if error.errno == EMFILE else error.errno, error.reason) from None
            message.add_file(file)
            if not file.is_path and (file.is_bus_file or file.is_unix_socket):
                raise CommandError(EOPNOTSUPP, "a file that could come to hold itself")
            self._turn.spend(_UNITS_OF_A_COPY)

    def _sign(self, message: Message) -> None:
        """Who sends, once for all receivers (B1-CRED-1, B1-SEND-14)."""
        caller = self._caller
        message.creds = caller.ids()
        message.pids = caller.thread_ids()
        message.secctx = caller.security_context()
        self._size = message.size

    # Ids

    def _node(self, id: int) -> Node:
        """What `id` stands for; a node that the commit will make, where it stands for nothing (B1-NODE-1).

        Raises CommandError(ENXIO).
        """
        node = self._fresh.get(id)
        if node is None:
            handle = self._peer.find(id)
            if handle is not None:
                return handle.node
            node = self._fresh[id] = Node(self._peer, id)
        return node

    def _bind(self) -> None:
        """Look the handles up that travel along.  Raises CommandError(ENXIO)."""
        nodes = self._nodes = []
        for id in self._handles:
            nodes.append(self._node(id))
            self._turn.spend()

    def _bind_anew(self) -> None:
        """Look everything up again (B1-SEND-15).  Raises CommandError(ENXIO)."""
        self.changed = False
        for node in self._fresh.values():
            node.discard()
        self._fresh = {}
        self._bind()
        for delivery in self._deliveries:
            if delivery.state == RESERVED and delivery.node is not None:
                try:
                    delivery.node = self._node(self._destinations[delivery.rank])
                except CommandError as error:
                    if not self._goes_on(delivery.rank, error.errno):
                        raise
                    delivery.drop(self._turn)
                self._turn.spend()

    # Destinations

    def _goes_on(self, rank: int, errno: int) -> bool:
        """A destination cannot be served: whether that is its own affair (B1-SEND-11)."""
        if self._errors is None or errno not in _OF_ONE:
            return False
        self._errors[rank] = errno
        return True

    def _prepare(self, message: Message, count: int) -> None:
        """Reserve at each receiver, and copy to it, in the order of the array (B1-SEND-3)."""
        seen: set[int] = set()
        for rank in range(count):
            if rank == len(self._destinations):
                raise CommandError(EFAULT, "array of destinations")
            id = self._destinations[rank]
            if id in seen:
                raise CommandError(ENOTUNIQ, "destination that was named before")
            is_fresh = id not in self._fresh
            try:
                node = self._node(id)
                seen.add(id)
                if node.is_released:
                    raise CommandError(ESHUTDOWN, "destination that is gone")
                self._deliver(message, node, node.owner, rank)
            except AbandonedError:
                raise
            except CommandError as error:
                if not self._goes_on(rank, error.errno):
                    raise
                made = self._fresh.get(id)
                if made is not None and is_fresh:
                    del self._fresh[id]
                    made.discard()
            self._peer.check_active()
            self._turn.spend(_UNITS_OF_A_COPY)

    def _deliver(self, message: Message, node: Node | None, receiver: Peer, rank: int) -> None:
        """Charge, allocate, copy.  Raises CommandError, with nothing left at the receiver."""
        limits = receiver.limits
        size = self._size
        n_handles = message.n_handles
        limits.charge_slice()
        try:
            limits.charge_handles(n_handles)
        except CommandError:
            limits.discharge_slice()
            raise
        try:
            part = receiver.allocate(size)
        except CommandError:
            limits.discharge_handles(n_handles)
            limits.discharge_slice()
            raise
        delivery = Delivery(self._transaction, node, receiver, message, part, rank)
        try:
            self._copy(message, delivery)
        except AbandonedError:
            delivery.drop(self._turn)
            raise
        except CommandError as error:
            delivery.drop(self._turn)
            if receiver.is_active or error.errno == EFAULT:
                raise
            return  # it has gone meanwhile (B1-SEND-15)
        self._deliveries.append(delivery)

    def _copy(self, message: Message, delivery: Delivery) -> None:
        receiver, offset = delivery.peer, delivery.part.offset
        context = message.secctx
        if context is not None and receiver.flags & abi.PEER_FLAG_WANT_SECCTX:
            delivery.has_context = True
            if context:
                receiver.memory.store(offset + message.secctx_at, context)
        if message.vectors:
            self._caller.copy_payload(receiver.memory, offset, message.vectors)

    # The commit

    def _stage_all(self) -> None:
        """Bring it to where only the commit is missing.  Raises CommandError."""
        for _ in range(ROUNDS):
            if self.changed:
                self._bind_anew()
            self._report_errors()
            self._stage()
            if not self.changed:
                return
            self._unstage()
        raise CommandError(EDQUOT, "siblings keep changing the ids")

    def _report_errors(self) -> None:
        """B1-SEND-11.  Raises CommandError(EFAULT)."""
        errors = self._errors
        address = u64(self._call.data, abi.SEND_PTR_ERRORS)
        if errors is not None and address:
            negative = [-errno for errno in errors]
            self._caller.write(address, Struct(f"<{len(negative)}q").pack(*negative))

    def _stage(self) -> None:
        turn = self._turn
        for delivery in self._deliveries:
            if delivery.state == RESERVED:
                if delivery.node is None:
                    delivery.state = STAGED
                elif delivery.peer.is_active:
                    delivery.peer.stage(delivery)
                else:
                    delivery.drop(turn)
                delivery.attach(self._nodes, turn)
                turn.spend()

    def _unstage(self) -> None:
        """The reverse."""
        transaction, turn = self._transaction, self._turn
        while transaction.peers:
            transaction.peers.pop().queue.unstage(transaction)
            turn.spend()
        for delivery in self._deliveries:
            delivery.unstage(turn)
            turn.spend()

    def _commit(self) -> None:
        """All at once; what follows only tells others of it.  Raises CommandError: ESHUTDOWN, EDQUOT."""
        peer, transaction, turn = self._peer, self._transaction, self._turn
        peer.check_active()
        fresh = self._fresh
        if fresh:
            peer.limits.charge_handles(len(fresh))
            for node in fresh.values():
                assert node.anchor is not None
                peer.enter(node.anchor)
        peer.world.commit(transaction)
        former: Delivery | None = None
        if self._deliveries and self._deliveries[0].node is None:
            former, peer.seed = peer.seed, self._deliveries[0]
        for delivery in self._deliveries:
            delivery.commit(turn)
            turn.spend()
        while transaction.peers:
            transaction.peers.pop().update()
            turn.spend()
        if former is not None:
            give_up(peer, former)
