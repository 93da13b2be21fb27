"""What each peer has, for the file `peers` of a mount (docs/architecture/inspection.md has the members)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from .abi import MSG_DATA, MSG_NODE_DESTROY
from .message import Delivery
from .nodes import NO_ID

if TYPE_CHECKING:
    from .nodes import Node
    from .peer import Peer
    from .queue import Entry

QUEUED_MOST: Final = 1024
"""So many entries of a queue are shown, from its front on."""

Details = dict[str, object]


def peer_details(
    peers: Iterable[Peer], pid_ns: int
) -> Iterator[tuple[Details, Iterator[Details], Iterator[Details], Iterator[Details]]]:
    """Each peer with its nodes, its handles of other nodes and its queue, evaluated lazily: there may be thousands.

    pid_ns: the namespace whose pids are shown.
    """
    for peer in peers:
        if peer.is_active:
            yield _summary(peer, pid_ns), _nodes(peer), _handles(peer), _queued(peer)


def _summary(peer: Peer, pid_ns: int) -> Details:
    limits = peer.limits
    pids = peer.pids.get(pid_ns)
    return {
        "peer": peer.peer_id,
        "uid": limits.user.uid,
        "pid": pids.pid if pids is not None else None,
        "slices": limits.slices,
        "max_slices": limits.maxima.slices,
        "references": limits.handles,
        "max_handles": limits.maxima.handles,
        "pool_used": peer.pool.busy,
        "queued": peer.queue.count,
        "seed": peer.seed is not None,
    }


def _nodes(peer: Peer) -> Iterator[Details]:
    for handle in list(peer.table.values()):
        node = handle.node
        if node.owner is peer and handle.user:
            yield {
                "id": handle.id,
                "holders": len(node.holders) if node.holders is not None else 0,
                "references": node.strong,
                "destroyed": node.is_destroyed,
            }


def _handles(peer: Peer) -> Iterator[Details]:
    for handle in list(peer.table.values()):
        node = handle.node
        if node.owner is not peer and handle.user:
            yield {
                "id": handle.id,
                "owner": node.owner.peer_id,
                "node": _id_of(node),
                "references": handle.user,
                "destroyed": node.is_destroyed,
            }


def _queued(peer: Peer) -> Iterator[Details]:
    for entry in peer.queue.entries(QUEUED_MOST):
        yield _entry(entry)


def _entry(entry: Entry) -> Details:
    node, handle = entry.node, entry.handle
    about = handle.id if handle is not None and handle.id != NO_ID else _id_of(node) if node is not None else None
    if isinstance(entry, Delivery):
        message = entry.message
        return {
            "type": "data",
            "destination": about,
            "uid": message.creds.uid if message.creds is not None else None,
            "bytes": message.n_bytes,
            "handles": message.n_handles,
            "fds": len(message.files),
        }
    assert entry.kind != MSG_DATA
    return {"type": "destroy" if entry.kind == MSG_NODE_DESTROY else "release", "destination": about}


def _id_of(node: Node) -> int | None:
    """The id that its owner knows it by; None if it has none any more."""
    anchor = node.anchor
    return anchor.id if anchor is not None and anchor.id != NO_ID else None
