"""RECV (B1-RECV)."""

from __future__ import annotations

from errno import EAGAIN, EINVAL, ERANGE, ESHUTDOWN
from typing import TYPE_CHECKING, Final

from ..base.errors import CommandError
from ..base.identity import NO_ID as NOBODY
from ..base.words import u64
from . import abi
from .abi import HANDLE_INVALID, MSG_DATA, OFFSET_INVALID
from .flush import give_up
from .install import Installing
from .message import GIVEN_UP, Delivery
from .receiving import Receiving

if TYPE_CHECKING:
    from ..base.call import Call
    from .peer import Peer
    from .queue import Entry

_FLAGS: Final = abi.RECV_FLAG_PEEK | abi.RECV_FLAG_SEED | abi.RECV_FLAG_INSTALL_FDS
_TYPE: Final = abi.MSG_TYPE // 8
_MSG_FLAGS: Final = abi.MSG_FLAGS // 8
_DESTINATION: Final = abi.MSG_DESTINATION // 8
_IDS: Final = abi.MSG_UID // 8
_PIDS: Final = abi.MSG_PID // 8
_OFFSET: Final = abi.MSG_OFFSET // 8
_N_BYTES: Final = abi.MSG_N_BYTES // 8
_N_HANDLES: Final = abi.MSG_N_HANDLES // 8
_N_FDS: Final = abi.MSG_N_FDS // 8
_N_SECCTX: Final = abi.MSG_N_SECCTX // 8


def recv(peer: Peer, call: Call) -> int:
    """BUS1_CMD_RECV: 0, -EINVAL or -EAGAIN.

    Raises CommandError: ERANGE, EDQUOT (PEEK), ENOMEM; the message stays then.
    """
    flags = u64(call.data, abi.RECV_FLAGS)
    if flags & ~_FLAGS:
        return -EINVAL
    if flags & abi.RECV_FLAG_SEED:
        seed = peer.seed
        return -EAGAIN if seed is None or seed.is_busy else _recv_data(peer, call, seed, flags)
    entry = _front(peer)
    if entry is None:
        peer.update()
        return -EAGAIN
    if isinstance(entry, Delivery):
        return _recv_data(peer, call, entry, flags)
    _fill_notice(call, entry)
    if not flags & abi.RECV_FLAG_PEEK:
        peer.queue.remove(entry)
        give_up(peer, entry)
        peer.update()
    return 0


def _front(peer: Peer) -> Entry | None:
    """The entry whose turn it is, after those that nobody will see (B1-RECV-3)."""
    queue, turn = peer.queue, peer.world.turn
    entry = queue.front()
    while entry is not None and not entry.is_busy and _is_void(peer, entry):
        queue.remove(entry)
        give_up(peer, entry)
        turn.spend()
        entry = queue.front()
    return None if entry is None or entry.is_busy else entry


def _is_void(peer: Peer, entry: Entry) -> bool:
    """Whether the peer can have no use for it: it was flushed, or is about what was gone before, or about what the peer
    has no reference to.
    """
    node = entry.node
    if entry.transaction.time <= peer.flushed_at:
        return True
    if entry.kind == abi.MSG_NODE_DESTROY:
        return entry.handle is None or not entry.handle.user
    if node is None:
        return False
    anchor = node.anchor
    if anchor is None or not anchor.user:
        return True
    return entry.kind == MSG_DATA and not node.was_alive(entry.transaction.time)


def _continues(entry: Entry) -> bool:
    """B1-ORD-5."""
    after = entry.next_entry()
    return after is not None and after.transaction is entry.transaction


def _fill(call: Call, kind: int, flags: int, destination: int, ids: int, pids: int, offset: int) -> None:
    call.put(_TYPE, kind)
    call.put(_MSG_FLAGS, flags)
    call.put(_DESTINATION, destination)
    call.put(_IDS, ids)
    call.put(_PIDS, pids)
    call.put(_OFFSET, offset)


def _fill_notice(call: Call, entry: Entry) -> None:
    """B1-RECV-13."""
    handle = entry.handle
    if handle is None:
        assert entry.node is not None
        handle = entry.node.anchor
    assert handle is not None
    flags = abi.MSG_FLAG_CONTINUE if _continues(entry) else 0
    _fill(call, entry.kind, flags, handle.id, NOBODY | NOBODY << 32, 0, OFFSET_INVALID)
    call.put(_N_BYTES, 0)
    call.put(_N_HANDLES, 0)
    call.put(_N_FDS, 0)
    call.put(_N_SECCTX, 0)


def _fill_data(peer: Peer, call: Call, delivery: Delivery, flags: int) -> None:
    """B1-RECV-2, B1-RECV-5, B1-CRED-1."""
    message, view = delivery.message, peer.view
    creds = message.creds
    assert creds is not None
    ids = view.uid_from_global(creds.uid) | view.gid_from_global(creds.gid) << 32
    pids = message.pids_in(view.pid_ns)
    destination = HANDLE_INVALID
    node = delivery.node
    if node is not None and node.anchor is not None:
        destination = node.anchor.id
    _fill(call, MSG_DATA, flags, destination, ids, pids.pid | pids.tid << 32, delivery.part.offset)
    call.put(_N_BYTES, message.n_bytes)
    call.put(_N_HANDLES, message.n_handles)
    call.put(_N_FDS, len(message.files))
    context = message.secctx
    call.tells_offset = True
    call.put(_N_SECCTX, len(context) if context is not None and delivery.has_context else 0)


def _recv_data(peer: Peer, call: Call, delivery: Delivery, flags: int) -> int:
    """A message, or the seed (B1-RECV-4 to B1-RECV-11, B1-RECV-14)."""
    part, message, turn = delivery.part, delivery.message, peer.world.turn
    max_offset = u64(call.data, abi.RECV_MAX_OFFSET)
    if max_offset != OFFSET_INVALID and max_offset < part.offset + part.size:
        return -ERANGE
    msg_flags = abi.MSG_FLAG_HAS_SECCTX if delivery.has_context else 0
    if _continues(delivery):
        msg_flags |= abi.MSG_FLAG_CONTINUE
    delivery.commit(turn)
    delivery.is_busy = True
    receiving = Receiving(peer, delivery, is_peek=flags & abi.RECV_FLAG_PEEK != 0)
    try:
        installs = flags & abi.RECV_FLAG_INSTALL_FDS != 0 and len(message.files) > 0
        receiving.write(with_numbers=installs)
        if delivery.state == GIVEN_UP:
            receiving.stop()
            return -EAGAIN
        _fill_data(peer, call, delivery, msg_flags)
        receiving.grant()
    except CommandError:
        receiving.stop()
        raise
    if not peer.is_active:
        receiving.stop()
        return -ESHUTDOWN
    if installs:
        peer.update()
        call.installation = Installing(receiving, message, peer.memory, part.offset + message.files_at)
    else:
        receiving.succeed()
    return 0
