"""Peers: an open file with a queue, a pool and a table of handles (B1-IDEA-1), and its commands."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EBUSY, EDQUOT, EFAULT, EINVAL, EMSGSIZE, ENOBUFS, ENOTTY, ENXIO, EOPNOTSUPP, ESHUTDOWN, EXFULL
from select import POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from typing import TYPE_CHECKING, Final

from ..base.errors import CommandError
from ..base.handle import Handle
from ..base.pool import Pool
from ..base.words import u32, u64
from . import abi
from .destroy import nodes_destroy
from .flush import drop_seed, flush
from .limits import NOTICE_COST, Limits
from .message import STAGED
from .nodes import Node
from .queue import Queue
from .receive import recv
from .send import send

if TYPE_CHECKING:
    from ..base.call import Call
    from ..base.pool import Slice
    from ..base.ports import Memory, Reader
    from .limits import User
    from .message import Delivery
    from .naming import Naming
    from .nodes import NodeHandle
    from .queue import Entry
    from .world import World

_WRITABLE: Final = POLLOUT | POLLWRNORM
_READABLE: Final = POLLIN | POLLRDNORM
FILE_KIND: Final = 2
"""Of bus1's files: which commands they take (`base.handle.Handle`)."""


class Peer(Handle):
    """An open file of bus1.

    view: the namespaces of who opened it, in which it sees credentials (B1-FILE-3); table: its handles by id, those
    that it has references to; next_id: the number in the next id that it is given (B1-NODE-5); namings: its commands
    under way that name ids; seed: the message that SEND with SEED has left; flushed_at: up to which time what was
    queued is gone, though it may still be there.
    """

    __slots__ = (
        "_is_closed",
        "_is_ending",
        "_is_readable",
        "flags",
        "flushed_at",
        "is_active",
        "limits",
        "memory",
        "namings",
        "next_id",
        "peer_id",
        "pool",
        "queue",
        "seed",
        "table",
        "view",
        "world",
    )

    def __init__(self, world: World, peer_id: int, user: User, view: Reader, memory: Memory) -> None:
        super().__init__(FILE_KIND)
        self.world = world
        self.peer_id = peer_id
        self.view = view
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
        self._is_ending = False
        self._is_closed = False

    # The file

    def ioctl(self, call: Call) -> int:
        """0 or -errno (B1-GEN-1 to B1-GEN-4)."""
        try:
            if call.number == abi.CMD_PEER_DISCONNECT:
                return _peer_disconnect(self, call)
            self.check_active()
            at = call.number & 0xFF
            command = _COMMANDS[at] if at < len(_COMMANDS) else None
            if command is None or command.number != call.number:
                return -ENOTTY
            if call.error:
                return -EFAULT
            return command.run(self, call)
        except CommandError as error:
            return -error.errno

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

    def disconnect(self) -> None:
        """For ever: everything that it has goes, and whoever has to do with it is told (B1-PEER-7)."""
        if not self.is_active:
            return
        self.is_active = False
        self._is_ending = True
        self.world.changed.append(self)
        flush(self, keep_seed=False)
        self._is_ending = False
        if self._is_closed:
            self._end()

    def freed(self, offset: int) -> None:
        """The published slice at `offset` was given back by a SLICE_RELEASE that is answered already."""
        self.free_slice(offset)

    def release(self) -> None:
        """The last close (B1-FILE-7)."""
        self.world.ends.begin(self.limits.user.uid, self._close)

    def _close(self) -> None:
        self.disconnect()
        self._is_closed = True
        if not self._is_ending:  # else whoever is busy with that goes on
            self._end()

    def _end(self) -> None:
        self.pool.close(self.world.turn)
        self.memory.close()
        self.world.closed(self)

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

    def stats(self) -> dict[str, object]:
        """What it has, for tests and tools."""
        limits = self.limits
        return {
            "peer": self.peer_id,
            "uid": limits.user.uid,
            "active": self.is_active,
            "handles": len(self.table),
            "queued": self.queue.count,
            "slices": limits.slices,
            "charged_handles": limits.handles,
            "pool_busy": self.pool.busy,
            "seed": self.seed is not None,
        }


# The small commands


def _peer_disconnect(peer: Peer, call: Call) -> int:
    """B1-PEER-7.  FUSE cannot carry its argument NULL: a pointer to 0 stands for it (B1-FUSE-1)."""
    if call.error:
        return -EFAULT
    if u64(call.data, 0):
        return -EINVAL
    peer.check_active()
    peer.disconnect()
    return 0


def _peer_query(peer: Peer, call: Call) -> int:
    """B1-PEER-1.  Raises CommandError(EINVAL)."""
    if u64(call.data, abi.PEER_RESET_FLAGS):
        return -EINVAL
    maxima = peer.limits.maxima
    call.put(1, peer.flags)
    call.put(2, maxima.slices | maxima.handles << 32)
    call.put(3, maxima.inflight_bytes | maxima.inflight_fds << 32)
    return 0


def _limit(data: bytes, at: int, now: int) -> int:
    value = u32(data, at)
    if value == abi.UNCHANGED:
        return now
    if value > abi.LIMIT_MAX:
        raise CommandError(EINVAL, "limit")
    return value


def _peer_reset(peer: Peer, call: Call) -> int:
    """B1-PEER-2 to B1-PEER-6.  Raises CommandError(EINVAL), with nothing changed."""
    data = call.data
    flags = u64(data, abi.PEER_RESET_FLAGS)
    if flags & ~(abi.PEER_RESET_FLAG_FLUSH | abi.PEER_RESET_FLAG_FLUSH_SEED):
        return -EINVAL
    peer_flags = u64(data, abi.PEER_RESET_PEER_FLAGS)
    if peer_flags == abi.U64_MAX:
        peer_flags = peer.flags
    elif peer_flags & ~abi.PEER_FLAG_WANT_SECCTX:
        return -EINVAL
    maxima = peer.limits.maxima
    slices = _limit(data, abi.PEER_RESET_MAX_SLICES, maxima.slices)
    handles = _limit(data, abi.PEER_RESET_MAX_HANDLES, maxima.handles)
    inflight_bytes = _limit(data, abi.PEER_RESET_MAX_INFLIGHT_BYTES, maxima.inflight_bytes)
    inflight_fds = _limit(data, abi.PEER_RESET_MAX_INFLIGHT_FDS, maxima.inflight_fds)
    peer.flags = peer_flags
    maxima.slices = slices
    maxima.handles = handles
    maxima.inflight_bytes = inflight_bytes
    maxima.inflight_fds = inflight_fds
    flushes_seed = flags & abi.PEER_RESET_FLAG_FLUSH_SEED != 0
    if flags & abi.PEER_RESET_FLAG_FLUSH:
        flush(peer, keep_seed=not flushes_seed)
    elif flushes_seed:
        drop_seed(peer)
    return 0


def _handle_release(peer: Peer, call: Call) -> int:
    """B1-HAND-1, B1-NODE-9.  Raises CommandError: ENXIO, EBUSY."""
    handle = peer.find(u64(call.data, 0))
    if handle is None:
        raise CommandError(EBUSY, "an id that could be a node's")
    node = handle.node
    if node.owner is peer and handle.user == 1 and not node.is_destroyed:
        raise CommandError(EBUSY, "the last reference to a live node of its own")
    peer.give_back(handle, 1)
    return 0


def _transfer_target(peer: Peer, call: Call) -> Peer:
    """Raises CommandError: EBADF, EOPNOTSUPP, ESHUTDOWN."""
    fd = u64(call.data, abi.HANDLE_TRANSFER_DST_FD)
    if fd == abi.U64_MAX:
        return peer
    if fd > abi.LIMIT_MAX:
        raise CommandError(EBADF, "no number of a descriptor")
    target = call.caller.handle_of(fd)
    if not isinstance(target, Peer) or target.world is not peer.world:
        raise CommandError(EOPNOTSUPP, "no file of bus1")
    target.check_active()
    return target


def _handle_transfer(peer: Peer, call: Call) -> int:
    """B1-HAND-2 to B1-HAND-4.  Raises CommandError: EINVAL, EBADF, EOPNOTSUPP, ESHUTDOWN, ENXIO, EDQUOT."""
    if u64(call.data, abi.HANDLE_TRANSFER_FLAGS):
        return -EINVAL
    target = _transfer_target(peer, call)
    peer.check_active()  # looking for the file may have been held up
    id = u64(call.data, abi.HANDLE_TRANSFER_SRC_HANDLE)
    handle = peer.find(id)
    if handle is not None and handle.node.is_destroyed:
        call.put(3, abi.HANDLE_INVALID)
        return 0
    target.limits.charge_handles(1)
    if handle is None:
        try:
            peer.limits.charge_handles(1)
        except CommandError:
            target.limits.discharge_handles(1)
            raise
        node = Node(peer, id)
        assert node.anchor is not None
        peer.enter(node.anchor)
    else:
        node = handle.node
    given = node.handle_of(target)
    given.gain()
    call.put(3, given.id)
    return 0


def _slice_release(peer: Peer, call: Call) -> int:
    """B1-HAND-7.  Raises CommandError(ENXIO)."""
    peer.free_slice(u64(call.data, 0))
    return 0


class _Command:
    """A command and its number."""

    __slots__ = ("number", "run")

    def __init__(self, number: int, run: Callable[[Peer, Call], int]) -> None:
        self.number = number
        self.run = run


def _by_low_byte(*commands: _Command) -> list[_Command | None]:
    table: list[_Command | None] = [None] * (max(command.number & 0xFF for command in commands) + 1)
    for command in commands:
        table[command.number & 0xFF] = command
    return table


_COMMANDS: Final = _by_low_byte(
    _Command(abi.CMD_PEER_QUERY, _peer_query),
    _Command(abi.CMD_PEER_RESET, _peer_reset),
    _Command(abi.CMD_HANDLE_RELEASE, _handle_release),
    _Command(abi.CMD_HANDLE_TRANSFER, _handle_transfer),
    _Command(abi.CMD_NODES_DESTROY, nodes_destroy),
    _Command(abi.CMD_SLICE_RELEASE, _slice_release),
    _Command(abi.CMD_SEND, send),
    _Command(abi.CMD_RECV, recv),
)
