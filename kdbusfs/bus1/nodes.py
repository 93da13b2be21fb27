"""Nodes and the handles that refer to them (B1-NODE).

Of each handle two counts are kept: `user`, the references that its peer was told of, and `inflight`, its places in
messages that lie in that peer's queue, or will.  `strong` of a node is all of them together, less the one that its
owner has had since it made the node; when it falls to 0 the owner hears of it.

A message that is on its way to many may attach its handles long before it is committed, and may yet fail.  Its places
count at once, and are `staged` until then: what falls to 0 only because such a message failed is not told of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .abi import HANDLE_FLAG_MANAGED, HANDLE_FLAG_REMOTE, MSG_NODE_DESTROY, MSG_NODE_RELEASE, U64_MAX
from .queue import Entry, Transaction

if TYPE_CHECKING:
    from .peer import Peer

NO_ID: Final = U64_MAX
"""Of a handle that its peer knows by no id."""
_ID_SHIFT: Final = 3


class NodeHandle:
    """One peer's reference to a node.  It is attached to the node while it counts anything.

    id: by which the peer knows it, or has been told of it by a RECV that failed then; is_told: the destruction of the
    node is in the peer's queue.
    """

    __slots__ = ("id", "inflight", "is_told", "node", "peer", "user")

    def __init__(self, node: Node, peer: Peer, id: int = NO_ID) -> None:
        self.node = node
        self.peer = peer
        self.id = id
        self.user = 0
        self.inflight = 0
        self.is_told = False

    @property
    def is_attached(self) -> bool:
        return self.user > 0 or self.inflight > 0

    def identify(self) -> int:
        """The id that its peer knows it by, or will know (B1-NODE-5)."""
        if self.id == NO_ID:
            peer = self.peer
            flags = HANDLE_FLAG_MANAGED
            if self.node.owner is not peer:
                flags |= HANDLE_FLAG_REMOTE
            self.id = peer.next_id << _ID_SHIFT | flags
            peer.next_id += 1
        return self.id

    # References of the peer

    def gain(self) -> None:
        """One more reference, by TRANSFER or PEEK."""
        self.node.rise()
        self._told()

    def receive(self) -> None:
        """A place in a message becomes a reference."""
        self.inflight -= 1
        self._told()

    def unreceive(self) -> None:
        """A RECV failed after all: the reference, which must be there, is a place in a message again.  Its id stays."""
        self.inflight += 1
        id = self.id
        self._forget(1)
        self.id = id

    def _told(self) -> None:
        self.user += 1
        if self.user == 1:
            self.peer.enter(self)

    def give_back(self, count: int) -> None:
        """`count` references less; the last that an owner gives back is the pinned one (B1-NODE-14)."""
        node = self.node
        strong = count
        if node.is_pinned and count == self.user and node.owner is self.peer:
            node.is_pinned = False
            strong -= 1
        self._forget(count)
        if strong:
            node.fall(strong)
        self._detach()

    def _forget(self, count: int) -> None:
        """The id is forgotten with the last (B1-NODE-6)."""
        self.user -= count
        if not self.user:
            self.peer.forget(self)
            self.id = NO_ID

    # Places in messages

    def stage(self) -> None:
        """One more place, of a message that is not committed yet."""
        node = self.node
        self.inflight += 1
        node.staged += 1
        was_released = not node.strong
        node.strong += 1
        if was_released and node.withdraw_release():
            node.is_owed = True

    def unstage(self) -> None:
        """That message will never be committed."""
        node = self.node
        self.inflight -= 1
        node.staged -= 1
        node.strong -= 1
        if not node.strong and node.is_owed:
            node.is_owed = False
            node.tell_release()
        self._detach()

    def commit_place(self) -> None:
        """The message of a staged place was committed."""
        self.node.staged -= 1
        self.node.is_owed = False

    def drop_place(self) -> None:
        """A place less, of a message that was committed."""
        self.inflight -= 1
        self.node.fall(1)
        self._detach()

    def _detach(self) -> None:
        if not self.is_attached:
            self.node.detach(self)


class Node:
    """An object of its owner's.  destruction: the transaction of its end, which may not be committed yet; release: the
    notification that is queued; is_owed: one is to be queued if what is staged fails; rank: among those that are
    destroyed together.
    """

    __slots__ = (
        "anchor",
        "destruction",
        "holders",
        "is_owed",
        "is_pinned",
        "owner",
        "rank",
        "release",
        "staged",
        "strong",
    )

    def __init__(self, owner: Peer, id: int) -> None:
        self.owner = owner
        anchor = NodeHandle(self, owner, id)
        anchor.user = 1
        self.anchor: NodeHandle | None = anchor
        self.holders: dict[Peer, NodeHandle] | None = None
        self.is_pinned = True
        self.strong = 0
        self.staged = 0
        self.is_owed = False
        self.destruction: Destruction | None = None
        self.rank = 0
        self.release: Entry | None = None

    @property
    def is_destroyed(self) -> bool:
        destruction = self.destruction
        return destruction is not None and destruction.time != 0

    def was_alive(self, time: int) -> bool:
        """Whether it was not destroyed before `time` (B1-ORD-6)."""
        destruction = self.destruction
        return destruction is None or not destruction.time or time <= destruction.time

    @property
    def is_released(self) -> bool:
        """Whether nothing can be sent to it any more (B1-NODE-12)."""
        return not self.owner.is_active or (self.anchor is None and self.is_destroyed)

    # Handles

    def handle_of(self, peer: Peer) -> NodeHandle:
        """The handle that `peer` has, attached; one that is new counts nothing yet."""
        if peer is self.owner:
            anchor = self.anchor
            if anchor is None:
                anchor = self.anchor = NodeHandle(self, peer)
            return anchor
        holders = self.holders
        if holders is None:
            holders = self.holders = {}
        handle = holders.get(peer)
        if handle is None:
            handle = holders[peer] = NodeHandle(self, peer)
            if self.destruction is not None:
                self.destruction.include(handle)
        return handle

    def attach(self, handle: NodeHandle) -> NodeHandle:
        """Take a handle back that may have been detached; the one that its peer has by now."""
        peer = handle.peer
        if peer is self.owner:
            if self.anchor is None:
                self.anchor = handle
            return self.anchor
        if self.holders is None:
            self.holders = {}
        return self.holders.setdefault(peer, handle)

    def detach(self, handle: NodeHandle) -> None:
        """It counts nothing any more."""
        if handle is self.anchor:
            self.anchor = None
        elif self.holders is not None and self.holders.get(handle.peer) is handle:
            del self.holders[handle.peer]

    def discard(self) -> None:
        """The command that was to make it has failed."""
        self.anchor = None

    # The count of references that keep its owner from being told of its release

    def rise(self) -> None:
        """One more (B1-NODE-8)."""
        self.strong += 1
        self.is_owed = False
        if self.release is not None:
            self.withdraw_release()

    def fall(self, count: int) -> None:
        """`count` less."""
        self.strong -= count
        if not self.strong:
            self.is_owed = False
            self.tell_release()
        elif self.strong == self.staged:
            self.is_owed = True

    def tell_release(self) -> None:
        """Nobody but the owner has a handle any more (B1-NODE-8)."""
        owner = self.owner
        if self.destruction is not None or not owner.is_active or self.release is not None:
            return
        self.release = Entry(MSG_NODE_RELEASE, owner.world.moment(), self, None)
        owner.notify(self.release)

    def withdraw_release(self) -> bool:
        """Take a notification that is still queued out; whether there was one."""
        release, self.release = self.release, None
        if release is None:
            return False
        self.owner.withdraw(release)
        return True


class Destruction(Transaction):
    """The end of some nodes of one peer, told to all who have handles of them, at one time (B1-NODE-10).

    It is under way from `begin` on and cannot fail; others may be served meanwhile.  What is done is in here, so that
    whoever needs it over goes on with it.
    """

    __slots__ = ("_handles", "_next", "_nodes", "_world")

    def __init__(self, owner: Peer, nodes: list[Node]) -> None:
        super().__init__()
        self._world = owner.world
        self._nodes = nodes
        self._next = 0
        self._handles: list[NodeHandle] = []
        for rank, node in enumerate(nodes):
            node.destruction = self
            node.rank = rank

    def include(self, handle: NodeHandle) -> None:
        """Tell the peer of `handle` as well, which it has just got."""
        if not self.time:
            self._tell(handle)

    def _tell(self, handle: NodeHandle) -> None:
        peer = handle.peer
        if handle.is_told or not peer.is_active:
            return
        handle.is_told = True
        node = handle.node
        peer.stage_notice(Entry(MSG_NODE_DESTROY, self, node, handle, node.rank))

    def finish(self) -> None:
        """Commit it, and wake those who are told."""
        turn = self._world.turn
        while not self.time:
            if self._handles:
                handle = self._handles.pop()
                if handle.is_attached:
                    self._tell(handle)
            elif self._next < len(self._nodes):
                node = self._nodes[self._next]
                self._next += 1
                node.withdraw_release()
                if node.holders:
                    self._handles = list(node.holders.values())
                if node.anchor is not None:
                    self._handles.append(node.anchor)
            else:
                self._world.commit(self)
                self._nodes = []
                break
            turn.spend()
        while self.peers:
            self.peers.pop().update()
            turn.spend()
