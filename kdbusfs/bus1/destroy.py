"""NODES_DESTROY (B1-HAND-5, B1-HAND-6)."""

from __future__ import annotations

from errno import EDQUOT, EFAULT, EINVAL, ENOTUNIQ, EREMOTE, ESTALE
from typing import TYPE_CHECKING, Final

from ..base.errors import CommandError
from ..base.words import u64
from . import abi
from .arrays import read_ids
from .naming import ROUNDS, Naming
from .nodes import Destruction, Node

if TYPE_CHECKING:
    from ..base.call import Call
    from .peer import Peer

FRESH_MAX: Final = 1 << 14
"""Nodes that one command can make only to destroy them: nobody else is served while they enter the peer's table."""


def nodes_destroy(peer: Peer, call: Call) -> int:
    """BUS1_CMD_NODES_DESTROY.

    Raises CommandError: EINVAL, EFAULT, ENXIO, ENOTUNIQ, EREMOTE, ESTALE, EDQUOT; nothing is destroyed then.
    """
    data = call.data
    flags = u64(data, abi.NODES_DESTROY_FLAGS)
    count = u64(data, abi.NODES_DESTROY_N_NODES)
    if flags & ~abi.NODES_DESTROY_FLAG_RELEASE_HANDLES:
        return -EINVAL
    if count > peer.limits.user.maxima.handles:
        return -EINVAL
    turn = peer.world.turn
    naming = Naming()
    peer.namings.append(naming)
    try:
        ids = read_ids(call.caller, u64(data, abi.NODES_DESTROY_PTR_NODES), count, turn)
        naming.name(ids, turn)
        nodes = _make_and_mark(peer, naming, ids, count)
    finally:
        peer.namings.remove(naming)
    if flags & abi.NODES_DESTROY_FLAG_RELEASE_HANDLES:
        for node in nodes:
            anchor = node.anchor
            if anchor is not None and anchor.user:
                peer.give_back(anchor, 1)
            turn.spend()
    return 0


def _make_and_mark(peer: Peer, naming: Naming, ids: list[int], count: int) -> list[Node]:
    for _ in range(ROUNDS):
        naming.changed = False
        fresh: dict[int, Node] = {}
        try:
            nodes = _look_up(peer, ids, count, fresh)
            # From here to the marks nobody else is served.
            peer.check_active()
            if not naming.changed and _are_alive(nodes):
                peer.limits.charge_handles(len(fresh))
                for node in fresh.values():
                    assert node.anchor is not None
                    peer.enter(node.anchor)
                fresh = {}
                Destruction(peer, nodes).finish()
                return nodes
        finally:
            for node in fresh.values():
                node.discard()
    raise CommandError(EDQUOT, "siblings keep changing the ids")


def _are_alive(nodes: list[Node]) -> bool:
    """Whether nobody has begun to destroy any of them."""
    return all(node.destruction is None for node in nodes)


def _look_up(peer: Peer, ids: list[int], count: int, fresh: dict[int, Node]) -> list[Node]:
    """What is to be destroyed, in order; what has to be made for that is in `fresh`, too."""
    seen: set[int] = set()
    nodes: list[Node] = []
    for index in range(count):
        if index == len(ids):
            raise CommandError(EFAULT, "array of nodes")
        id = ids[index]
        handle = peer.find(id)
        if id in seen:
            raise CommandError(ENOTUNIQ, "node that was named before")
        seen.add(id)
        if handle is None:
            if len(fresh) == FRESH_MAX:
                raise CommandError(EDQUOT, "nodes that exist only in this command")
            node = fresh[id] = Node(peer, id)
        else:
            node = handle.node
            if node.owner is not peer:
                raise CommandError(EREMOTE, "node of somebody else's")
            if node.destruction is not None:
                node.destruction.finish()
                raise CommandError(ESTALE, "destroyed already")
        nodes.append(node)
        peer.world.turn.spend()
    return nodes
