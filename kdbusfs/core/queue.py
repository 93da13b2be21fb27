"""A connection's queue of messages that were delivered and not yet received."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from .quota import QueueQuota

if TYPE_CHECKING:
    from .message import Message
    from .metadata import ConnMetadata
    from .pool import Slice
    from .ports import ProcessMetadata
    from .quota import User
    from .reply import Reply


class QueueEntry:
    """One message at one receiver.

    payload: the slice with its vector bytes, in the receiver's pool;
    user: whom the entry is accounted to; reply: the tracker of a request; name_id: the name it was addressed to.
    """

    __slots__ = ("conn_meta", "message", "number", "payload", "proc_meta", "reply", "user")

    def __init__(
        self,
        message: Message,
        payload: Slice | None,
        proc_meta: ProcessMetadata | None,
        conn_meta: ConnMetadata | None,
    ) -> None:
        self.message = message
        self.payload = payload
        self.proc_meta = proc_meta
        self.conn_meta = conn_meta
        self.user: User | None = None
        self.reply: Reply | None = None
        self.number = 0


class Queue:
    """Entries in order of arrival, and beside it in order of priority.

    An entry leaves as the oldest of all or as the oldest of the most urgent priority: either way as the oldest of its
    own priority, so a plain queue for each priority suffices.  count: of entries, the same as len().
    """

    __slots__ = ("_entries", "_number", "_priorities", "count", "quota")

    def __init__(self) -> None:
        self._entries: OrderedDict[int, QueueEntry] = OrderedDict()
        self._priorities: dict[int, deque[QueueEntry]] = {}
        self._number = 0
        self.count = 0
        self.quota = QueueQuota()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: QueueEntry) -> None:
        """Append `entry`."""
        self.count += 1
        self._number = number = self._number + 1
        entry.number = number
        self._entries[number] = entry
        priority = entry.message.priority
        same = self._priorities.get(priority)
        if same is None:
            self._priorities[priority] = deque((entry,))
        else:
            same.append(entry)

    def oldest(self) -> QueueEntry | None:
        """The entry that arrived first (RECV-2)."""
        for entry in self._entries.values():
            return entry
        return None

    def most_urgent(self) -> QueueEntry | None:
        """The entry with the numerically lowest priority, the oldest among equals (RECV-3)."""
        if not self._priorities:
            return None
        return self._priorities[min(self._priorities)][0]

    def remove(self, entry: QueueEntry) -> None:
        """Take `entry` out and give its quota back (QUO-4)."""
        del self._entries[entry.number]
        self.count -= 1
        priority = entry.message.priority
        same = self._priorities[priority]
        if len(same) == 1:
            del self._priorities[priority]
        elif same[0] is entry:
            same.popleft()
        else:
            same.remove(entry)
        if entry.user is not None:
            self.quota.give_back(entry.user)
            entry.user = None
        if not self.count:
            self.quota.clear()

    def payload_bytes(self) -> int:
        """What the payload of all entries takes in the pool."""
        return sum(entry.message.payload_size for entry in self._entries.values())

    def entries(self) -> list[QueueEntry]:
        """All entries, oldest first."""
        return list(self._entries.values())
