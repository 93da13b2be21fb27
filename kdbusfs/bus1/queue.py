"""A peer's queue, and the order of all that happens (B1-ORD).

A transaction puts its entries into any number of queues, and others are served in between, for there may be thousands.
Entries are *staged* then: no receiver sees them.  The commit is one number, the transaction's time: from that moment
all its entries are there for all receivers.  Times only grow, so what is staged comes after all that has a time, and a
queue needs no more than to move what was committed from its staged parts behind its last entry whenever it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from ..base.linked import Linked, LinkedList

if TYPE_CHECKING:
    from .nodes import Node, NodeHandle
    from .peer import Peer

_NO_PEERS: Final[list[Peer]] = []


class Transaction:
    """What has one place in the order of everything.  time: that place, 0 until it is committed; peers: in whose queues
    it has staged entries.
    """

    __slots__ = ("peers", "time")

    def __init__(self, time: int = 0) -> None:
        self.time = time
        self.peers: list[Peer] = _NO_PEERS

    def add(self, peer: Peer) -> None:
        """`peer` has its first staged entry of it."""
        if self.peers is _NO_PEERS:
            self.peers = []
        self.peers.append(peer)


class Entry(Linked):
    """What one receiver is told by one transaction; a notification if it is no `Delivery`.

    kind: MSG_*; node: that it is about, None for a seed; handle: of the receiver, for the destruction of a node of
    somebody else's; rank: its place among those of its transaction; is_busy: a RECV of it has not come to an end.
    """

    __slots__ = ("handle", "is_busy", "kind", "node", "queue", "rank", "transaction")

    def __init__(
        self, kind: int, transaction: Transaction, node: Node | None, handle: NodeHandle | None, rank: int = 0
    ) -> None:
        super().__init__()
        self.kind = kind
        self.transaction = transaction
        self.node = node
        self.handle = handle
        self.rank = rank
        self.is_busy = False
        self.queue: Queue | None = None

    def next_entry(self) -> Entry | None:
        """The entry behind it."""
        return cast("Entry | None", self.after)


class _Part(LinkedList):
    """The staged entries of one transaction in one queue, in the order that they will have there."""

    __slots__ = ("count", "transaction")

    def __init__(self, transaction: Transaction) -> None:
        super().__init__()
        self.transaction = transaction
        self.count = 0

    def add(self, entry: Entry) -> None:
        """Entries come by rank, but for those that others add later."""
        before = self.last
        while before is not None and cast(Entry, before).rank > entry.rank:
            before = before.before
        self.insert_behind(before, entry)
        self.count += 1


def _time_of(part: _Part) -> int:
    return part.transaction.time


class Queue:
    """Entries that were committed, in the order of their times, and parts of transactions on their way.

    There are no more of those than threads that serve clients, so that going through them takes no time to speak of.
    count: of the entries that were committed.
    """

    __slots__ = ("_entries", "_staged", "count")

    def __init__(self) -> None:
        self._entries = LinkedList()
        self._staged: list[_Part] = []
        self.count = 0

    def stage(self, entry: Entry) -> bool:
        """Have `entry` here from the moment on at which its transaction is committed; whether it is its first."""
        transaction = entry.transaction
        part: _Part | None = None
        for each in self._staged:
            if each.transaction is transaction:
                part = each
                break
        is_first = part is None
        if part is None:
            part = _Part(transaction)
            self._staged.append(part)
        entry.queue = self
        part.add(entry)
        return is_first

    def unstage(self, transaction: Transaction) -> None:
        """Forget what is staged of `transaction`, which will not be committed now."""
        for index, part in enumerate(self._staged):
            if part.transaction is transaction:
                del self._staged[index]
                while part.first is not None:
                    entry = cast(Entry, part.first)
                    part.remove(entry)
                    entry.queue = None
                return

    def merge_committed(self) -> None:
        """Move the parts of committed transactions behind the other entries."""
        if not self._staged:
            return
        parts = [part for part in self._staged if part.transaction.time]
        if not parts:
            return
        self._staged = [part for part in self._staged if not part.transaction.time]
        if len(parts) > 1:
            parts.sort(key=_time_of)
        for part in parts:
            self._check_order(part.transaction)
            self._entries.join(part)
            self.count += part.count

    def _check_order(self, transaction: Transaction) -> None:
        last = self._entries.last
        assert last is None or cast(Entry, last).transaction.time < transaction.time

    def append(self, entry: Entry) -> None:
        """Add an entry whose transaction has the last time that was given."""
        self.merge_committed()
        self._check_order(entry.transaction)
        entry.queue = self
        self._entries.append(entry)
        self.count += 1

    def front(self) -> Entry | None:
        """The entry whose turn it is."""
        self.merge_committed()
        return cast("Entry | None", self._entries.first)

    def is_readable(self) -> bool:
        """Whether there is one; while somebody is busy with the front, it is the one behind that (B1-FILE-6)."""
        front = self.front()
        return front is not None and (not front.is_busy or front.after is not None)

    def remove(self, entry: Entry) -> None:
        """Take out an entry that stands here."""
        entry.queue = None
        self._entries.remove(entry)
        self.count -= 1

    def take_staged(self) -> list[LinkedList]:
        """All that is staged, which is here no more: the peer has gone."""
        self.merge_committed()
        parts, self._staged = self._staged, []
        return list(parts)

    def entries(self, most: int = 1 << 62) -> list[Entry]:
        """What was committed, in order: the first `most`."""
        self.merge_committed()
        found: list[Entry] = []
        entry = self.front()
        while entry is not None and len(found) < most:
            found.append(entry)
            entry = entry.next_entry()
        return found
