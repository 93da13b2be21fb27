"""A RECV of a message: what it grants to the peer, and takes back if it fails (B1-RECV-5 to B1-RECV-11)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from ..base.errors import CommandError
from .abi import HANDLE_INVALID
from .message import GIVEN_UP
from .nodes import NO_ID

if TYPE_CHECKING:
    from .message import Delivery
    from .nodes import NodeHandle
    from .peer import Peer


class Receiving:
    """A RECV of a message under way.

    Others may be served while it lasts.  They do not see the message (B1-FUSE-4); if they flush the peer, that is after
    it, or before if nothing has been granted yet.
    """

    __slots__ = ("_granted", "_ids", "_is_peek", "_live", "_was_published", "delivery", "peer")

    def __init__(self, peer: Peer, delivery: Delivery, *, is_peek: bool) -> None:
        self.peer = peer
        self.delivery = delivery
        self._is_peek = is_peek
        self._ids: list[int] = []
        self._live: list[NodeHandle | None] = []  # as many as `_ids`
        self._granted = 0  # how many of `_live` have become references
        self._was_published = True  # or never will be by this RECV

    def write(self, *, with_numbers: bool) -> None:
        """Find out which handles live, and tell in the slice (B1-RECV-6, B1-RECV-9).

        with_numbers: those of descriptors are written by somebody else.  Raises CommandError: EDQUOT, ENOMEM.
        """
        peer, delivery = self.peer, self.delivery
        turn, message, memory = peer.world.turn, delivery.message, peer.memory
        time = delivery.transaction.time if delivery.node is not None else peer.world.time + 1
        count = 0
        for handle in delivery.handles:
            is_live = handle is not None and _lives(handle, time)
            self._live.append(handle if is_live else None)
            if is_live and handle is not None:
                self._ids.append(handle.identify())
                count += 1
            else:
                self._ids.append(HANDLE_INVALID)
            turn.spend()
        part = delivery.part
        is_charged = False
        try:
            if self._is_peek:
                peer.limits.charge_handles(count)
                is_charged = True
            if self._ids:
                memory.store(part.offset + message.handles_at, Struct(f"<{len(self._ids)}Q").pack(*self._ids))
            if message.files and not with_numbers:
                memory.store(part.offset + message.files_at, b"\xff" * (4 * len(message.files)))
        except CommandError:
            if is_charged:
                peer.limits.discharge_handles(count)
            self._live = []
            raise

    def grant(self) -> None:
        """Let the peer have its references, and the slice."""
        peer, delivery = self.peer, self.delivery
        part, turn = delivery.part, peer.world.turn
        if peer.is_active:
            self._was_published = part.published
            peer.pool.publish(part)
            part.held = True
        for index, handle in enumerate(self._live):
            if not peer.is_active or delivery.state == GIVEN_UP:
                self._forget_rest(index)
                return
            self._granted = index + 1
            if handle is not None and not self._take(handle, index):
                self._live[index] = None
                if self._is_peek:
                    peer.limits.discharge_handles(1)
            turn.spend()

    def _forget_rest(self, index: int) -> None:
        """Those from there on would be given back at once."""
        rest = self._live[index:]
        if self._is_peek:
            self.peer.limits.discharge_handles(sum(handle is not None for handle in rest))
        del self._live[index:]

    def _take(self, handle: NodeHandle, index: int) -> bool:
        id = self._ids[index]
        if handle.id != id:
            # It was forgotten, while this RECV paused, and somebody may have it by now.
            if handle.id != NO_ID or id in self.peer.table:
                return False
            handle.id = id
        if self._is_peek:
            handle.gain()
        else:
            handle.receive()
            self.delivery.handles[index] = None
            self.delivery.charged -= 1
        return True

    def succeed(self) -> None:
        """It has come to its end."""
        peer, delivery = self.peer, self.delivery
        delivery.is_busy = False
        if delivery.state == GIVEN_UP:
            delivery.drop(peer.world.turn)
        elif not self._is_peek:
            if delivery.queue is not None:
                peer.queue.remove(delivery)
            elif peer.seed is delivery:
                peer.seed = None
            delivery.drop(peer.world.turn)
        peer.update()

    def stop(self) -> None:
        """It fails: everything is as it was, but for ids that were picked (B1-RECV-9)."""
        peer, delivery, turn = self.peer, self.delivery, self.peer.world.turn
        for index, handle in enumerate(self._live):
            if handle is not None:
                if index < self._granted:
                    self._take_back(handle, index)
                elif self._is_peek:
                    peer.limits.discharge_handles(1)
                turn.spend()
        if not self._was_published:
            try:
                peer.free_slice(delivery.part.offset)
            except CommandError:
                pass  # somebody has given it back meanwhile
        delivery.is_busy = False
        if delivery.state == GIVEN_UP or not peer.is_active:
            delivery.drop(turn)
        peer.update()

    def _take_back(self, handle: NodeHandle, index: int) -> None:
        peer, delivery = self.peer, self.delivery
        node = handle.node
        # The one that its maker has by the making is none that this RECV has given.
        has_it = handle.user > (1 if node.owner is peer and node.is_pinned else 0)
        if self._is_peek:
            if has_it:
                id = handle.id
                peer.give_back(handle, 1)
                handle.id = id
            return
        if has_it:
            handle.unreceive()
        else:
            # The peer has given the reference back already.
            handle = node.attach(handle)
            handle.inflight += 1
            node.rise()
            peer.limits.add_handle()
        delivery.handles[index] = handle
        delivery.charged += 1


def _lives(handle: NodeHandle, time: int) -> bool:
    """Whether a message of that time brings a handle that can be used (B1-ORD-6, B1-RECV-7)."""
    node = handle.node
    if node.owner is handle.peer and not handle.user:
        return False
    return node.was_alive(time)

