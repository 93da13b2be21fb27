"""The small commands: PEER_QUERY, PEER_RESET, HANDLE_RELEASE, HANDLE_TRANSFER and SLICE_RELEASE."""

from __future__ import annotations

from errno import EBADF, EBUSY, EINVAL, EOPNOTSUPP
from typing import TYPE_CHECKING

from ..base.errors import CommandError
from ..base.words import u32, u64
from . import abi
from .flush import drop_seed, flush
from .nodes import Node
from .peer import Peer

if TYPE_CHECKING:
    from ..base.call import Call


def peer_query(peer: Peer, call: Call) -> int:
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


def peer_reset(peer: Peer, call: Call) -> int:
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


def handle_release(peer: Peer, call: Call) -> int:
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


def handle_transfer(peer: Peer, call: Call) -> int:
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


def slice_release(peer: Peer, call: Call) -> int:
    """B1-HAND-7.  Raises CommandError(ENXIO)."""
    peer.free_slice(u64(call.data, 0))
    return 0
