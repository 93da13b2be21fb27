"""Trackers of expected replies (REP-1 to REP-19, SYNC-1 to SYNC-5).

A tracker is *linked* while a reply is accepted.  The requester's slot (one of 128) is taken as long as the tracker is
linked or its request is still queued (REP-3).  A synchronous tracker has a `call`, the blocked SEND, except between an
interruption and the restart of the ioctl; a reply that comes just then is kept in `answer`, or the errno of what went
wrong in `failure` (SYNC-4).  Such a tracker is *settled*: nobody owes anything any more, and it stays linked for the
restart, even if the replying connection leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import EMLINK
from typing import TYPE_CHECKING

from ..abi.limits import CONN_MAX_REQUESTS_PENDING
from ..base.errors import CommandError

if TYPE_CHECKING:
    from ..base.call import Call
    from ..base.ports import Cancellation
    from .connection import Connection
    from .message import Message
    from .queue import QueueEntry


class Reply:
    """The tracker of one request.

    replying: who owes the reply; requester: whom; deadline_ns: CLOCK_MONOTONIC; name_id: of the name it was sent to;
    address: id and name that the request was sent to, by which its restart is known (SYNC-2); alarm: of `Deadlines`.
    """

    __slots__ = (
        "_holders",
        "address",
        "alarm",
        "answer",
        "call",
        "cancellation",
        "cookie",
        "deadline_ns",
        "failure",
        "interrupted",
        "linked",
        "name_id",
        "replying",
        "requester",
        "sync",
    )

    def __init__(
        self, replying: Connection, requester: Connection, message: Message, *, sync: bool
    ) -> None:
        """Takes one of the requester's slots.  Raises CommandError(EMLINK) when there is none (REP-2)."""
        if requester.request_count >= CONN_MAX_REQUESTS_PENDING:
            raise CommandError(EMLINK, "too many pending requests")
        requester.request_count += 1
        self.replying = replying
        self.requester = requester
        self.cookie = message.cookie
        self.deadline_ns = message.cookie_reply
        self.name_id = message.name_id
        self.address = message.address
        self.alarm = 0
        self.sync = sync
        self.linked = False
        self.interrupted = False
        self.call: Call | None = None
        self.cancellation: Cancellation | None = None
        self.answer: QueueEntry | None = None
        self.failure = 0
        self._holders = 1

    @property
    def answered(self) -> bool:
        """Whether it was settled during an interruption."""
        return self.answer is not None or self.failure != 0

    def retain(self) -> Reply:
        self._holders += 1
        return self

    def drop(self) -> None:
        """One holder less: the SEND that made it, the queued request, or the list of linked trackers."""
        self._holders -= 1
        if not self._holders:
            self.requester.request_count -= 1

    def link(self) -> None:
        """From now on a reply is accepted."""
        self.linked = True
        self.retain()
        self.requester.replies.append(self)
        self.replying.owed[self] = None

    def unlink(self) -> None:
        """No reply is accepted any more.  Idempotent."""
        if not self.linked:
            return
        self.linked = False
        self.requester.replies.remove(self)
        self.settle()
        self.drop()

    def settle(self) -> None:
        """The replying connection owes nothing any more.  Idempotent."""
        self.replying.owed.pop(self, None)

    def move(self, replying: Connection) -> None:
        """Let another connection owe what is owed (ACT-6)."""
        del self.replying.owed[self]
        replying.owed[self] = None
        self.replying = replying

    def stop_watching(self) -> None:
        """Let go of the CANCEL_FD."""
        cancellation, self.cancellation = self.cancellation, None
        if cancellation is not None:
            cancellation.close()


def find_reply(replying: Connection, requester: Connection, cookie: int) -> Reply | None:
    """The newest tracker that entitles `replying` to answer `requester` (REP-8)."""
    for reply in reversed(requester.replies):
        if reply.replying is replying and reply.cookie == cookie and not reply.answered:
            return reply
    return None


def find_interrupted(
    requester: Connection, address: tuple[int, bytes | None] | None, cookie: int
) -> Reply | None:
    """The newest interrupted tracker of a request to `address` (SYNC-2), or to anybody (None, L-67)."""
    for reply in reversed(requester.replies):
        if reply.interrupted and reply.cookie == cookie and (address is None or reply.address == address):
            return reply
    return None


def newest_first(replies: Iterable[Reply]) -> list[Reply]:
    """In the order in which the ends of asynchronous requests are reported (REP-11, NOTE-10)."""
    return sorted(replies, key=lambda reply: reply.alarm, reverse=True)
