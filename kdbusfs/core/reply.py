"""Trackers of expected replies (REP-1 to REP-19, SYNC-1 to SYNC-5).

A tracker is made by the SEND of a request.  It is *linked* as long as the requester's connection lists it; a reply is
accepted while somebody owes one.  The requester's slot (one of 128) is taken until the tracker has no holder any more:
the SEND that works on it, the queued request, or the list of linked trackers (REP-3).

`TRANSITIONS` has the life of a tracker.  Asynchronous requests know NEW, OWED and DONE only.  Of a blocking SEND, the
reply may arrive while the SEND does not wait: before it blocks (EARLY), or after a signal ended the wait and before the
ioctl is restarted (KEPT, SYNC-4).  The outcome stays in the tracker then, and no connection owes a reply any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from errno import EMLINK
from typing import TYPE_CHECKING, Final

from ..abi.limits import CONN_MAX_REQUESTS_PENDING
from ..base.errors import CommandError

if TYPE_CHECKING:
    from ..base.call import Call
    from ..base.ports import Cancellation
    from .connection import Connection
    from .message import Message
    from .queue import QueueEntry


class State(IntEnum):
    """Where a request stands.  `TRANSITIONS` says what leads where."""

    NEW = 0
    """Its message is not queued yet."""
    OWED = 1
    """Asynchronous: a reply is accepted."""
    STARTING = 2
    """Blocking: a reply is accepted, and the SEND is still at work."""
    BLOCKED = 3
    """Blocking: a reply is accepted, and the SEND waits for it."""
    INTERRUPTED = 4
    """Blocking: a reply is accepted; a signal ended the wait, and the ioctl may be restarted."""
    EARLY = 5
    """As STARTING, and the outcome is there."""
    KEPT = 6
    """As INTERRUPTED, and the outcome is there."""
    DONE = 7
    """No reply is accepted or awaited."""


class Event(IntEnum):
    """What happens to a request."""

    QUEUE = 0
    """The message is in the receiver's queue; its SEND does not wait."""
    QUEUE_BLOCKING = 1
    """The message is in the receiver's queue; its SEND is going to wait."""
    BLOCK = 2
    """The SEND, or its restart, begins to wait."""
    INTERRUPT = 3
    """A signal ended the wait (SYNC-2, SYNC-3)."""
    OUTCOME = 4
    """The reply is attached, or it is certain that none will come, and the SEND does not wait (REP-11, REP-15)."""
    END = 5
    """Answered, timed out, cancelled, taken up by its SEND, or one of the two connections left."""


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.NEW: {Event.QUEUE: State.OWED, Event.QUEUE_BLOCKING: State.STARTING},
    State.OWED: {Event.END: State.DONE},
    State.STARTING: {Event.BLOCK: State.BLOCKED, Event.OUTCOME: State.EARLY, Event.END: State.DONE},
    State.BLOCKED: {Event.INTERRUPT: State.INTERRUPTED, Event.END: State.DONE},
    State.INTERRUPTED: {Event.BLOCK: State.BLOCKED, Event.OUTCOME: State.KEPT, Event.END: State.DONE},
    State.EARLY: {Event.END: State.DONE},
    State.KEPT: {Event.END: State.DONE},
    State.DONE: {Event.END: State.DONE},
}
"""What each event makes of each state.  An event that is not listed cannot happen there: it is a defect of the core."""

# The hot path works with plain numbers, which compiled code does not have to look up; a test holds them to the enums.
NEW: Final = 0
OWED: Final = 1
STARTING: Final = 2
BLOCKED: Final = 3
INTERRUPTED: Final = 4
EARLY: Final = 5
KEPT: Final = 6
DONE: Final = 7

QUEUE: Final = 0
QUEUE_BLOCKING: Final = 1
BLOCK: Final = 2
INTERRUPT: Final = 3
OUTCOME: Final = 4
END: Final = 5

_EVENTS: Final = 6
_ILLEGAL: Final = -1
_STEPS: Final[list[int]] = [
    int(TRANSITIONS[state].get(event, _ILLEGAL)) for state in State for event in Event
]
"""`TRANSITIONS` by state * _EVENTS + event."""


class Requests:
    """The requests of one connection, and those that it has to answer.

    trackers: linked ones of its own requests, oldest first; owed: those of requests that it has to answer; count: slots
    that its requests take (REP-3); alarm, alarm_ns: of `Deadlines`.
    """

    __slots__ = ("alarm", "alarm_ns", "count", "owed", "trackers")

    def __init__(self) -> None:
        self.trackers: list[Tracker] = []
        self.owed: dict[Tracker, None] = {}
        self.count = 0
        self.alarm = 0
        self.alarm_ns = 0


class Tracker:
    """The tracker of one request.

    replying: the connection that owes the reply; requester: the one that waits for it; cookie: of the request;
    deadline_ns: CLOCK_MONOTONIC; address, name_id: id and name that the request was sent to, by which its restart is
    known (SYNC-2), and the id of that name; alarm: the number of its deadline in `Deadlines`, 0: it has none;
    is_blocking: the request is a SEND that waits.
    Of a blocking request: call: of the SEND that waits, cancellation: its CANCEL_FD; reply: what was attached, and
    failure: the errno instead of a reply, 0: none.
    """

    __slots__ = (
        "_holders",
        "address",
        "alarm",
        "call",
        "cancellation",
        "cookie",
        "deadline_ns",
        "failure",
        "is_blocking",
        "name_id",
        "reply",
        "replying",
        "requester",
        "state",
    )

    def __init__(
        self, replying: Connection, requester: Connection, message: Message, *, is_blocking: bool
    ) -> None:
        """Takes one of the requester's slots.  Raises CommandError(EMLINK) when there is none (REP-2)."""
        requests = requester.requests
        if requests.count >= CONN_MAX_REQUESTS_PENDING:
            raise CommandError(EMLINK, "too many pending requests")
        requests.count += 1
        self.replying = replying
        self.requester = requester
        self.cookie = message.cookie
        self.deadline_ns = message.timeout_ns
        self.name_id = message.name_id
        self.address = message.address
        self.alarm = 0
        self.is_blocking = is_blocking
        self.state = NEW
        self.call: Call | None = None
        self.cancellation: Cancellation | None = None
        self.reply: QueueEntry | None = None
        self.failure = 0
        self._holders = 1

    @property
    def is_linked(self) -> bool:
        """Whether the requester still lists it."""
        state = self.state
        return state != DONE and state != NEW

    @property
    def has_outcome(self) -> bool:
        """Whether the reply, or the reason why there is none, waits for the SEND to take it up."""
        state = self.state
        return state in (KEPT, EARLY)

    def advance(self, event: int) -> None:
        """Change the state by `TRANSITIONS`."""
        state = _STEPS[self.state * _EVENTS + event]
        assert state != _ILLEGAL, f"{Event(event).name} of a request that is {State(self.state).name}"
        self.state = state

    def retain(self) -> Tracker:
        """One holder more."""
        self._holders += 1
        return self

    def release(self) -> None:
        """One holder less.  The last one gives the requester's slot back."""
        self._holders -= 1
        if not self._holders:
            self.requester.requests.count -= 1

    def link(self) -> None:
        """The request is queued: from now on a reply is accepted."""
        self.advance(QUEUE_BLOCKING if self.is_blocking else QUEUE)
        self.retain()
        self.requester.requests.trackers.append(self)
        self.replying.requests.owed[self] = None

    def unlink(self) -> None:
        """The request is over: no reply is accepted any more.  Idempotent."""
        if not self.is_linked:
            return
        self.advance(END)
        self.requester.requests.trackers.remove(self)
        self.forgive()
        self.release()

    def forgive(self) -> None:
        """The replying connection owes nothing any more.  Idempotent."""
        self.replying.requests.owed.pop(self, None)

    def move(self, replying: Connection) -> None:
        """Let another connection owe what is owed (ACT-6)."""
        del self.replying.requests.owed[self]
        replying.requests.owed[self] = None
        self.replying = replying

    def stop_watching(self) -> None:
        """Stop watching the CANCEL_FD, and close it."""
        cancellation, self.cancellation = self.cancellation, None
        if cancellation is not None:
            cancellation.close()


def find_tracker(replying: Connection, requester: Connection, cookie: int) -> Tracker | None:
    """The newest tracker that entitles `replying` to answer `requester` (REP-8)."""
    for tracker in reversed(requester.requests.trackers):
        if tracker.replying is replying and tracker.cookie == cookie and not tracker.has_outcome:
            return tracker
    return None


def find_interrupted(
    requester: Connection, address: tuple[int, bytes | None] | None, cookie: int
) -> Tracker | None:
    """The newest interrupted tracker of a request to `address` (SYNC-2), or to anybody (None, L-67)."""
    for tracker in reversed(requester.requests.trackers):
        if tracker.state not in (INTERRUPTED, KEPT):
            continue
        if tracker.cookie == cookie and (address is None or tracker.address == address):
            return tracker
    return None


def newest_first(trackers: Iterable[Tracker]) -> list[Tracker]:
    """In the order in which the ends of asynchronous requests are reported (REP-11, NOTE-10)."""
    return sorted(trackers, key=lambda tracker: tracker.alarm, reverse=True)
