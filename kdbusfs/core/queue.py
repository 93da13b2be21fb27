"""The queue of a connection: messages that were delivered and not received yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from mypy_extensions import mypyc_attr

from ..abi.constants import ATTACH_ALL
from ..base.linked import Linked, LinkedList

if TYPE_CHECKING:
    from ..base.pool import Slice
    from ..base.ports import ProcessMetadata
    from .message import Message
    from .metadata import ConnMetadata
    from .reply import Tracker
    from .users import User


@mypyc_attr(free_list_len=1)
class QueueEntry(Linked):
    """One message at one receiver.

    payload: the slice with its vector bytes, in the receiver's pool, behind head_size bytes of the message where it is
    laid out already, with fd_offsets as `Family.write_message` gave them; charged: bytes that it is accounted with;
    agreed: the kinds of metadata that its sender had agreed to send;
    user: whom the entry is accounted to; tracker: of a request; equal_before, equal_after: its neighbours of the same
    priority.
    """

    __slots__ = (
        "agreed",
        "charged",
        "conn_meta",
        "equal_after",
        "equal_before",
        "fd_offsets",
        "head_size",
        "message",
        "payload",
        "proc_meta",
        "queue",
        "tracker",
        "user",
    )

    def __init__(
        self,
        message: Message,
        payload: Slice | None,
        proc_meta: ProcessMetadata | None,
        conn_meta: ConnMetadata | None,
    ) -> None:
        super().__init__()
        self.message = message
        self.payload = payload
        self.proc_meta = proc_meta
        self.conn_meta = conn_meta
        self.agreed: int = ATTACH_ALL
        self.head_size = 0
        self.fd_offsets: list[int] = _NO_OFFSETS
        self.user: User | None = None
        self.charged = 0
        self.tracker: Tracker | None = None
        self.queue: Queue | None = None
        self.equal_before: QueueEntry | None = None
        self.equal_after: QueueEntry | None = None


_NO_OFFSETS: Final[list[int]] = []


class _Priority:
    """The entries of one priority, oldest first."""

    __slots__ = ("first", "last")

    def __init__(self) -> None:
        self.first: QueueEntry | None = None
        self.last: QueueEntry | None = None


class Queue:
    """Entries in order of arrival, and beside it in order of priority.

    Each entry is in two linked lists, of all and of its priority, so that removal is O(1).
    count: of entries, the same as len().
    """

    __slots__ = ("_entries", "_lanes", "_plain", "count")

    def __init__(self) -> None:
        self._entries = LinkedList()
        self._plain = _Priority()  # of priority 0, which most messages have; it stays when it is empty
        self._lanes: dict[int, _Priority] = {}  # of the other priorities, as long as they have entries
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, entry: QueueEntry) -> None:
        """Append `entry`."""
        self.count += 1
        entry.queue = self
        self._entries.append(entry)
        lane = self._plain
        priority = entry.message.priority
        if priority:
            found = self._lanes.get(priority)
            if found is None:
                found = self._lanes[priority] = _Priority()
            lane = found
        last = lane.last
        entry.equal_before = last
        if last is None:
            lane.first = entry
        else:
            last.equal_after = entry
        lane.last = entry

    def oldest(self) -> QueueEntry | None:
        """The entry that arrived first (RECV-2)."""
        return cast("QueueEntry | None", self._entries.first)

    def most_urgent(self) -> QueueEntry | None:
        """The entry with the numerically lowest priority, the oldest among equals (RECV-3)."""
        plain = self._plain.first
        if not self._lanes:
            return plain
        lowest = min(self._lanes)
        return self._lanes[lowest].first if plain is None or lowest < 0 else plain

    def remove(self, entry: QueueEntry) -> None:
        """Take `entry` out."""
        self.count -= 1
        entry.queue = None
        self._entries.remove(entry)
        priority = entry.message.priority
        lane = self._lanes[priority] if priority else self._plain
        before, after = entry.equal_before, entry.equal_after
        entry.equal_before = entry.equal_after = None
        if before is None:
            lane.first = after
        else:
            before.equal_after = after
        if after is None:
            lane.last = before
        else:
            after.equal_before = before
        if priority and lane.first is None:
            del self._lanes[priority]

    def payload_bytes(self) -> int:
        """Bytes of payload of all entries in the pool."""
        return sum(entry.message.payload_size for entry in self.entries())

    def entries(self) -> list[QueueEntry]:
        """All entries, oldest first."""
        found: list[QueueEntry] = []
        entry = self.oldest()
        while entry is not None:
            found.append(entry)
            entry = cast("QueueEntry | None", entry.after)
        return found
