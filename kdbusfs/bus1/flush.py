"""What a peer has goes: FLUSH, and its end (B1-PEER-4 to B1-PEER-7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from ..base.errors import CommandError
from .abi import MSG_NODE_RELEASE
from .message import GIVEN_UP, Delivery
from .nodes import Destruction
from .queue import Entry

if TYPE_CHECKING:
    from ..base.linked import LinkedList
    from .nodes import Node, NodeHandle
    from .peer import Peer

_FOR_EVER: Final = 1 << 62
"""A time that never comes."""


def flush(peer: Peer, *, keep_seed: bool) -> None:
    """Own nodes, references, the queue and slices, in this order; the seed as well, or it stays.

    Others may be served meanwhile: what they bring to an active peer stays.
    """
    turn = peer.world.turn
    kept = _nodes_of_seed(peer) if keep_seed else set()
    _destroy_nodes(peer, kept)
    # All else goes at one time; it only takes a while.
    handles = list(peer.table.values())
    offsets = peer.pool.published_offsets()
    peer.flushed_at = peer.world.time if peer.is_active else _FOR_EVER
    staged = [] if peer.is_active else peer.queue.take_staged()
    front = peer.queue.front()
    if front is not None and front.is_busy:
        peer.queue.remove(front)
        give_up(peer, front)
    if not keep_seed:
        drop_seed(peer)
    _give_back_references(peer, handles, kept)
    for entries in staged:
        _give_up_staged(peer, entries)
    _discard_queue(peer)
    for offset in offsets:
        try:
            peer.free_slice(offset)
        except CommandError:
            pass  # somebody has given it back meanwhile
        turn.spend()
    peer.update()


def drop_seed(peer: Peer) -> None:
    """B1-PEER-5."""
    seed, peer.seed = peer.seed, None
    if seed is not None:
        give_up(peer, seed)


def give_up(peer: Peer, entry: Entry) -> None:
    """Let go of what is neither in the queue any more nor the seed."""
    if isinstance(entry, Delivery):
        if entry.is_busy:
            entry.state = GIVEN_UP  # the RECV that is busy with it does the rest
        else:
            entry.drop(peer.world.turn)
        return
    peer.forget_notice()
    node = entry.node
    if entry.kind == MSG_NODE_RELEASE and node is not None and node.release is entry:
        node.release = None


def _nodes_of_seed(peer: Peer) -> set[Node]:
    """The own nodes that the seed carries (B1-PEER-6)."""
    found: set[Node] = set()
    seed = peer.seed
    if seed is not None:
        for handle in seed.handles:
            if handle is not None and handle.node.owner is peer:
                found.add(handle.node)
            peer.world.turn.spend()
    return found


def _destroy_nodes(peer: Peer, kept: set[Node]) -> None:
    turn = peer.world.turn
    doomed: list[Node] = []
    for handle in list(peer.table.values()):
        node = handle.node
        if node.owner is peer and not node.is_destroyed and node not in kept:
            doomed.append(node)
        turn.spend()
    # A sibling may have begun to destroy some.
    others = {node.destruction for node in doomed}
    doomed = [node for node in doomed if node.destruction is None]
    if doomed:
        Destruction(peer, doomed).finish()
    for other in others:
        if other is not None:
            other.finish()


def _discard_queue(peer: Peer) -> None:
    queue = peer.queue
    entry = queue.front()
    while entry is not None and entry.transaction.time <= peer.flushed_at:
        queue.remove(entry)
        give_up(peer, entry)
        peer.world.turn.spend()
        entry = queue.front()


def _give_up_staged(peer: Peer, entries: LinkedList) -> None:
    """Discard what one transaction has staged for a peer that has gone."""
    while entries.first is not None:
        entry = cast(Entry, entries.first)
        entries.remove(entry)
        entry.queue = None
        give_up(peer, entry)
        peer.world.turn.spend()


def _give_back_references(peer: Peer, handles: list[NodeHandle], kept: set[Node]) -> None:
    for handle in handles:
        node = handle.node
        if node.owner is peer and not node.is_destroyed:
            # Its own, and alive: one of the seed's, or one that a sibling has made since.
            if node in kept and handle.user > 1:
                peer.give_back(handle, handle.user - 1)
        elif handle.user:
            peer.give_back(handle, handle.user)
        peer.world.turn.spend()
